"""Makes data/adamw8bit.safetensors: a tensor after 1, 2, 19 and 20 steps of bitsandbytes' AdamW8bit on the CPU.

    pip install torch bitsandbytes numpy safetensors
    python test/goldens/make_optim.py

The moments are encoded by bitsandbytes' portable quantizer, to the nearest number of the map as on a GPU. (That of its
compiled CPU library goes by a table of 65536 equal steps from -1 to 1, too coarse for the map's numbers near zero:
in 0.50 zero itself is encoded as 2.1e-5 of the block's largest.)

Parameters and gradients are made of util.h's random_bits(), as test_optim.c makes them, so that only what
bitsandbytes answers is kept.
"""
import json
import pathlib

import bitsandbytes
import bitsandbytes.backends.cpu.ops as cpu
import numpy
import torch
from safetensors.torch import save_file

N = 4096 + 77           # 16 blocks of 256 and a short one
STEPS = 20
KEPT = (1, 2, 19, 20)
LR, DECAY = 0.01, 0.1
PORTABLE = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)


def random_bits(key, n):
    """SplitMix64's finaliser of key + golden ratio * (index + 1)."""
    with numpy.errstate(over="ignore"):
        z = numpy.uint64(key) + numpy.uint64(0x9E3779B97F4A7C15) * numpy.arange(1, n + 1, dtype=numpy.uint64)
        z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        return z ^ (z >> numpy.uint64(31))


def uniform(bits):
    """24 bits to [-1, 1), exact in float32."""
    return ((bits >> numpy.uint64(40)).astype(numpy.float64) - 2.0**23) * 2.0**-23


def parameters():
    return torch.tensor(uniform(random_bits(0, N)), dtype=torch.float32)


def gradient(step):
    """Of sixteen octaves in a block, of other sizes in each; block 3 never has one, block 5 not in step 1."""
    bits, block = random_bits(step, N), numpy.arange(N) // 256
    g = uniform(bits) * 2.0 ** -((bits & numpy.uint64(15)).astype(numpy.float64)) * 2.0**-block
    g[(block == 3) | ((block == 5) & (step == 1))] = 0
    return torch.tensor(g, dtype=torch.float32)


def encode(x, table, absmax_out, out, block):
    codes, absmax = torch.ops.bitsandbytes.quantize_blockwise.default.redispatch(PORTABLE, x, table, block)
    out.copy_(codes)
    absmax_out.copy_(absmax)


def run():
    torch.set_num_threads(1)
    cpu._quant_blockwise_fp32_direct = encode
    p = torch.nn.Parameter(parameters())
    optimizer = bitsandbytes.optim.AdamW8bit([p], lr=LR, weight_decay=DECAY)
    out = {}
    for step in range(1, STEPS + 1):
        p.grad = gradient(step)
        optimizer.step()
        if step in KEPT:
            state = optimizer.state[p]
            out[f"{step}.p"] = p.detach().clone()
            for name, key in (("m", "state1"), ("mmax", "absmax1"), ("v", "state2"), ("vmax", "absmax2")):
                out[f"{step}.{name}"] = state[key].clone()
    return out


def moment_type(n):
    p = torch.nn.Parameter(torch.zeros(n))
    p.grad = torch.ones(n)
    optimizer = bitsandbytes.optim.AdamW8bit([p])
    optimizer.step()
    return optimizer.state[p]["state1"].dtype


def main():
    out = run()
    again = run()
    assert all(torch.equal(out[name], again[name]) for name in out)
    assert moment_type(4095) == torch.float32 and moment_type(4096) == torch.uint8
    versions = {"bitsandbytes": bitsandbytes.__version__, "torch": torch.__version__.split("+")[0]}
    save_file(out, pathlib.Path(__file__).parent / "data" / "adamw8bit.safetensors",
              metadata={"versions": json.dumps(versions)})


main()
