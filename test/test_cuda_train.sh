#!/bin/sh
# `lora train` over the emulated CUDA kernels: 20 steps beside ref's, a run in two parts, and checkpoints from the CPU and back.
. test/checks.sh
so=$(dirname "$LORA")/test/cuda_emulated.so
if [ ! -e "$so" ] || [ -n "$EXE" ]; then
    name="training over the emulated CUDA kernels"
    if [ -n "$EXE" ]; then skip "too slow under an emulator"; else skip "this build has no emulator of CUDA"; fi
    echo "$passed passed, $failed failed, $skipped skipped"
    exit 0
fi
cat >"$dir/config.json" <<'JSON'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "vocab_size": 97,
 "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
 "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
 "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.1}
JSON
for i in 1 2 3 4 5 6 7 8; do echo "{\"input_ids\":[1,$i,9,1$i,2],\"labels\":[-100,$i,9,1$i,2]}"; done >"$dir/rows.jsonl"
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
losses() { sed -n 's/.*"loss":\([^,]*\),.*/\1/p' "$dir/$1/metrics.jsonl"; }
close() {
    losses "$1" >"$dir/l1"; losses "$2" >"$dir/l2"
    paste -d' ' "$dir/l1" "$dir/l2" | awk '{ d = $1 - $2; if (!(d * d <= 1e-8 * $1 * $1)) exit 1; n++ } END { exit n != 20 }' ||
        { wrong "other losses: $1 and $2"; paste "$dir/l1" "$dir/l2"; }
}
same() { cmp "$dir/$1/adapter_model.safetensors" "$dir/$2/adapter_model.safetensors" || wrong "other bytes: $1 and $2"; }

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
end
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
