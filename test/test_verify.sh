#!/bin/sh
# `lora verify`: right tables pass, each planted fault is found, a shared object can train, the cases come as files.
. test/checks.sh
build=$(dirname "$LORA")
says() { checked; grep -q -e "$1" "$dir/out" "$dir/log" || { wrong "it does not say: $1"; tail -n 3 "$dir/out"; tail -n 3 "$dir/log"; }; }

begin "the table that auto takes: every operation, within its bounds"
if [ -n "$EXE" ]; then skip "too slow under an emulator: test_kernels has them"
else
expect 0 verify
[ "$(grep -c ' 0 .* % ' "$dir/out")" -ge 25 ] || wrong "operations are missing"
says "^[1-9][0-9][0-9][0-9] cases, 0 failed"
fi

begin "figures as JSON; one operation; an unknown one"
expect 0 verify --backend ref --op attention --json "$dir/figures.json"
grep -q '"op":"attention","failures":\[\],"cases":[1-9]' "$dir/figures.json" || wrong "$(cat "$dir/figures.json")"
expect 2 verify --op nonsense
says "expected an operation of kernels.h"

begin "the example: one operation, one type; the rest is filled"
expect 0 verify --backend "$build/docs/backend.so" --op matmul
grep -q '^matmul  *[0-9]* *[1-9][0-9]* *0 ' "$dir/out" || wrong "$(grep ^matmul "$dir/out")"
expect 0 verify --backend "$build/docs/backend.so" --op rmsnorm

begin "the example for a GPU, over the emulator: it reads what the example in C reads"
if [ -n "$EXE" ]; then skip "too slow under an emulator"
elif [ -e "$build/test/backend_emulated.so" ]; then
    expect 0 verify --backend "$build/test/backend_emulated.so" --op matmul
    cut -c1-35 "$dir/out" | grep '^matmul ' >"$dir/gpu"
    expect 0 verify --backend "$build/docs/backend.so" --op matmul
    cut -c1-35 "$dir/out" | grep '^matmul ' | cmp -s - "$dir/gpu" || wrong "not as many cases as the example in C reads: $(cat "$dir/gpu")"
else
    skip "this machine has no emulator"
fi

tiny_config 32 2 48 >"$dir/config.json"
tiny_rows >"$dir/rows.jsonl"
begin "it trains, with the losses of other backends"
expect 0 init --config "$dir/config.json" --out "$dir/model" --seed 3
others=$(ls "$build/docs/backend.so" "$build/test/wrong_own.so" "$build/test/backend_emulated.so" 2>/dev/null)
for b in ref $others; do
    expect 0 train --model "$dir/model" --data "$dir/rows.jsonl" --lora-r 4 --learning-rate 0.01 --max-steps 6 --batch-size 4 \
        --backend "$b" --out "$dir/run-$(basename "$b" .so)"
done
for b in $others; do same_losses "$dir/run-ref" "$dir/run-$(basename "$b" .so)" 6 2e-6; done

begin "what a backend opens is there for verify and bench too; its scratch memory is for the tables below as well"
[ -n "$EXE" ] || { expect 0 verify --backend "$build/test/wrong_own.so" --op matmul_dx; says "^matmul_dx .* 0  "; }
expect 0 bench --backend "$build/test/wrong_own.so" --dtype f32 --rounds 1 --tokens 16 --threads 2

if [ -n "$EXE" ]; then
    begin "planted faults in shared objects"; skip "too slow under an emulator"
    begin "products of tables with memory of their own, case by case"; skip "too slow under an emulator"
else
for fault in zeros sign row transposed nan_ past added; do
    begin "a product with a planted fault is rejected: $fault"
    expect 1 verify --backend "$build/test/wrong_$fault.so" --op matmul
    says "matmul failed: N .*seed [0-9]"
    says "the kernels are wrong: example: expected every case within its bound, found [1-9]"
done
fi

begin "what is no backend of this version"
expect 1 verify --backend "$build/test/wrong_abi.so"
says "not a table of kernels for this version"
expect 1 verify --backend "$dir/rows.jsonl"
says "expected a shared object that exports lora_kernels()"
expect 2 verify --dump "$dir/none" --backend ref
expect 2 verify --backend backend.so
says "a path has a / in it: ./backend.so"

own="$build/test/own.so"
begin "a table with its own memory: the weights of all types are copied there, and it can say that something failed"
products="matmul linear_dx"; [ -z "$EXE" ] || products=
for op in embed $products rope; do expect 0 verify --backend "$own" --op $op; done
grep -q '^rope  *[0-9]* *0 *0 ' "$dir/out" || wrong "$(cat "$dir/out")"
expect 1 verify --backend "$build/test/own_without_rope.so"
says "expected every entry in a table with memory of its own, found no rope"
expect 1 verify --backend "$build/test/own_over.so"
says "expected no table below one with memory of its own, found ref"
expect 1 verify --backend "$build/test/own_under.so"
says "expected tables over the host's memory below it, found own"
OWN_SHUT=1 expect 1 verify --backend "$own" --op rope
says "cannot start the backend: own"
OWN_FAILS=20 expect 1 verify --backend "$own" --op matmul
says "failed: .*: the launch of product 20"

begin "it trains over each kind of base, to the same bytes, plans its memory, and stops where that is too small"
for base in "" "--load-in-4bit --double-quant" "--load-in-4bit --quant-type fp4 --optim adamw8bit" "--load-in-8bit" "--method full"; do
    rank="--lora-r 4"; [ "$base" = "--method full" ] && rank=
    for b in ref "$own"; do
        expect 0 train --model "$dir/model" --data "$dir/rows.jsonl" $rank $base --learning-rate 0.01 --max-steps 3 --batch-size 4 \
            --backend "$b" --overwrite --out "$dir/run-$(basename "$b" .so)"
    done
    weights=adapter_model.safetensors; [ -z "$rank" ] && weights=model.safetensors
    cmp "$dir/run-ref/$weights" "$dir/run-own/$weights" || wrong "other weights: $base"
done
expect 0 init --config "$dir/config.json" --out "$dir/half" --dtype bf16
base_bytes() { awk '/copies of base/ { print $(NF - 2) }' "$dir/out"; }
expect 0 plan --model "$dir/half" --backend "$own" --load-in-4bit --double-quant --max-length 64 --lora-r 4
says "on the device: all of these"
says "free on the device  *1073741824 "
says "max-memory, on the device  *805306368 "
base=$(base_bytes)
mkdir -p "$dir/shape" && cp "$dir/half/config.json" "$dir/shape"
expect 0 plan --model "$dir/shape" --backend "$own" --load-in-4bit --double-quant --max-length 64 --lora-r 4
[ "$base" -gt 10000 ] && [ "$base" = "$(base_bytes)" ] || wrong "copies of the base: $base planned, of its shape alone $(base_bytes)"
OWN_MEMORY=50000 expect 1 train --model "$dir/model" --data "$dir/rows.jsonl" --backend "$own" --max-memory 1G --overwrite --out "$dir/run-own"
says "not enough memory for the plan: own: .*: expected at most 0.050 MB"
says "hint: .*--load-in-4bit.* or a larger device"
OWN_FAILS=40 expect 1 train --model "$dir/model" --data "$dir/rows.jsonl" --backend "$own" --overwrite --out "$dir/run-own"
says "the backend failed: own: found the launch of product 40"

begin "the bench over it: products, a step, operation by operation, generation; JSON alone on stdout; one thing at a time"
expect 0 bench --model "$dir/model" --backend "$own" --dtype nf4-dq,q8_0 --rounds 1 --tokens 16 --row-tokens 8 --profile --json -
says "copying in its memory"
says "^matmul  "
grep -q '^{"backend":"own".*"profile":\[{"operation":.*}$' "$dir/out" && [ "$(wc -l <"$dir/out")" = 1 ] || { wrong "no JSON on stdout"; cat "$dir/out"; }
expect 0 bench --model "$dir/model" --backend "$own" --generate --rounds 1 --prompt-tokens 8 --new-tokens 4 --together 2 --json "$dir/bench.json"
grep -q '"generation":\[{"weights"' "$dir/bench.json" || wrong "$(cat "$dir/bench.json")"
expect 2 bench --step --generate
says "no --step or --profile"

begin "cuda is listed, and where it is not usable it says why"
expect 0 backends
says "^cuda  *\(not \)*usable"
grep -q '^cuda  *usable' "$dir/out" || {
    expect 1 verify --backend cuda
    says "^lora: .*: liblora_cuda.so: "
}

begin "the cases as files"
expect 0 verify --op rmsnorm --dump "$dir/cases"
[ -s "$dir/cases/rmsnorm.safetensors" ] && grep -q '"rmsnorm/0000":{"case":"N' "$dir/cases/cases.json" || wrong "no cases"
finish
