#!/bin/sh
# Labels by likelihood where it is close: equal ones, ones that differ little, rows that were cut; and losses that are not
# finite. Tiny models with the tokenizer of bytes.
. test/checks.sh
. test/bytes.sh
# model NAME DEVIATION: random weights of that deviation
model() {
    tiny_config 32 2 48 "$2" | sed 's/"vocab_size": 97/"vocab_size": 259/; s/"max_position_embeddings": 128/"max_position_embeddings": 512/' >"$dir/config.json"
    expect 0 init --config "$dir/config.json" --out "$dir/$1" --seed 5
    tokenizer >"$dir/$1/tokenizer.json"
    echo '{"eos_token": "<|im_end|>"}' >"$dir/$1/tokenizer_config.json"
}
set -- --chat-template chatml --prompt-template '{text}' --backend ref --threads 1

begin "of equal labels the first"
model even 0
printf '%s\n' '{"text":"x","label":"dd"}' '{"text":"x","label":"bb"}' '{"text":"y","label":"ccc"}' >"$dir/even.jsonl"
expect 0 eval --model "$dir/even" "$@" --data "$dir/even.jsonl" --task classify --predictions "$dir/p"
[ "$(grep -c '"prediction":"bb","log_probability":-16.67' "$dir/p")" = 3 ] || wrong "not bb, at 3 log 259: $(cat "$dir/p")"

# Each text has one label twice as often as the other: once its first letter is said, the rest is nearly certain.
begin "labels that are nearly as likely, with ends that are certain"
model base 0.05
for i in 1 2 3 4 5 6; do
    for n in 1 2; do printf '{"text":"cat","label":"aab"}\n{"text":"horse","label":"bba"}\n'; done
    printf '{"text":"cat","label":"bba"}\n{"text":"horse","label":"aab"}\n'
done >"$dir/often.jsonl"
expect 0 train --model "$dir/base" "$@" --method full --data "$dir/often.jsonl" --learning-rate 0.01 --batch-size 36 --max-steps 120 --out "$dir/often"
for text in cat horse; do for label in aab bba; do printf '{"text":"%s","label":"%s"}\n' $text $label; done; done >"$dir/each.jsonl"
expect 0 eval --model "$dir/often" "$@" --data "$dir/each.jsonl" --token-losses "$dir/l"
tr -d '{}[]"a-z:' <"$dir/l" | awk -F, '{ s = 0; for (i = 1; i <= NF; i++) s += $i; print s; if (!($2 + $3 + $4 < 0.5)) exit 1 }' >"$dir/sums" \
    || wrong "the ends are not certain: $(cat "$dir/l")"
set_of() { awk -v from="$1" 'NR > from && NR < from + 3' "$dir/sums" | sort -n | tr '\n' ' '; }
for from in 0 2; do set_of $from | awk '{ exit !($2 - $1 > 0.1 && $2 - $1 < 1) }' || wrong "not nearly as likely: $(set_of $from)"; done
expect 0 eval --model "$dir/often" "$@" --data "$dir/each.jsonl" --task classify --predictions "$dir/p"
[ "$(sed 's/.*"prediction":"\([a-z]*\)".*/\1/' "$dir/p" | tr '\n' ' ')" = "aab aab bba bba " ] || wrong "other labels: $(cat "$dir/p")"

begin "while training, labels are those of all rows; a metric is the figure of its name"
printf '{"text":"cat","label":"%s"}\n' aab aab bba >"$dir/three.jsonl"
grep bba "$dir/three.jsonl" >"$dir/one.jsonl"
for run in "one accuracy 0" "three accuracy 0.66666" "three macro_f1 0.40000"; do
    expect 0 train --model "$dir/often" "$@" --data "$dir/often.jsonl" --eval-data "$dir/${run%% *}.jsonl" --eval-task classify --lora-r 1 \
        --learning-rate 0 --max-steps 1 --metric-for-best "$(echo "$run" | cut -d ' ' -f 2)" --out "$dir/run" --overwrite
    best=$(sed 's/.*"best":\([^,]*\),.*/\1/' "$dir/run/checkpoint-1/trainer_state.json")
    awk -v a="$best" -v b="${run##* }" 'BEGIN { d = a - b; exit !(a != "" && d < 1e-4 && d > -1e-4) }' || wrong "$run: found $best"
done

begin "each figure of the report is the one of its name"
{ printf '{"text":"cat","label":"%s"}\n' aab aab aab bba; echo '{"text":"horse","label":"bba"}'; echo '{"text":"a text that is too long","label":"aab"}'; } >"$dir/report.jsonl"
expect 0 eval --model "$dir/often" "$@" --data "$dir/report.jsonl" --max-length 30 --on-overlong drop --task classify --json "$dir/j"
grep -qF '{"per_class":{"aab":{"precision":0.75,"recall":1,"f1":0.857142857,"support":3},"bba":{"precision":1,"recall":0.5,"f1":0.666666667,"support":2}},"accuracy":0.8,"macro_f1":0.761904762,"weighted_f1":0.780952381,"confusion":{"labels":["aab","bba"],"matrix":[[3,0],[1,1]],"other":[0,0]},"rows":5,"tokens":' "$dir/j" \
    || wrong "$(cat "$dir/j")"
for line in "aab       0.7500  1.0000  0.8571        3" "bba       1.0000  0.5000  0.6667        2" "accuracy         0.8000" \
            "macro F1         0.7619" "weighted F1      0.7810" "   1      3     0  aab" "   2      1     1  bba" "rows             5"; do
    grep -qxF "$line" "$dir/out" || { wrong "not in the report: $line"; cat "$dir/out"; }
done
printf '%s\n' aab bba c d e f g h i j k l m >"$dir/many"
expect 0 eval --model "$dir/often" "$@" --data "$dir/report.jsonl" --max-length 30 --on-overlong drop --task classify --labels "$dir/many"
sed -n '/^most frequent confusions/,/^rows/p' "$dir/out" | sed -n 2p | grep -qx '     1  bba taken for aab' || { wrong "the confusions"; cat "$dir/out"; }
for pair in "cat aab" "cat aab no" "horse aab"; do
    printf '{"prompt":[{"role":"user","content":"%s"}],"completion":"%s"}\n' "${pair%% *}" "${pair#* }"
done >"$dir/answers.jsonl"
expect 0 eval --model "$dir/often" "$@" --data "$dir/answers.jsonl" --task generate --max-new-tokens 6 --json "$dir/j"
grep -qF '{"exact_match":0.333333333,"token_f1":0.555555556,"rows":3,' "$dir/j" || wrong "$(cat "$dir/j")"
grep -qx "exact match      0.3333" "$dir/out" && grep -qx "token F1         0.5556" "$dir/out" || wrong "$(cat "$dir/out")"

# The row of the long text is cut in its label, and is the first with it.
begin "a label's tokens are not taken from a row that was cut"
printf '{"text":"%s","label":"%s"}\n' horses bbab cat aab cat bbab >"$dir/cut.jsonl"
expect 0 eval --model "$dir/base" "$@" --data "$dir/cut.jsonl" --task classify --predictions "$dir/p1"
expect 0 eval --model "$dir/base" "$@" --data "$dir/cut.jsonl" --task classify --predictions "$dir/p2" --max-length 28 --on-overlong truncate
says "1 cut to length"
sed 's/,"log_probability.*//' "$dir/p1" >"$dir/n1"; sed 's/,"log_probability.*//' "$dir/p2" >"$dir/n2"
same "$dir/n1" "$dir/n2"

begin "a loss that is not finite is an error, not a figure"
model huge 3e38
for task in lm classify; do
    for backend in ref auto; do
        expect 1 eval --model "$dir/huge" "$@" --backend $backend --data "$dir/each.jsonl" --task $task
        says "^lora: the loss is not finite: "
        grep -q "^loss\|^accuracy" "$dir/out" && wrong "$(cat "$dir/out")"
    done
done
finish
