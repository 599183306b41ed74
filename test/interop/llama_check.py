#!/usr/bin/env python3
"""What `lora export` writes, in llama.cpp itself: the same losses and the same greedy ids as here.

    python test/interop/llama_check.py [--lora ./lora] [--keep DIR]
    python test/interop/llama_check.py --model FILE.gguf --adapter DIR [--prompt TEXT]...

The first form makes tiny random bases (`lora init`), writes them as GGUF by llama.cpp's rules, trains adapters
of each kind on them, and compares every token's loss. The second compares greedy answers and their losses over
a real base; llama.cpp rounds the inputs of quantised weights there, so its losses are only near. Needs
test/interop/llama.txt. Ends with a count.
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile

import gguf
import numpy as np
import xllamacpp

LOSS_BOUND = 1e-4       # both in f32; the same sums in another order
QUANTISED_BOUND = 0.1   # inputs in steps of 1/127 of a block's largest; of the mean loss, not of a token's

results = {True: 0, False: 0}


def check(name, error, bound):
    good = bool(error <= bound)     # NaN is not
    results[good] += 1
    print(f"{'ok  ' if good else 'FAIL'} {name}: {error:.2e} (bound {bound:.0e})")


def lora(*words):
    run = subprocess.run([str(w) for w in (args.lora, *words)], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"FAIL lora {words[0]} ended with {run.returncode}:\n{run.stderr}")
    return run.stdout


# ---- llama.cpp ----

class Llama:
    """A base in llama.cpp's server, in this process, with an adapter or without; keys and values in f32."""

    def __init__(self, path, adapter=None):
        p = xllamacpp.CommonParams()
        p.model.path = str(path)
        p.n_ctx, p.n_parallel, p.warmup, p.verbosity = 512, 1, False, -1
        p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
        p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if adapter:
            p.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
        self.server = xllamacpp.Server(p)

    def complete(self, ids, n, probabilities, ignore_eos):
        """Of each of n greedy tokens: its id and the log-probabilities of the likeliest, by id."""
        answer = self.server.handle_completions({"prompt": ids, "n_predict": n, "n_probs": probabilities,
                                                 "temperature": 0, "ignore_eos": ignore_eos, "cache_prompt": False})
        return [(t["id"], {v["id"]: v["logprob"] for v in t["top_logprobs"]})
                for t in answer["choices"][0]["logprobs"]["content"]]

    def losses(self, ids):
        """Of every token but the first; the vocabulary is small."""
        return np.array([-self.complete(ids[:i], 1, SHAPE["vocab_size"], True)[0][1][ids[i]] for i in range(1, len(ids))])


# ---- bases ----

def read_safetensors(path):
    """F32 only."""
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    for name, t in json.loads(data[8:8 + n]).items():
        if name != "__metadata__":
            start, end = (8 + n + o for o in t["data_offsets"])
            yield name, np.frombuffer(data[start:end], dtype=np.float32).reshape(t["shape"])


def permute(w, heads):
    """llama.cpp's conversion/llama.py: halves of a head become pairs."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(w.shape)


def gguf_architecture(config):
    return {"mistral": "llama"}.get(config["model_type"], config["model_type"])


def write_base(directory, out):
    """A model directory as llama.cpp's converter would write it, with tokens that no text is made of."""
    c = json.loads((directory / "config.json").read_text())
    arch = gguf_architecture(c)
    heads, kv, layers = c["num_attention_heads"], c["num_key_value_heads"], c["num_hidden_layers"]
    w = gguf.GGUFWriter(out, arch)
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_block_count(layers)
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_key_length(c["head_dim"])
    w.add_value_length(c["head_dim"])
    w.add_rope_dimension_count(c["head_dim"])
    w.add_rope_freq_base(c["rope_theta"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_vocab_size(c["vocab_size"])
    w.add_tokenizer_model("llama")
    w.add_token_list(["<unk>", "<0x0A>", *(f"t{i}" for i in range(2, c["vocab_size"]))])
    w.add_token_scores([0.0] * c["vocab_size"])
    w.add_token_types([2, 6] + [1] * (c["vocab_size"] - 2))
    w.add_eos_token_id(0)
    names = gguf.get_tensor_name_map({v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[arch], layers)
    for name, tensor in read_safetensors(directory / "model.safetensors"):
        if arch == "llama" and name.endswith(("q_proj.weight", "q_proj.bias")):
            tensor = permute(tensor, heads)
        if arch == "llama" and name.endswith(("k_proj.weight", "k_proj.bias")):
            tensor = permute(tensor, kv)
        w.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(tensor))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


SHAPE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, vocab_size=71, max_position_embeddings=128,
             rms_norm_eps=1e-5, rope_theta=1e4, hidden_act="silu", initializer_range=0.3, bos_token_id=None, eos_token_id=None)
BASES = {
    "llama": dict(model_type="llama", num_attention_heads=4, num_key_value_heads=2, head_dim=8, tie_word_embeddings=False),
    "mistral": dict(model_type="mistral", num_attention_heads=4, num_key_value_heads=1, head_dim=8,
                    sliding_window=None, tie_word_embeddings=True),
    "qwen2": dict(model_type="qwen2", num_attention_heads=2, num_key_value_heads=1, head_dim=16, tie_word_embeddings=True),
    "qwen3": dict(model_type="qwen3", num_attention_heads=4, num_key_value_heads=2, head_dim=16, tie_word_embeddings=False),
    "phi3": dict(model_type="phi3", num_attention_heads=4, num_key_value_heads=4, head_dim=8, tie_word_embeddings=False,
                 pad_token_id=0, original_max_position_embeddings=128),
}
ADAPTERS = {
    "plain": (),
    "rslora": ("--use-rslora", "--lora-r", 5, "--target-modules", "all-linear"),
    "patterns": ("--lora-r", 3, "--lora-alpha", 7, "--rank-pattern", "o_proj=2,layers.1.mlp.down_proj=6",
                 "--alpha-pattern", "layers.0.self_attn.o_proj=1,down_proj=20", "--layers", "0-1"),
}


def our_losses(model, data, adapter):
    out = work / "losses"
    lora("eval", "--model", model, "--data", data, "--token-losses", out, *(["--adapter", adapter] if adapter else []))
    return [np.array(json.loads(line)["losses"]) for line in open(out)]


def worst(a, b):
    assert len(a) == len(b) and all(x.shape == y.shape for x, y in zip(a, b)), "not the same shapes"
    return max(np.abs(x - y).max() for x, y in zip(a, b))


def check_base(name, config):
    directory, base, data = work / name, work / f"{name}.gguf", work / "rows.jsonl"
    (work / f"{name}.json").write_text(json.dumps({**SHAPE, **config}))
    lora("init", "--config", work / f"{name}.json", "--out", directory, "--seed", 3)
    write_base(directory, base)
    draw = random.Random(5)
    rows = [[draw.randrange(SHAPE["vocab_size"]) for _ in range(n)] for n in (9, 40, 23, 64)]
    data.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in rows))
    llama = Llama(base)
    plain = [llama.losses(ids) for ids in rows]
    for path in (directory, base):
        check(f"{name}, no adapter, {path.suffix or 'directory'}: losses", worst(our_losses(path, data, None), plain), LOSS_BOUND)
    for kind, options in ADAPTERS.items():
        adapter, out = work / f"{name}-{kind}", work / f"{name}-{kind}.gguf"
        lora("train", "--model", directory, "--data", data, "--out", adapter, "--max-steps", 6, "--batch-size", 4,
             "--learning-rate", 3e-2, "--warmup-steps", 0, *options)
        lora("export", "--model", directory, "--adapter", adapter, "--out", out)
        read = gguf.GGUFReader(out)
        texts = [read.get_field(key).contents() for key in ("general.type", "adapter.type", "general.architecture")]
        names = {t.name for t in read.tensors}
        check(f"{name}, {kind}: as the package gguf reads it", texts != ["adapter", "lora", gguf_architecture(config)]
              or not names or names != {f"{n[:-1]}{c}" for n in names for c in "ab" if n[:-1].endswith(".weight.lora_")}, 0)
        llama = Llama(base, out)
        theirs = [llama.losses(ids) for ids in rows]
        moved = worst(theirs, plain)
        check(f"{name}, {kind}: the adapter moves the losses (1 / change)", 1 / moved if moved else float("inf"), 10)
        check(f"{name}, {kind}: losses", worst(our_losses(directory, data, adapter), theirs), LOSS_BOUND)
        lora("export", "--model", base, "--adapter", adapter, "--out", work / "again.gguf")
        check(f"{name}, {kind}: the same bytes over the GGUF base", out.read_bytes() != (work / "again.gguf").read_bytes(), 0)


def check_real(model, adapter, prompts):
    lora("export", "--model", model, "--adapter", adapter, "--out", work / "adapter.gguf")
    llama = Llama(model, work / "adapter.gguf")
    rows, theirs, same = [], [], 0
    for prompt in prompts:
        ids = [int(i) for i in lora("tokenize", "--model", model, "--text", prompt).split()]
        ours = [int(i) for i in lora("generate", "--model", model, "--adapter", adapter, "--raw", "--ids",
                                     "--max-new-tokens", args.tokens, "--prompt", prompt).split()]
        answer = llama.complete(ids, args.tokens, 1, False)
        chosen = [token for token, _ in answer]
        while ours and chosen and len(ours) > len(chosen):      # llama.cpp leaves out what ends the answer
            ours.pop()
        same += ours == chosen
        rows.append(({"input_ids": ids + chosen, "labels": [-100] * len(ids) + chosen}))
        theirs.append(np.array([-p[token] for token, p in answer]))
        print(f"    {prompt!r}\n      {lora('tokenize', '--model', model, '--ids', ' '.join(map(str, ours)))!r}"
              f"\n      {'the same' if ours == chosen else lora('tokenize', '--model', model, '--ids', ' '.join(map(str, chosen)))!r}")
    data = work / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ours, plain = our_losses(model, data, adapter), our_losses(model, data, None)
    mean = [np.concatenate(x).mean() for x in (ours, theirs, plain)]
    print(f"    mean loss here {mean[0]:.4f}, in llama.cpp {mean[1]:.4f}, here without the adapter {mean[2]:.4f}; "
          f"largest difference of a token's {worst(ours, theirs):.1e}; {same} of {len(rows)} answers the same")
    check("mean loss of llama.cpp's answers", abs(mean[0] - mean[1]), QUANTISED_BOUND)


parser = argparse.ArgumentParser()
parser.add_argument("--lora", default="./lora")
parser.add_argument("--keep", help="a directory for the files, which then stay")
parser.add_argument("--model", help="a GGUF file, in place of the tiny bases")
parser.add_argument("--adapter")
parser.add_argument("--prompt", action="append")
parser.add_argument("--tokens", type=int, default=24, help="most tokens of an answer")
args = parser.parse_args()
args.lora = pathlib.Path(args.lora).resolve()
with tempfile.TemporaryDirectory() as scratch:
    work = pathlib.Path(args.keep or scratch)
    work.mkdir(exist_ok=True)
    if args.model:
        check_real(args.model, args.adapter, args.prompt or ["The capital of France is", "def add(a, b):"])
    else:
        for name, config in BASES.items():
            check_base(name, config)
print(f"{results[True]} passed, {results[False]} failed, 0 skipped")
sys.exit(bool(results[False]))
