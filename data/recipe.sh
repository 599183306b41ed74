#!/bin/sh
# make recipe: makes data/model and data/tickets from the grammars. The same bytes each time on one
# backend, at any number of threads; the general text that is learnt is not kept.
set -e
cd "$(dirname "$0")/.."
build=${BUILD:-build}
out=${OUT:-out/recipe}
seed=1
mkdir -p "$out/shape"

# One call makes files that do not overlap.
"$build/data/make_text" $seed data/words.grammar data/general.grammar \
    text:150="$out/general.jsonl" text:70000="$out/text.jsonl" task:90000="$out/task.jsonl"
"$build/data/make_text" $seed data/words.grammar data/tickets.grammar \
    ticket:1050="$out/train.jsonl" ticket:150="$out/validation.jsonl" ticket:300h="$out/test.jsonl"

# The tokenizer learns from a sample, so that the words of the tickets weigh enough to be tokens.
head -n 3000 "$out/text.jsonl" > "$out/sample-text.jsonl"
head -n 3000 "$out/task.jsonl" > "$out/sample-task.jsonl"
"$build/data/make_tokenizer" 2048 "$out/shape" "$out/sample-text.jsonl" "$out/sample-task.jsonl" "$out/train.jsonl"

cp data/config.json "$out/shape/"
rm -rf "$out/start"
"$build/lora" init --config "$out/shape/config.json" --out "$out/start" --seed $seed
"$build/lora" train --method full --model "$out/start" --data "$out/text.jsonl,$out/task.jsonl" \
    --eval-data "$out/general.jsonl" --out "$out/model" --overwrite --dtype bf16 --seed $seed \
    --learning-rate 3e-3 --lr-scheduler cosine --warmup-steps 50 --weight-decay 0.05 --adam-beta2 0.99 \
    --batch-size 48 --epochs 1 --eval-steps 400 --save-steps 800 --save-total-limit 1

mkdir -p data/model data/tickets
for f in config.json model.safetensors tokenizer.json tokenizer_config.json; do
    cp "$out/model/$f" data/model/
done
for f in train validation test general; do
    cp "$out/$f.jsonl" data/tickets/
done
