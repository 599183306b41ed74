#!/bin/sh
# `make test-cuda`: the backend cuda on a GPU. Every operation in both computes against the double reference, whole models and
# 20 steps beside the CPU, a run of the program there and back, then compute-sanitizer over whole models.
. test/checks.sh
build=$(dirname "$LORA")
so=$build/liblora_cuda.so

# counted NAME COMMAND...: a command that ends with a count of tests.
counted() {
    name=$1; shift
    "$@" >"$dir/out" 2>&1
    last=$(tail -n 1 "$dir/out" | sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p')
    [ -n "$last" ] || { tail -n 5 "$dir/out"; last="0 1 0"; }
    set -- $last
    grep -v '^ok ' "$dir/out"
    [ "$2" = 0 ] && echo "ok   $name: $1 tests" || echo "FAIL $name"
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3)) name=
}
expect() {
    checked
    want=$1; shift
    "$@" >"$dir/out" 2>"$dir/log"
    code=$?
    [ "$code" = "$want" ] || { wrong "$*: exit $code, not $want"; tail -n 12 "$dir/out"; tail -n 5 "$dir/log"; }
}

what="code for sm_80 and sm_90"
if [ ! -e "$so" ]; then name=$what; skip "no nvcc here: liblora_cuda.so is not built"
else
    begin "$what"
    for arch in sm_80 sm_90; do checked; grep -aq -e "-arch $arch" "$so" || wrong "no code for $arch"; done
    end
fi

what="the backend cuda"
why=$("$LORA" backends | sed -n 's/^cuda  *not usable //p')
if [ -n "$why" ]; then
    case $why in
    *": not built: "* | *": built, but: "*) name=$what; skip "$why" ;;
    *) begin "$what"; wrong "$why"; end ;;
    esac
    finish; exit
fi
"$LORA" backends | grep -A 1 '^cuda'

for compute in f32 bf16; do
    begin "every operation against the double reference, $compute"
    expect 0 "$LORA" verify --backend cuda --compute $compute
    cat "$dir/out"
    end
done
counted "whole models, 20 steps, beside the CPU" "$build/test/test_whole" "$so"

begin "training, resumed on the CPU and on the GPU again; evaluation; generation"
train() {       # BACKEND DIR WORDS...
    b=$1; to=$2; shift 2
    expect 0 "$LORA" train --model data/model --data data/tickets/train.jsonl --load-in-4bit --learning-rate 1e-3 --no-shuffle --save-steps 4 \
        --batch-size 8 --backend $b --out "$dir/$to" "$@"
}
train cuda whole --max-steps 12
train cuda again --max-steps 12
cmp "$dir/whole/adapter_model.safetensors" "$dir/again/adapter_model.safetensors" || wrong "other bytes a second time"
train auto cpu --max-steps 12
rm -rf "$dir/parts"; cp -r "$dir/cpu" "$dir/parts"; rm -rf "$dir/parts/checkpoint-8" "$dir/parts/checkpoint-12"
train cuda parts --max-steps 12 --resume
for run in whole parts; do same_losses "$dir/cpu" "$dir/$run" 12 1e-4; done
for b in auto cuda; do
    expect 0 "$LORA" eval --model data/model --adapter "$dir/whole" --data data/tickets/test.jsonl --task classify --backend $b --json "$dir/$b.json"
    expect 0 "$LORA" generate --model data/model --adapter "$dir/whole" --raw --prompt "The printer" --max-new-tokens 24 --backend $b
    cp "$dir/out" "$dir/$b.text"
done
accuracy() { sed -n 's/.*"accuracy": *\([0-9.e-]*\).*/\1/p' "$dir/$1.json" | head -n 1; }
awk -v a="$(accuracy auto)" -v b="$(accuracy cuda)" 'BEGIN { d = a - b; exit !(a > 0 && d * d <= 4e-4) }' || wrong "accuracy $(accuracy auto), on the GPU $(accuracy cuda)"
cmp "$dir/auto.text" "$dir/cuda.text" || wrong "another text"
end

for tool in memcheck racecheck initcheck; do
    what="compute-sanitizer, $tool"
    if ! command -v compute-sanitizer >/dev/null; then name=$what; skip "no compute-sanitizer here"; continue; fi
    begin "$what"
    expect 0 compute-sanitizer --tool $tool --error-exitcode 9 "$build/test/test_whole" "$so" 3
    tail -n 3 "$dir/out"
    end
done
finish
