"""Makes data/bnb: codes and scales from bitsandbytes, and tiny checkpoints that Transformers saved with it.

    pip install torch transformers peft bitsandbytes safetensors numpy
    python test/goldens/make_nf4.py

README.md says what each file holds. On processors without AVX-512 bitsandbytes looks 8-bit codes up in a
coarse table, and on those with it decodes matrices wrong whose rows are shorter than a block; its portable
kernels, which a dispatch key reaches, take the nearest code and the right scale.
"""
import json
import pathlib
import shutil
import tempfile

import bitsandbytes
import torch
from bitsandbytes import functional
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import make_goldens as goldens

OUT = pathlib.Path(__file__).resolve().parent / "data" / "bnb"
BLOCKS = {"odd": (32, 64, 256), "zeros": (32, 64), "ties": (64,)}
PORTABLE = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)


# ---- arrays ----


def inputs():
    g = torch.Generator().manual_seed(5)
    zeros = torch.randn(3, 64, generator=g)
    zeros[1] = 0
    zeros[2, 40:] = 0
    table = functional.get_4bit_type("nf4", device="cpu")
    bounds = (table[1:] + table[:-1]) / 2
    ties = torch.zeros(2, 64)       # the midpoints themselves, under a scale of 1 and of 3
    ties[0, :16] = torch.cat((torch.ones(1), bounds))
    ties[0, 16:31] = bounds.nextafter(torch.tensor(9.0))
    ties[1] = 3 * ties[0]
    return {"odd": torch.randn(9, 57, generator=g), "zeros": zeros, "ties": ties}


def portable(x, table, block):
    return torch.ops.bitsandbytes.quantize_blockwise.default.redispatch(PORTABLE, x, table, block)


def four_bits(x, blocks):
    out = {"input": x}
    signed = functional.create_dynamic_map(True)
    for kind in ("nf4", "fp4"):
        for block in blocks:
            name = f"{kind}.b{block}"
            packed, state = functional.quantize_4bit(x, blocksize=block, quant_type=kind)
            twice, state2 = functional.quantize_4bit(x, blocksize=block, quant_type=kind, compress_statistics=True)
            out |= {f"{name}.packed": packed.flatten(), f"{name}.absmax": state.absmax,
                    f"{name}.dequant": functional.dequantize_4bit(packed, state),
                    f"{name}.dq.absmax": state2.absmax, f"{name}.dq.nested_absmax": state2.state2.absmax,
                    f"{name}.dq.offset": state2.offset.reshape(1),
                    f"{name}.dq.dequant": functional.dequantize_4bit(twice, state2),
                    f"{name}.dq_exact.absmax": portable(state.absmax - state2.offset, signed, 256)[0]}
    return out


def eight_bits(x):
    out = {}
    for kind in ("signed", "unsigned"):
        table = functional.create_dynamic_map(kind == "signed")
        y = x if kind == "signed" else x.abs()
        codes, absmax = torch.ops.bitsandbytes.quantize_blockwise(y, table, 256)
        out |= {f"{kind}.b256.codes": codes, f"{kind}.b256.absmax": absmax,
                f"{kind}.b256.codes_exact": portable(y, table, 256)[0],
                f"{kind}.b256.dequant": torch.ops.bitsandbytes.dequantize_blockwise(codes, absmax, table, 256, torch.float32)}
    return out


def rows_int8(x):
    codes, scale, _ = functional.int8_vectorwise_quant(x.clone())
    return {"codes": codes, "scale": scale, "dequant": functional.int8_vectorwise_dequant(codes, scale)}


def arrays():
    for folder in ("blockwise4", "blockwise8", "int8"):
        (OUT / folder).mkdir(parents=True)
    for name, x in inputs().items():
        goldens.write_tensors(OUT / "blockwise4" / f"{name}.safetensors", four_bits(x, BLOCKS[name]))
        goldens.write_tensors(OUT / "blockwise8" / f"{name}.safetensors", eight_bits(x))
        goldens.write_tensors(OUT / "int8" / f"{name}.safetensors", rows_int8(x))
    goldens.write_tensors(OUT / "tables.safetensors", {
        "nf4": functional.get_4bit_type("nf4", device="cpu"), "fp4": functional.get_4bit_type("fp4", device="cpu"),
        "dynamic_signed": functional.create_dynamic_map(True), "dynamic_unsigned": functional.create_dynamic_map(False)})


# ---- checkpoints ----

MODEL = dict(vocab_size=67, hidden_size=32, intermediate_size=56, num_attention_heads=2, num_key_value_heads=1,
             head_dim=16, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
CHECKPOINTS = {
    "nf4-dq": (torch.float32, 64, "5GB", dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)),
    "fp4-b32-sharded": (torch.bfloat16, 32, "20KB", dict(load_in_4bit=True, bnb_4bit_quant_type="fp4")),
    "int8-skip": (torch.float32, 64, "5GB", dict(load_in_8bit=True, llm_int8_skip_modules=["lm_head", "down_proj"])),
}


def quantised(base, dtype, block, settings):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, quantization_config=BitsAndBytesConfig(**settings))
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    if block != 64:         # the configuration has no key for it; each weight says its own
        for name, module in model.named_modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                module.weight = bitsandbytes.nn.Params4bit(
                    plain.get_submodule(name).weight.data, requires_grad=False, blocksize=block, compress_statistics=False,
                    quant_type=settings["bnb_4bit_quant_type"]).to("cpu")
    return model


def dequantised(model, base):
    """A plain float32 model with the numbers that the quantised one stands for."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for name, module in plain.named_modules():
            weight = getattr(module, "weight", None)
            if weight is None:
                continue
            other = model.get_submodule(name).weight
            if isinstance(other, bitsandbytes.nn.Params4bit):
                state = other.quant_state
                absmax = state.absmax
                if state.nested:
                    absmax = functional.dequantize_blockwise(absmax, state.state2) + state.offset
                weight.copy_(torch.ops.bitsandbytes.dequantize_4bit.default.redispatch(
                    PORTABLE, other.data, absmax, state.blocksize, state.quant_type, state.shape, torch.float32))
            elif other.dtype == torch.int8:
                weight.copy_(functional.int8_vectorwise_dequant(other.data, other.SCB))
            else:
                weight.copy_(other)
    return plain


def checkpoint(base, name, rows, spare):
    dtype, block, shard, settings = CHECKPOINTS[name]
    model = quantised(base, dtype, block, settings)
    model.save_pretrained(OUT / "checkpoints" / name, max_shard_size=shard)
    (OUT / "checkpoints" / name / "generation_config.json").unlink(missing_ok=True)
    dequantised(model, base).save_pretrained(spare / name)
    out, total, count = {}, 0.0, 0
    with goldens.exact(), torch.no_grad():
        wide = goldens.load(spare / name, torch.float64)
        for s, (ids, mask) in enumerate(rows):
            logits, loss = goldens.losses(wide, ids)
            out |= {f"seq{s}.logits_dequantised_float64": logits, f"seq{s}.loss_dequantised_float64": loss}
            total += (loss * torch.tensor(mask[1:])).sum().item()
            count += sum(mask)
    goldens.write_tensors(OUT / "checkpoints" / f"{name}.ref.safetensors", out)
    goldens.write_json(OUT / "checkpoints" / f"{name}.ref.json", {"mean_loss_dequantised_float64": total / count})


def lora(base, name, rows, spare):
    path = OUT / "checkpoints" / f"{name}-lora"
    path.mkdir()
    goldens.make_adapter(base, path / "adapter", 12, False, r=3, lora_alpha=6, lora_dropout=0.0,
                         target_modules=goldens.LINEARS)
    with goldens.exact():
        model = goldens.load_adapter(spare / name, path / "adapter", torch.float64)
        loss = goldens.batch_loss(model, rows, sum(sum(mask) for _, mask in rows))
        loss.backward()
    goldens.write_tensors(path / "ref.safetensors", {
        f"grad_dequantised_float64.{goldens.file_name(n)}": p.grad for n, p in model.named_parameters() if p.requires_grad})


def main():
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    arrays()
    rows = goldens.make_rows(torch.Generator().manual_seed(6), MODEL["vocab_size"], (9, 17))
    (OUT / "checkpoints").mkdir()
    goldens.write_batch(OUT / "checkpoints", rows)
    with tempfile.TemporaryDirectory() as spare:
        spare = pathlib.Path(spare)
        goldens.make_model(spare / "base", 21, **MODEL)
        for name in CHECKPOINTS:
            checkpoint(spare / "base", name, rows, spare)
        lora(spare / "base", "nf4-dq", rows, spare)
    goldens.write_json(OUT / "versions.json", goldens.VERSIONS | {"bitsandbytes": bitsandbytes.__version__})


main()
