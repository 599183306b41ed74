#!/usr/bin/env python3
"""Quantised models between this program and Transformers with bitsandbytes, both ways, as files.

    python test/interop/bnb_check.py [--lora ./lora] [--keep DIR]

A checkpoint that `lora quantize` wrote, in Transformers; one that Transformers saved, here; and
--load-in-4bit beside both. INT8 is compared with its decoded weights: bitsandbytes computes with
activations of 8 bits too. Rows of all matrices are whole blocks, which its kernels for processors with
AVX-512 need. Bounds are those of test/goldens/README.md. Ends with a count.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "goldens"))
sys.dont_write_bytecode = True
warnings.filterwarnings("ignore")
import bitsandbytes
import torch
from bitsandbytes import functional
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils import logging

import make_goldens as goldens

logging.set_verbosity_error()
logging.disable_progress_bar()
LOSS_BOUND = 5e-5
results = {True: 0, False: 0}

MODEL = dict(vocab_size=71, hidden_size=128, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2,
             head_dim=32, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
CASES = {
    "nf4": (["--quant-type", "nf4"], dict(load_in_4bit=True, bnb_4bit_quant_type="nf4")),
    "nf4-dq": (["--quant-type", "nf4", "--double-quant"],
               dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)),
    "fp4": (["--quant-type", "fp4"], dict(load_in_4bit=True, bnb_4bit_quant_type="fp4")),
    "nf4-dq-b128": (["--quant-type", "nf4", "--block-size", "128", "--double-quant"], None),
    "int8": (["--quant-type", "int8"], dict(load_in_8bit=True)),
}


def check(name, ours, theirs):
    """Losses of every token of every row."""
    assert len(ours) == len(theirs) and all(x.shape == y.shape for x, y in zip(ours, theirs)), "not the same shapes"
    error = max((x - y).abs().max().item() for x, y in zip(ours, theirs))
    good = bool(error <= LOSS_BOUND)        # NaN is not
    results[good] += 1
    print(f"{'ok  ' if good else 'FAIL'} {name}: {error:.2e} (bound {LOSS_BOUND:.0e})")


def lora(*words):
    run = subprocess.run([str(w) for w in (args.lora, *words)], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"FAIL lora {words[0]} ended with {run.returncode}:\n{run.stderr}")


def our_losses(model, rows, *words):
    data, out = work / "rows.jsonl", work / "losses"
    data.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in rows))
    lora("eval", "--model", model, "--data", data, "--token-losses", out, *words)
    return [torch.tensor(json.loads(line)["losses"]) for line in open(out)]


def their_losses(path, rows):
    model = decoded(path)
    with torch.no_grad():
        return [goldens.losses(model, ids)[1] for ids in rows]


def decoded(path):
    """What Transformers loads; the linears of INT8 replaced by plain ones of their numbers. As in training:
    else bitsandbytes computes with 4-bit weights in bf16 where the processor can."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    for name, module in list(model.named_modules()):
        if isinstance(module, bitsandbytes.nn.Linear8bitLt):
            plain = torch.nn.Linear(module.in_features, module.out_features, bias=False)
            plain.weight.data = functional.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
            model.set_submodule(name, plain)
    return model.train()


def case(name, base, rows):
    words, settings = CASES[name]
    ours, theirs = work / f"{name}-ours", work / f"{name}-theirs"
    lora("quantize", "--model", base, "--out", ours, "--dtype", "f32", *words)
    here = our_losses(ours, rows)
    check(f"{name}: written here, in Transformers", here, their_losses(ours, rows))
    how = ["--load-in-8bit"] if name == "int8" else ["--load-in-4bit", *words]
    check(f"{name}: written, and quantised while loading", here, our_losses(base, rows, *how))
    if settings is None:
        return
    AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, quantization_config=BitsAndBytesConfig(**settings)).save_pretrained(theirs)
    there = our_losses(theirs, rows)
    check(f"{name}: saved by Transformers, here", there, their_losses(theirs, rows))
    if name in ("nf4", "fp4"):      # elsewhere theirs depends on the processor: codes of scales, weights rounded to f16
        check(f"{name}: theirs and ours", here, there)


def main():
    base = work / "base"
    goldens.make_model(base, 31, **MODEL)
    rows = [ids for ids, _ in goldens.make_rows(torch.Generator().manual_seed(9), MODEL["vocab_size"], (7, 21))]
    for name in CASES:
        case(name, base, rows)


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
