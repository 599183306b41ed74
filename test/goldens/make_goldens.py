#!/usr/bin/env python3
"""Makes test/goldens/data: figures from PyTorch, Transformers and PEFT on tiny random models.

    python test/goldens/make_goldens.py [OUT]        (default: data beside this script)

README.md beside this script says what each file holds. Everything that is compared is computed in
float64: Transformers casts to float32 inside RMSNorm, in the rotary tables and in the eager softmax
even in a float64 model, so exact() replaces those three. The same figures in float32, with nothing
replaced, are made beside them, and their distance is written down: it is what a correct float32
program can be expected to differ by.
"""
import contextlib
import json
import math
import pathlib
import platform
import shutil
import sys
from unittest import mock

import numpy
import peft
import safetensors
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama import modeling_llama as llama
from transformers.models.phi3 import modeling_phi3 as phi3

VERSIONS = {
    "python": platform.python_version(), "torch": torch.__version__,
    "transformers": transformers.__version__, "peft": peft.__version__,
    "safetensors": safetensors.__version__, "numpy": numpy.__version__,
}
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# ---- the model in float64 -----------------------------------------------------------------------


def frequencies(config):
    """The rotary frequencies of each pair of channels, in float64 (facts of Llama 3.1's scaling)."""
    rope = config.rope_parameters
    i = torch.arange(0, config.head_dim, 2, dtype=torch.float64)
    f = rope["rope_theta"] ** (-i / config.head_dim)
    if rope["rope_type"] == "llama3":
        turns = rope["original_max_position_embeddings"] * f / (2 * math.pi)
        low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
        smooth = ((turns - low) / (high - low)).clamp(0, 1)
        f = (1 - smooth) * f / factor + smooth * f
    return f


def exact_norm(self, x):
    return self.weight * (x / torch.sqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon))


def exact_rotary(self, x, position_ids):
    angle = position_ids[..., None].to(torch.float64) * frequencies(self.config)
    angle = torch.cat((angle, angle), -1)
    return angle.cos(), angle.sin()


def exact_attention(module, query, key, value, attention_mask, scaling, sliding_window=None, **_):
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, 1) for t in (key, value))
    scores = scaling * query @ key.transpose(2, 3)
    n = scores.shape[-1]
    seen = torch.ones(n, n).tril().bool()
    if sliding_window:
        seen = seen & torch.ones(n, n).triu(1 - sliding_window).bool()
    scores = scores.masked_fill(~seen, -math.inf)
    p = scores.softmax(-1)
    return (p @ value).transpose(1, 2), p


@contextlib.contextmanager
def exact():
    """Inside, every model computes in the type of its weights throughout."""
    with contextlib.ExitStack() as stack:
        for norm, rotary, module in ((llama.LlamaRMSNorm, llama.LlamaRotaryEmbedding, llama),
                                     (phi3.Phi3RMSNorm, phi3.Phi3RotaryEmbedding, phi3)):
            stack.enter_context(mock.patch.object(norm, "forward", exact_norm))
            stack.enter_context(mock.patch.object(rotary, "forward", exact_rotary))
            stack.enter_context(mock.patch.object(module, "eager_attention_forward", exact_attention))
        yield


def load(path, dtype):
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager").eval()


def losses(model, ids):
    """Logits [n, V], and -ln p(ids[i + 1] | ids[.. i]) for i < n - 1."""
    logits = model(torch.tensor([ids])).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    return logits, loss


def batch_loss(model, rows, targets):
    """The sum over the rows' targets, divided by `targets`: accumulated over micro-batches it is
    the mean over all target tokens of the step, never a mean of means."""
    return sum((losses(model, ids)[1] * torch.tensor(mask[1:])).sum() for ids, mask in rows) / targets


# ---- random things ------------------------------------------------------------------------------


def make_model(path, seed, dtype=torch.float32, **config):
    """Random weights that give losses well above ln V and below nonsense, so that errors show."""
    g = torch.Generator().manual_seed(seed)
    family = config.pop("family", "llama")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(
        family, num_hidden_layers=2, max_position_embeddings=128, rms_norm_eps=1e-5, pad_token_id=None, **config))
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            if "norm" in name:
                p.copy_(1 + 0.2 * noise)
            elif "embed" in name:
                p.copy_(0.6 * noise)
            else:
                p.copy_(1.4 * noise / math.sqrt(p.shape[1]))
    model.to(dtype).save_pretrained(path)
    (path / "generation_config.json").unlink()


def old_form(path):
    """config.json as Transformers 4 wrote it: the other form found in the wild."""
    c = json.loads((path / "config.json").read_text())
    rope = c.pop("rope_parameters")
    c["rope_theta"] = rope.pop("rope_theta")
    c["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    c["torch_dtype"] = c.pop("dtype")
    c["transformers_version"] = "4.44.0"
    write_json(path / "config.json", c)


def make_rows(g, vocab, lengths):
    """Rows of ids with one span of targets each; some spans reach the end, some do not."""
    rows = []
    for n in lengths:
        ids = torch.randint(3, vocab, (n,), generator=g).tolist()
        start = int(torch.randint(1, n - 1, (1,), generator=g))
        end = int(torch.randint(start + 1, n + 1, (1,), generator=g))
        rows.append((ids, [int(start <= t < end) for t in range(n)]))
    return rows


def make_adapter(base_path, path, seed, zero_b, **settings):
    """An adapter as PEFT saves it. zero_b: a fresh one, else B is random so that A has a gradient."""
    g = torch.Generator().manual_seed(seed)
    model = get_peft_model(load(base_path, torch.float32),
                           LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_A" in name:
                p.copy_(torch.empty_like(p).uniform_(-1, 1, generator=g) / math.sqrt(p.shape[1]))
            elif "lora_B" in name and not zero_b:
                p.copy_(0.3 * torch.randn(p.shape, generator=g))
    model.save_pretrained(path)
    (path / "README.md").unlink(missing_ok=True)
    c = json.loads((path / "adapter_config.json").read_text())
    c["base_model_name_or_path"] = "tiny"
    if isinstance(c["target_modules"], list):
        c["target_modules"].sort()      # PEFT keeps a set: its order changes from run to run
    write_json(path / "adapter_config.json", c)


def load_adapter(base_path, path, dtype):
    return PeftModel.from_pretrained(load(base_path, dtype), path, is_trainable=True,
                                     autocast_adapter_dtype=False).to(dtype)


def file_name(name):
    return name.replace(".default", "")


# ---- writing ------------------------------------------------------------------------------------


def write_json(path, value):
    path.write_text(json.dumps(value, sort_keys=True) + "\n")


def write_tensors(path, tensors):
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)


def write_batch(path, rows):
    write_tensors(path / "batch.safetensors",
                  {f"seq{s}.{k}": as_ints(v) for s, row in enumerate(rows) for k, v in zip(("ids", "mask"), row)})


def as_ints(values):
    return torch.tensor(values, dtype=torch.int32)


def difference(a, b):
    return (a.double() - b.double()).abs().max().item()


def dtypes(run):
    """run(dtype) in float64 with the exact parts, and in float32 as Transformers has it."""
    with exact():
        wide = run(torch.float64)
    return wide, run(torch.float32)


# ---- the four kinds -----------------------------------------------------------------------------


def forward(path, rows):
    def run(dtype):
        model = load(path / "model", dtype)
        with torch.no_grad():
            return [losses(model, ids) for ids, _ in rows]

    wide, narrow = dtypes(run)
    out, total, count = {}, 0.0, 0
    for s, ((ids, mask), (logits, loss)) in enumerate(zip(rows, wide)):
        at = sorted({0, 1, len(ids) // 2, len(ids) - 1})
        out |= {f"seq{s}.ids": as_ints(ids), f"seq{s}.mask": as_ints(mask),
                f"seq{s}.logit_positions": as_ints(at), f"seq{s}.logits": logits[at],
                f"seq{s}.loss": loss}
        total += (loss * torch.tensor(mask[1:])).sum().item()
        count += sum(mask)
    write_tensors(path / "ref.safetensors", out)
    write_json(path / "ref.json", {
        "mean_loss": {"all": total / count}, "targets": count,
        "float32_max_error": {
            "logit": max(difference(a[0], b[0]) for a, b in zip(wide, narrow)),
            "loss": max(difference(a[1], b[1]) for a, b in zip(wide, narrow))}})


def gradients(path, model_path, rows):
    targets = sum(sum(mask) for _, mask in rows)

    def run(dtype):
        model = load_adapter(model_path, path / "adapter", dtype)
        loss = batch_loss(model, rows, targets)
        loss.backward()
        grads = {file_name(n): p.grad for n, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            return loss.detach(), grads, [losses(model, ids)[0] for ids, _ in rows]

    (loss, grads, logits), (loss32, grads32, logits32) = dtypes(run)
    out = {"grad." + n: g for n, g in grads.items()}
    for s, (ids, _) in enumerate(rows):
        at = sorted({0, len(ids) // 2, len(ids) - 1})
        out |= {f"seq{s}.logit_positions": as_ints(at), f"seq{s}.logits": logits[s][at]}
    write_tensors(path / "ref.safetensors", out)
    write_json(path / "ref.json", {
        "loss": loss.item(), "targets": targets,
        "grad_global_norm": math.sqrt(sum(g.square().sum().item() for g in grads.values())),
        "float32_max_error": {
            "loss": abs(loss.item() - loss32.item()),
            "logit": max(difference(a, b) for a, b in zip(logits, logits32)),
            "grad_over_largest_of_tensor": max(difference(g, grads32[n]) / g.abs().max().item()
                                               for n, g in grads.items())}})


def trajectory(path, model_path, steps, settings):
    """steps[step][micro-batch][row] = (ids, mask)."""
    full = settings["trainable"] == "all weights"

    def run(dtype):
        model = load(model_path, dtype) if full else load_adapter(model_path, path / "initial_adapter", dtype)
        named = {file_name(n): p for n, p in model.named_parameters() if p.requires_grad}
        start = {n: p.detach().clone() for n, p in named.items()}
        optimizer = torch.optim.AdamW(named.values(), lr=settings["lr"], betas=settings["betas"],
                                      eps=settings["eps"], weight_decay=settings["weight_decay"])
        scheduler = transformers.get_scheduler(settings["schedule"], optimizer,
                                               settings["warmup_steps"], len(steps))
        log = {"loss": [], "grad_norm": [], "lr": []}
        for step in steps:
            targets = sum(sum(mask) for batch in step for _, mask in batch)
            optimizer.zero_grad()
            loss = 0.0
            for batch in step:
                part = batch_loss(model, batch, targets)
                part.backward()
                loss += part.item()
            norm = torch.nn.utils.clip_grad_norm_(named.values(), settings["clip"])
            log["loss"].append(loss)
            log["grad_norm"].append(norm.item())
            log["lr"].append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        with torch.no_grad():
            last = steps[-1]
            log["loss_last_batch_after"] = batch_loss(
                model, [row for batch in last for row in batch],
                sum(sum(mask) for batch in last for _, mask in batch)).item()
        final = {n: p.detach() for n, p in named.items()}
        return log, final, max(difference(final[n], start[n]) for n in final)

    (log, final, moved), (log32, final32, _) = dtypes(run)
    write_tensors(path / "final_float64.safetensors", final)
    write_json(path / "batches.json", {"steps": [[[{"ids": ids, "mask": mask} for ids, mask in batch]
                                                  for batch in step] for step in steps]})
    worst = {k: max(abs(a - b) for a, b in zip(log[k], log32[k])) for k in ("loss", "grad_norm")}
    worst |= {"final_weights": max(difference(final[n], final32[n]) for n in final), "moved": moved}
    write_json(path / "ref.json", {"settings": settings | {"steps": len(steps)}, "float64": log,
                                   "float32_max_error": worst})


# ---- the set ------------------------------------------------------------------------------------

TIED = dict(vocab_size=61, hidden_size=16, intermediate_size=28, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, tie_word_embeddings=True,
            rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0,
                             "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 32})
UNTIED = dict(vocab_size=67, hidden_size=24, intermediate_size=40, num_attention_heads=3,
              num_key_value_heads=1, head_dim=8, tie_word_embeddings=False,
              rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
BF16 = dict(vocab_size=64, hidden_size=20, intermediate_size=36, num_attention_heads=2,
            num_key_value_heads=1, head_dim=10, tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0})

FUSED = UNTIED | dict(family="phi3", num_key_value_heads=3, sliding_window=9)


def main():
    here = pathlib.Path(__file__).resolve().parent
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here / "data"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    for made in ("forward", "lora-grad", "train"):
        shutil.rmtree(out / made, ignore_errors=True)

    def folder(name):
        path = out / name
        path.mkdir(parents=True)
        return path

    g = torch.Generator().manual_seed(7)
    for name, config, dtype, seed in (("tied-rope-llama3", TIED, torch.float32, 1),
                                      ("untied", UNTIED, torch.float32, 2),
                                      ("bf16-oldconfig", BF16, torch.bfloat16, 3)):
        path = folder(f"forward/{name}")
        make_model(path / "model", seed, dtype, **config)
        if name.endswith("oldconfig"):
            old_form(path / "model")
        # long enough that the slow rotary frequencies turn visibly
        forward(path, make_rows(g, config["vocab_size"], (4, 17, 45)))

    path = folder("lora-grad/llama")
    make_model(path / "model", 4, **UNTIED)
    rows = make_rows(g, UNTIED["vocab_size"], (5, 9, 14))
    write_batch(path, rows)
    cases = {
        "all-linear": dict(r=3, lora_alpha=7, target_modules=LINEARS),
        "qv-rslora": dict(r=4, lora_alpha=5, target_modules=["q_proj", "v_proj"], use_rslora=True),
        "patterns": dict(r=2, lora_alpha=4, target_modules=["q_proj", "o_proj", "up_proj", "down_proj"],
                         rank_pattern={"o_proj": 1, "layers.1.mlp.down_proj": 5},
                         alpha_pattern={"layers.0.self_attn.q_proj": 9, "up_proj": 1}),
        "regex": dict(r=2, lora_alpha=2, target_modules=r".*layers\.1\..*\.(k_proj|gate_proj)"),
    }
    for seed, (name, settings) in enumerate(cases.items()):
        case = folder(f"lora-grad/llama/{name}")
        make_adapter(path / "model", case / "adapter", 20 + seed, False, **settings)
        gradients(case, path / "model", rows)

    path = folder("train")
    make_model(path / "model", 5, **TIED)

    def steps(vocab):
        # micro-batches of unequal numbers of targets: a mean of means would show
        return [[make_rows(g, vocab, torch.randint(4, 12, (2,), generator=g).tolist()) for _ in range(2)]
                for _ in range(20)]

    common = dict(betas=[0.9, 0.999], eps=1e-8)
    case = folder("train/adapter")
    make_adapter(path / "model", case / "initial_adapter", 30, True, r=3, lora_alpha=6, target_modules=LINEARS)
    trajectory(case, path / "model", steps(61), common | dict(
        lr=5e-3, weight_decay=0.1, clip=0.5, schedule="cosine", warmup_steps=3, trainable="adapter"))
    case = folder("train/full")
    trajectory(case, path / "model", steps(61), common | dict(
        lr=2e-3, weight_decay=0.01, clip=1.0, schedule="linear", warmup_steps=2, trainable="all weights"))

    # a stream of its own, so that what stands above keeps its numbers
    g = torch.Generator().manual_seed(8)
    path = folder("forward/phi3-sliding")
    make_model(path / "model", 6, **FUSED)
    forward(path, make_rows(g, FUSED["vocab_size"], (4, 17, 45)))
    path = folder("lora-grad/phi3")
    make_model(path / "model", 7, **FUSED | dict(num_key_value_heads=1))
    rows = make_rows(g, FUSED["vocab_size"], (5, 9, 14))
    write_batch(path, rows)
    for seed, (name, settings) in enumerate({
            "all-linear": dict(r=3, lora_alpha=7, target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
            "qkv": dict(r=2, lora_alpha=4, target_modules=["qkv_proj"])}.items()):
        case = folder(f"lora-grad/phi3/{name}")
        make_adapter(path / "model", case / "adapter", 40 + seed, False, **settings)
        gradients(case, path / "model", rows)

    write_json(out / "versions.json", VERSIONS)
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    print(f"{size} bytes under {out.name}")


if __name__ == "__main__":
    main()
