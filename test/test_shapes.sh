# Shapes of real models as config.json files, without weights: `lora plan` and `lora inspect` work from them,
# with the published number of parameters. A few are written here; with the shared material thirteen more.
LC_ALL=C
export LC_ALL
. test/checks.sh
shared=${LORA_SHARED:-../shared}
wrong() { echo "  $*"; return 1; }

# A shape a line: model C F L NH NKV HS V positions eps theta tied window family rope-factor parameters
# (window and rope-factor 0: none). Families write config.json in their own way, as the hub has them.
write_config() {
    awk -v d="$dir" '
    function key(name, value) { s = s (s ? ",\n " : "") "\"" name "\": " value }
    {
        s = ""
        key("model_type", "\"" $14 "\""); key("hidden_size", $2); key("intermediate_size", $3); key("num_hidden_layers", $4)
        key("num_attention_heads", $5); key("num_key_value_heads", $6); key("vocab_size", $8); key("max_position_embeddings", $9)
        key("rms_norm_eps", $10); key("rope_theta", $11 ".0"); key("tie_word_embeddings", $12 ? "true" : "false")
        key("hidden_act", "\"silu\""); key("torch_dtype", "\"bfloat16\""); key("initializer_range", "0.02")
        key("attention_dropout", "0.0"); key("use_cache", "true"); key("bos_token_id", 1); key("eos_token_id", 2)
        if ($14 == "llama") { key("architectures", "[\"LlamaForCausalLM\"]"); key("attention_bias", "false"); key("mlp_bias", "false"); key("pretraining_tp", 1) }
        if ($14 == "mistral") { key("architectures", "[\"MistralForCausalLM\"]"); key("sliding_window", $13 ? $13 : "null") }
        if ($14 == "qwen2") { key("architectures", "[\"Qwen2ForCausalLM\"]"); key("sliding_window", $9); key("use_sliding_window", "false"); key("max_window_layers", $4) }
        if ($14 == "qwen3") { key("architectures", "[\"Qwen3ForCausalLM\"]"); key("sliding_window", "null"); key("use_sliding_window", "false")
            key("max_window_layers", $4); key("attention_bias", "false") }
        if ($14 == "phi3") { key("architectures", "[\"Phi3ForCausalLM\"]"); key("sliding_window", $13 ? $13 : "null"); key("attention_bias", "false")
            key("original_max_position_embeddings", 4096); key("rope_scaling", "null"); key("embd_pdrop", "0.0"); key("resid_pdrop", "0.0"); key("pad_token_id", 32000) }
        if ($14 == "qwen3" || $7 * $5 != $2) key("head_dim", $7)
        if ($14 == "llama" && !$15) key("rope_scaling", "null")
        if ($15) key("rope_scaling", "{\"rope_type\": \"llama3\", \"factor\": " $15 ", \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192}")
        print "{" s "}" >(d "/config.json")
    }'
}

# What a shape needs, by its own arithmetic: adapters of rank 16 on the seven linears of each layer, four where
# q, k and v are one matrix and gate and up another.
adapter_parameters() {
    awk '{ C = $2; F = $3; Q = $5 * $7; K = $6 * $7 }
        $14 == "phi3" { print $4 * 16 * (C + Q + 2 * K + Q + C + C + 2 * F + F + C); next }
        { print $4 * 16 * (C + Q + 2 * (C + K) + Q + C + 2 * (C + F) + F + C) }'
}

check() {       # LINE: plan and inspect agree with it
    set -- $1
    printf '%s\n' "$*" | write_config
    trained=$(printf '%s\n' "$*" | adapter_parameters)
    $EXE "$LORA" plan --model "$dir" --max-length 32 --batch-size 1 --max-memory 1T >"$dir/plan" 2>"$dir/error" || { wrong "$1: exit $?"; cat "$dir/error"; return 1; }
    grep -q "^parameters: ${16}; $trained to train" "$dir/plan" || { wrong "$1: not ${16} parameters, $trained trained"; head -n 1 "$dir/plan"; return 1; }
    awk -v n="${16}" -v trained="$trained" '/trained weights/ { w = $3 } /moments/ { m = $5 } /mapped from the file/ { b = $7 }
        /arena/ { a = $5 } /copies of base/ { c = $5 }
        END { exit !(w == 4 * trained && m == 2 * w && b <= 2 * n && b > 1.99 * n && a > c + 2 * w + m) }' "$dir/plan" \
        || { wrong "$1: not plausible"; cat "$dir/plan"; return 1; }
    $EXE "$LORA" inspect --model "$dir" >"$dir/list" 2>"$dir/error" || { wrong "$1: inspect: exit $?"; cat "$dir/error"; return 1; }
    tail -n 1 "$dir/list" | grep -q ", ${16} parameters, $((2 * ${16})) bytes$" || { wrong "$1: inspect"; tail -n 1 "$dir/list"; return 1; }
}

bad=0
while read -r line; do check "$line" || bad=1; done <<'END'
Llama-2-7b 4096 11008 32 32 32 128 32000 4096 1e-05 10000 0 0 llama 0 6738415616
Llama-3.2-1B 2048 8192 16 32 8 64 128256 131072 1e-05 500000 1 0 llama 32.0 1235814400
Mistral-7B-v0.1 4096 14336 32 32 8 128 32000 4096 1e-05 10000 0 4096 mistral 0 7241732096
Qwen2.5-0.5B 896 4864 24 14 2 64 151936 32768 1e-06 1000000 1 0 qwen2 0 494032768
Phi-3-mini-4k 3072 8192 32 32 32 96 32064 4096 1e-05 10000 0 2047 phi3 0 3821079552
Qwen3-0.6B 1024 3072 28 16 8 128 151936 40960 1e-06 1000000 1 0 qwen3 0 596049920
END
result "shapes of six families: parameters and plan from config.json alone" $bad

grep -q "no weights: shapes from the configuration" "$dir/list" && grep -qF "BF16  [1024, 2048]  4194304 bytes  model.layers.27.self_attn.o_proj.weight" "$dir/list" &&
    $EXE "$LORA" inspect --model "$dir/config.json" --json - 2>"$dir/error" | grep -q '"shapes_only": true' &&
    ! $EXE "$LORA" eval --model "$dir" --data "$dir/list" >"$dir/out" 2>"$dir/error" && grep -q "^lora: .*safetensors" "$dir/error"
result "inspect lists the shapes; a job that needs weights says which file is missing" $?

if [ -r "$shared/vectors/model-configs/shapes.json" ]; then
    awk -F '[:,]' '
    function is(name) { return index($1, "\"" name "\"") }
    /^  \{/ { window = rope = 0 }
    is("model") { gsub(/[ "]/, "", $2); model = $2 }
    is("hidden_size") { C = $2 + 0 } is("intermediate_size") { F = $2 + 0 } is("num_hidden_layers") { L = $2 + 0 }
    is("num_attention_heads") { NH = $2 + 0 } is("num_key_value_heads") { NKV = $2 + 0 } is("head_dim") { HS = $2 + 0 }
    is("vocab_size") { V = $2 + 0 } is("max_position_embeddings") { P = $2 + 0 } is("rms_norm_eps") { eps = $2 } is("rope_theta") { theta = $2 + 0 }
    is("attention_bias_qkv") { bias = /true/ } is("qk_norm") { norm = /true/ } is("tie_word_embeddings") { tied = /true/ }
    is("parameters") { n = $2; gsub(/ /, "", n) } is("sliding_window") { window = $2 + 0 } is("factor") { rope = $2 }
    /^  \}/ { family = bias ? "qwen2" : norm ? "qwen3" : window ? "mistral" : "llama"
        print model, C, F, L, NH, NKV, HS, V, P, eps, theta, tied, window, family, rope, n }' \
        "$shared/vectors/model-configs/shapes.json" >"$dir/shapes"
    bad=0
    [ "$(wc -l <"$dir/shapes")" -ge 13 ] || { wrong "not thirteen shapes"; bad=1; }
    while read -r line; do check "$line" || bad=1; done <"$dir/shapes"
    result "the shapes of $(wc -l <"$dir/shapes") real models: parameters and plan from config.json alone" $bad
    $EXE "$LORA" plan --model "$shared/vectors/model-configs/llama-3.2-1b_config.json" --max-length 32 >"$dir/plan" 2>"$dir/error" && grep -q "^parameters: 1235814400;" "$dir/plan"
    result "Llama-3.2-1B's own config.json" $?
else
    name="shapes of real models"; skip "no ../shared"
fi

finish
