#!/bin/sh
# make demo: the embedded model sorts support messages into ten categories, before and after tuning.
set -e
lora=${LORA:-./lora}
out=${OUT:-out/demo}
started=$(date +%s)
run() {
    echo
    echo "\$ lora $*"
    "$lora" "$@" --threads 1    # so small a model gains nothing from more, and waits less for a busy machine
}
cd "$(dirname "$0")/.."

echo "A model of 1.05 million parameters (data/model) that this program trained from random values,"
echo "and 1,500 support messages in ten categories (data/tickets)."
echo
echo "=== before tuning: the 300 test messages, and general text"
run eval --model data/model --data data/tickets/test.jsonl --task classify --prompt-template '{text}'
run eval --model data/model --data data/tickets/general.jsonl

echo
echo "=== tuning: LoRA on all linear layers, 1,050 messages"
run train --model data/model --data data/tickets/train.jsonl --eval-data data/tickets/validation.jsonl \
    --prompt-template '{text}' --lora-r 16 --lora-alpha 32 --learning-rate 4e-3 --batch-size 16 --epochs 5 \
    --out "$out" --overwrite

echo
echo "=== after tuning: the same"
run eval --model data/model --adapter "$out" --data data/tickets/test.jsonl --task classify
run eval --model data/model --adapter "$out" --data data/tickets/general.jsonl

echo
echo "The adapter is in $out. It took $(($(date +%s) - started)) seconds."
