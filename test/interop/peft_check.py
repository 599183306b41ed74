#!/usr/bin/env python3
"""Adapters and models between this program, PEFT and Transformers, both ways, as files.

    python test/interop/peft_check.py [--lora ./lora] [--keep DIR]

On a tiny random model: an adapter that `lora train` wrote, in PEFT; adapters that PEFT wrote, in `lora
eval` and `lora gradients`, or refused with what to do; a merged and a fully trained model, in Transformers. Python is in float32, with
nothing replaced, as users run it. Bounds are those of test/goldens/README.md. Ends with a count.
"""
import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "goldens"))
sys.dont_write_bytecode = True
import warnings

warnings.filterwarnings("ignore")
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import make_goldens as goldens
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

LOGIT_BOUND, LOSS_BOUND, GRADIENT_BOUND = 1e-4, 5e-5, 1e-4

results = {True: 0, False: 0}


def check(name, error, bound):
    good = bool(error <= bound)     # NaN is not
    results[good] += 1
    print(f"{'ok  ' if good else 'FAIL'} {name}: {error:.2e} (bound {bound:.0e})")


def lora(*words):
    run = subprocess.run([str(w) for w in (args.lora, *words)], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"FAIL lora {words[0]} ended with {run.returncode}:\n{run.stderr}")
    return run


def check_refused(name, model, adapter, hint):
    """An adapter that lora refuses with an error that says so."""
    data = work / "refused.jsonl"
    write_rows(data, [([1, 2, 3], None)])
    run = subprocess.run([args.lora, "eval", "--model", model, "--adapter", adapter, "--data", data], capture_output=True, text=True)
    said = run.returncode == 1 and hint in run.stderr
    check(f"{name}: refused with a hint" + ("" if said else f", not with {run.stderr!r}"), 0 if said else float("inf"), 0)


def write_rows(path, rows):
    """Rows of ids; labels where there is a mask, else every token is a target."""
    with open(path, "w") as f:
        for ids, mask in rows:
            row = {"input_ids": ids}
            if mask:
                row["labels"] = [i if m else -100 for i, m in zip(ids, mask)]
            print(json.dumps(row), file=f)


def our_losses(name, model, rows, adapter=None):
    """Per row, the losses that lora eval gives."""
    data, out = work / f"{name}.jsonl", work / f"{name}.losses"
    write_rows(data, rows)
    lora("eval", "--model", model, "--data", data, "--token-losses", out, *(["--adapter", adapter] if adapter else []))
    return [torch.tensor(json.loads(line)["losses"]) for line in open(out)]


def their_losses(model, rows):
    with torch.no_grad():
        return [goldens.losses(model, ids)[1] for ids, _ in rows]


def worst(a, b):
    assert len(a) == len(b) and all(x.shape == y.shape for x, y in zip(a, b)), "not the same shapes"
    return max((x - y).abs().max().item() for x, y in zip(a, b))


def our_log_probabilities(name, model, prompt, vocab, adapter=None):
    """What follows the prompt, by one row for each token of the vocabulary."""
    losses = our_losses(name, model, [(prompt + [v], None) for v in range(vocab)], adapter)
    return -torch.stack([row[-1] for row in losses])


def compare_logits(name, model, path, prompt, vocab, adapter=None):
    """Logits up to the constant that softmax does not see, of all tokens after the prompt."""
    with torch.no_grad():
        theirs = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    ours = our_log_probabilities(name, path, prompt, vocab, adapter)
    check(f"{name}: logits", (ours - theirs).abs().max().item(), LOGIT_BOUND)


def load_base(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def main():
    g = torch.Generator().manual_seed(11)
    base, vocab = work / "base", goldens.TIED["vocab_size"]
    goldens.make_model(base, 12, **goldens.TIED)
    rows = goldens.make_rows(g, vocab, (6, 11, 20, 9, 31, 14))
    plain = [(ids, None) for ids, _ in rows]
    prompt = rows[4][0]
    data = work / "train.jsonl"
    write_rows(data, rows)
    compare_logits("base", load_base(base), base, prompt, vocab)

    # ours to PEFT
    options = ("--model", base, "--data", data, "--max-steps", 12, "--batch-size", 4, "--learning-rate", 2e-2)
    for name, more in (("lora", ()), ("rslora", ("--use-rslora", "--lora-r", 4)),
                       ("patterns", ("--target-modules", "q_proj,o_proj,down_proj", "--rank-pattern", "o_proj=3",
                                     "--alpha-pattern", "layers.1.mlp.down_proj=5", "--layers", "1"))):
        run = work / f"ours-{name}"
        lora("train", *options, "--out", run, *more)
        model = PeftModel.from_pretrained(load_base(base), run).eval()
        moved = worst(their_losses(model, plain), their_losses(load_base(base), plain))
        check(f"ours-{name}: training has moved the losses (1 / change)", 1 / moved if moved else float("inf"), 1e3)
        compare_logits(f"ours-{name}", model, base, prompt, vocab, run)
        check(f"ours-{name}: losses", worst(our_losses(name, base, plain, run), their_losses(model, plain)), LOSS_BOUND)

    # ours, merged
    lora("merge", "--model", base, "--adapter", work / "ours-patterns", "--out", work / "merged", "--dtype", "f32")
    check("merged: losses in Transformers and with the adapter in PEFT",
          worst(their_losses(load_base(work / "merged"), plain), their_losses(model, plain)), LOSS_BOUND)

    # every weight trained
    lora("train", *options, "--method", "full", "--learning-rate", 1e-3, "--dtype", "f32", "--out", work / "full")
    compare_logits("full", load_base(work / "full"), work / "full", prompt, vocab)

    # PEFT's to us
    for seed, (name, settings) in enumerate({
        "lora": dict(r=4, lora_alpha=8, target_modules="all-linear"),
        "rslora": dict(r=8, lora_alpha=16, use_rslora=True, target_modules=["q_proj", "v_proj"]),
        "patterns": dict(r=2, lora_alpha=6, target_modules=goldens.LINEARS, rank_pattern={"q_proj": 5},
                         alpha_pattern={"layers.0.mlp.up_proj": 1}, layers_to_transform=[0]),
        "start": dict(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights="orthogonal", bias="all",
                      ensure_weight_tying=True),
    }.items()):
        path = work / f"peft-{name}"
        goldens.make_adapter(base, path, 40 + seed, False, **settings)
        model = goldens.load_adapter(base, path, torch.float32)
        check(f"peft-{name}: losses", worst(our_losses(f"peft-{name}", base, plain, path), their_losses(model, plain)),
              LOSS_BOUND)
        lora("gradients", "--model", base, "--adapter", path, "--data", data, "--out", work / "gradients.safetensors")
        ours = load_file(work / "gradients.safetensors")
        goldens.batch_loss(model, rows, sum(sum(mask) for _, mask in rows)).backward()
        theirs = {goldens.file_name(n): p.grad for n, p in model.named_parameters() if p.requires_grad}
        assert ours.keys() == theirs.keys(), f"other tensors: {ours.keys() ^ theirs.keys()}"
        check(f"peft-{name}: gradients, of the tensor's largest entry",
              max((ours[n] - t).abs().max().item() / t.abs().max().item() for n, t in theirs.items()), GRADIENT_BOUND)

    # starts that leave the base as it is, and starts that do not
    for start in ("eva", "mica"):
        path = work / f"peft-{start}"
        goldens.make_adapter(base, path, 50, False, r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=start)
        check(f"peft-{start}: losses", worst(our_losses(f"peft-{start}", base, plain, path),
                                             their_losses(goldens.load_adapter(base, path, torch.float32), plain)), LOSS_BOUND)
    for start in ("pissa", "olora"):
        path = work / f"peft-{start}"
        goldens.make_adapter(base, path, 51, False, r=4, target_modules=["q_proj"], init_lora_weights=start)
        check_refused(f"peft-{start}", base, path, "path_initial_model_for_weight_conversion")

    # other forms of one adapter
    path = work / "peft-start"
    tensors = load_file(path / "adapter_model.safetensors")
    named = work / "peft-named"
    shutil.copytree(path, named)
    save_file({k.replace(".weight", ".default.weight"): t for k, t in tensors.items()}, named / "adapter_model.safetensors")
    check("peft-named: losses", worst(our_losses("peft-named", base, plain, named),
                                      their_losses(goldens.load_adapter(base, named, torch.float32), plain)), LOSS_BOUND)
    model = PeftModel.from_pretrained(load_base(base), path, adapter_name="math")
    save_file({k: t.clone() for k, t in model.state_dict().items()}, named / "adapter_model.safetensors")
    check_refused("peft-named with the base inside", base, named, "save_pretrained() writes the adapter alone")
    model.save_pretrained(work / "peft-folder")
    check_refused("peft-folder", base, work / "peft-folder", str(work / "peft-folder" / "math"))
    model = PeftModel.from_pretrained(load_base(base), path)
    model.save_pretrained(work / "peft-bin", safe_serialization=False)
    check_refused("peft-bin", base, work / "peft-bin", "torch.load")


parser = argparse.ArgumentParser()
parser.add_argument("--lora", default="./lora")
parser.add_argument("--keep", help="a directory for the files, which then stay")
args = parser.parse_args()
args.lora = pathlib.Path(args.lora).resolve()
with tempfile.TemporaryDirectory() as scratch:
    work = pathlib.Path(args.keep or scratch)
    work.mkdir(exist_ok=True)
    main()
print(f"{results[True]} passed, {results[False]} failed, 0 skipped")
sys.exit(bool(results[False]))
