# lora inspect over the small goldens: totals, both forms, wrong usage, a damaged file.
passed=0 failed=0
lora=${LORA:-build/lora}
data=test/goldens/data/train
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

result() {      # NAME STATUS: one test
    if [ "$2" = 0 ]; then passed=$((passed + 1)); echo "ok   $1"; else failed=$((failed + 1)); echo "FAIL $1"; fi
}
has() { grep -qF -- "$2" "$1" || { echo "  no '$2' in:"; cat "$1"; return 1; }; }

$EXE "$lora" inspect --model $data/model --json "$work/m.json" >"$work/m.txt" &&
    has "$work/m.txt" "all   20 tensors, 6816 parameters, 27264 bytes" &&
    has "$work/m.txt" "F32   [32, 16]  2048 bytes  model.layers.1.self_attn.q_proj.weight" &&
    has "$work/m.json" '"parameters": 6816,' &&
    has "$work/m.json" '{"name": "model.layers.1.self_attn.q_proj.weight", "type": "F32", "shape": [32, 16], "parameters": 512, "bytes": 2048}'
result "a model's tensors and totals" $?

$EXE "$lora" inspect --adapter $data/adapter/initial_adapter --json - >"$work/a.json" &&
    has "$work/a.json" '"parameters": 1752,' &&
    has "$work/a.json" '"shape": [16, 3]' && ! grep -q '^all' "$work/a.json"
result "an adapter as JSON, alone on stdout" $?

$EXE "$lora" inspect 2>"$work/error"
[ $? = 2 ] && has "$work/error" "--model PATH or --adapter DIR" &&
    { $EXE "$lora" inspect --model a --adapter b 2>"$work/error"; [ $? = 2 ]; }
result "neither or both: wrong usage" $?

cp $data/adapter/initial_adapter/* "$work" && head -c 5000 $data/adapter/initial_adapter/adapter_model.safetensors >"$work/adapter_model.safetensors"
$EXE "$lora" inspect --adapter "$work" --json "$work/no.json" >"$work/out" 2>"$work/error"
[ $? = 1 ] && has "$work/error" "adapter_model.safetensors" && [ ! -s "$work/out" ] && [ ! -e "$work/no.json" ]
result "a file cut off: one error, nothing written" $?

echo "$passed passed, $failed failed, 0 skipped"
