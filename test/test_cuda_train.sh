#!/bin/sh
# `lora train` over the emulated CUDA kernels: 20 steps beside ref's, a run in two parts, and checkpoints from the CPU and back.
. test/checks.sh
so=$(dirname "$LORA")/test/cuda_emulated.so
if [ ! -e "$so" ] || [ -n "$EXE" ]; then
    name="training over the emulated CUDA kernels"
    if [ -n "$EXE" ]; then skip "too slow under an emulator"; else skip "this build has no emulator of CUDA"; fi
    finish; exit
fi
tiny_config 32 2 48 >"$dir/config.json"
tiny_rows >"$dir/rows.jsonl"
"$LORA" init --config "$dir/config.json" --out "$dir/model" --seed 3 >/dev/null 2>&1

# train BACKEND DIR [WORDS]
train() {
    b=$1; to=$2; shift 2
    "$LORA" train --model "$dir/model" --data "$dir/rows.jsonl" --load-in-4bit --lora-r 4 --learning-rate 0.01 --batch-size 4 \
        --save-steps 5 --max-steps 20 --backend "$b" --out "$dir/$to" "$@" >"$dir/out" 2>"$dir/log" ||
        { wrong "lora train --backend $b $*"; tail -n 3 "$dir/log"; }
}
# part FROM DIR: what there is of FROM after 10 of its 20 steps, as DIR.
part() { cp -r "$dir/$1" "$dir/$2"; rm -rf "$dir/$2/checkpoint-15" "$dir/$2/checkpoint-20"; }
close() { same_losses "$dir/$1" "$dir/$2" 20 1e-4; }
same() { checked; cmp "$dir/$1/adapter_model.safetensors" "$dir/$2/adapter_model.safetensors" || wrong "other bytes: $1 and $2"; }

begin "20 steps beside ref's"
train ref cpu
train "$so" gpu
close cpu gpu
end
begin "10 steps and 10 more are 20"
part gpu parts
train "$so" parts --resume
same gpu parts
end
begin "a checkpoint of the CPU goes on over the kernels, and theirs on the CPU"
part cpu there
train "$so" there --resume
close cpu there
part gpu back
train ref back --resume
close gpu back
finish
