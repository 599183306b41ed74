#!/usr/bin/env python3
"""The peer: LoRA by Transformers and PEFT, with bitsandbytes for 4 bits, as their users write it.

Run by peers.py, a process a run. --job adapter writes the adapter that both sides start from; the others print one
JSON object with the versions: train, a few steps, of each the loss before the update, the seconds, and the tokens,
padding not counted; answer, greedy answers in padded batches, or classify, each row's likeliest label, the share that is right
and the seconds without loading.
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
    return transformers.AutoModelForCausalLM.from_pretrained(path, **options)


def make_adapter(model, path, rank):
    torch.manual_seed(0)
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules=LINEARS)
    peft.get_peft_model(model, settings).save_pretrained(path)


# ---- rows ----

def prompt_ids(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def read_rows(path, count):
    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line) for _, line in zip(range(count), lines)]
    if len(rows) < count:
        sys.exit(f"{path}: {len(rows)} rows, {count} needed")
    return rows


def ids_and_labels(row, tokenizer):
    """Its ids, each a target, or a chat whose last turn is the target."""
    if "input_ids" in row:
        return row["input_ids"], row["input_ids"]
    *before, last = row["messages"]
    prompt = prompt_ids(tokenizer, before)
    answer = tokenizer(last["content"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return prompt + answer, [-100] * len(prompt) + answer


def batches_of(rows, size):
    return [rows[i:i + size] for i in range(0, len(rows), size)]


def padded(rows):
    longest = max(len(ids) for ids, _ in rows)

    def fill(values, pad):
        return torch.tensor([v + [pad] * (longest - len(v)) for v in values])

    return {"input_ids": fill([ids for ids, _ in rows], 0),
            "labels": fill([labels for _, labels in rows], -100),
            "attention_mask": fill([[1] * len(ids) for ids, _ in rows], 0)}


# ---- jobs ----

def train(model, args, tokenizer):
    model.config.use_cache = False
    if args.gradient_checkpointing == "on":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    rows = [ids_and_labels(row, tokenizer) for row in read_rows(args.data, args.batch_size * args.max_steps)]
    batches = batches_of(rows, args.batch_size)
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


def answer(model, args, tokenizer):
    rows = read_rows(args.data, args.rows)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.eval()
    right, start = 0, time.perf_counter()
    for batch in batches_of(rows, args.batch_size):
        prompts = [prompt_ids(tokenizer, row["messages"][:-1]) for row in batch]
        inputs = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=args.max_new_tokens, do_sample=False)
        texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
        right += sum(text.strip() == row["messages"][-1]["content"].strip() for text, row in zip(texts, batch))
    return {"answer_seconds": time.perf_counter() - start, "accuracy": right / len(rows)}


def classify(model, args, tokenizer):
    """Each label as the answer, with its end, behind each row's prompt: the one of the largest probability."""
    labels = open(args.labels, encoding="utf-8").read().splitlines()
    rows = read_rows(args.data, args.rows)
    model.eval()
    right, start = 0, time.perf_counter()
    for row in rows:
        *before, last = row["messages"]
        scores = []
        for batch in batches_of([ids_and_labels({"messages": [*before, {"content": name}]}, tokenizer) for name in labels], 16):
            inputs = padded(batch)
            targets = inputs.pop("labels")[:, 1:]
            with torch.inference_mode():
                logits = model(**inputs).logits[:, :-1].transpose(1, 2)
                scores += (-torch.nn.functional.cross_entropy(logits, targets, reduction="none").sum(1)).tolist()
        right += labels[scores.index(max(scores))] == last["content"]
    return {"answer_seconds": time.perf_counter() - start, "accuracy": right / len(rows)}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--job", choices=["adapter", "train", "answer", "classify"], required=True)
    p.add_argument("--model", required=True)
    p.add_argument("--adapter", required=True)
    p.add_argument("--weights", choices=["f32", "bf16", "nf4"], default="f32")
    p.add_argument("--threads", type=int, required=True)
    p.add_argument("--data")
    p.add_argument("--batch-size", type=int)
    p.add_argument("--lora-r", type=int)
    p.add_argument("--max-steps", type=int)
    p.add_argument("--learning-rate", type=float)
    p.add_argument("--lr-scheduler")
    p.add_argument("--warmup-steps", type=int)
    p.add_argument("--gradient-checkpointing", choices=["on", "off"])
    p.add_argument("--out", help="where train saves the adapter")
    p.add_argument("--rows", type=int)
    p.add_argument("--max-new-tokens", type=int)
    p.add_argument("--labels", help="a file of names, one a line")
    args = p.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    model = load_base(args.model, args.weights)
    if args.job == "adapter":
        return make_adapter(model, args.adapter, args.lora_r)

    model = peft.PeftModel.from_pretrained(model, args.adapter, is_trainable=args.job == "train")
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    versions = {m.__name__: m.__version__ for m in (torch, transformers, peft)}
    if args.weights == "nf4":
        import bitsandbytes
        versions["bitsandbytes"] = bitsandbytes.__version__
    result = {"versions": versions, "vectors": torch.backends.cpu.get_cpu_capability()}
    if args.job == "train":
        result["steps"] = list(train(model, args, tokenizer))
        if args.out:
            model.save_pretrained(args.out)
    else:
        result.update((answer if args.job == "answer" else classify)(model, args, tokenizer))
    json.dump(result, sys.stdout)


main()
