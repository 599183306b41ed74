# What test scripts share: the program, a folder that goes away, tests that begin and end, and their counts.
LORA=${LORA:-build/lora}
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0 skipped=0 name= bad=0 checks=0

begin() { end; name=$1 bad=0 checks=0; }
checked() { checks=$((checks + 1)); }        # every check says that it was made, whatever it found: a test without any fails
end() {
    [ -n "$name" ] || return 0
    [ "$checks" != 0 ] || wrong "nothing was checked"
    if [ "$bad" = 0 ]; then passed=$((passed + 1)); echo "ok   $name"
    else failed=$((failed + 1)); echo "FAIL $name"; fi
    name=
}
skip() { skipped=$((skipped + 1)); echo "skip $name: $1"; name=; }
wrong() {                                   # outside a test, where all of them stand on what is made there, it counts as one
    bad=$((bad + 1)); echo "  $*"
    [ -n "$name" ] || { failed=$((failed + 1)); echo "FAIL before or between the tests"; }
}
result() { name=$1 bad=$2 checks=1; end; }            # NAME STATUS: a test that is one command
finish() {                                  # a script's last line
    end
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ]
}

lora() { $EXE "$LORA" "$@"; }
# expect CODE WORDS...: the program ends with this code; its results are in $dir/out, its messages in $dir/log
expect() {
    checked
    want=$1; shift
    lora "$@" >"$dir/out" 2>"$dir/log" </dev/null
    code=$?
    [ "$code" = "$want" ] || { wrong "lora $*: exit $code, not $want"; tail -n 3 "$dir/out"; tail -n 3 "$dir/log"; }
}
says() { checked; grep -q -e "$1" "$dir/log" || { wrong "it does not say: $1"; tail -n 3 "$dir/log"; }; }
same() { checked; cmp -s "$1" "$2" || wrong "$1 and $2 differ"; }
differ() { checked; cmp -s "$1" "$2"; [ $? = 1 ] || wrong "$1 and $2 are the same, or one is not there"; }

# zero_adapter DIR LINEAR RANK IN OUT: an adapter whose A and B are zeros; $zero is its tensors' common name.
zero_adapter() {
    zero=base_model.model.$2.lora_ a=$((4 * $3 * $4)) b=$((4 * $3 * $5))
    h="{\"${zero}A.weight\":{\"dtype\":\"F32\",\"shape\":[$3,$4],\"data_offsets\":[0,$a]},"
    h="$h\"${zero}B.weight\":{\"dtype\":\"F32\",\"shape\":[$5,$3],\"data_offsets\":[$a,$((a + b))]}}"
    [ ${#h} -lt 256 ] || wrong "the header's length needs two bytes"
    mkdir "$1"
    echo "{\"peft_type\":\"LORA\",\"r\":$3,\"target_modules\":[\"$2\"]}" >"$1/adapter_config.json"
    { printf "\\$(printf %o ${#h})\\0\\0\\0\\0\\0\\0\\0%s" "$h" | head -c $((8 + ${#h})); head -c $((a + b)) /dev/zero; } >"$1/adapter_model.safetensors"
}

# A Llama's config.json: its width, layers, feed-forward width, and the deviation of its weights.
tiny_config() {
    cat <<END
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": $1, "vocab_size": 97,
 "num_hidden_layers": $2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": $3,
 "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
 "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "initializer_range": ${4:-0.1}}
END
}
tiny_rows() { for i in 1 2 3 4 5 6 7 8; do echo "{\"input_ids\":[1,$i,9,1$i,2],\"labels\":[-100,$i,9,1$i,2]}"; done; }
# Rows of 3 to 20 tokens that begin alike by threes; targets in the last part. $1 rows, seed $2
rows() {
    awk -v n="$1" -v x="$2" 'function r(m) { x = (x * 16807) % 2147483647; return x % m }
    BEGIN { for (i = 0; i < n; i++) {
        len = 3 + r(18); from = 1 + r(len - 1); ids = ""; labels = ""
        for (t = 0; t < len; t++) {
            v = t < 2 ? 5 + int(i / 3) % 7 : 3 + r(94)
            ids = ids (t ? "," : "") v; labels = labels (t ? "," : "") (t < from ? -100 : v)
        }
        print "{\"input_ids\":[" ids "],\"labels\":[" labels "]}" } }'
}
losses() { sed -n 's/.*"loss":\([^,]*\),.*/\1/p' "$1/metrics.jsonl"; }
# same_losses RUN RUN N BOUND: of N steps each, no farther apart than that part of them
same_losses() {
    checked
    losses "$1" >"$dir/l1"; losses "$2" >"$dir/l2"
    paste -d' ' "$dir/l1" "$dir/l2" | awk -v steps="$3" -v e="$4" '{ d = $1 - $2; if (!($1 > 0 && $2 > 0 && d * d <= e * e * $1 * $1)) exit 1; n++ }
        END { exit n != steps }' || { wrong "other losses: $1 and $2"; paste "$dir/l1" "$dir/l2"; }
}
