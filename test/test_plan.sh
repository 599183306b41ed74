#!/bin/sh
# The plan against what the system says: anonymous memory at its peak over whole steps, and sums.
. test/checks.sh
anonymous() { sed -n 's/^RssAnon:[^0-9]*\([0-9]*\) kB/\1/p' "/proc/$1/status" 2>/dev/null; }

# Why the peak says nothing here.
unseen=
[ -n "$EXE" ] || [ -z "$(anonymous $$)" ] && unseen="no RssAnon in /proc"
grep -q __asan_init "$LORA" && unseen="sanitizers have memory of their own"

# peak WORDS...: trains, and leaves the highest RssAnon in bytes in $most
peak() {
    most=0
    $EXE "$LORA" train "$@" --save-steps no --overwrite --out "$dir/run" >"$dir/out" 2>"$dir/log" &
    pid=$!
    while kill -0 $pid 2>/dev/null; do
        now=$(anonymous $pid)
        [ "${now:-0}" -gt "$most" ] && most=$now
        sleep 0.04
    done
    wait $pid || { tail -n 2 "$dir/log"; return 1; }
    most=$((most * 1024))
}
planned() { sed -n 's/^  peak: arena and heap *\([0-9]*\) .*/\1/p' "$dir/log"; }
# within 5 % or 8 MB, and no less than the arena and the base, so that something was seen
close_to() {
    awk -v plan="$1" -v seen="$2" 'BEGIN { d = plan - seen; if (d < 0) d = -d; m = 0.05 * seen; if (m < 8e6) m = 8e6
        printf "  planned %.1f MB, seen %.1f MB, %.2f of the bound\n", plan / 1e6, seen / 1e6, d / m; exit !(plan > 0 && seen > 0 && d <= m) }'
}

sums() {        # of the plan in $dir/log
    awk '!/ MB$/ || !/^  [^ ]/ { next } { bytes = $(NF - 2) }
        /copies of base/ || /trained weights/ || /gradients/ || /moments of/ || /activations/ || /workspace/ { arena += bytes }
        /quantised here/ || /a copy of what is trained/ || /tokenizer/ || /^  rows/ { heap += bytes }
        /arena: all/ { a = bytes } /heap: all/ { h = bytes } /peak:/ { p = bytes }
        END { exit !(a > 0 && h > 0 && arena == a && p == a + h && h - heap >= 0 && h - heap < 100000) }' "$dir/log" || { cat "$dir/log"; return 1; }
}

awk 'BEGIN { for (i = 0; i < 4; i++) { s = ""; for (t = 0; t < 256; t++) s = s (t ? "," : "") (3 + (t * 37 + i * 11) % 200); print "{\"input_ids\":[" s "]}" } }' >"$dir/rows"
for how in "" "--method full" "--gradient-checkpointing on --load-in-8bit"; do
    name="peak of the embedded model${how:+, $how}"
    if [ -n "$unseen" ]; then skip "$unseen"; continue; fi
    peak --model data/model --data "$dir/rows" --max-steps 2 --threads 2 $how && sums && close_to "$(planned)" "$most"
    result "$name" $?
done

name="peak of SmolLM2"
if [ -z "$LORA_MODEL" ] || [ ! -r "$LORA_MODEL" ]; then skip "LORA_MODEL names no model file"
elif [ -n "$unseen" ]; then skip "$unseen"
else
    for how in "" "--load-in-4bit --double-quant" "--load-in-4bit --double-quant --gradient-checkpointing on"; do
        peak --model "$LORA_MODEL" --data "$dir/rows" --batch-size 1 --max-steps 2 $how && sums && close_to "$(planned)" "$most"
        result "peak of SmolLM2${how:+, $how}" $?
    done
fi

# Two parts of a shape by its own arithmetic, and that a quantised base takes the room of the arena.
shape() { cat <<END
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": $1, "vocab_size": 32000, "num_hidden_layers": $2,
 "num_attention_heads": 32, "num_key_value_heads": $3, "intermediate_size": $4, "max_position_embeddings": 2048,
 "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false, "hidden_act": "silu"}
END
}
four_bit() {    # HIDDEN LAYERS KV-HEADS FEED-FORWARD PEAK-IN-MB
    shape "$1" "$2" "$3" "$4" >"$dir/config.json"
    $EXE "$LORA" plan --model "$dir/config.json" --load-in-4bit --double-quant --batch-size 1 --max-length 512 --gradient-checkpointing on \
        --max-memory 20G >"$dir/log" 2>"$dir/out" || { cat "$dir/out"; return 1; }
    sums && awk -v C="$1" -v L="$2" -v K="$3" -v F="$4" -v most="$5" '/in NF4: codes/ { codes = $(NF - 2) } /and their scales/ { scales = $(NF - 2) }
        /in BF16/ { plain = $(NF - 2) } /peak:/ { p = $(NF - 2) }
        END { n = L * (2 * C * C + 2 * C * K * C / 32 + 3 * C * F); bits = 8 * (codes + scales) / n
            exit !(codes == n / 2 && bits > 4.126 && bits < 4.128 && plain == 2 * 2 * 32000 * C && (p + plain) / 1e6 < most) }' "$dir/log" || { cat "$dir/log"; return 1; }
}
four_bit 2048 22 4 5632 1300
result "TinyLlama's shape in NF4 with double quantisation: 4.127 bits a weight, a run of 512 tokens in 1.3 GB" $?
four_bit 4096 32 32 11008 5500
result "Llama-2-7B's: in 5.5 GB" $?
$EXE "$LORA" plan --model data/model --max-memory 3M --load-in-8bit --data "$dir/rows" >"$dir/log" 2>"$dir/out" && grep -q "it does not fit" "$dir/log"
result "what the base takes is not there for the arena" $?

mkdir "$dir/alone" && cp data/model/config.json "$dir/alone" \
    && printf '{"input_ids":[5,6,7]}\n' >"$dir/ids" && $EXE "$LORA" plan --model "$dir/alone" --data "$dir/ids" >"$dir/log" 2>&1 \
    && cp data/model/tok* "$dir/alone" && $EXE "$LORA" plan --model "$dir/alone" --data "$dir/rows" >"$dir/log" 2>&1 && grep -q "^steps: " "$dir/log" \
    && ! $EXE "$LORA" train --model "$dir/alone" --data "$dir/ids" --out "$dir/none" >"$dir/log" 2>&1
result "a config.json is model enough with rows too, for ids without a tokenizer" $?

finish
