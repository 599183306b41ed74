#!/bin/sh
# Many prompts at a time, where they do not go through the model at once: what all begin with is read in parts, the prompts of a
# batch in several passes. Each answer is the one that its prompt alone gets.
. test/checks.sh
. test/bytes.sh
cat >"$dir/config.json" <<'END'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "vocab_size": 258,
 "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
 "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
 "hidden_act": "silu", "initializer_range": 0.3}
END
expect 0 init --config "$dir/config.json" --out "$dir/m" --seed 5
tokenizer >"$dir/m/tokenizer.json"
# answers FILE SLOTS: predictions of rows of "prompt", so many at a time
answers() {
    expect 0 eval --model "$dir/m" --backend ref --data "$1" --task generate --max-new-tokens 6 --batch-size "$2" --predictions "$dir/p$2"
}
# alone FILE: the same from each prompt by itself; a row alone shares nothing
alone() {
    : >"$dir/alone"
    while read -r line; do
        printf '%s\n' "$line" >"$dir/row"
        expect 0 eval --model "$dir/m" --backend ref --data "$dir/row" --task generate --max-new-tokens 6 --predictions "$dir/one"
        sed 's/^{"row":0,//' "$dir/one" >>"$dir/alone"
    done <"$1"
}
as_alone() { checked; sed 's/^{"row":[0-9]*,//' "$dir/p$1" | cmp -s - "$dir/alone" || { wrong "$1 at a time: other answers"; head -n 3 "$dir/p$1" "$dir/alone"; }; }

begin "a long common beginning is read in parts"
awk 'BEGIN { for (i = 0; i < 100; i++) s = s " " i % 7; for (i = 0; i < 4; i++) print "{\"prompt\":\"" s " row " substr("aK7~", i + 1, 1) "\",\"completion\":\"x\"}" }' >"$dir/rows"
alone "$dir/rows"
for n in 1 3; do answers "$dir/rows" $n; as_alone $n; done
echo '{"prompt":" 0 1 2 3 another","completion":"x"}' >>"$dir/rows"       # begins like the others, and not for as long
alone "$dir/rows"; answers "$dir/rows" 2; as_alone 2
[ "$(sed 's/.*"prediction"//' "$dir/alone" | sort -u | grep -c .)" -gt 1 ] || wrong "all answers are the same: nothing is seen"

begin "a batch whose prompts take several passes"
awk 'BEGIN { for (i = 0; i < 12; i++) { s = ""; for (k = 0; k < 20 + 5 * i; k++) s = s sprintf("%c", 97 + (i + k * k) % 26); print "{\"prompt\":\"" s "\",\"completion\":\"x\"}" } }' >"$dir/rows"
alone "$dir/rows"
for n in 5 12; do answers "$dir/rows" $n; as_alone $n; done
finish
