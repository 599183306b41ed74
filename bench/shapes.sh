#!/bin/sh
# Training over NF4 with double quantisation: the most memory that it takes, on the shapes of real models with
# random weights, and on SmolLM2. Rank 16 on all linear layers, one row of 512 tokens a step, activations checkpointed,
# embeddings and head bf16. Fails where the peak is above its bound.
#
#   bench/shapes.sh [tinyllama] [llama-2-7b] [smollm2]     (default: tinyllama smollm2)
#
# llama-2-7b needs 18 GB of disk for a while and some minutes a step. LORA: the program; WORK: a folder for
# the models; STEPS: how many; LORA_MODEL: SmolLM2's GGUF file (default: what `make model` fetched).
set -e
here=$(cd "$(dirname "$0")" && pwd)
lora=${LORA:-$here/../lora}
work=${WORK:-$here/../build/bench/shapes}
steps=${STEPS:-3}
model=${LORA_MODEL:-$here/../model/SmolLM2-135M-Instruct.Q4_1.gguf}
failed=
mkdir -p "$work"

# config.json: hidden, feed-forward, layers, heads, key heads, positions. Numbers from the models' own files.
config() {
    cat << END
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 32000,
 "hidden_size": $1, "intermediate_size": $2, "num_hidden_layers": $3, "num_attention_heads": $4,
 "num_key_value_heads": $5, "max_position_embeddings": $6, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
 "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16"}
END
}

# Random weights in bf16, quantised; the first file goes as soon as the second is there.
make_model() {      # NAME CONFIG...
    name=$1
    shift
    [ -e "$work/$name-nf4/config.json" ] && return
    config "$@" > "$work/$name.json"
    rm -rf "$work/$name"        # of a run that was stopped
    "$lora" init --config "$work/$name.json" --out "$work/$name" --dtype bf16
    "$here/measure.py" "$lora" quantize --model "$work/$name" --out "$work/$name-nf4" --quant-type nf4 --double-quant > "$work/$name.errors"
    rm -r "$work/$name"
}

# STEPS rows of 512 ids, all different, every one a target.
rows() {
    awk -v rows="$steps" 'BEGIN {
        for (r = 0; r < rows; r++) {
            printf "{\"input_ids\":["
            for (i = 0; i < 512; i++) printf "%s%d", i ? "," : "", 3 + (r * 512 + i) * 7919 % 31000
            print "]}"
        }
    }'
}

train() {       # NAME MB OPTION...: a few steps, the peak under MB
    name=$1 most=$2
    shift 2
    echo "$name: at most $most MB"
    set -- "$@" --data "$work/rows.jsonl" --batch-size 1 --max-steps "$steps" --gradient-checkpointing on
    "$lora" plan "$@"
    rm -rf "$work/run"
    "$here/measure.py" --most "$most" "$lora" train "$@" --out "$work/run" --eval-steps no --save-steps no 2> "$work/$name.log" || failed=yes
    cat "$work/run/metrics.jsonl"
    tail -n 1 "$work/$name.log"
}

rows > "$work/rows.jsonl"
for name in ${*:-tinyllama smollm2}; do
    case $name in
    tinyllama)
        make_model tinyllama 2048 5632 22 32 4 2048
        train tinyllama 1300 --model "$work/tinyllama-nf4" ;;
    llama-2-7b)
        make_model llama-2-7b 4096 11008 32 32 32 4096
        train llama-2-7b 5500 --model "$work/llama-2-7b-nf4" ;;
    smollm2)            # Transformers and bitsandbytes take 3,360 MB: 0.12 of that
        train smollm2 403 --model "$model" --load-in-4bit --quant-type nf4 --double-quant ;;
    *)
        echo "$name: expected tinyllama, llama-2-7b or smollm2" >&2
        exit 2 ;;
    esac
done
[ -z "$failed" ]
