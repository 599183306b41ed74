#!/bin/sh
# make demo: the embedded model sorts support messages into ten categories, before and after tuning.
set -e
LC_ALL=C
export LC_ALL
lora=${LORA:-./lora}
out=${OUT:-out/demo}
started=$(date +%s)
cd "$(dirname "$0")/.."
mkdir -p "$out"

run() {
    echo
    echo "\$ lora $*"
    "$lora" "$@" --threads 1    # so small a model gains nothing from more, and waits less for a busy machine
}
# A number of an evaluation's JSON, with three digits.
figure() {
    printf '%.3f' "$(sed 's/.*"'"$2"'": *\([0-9.e+-]*\).*/\1/' "$out/$1.json")"
}

echo "A model of 1.05 million parameters (data/model) that this program trained from random values,"
echo "and 1,500 support messages in ten categories (data/tickets)."
echo
echo "=== before tuning: the 300 test messages, and general text"
run eval --model data/model --data data/tickets/test.jsonl --task classify --prompt-template '{text}' \
    --json "$out/tickets-before.json"
run eval --model data/model --data data/tickets/general.jsonl --json "$out/general-before.json"

echo
echo "=== tuning: LoRA on all linear layers, 1,050 messages"
run train --model data/model --data data/tickets/train.jsonl --eval-data data/tickets/validation.jsonl \
    --prompt-template '{text}' --lora-r 16 --lora-alpha 32 --lora-dropout 0.1 --learning-rate 3e-3 \
    --batch-size 16 --epochs 5 --out "$out/adapter" --overwrite

echo
echo "=== after tuning: the same"
run eval --model data/model --adapter "$out/adapter" --data data/tickets/test.jsonl --task classify \
    --json "$out/tickets-after.json"
run eval --model data/model --adapter "$out/adapter" --data data/tickets/general.jsonl --json "$out/general-after.json"

echo
echo "                          before    after"
echo "test messages, accuracy    $(figure tickets-before accuracy)    $(figure tickets-after accuracy)"
echo "general text, loss         $(figure general-before loss)    $(figure general-after loss)   what the tuning forgot"
echo "The adapter is in $out/adapter. It took $(($(date +%s) - started)) seconds."
