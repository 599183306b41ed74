#!/bin/sh
# --compute bf16 through the program: where it is there and where not, what is recorded, what a resumed run
# refuses, the same bytes at any number of threads and through an interruption, and a real model beside f32.
. test/checks.sh
# expect CODE WORDS...: runs the program; its output is in $dir/log
expect() {
    checked
    want=$1; shift
    lora "$@" >"$dir/log" 2>&1 </dev/null
    code=$?
    [ "$code" = "$want" ] || { wrong "lora $*: exit $code, not $want"; tail -3 "$dir/log"; }
}
# near A B: the losses of two runs, step by step. Rounding its operands moves a product by 2^-8 sqrt(2/3), 0.3 %
# of its length; a layer has three in a row, and layers err in directions of their own: below 1 % of a model
# that knows nothing yet, which is what its first loss is.
near() {
    checked
    losses "$1" >"$dir/l1"; losses "$2" >"$dir/l2"
    paste "$dir/l1" "$dir/l2" | awk 'NR == 1 { first = $2 } { d = $1 - $2; d = d < 0 ? -d : d; if (d > most) most = d }
        END { printf "  %d losses, at most %.2g of the first apart\n", NR, most / first; exit !(NR > 0 && most <= 0.01 * first) }' \
        || wrong "the losses of $1 and $2 are further apart than 1 % of the first"
}

tiny_config 64 3 96 >"$dir/config.json"
awk 'function r(m) { x = (x * 16807) % 2147483647; return x % m }
BEGIN { x = 7; for (i = 0; i < 40; i++) { n = 5 + r(18); s = ""
    for (t = 0; t < n; t++) s = s (t ? "," : "") (t < 2 ? 5 + i % 7 : 3 + r(94))
    print "{\"input_ids\":[" s "]}" } }' >"$dir/rows.jsonl"
model=$dir/model
set -- --model "$model" --data "$dir/rows.jsonl" --lora-r 4 --learning-rate 0.01 --batch-size 8 --epochs 2 --seed 5

begin "a backend without bf16 refuses in one line, and says that f32 is there"
expect 0 init --config "$dir/config.json" --out "$model" --seed 3
for job in "train --out $dir/none" "eval" "gradients --adapter $dir/none --out $dir/none.safetensors"; do
    expect 1 $job --model "$model" --data "$dir/rows.jsonl" --backend ref --compute bf16
    says "^lora: cannot multiply in bf16: backend ref: found f32 alone"; says "^hint: .*--compute f32"
done
expect 1 generate --model "$model" --prompt x --backend ref --compute bf16; says "^lora: cannot multiply in bf16: backend ref"
expect 1 bench --backend ref --compute bf16; says "^lora: cannot multiply in bf16: backend ref"
[ ! -e "$dir/none" ] || wrong "something was written"
expect 2 train --model "$model" --data "$dir/rows.jsonl" --out "$dir/none" --method full --compute bf16; says "no frozen weights"
expect 2 train "$@" --out "$dir/none" --compute fp8; says "expected one of f32|bf16"

$EXE "$LORA" backends >"$dir/backends"
if ! grep -q "^ *usable *--compute bf16" "$dir/backends"; then
    begin "--compute bf16"
    skip "$(sed -n 's/^ *\(not usable\)* *--compute bf16: //p' "$dir/backends" | head -n 1)"
    finish; exit
fi

begin "bf16: other numbers than f32, near them; recorded"
expect 0 train "$@" --out "$dir/f32"
expect 0 train "$@" --out "$dir/one" --compute bf16 --threads 1
differ "$dir/f32/adapter_model.safetensors" "$dir/one/adapter_model.safetensors"
near "$dir/one" "$dir/f32"
grep -q '"compute": "bf16"' "$dir/one/run.json" || wrong "run.json does not say bf16"
grep -q '"compute": "f32"' "$dir/f32/run.json" || wrong "run.json does not say f32"

begin "bf16: the same bytes with 3 threads, and stopped and resumed"
expect 0 train "$@" --out "$dir/three" --compute bf16 --threads 3
same "$dir/one/adapter_model.safetensors" "$dir/three/adapter_model.safetensors"
expect 0 train "$@" --out "$dir/half" --compute bf16 --save-steps 3 --save-total-limit 9
rm -rf "$dir/half/checkpoint-6" "$dir/half/checkpoint-9" "$dir/half/checkpoint-10"
expect 0 train "$@" --out "$dir/half" --compute bf16 --save-steps 3 --save-total-limit 9 --resume; says "going on after step 3"
same "$dir/one/adapter_model.safetensors" "$dir/half/adapter_model.safetensors"

begin "bf16: resuming in other arithmetic is refused by name"
expect 1 train "$@" --out "$dir/half" --resume; says "compute"
expect 1 train "$@" --out "$dir/f32" --resume --compute bf16; says "compute"

begin "bf16: evaluation and gradients"
expect 0 eval --model "$model" --adapter "$dir/one" --data "$dir/rows.jsonl" --compute bf16 --json "$dir/e16"
expect 0 eval --model "$model" --adapter "$dir/one" --data "$dir/rows.jsonl" --json "$dir/e32"
differ "$dir/e16" "$dir/e32"
expect 0 gradients --model "$model" --adapter "$dir/one" --data "$dir/rows.jsonl" --compute bf16 --out "$dir/g16"
expect 0 gradients --model "$model" --adapter "$dir/one" --data "$dir/rows.jsonl" --out "$dir/g32"
differ "$dir/g16" "$dir/g32"

begin "bf16: 12 steps of SmolLM2 beside f32"
if [ -f "$LORA_MODEL" ]; then
    awk 'BEGIN { for (i = 0; i < 48; i++) printf "{\"prompt\":\"Count on from %d.\",\"completion\":\"%d, %d, %d\"}\n", i, i + 1, i + 2, i + 3 }' >"$dir/count.jsonl"
    for how in f32 bf16; do
        expect 0 train --model "$LORA_MODEL" --data "$dir/count.jsonl" --out "$dir/real-$how" --lora-r 8 --learning-rate 1e-3 \
            --batch-size 4 --max-steps 12 --seed 1 --compute $how
    done
    near "$dir/real-bf16" "$dir/real-f32"
    differ "$dir/real-bf16/adapter_model.safetensors" "$dir/real-f32/adapter_model.safetensors"
else
    skip "LORA_MODEL names no model file"
fi

finish
