#!/bin/sh
# SIGINT and SIGTERM while eval and generate run: what is at work ends, nothing half-written is left, the exit status says which
# signal it was. (train's are in test_train.sh.)
LC_ALL=C
export LC_ALL
. test/checks.sh
. test/bytes.sh
says() { checked; grep -q -e "$1" "$dir/err" || { wrong "it does not say: $1"; tail -n 3 "$dir/err"; }; }

# Nothing that this model says ends an answer, and all of it is text.
cat >"$dir/config.json" <<'END'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "vocab_size": 258,
 "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
 "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
 "hidden_act": "silu", "initializer_range": 0.3}
END
$EXE "$LORA" init --config "$dir/config.json" --out "$dir/m" --seed 5 >/dev/null 2>&1
tokenizer >"$dir/m/tokenizer.json"
rows=40000
awk -v n=$rows 'BEGIN { for (i = 0; i < n; i++) print "{\"prompt\":\"row " i "\",\"completion\":\"what it says\"}" }' >"$dir/rows.jsonl"

# start WORDS...: the program in the background, process $pid. A shell without job control starts it with SIGINT ignored.
start() {
    rm -f "$dir/out" "$dir/err"
    (trap - INT; exec $EXE "$LORA" "$@" --model "$dir/m" --threads 1 >"$dir/out" 2>"$dir/err") &
    pid=$!
}
# Waits until FILE has something in it: a minute at most, as a busy machine needs time.
begun() {
    i=0
    while [ ! -s "$1" ]; do
        i=$((i + 1)); [ $i -lt 3000 ] && kill -0 $pid 2>/dev/null || { wrong "it wrote nothing"; tail -n 3 "$dir/err"; return; }
        sleep 0.02 2>/dev/null || sleep 1
    done
}
# stop SIGNAL: it ends soon, and says so with its exit status.
stop() {
    checked
    kill -"$1" $pid
    i=0; while kill -0 $pid 2>/dev/null && [ $i -lt 60 ]; do i=$((i + 1)); sleep 0.25 2>/dev/null || sleep 1; done
    kill -9 $pid 2>/dev/null && wrong "it went on after SIG$1"
    wait $pid
    code=$?
    case $1 in INT) want=130 ;; *) want=143 ;; esac
    [ $code = $want ] || wrong "SIG$1: exit $code, not $want"
}

for s in INT TERM; do
    begin "eval, SIG$s: the rows so far, no figures, no file"
    start eval --data "$dir/rows.jsonl" --token-losses - --json "$dir/figures"
    begun "$dir/out"
    stop $s
    lines=$(wc -l <"$dir/out")
    [ "$lines" -gt 0 ] && [ "$lines" -lt $rows ] || wrong "$lines lines"
    grep -v '^{"losses":' "$dir/out" && wrong "more than losses on stdout"
    [ ! -e "$dir/figures" ] || wrong "figures of a part"
    says "^lora: stopped: by SIG$s$"

    begin "generate, SIG$s: the text so far, and how many tokens it was"
    start generate --raw --prompt ab --max-new-tokens 100000 --temperature 2
    begun "$dir/out"
    stop $s
    [ "$(tail -c 1 "$dir/out" | od -An -c | tr -d ' ')" = '\n' ] || wrong "the last line is not ended"
    says "^2 tokens read, [1-9][0-9]* new, "
done

begin "eval --task classify and generate: files of a part do not appear"
for task in "classify --score generate" generate; do
    start eval --data "$dir/rows.jsonl" --task $task --max-new-tokens 300 --predictions "$dir/predictions"
    i=0; while [ ! -e "$dir/predictions.tmp" ] && kill -0 $pid 2>/dev/null && [ $i -lt 3000 ]; do i=$((i + 1)); sleep 0.02 2>/dev/null || sleep 1; done
    stop INT
    ls "$dir"/predictions* >/dev/null 2>&1 && wrong "$task: $(ls "$dir"/predictions*)"
    [ -s "$dir/out" ] && { wrong "$task: figures of a part"; head -n 3 "$dir/out"; }
done

begin "a conversation that waits for a line ends too"
mkfifo "$dir/lines"
rm -f "$dir/out" "$dir/err"
(exec 3<>"$dir/lines"; trap - INT; exec $EXE "$LORA" generate --model "$dir/m" --threads 1 --chat-template chatml --chat --temperature 2 \
    --max-new-tokens 8 <"$dir/lines" >"$dir/out" 2>"$dir/err") &
pid=$!
echo hello >"$dir/lines"
begun "$dir/err"
i=0; while ! grep -q "new tokens/s" "$dir/err" && [ $i -lt 3000 ]; do i=$((i + 1)); sleep 0.02 2>/dev/null || sleep 1; done
stop INT
[ "$(grep -c "new tokens/s" "$dir/err")" = 1 ] || wrong "not one answer"
finish
