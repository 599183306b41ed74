#!/usr/bin/env python3
"""qvac-fabric's LoRA training (a fork of llama.cpp) and this program's, in turn over the same files and rows.

    FABRIC=DIR bench/fabric.py [--formats F32,Q8_0] [--rounds 3] [--steps 3] ...

DIR holds its llama-finetune-lora and llama-quantize. Its own settings: those of its examples/training/README.md and its
defaults (rank 8 on q, k, v and o, windows of 512 tokens of a text that begin 256 apart, each a step, every token a target,
AdamW at 1e-5 with decay 0.01). --all-linear: rank 16 on all linear layers. README.md says how to read the table.
"""
import os
import pathlib
import re
import statistics
import sys
import threading
import time

import measure
from common import (backend, checked, figures, machine, medians_of, memory_cells, model_option, options, ours, parse, rate_cells, run_training, shown,
                    table, text_ids, write, write_id_rows)

WINDOW, STRIDE = 512, 256
SETTINGS = {    # all-linear or not: its options, ours
    False: (["--lora-rank", 8, "--lora-alpha", 16],
            ["--lora-r", 8, "--lora-alpha", 16, "--target-modules", "q_proj,k_proj,v_proj,o_proj"]),
    True: (["--lora-rank", 16, "--lora-alpha", 32, "--lora-modules", "attn_q,attn_k,attn_v,attn_o,ffn_gate,ffn_up,ffn_down"],
           ["--lora-r", 16, "--lora-alpha", 32]),
}
LOSS_BOUND = 1e-2       # of the mean over the steps: adapters start from other random numbers, its keys and values are f16
BAR = re.compile(r"train:.* loss=([0-9.]+)")


def arguments():
    p = options("qvac-fabric and this program, on the same rows", 3)
    p.add_argument("--formats", default="F32,Q8_0", help="of the base, as llama-quantize names them (F32,Q8_0)")
    p.add_argument("--steps", type=int, default=3, help="optimizer steps of a run; the first is not timed (3)")
    p.add_argument("--all-linear", action="store_true", help="rank 16 on all linear layers")
    p.add_argument("--fabric", default=os.environ.get("FABRIC"), type=pathlib.Path, help="folder of its programs (FABRIC)")
    model_option(p)
    args = parse(p)
    if not args.fabric or not (args.fabric / "llama-finetune-lora").exists():
        p.error("FABRIC or --fabric: no folder with llama-finetune-lora (README.md says how it is built)")
    if args.steps < 2:
        p.error("at least two steps, of which the first is not timed")
    return args


def base(args, kind):
    out = args.work / f"model-{kind}.gguf"
    if not out.exists():
        checked([args.fabric / "llama-quantize", "--allow-requantize", args.model, out, kind])
    return out


def text_and_rows(args):
    """A text whose windows give so many steps there, and the same windows for us. It leaves out the first window, and
    keeps a twentieth for validation, at least one. A row of ours has one id more: the target of its last."""
    count = args.steps + 2
    while int(count * 0.95) < args.steps + 1:
        count += 1
    ids = text_ids(args)[:count * STRIDE + WINDOW + 1 + STRIDE // 2]
    text, rows = args.work / "fabric.txt", args.work / "fabric.jsonl"
    text.write_text(checked([args.lora, "tokenize", "--model", args.model, "--ids", " ".join(map(str, ids))]))
    again = [int(word) for word in checked([args.lora, "tokenize", "--model", args.model], input=text.read_text()).split()]
    if (len(again) - WINDOW - 1) // STRIDE != count:
        sys.exit(f"the text has {len(again)} tokens again, not {len(ids)}")
    write_id_rows(rows, [again[i * STRIDE:i * STRIDE + WINDOW + 1] for i in range(1, args.steps + 1)])
    return text, rows


class Bars(threading.Thread):
    """Reads its progress bars as they come: when each step ended, and the mean loss up to it."""

    def __init__(self):
        super().__init__()
        self.end, self.child_end = os.pipe()
        self.steps, self.text = [], ""

    def run(self):
        rest = ""
        while part := os.read(self.end, 65536).decode("utf-8", "replace"):
            now = time.perf_counter()
            *whole, rest = re.split(r"[\r\n]", rest + part)
            self.text += part
            self.steps += [(now, float(bar[1])) for bar in map(BAR.search, whole) if bar]
        os.close(self.end)


def run_fabric(command, log):
    bars = Bars()
    bars.start()
    code, seconds, peak = measure.run(command, stdout=bars.child_end, stderr=bars.child_end)
    os.close(bars.child_end)
    bars.join()
    log.write_text(bars.text)
    if code or len(bars.steps) < 2:
        sys.exit(f"{' '.join(map(str, command))}: exit status {code}, {len(bars.steps)} steps\n{bars.text[-2000:]}")
    ends = [when for when, _ in bars.steps]
    means = [loss for _, loss in bars.steps]
    took = [0.0] + [b - a for a, b in zip(ends, ends[1:])]         # when the first began is not said
    losses = [mean * (i + 1) - (means[i - 1] * i if i else 0) for i, mean in enumerate(means)]
    return figures([{"loss": loss, "tokens": WINDOW, "seconds": s} for loss, s in zip(losses, took)], seconds, peak)


def commands(args, kind, text, rows):
    model, (theirs, our) = base(args, kind), SETTINGS[args.all_linear]
    return ([args.fabric / "llama-finetune-lora", "-m", model, "-f", text, "-c", WINDOW, "-b", WINDOW, "-ub", WINDOW, "-fa", "off",
             "-t", args.threads, *theirs, "--checkpoint-save-steps", 0, "--output-adapter", args.work / "fabric-adapter.gguf"],
            [args.lora, "train", "--model", model, "--data", rows, "--out", args.work / "run", "--batch-size", 1, "--max-steps", args.steps,
             "--no-shuffle", "--learning-rate", 1e-5, "--lr-scheduler", "constant", "--warmup-steps", 0, "--weight-decay", 0.01,
             "--max-grad-norm", 0, *our, "--gradient-checkpointing", "off", "--eval-steps", "no", "--save-steps", "no",
             "--threads", args.threads, *backend(args)])


def run_format(args, kind, text, rows):
    theirs, our = commands(args, kind, text, rows)
    rounds = []
    for r in range(args.rounds):
        rounds.append((run_fabric(theirs, args.work / "fabric.log"),
                       run_training(our, args.work / "run", args.work / "lora.log", "computed_tokens")))
        print(f"{kind}: round {r + 1}/{args.rounds}: " + " and ".join(f"{side['tokens_per_second']:.1f}" for side in rounds[-1])
              + " tokens/s", file=sys.stderr)
    return {"rounds": rounds, "commands": [shown(args, c) for c in (theirs, our)]}


def mean_loss(run):
    return statistics.mean(step["loss"] for step in run["steps"])


def row(kind, rounds):
    theirs, our = zip(*rounds)
    same = all(len(a["steps"]) == len(b["steps"]) and abs(mean_loss(a) - mean_loss(b)) <= LOSS_BOUND * mean_loss(a) for a, b in rounds)
    return [kind, *rate_cells(rounds), *memory_cells(rounds),
            " and ".join(f"{mean_loss(side[0]):.4f}" for side in (theirs, our)) + ("" if same else " **too far apart**")], same


def main():
    args = arguments()
    text, rows = text_and_rows(args)
    results, same = {}, True
    for kind in args.formats.split(","):
        results[kind] = run_format(args, kind, text, rows)
    made = [row(kind, result["rounds"]) for kind, result in results.items()]
    head = ["base", "qvac-fabric tokens/s", "lora tokens/s", "ratio (of rounds)", "peak memory", "ratio", "mean loss"]
    lines = table(head, [cells for cells, _ in made])
    lines += [f"{machine(args)}. {ours(args)}. {medians_of(args.rounds)} of {args.steps} steps, the first of them not timed.", "",
              "Commands:", ""]
    lines += [command for result in results.values() for command in result["commands"]]
    text = "\n".join(lines) + "\n"
    write(args, "fabric", text, results)
    print(text)
    if not all(same for _, same in made):
        sys.exit("the losses differ by more than they may: the two sides did not do the same work")


if __name__ == "__main__":
    main()
