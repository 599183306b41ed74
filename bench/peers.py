#!/usr/bin/env python3
"""Trains by Transformers and PEFT (peer.py) and by this program, in turn on the same rows, and writes a table.

    bench/peers.sh [--cases f32,nf4] [--rounds 3] [--steps 5] ...

peers.sh makes the Python environment and calls this; README.md says how to read the table. Each run is a
process of its own. Tokens a second come from its steps after the first, memory is the most that the
process had resident, and both sides must show the same losses, or nothing is worth comparing.
"""
import json
import math
import shutil
import subprocess
import sys
import typing

from common import (HERE, SHARED, backend, checked, figures, machine, medians_of, memory_cells, model_option, options, ours, pair_of, parse,
                    rate_cells, ratios, run, run_training, shown, table, text_ids, write, write_id_rows)

RANK = 16
NF4 = ("--load-in-4bit", "--quant-type", "nf4", "--double-quant")
BF16 = ("--compute", "bf16")
LITTLE = ("--max-memory", "430M")       # and the mapped file: 0.06 of what padded batches take there
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
BANKING = SHARED / "goldens" / "banking77"


class Case(typing.NamedTuple):
    title: str
    weights: str = "f32"            # theirs; ours are the GGUF file's, or for bf16 the same file as theirs
    ours: tuple = ()                # more of our options
    rows: str = "text"              # every token a target; or "banking77"
    checkpointing: str = "off"
    environment: dict = {}          # of theirs
    bound: float = 1e-3             # the largest difference of a step's loss, as a share
    most_steps: int = 1 << 30
    answers: str = ""               # no training: what the adapter that PEFT trained answers, "generate" or "classify"


# Losses of one arithmetic differ by the order of sums, which clipping and Adam carry on: the run of 125 steps in
# the README differs by 1.6e-4. PyTorch in bf16 rounds every sum to 8 bits, ours are f32.
CASES = {
    "f32": Case("f32"),
    "f32-checkpointed": Case("f32, checkpointed", checkpointing="on"),
    "bf16": Case("bf16 weights", "bf16", bound=2e-2),
    "bf16-checkpointed": Case("bf16 weights, checkpointed", "bf16", checkpointing="on", bound=2e-2),
    "bf16-compute": Case("bf16 weights and arithmetic", "bf16", BF16, bound=2e-2),
    "bf16-avx2": Case("bf16 weights, both with AVX2 alone", "bf16", ("--backend", "avx2"), environment=AVX2, bound=2e-2, most_steps=2),
    "nf4": Case("NF4, double quantisation", "nf4", NF4),
    "nf4-checkpointed": Case("NF4, double quantisation, checkpointed", "nf4", NF4, checkpointing="on"),
    "banking77": Case("Banking77, batches of 16", ours=LITTLE, rows="banking77"),
    "banking77-answers": Case("Banking77, PEFT's adapter", rows="banking77", answers="generate"),
    "banking77-labels": Case("Banking77, PEFT's adapter, the likeliest of 77 labels", rows="banking77", answers="classify"),
    "banking77-bf16": Case("Banking77, ours with products in bf16", ours=(*BF16, *LITTLE), rows="banking77", bound=2e-2),
    "banking77-bf16-answers": Case("Banking77, PEFT's adapter, ours with products in bf16", ours=BF16, rows="banking77", answers="generate"),
}
TRAINING = {
    "text": ["--batch-size", 1, "--learning-rate", 5e-4, "--lr-scheduler", "constant", "--warmup-steps", 0],
    "banking77": ["--batch-size", 16, "--learning-rate", 5e-4, "--lr-scheduler", "cosine", "--warmup-steps", 3],
}
ANSWERS = ["--batch-size", 64, "--max-new-tokens", 16]
LABELLED = 8                # labels of one row take about as long as that many answers, and many times that in PEFT
ANSWERS_BOUND = 0.02        # of the shares that are right: a tie that rounding decides turns one answer


class Skip(Exception):
    pass


def arguments():
    p = options("this program and its peers, on the same rows", 3)
    p.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)} (all)")
    p.add_argument("--steps", type=int, default=5, help="optimizer steps of a run; the first is not timed (5)")
    p.add_argument("--row-tokens", type=int, default=512, help="of a row of text (512)")
    p.add_argument("--answers", type=int, metavar="N", default=0,
                   help="after Banking77's training, greedy answers of both to N rows apart (0; the cases of answers alone: 64, labels to an eighth)")
    p.add_argument("--peer-avx2", action="store_true", help="PyTorch without AVX-512, as on a processor that has none")
    model_option(p)
    args = parse(p)
    args.cases = args.cases.split(",")
    for name in args.cases:
        if name not in CASES:
            p.error(f"{name}: expected one of {', '.join(CASES)}")
    if args.steps < 2:
        p.error("at least two steps, of which the first is not timed")
    return args


# ---- what both sides start from: weights, adapter, rows ----

def model_directory(args, weights):
    """The GGUF's weights as a Hugging Face directory; bitsandbytes quantises those of f32."""
    dtype = "bf16" if weights == "bf16" else "f32"
    out = args.work / f"model-{dtype}"
    if not (out / "config.json").exists():
        checked([args.lora, "merge", "--model", args.model, "--out", out, "--dtype", dtype])
    return out


def initial_adapter(args, rows):
    if rows == "banking77":
        return BANKING / "initial_adapter"
    out = args.work / "initial-adapter"
    if not (out / "adapter_config.json").exists():
        checked([sys.executable, HERE / "peer.py", "--job", "adapter", "--model", model_directory(args, "f32"), "--adapter", out,
                 "--lora-r", RANK, "--threads", args.threads])
    return out


def text_rows(args, steps):
    """One row of ids a step, each of them a target."""
    out, ids, n = args.work / "text.jsonl", text_ids(args), args.row_tokens
    if len(ids) < steps * n:
        raise Skip(f"the text has {len(ids)} tokens, {steps} rows of {n} are asked for")
    write_id_rows(out, [ids[i * n:(i + 1) * n] for i in range(steps)])
    return out


def banking_rows(args, name, count):
    if not BANKING.exists():
        raise Skip("no goldens/banking77 in ../shared or LORA_SHARED")
    lines = (BANKING / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    if len(lines) < count:
        raise Skip(f"{name}.jsonl has {len(lines)} rows, {count} are asked for")
    out = args.work / f"banking77-{name}.jsonl"
    out.write_text("".join(lines[:count]), encoding="utf-8")
    return out


def label_names(args):
    """A file of the labels that the rows for training have."""
    out = args.work / "labels.txt"
    rows = map(json.loads, open(BANKING / "train.jsonl", encoding="utf-8"))
    out.write_text("".join(f"{name}\n" for name in sorted({row["messages"][-1]["content"] for row in rows})))
    return out


# ---- one run of either side ----

def run_peer(command, args, environment):
    output = args.work / "peer.json"
    seconds, peak = run(command, args.work / "peer.log", output, **environment)
    result = json.loads(output.read_text())
    steps = result.pop("steps", None)
    return {**result, **(figures(steps, seconds, peak) if steps else {"seconds": seconds, "peak": peak})}


def run_answers(command, args):
    output = args.work / "answers.json"
    seconds, peak = run([*command, "--json", output], args.work / "answers.log")
    result = json.loads(output.read_text())
    right = result.get("exact_match", result.get("accuracy"))
    return {"seconds": seconds, "peak": peak, "answer_seconds": result["seconds"], "accuracy": right}


def training_commands(args, case):
    steps = min(args.steps, case.most_steps)
    data = text_rows(args, steps) if case.rows == "text" else banking_rows(args, "train", 16 * steps)
    same = ["--data", data, *TRAINING[case.rows], "--max-steps", steps, "--threads", args.threads]
    checkpointing = ["--gradient-checkpointing", "on"] if case.checkpointing == "on" else []    # ours off: by default, where memory allows it
    start, model = initial_adapter(args, case.rows), model_directory(args, case.weights)
    return ([sys.executable, HERE / "peer.py", "--job", "train", "--model", model, "--adapter", start, "--weights", case.weights,
             "--out", args.work / "peer-run", "--gradient-checkpointing", case.checkpointing, *same],
            [args.lora, "train", "--model", our_model(args, case), "--init-adapter", start, "--out", args.work / "run",
             "--no-shuffle", "--eval-steps", "no", "--save-steps", "no", *checkpointing,
             *backend(args), *case.ours, *same])


def needs(args, what):
    """Skips a case that this build or processor cannot compute."""
    plan = subprocess.run([str(word) for word in (args.lora, "plan", *what)], capture_output=True, text=True)
    if plan.returncode:
        raise Skip(plan.stderr.strip().splitlines()[0])


def our_model(args, case):
    """A GGUF file is used where it lies."""
    return model_directory(args, "bf16") if case.weights == "bf16" else args.model


def answer_commands(args, case, theirs, our_own):
    """Greedy answers to the first rows apart, or their likeliest labels, by each side with its adapter."""
    job, count, same = "answer", args.answers or 64, list(ANSWERS)
    if case.answers == "classify":
        job, count, same = "classify", max(count // LABELLED, 1), ["--labels", label_names(args)]
    data = banking_rows(args, "apart", count)
    same += ["--data", data, "--threads", args.threads]
    return ([sys.executable, HERE / "peer.py", "--job", job, "--model", model_directory(args, case.weights), "--adapter", theirs,
             "--weights", case.weights, "--rows", count, *same],
            [args.lora, "eval", "--model", our_model(args, case), "--adapter", our_own, "--task", case.answers or "generate",
             *backend(args), *case.ours, *same])


# ---- a case: rounds of both ----

def both(args, commands, environment, our_run):
    theirs = run_peer(commands[0], args, environment)
    return theirs, our_run(commands[1])


def run_case(args, name):
    case = CASES[name]
    if "--compute" in case.ours:
        needs(args, ["--model", our_model(args, case), "--max-length", 16, *backend(args), *case.ours])
    environment = {**(AVX2 if args.peer_avx2 else {}), **case.environment}
    answering = case.answers or (case.rows == "banking77" and args.answers)
    theirs, our_own = (BANKING / "final_adapter",) * 2 if case.answers else (args.work / "peer-run", args.work / "run")
    training = None if case.answers else training_commands(args, case)
    answers = answer_commands(args, case, theirs, our_own) if answering else None
    rounds = {"training": [], "answers": []}
    for r in range(args.rounds):
        if training:
            shutil.rmtree(args.work / "peer-run", ignore_errors=True)
            rounds["training"].append(both(args, training, environment,
                                           lambda c: run_training(c, args.work / "run", args.work / "lora.log")))
            say(args, name, r, rounds["training"][-1], "tokens_per_second", "tokens/s")
        if answers:
            rounds["answers"].append(both(args, answers, environment, lambda c: run_answers(c, args)))
            say(args, name, r, rounds["answers"][-1], "answer_seconds", "s for the answers")
    return {**rounds, "environment": environment,
            "commands": [shown(args, c) for pair in (training, answers) if pair for c in pair]}


def say(args, name, r, pair, key, unit):
    print(f"{name}: round {r + 1}/{args.rounds}: {pair[0][key]:.1f} and {pair[1][key]:.1f} {unit}, "
          f"{pair[0]['peak'] / 1e6:.0f} and {pair[1]['peak'] / 1e6:.0f} MB", file=sys.stderr)


# ---- the table ----

def worst_difference(rounds):
    """Of all steps' losses, as a share; a NaN if there is one, or if the rows were not of the same tokens."""
    steps = [pair for theirs, our in rounds for pair in zip(theirs["steps"], our["steps"], strict=True)]
    shares = [abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in steps]
    same = all(a["tokens"] == b["tokens"] for a, b in steps)
    return max(shares) if same and all(map(math.isfinite, shares)) else math.nan


def seconds_cells(rounds, key="seconds"):
    return [pair_of(rounds, key), ratios([a[key] / b[key] for a, b in rounds])]


TRAINING_HEAD = ["rows", "PEFT tokens/s", "lora tokens/s", "ratio (of rounds)", "seconds of the whole run", "ratio",
                 "peak memory", "ratio", "last loss", "largest difference"]
ANSWERS_HEAD = ["answers", "seconds", "ratio (of rounds)", "seconds of the whole run", "ratio", "peak memory", "ratio",
                "right, PEFT and lora"]


def training_row(case, rounds):
    """The row, and whether the losses agree."""
    worst = worst_difference(rounds)
    agree = worst <= case.bound     # NaN does not
    theirs, our = zip(*rounds)
    last = " and ".join(f"{side[0]['steps'][-1]['loss']:.4f}" for side in (theirs, our))
    return [case.title, *rate_cells(rounds), *seconds_cells(rounds), *memory_cells(rounds), last,
            f"{worst:.1e}" + ("" if agree else f" **more than {case.bound:g}**")], agree


def answers_row(case, rounds):
    agree = all(abs(a["accuracy"] - b["accuracy"]) <= ANSWERS_BOUND for a, b in rounds)
    return [case.title, *seconds_cells(rounds, "answer_seconds"), *seconds_cells(rounds), *memory_cells(rounds),
            pair_of(rounds, "accuracy", 100, 1, " %") + ("" if agree else " **too far apart**")], agree


def what_ran(args, results):
    runs = [theirs for case in results.values() for theirs, _ in case["training"] + case["answers"]]
    versions = ", ".join(f"{n} {v}" for n, v in {n: v for r in runs for n, v in r["versions"].items()}.items())
    named = " where a command names none" if any("--backend" in CASES[name].ours for name in results) else ""
    return (f"{machine(args)}. PyTorch's vectors: {' or '.join(sorted({r['vectors'] for r in runs}))}. {versions}; {ours(args)}{named}. "
            f"{medians_of(args.rounds)} of {args.steps} steps (where PyTorch has AVX2 alone at most "
            f"{CASES['bf16-avx2'].most_steps}), the first of them not timed; rows of text have {args.row_tokens} tokens.")


def report(args, results, skipped):
    """Writes results.md and results.json; the text, and whether both sides agree."""
    lines, agree = [], True
    for kind, head, make in (("training", TRAINING_HEAD, training_row), ("answers", ANSWERS_HEAD, answers_row)):
        rows = [make(CASES[name], case[kind]) for name, case in results.items() if case[kind]]
        lines += table(head, [row for row, _ in rows]) if rows else []
        agree = agree and all(good for _, good in rows)
    lines += [f"skipped {name}: {why}" for name, why in skipped.items()]
    if results:
        lines += [what_ran(args, results), "", "Commands:", ""]
    for case in results.values():
        if case["environment"]:
            lines += [f"    export {' '.join(f'{n}={v}' for n, v in case['environment'].items())}    (before PEFT's)"]
        lines += case["commands"]
    text = "\n".join(lines) + "\n"
    write(args, "results", text, results)
    return text, agree


def main():
    args = arguments()
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
        sys.exit("losses or answers differ by more than they may: the two sides did not do the same work")


if __name__ == "__main__":
    main()
