#!/bin/sh
# What training is told, it does: each setting of the optimizer changes the numbers, a metric decides which weights are
# kept and when a run ends, and a pack has what it may have. Tiny random models.
. test/checks.sh

tiny_config 32 2 48 >"$dir/config.json"
rows 40 7 >"$dir/rows.jsonl"
model=$dir/model
expect 0 init --config "$dir/config.json" --out "$model" --seed 3
# pairs RUN NAME: step and that figure of every evaluation
pairs() { sed -n "s/.*\"step\":\([0-9]*\),.*\"eval_$2\":\([^,}]*\).*/\1 \2/p" "$1/metrics.jsonl"; }

begin "each setting changes the numbers"
set -- --model "$model" --data "$dir/rows.jsonl" --lora-r 2 --batch-size 8 --max-steps 6 --learning-rate 0.01 --threads 1 --backend ref
expect 0 train "$@" --out "$dir/plain"
for setting in "adam-epsilon 1e-3" "adam-beta1 0.5" "adam-beta2 0.9" "weight-decay 0.5" "max-grad-norm 0.01" "warmup-steps 3" \
               "warmup-ratio 0.5" "lr-scheduler linear" "lr-scheduler constant" "learning-rate 0.02" "lora-alpha 9" "lora-dropout 0.2" \
               "use-rslora true" "no-shuffle true" "batch-size 4" "gradient-accumulation-steps 2" "seed 1" "max-steps 5" "layers 0" \
               "max-length 10 --on-overlong truncate"; do
    expect 0 train "$@" --${setting%% *} ${setting#* } --out "$dir/other" --overwrite
    differ "$dir/plain/adapter_model.safetensors" "$dir/other/adapter_model.safetensors"
done
grep -q '"step":6,"epoch":1.2,' "$dir/plain/metrics.jsonl" || wrong "step 6 of 5 an epoch is not epoch 1.2"

begin "sizes: K, M, G and T are powers of 1024, with a B of 1000; whole numbers that an int cannot hold are refused"
for size in 1M=1048576 1MiB=1048576 1MB=1000000 2000K=2048000 2000KB=2000000 0.5G=536870912 0.5GB=500000000 0.001T=1099511627; do
    expect 0 train "$@" --out "$dir/sizes" --overwrite --max-memory "${size%=*}"
    grep -q "\"max-memory\": ${size#*=}[,}]*$" "$dir/sizes/run.json" || wrong "$size: $(grep max-memory "$dir/sizes/run.json")"
done
for option in lora-r batch-size threads seed=-1 epochs=x; do
    case $option in *=*) ;; *) option=$option=4294967297 ;; esac
    expect 2 train "$@" --out "$dir/small" "--$option"
done

begin "on and off are true and false too"
for word in on=0 true=0 True=0 off=2 false=2 no=2; do
    expect 0 train "$@" --out "$dir/words" --gradient-checkpointing "${word%=*}" --dry-run
    grep -q " ${word#*=} of 2 layers kept" "$dir/out" || wrong "$word: $(grep kept "$dir/out")"
done

begin "a resumed run refuses data of which one row is another"
expect 0 train "$@" --out "$dir/one-row" --save-steps 3
sed '1s/\[5,/[6,/' "$dir/rows.jsonl" >"$dir/changed.jsonl"
differ "$dir/rows.jsonl" "$dir/changed.jsonl"
expect 1 train "$@" --data "$dir/changed.jsonl" --out "$dir/one-row" --resume
says "data has changed"

# The evaluations are of rows that are trained on, at so high a rate that they rise and fall.
begin "the best weights are those of the first evaluation with the best figure, and a run ends so many evaluations later"
head -n 12 "$dir/rows.jsonl" >"$dir/eval.jsonl"
set -- --model "$model" --data "$dir/rows.jsonl" --eval-data "$dir/eval.jsonl" --lora-r 4 --batch-size 4 --lr-scheduler constant \
    --eval-steps 1 --save-steps 1000 --load-best --threads 1 --backend ref --max-steps 60
for metric in loss token_accuracy; do
    run=$dir/$metric
    expect 0 train "$@" --learning-rate 0.1 --early-stopping-patience 16 --metric-for-best "$(echo $metric | sed s/^loss/eval_loss/)" --out "$run"
    best=$(pairs "$run" $metric | awk -v up="$metric" '{ x = up == "loss" ? -$2 : $2 } NR == 1 || x > most { most = x; at = $1 } END { print at }')
    says "the best weights are those of step $best$"
    same "$run/adapter_model.safetensors" "$run/checkpoint-$best/adapter_model.safetensors"
    end=$((best + 16)); [ $end -le 60 ] || end=60
    [ "$(pairs "$run" $metric | tail -n 1 | sed 's/ .*//')" = $end ] || wrong "$metric: it did not end with step $end: $(pairs "$run" $metric)"
done

begin "an equal figure is no better one, in a run that was resumed too"
for run in whole resumed; do
    expect 0 train "$@" --learning-rate 0 --early-stopping-patience 3 --out "$dir/$run" --save-steps 1
    says "stopped early: 3 evaluations without a better one"
    [ "$(pairs "$dir/$run" loss | tail -n 1 | sed 's/ .*//')" = 4 ] || wrong "it did not end with step 4"
    rm -r "$dir/$run/checkpoint-4" "$dir/$run/checkpoint-3"
done
expect 0 train "$@" --learning-rate 0 --early-stopping-patience 3 --out "$dir/resumed" --save-steps 1 --resume
says "going on after step 2"; says "stopped early: 3 evaluations without a better one"
[ "$(pairs "$dir/resumed" loss | tail -n 1 | sed 's/ .*//')" = 4 ] || wrong "resumed, it did not end with step 4"

begin "a pack has what it may have, and a run of any length has room for every step"
for i in 1 2 3 4 5 6 7 8; do echo '{"input_ids":[5,6,7,8,9]}'; done >"$dir/alike.jsonl"
expect 0 train --model "$model" --data "$dir/alike.jsonl" --lora-r 2 --max-steps 1 --tokens-per-pack 4 --out "$dir/alike" --backend ref
grep -q '"tokens":40,"target_tokens":32,"computed_tokens":4,' "$dir/alike/metrics.jsonl" || wrong "rows that are all alike were computed again: $(cat "$dir/alike/metrics.jsonl")"
head -n 1 "$dir/alike.jsonl" >"$dir/one.jsonl"
printf '%s\n' '{"input_ids":[5,6,7,8]}' '{"input_ids":[5,6,9,8]}' '{"input_ids":[5,7,9,8]}' '{"input_ids":[5,7,10,8]}' >"$dir/tree.jsonl"
expect 0 train --model "$model" --data "$dir/tree.jsonl" --eval-data "$dir/one.jsonl" --lora-r 2 --batch-size 4 --max-steps 100000 --learning-rate 0 \
    --eval-steps 1 --save-steps no --early-stopping-patience 1 --out "$dir/tree" --backend ref
says "stopped early"
expect 0 train --model "$model" --data "$dir/alike.jsonl" --lora-r 2 --max-steps 100000 --dry-run
grep -q "; 400000 are computed in all steps" "$dir/out" || wrong "$(grep computed "$dir/out")"
for steps in 50000 100000; do
    expect 0 train --model "$model" --data "$dir/rows.jsonl" --lora-r 2 --batch-size 2 --max-steps $steps --dry-run
    sed -n 's/.*arena: all of these *\([0-9]*\).*/\1/p' "$dir/out" >"$dir/arena$steps"
done
[ "$(cat "$dir/arena100000")" -gt "$(cat "$dir/arena50000")" ] || wrong "room for no more than the steps that were measured"

begin "a gradient that cannot be zero, of q too; but of one input it is"
zero_adapter "$dir/zero" model.layers.1.self_attn.q_proj 2 32 32
expect 1 train --model "$model" --data "$dir/rows.jsonl" --init-adapter "$dir/zero" --max-steps 1 --out "$dir/z"
says "has no gradient: step 1, ${zero}A.weight"
printf '%s\n' '{"input_ids":[5,6]}' '{"input_ids":[7,8]}' >"$dir/pairs.jsonl"
expect 0 train --model "$model" --data "$dir/pairs.jsonl" --lora-r 2 --max-steps 1 --backend ref --out "$dir/pairs"
finish
