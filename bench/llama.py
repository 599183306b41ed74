#!/usr/bin/env python3
"""Generation here and in llama.cpp, in turn, over the same GGUF file.

    bench/llama.py --model FILE.gguf --llama-bench PROGRAM [--lora ./lora] [--rounds 5] [--threads N] [--json FILE]

PROGRAM is llama.cpp's own llama-bench, built for this machine (cmake -DGGML_NATIVE=ON). Each round runs both: a prompt of
512 tokens, then 128 new ones after one token. The table has the medians of the rounds, and the ratios of each round.
"""
import argparse
import json
import os
import statistics
import subprocess
import tempfile


def run(words):
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def theirs():
    out = run([args.llama_bench, "-m", args.model, "-t", str(args.threads), "-p", str(args.prompt), "-n", str(args.new),
               "-r", "1", "-o", "json"])
    rates = {"prompt" if r["n_prompt"] else "new": r["avg_ts"] for r in json.loads(out)}
    return rates["prompt"], rates["new"]


def ours():
    with tempfile.NamedTemporaryFile() as f:
        run([args.lora, "bench", "--generate", "--model", args.model, "--threads", str(args.threads), "--rounds", "1",
             "--prompt-tokens", str(args.prompt), "--new-tokens", str(args.new), "--json", f.name])
        d = json.load(open(f.name))
    g = d["generation"][0]
    return g["prompt_tokens_per_s"], g["new_tokens_per_s"], g["batch_tokens_per_s"], g["share"]


def show(name, ours, theirs):
    ratios = [a / b for a, b in zip(ours, theirs)]
    print(f"| {name} | {statistics.median(theirs):.1f} | {statistics.median(ours):.1f} | {statistics.median(ratios):.2f} "
          f"({min(ratios):.2f} to {max(ratios):.2f}) |")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True)
parser.add_argument("--llama-bench", required=True)
parser.add_argument("--lora", default="./lora")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
parser.add_argument("--prompt", type=int, default=512)
parser.add_argument("--new", type=int, default=128)
parser.add_argument("--json", help="every round's figures")
args = parser.parse_args()
rounds = []
for _ in range(args.rounds):
    rounds.append({"llama.cpp": theirs(), "lora": ours()})
a, b = [r["lora"] for r in rounds], [r["llama.cpp"] for r in rounds]
print("| tokens/s | llama.cpp | lora | ratio (of rounds) |\n| --- | ---: | ---: | --- |")
show(f"prompt of {args.prompt}", [x[0] for x in a], [x[0] for x in b])
show("new tokens", [x[1] for x in a], [x[1] for x in b])
print(f"\n8 sequences together: {statistics.median(x[2] for x in a):.1f} new tokens/s here. Weights read for a token: "
      f"{100 * statistics.median(x[3] for x in a):.0f} % of the memory's measured bandwidth.")
if args.json:
    json.dump(rounds, open(args.json, "w"), indent=1)
