#!/usr/bin/env python3
"""Trains by Transformers and PEFT (peer.py) and by this program, in turn on the same rows, and writes a table.

    bench/peers.sh [--cases f32,nf4] [--rounds 3] [--steps 5] ...

peers.sh makes the Python environment and calls this; README.md says how to read the table. Each run is a
process of its own. Tokens a second come from its steps after the first, memory is the most that the
process had resident, and both sides must show the same losses, or nothing is worth comparing.
"""
import argparse
import json
import math
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys

import measure

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
RANK, ROW_TOKENS = 16, 512
NF4 = ["--load-in-4bit", "--quant-type", "nf4", "--double-quant"]
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
BANKING = pathlib.Path(os.environ.get("LORA_SHARED", ROOT.parent / "shared")) / "goldens" / "banking77"

# name: what it says in the table; the weights of both sides; more of our options; rows; checkpointing; the largest
# difference of a step's loss, as a share. Losses of one arithmetic differ by the order of sums, which clipping and
# Adam carry on: the run of 125 steps in the README differs by 1.6e-4. PyTorch in bf16 rounds every sum
# to 8 bits, ours are f32.
CASES = {
    "f32": ("f32", "f32", [], "text", "off", 1e-3),
    "f32-checkpointed": ("f32, checkpointed", "f32", [], "text", "on", 1e-3),
    "bf16": ("bf16 weights", "bf16", [], "text", "off", 2e-2),
    "bf16-checkpointed": ("bf16 weights, checkpointed", "bf16", [], "text", "on", 2e-2),
    "nf4": ("NF4, double quantisation", "nf4", NF4, "text", "off", 1e-3),
    "nf4-checkpointed": ("NF4, double quantisation, checkpointed", "nf4", NF4, "text", "on", 1e-3),
    "banking77": ("Banking77, batches of 16", "f32", [], "banking77", "off", 1e-3),
}
TRAINING = {
    "text": ["--batch-size", 1, "--learning-rate", 5e-4, "--lr-scheduler", "constant", "--warmup-steps", 0],
    "banking77": ["--batch-size", 16, "--learning-rate", 5e-4, "--lr-scheduler", "cosine", "--warmup-steps", 3],
}


class Skip(Exception):
    pass


def arguments():
    p = argparse.ArgumentParser(description="this program and its peers, on the same rows")
    p.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)} (all)")
    p.add_argument("--rounds", type=int, default=3, help="runs of each side, in turn; medians are of these (3)")
    p.add_argument("--steps", type=int, default=5, help="optimizer steps of a run; the first is not timed (5)")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
                   else os.cpu_count(), help="of both sides (the cores this process may use)")
    p.add_argument("--peer-avx2", action="store_true", help="PyTorch without AVX-512, as on a processor that has none")
    p.add_argument("--model", default=os.environ.get("LORA_MODEL", ROOT / "model" / "SmolLM2-135M-Instruct.Q4_1.gguf"),
                   type=pathlib.Path, help="SmolLM2's GGUF file (LORA_MODEL, or what `make model` fetched)")
    p.add_argument("--lora", default=ROOT / "lora", type=pathlib.Path, help="the program (./lora)")
    p.add_argument("--work", default=ROOT / "build" / "bench", type=pathlib.Path, help="folder of what is made (build/bench)")
    args = p.parse_args()
    args.cases = args.cases.split(",")
    for name in args.cases:
        if name not in CASES:
            p.error(f"{name}: expected one of {', '.join(CASES)}")
    if args.rounds < 1 or args.steps < 2:
        p.error("at least one round, and two steps, of which the first is not timed")
    if not args.model.exists():
        p.error(f"{args.model}: not here; `make model` fetches it, LORA_MODEL names it")
    return args


def checked(command, **options):
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    if run.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{run.stderr}")
    return run.stdout


# ---- what both sides start from: weights, adapter, rows ----

def model_directory(args, dtype):
    """The GGUF's weights as a Hugging Face directory."""
    out = args.work / f"model-{dtype}"
    if not (out / "config.json").exists():
        checked([args.lora, "merge", "--model", args.model, "--out", out, "--dtype", dtype])
    return out


def initial_adapter(args, rows):
    if rows == "banking77":
        return BANKING / "initial_adapter"
    out = args.work / "initial-adapter"
    if not (out / "adapter_config.json").exists():
        checked([sys.executable, HERE / "peer.py", "--model", model_directory(args, "f32"), "--adapter", out,
                 "--make-adapter", RANK, "--threads", args.threads])
    return out


def text_rows(args):
    """The project's own pages as rows of 512 ids, each of them a target: one row a step."""
    out = args.work / "text.jsonl"
    text = "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")) + sorted(ROOT.glob("*.h")))
    ids = [int(word) for word in checked([args.lora, "tokenize", "--model", args.model], input=text).split()]
    rows = [ids[i * ROW_TOKENS:(i + 1) * ROW_TOKENS] for i in range(min(args.steps, len(ids) // ROW_TOKENS))]
    if len(rows) < args.steps:
        raise Skip(f"the text has {len(rows)} rows of {ROW_TOKENS} tokens, --steps asks for {args.steps}")
    out.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    return out


def banking_rows(args):
    if not BANKING.exists():
        raise Skip("no goldens/banking77 in ../shared or LORA_SHARED")
    lines = (BANKING / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:16 * args.steps]
    if len(lines) < 16 * args.steps:
        raise Skip(f"{len(lines)} rows, --steps asks for {16 * args.steps}")
    out = args.work / "banking77.jsonl"
    out.write_text("".join(lines), encoding="utf-8")
    return out


# ---- one run of either side: tokens/s, peak, losses ----

def figures(steps, seconds, peak):
    timed = steps[1:]
    return {"tokens_per_second": sum(s["tokens"] for s in timed) / sum(s["seconds"] for s in timed),
            "peak": peak, "seconds": seconds, "steps": [{key: s[key] for key in ("loss", "tokens", "seconds")} for s in steps]}


def run(command, log, output=os.devnull, **environment):
    with open(log, "w") as err, open(output, "w") as out:
        code, seconds, peak = measure.run(command, stdout=out, stderr=err, env={**os.environ, **environment})
    if code:
        sys.exit(f"{' '.join(map(str, command))}: exit status {code}\n{pathlib.Path(log).read_text()[-2000:]}")
    return seconds, peak


def run_peer(command, work, environment):
    output = work / "peer.json"
    seconds, peak = run(command, work / "peer.log", output, **environment)
    result = json.loads(output.read_text())
    return {**figures(result["steps"], seconds, peak), "versions": result["versions"], "vectors": result["vectors"]}


def run_ours(command, work):
    shutil.rmtree(work / "run", ignore_errors=True)
    seconds, peak = run(command, work / "lora.log")
    return figures([json.loads(line) for line in open(work / "run" / "metrics.jsonl")], seconds, peak)


# ---- a case: rounds of both, the check, the row of the table ----

def commands(args, name):
    _, weights, quantisation, rows, checkpointing, _ = CASES[name]
    data = banking_rows(args) if rows == "banking77" else text_rows(args)
    same = ["--data", data, *TRAINING[rows], "--max-steps", args.steps, "--gradient-checkpointing", checkpointing,
            "--threads", args.threads]
    start = initial_adapter(args, rows)
    theirs = model_directory(args, "bf16" if weights == "bf16" else "f32")
    ours = theirs if weights == "bf16" else args.model      # a GGUF file is used where it lies
    return ([sys.executable, HERE / "peer.py", "--model", theirs, "--adapter", start, "--weights", weights, *same],
            [args.lora, "train", "--model", ours, "--init-adapter", start, "--out", args.work / "run", "--no-shuffle",
             "--eval-steps", "no", "--save-steps", "no", *quantisation, *same])


def run_case(args, name):
    peer_command, our_command = commands(args, name)
    environment = AVX2 if args.peer_avx2 else {}
    rounds = []
    for r in range(args.rounds):
        rounds.append((run_peer(peer_command, args.work, environment), run_ours(our_command, args.work)))
        theirs, ours = rounds[-1]
        print(f"{name}: round {r + 1}/{args.rounds}: {theirs['tokens_per_second']:.1f} and "
              f"{ours['tokens_per_second']:.1f} tokens/s, {theirs['peak'] / 1e6:.0f} and {ours['peak'] / 1e6:.0f} MB, "
              f"last loss {theirs['steps'][-1]['loss']:.4f} and {ours['steps'][-1]['loss']:.4f}", file=sys.stderr)
    return {"rounds": rounds, "commands": [" ".join(map(str, c)) for c in (peer_command, our_command)]}


def worst_difference(rounds):
    """Of all steps' losses, as a share; a NaN if there is one, or if the rows were not of the same tokens."""
    steps = [pair for theirs, ours in rounds for pair in zip(theirs["steps"], ours["steps"], strict=True)]
    shares = [abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in steps]
    same = all(a["tokens"] == b["tokens"] for a, b in steps)
    return max(shares) if same and all(map(math.isfinite, shares)) else math.nan


def table_row(name, case):
    """The row, and whether the losses agree."""
    title, bound, rounds = CASES[name][0], CASES[name][-1], case["rounds"]
    theirs, ours = zip(*rounds)
    faster = [b["tokens_per_second"] / a["tokens_per_second"] for a, b in rounds]
    smaller = [b["peak"] / a["peak"] for a, b in rounds]
    worst = worst_difference(rounds)
    agree = worst <= bound      # NaN does not

    def median(side, key):
        return statistics.median(r[key] for r in side)

    cells = [title, *(f"{median(side, 'tokens_per_second'):.1f}" for side in (theirs, ours)),
             f"{statistics.median(faster):.2f} ({min(faster):.2f} to {max(faster):.2f})",
             *(f"{median(side, 'peak') / 1e6:.0f} MB" for side in (theirs, ours)), f"{statistics.median(smaller):.3f}",
             *(f"{side[0]['steps'][-1]['loss']:.4f}" for side in (theirs, ours)),
             f"{worst:.1e}" + ("" if agree else f" **more than {bound:g}**")]
    return "| " + " | ".join(cells) + " |", agree


# ---- what it ran on ----

def processor():
    try:
        names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def machine(args, results):
    theirs = [case["rounds"][0][0] for case in results.values()]
    versions = {name: v for run in theirs for name, v in run["versions"].items()}
    waits = os.environ.get("OMP_WAIT_POLICY")
    backend = next((line.split()[0] for line in checked([args.lora, "backends"]).splitlines() if "auto takes this" in line), "?")
    return (f"{processor()}, {args.threads} threads" + (f", OMP_WAIT_POLICY={waits}" if waits else "") +
            f". PyTorch's vectors: {theirs[0]['vectors']}; ours: {backend}. " +
            ", ".join(f"{n} {v}" for n, v in versions.items()) + f"; {checked([args.lora, '--version']).strip()}. "
            f"Medians of {args.rounds} rounds of {args.steps} steps, the first of them not timed.")


def report(args, results, skipped):
    """Writes results.md and results.json; the text, and whether all losses agree."""
    head = ["rows", "PEFT tokens/s", "lora tokens/s", "ratio (of rounds)", "PEFT peak", "lora peak", "ratio",
            "PEFT last loss", "lora last loss", "largest difference"]
    rows = [table_row(name, case) for name, case in results.items()]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1), *(row for row, _ in rows), ""]
    lines += [f"skipped {name}: {why}" for name, why in skipped.items()]
    if results:
        lines += [machine(args, results), "", "Commands:", ""]
    if args.peer_avx2:
        lines += ["    " + " ".join(f"export {name}={value}" for name, value in AVX2.items()) + "    (before PEFT's)"]
    for case in results.values():
        lines += ["    " + c.replace(f"{args.work}/", "").replace(f"{ROOT}/", "").replace(sys.executable, "python")
                  .replace(str(args.model), args.model.name).replace(f"{BANKING}/", "") for c in case["commands"]]
    text = "\n".join(lines) + "\n"
    (args.work / "results.md").write_text(text)
    (args.work / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    return text, all(agree for _, agree in rows)


def main():
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    results, skipped = {}, {}
    for name in args.cases:
        try:
            results[name] = run_case(args, name)
        except Skip as why:
            skipped[name] = str(why)
            print(f"skip {name}: {why}", file=sys.stderr)
        text, agree = report(args, results, skipped)    # after each case: the next may fail
    print(text)
    if not results:
        sys.exit("nothing was compared")
    if not agree:
        sys.exit("the losses differ by more than they may: the two sides did not do the same work")


if __name__ == "__main__":
    main()
