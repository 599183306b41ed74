"""What the scripts of this folder share: runs and their figures, the machine, the text that is trained on.

Nothing but the standard library, so that the scripts that start children stay small (see measure.py).
"""
import argparse
import json
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
SHARED = pathlib.Path(os.environ.get("LORA_SHARED", ROOT.parent / "shared"))


# ---- options ----

def options(description, rounds):
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--rounds", type=int, default=rounds, help=f"runs of each side, in turn; medians are of these ({rounds})")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
                   else os.cpu_count(), help="of both sides (the cores this process may use)")
    p.add_argument("--backend", help="our kernels (the best)")
    p.add_argument("--lora", default=ROOT / "lora", type=pathlib.Path, help="the program (./lora)")
    p.add_argument("--work", default=ROOT / "build" / "bench", type=pathlib.Path, help="folder of what is made (build/bench)")
    return p


def model_option(p):
    p.add_argument("--model", default=os.environ.get("LORA_MODEL", ROOT / "model" / "SmolLM2-135M-Instruct.Q4_1.gguf"),
                   type=pathlib.Path, help="SmolLM2's GGUF file (LORA_MODEL, or what `make model` fetched)")


def backend(args):
    return ["--backend", args.backend] if args.backend else []


def parse(p):
    args = p.parse_args()
    if not os.access(args.lora, os.X_OK):
        p.error(f"{args.lora}: not here; `make` builds it, --lora names it")
    if "model" in args and not args.model.exists():
        p.error(f"{args.model}: not here; `make model` fetches it, LORA_MODEL names it")
    if args.rounds < 1:
        p.error("at least one round")
    args.work.mkdir(parents=True, exist_ok=True)
    return args


# ---- runs ----

def checked(command, **options):
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    if run.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{run.stderr}")
    return run.stdout


def run(command, log, output=os.devnull, **environment):
    """Seconds and bytes; standard error goes to the file log."""
    with open(log, "w") as err, open(output, "w") as out:
        code, seconds, peak = measure.run(command, stdout=out, stderr=err, env={**os.environ, **environment})
    if code:
        sys.exit(f"{' '.join(map(str, command))}: exit status {code}\n{pathlib.Path(log).read_text()[-2000:]}")
    return seconds, peak


def figures(steps, seconds, peak):
    """Of a training run: tokens a second of its steps but the first."""
    timed = steps[1:]
    return {"tokens_per_second": sum(s["tokens"] for s in timed) / sum(s["seconds"] for s in timed),
            "peak": peak, "seconds": seconds, "steps": [{key: s[key] for key in ("loss", "tokens", "seconds")} for s in steps]}


def run_training(command, out, log, counted="tokens"):
    """This program's: out is what its --out names, counted which of a step's counts is the tokens."""
    shutil.rmtree(out, ignore_errors=True)
    seconds, peak = run(command, log)
    steps = [json.loads(line) for line in open(out / "metrics.jsonl")]
    return figures([{**s, "tokens": s[counted]} for s in steps], seconds, peak)


# ---- rows ----

def text_ids(args):
    """The project's own pages, as ids."""
    text = "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")) + sorted(ROOT.glob("*.h")))
    return [int(word) for word in checked([args.lora, "tokenize", "--model", args.model], input=text).split()]


def write_id_rows(path, rows):
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))


# ---- what is shown ----

def median(runs, key):
    return statistics.median(r[key] for r in runs)


def ratios(shares, digits=2):
    if len(shares) == 1:
        return f"{shares[0]:.{digits}f}"
    return f"{statistics.median(shares):.{digits}f} ({min(shares):.{digits}f} to {max(shares):.{digits}f})"


def pair_of(rounds, key, scale=1, digits=1, unit=""):
    """The medians of both sides in one cell."""
    return " and ".join(f"{median(side, key) * scale:.{digits}f}" for side in zip(*rounds)) + unit


def rate_cells(rounds, key="tokens_per_second"):
    return [*(f"{median(side, key):.1f}" for side in zip(*rounds)), ratios([b[key] / a[key] for a, b in rounds])]


def memory_cells(rounds):
    return [pair_of(rounds, "peak", 1e-6, 0, " MB"), ratios([b["peak"] / a["peak"] for a, b in rounds], 3)]


def table(head, rows):
    return ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1),
            *("| " + " | ".join(row) + " |" for row in rows), ""]


def processor():
    try:
        names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def machine(args):
    waits = os.environ.get("OMP_WAIT_POLICY")
    return f"{processor()}, {args.threads} threads" + (f", OMP_WAIT_POLICY={waits}" if waits else "")


def medians_of(rounds):
    return "One round" if rounds == 1 else f"Medians of {rounds} rounds"


def ours(args):
    """The program's version and the kernels that it takes, unless a command says otherwise."""
    kernels = args.backend or "auto"
    if kernels == "auto":
        kernels = next((line.split()[0] for line in checked([args.lora, "backends"]).splitlines() if "auto takes this" in line), "?")
    return f"{checked([args.lora, '--version']).strip()}, kernels {kernels}"


def shown(args, command):
    """A command as it may be repeated elsewhere."""
    text = " ".join(map(str, command)).replace(f"{args.work}/", "").replace(f"{ROOT}/", "").replace(sys.executable, "python")
    if "model" in args:
        text = text.replace(str(args.model), args.model.name)
    return "    " + text.replace(f"{SHARED}/", "")


def write(args, name, text, results):
    (args.work / f"{name}.md").write_text(text)
    (args.work / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
