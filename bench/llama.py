#!/usr/bin/env python3
"""Generation here and in llama.cpp, in turn, over the same GGUF file.

    bench/llama.py --model FILE.gguf --llama-bench PROGRAM [--lora ./lora] [--rounds 5] [--threads N] [--backend NAME] [--json FILE]

PROGRAM is llama.cpp's own llama-bench, built for this machine (cmake -DGGML_NATIVE=ON). Each round runs both: a prompt of
512 tokens, then 128 new ones after one token. The table has the medians of the rounds, and the ratios of each round.
"""
import json
import statistics

from common import backend, checked, model_option, options, parse, ratios, table


def theirs(args):
    out = checked([args.llama_bench, "-m", args.model, "-t", args.threads, "-p", args.prompt, "-n", args.new, "-r", 1, "-o", "json"])
    rates = {"prompt" if r["n_prompt"] else "new": r["avg_ts"] for r in json.loads(out)}
    return rates["prompt"], rates["new"]


def ours(args):
    out = checked([args.lora, "bench", "--generate", "--model", args.model, "--threads", args.threads, "--rounds", 1,
                   *backend(args), "--prompt-tokens", args.prompt, "--new-tokens", args.new, "--json", "-"])
    g = json.loads(out)["generation"][0]
    return g["prompt_tokens_per_s"], g["new_tokens_per_s"], g["batch_tokens_per_s"], g["share"]


def row(name, their_rates, our_rates):
    return [name, *(f"{statistics.median(side):.1f}" for side in (their_rates, our_rates)),
            ratios([b / a for a, b in zip(their_rates, our_rates)])]


def main():
    p = options("generation by llama.cpp and by this program", 5)
    model_option(p)
    p.add_argument("--llama-bench", required=True)
    p.add_argument("--prompt", type=int, default=512)
    p.add_argument("--new", type=int, default=128)
    p.add_argument("--json", help="every round's figures")
    args = parse(p)
    rounds = [(theirs(args), ours(args)) for _ in range(args.rounds)]
    a, b = (list(zip(*side)) for side in zip(*rounds))
    print("\n".join(table(["tokens/s", "llama.cpp", "lora", "ratio (of rounds)"],
                          [row(f"prompt of {args.prompt}", a[0], b[0]), row("new tokens", a[1], b[1])])))
    print(f"8 sequences together: {statistics.median(b[2]):.1f} new tokens/s here. Weights read for a token: "
          f"{100 * statistics.median(b[3]):.0f} % of the memory's measured bandwidth.")
    if args.json:
        json.dump([{"llama.cpp": a, "lora": b} for a, b in rounds], open(args.json, "w"), indent=1)


if __name__ == "__main__":
    main()
