#!/bin/sh
# Training through the program: the same bytes at any number of threads and through any interruption,
# what a resumed run refuses, how a run ends, and what is left on disk. Tiny random models.
. test/checks.sh
# expect CODE WORDS...: runs the program; its output is in $dir/log
expect() {
    checked
    want=$1; shift
    lora "$@" >"$dir/log" 2>&1
    code=$?
    [ "$code" = "$want" ] || { wrong "lora $*: exit $code, not $want"; tail -3 "$dir/log"; }
}
# The metrics without what a clock says, which is at the end of a line.
untimed() { sed 's/,"tokens_per_second.*//; s/,"eval_seconds.*//' "$1/metrics.jsonl"; }
same_run() {    # adapters, the last state, metrics
    same "$1/adapter_model.safetensors" "$2/adapter_model.safetensors"
    same "$1/checkpoint-$3/optimizer.safetensors" "$2/checkpoint-$3/optimizer.safetensors"
    same "$1/checkpoint-$3/trainer_state.json" "$2/checkpoint-$3/trainer_state.json"
    untimed "$1" >"$dir/m1"; untimed "$2" >"$dir/m2"
    same "$dir/m1" "$dir/m2"
}

tiny_config 32 3 48 >"$dir/config.json"
rows 40 7 >"$dir/rows.jsonl"
rows 12 99 >"$dir/eval.jsonl"
model=$dir/model

begin "init: the same seed, the same bytes"
expect 0 init --config "$dir/config.json" --out "$model" --seed 3
expect 0 init --config "$dir/config.json" --out "$dir/model2" --seed 3
same "$model/model.safetensors" "$dir/model2/model.safetensors"
expect 1 init --config "$dir/config.json" --out "$dir/model2" --seed 4
says "^lora: cannot write over a model: $dir/model2: expected a directory without model.safetensors for --out$"
mkdir "$dir/taken"; echo '{"model_type": "another"}' >"$dir/taken/config.json"
expect 1 init --config "$dir/config.json" --out "$dir/taken"
says "^lora: cannot write over a model: $dir/taken: expected a directory without config.json for --out$"
same "$model/model.safetensors" "$dir/model2/model.safetensors"
rm "$dir/model2/model.safetensors"
expect 0 init --config "$dir/model2/config.json" --out "$dir/model2" --seed 4
differ "$model/model.safetensors" "$dir/model2/model.safetensors"

# 40 rows by 4: 10 steps an epoch.
set -- --model "$model" --data "$dir/rows.jsonl" --eval-data "$dir/eval.jsonl" --lora-r 4 --lora-alpha 8 \
    --lora-dropout 0.1 --learning-rate 0.01 --batch-size 2 --gradient-accumulation-steps 2 --epochs 1 \
    --eval-steps 5 --save-steps 5 --seed 5 --tokens-per-pack 40

begin "1, 2, 3 and 8 threads: the same bytes"
expect 0 train "$@" --out "$dir/t1" --threads 1
for n in 2 3 8; do
    expect 0 train "$@" --out "$dir/t$n" --threads $n
    same_run "$dir/t1" "$dir/t$n" 10
done
[ "$(grep -c '"loss"' "$dir/t1/metrics.jsonl")" = 10 ] || wrong "not a line a step"
[ "$(grep -c '"eval_loss"' "$dir/t1/metrics.jsonl")" = 2 ] || wrong "not two evaluations"
expect 0 train "$@" --out "$dir/seed" --threads 1 --seed 6
differ "$dir/t1/adapter_model.safetensors" "$dir/seed/adapter_model.safetensors"

begin "5 steps, resumed, 5 more = 10, at another number of threads, in another place"
cp -R "$dir/t1" "$dir/moved"
rm -r "$dir/moved/checkpoint-10" "$dir/moved/adapter_model.safetensors"
expect 0 train "$@" --out "$dir/moved" --threads 2 --resume
says "going on after step 5"
same_run "$dir/t1" "$dir/moved" 10
[ "$(grep -c '"loss"' "$dir/moved/metrics.jsonl")" = 10 ] || wrong "metrics were not cut back"
expect 0 train "$@" --out "$dir/moved" --resume
same_run "$dir/t1" "$dir/moved" 10

begin "a resumed run refuses other data and options, by name"
for option in "--learning-rate 0.02" "--seed 6" "--lora-dropout 0" "--lora-alpha 9" "--epochs 2" "--batch-size 4" \
              "--weight-decay 0.1" "--tokens-per-pack 50" "--no-shuffle" "--lr-scheduler linear" "--early-stopping-patience 1" "--method full"; do
    word=${option%% *}; word=${word#--}
    case $option in
    "--method full") expect 1 train --model "$model" --data "$dir/rows.jsonl" --eval-data "$dir/eval.jsonl" --out "$dir/moved" --resume --method full ;;
    *) expect 1 train "$@" --out "$dir/moved" --resume $option ;;
    esac
    case $word in lora-alpha) word=scales ;; esac
    says "$word"
    says ": [^:]*$word[^:]* has changed"
done
expect 1 train "$@" --data "$dir/eval.jsonl" --out "$dir/moved" --resume
says "data has changed"; says "rows as ids: their files, --eval-split, chat and prompt template"
expect 1 train "$@" --model "$dir/model2" --out "$dir/moved" --resume
says "model has changed"
same_run "$dir/t1" "$dir/moved" 10

begin "an evaluation that is made again after resuming takes the line of the first"
for steps in no 5 5; do expect 0 train "$@" --out "$dir/twice" --resume --eval-steps $steps; done
[ "$(grep -c '"eval_loss"' "$dir/twice/metrics.jsonl")" = 1 ] || { wrong "not one evaluation"; grep eval_loss "$dir/twice/metrics.jsonl"; }
[ "$(grep -c '"loss"' "$dir/twice/metrics.jsonl")" = 10 ] || wrong "steps were lost"

# r 128: some tensors have 4096 numbers, which go into 8 bits, and some have fewer
begin "--optim: adamw8bit and paged_adamw, threads, 5 + 5 steps = 10, what resuming refuses"
for optim in adamw adamw8bit paged_adamw; do
    expect 0 train "$@" --lora-r 128 --optim $optim --out "$dir/$optim" --threads 1
    grep -q "\"optim\": \"$optim\"" "$dir/$optim/run.json" || wrong "run.json without $optim"
done
same_run "$dir/adamw" "$dir/paged_adamw" 10
differ "$dir/adamw/adapter_model.safetensors" "$dir/adamw8bit/adapter_model.safetensors"
grep -aq '"codes1":{"dtype":"U8"' "$dir/adamw8bit/checkpoint-10/optimizer.safetensors" || wrong "no codes in the checkpoint"
expect 0 train "$@" --lora-r 128 --optim adamw_bnb_8bit --out "$dir/8bit" --threads 3
same_run "$dir/adamw8bit" "$dir/8bit" 10
grep -q '"optim": "adamw8bit"' "$dir/8bit/run.json" || wrong "another name for adamw8bit in run.json"
rm -r "$dir/8bit/checkpoint-10"
expect 1 train "$@" --lora-r 128 --out "$dir/8bit" --resume
says "optim has changed: expected \"adamw8bit\", found \"adamw\""
expect 0 train "$@" --lora-r 128 --optim adamw8bit --out "$dir/8bit" --resume
says "going on after step 5"
same_run "$dir/adamw8bit" "$dir/8bit" 10
rm -r "$dir/paged_adamw/checkpoint-10"
expect 1 train "$@" --lora-r 128 --optim adamw8bit --out "$dir/paged_adamw" --resume
says "optim has changed"
expect 0 train "$@" --lora-r 128 --out "$dir/paged_adamw" --resume      # the same numbers in another place
same_run "$dir/adamw" "$dir/paged_adamw" 10
expect 2 train "$@" --optim adafactor --out "$dir/no"
says "adamw8bit"
expect 0 plan "$@" --lora-r 128 --optim paged_adamw
says "moments, mapped from a file "
grep -q "moments of the optimizer" "$dir/log" && wrong "moments in the arena too"
[ "$(ls "$dir/paged_adamw" | grep -c moments)" = 0 ] || wrong "the file of the moments is left"

begin "a damaged checkpoint gives way to the one before"
cp -R "$dir/t1" "$dir/damaged"
f=$dir/damaged/checkpoint-10/optimizer.safetensors
{ head -c 500 "$f"; printf '\377'; tail -c +502 "$f"; } >"$dir/x" && mv "$dir/x" "$f"
expect 0 train "$@" --out "$dir/damaged" --resume
says "checkpoint-10 is not whole"
says "going on after step 5"
same_run "$dir/t1" "$dir/damaged" 10
sed 's/"step":5/"step":4/' "$dir/t1/checkpoint-5/trainer_state.json" >"$dir/damaged/checkpoint-5/trainer_state.json"
rm -r "$dir/damaged/checkpoint-10"
expect 1 train "$@" --out "$dir/damaged" --resume
says "cannot resume"

begin "killed at random instants, always resumed"
delay=1
mkdir "$dir/kill"
while :; do
    delay=$(((delay * 37 + 11) % 97))
    $EXE "$LORA" train "$@" --save-steps 1 --out "$dir/kill" --resume >"$dir/log" 2>&1 &
    pid=$!
    sleep "0.0$((delay + 20))" 2>/dev/null || sleep 1
    kill -9 $pid 2>/dev/null
    wait $pid 2>/dev/null
    code=$?
    kills=$((${kills:-0} + 1))
    [ $code = 137 ] || break
    [ $kills -lt 12 ] || { expect 0 train "$@" --save-steps 1 --out "$dir/kill" --resume; code=0; break; }
done
[ $code = 0 ] || { wrong "exit $code after $kills runs"; tail -3 "$dir/log"; }
mkdir "$dir/kill/checkpoint-3.unfinished"
expect 0 train "$@" --save-steps 1 --out "$dir/kill" --resume
same_run "$dir/t1" "$dir/kill" 10
ls "$dir/kill" | grep -q -e '\.tmp$' -e '\.unfinished$' && wrong "something half written is left"

# Waits until the run in DIR, process $pid, has logged three steps: a minute at most, as a busy machine needs time.
after_steps() {
    i=0
    while [ "$(cat "$1/metrics.jsonl" 2>/dev/null | grep -c .)" -lt 3 ]; do
        i=$((i + 1)); [ $i -lt 3000 ] && kill -0 $pid 2>/dev/null || return 0
        sleep 0.02 2>/dev/null || sleep 1
    done
}

begin "SIGINT and SIGTERM: the step ends, its state is saved, the run can go on"
for s in INT TERM; do
    out=$dir/stop$s
    (trap - INT; exec $EXE "$LORA" train "$@" --epochs 1000 --save-steps no --eval-steps no --out "$out" >"$dir/log" 2>&1) &
    pid=$!
    after_steps "$out"
    kill -$s $pid
    wait $pid
    code=$?
    if [ $s = INT ]; then want=130; else want=143; fi
    # a shell without job control starts what is in the background with SIGINT ignored
    [ $code = $want ] || wrong "SIG$s: exit $code"
    says "stopped by SIG$s"
    says "the same command with --resume goes on"
    step=$(ls "$out" | sed -n 's/^checkpoint-//p')
    [ -n "$step" ] && [ "$(tail -n 1 "$out/metrics.jsonl" | sed 's/{"step":\([0-9]*\).*/\1/')" = "$step" ] \
        || wrong "the checkpoint ($step) is not of the last step"
done

begin "SIGINT while a model is written: what is half written goes"
sed 's/"hidden_size": 32/"hidden_size": 1024/; s/"intermediate_size": 48/"intermediate_size": 4096/; s/"num_hidden_layers": 3/"num_hidden_layers": 16/' \
    "$dir/config.json" >"$dir/large.json"
(trap - INT; exec $EXE "$LORA" init --config "$dir/large.json" --out "$dir/large" --threads 1 >"$dir/log" 2>&1) &
pid=$!
i=0; while [ ! -e "$dir/large/model.safetensors.tmp" ] && [ $i -lt 500 ]; do i=$((i + 1)); sleep 0.02 2>/dev/null || sleep 1; done
kill -INT $pid
wait $pid
code=$?
[ $code = 130 ] || wrong "exit $code"
says "^lora: stopped: by SIGINT$"
[ -z "$(ls "$dir/large")" ] || wrong "left: $(ls "$dir/large")"

begin "SIGTERM while the rows are still being read from a pipe: the program ends at once"
mkfifo "$dir/pipe"
sleep 60 >"$dir/pipe" &
writer=$!
$EXE "$LORA" train --model "$model" --data "$dir/pipe" --out "$dir/unbegun" >"$dir/log" 2>&1 &
pid=$!
sleep 1
kill -TERM $pid
i=0; while kill -0 $pid 2>/dev/null && [ $i -lt 20 ]; do i=$((i + 1)); sleep 1; done
checked; kill -0 $writer 2>/dev/null || wrong "it waited for the pipe's end"
kill $writer
wait $pid
code=$?
[ $code = 143 ] && [ ! -e "$dir/unbegun" ] || wrong "exit $code"

begin "data cut while they are in use: the steps before are kept"
rows 3000 11 >"$dir/large.jsonl"
cp "$dir/large.jsonl" "$dir/cut.jsonl"
$EXE "$LORA" train --model "$model" --data "$dir/cut.jsonl" --lora-r 4 --epochs 100 --save-steps no --out "$dir/unread" >"$dir/log" 2>&1 &
pid=$!
after_steps "$dir/unread"
head -n 100 "$dir/large.jsonl" >"$dir/cut.jsonl"
wait $pid
code=$?
[ $code = 1 ] || wrong "exit $code"
says "cut.jsonl"
says "is saved: with the data as they were, --resume goes on"
ls -d "$dir"/unread/checkpoint-* >/dev/null 2>&1 || wrong "no checkpoint"

begin "a run in DIR is refused, resumed or overwritten"
mkdir "$dir/t2/checkpoint-7.unfinished"
expect 1 train "$@" --out "$dir/t2"
says "there is a run already"
[ -e "$dir/t2/checkpoint-7.unfinished" ] || wrong "a run that may still be there lost what it was writing"
mkdir "$dir/adapter"
cp "$dir/t1/adapter_model.safetensors" "$dir/adapter"
for more in "" --overwrite --resume; do
    expect 1 train "$@" --out "$dir/adapter" $more
    says "cannot write over what no run left: $dir/adapter"
done
same "$dir/t1/adapter_model.safetensors" "$dir/adapter/adapter_model.safetensors"
expect 1 train "$@" --out "$dir/config.json"
says "cannot read the directory: $dir/config.json: found Not a directory"
expect 0 train "$@" --out "$dir/t2" --overwrite --max-steps 2
[ -e "$dir/t2/checkpoint-7.unfinished" ] && wrong "what was half written is left"
says "^warning: --epochs 1 changes nothing: --max-steps 2 says when the run ends$"
grep -q '"epochs": 0.2,' "$dir/t2/run.json" || wrong "run.json: $(grep epochs "$dir/t2/run.json")"
[ -e "$dir/t2/checkpoint-10" ] && wrong "the old checkpoints are still there"
expect 2 train "$@" --out "$dir/t2" --overwrite --resume
expect 1 train "$@" --model "$model" --out "$model" --overwrite
[ -e "$model/model.safetensors" ] || wrong "the base was overwritten"

begin "recomputing changes no bit; rows are the same in any batch"
set -- --model "$model" --data "$dir/rows.jsonl" --lora-r 4 --learning-rate 0.01 --max-steps 6 --seed 5 --threads 2
expect 0 train "$@" --out "$dir/keep" --batch-size 8 --gradient-checkpointing off
grep -q "changes nothing" "$dir/log" && wrong "a warning of epochs that nobody asked for"
expect 0 train "$@" --out "$dir/again" --batch-size 8 --gradient-checkpointing on
same "$dir/keep/adapter_model.safetensors" "$dir/again/adapter_model.safetensors"
expect 0 train "$@" --out "$dir/4x2" --batch-size 4 --gradient-accumulation-steps 2
same "$dir/keep/adapter_model.safetensors" "$dir/4x2/adapter_model.safetensors"
# every token a target, also those that three rows begin with, which are computed once
sed 's/,"labels.*/}/' "$dir/rows.jsonl" >"$dir/all.jsonl"
expect 0 train "$@" --data "$dir/all.jsonl" --no-shuffle --out "$dir/keep" --batch-size 8 --overwrite
expect 0 train "$@" --data "$dir/all.jsonl" --no-shuffle --out "$dir/cut" --batch-size 8 --tokens-per-pack 1
losses_and_norms() { sed -n 's/.*"loss":\([^,]*\),"grad_norm":\([^,]*\),.*/\1 \2/p' "$1/metrics.jsonl"; }
losses_and_norms "$dir/keep" >"$dir/l1"; losses_and_norms "$dir/cut" >"$dir/l2"
paste -d' ' "$dir/l1" "$dir/l2" | awk '{ a = $1 - $3; b = ($2 - $4) / $2; if (!(a * a <= 1e-10 && b * b <= 1e-8)) exit 1; n++ }
    END { exit n != 6 }' || { wrong "packs change the numbers"; paste "$dir/l1" "$dir/l2"; }
computed() { sed 's/.*"computed_tokens":\([0-9]*\).*/\1/' "$1/metrics.jsonl" | head -n 1; }
[ "$(computed "$dir/keep")" -lt "$(computed "$dir/cut")" ] || wrong "nothing was shared"

begin "each visit of a row has its own dropout masks"
head -n 1 "$dir/all.jsonl" >"$dir/one.jsonl"
expect 0 train --model "$model" --data "$dir/one.jsonl" --init-adapter "$dir/keep" --lora-dropout 0.5 --learning-rate 0 --epochs 4 --out "$dir/masks"
[ "$(losses_and_norms "$dir/masks" | sort -u | grep -c .)" = 4 ] || { wrong "the same masks again"; losses_and_norms "$dir/masks"; }
expect 0 train --model "$model" --data "$dir/one.jsonl" --init-adapter "$dir/keep" --learning-rate 0 --epochs 4 --out "$dir/nomasks"
[ "$(losses_and_norms "$dir/nomasks" | sort -u | grep -c .)" = 1 ] || { wrong "other numbers without dropout"; losses_and_norms "$dir/nomasks"; }

begin "best checkpoint, early stopping, limit"
set -- --model "$model" --data "$dir/rows.jsonl" --eval-data "$dir/eval.jsonl" --lora-r 4 --learning-rate 0.05 --batch-size 4 \
    --lr-scheduler constant --eval-steps 2 --save-steps 2 --save-total-limit 1 --early-stopping-patience 2 --load-best --threads 1
expect 0 train "$@" --max-steps 400 --out "$dir/best"
says "stopped early"
best=$(sed -n 's/.*"step":\([0-9]*\),.*"eval_loss":\([^,]*\),.*/\2 \1/p' "$dir/best/metrics.jsonl" | sort -g | head -n 1 | sed 's/.* //')
says "the best weights are those of step $best"
stay=$(ls -d "$dir"/best/checkpoint-* | sed 's/.*-//' | sort -n)       # the best and, as it stopped without a better one, the newest
[ "$(echo "$stay" | wc -l)" = 2 ] && [ "$(echo "$stay" | head -n 1)" = "$best" ] || wrong "the checkpoints that stay are" $stay ", the best is $best"
same "$dir/best/adapter_model.safetensors" "$dir/best/checkpoint-$best/adapter_model.safetensors"
expect 0 train "$@" --max-steps 400 --out "$dir/best" --resume
same "$dir/best/adapter_model.safetensors" "$dir/best/checkpoint-$best/adapter_model.safetensors"

begin "full fine-tuning: a model directory, resumed to the same bytes"
set -- --method full --model "$model" --data "$dir/rows.jsonl" --learning-rate 0.002 --batch-size 8 --epochs 1 --save-steps 2
expect 0 train "$@" --out "$dir/full" --threads 2
cp -R "$dir/full" "$dir/full2"
rm -r "$dir/full2/checkpoint-4" "$dir/full2/checkpoint-5" "$dir/full2/model.safetensors"
expect 0 train "$@" --out "$dir/full2" --threads 1 --resume
same "$dir/full/model.safetensors" "$dir/full2/model.safetensors"
same "$dir/full/checkpoint-5/optimizer.safetensors" "$dir/full2/checkpoint-5/optimizer.safetensors"
differ "$dir/full/model.safetensors" "$model/model.safetensors"
expect 0 train "$@" --model "$dir/full" --out "$dir/full3" --dtype bf16
expect 0 plan --model "$dir/full3" --max-length 16

begin "a table of doubles resumes to the same bytes"
set -- --backend ref64 --model "$model" --data "$dir/rows.jsonl" --learning-rate 0.01 --batch-size 8 --epochs 1 --save-steps 2
for more in "--lora-r 2" "--lora-r 128 --optim adamw8bit"; do
    expect 0 train "$@" $more --out "$dir/d1" --overwrite
    rm -rf "$dir/d2"
    cp -R "$dir/d1" "$dir/d2"
    rm -r "$dir/d2/checkpoint-4" "$dir/d2/checkpoint-5"
    expect 0 train "$@" $more --out "$dir/d2" --resume
    same_run "$dir/d1" "$dir/d2" 5
done

begin "labels while training: the same figures as lora eval's; the adapter knows its labels"
. test/bytes.sh
sed 's/"vocab_size": 97/"vocab_size": 259/; s/"max_position_embeddings": 128/"max_position_embeddings": 512/' "$dir/config.json" >"$dir/byte.json"
expect 0 init --config "$dir/byte.json" --out "$dir/byte"
tokenizer >"$dir/byte/tokenizer.json"
echo '{"eos_token": "<|im_end|>"}' >"$dir/byte/tokenizer_config.json"
awk 'BEGIN { split("a no yes maybe", label, " "); split("ape nose yell mail", word, " ")
    for (i = 0; i < 12; i++) print "{\"text\":\"" word[i % 4 + 1] i "\",\"label\":\"" label[i % 4 + 1] "\"}" }' >"$dir/labels.jsonl"
expect 0 train --model "$dir/byte" --chat-template chatml --prompt-template "{text}?" --data "$dir/labels.jsonl" --eval-data "$dir/labels.jsonl" \
    --eval-task classify --metric-for-best accuracy --lora-r 4 --learning-rate 0.02 --epochs 6 --batch-size 4 --eval-steps 6 --out "$dir/class"
expect 0 eval --model "$dir/byte" --adapter "$dir/class" --data "$dir/labels.jsonl" --task classify --json "$dir/j1"
says "labels of the adapter: 4"
last=$(grep eval_accuracy "$dir/class/metrics.jsonl" | tail -n 1)
for key in accuracy macro_f1 weighted_f1; do
    a=$(printf '%s\n' "$last" | sed "s/.*\"eval_$key\":\([^,}]*\).*/\1/")
    b=$(sed "s/.*\"$key\": *\([0-9.e+-]*\).*/\1/" "$dir/j1" | head -n 1)
    [ -n "$a" ] && [ "$a" = "$b" ] || wrong "$key: $a in training, $b by eval"
done
expect 2 train --model "$dir/byte" --data "$dir/labels.jsonl" --eval-task classify --out "$dir/class2"
head -n 1 "$dir/labels.jsonl" >"$dir/label.jsonl"       # {labels} are those that are trained with, here too
expect 0 train --model "$dir/byte" --chat-template chatml --prompt-template "{labels}: {text}?" --data "$dir/labels.jsonl" \
    --eval-data "$dir/label.jsonl" --lora-r 1 --max-steps 1 --out "$dir/class3"
expect 0 eval --model "$dir/byte" --adapter "$dir/class3" --data "$dir/label.jsonl" --json "$dir/j1"
a=$(sed -n 's/.*"eval_loss":\([^,]*\).*/\1/p' "$dir/class3/metrics.jsonl")
b=$(sed 's/.*"loss":\([^,]*\).*/\1/' "$dir/j1")
[ -n "$a" ] && [ "$a" = "$b" ] || wrong "eval_loss $a in training, $b by eval"

begin "tokenizer and template travel with the adapter; another base is warned of, the same in other bytes is not"
chatml="{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
b=$dir/base
cp -R "$dir/byte" "$b"
printf '%s' "{{bos_token}}$chatml" >"$b/chat_template.jinja"
echo '{"eos_token": "<|im_end|>", "bos_token": "~"}' >"$b/tokenizer_config.json"
echo '{}' >"$b/special_tokens_map.json"
echo '{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"ho"}]}' >"$dir/talk.jsonl"
expect 0 train --model "$b" --data "$dir/talk.jsonl" --lora-r 1 --learning-rate 0.01 --lr-scheduler constant --max-steps 1 --out "$dir/travel"
for f in tokenizer.json tokenizer_config.json special_tokens_map.json chat_template.jinja; do same "$b/$f" "$dir/travel/$f"; done
expect 0 tokenize --model "$dir/travel" --text ab
quiet() { checked; grep -q "warning" "$dir/log" && { wrong "a warning: $(grep warning "$dir/log")"; }; }
# warned BASE [WORDS]: eval and generate, with what the run says in $dir/log
jobs() {
    base=$1; shift
    expect 0 eval --model "$base" --adapter "$dir/travel" --data "$dir/talk.jsonl" "$@"; cp "$dir/log" "$dir/log1"
    expect 0 generate --model "$base" --adapter "$dir/travel" --prompt hi --max-new-tokens 1 "$@"
}
jobs "$b"; quiet
grep -q "data: 1 rows, 25 tokens" "$dir/log1" || { wrong "the template lost its BOS"; grep "tokens" "$dir/log1"; }
cp -R "$b" "$dir/bytes"
sed 's/"normalizer"/\n "normalizer"/' "$b/tokenizer.json" >"$dir/bytes/tokenizer.json"
printf '{# the same #}{{ bos_token }}%s\n' "$chatml" >"$dir/bytes/chat_template.jinja"
jobs "$dir/bytes"; quiet
expect 0 merge --model "$dir/bytes" --adapter "$dir/travel" --out "$dir/merged-bytes"; quiet
cp -R "$b" "$dir/other"
sed 's/<|im_start|>/<|in_start|>/g' "$b/tokenizer.json" >"$dir/other/tokenizer.json"
echo '{"eos_token": "<|im_end|>", "bos_token": "}"}' >"$dir/other/tokenizer_config.json"
jobs "$dir/other"
for log in "$dir/log" "$dir/log1"; do
    grep -q "^warning: another tokenizer than the adapter was trained with: $dir/other: expected [0-9a-f]* ($dir/travel/run.json), found [0-9a-f]*; " "$log" \
        || wrong "no warning of the tokenizer in $log"
done
says "warning: another chat template .* found chatml with another BOS or EOS"
expect 0 merge --model "$dir/other" --adapter "$dir/travel" --out "$dir/merged-other"
says "warning: another tokenizer"
expect 0 train --model "$dir/other" --init-adapter "$dir/travel" --data "$dir/talk.jsonl" --max-steps 1 --out "$dir/travel2"
says "warning: another tokenizer"
jobs "$b" --chat-template zephyr
for log in "$dir/log" "$dir/log1"; do
    grep -q "^warning: another chat template than the adapter was trained with: expected chatml ($dir/travel/run.json), found zephyr; leave out --chat-template" "$log" \
        || wrong "no warning of the template in $log"
done
cp -R "$b" "$dir/new"
printf '%s' "{{bos_token}}{% for message in messages %}x{% endfor %}" >"$dir/new/chat_template.jinja"
jobs "$dir/new"
says "^warning: another chat template in the model than the adapter was trained on: $dir/new: expected [0-9a-f]* ($dir/travel/run.json), found an unknown one; the adapter's is used"
rm "$dir/new/chat_template.jinja"
jobs "$dir/new"
says "found none; the adapter's is used"
expect 0 train --model "$dir/new" --data "$dir/talk.jsonl" --chat-template chatml --lora-r 1 --max-steps 1 --out "$dir/travel" --overwrite
[ -e "$dir/travel/chat_template.jinja" ] && wrong "the template of the run before is still there"
jobs "$dir/new"; grep -q "warning: another" "$dir/log" && wrong "$(grep warning "$dir/log")"
jobs "$b"
says "found chatml; the adapter's is used"
echo '{"text":"ab"}' >"$dir/raw.jsonl"
expect 0 train --model "$dir/new" --data "$dir/raw.jsonl" --lora-r 1 --max-steps 1 --out "$dir/travel" --overwrite
jobs "$b"
says "^warning: another chat template than the adapter was trained with: expected none "

begin "what must not happen stops the run: a loss that is not finite, a gradient that cannot be zero"
set -- --model "$model" --data "$dir/rows.jsonl" --lora-r 2 --batch-size 8 --epochs 2
expect 1 train "$@" --learning-rate 1e6 --lr-scheduler constant --max-grad-norm 0 --lora-alpha 1e30 --out "$dir/nan"
says "^lora: the loss is not finite: step 2, layer 0, [a-z_]*, token [0-9]* of the pack: found NaN or infinity$"
expect 2 train "$@" --eval-data "$dir/eval.jsonl" --eval-steps no --load-best --out "$dir/nan"
says "need --eval-data or --eval-split, and --eval-steps other than no"
zero_adapter "$dir/zero" model.layers.1.self_attn.v_proj 2 32 16
expect 1 train "$@" --init-adapter "$dir/zero" --out "$dir/z"
says "has no gradient: step 1, ${zero}A.weight"

begin "a metrics.jsonl that cannot be written ends the run"
# a limit on files' size, of 512 or 1024 bytes each: metrics.jsonl reaches it, run.json does not
(ulimit -f 8; exec $EXE "$LORA" train "$@" --epochs 20 --save-steps no --threads 1 --out "$dir/nospace" >"$dir/log.part" 2>&1)
code=$?
tail -n 3 "$dir/log.part" >"$dir/log"
[ $code = 1 ] || wrong "exit $code"
says "^lora: cannot write: $dir/nospace/metrics.jsonl"
[ -e "$dir/nospace/adapter_model.safetensors" ] && wrong "it went on"

begin "the plan is what is taken, and too little memory is said before the first step"
set -- --model "$model" --data "$dir/rows.jsonl" --lora-r 4 --batch-size 8 --epochs 1
lora train "$@" --dry-run >"$dir/plan" 2>"$dir/log" || wrong "dry run"
[ -e "$dir/dry" ] && wrong "a dry run wrote"
expect 0 train "$@" --out "$dir/planned"
arena=$(sed -n 's/.*arena: all of these *\([0-9]*\).*/\1/p' "$dir/plan")
grep -q "\"arena_bytes\": $arena\$" "$dir/planned/run.json" || wrong "planned $arena"
grep -q '"arena_bytes": [1-9]' "$dir/planned/run.json" || wrong "no arena in run.json"
grep -q '"lora-dropout": 0,' "$dir/planned/run.json" || wrong "run.json without the dropout that was used"
grep -q '"max-length": [1-9]' "$dir/planned/run.json" || wrong "run.json without the length that was used"
expect 0 train "$@" --out "$dir/less" --max-memory $((arena - 1))
says "[012] of 3 layers kept"
same "$dir/less/adapter_model.safetensors" "$dir/planned/adapter_model.safetensors"
expect 1 train "$@" --out "$dir/least" --max-memory 10000
says "not enough memory"
expect 0 plan --model "$dir/config.json" --max-length 32
says "256 an epoch, 256 of them targets"
expect 0 train "$@" --dry-run --max-steps 9000000000000000
says "steps: 9000000000000000 "

begin "merge: W + s B A; without an adapter a conversion"
expect 0 merge --model "$model" --out "$dir/same"
same "$model/model.safetensors" "$dir/same/model.safetensors"
[ -e "$dir/same/generation_config.json" ] && wrong "generation_config.json came from nowhere"
cp -R "$model" "$dir/settings"; echo '{"temperature": 0.7}' >"$dir/settings/generation_config.json"
expect 0 merge --model "$dir/settings" --adapter "$dir/planned" --out "$dir/merged"
same "$dir/settings/generation_config.json" "$dir/merged/generation_config.json"
differ "$model/model.safetensors" "$dir/merged/model.safetensors"
expect 1 merge --model "$model" --adapter "$dir/planned" --out "$model"
lora eval --model "$dir/merged" --data "$dir/eval.jsonl" --json - >"$dir/j1" 2>"$dir/log" || wrong "eval of the merged model"
lora eval --model "$model" --adapter "$dir/planned" --data "$dir/eval.jsonl" --json - >"$dir/j2" 2>"$dir/log" || wrong "eval"
loss() { sed 's/.*"loss": *\([0-9.e+-]*\).*/\1/' "$1"; }
awk -v a="$(loss "$dir/j1")" -v b="$(loss "$dir/j2")" 'BEGIN { d = a - b; exit !(a > 0 && d * d <= 1e-10) }' \
    || wrong "merged $(loss "$dir/j1"), adapter $(loss "$dir/j2")"

begin "twenty steps as PyTorch and PEFT take them"
goldens=test/goldens/data/train
batches() {     # micro-batches of two rows each, two of them a step
    tr -d ' \n' <"$1" | awk 'BEGIN { RS = "}" } match($0, /"ids":\[[^]]*/) {
        ids = substr($0, RSTART + 7, RLENGTH - 7); match($0, /"mask":\[[^]]*/); mask = substr($0, RSTART + 8, RLENGTH - 8)
        n = split(ids, a, ","); split(mask, m, ","); s = ""
        for (i = 1; i <= n; i++) s = s (i > 1 ? "," : "") (m[i] ? a[i] : -100)
        print "{\"input_ids\":[" ids "],\"labels\":[" s "]}" }'
}
figures() {     # $1 of float64 in ref.json, one a line
    tr -d ' \n' <"$2" | sed 's/.*"float64":{//' | sed "s/.*\"$1\":\[\([^]]*\).*/\1/" | tr ',' '\n'
}
against() {     # steps of $1 against $2/ref.json
    sed -n 's/.*"loss":\([^,]*\),"grad_norm":\([^,]*\),"learning_rate":\([^,]*\),.*/\1 \2 \3/p' "$1/metrics.jsonl" >"$dir/l1"
    { figures loss "$2/ref.json" >"$dir/a"; figures grad_norm "$2/ref.json" >"$dir/b"; figures lr "$2/ref.json" >"$dir/c"; }
    paste -d' ' "$dir/l1" "$dir/a" "$dir/b" "$dir/c" | awk '{ a = $1 - $4; b = ($2 - $5) / $5; c = $3 - $6
        if (!(a * a <= 1e-10 && b * b <= 1e-8 && c * c <= 1e-20)) { print "  step " NR ": " $0; bad = 1 } n++ }
        END { exit bad || n != 20 }' || wrong "$1 against $2"
}
batches $goldens/adapter/batches.json >"$dir/g.jsonl"
expect 0 train --model $goldens/model --data "$dir/g.jsonl" --init-adapter $goldens/adapter/initial_adapter --no-shuffle --batch-size 2 \
    --gradient-accumulation-steps 2 --epochs 1 --learning-rate 0.005 --warmup-steps 3 --weight-decay 0.1 --max-grad-norm 0.5 --out "$dir/g1"
against "$dir/g1" $goldens/adapter
batches $goldens/full/batches.json >"$dir/g.jsonl"
expect 0 train --model $goldens/model --method full --data "$dir/g.jsonl" --no-shuffle --batch-size 4 --max-steps 20 \
    --learning-rate 0.002 --lr-scheduler linear --warmup-ratio 0.1 --weight-decay 0.01 --out "$dir/g2"
against "$dir/g2" $goldens/full

begin "what a run begins with, and what is finished, is not replaced without being asked for"
expect 0 train --model "$model" --data "$dir/rows.jsonl" --out "$dir/first" --max-steps 2 --save-steps 1
cp "$dir/first/adapter_model.safetensors" "$dir/kept"
for from in "$dir/first" "$dir/first/checkpoint-1"; do
    expect 1 train --model "$model" --data "$dir/rows.jsonl" --init-adapter "$from" --out "$dir/first" --overwrite --max-steps 1
    says "cannot write over what is read: .*initial adapter"
done
for option in data eval-data; do        # the later one wins
    cp "$dir/rows.jsonl" "$dir/first/checkpoint-1/d.jsonl"
    cp "$dir/rows.jsonl" "$dir/first/metrics.jsonl"
    for what in metrics.jsonl checkpoint-1/d.jsonl "../rows.jsonl,$dir/first/checkpoint-1/d.jsonl"; do
        expect 1 train --model "$model" --data "$dir/rows.jsonl" --$option "$dir/first/$what" --out "$dir/first" --overwrite --max-steps 1
        says "cannot write over what is read: $dir/first"
    done
done
[ -s "$dir/first/checkpoint-1/d.jsonl" ] && [ -s "$dir/first/metrics.jsonl" ] || wrong "the data were overwritten"
rm -rf "$dir/first/checkpoint-1" "$dir/first/checkpoint-2"
expect 1 train --model "$model" --data "$dir/rows.jsonl" --out "$dir/first" --max-steps 2 --resume; says "nothing to go on from: .*a finished run without one"
same "$dir/first/adapter_model.safetensors" "$dir/kept"

begin "the base of a run is not cleared with the run that it is a checkpoint of"
expect 0 train --method full --model "$model" --data "$dir/rows.jsonl" --out "$dir/whole" --max-steps 2 --save-steps 1
cp "$dir/whole/checkpoint-1/model.safetensors" "$dir/kept"
expect 1 train --model "$dir/whole/checkpoint-1" --data "$dir/rows.jsonl" --out "$dir/whole" --max-steps 1 --overwrite
says "cannot write over what is read: .*found the model"
same "$dir/whole/checkpoint-1/model.safetensors" "$dir/kept"

begin "a second signal at once is the first one's, and one run at a time writes in DIR: there is a checkpoint"
for first in INT HUP; do
    rm -rf "$dir/signals"
    (trap - INT HUP; exec $EXE "$LORA" train --model "$model" --data "$dir/rows.jsonl" --out "$dir/signals" --epochs 100000 --save-steps no \
        --threads 1 >"$dir/running" 2>&1) &
    pid=$!
    i=0; while ! grep -q '"step":2' "$dir/signals/metrics.jsonl" 2>/dev/null && [ $i -lt 3000 ]; do i=$((i + 1)); sleep 0.02 2>/dev/null || sleep 1; done
    for more in --overwrite --resume; do
        expect 1 train --model "$model" --data "$dir/rows.jsonl" --out "$dir/signals" --epochs 100000 --save-steps no $more
        says "^lora: another run is writing here: $dir/signals$"
    done
    kill -STOP $pid; kill -$first $pid; kill -TERM $pid; kill -CONT $pid      # both are there when it goes on
    wait $pid; code=$?
    case $first$code in INT130|INT143|HUP129|HUP143) ;; *) wrong "exit $code" ;; esac
    cp "$dir/running" "$dir/log"
    says "^stopping: .*a second signal ends it"
    ls -d "$dir/signals"/checkpoint-* >/dev/null 2>&1 || wrong "no checkpoint"
    [ -e "$dir/signals/.lock" ] && wrong "a lock is left"
done

finish
