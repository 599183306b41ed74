#!/bin/sh
# What `lora bench --step` says of the share of a step that one thread does alone.
. test/checks.sh
cat >"$dir/config.json" <<'END'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "vocab_size": 256, "num_hidden_layers": 1,
 "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 1024, "max_position_embeddings": 128,
 "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true, "hidden_act": "silu"}
END
what="the share of a step that one thread does alone"
# clang's OpenMP shows its settings only where it is used
if [ -n "$EXE" ]; then name=$what; skip "no processor's own times under an emulator"
elif ! OMP_DISPLAY_ENV=true "$LORA" plan --model "$dir/config.json" --max-length 8 2>&1 | grep -q OMP_; then name=$what; skip "this build has no OpenMP: one thread"
else
# bench THREADS: with what stands before it in the environment; the share is in $share.
bench() {
    checked
    "$LORA" bench --model "$dir/config.json" --dtype f32 --step --rounds 5 --tokens 128 --threads "$1" --json "$dir/json" >"$dir/out" 2>"$dir/log" ||
        { wrong "exit $?"; tail -n 3 "$dir/log"; }
    share=$(sed -n 's/.*"serial":\([0-9.e-]*\).*/\1/p' "$dir/json")
}
# between LEAST MOST: what one thread does more than the others on average. Threads that share the work have half of it each, give
# or take a tenth; seven that are asked for and not there do nothing.
between() { checked; awk -v s="$share" -v a="$1" -v b="$2" 'BEGIN { exit !(s != "" && s >= a && s <= b) }' || wrong "$share, not $1 to $2"; }
begin "$what: all of it, half of it, little of it"
export OMP_WAIT_POLICY=passive
OMP_THREAD_LIMIT=1 bench 3; between 0.97 1
grep -q "of a step over f32 .* % is done by one thread alone" "$dir/out" || wrong "it is not said"
OMP_THREAD_LIMIT=2 bench 9; between 0.3 0.75
OMP_THREAD_LIMIT=2 bench 2; between 0 0.45

begin "$what: not told where threads that wait spin"
OMP_THREAD_LIMIT=1 OMP_WAIT_POLICY=active bench 2
[ -z "$share" ] && grep -q "^with OMP_WAIT_POLICY=passive threads that wait take no processor time" "$dir/out" || wrong "$share"
fi

begin "the machine's peak, where the kernels are of its vectors; figures as JSON have 9 digits"
checked
$EXE "$LORA" bench --model "$dir/config.json" --dtype bf16,q8_0 --step --rounds 1 --tokens 64 --threads 1 --json "$dir/json" >"$dir/out" 2>"$dir/log" ||
    { wrong "exit $?"; tail -n 3 "$dir/log"; }
if lora backends | grep -q "^\(avx\|neon\).*auto takes this one"; then
    ! grep -q '"peak_gflops":0,\|"read_gb_per_s":0,' "$dir/json" && grep -q "^peak of multiply-adds  *[0-9.]* GFLOP/s" "$dir/out" || { wrong "no peak"; head -n 5 "$dir/out"; }
fi
# of many figures the most digits: one alone may end in zeros, and a clock of nanoseconds gives what takes milliseconds no more than 7
sed 's/.*"products":\[//; s/\].*//' "$dir/json" | tr '{' '\n' | sed -n 's/.*"seconds":\([^,]*\),"gflops":\([^}]*\)}.*/\1 \2/p' | awk '
    function digits(x) { sub(/e.*/, "", x); sub(/\./, "", x); sub(/^0+/, "", x); return length(x) }
    { for (i = 1; i <= 2; i++) if (digits($i) > most[i]) most[i] = digits($i) } END { exit !(NR > 9 && most[1] > 6 && most[1] <= 9 && most[2] == 9) }' ||
    { wrong "digits"; cat "$dir/json"; }

begin "what of attention's time its own products take at least: seven for each query and key that it sees"
sed 's/"model_type": "llama"/"model_type": "mistral", "sliding_window": 10/; s/LlamaFor/MistralFor/' "$dir/config.json" >"$dir/window.json"
# own_products CONFIG ROUNDS KEYS LEAST: KEYS seen in a row of 32 tokens; the figures have the rounds' median peak, half of the best at least where rounds are two
own_products() {
    checked
    $EXE "$LORA" bench --model "$dir/$1.json" --dtype f32,bf16 --profile --rounds "$2" --tokens 64 --row-tokens 32 --threads 1 --json "$dir/profile" \
        >"$dir/out" 2>"$dir/log" || { wrong "exit $?"; tail -n 3 "$dir/log"; }
    grep -q "^peak of multiply-adds" "$dir/out" || return
    tr '{' '\n' <"$dir/profile" | tr -d '[]' | awk -F'[:,}]' -v seen="$3" -v least="$4" '
        { for (i = 1; i < NF; i++) { gsub(/"/, "", $i); v[$i] = $(i + 1) } }
        /operation attention/ { for (i = 1; i < NF; i++) if ($i == "seconds") { in_attention[0] += $(i + 1); in_attention[1] += $(i + 2) } }
        /attention_products/ {
            done = v["attention_products"] * in_attention[n + 0] / v["attention"] * v["peak_gflops"] * 1e9     # share, seconds of a step, peak
            want = 2 * seen * 4 * 64 * 2 * 7            # rows, keys seen, heads of 64, multiply and add, 2 forward and 5 back
            if (!(done > least * want && done < 1.001 * want)) exit 1
            n++
        } END { exit n != 2 }' || { wrong "$*: not what seven products are at the peak"; cat "$dir/profile"; }
    sed -n "s/.* so \([0-9.]*\) % outside the products with weights; attention's own are at least \([0-9.]*\), so at most \([0-9.]*\) % .*/\1 \2 \3/p" "$dir/out" |
        awk '{ d = $1 - $2 - $3; if (d * d > 0.16 * 0.16) exit 1; n++ } END { exit n != 2 }' || { wrong "not said, or not the difference"; tail -n 2 "$dir/out"; }
}
own_products config 1 $((32 * 33 / 2)) 0.999
own_products config 2 $((32 * 33 / 2)) 0.5
own_products window 1 $((10 * 11 / 2 + 22 * 10)) 0.999

begin "how many times as long a step takes over another type"
checked
sed 's/.*"steps":\[//' "$dir/json" | tr '{' '\n' | sed -n 's/.*"seconds":\([0-9.e-]*\),"tokens.*"ratio":\([0-9.e-]*\),.*/\1 \2/p' |
    awk 'NR == 1 { first = $1 } { d = $1 / first - $2; if (!(d * d <= 1e-15 * $2 * $2)) exit 1; n++ } END { exit n != 2 }' || { wrong "ratios"; cat "$dir/json"; }
finish
