#!/bin/sh
# Which rows a step has, and which dropout masks each of them: by seed, by epoch, where an epoch ends. With a rate of 0 nothing
# is learnt, and a row has one loss whenever its step comes.
. test/checks.sh
figures() { sed -n "s/.*\"$2\":\([^,}]*\).*/\1/p" "$dir/$1/metrics.jsonl"; }
train() {       # DIR WORDS...
    to=$1; shift
    expect 0 train --model "$dir/model" --lora-r 2 --learning-rate 0 --backend ref --threads 1 --save-steps no --overwrite --out "$dir/$to" "$@"
}
tiny_config 32 2 48 0.3 >"$dir/config.json"
expect 0 init --config "$dir/config.json" --out "$dir/model" --seed 3
# row i of 8 has i targets
awk 'BEGIN { for (i = 1; i <= 8; i++) { s = 90; for (t = 1; t <= i; t++) s = s "," (7 * i + 3 * t) % 89; print "{\"input_ids\":[" s "]}" } }' >"$dir/rows.jsonl"

begin "an epoch has each row once, each epoch in an order of its own, another seed in others"
train file --data "$dir/rows.jsonl" --batch-size 1 --epochs 2 --no-shuffle
train one --data "$dir/rows.jsonl" --batch-size 1 --epochs 3 --seed 1
train two --data "$dir/rows.jsonl" --batch-size 1 --epochs 3 --seed 2
figures file loss | head -n 8 >"$dir/f"; figures file loss | tail -n 8 | cmp -s - "$dir/f" || wrong "--no-shuffle: two orders"
sort "$dir/f" >"$dir/rows"
[ "$(uniq "$dir/rows" | grep -c .)" = 8 ] || wrong "not 8 losses"
for run in one two; do
    for e in 0 1 2; do
        figures $run loss | sed -n "$((8 * e + 1)),$((8 * e + 8))p" >"$dir/$run$e"
        sort "$dir/$run$e" | cmp -s - "$dir/rows" || { wrong "$run, epoch $e: not each row once"; cat "$dir/$run$e"; }
    done
done
for pair in "one0 one1" "one1 one2" "one0 one2" "one0 two0" "one1 two1" "one0 f"; do
    differ "$dir/${pair% *}" "$dir/${pair#* }"
done

begin "a step has no rows of two epochs: the last of one has what is left"
train steps --data "$dir/rows.jsonl" --batch-size 3 --epochs 2 --no-shuffle
[ "$(figures steps target_tokens | tr '\n' ' ')" = "6 15 15 6 15 15 " ] || wrong "targets: $(figures steps target_tokens)"
[ "$(figures steps epoch | tr '\n' ' ')" = "0.333333333 0.666666667 1 1.33333333 1.66666667 2 " ] || wrong "epochs: $(figures steps epoch)"
train shuffled --data "$dir/rows.jsonl" --batch-size 3 --epochs 3 --seed 1
figures shuffled target_tokens | awk '{ s += $1 } NR % 3 == 0 { whole += s == 36; s = 0 } END { exit !(NR == 9 && whole == 3) }' || wrong "targets: $(figures shuffled target_tokens)"

begin "each row of a step has masks of its own, by seed"
tail -n 1 "$dir/rows.jsonl" >"$dir/once.jsonl"
cat "$dir/once.jsonl" "$dir/once.jsonl" >"$dir/twice.jsonl"
train start --data "$dir/rows.jsonl" --batch-size 8 --learning-rate 0.05 --warmup-steps 0 --max-steps 3
masks() { to=$1; shift; train "$to" --init-adapter "$dir/start" --lora-dropout 0.5 --no-shuffle "$@"; }
masks once --data "$dir/once.jsonl" --batch-size 1 --max-steps 2
masks twice --data "$dir/twice.jsonl" --batch-size 2 --max-steps 1
masks other --data "$dir/once.jsonl" --batch-size 1 --max-steps 2 --seed 9
# two rows of a step are visits 0 and 1, as one row's in two steps
awk -v a="$(figures once loss | head -n 1)" -v b="$(figures once loss | tail -n 1)" -v both="$(figures twice loss)" 'BEGIN {
    d = (a + b) / 2 - both; exit !(a != b && a > 0 && d <= 1e-6 && -d <= 1e-6) }' || wrong "$(figures once loss): $(figures twice loss)"
[ "$(figures once loss)" != "$(figures other loss)" ] || wrong "another seed, the same masks"
finish
