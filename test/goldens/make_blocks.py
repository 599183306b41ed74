"""Makes data/blocks.safetensors: bytes of GGUF's block types and their numbers as gguf-py decodes them.

    pip install gguf numpy safetensors
    python test/goldens/make_blocks.py
"""
import pathlib

import gguf
import numpy
from safetensors.numpy import save_file

TYPES = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"]
# where the half-precision scales of a block lie
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
BLOCKS = 3


def main():
    random = numpy.random.default_rng(1)
    out = {}
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        size = gguf.GGML_QUANT_SIZES[kind][1]
        raw = random.integers(0, 256, (BLOCKS, size), dtype=numpy.uint8)
        for place in HALVES.get(name, (0,)):
            raw[:, place + 1] &= 0xBF       # no infinity, no NaN
        raw[2, HALVES.get(name, (0,))[0] + 1] &= 0x83      # the last block's scale is subnormal
        out[name + ".raw"] = raw
        out[name + ".dequant"] = gguf.quants.dequantize(raw, kind).astype(numpy.float32)
    save_file(out, pathlib.Path(__file__).parent / "data" / "blocks.safetensors")


main()
