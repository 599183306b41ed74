#!/bin/sh
# Quantised bases through the program: what may be asked for, that every way to the same weights gives the
# same numbers, resuming, merging with its losses, and that nothing half-written is ever there.
. test/checks.sh
quiet() { checked; grep -q -e "$1" "$dir/log" && wrong "it says: $(grep -e "$1" "$dir/log")"; }
out() { checked; grep -q -e "$1" "$dir/out" || { wrong "not in the result: $1"; head -3 "$dir/out"; }; }
absent() { checked; [ -e "$1" ] && wrong "it is there: $1"; }
figure() { tr -d '\n' <"$2" | sed 's/.*"'"$1"'": *//; s/[],}].*//'; }
# holds 'EXPRESSION of a, b, c' A B C
holds() { checked; awk -v a="$2" -v b="$3" -v c="${4:-0}" "BEGIN { exit !(a != \"\" && b != \"\" && ($1)) }" || wrong "not $1: $2, $3, $4"; }

# A tiny model in F32 whose blocks end inside rows and whose last ones are short: 24 columns, and 24 x 36.
cat >"$dir/config.json" <<'END'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 24, "vocab_size": 97,
 "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 37,
 "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
 "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
END
rows() {    # $1 rows of ids, seed $2
    awk -v n="$1" -v x="$2" 'function r(m) { x = (x * 16807) % 2147483647; return x % m }
    BEGIN { for (i = 0; i < n; i++) {
        len = 3 + r(18); ids = ""
        for (t = 0; t < len; t++) ids = ids (t ? "," : "") (t ? (v = (3 * v + 1) % 91 + r(3)) : (v = r(91)))
        print "{\"input_ids\":[" ids "]}" } }'
}
rows 40 7 >"$dir/rows.jsonl"
rows 12 99 >"$dir/eval.jsonl"
model=$dir/model
lora init --config "$dir/config.json" --out "$model" --seed 3 2>"$dir/log" || { cat "$dir/log"; echo "0 passed, 1 failed, 0 skipped"; exit 1; }
loss() { lora eval --data "$dir/eval.jsonl" --json - "$@" 2>"$dir/log" >"$dir/loss"; figure loss "$dir/loss"; }

begin "what options contradict is wrong usage, by name"
expect 2 eval --model "$model" --data "$dir/eval.jsonl" --load-in-4bit --load-in-8bit; says "^lora: cannot use the option: --load-in-4bit, --load-in-8bit: "
expect 2 eval --model "$model" --data "$dir/eval.jsonl" --quant-type fp4; says "--quant-type: expected --load-in-4bit"
expect 2 eval --model "$model" --data "$dir/eval.jsonl" --load-in-8bit --double_quant; says "--double-quant: expected --load-in-4bit"
expect 2 eval --model "$model" --data "$dir/eval.jsonl" --load_in_8bit --block-size 64; says "--block-size: expected --load-in-4bit"
for n in 16 48 8192; do
    expect 2 plan --model "$model" --load-in-4bit --block-size $n; says "wrong value: --block-size: expected a power of two from 32 to 4096, found $n"
done
expect 2 train --model "$model" --data "$dir/rows.jsonl" --out "$dir/x" --method full --load-in-4bit; says "method full"; absent "$dir/x"
expect 2 quantize --model "$model" --out "$dir/x"; says "--quant-type are needed"
expect 2 quantize --model "$model" --out "$dir/x" --quant-type int8 --double-quant; says "--double-quant: expected a 4-bit type"
expect 2 quantize --model "$model" --out "$dir/x" --quant-type nf4 --load-in-4bit; says "load-in-4bit"
expect 2 init --config "$dir/config.json" --out "$dir/x" --block-size 64; says "go with --quant-type"
expect 2 merge --model "$model" --out "$dir/x" --base dequant; says "--base: expected a base that is quantised"
expect 2 merge --model "$model" --out "$dir/x" --max-loss 0.1; says "max-loss needs --data"
expect 2 bench --load-in-4bit; says "dtype says which types"
absent "$dir/x"
printf 'load_in_4bit: true\nbnb_4bit_quant_type: nf4\nbnb_4bit_use_double_quant: true\n' >"$dir/bnb"
expect 0 inspect --config "$dir/bnb" --model "$model"; says "quantising 14 linears: nf4 in blocks of 64, scales in 8 bits"

begin "quantize: every type, and a model that computes what --load-in-4bit computes"
for how in "nf4" "nf4 --double-quant" "fp4 --block-size 128" "fp4 --block-size 32 --double-quant" "int8"; do
    q=$dir/q-$(echo "$how" | tr -d ' -')
    case $how in int8) load=--load-in-8bit ;; *) load="--load-in-4bit --quant-type $how" ;; esac
    expect 0 quantize --model "$model" --out "$q" --quant-type $how --json "$dir/j"
    kind=${how%% *}
    bits=$(figure bits_per_weight "$dir/j")
    case $how in
    nf4) holds 'a > 4.49 && a < 4.53' "$bits" 0 ;; "nf4 --"*) holds 'a > 4.1 && a < 4.3' "$bits" 0 ;;
    "fp4 --block-size 128") holds 'a > 4.24 && a < 4.29' "$bits" 0 ;; int8) holds 'a > 8.9 && a < 9.5' "$bits" 0 ;;
    esac
    a=$(loss --model "$q"); quiet warning
    b=$(loss --model "$model" $load); says "quantising 14 linears: $kind"
    [ -n "$a" ] && [ "$a" = "$b" ] || wrong "$how: $a and $b"
    holds 'a != b' "$a" "$(loss --model "$model")"
done
expect 0 inspect --model "$dir/q-nf4doublequant"; out "^NF4 .*model.layers.1.mlp.down_proj.weight"; out "^NF4   14 tensors"

begin "quantize: what it refuses, and what a quantised base refuses"
q=$dir/q-nf4
expect 1 quantize --model "$q" --out "$dir/x" --quant-type nf4; says "quantised already: $q: found nf4 in blocks of 64"
mkdir "$dir/full"; echo mine >"$dir/full/file"
expect 1 quantize --model "$model" --out "$dir/full" --quant-type nf4; says "cannot write over other files: $dir/full"
expect 1 quantize --model "$model" --out "$model" --quant-type nf4; says "cannot write over other files"
[ "$(ls "$dir/full")" = file ] || wrong "files came into a directory that has others"
mkdir "$dir/empty"
expect 0 quantize --model "$model" --out "$dir/empty/" --quant-type nf4; same "$dir/empty/model.safetensors" "$q/model.safetensors"
absent "$dir/empty.unfinished"; absent "$dir/empty/.unfinished"
expect 2 eval --model "$q" --data "$dir/eval.jsonl" --load-in-8bit; says "load-in-8bit, $q: expected .* int8, .* found nf4"
expect 2 eval --model "$dir/q-int8" --data "$dir/eval.jsonl" --load-in-4bit; says "or as nf4 in blocks of 64, scales in f32, found int8"
expect 2 eval --model "$q" --data "$dir/eval.jsonl" --load-in-4bit --quant-type fp4; says "found nf4 in blocks of 64"
expect 2 eval --model "$q" --data "$dir/eval.jsonl" --load-in-4bit --double-quant; says "scales in 8 bits, found nf4 in blocks of 64, scales in f32"
expect 0 eval --model "$q" --data "$dir/eval.jsonl" --load-in-4bit; quiet quantising
expect 0 eval --model "$q" --data "$dir/eval.jsonl" --load-in-4bit --block-size 64 --quant-type nf4
expect 1 train --model "$q" --data "$dir/rows.jsonl" --out "$dir/x" --method full; says "found NF4"; absent "$dir/x/run.json"

begin "errors: nf4 below int4 below fp4 on normal weights; inspect shows the same"
cp -R "$model" "$dir/settings"; echo '{"temperature": 0.7}' >"$dir/settings/generation_config.json"
expect 0 quantize --model "$dir/settings" --out "$dir/e" --quant-type nf4 --json "$dir/j"
same "$dir/settings/generation_config.json" "$dir/e/generation_config.json"
out "^all .*e-0"
row() { tr -d '\n' <"$1" | sed 's/.*"errors": {"nf4": {"mean_square": \([^,]*\).*"fp4": {"mean_square": \([^,]*\).*"int8": {"mean_square": \([^,]*\).*"int4": {"mean_square": \([^,]*\).*/\1 \2 \3 \4/'; }
tr -d '\n' <"$dir/j" | sed 's/"tensors".*//' >"$dir/all"
set -- $(row "$dir/all")
# of normal numbers with variance 1 in blocks of 64: 0.00839, 0.01479, 0.01154; the short blocks here have less
for v in 1:$1:0.00839 2:$2:0.01479 4:$4:0.01154; do
    value=${v#*:}; holds 'a / 0.09 < b * 1.02 && a / 0.09 > b * 0.9' "${value%:*}" "${value#*:}"
done
holds 'a < b && b < c' "$1" "$4" "$2"
expect 0 inspect --model "$model" --quant-type nf4 --json "$dir/i"
tr -d '\n' <"$dir/i" | sed 's/.*"losses"//; s/"tensors".*//' >"$dir/all2"
[ "$(row "$dir/all2")" = "$*" ] || wrong "inspect: $(row "$dir/all2")"
expect 2 inspect --model "$dir/e" --quant-type nf4; says "not quantised yet"
expect 0 inspect --model "$dir/config.json" --load-in-4bit --json "$dir/i1"
expect 0 inspect --model "$model" --load-in-4bit --json "$dir/i2"
[ "$(figure NF4 "$dir/i1")" = "$(figure NF4 "$dir/i2")" ] || wrong "a shape's bytes are not the model's"

begin "init --quant-type is init, then quantize"
expect 0 init --config "$dir/config.json" --out "$dir/direct" --seed 3 --quant-type nf4
same "$dir/direct/model.safetensors" "$dir/q-nf4/model.safetensors"
same "$dir/direct/config.json" "$dir/q-nf4/config.json"

# 40 rows by 4: 10 steps.
set -- --data "$dir/rows.jsonl" --lora-r 4 --learning-rate 0.01 --batch-size 4 --epochs 1 --save-steps 5 --seed 5
begin "training over a base that is quantised while loading, and over its checkpoint: the same bytes"
expect 0 train --model "$model" --load-in-4bit --double-quant "$@" --out "$dir/a" --threads 1; says "quantised: .* bits a weight"
expect 0 train --model "$dir/q-nf4doublequant" "$@" --out "$dir/b" --threads 2
same "$dir/a/adapter_model.safetensors" "$dir/b/adapter_model.safetensors"
for run in a b; do
    grep -q '"base_quantization": {"quant_type": "nf4", "block_size": 64, "double_quant": true}' "$dir/$run/run.json" || wrong "$run/run.json"
done
expect 0 train --model "$model" "$@" --out "$dir/f32"; differ "$dir/a/adapter_model.safetensors" "$dir/f32/adapter_model.safetensors"
grep -q '"base_quantization": null' "$dir/f32/run.json" || wrong "f32/run.json"

begin "eval, generate and merge take the base's quantisation from run.json, unless told otherwise"
a=$(loss --model "$model" --adapter "$dir/a"); says "^base quantisation of the adapter: nf4 in blocks of 64, scales in 8 bits"; quiet warning
[ "$a" = "$(loss --model "$model" --adapter "$dir/a" --load-in-4bit --double-quant)" ] || wrong "not what it was trained over"
quiet "quantisation of the adapter"
[ "$a" = "$(loss --model "$dir/q-nf4doublequant" --adapter "$dir/a")" ] || wrong "not what the checkpoint gives"
quiet warning
holds 'a != b' "$a" "$(loss --model "$model" --adapter "$dir/a" --load-in-4bit false)"
says "warning: the adapter was trained over another base: nf4 in blocks of 64, scales in 8 bits; this one is not quantised"
quiet "other weights"
loss --model "$dir/q-nf4" --adapter "$dir/a" >"$dir/x1"; says "warning: the adapter was trained over another base: nf4 in blocks of 64, scales in 8 bits; this one is nf4 in blocks of 64, scales in f32"
rm -f "$dir/x1"

begin "--max-memory is for the base that was quantised here too, in eval as in train"
# the least that lets eval run
least() {
    low=0 high=30000000
    while [ $((high - low)) -gt 1 ]; do
        middle=$(((low + high) / 2))
        if lora eval --model "$model" --data "$dir/eval.jsonl" --max-memory $middle "$@" >/dev/null 2>"$dir/log"; then high=$middle
        else says "not enough memory"; low=$middle; fi
    done
    echo $high
}
plain=$(least) quantised=$(least --load-in-4bit)
expect 0 plan --model "$model" --load-in-4bit --data "$dir/eval.jsonl"
heap=$(sed -n 's/.*base weights, quantised here *\([0-9]*\) .*/\1/p' "$dir/out")
[ "${heap:-0}" -gt 0 ] && [ $((quantised - plain)) = "$heap" ] || wrong "$plain bytes for a plain base, $quantised for one of $heap bytes in the heap"

begin "resuming refuses another quantisation"
rm -r "$dir/a/checkpoint-10"
expect 0 train --model "$model" --load-in-4bit --double-quant "$@" --out "$dir/a" --resume; says "going on after step 5"
same "$dir/a/adapter_model.safetensors" "$dir/b/adapter_model.safetensors"
expect 1 train --model "$model" --load-in-4bit "$@" --out "$dir/a" --resume; says "quantisation of the base has changed"
expect 1 train --model "$model" "$@" --out "$dir/a" --resume; says "quantisation of the base has changed"
expect 1 train --model "$model" --load-in-8bit "$@" --out "$dir/f32" --resume; says "quantisation of the base has changed"

begin "merge: into the decoded weights, into the original ones, and quantised again, with their losses"
column() { awk -v k="$1" 'index($0, k) == 1 { print $(NF > 0 ? n : 0) }' n="$2" "$dir/out"; }
expect 0 merge --model "$model" --adapter "$dir/a" --out "$dir/m1" --data "$dir/eval.jsonl"; says "merging into the decoded weights"
base=$(column "adapter on the base" 5); merged=$(column "merged" 2); again=$(column "quantised again it would be" 6)
holds 'a - b < 2e-6 && b - a < 2e-6' "$base" "$a"
holds 'a - b < 2e-5 && b - a < 2e-5' "$base" "$merged"
holds 'a - b < 2e-6 && b - a < 2e-6' "$merged" "$(loss --model "$dir/m1")"
holds 'a != b' "$again" "$merged"
expect 0 merge --model "$model" --adapter "$dir/a" --base w16 --out "$dir/m2" --data "$dir/eval.jsonl"; says "merging into the original weights"
holds 'a - b > 1e-5 || b - a > 1e-5' "$(column merged 2)" "$base"
holds 'a - b < 2e-5 && b - a < 2e-5' "$(column merged 2)" "$(loss --model "$model" --adapter "$dir/a" --load-in-4bit=false)"
expect 0 merge --model "$model" --adapter "$dir/a" --out-quant nf4 --out "$dir/m3" --data "$dir/eval.jsonl"
holds 'a - b < 2e-6 && b - a < 2e-6' "$(column "merged and quantised again" 5)" "$again"
holds 'a - b < 2e-6 && b - a < 2e-6' "$again" "$(loss --model "$dir/m3")"
expect 0 inspect --model "$dir/m3"; out "^NF4   14 tensors"
ls "$dir/m3" | grep -q plain && wrong "the plain model was left there"
expect 0 merge --model "$dir/q-nf4doublequant" --adapter "$dir/a" --out "$dir/m4"; same "$dir/m4/model.safetensors" "$dir/m1/model.safetensors"
expect 2 merge --model "$dir/q-nf4doublequant" --adapter "$dir/a" --base w16 --out "$dir/m5"; says "found a quantised one, without its original weights"; absent "$dir/m5"
expect 0 merge --model "$dir/q-nf4" --out "$dir/m6"; says "converted"
[ "$(loss --model "$dir/m6")" = "$(loss --model "$dir/q-nf4")" ] || wrong "the plain model is not the quantised one"
expect 0 quantize --model "$dir/m6" --out "$dir/m7" --quant-type nf4
same "$dir/m7/model.safetensors" "$dir/q-nf4/model.safetensors"

begin "a merge that loses more than --max-loss is refused, and nothing is left"
# on the rows it was tuned to: there any other weights lose
expect 0 train --model "$model" --data "$dir/rows.jsonl" --lora-r 8 --learning-rate 0.03 --batch-size 8 --epochs 12 --save-steps no --out "$dir/good"
expect 1 merge --model "$model" --adapter "$dir/good" --out "$dir/m5" --data "$dir/rows.jsonl" --max-loss 0.01 --out-quant fp4 --block-size 4096
says "^lora: the merge loses too much: .*expected a loss of at most .*, found"
absent "$dir/m5"; absent "$dir/m5.unfinished"
out "^merged and quantised again  *[0-9.]* *+"
expect 0 merge --model "$model" --adapter "$dir/good" --out "$dir/m5" --data "$dir/rows.jsonl" --max-loss 0.0001

# Tensors of 1 MB, 17 MB in all: half a second of work.
cat >"$dir/large.json" <<'END'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "vocab_size": 97,
 "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 1024,
 "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
 "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2}
END
begin "killed at any moment, there is nothing under the name, or all of it"
lora init --config "$dir/large.json" --out "$dir/large" --seed 1 2>"$dir/log" || wrong "init"
expect 0 quantize --model "$dir/large" --out "$dir/whole" --quant-type nf4 --threads 1
for delay in 0.02 0.05 0.1 0.15 0.2 0.3 0.4; do
    rm -rf "$dir/killed"
    $EXE "$LORA" quantize --model "$dir/large" --out "$dir/killed" --quant-type nf4 --threads 1 >"$dir/out" 2>"$dir/log" &
    pid=$!
    sleep $delay 2>/dev/null || sleep 1
    kill -9 $pid 2>/dev/null
    wait $pid 2>/dev/null
    [ ! -e "$dir/killed" ] || same "$dir/killed/model.safetensors" "$dir/whole/model.safetensors"
done
rm -rf "$dir/killed"
expect 0 quantize --model "$dir/large" --out "$dir/killed" --quant-type nf4 --threads 1
same "$dir/killed/model.safetensors" "$dir/whole/model.safetensors"
absent "$dir/killed.unfinished"

begin "quantize and init take memory for about one tensor"
if [ -z "$EXE" ] && [ "$(uname)" = Linux ] && (ulimit -d 20000 && "$LORA" --version) >"$dir/out" 2>&1; then
    limited() { (ulimit -d "$LIMIT" && "$LORA" "$@") >"$dir/out" 2>"$dir/log" || { wrong "$1 in $LIMIT KB"; tail -2 "$dir/log"; }; }
    LIMIT=8192
    limited quantize --model "$dir/large" --out "$dir/l1" --quant-type nf4 --threads 1
    limited init --config "$dir/large.json" --out "$dir/l2" --quant-type nf4 --threads 1
    (ulimit -d 1024 && "$LORA" quantize --model "$dir/large" --out "$dir/l3" --quant-type nf4 --threads 1) >"$dir/out" 2>"$dir/log"
    [ $? = 1 ] || wrong "the limit limits nothing"
    says "out of memory"; absent "$dir/l3"; absent "$dir/l3.unfinished"
else
    skip "memory cannot be limited here"
fi

finish
