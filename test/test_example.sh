#!/bin/sh
# docs/example.c trains: its loss falls, its adapter stands there whole; a bad model is an error.
. test/checks.sh
example=$(dirname "$LORA")/docs/example
cat > "$dir/rows.jsonl" <<'EOF'
{"input_ids": [1, 26, 50, 58, 60, 9, 26, 50], "labels": [-100, -100, 50, 58, 60, 9, 26, 50]}
{"input_ids": [1, 33, 54, 54, 57, 33, 54]}
EOF
$EXE "$example" test/goldens/data/train/model "$dir/rows.jsonl" "$dir/out" > "$dir/log" 2>&1
result "the example runs" $?
awk '/^step 1,/ { first = $4 } /^step 20,/ { last = $4 } END { exit !(last > 0 && last < first / 2) }' "$dir/log"
result "its loss falls to less than half" $?
[ -s "$dir/out/adapter_model.safetensors" ] && [ -s "$dir/out/adapter_config.json" ]
result "its adapter is there" $?
$EXE "$example" "$dir/nothing" "$dir/rows.jsonl" "$dir/out2" > /dev/null 2> "$dir/log2"
[ $? = 1 ] && [ -s "$dir/log2" ] && [ ! -e "$dir/out2" ]
result "no model: an error, and no adapter" $?
[ $failed = 0 ] || cat "$dir/log" "$dir/log2"
finish
