#!/usr/bin/env python3
"""Matrix products in f32 by PyTorch, by numpy's OpenBLAS and by this program, in turn, on the shapes of real models.

    bench/products.sh [--models SmolLM2-135M,TinyLlama-1.1B] [--rounds 3] ...

Each linear of a layer forward and dx at 512 rows, the head at 64; shapes that several models have are measured once.
The table has for each shape GFLOP/s and the ratio of ours to the better of the two; the least is named.
"""
import json
import os
import statistics
import subprocess
import sys
import time

from common import SHARED, backend, machine, medians_of, options, ours, parse, ratios, shown, table, write

SHAPES = SHARED / "vectors" / "model-configs" / "shapes.json"
LIBRARIES = {"torch": "PyTorch", "numpy": "OpenBLAS"}
INNER = 2           # rounds of each within a round, after one that warms up
ROWS, HEAD_ROWS = 512, 64
CONFIG = ["hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "rms_norm_eps",
          "rope_theta", "tie_word_embeddings", "max_position_embeddings"]


# ---- a library, in a process of its own: shapes come in, seconds go out, a line each ----

def serve(library, threads):
    if library == "torch":
        import torch
        torch.set_num_threads(threads)
        version = f"PyTorch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()})"

        def new(n):
            return torch.rand(n)
        multiply = torch.matmul
    else:
        import numpy
        blas = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]
        version = f"numpy {numpy.__version__} ({blas['name']} {blas['version']})"

        def new(n):
            return numpy.random.default_rng(0).random(n, dtype=numpy.float32)
        multiply = numpy.matmul
    print(json.dumps(version), flush=True)
    for line in sys.stdin:
        shapes = json.loads(line)
        x, y, w = (new(max(a * b for a, b in pairs)) for pairs in zip(*(((n, i), (n, o), (o, i)) for _, n, i, o in shapes)))
        rounds = [[seconds_of(multiply, x, y, w, shape) for shape in shapes] for _ in range(INNER + 1)][1:]
        print(json.dumps([statistics.median(times) for times in zip(*rounds)]), flush=True)


def seconds_of(multiply, x, y, w, shape):
    """As `lora bench` does it: short ones are repeated so that the clock can tell."""
    kind, n, i, o = shape
    x, y, w = x[:n * i].reshape(n, i), y[:n * o].reshape(n, o), w[:o * i].reshape(o, i)
    runs, start = 0, time.perf_counter()
    while True:
        if kind == "forward":
            multiply(x, w.T, out=y)
        else:
            multiply(y, w, out=x)
        runs += 1
        took = time.perf_counter() - start
        if took >= 0.005:
            return took / runs


class Library:
    def __init__(self, name, threads):
        environment = {**os.environ, **{f"{v}_NUM_THREADS": str(threads) for v in ("OMP", "OPENBLAS", "MKL")}}
        self.child = subprocess.Popen([sys.executable, __file__, "--serve", name, str(threads)], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, text=True, env=environment)
        self.version = self.line()

    def line(self):
        line = self.child.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(self.child.args)}: ended")
        return json.loads(line)

    def seconds(self, shapes):
        self.child.stdin.write(json.dumps(shapes) + "\n")
        self.child.stdin.flush()
        return self.line()

    def close(self):
        self.child.stdin.close()
        self.child.wait()


# ---- ours ----

def config_of(model, args):
    """A config.json that `lora bench` takes for a shape; numbers alone decide its products."""
    path = args.work / f"shape-{model['model']}.json"
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "torch_dtype": "float32",
              "num_hidden_layers": 1, **{name: model[name] for name in CONFIG}}
    path.write_text(json.dumps(config) + "\n")
    return path


def bench_command(args, config):
    return [args.lora, "bench", "--model", config, "--dtype", "f32", "--tokens", ROWS, "--targets", HEAD_ROWS, "--rounds", INNER,
            "--threads", args.threads, *backend(args), "--json", args.work / "bench.json"]


def our_seconds(command):
    """By shape."""
    bench = subprocess.run([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if bench.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{bench.stderr}")
    sys.stderr.writelines(line + "\n" for line in bench.stderr.splitlines() if "busy" in line)
    products = json.loads(command[-1].read_text())["products"]
    return {(p["product"], p["N"], p["I"], p["O"]): p["seconds"] for p in products if p["product"] in ("forward", "dx")}


# ---- rounds, and what is shown ----

def models(args):
    if not SHAPES.exists():
        sys.exit(f"{SHAPES}: not here; LORA_SHARED names the folder that has it (bench/README.md)")
    known = json.loads(SHAPES.read_text())["models"]
    wanted = args.models.split(",") if args.models else [m["model"] for m in known]
    for name in wanted:
        if name not in [m["model"] for m in known]:
            sys.exit(f"{name}: expected one of {', '.join(m['model'] for m in known)}")
    return [m for m in known if m["model"] in wanted]


def measured(args, libraries):
    """By shape: its model's name, and for each round the seconds of each of the three."""
    found = {}
    for r in range(args.rounds):
        done = set()
        for model in models(args):
            command = bench_command(args, config_of(model, args))
            if r and not any(name == model["model"] for name, _ in found.values()):
                continue                        # all its shapes are an earlier model's
            mine = our_seconds(command)
            shapes = [shape for shape in mine if shape not in done]
            done.update(shapes)
            if not shapes:
                continue
            theirs = [library.seconds(shapes) for library in libraries]
            for shape, *seconds in zip(shapes, *theirs):
                found.setdefault(shape, (model["model"], []))[1].append((*seconds, mine[shape]))
        print(f"round {r + 1}/{args.rounds}: {len(found)} shapes", file=sys.stderr)
    return found


def row(shape, model, rounds):
    kind, n, i, o = shape
    flops = 2e-9 * n * i * o
    shares = [min(seconds[:-1]) / seconds[-1] for seconds in rounds]
    cells = [kind, model, str(n), str(i), str(o), *(f"{flops / statistics.median(side):.1f}" for side in zip(*rounds)), ratios(shares)]
    return statistics.median(shares), cells


def main():
    p = options("products by PyTorch, OpenBLAS and this program", 3)
    p.add_argument("--models", help="of shapes.json, separated by commas (all)")
    args = parse(p)
    libraries = [Library(name, args.threads) for name in LIBRARIES]
    found = measured(args, libraries)
    for library in libraries:
        library.close()
    rows = [row(shape, *value) for shape, value in found.items()]
    least, cells = min(rows)
    slower = sum(share < 1 for share, _ in rows)
    head = ["product", "model", "rows", "in", "out", *(f"{name} GFLOP/s" for name in [*LIBRARIES.values(), "lora"]), "ratio to the better"]
    lines = table(head, [cells for _, cells in rows])
    lines += [f"{len(rows)} products; {slower} ratios are below 1, the median is {statistics.median(share for share, _ in rows):.2f}. "
              f"The least is {least:.2f}: {cells[0]}, {cells[2]} rows, {cells[3]} in, {cells[4]} out ({cells[1]}).", "",
              f"{machine(args)}. {'; '.join(library.version for library in libraries)}; {ours(args)}. {medians_of(args.rounds)}.", "",
              "Command:", "", shown(args, bench_command(args, "CONFIG.json"))]
    text = "\n".join(lines) + "\n"
    write(args, "products", text, [{"shape": shape, "model": model, "seconds": rounds} for shape, (model, rounds) in found.items()])
    print(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        main()
