# lora inspect over the small goldens: totals, both forms, wrong usage, a damaged file.
. test/checks.sh
data=test/goldens/data/train
has() { grep -qF -- "$2" "$1" || { echo "  no '$2' in:"; cat "$1"; return 1; }; }

$EXE "$LORA" inspect --model $data/model --json "$dir/m.json" >"$dir/m.txt" &&
    has "$dir/m.txt" "all   20 tensors, 6816 parameters, 27264 bytes" &&
    has "$dir/m.txt" "F32   [32, 16]  2048 bytes  model.layers.1.self_attn.q_proj.weight" &&
    has "$dir/m.json" '"parameters": 6816,' &&
    has "$dir/m.json" '{"name": "model.layers.1.self_attn.q_proj.weight", "type": "F32", "shape": [32, 16], "parameters": 512, "bytes": 2048}'
result "a model's tensors and totals" $?

$EXE "$LORA" inspect --adapter $data/adapter/initial_adapter --json - >"$dir/a.json" &&
    has "$dir/a.json" '"parameters": 1752,' &&
    has "$dir/a.json" '"shape": [16, 3]' && ! grep -q '^all' "$dir/a.json"
result "an adapter as JSON, alone on stdout" $?

$EXE "$LORA" inspect 2>"$dir/error"
[ $? = 2 ] && has "$dir/error" "--model PATH or --adapter DIR" &&
    { $EXE "$LORA" inspect --model a --adapter b 2>"$dir/error"; [ $? = 2 ]; }
result "neither or both: wrong usage" $?

$EXE "$LORA" inspect --adapter $data/adapter 2>"$dir/error"
[ $? = 1 ] && has "$dir/error" "$data/adapter/adapter_config.json: expected this file" && has "$dir/error" "named: $data/adapter/initial_adapter"
result "an adapter in a folder: which" $?

cp $data/adapter/initial_adapter/* "$dir" && head -c 5000 $data/adapter/initial_adapter/adapter_model.safetensors >"$dir/adapter_model.safetensors"
$EXE "$LORA" inspect --adapter "$dir" --json "$dir/no.json" >"$dir/out" 2>"$dir/error"
[ $? = 1 ] && has "$dir/error" "adapter_model.safetensors" && [ ! -s "$dir/out" ] && [ ! -e "$dir/no.json" ]
result "a file cut off: one error, nothing written" $?

finish
