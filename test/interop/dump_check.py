#!/usr/bin/env python3
"""The cases that `lora verify --dump` writes, computed again by NumPy: products over F32, F16, NF4 and INT8.

    dump_check.py --lora ./lora

Every number has to be within the bound that lies beside it. Prints one line and, at the end, the counts.
"""
import argparse
import json
import pathlib
import re
import subprocess
import tempfile

import numpy as np
from safetensors.numpy import load_file


def scales(tensors, case):
    """A 4-bit or INT8 weight's scales, as weight.h says."""
    if "w.absmax" in tensors:
        return tensors["w.absmax"]
    codes = tensors["w.codes"]
    nested = np.repeat(tensors["w.nested"], case["nested_block"])[: len(codes)]
    return tensors["w.map"][codes] * nested + tensors["w.offset"]


def weight(tensors, case, kind, rows, cols):
    data, first = tensors["w"], case["first_element"]
    if kind == "NF4":
        codes = np.stack([data >> 4, data & 15], 1).reshape(-1)
        numbers = tensors["w.code"][codes] * np.repeat(scales(tensors, case), case["block"])[: len(codes)]
    elif kind == "INT8":
        numbers = (data.view(np.int8).reshape(-1, cols) * (scales(tensors, case) / np.float32(127))[:, None]).reshape(-1)
    else:
        numbers = data.view({"F32": "<f4", "F16": "<f2"}[kind])
    return numbers[first: first + rows * cols].astype(np.float64).reshape(rows, cols)


def worst_share(tensors, case):
    """The largest error of a case as a share of its bound, or None for a case of another kind."""
    words = re.match(r"N (\d+) O (\d+) I (\d+) (F32|F16|NF4|INT8)(.*) scale (\S+)$", case["case"])
    if not words or "in heads" in words[5] or words[1] == "0":
        return None
    n, rows, cols = (int(words[i]) for i in (1, 2, 3))
    out = float(words[6]) * tensors["x"].reshape(n, cols) @ weight(tensors, case, words[4], rows, cols).T
    out += tensors.get("bias", 0)
    if "+=" in words[5]:
        out += tensors["out"].reshape(n, rows)
    error = np.abs(out.reshape(-1) - tensors["out.expected"])
    return (error / np.maximum(tensors["out.bound"], 1e-12)).max()      # sums of integers have the bound 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lora", required=True)
    lora = parser.parse_args().lora
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([lora, "verify", "--op", "matmul", "--dump", folder], check=True)
        cases = json.loads((pathlib.Path(folder) / "cases.json").read_text())
        tensors = load_file(pathlib.Path(folder) / "matmul.safetensors")
    shares = []
    for name, case in cases.items():
        number = name.split("/")[1] + "."
        own = {key[len(number):]: value for key, value in tensors.items() if key.startswith(number)}
        share = worst_share(own, case)
        if share is not None:
            shares.append(share)
    right = len(shares) > 150 and max(shares) <= 1
    print(f"{len(shares)} cases of matmul, the worst at {max(shares, default=0):.3f} of its bound")
    print(f"{int(right)} passed, {int(not right)} failed, 0 skipped")
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main())
