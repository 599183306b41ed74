#!/usr/bin/env python3
"""The peer: a few steps of LoRA by Transformers and PEFT, with bitsandbytes for 4 bits, as their users write it.

Run by peers.py, a process a run. Prints one JSON object: versions, and of each step the loss before the
update, the seconds, and the tokens, padding not counted. With --make-adapter it writes the adapter that
both sides start from instead.
"""
import argparse
import json
import sys
import time
import warnings

warnings.filterwarnings("ignore")
import peft
import torch
import transformers

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load_base(path, weights):
    options = {"dtype": torch.bfloat16 if weights == "bf16" else torch.float32}
    if weights == "nf4":
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32)
        options["device_map"] = {"": "cpu"}
    model = transformers.AutoModelForCausalLM.from_pretrained(path, **options)
    model.config.use_cache = False
    return model


def make_adapter(model, path, rank):
    torch.manual_seed(0)
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules=LINEARS)
    peft.get_peft_model(model, settings).save_pretrained(path)


def read_rows(path, model_path, count):
    """(ids, labels) of a row: its ids, each a target, or a chat whose last turn is the target."""
    rows, tokenizer = [], None
    for line in open(path, encoding="utf-8"):
        row = json.loads(line)
        if "input_ids" in row:
            rows.append((row["input_ids"], row["input_ids"]))
        else:
            tokenizer = tokenizer or transformers.AutoTokenizer.from_pretrained(model_path)
            *before, last = row["messages"]
            prompt = tokenizer.apply_chat_template(before, add_generation_prompt=True, return_dict=True)["input_ids"]
            answer = tokenizer(last["content"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            rows.append((prompt + answer, [-100] * len(prompt) + answer))
        if len(rows) == count:
            return rows
    sys.exit(f"{path}: {len(rows)} rows, {count} needed")


def padded(rows):
    longest = max(len(ids) for ids, _ in rows)

    def fill(values, pad):
        return torch.tensor([v + [pad] * (longest - len(v)) for v in values])

    return {"input_ids": fill([ids for ids, _ in rows], 0),
            "labels": fill([labels for _, labels in rows], -100),
            "attention_mask": fill([[1] * len(ids) for ids, _ in rows], 0)}


def train(model, batches, args):
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, weight_decay=0.0)
    schedule = transformers.get_scheduler(args.lr_scheduler, optimizer, args.warmup_steps, len(batches))
    model.train()
    for rows in batches:
        start = time.perf_counter()
        loss = model(**padded(rows)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield {"loss": loss.item(), "seconds": time.perf_counter() - start, "tokens": sum(len(ids) for ids, _ in rows)}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--model", required=True)
    p.add_argument("--adapter", required=True)
    p.add_argument("--make-adapter", type=int, metavar="RANK")
    p.add_argument("--weights", choices=["f32", "bf16", "nf4"], default="f32")
    p.add_argument("--data")
    p.add_argument("--batch-size", type=int)
    p.add_argument("--max-steps", type=int)
    p.add_argument("--learning-rate", type=float)
    p.add_argument("--lr-scheduler")
    p.add_argument("--warmup-steps", type=int)
    p.add_argument("--gradient-checkpointing", choices=["on", "off"])
    p.add_argument("--threads", type=int, required=True)
    args = p.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    model = load_base(args.model, args.weights)
    if args.make_adapter:
        return make_adapter(model, args.adapter, args.make_adapter)

    model = peft.PeftModel.from_pretrained(model, args.adapter, is_trainable=True)
    if args.gradient_checkpointing == "on":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    rows = read_rows(args.data, args.model, args.batch_size * args.max_steps)
    batches = [rows[i:i + args.batch_size] for i in range(0, len(rows), args.batch_size)]
    versions = {m.__name__: m.__version__ for m in (torch, transformers, peft)}
    if args.weights == "nf4":
        import bitsandbytes
        versions["bitsandbytes"] = bitsandbytes.__version__
    json.dump({"versions": versions, "vectors": torch.backends.cpu.get_cpu_capability(),
               "steps": list(train(model, batches, args))}, sys.stdout)


main()
