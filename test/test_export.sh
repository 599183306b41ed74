# lora export over the small goldens: what it writes, wrong usage, refusals that leave no file or the old one.
passed=0 failed=0
lora=${LORA:-build/lora}
data=test/goldens/data/lora-grad/llama
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

result() {      # NAME STATUS: one test
    if [ "$2" = 0 ]; then passed=$((passed + 1)); echo "ok   $1"; else failed=$((failed + 1)); echo "FAIL $1"; fi
}
has() { grep -qF -- "$2" "$1" || { echo "  no '$2' in:"; cat "$1"; return 1; }; }
# export CODE WORDS...: messages in $work/error
export_() {
    want=$1; shift
    $EXE "$lora" export "$@" >"$work/out" 2>"$work/error"
    code=$?
    [ $code = "$want" ] && [ ! -s "$work/out" ] || { echo "  exit $code, not $want: $*"; cat "$work/error"; return 1; }
}

export_ 0 --model $data/model --adapter $data/patterns/adapter --out "$work/a.gguf" &&
    has "$work/error" "a.gguf: 8 linears" && [ "$(head -c 4 "$work/a.gguf")" = GGUF ] && [ ! -e "$work/a.gguf.tmp" ] &&
    has "$work/a.gguf" blk.1.ffn_down.weight.lora_b &&
    cp "$work/a.gguf" "$work/first" && export_ 0 --model $data/model --adapter $data/patterns/adapter --out "$work/a.gguf" &&
    cmp "$work/a.gguf" "$work/first"
result "a file, and the same over it" $?

export_ 2 --model $data/model --adapter $data/patterns/adapter && has "$work/error" "--out are needed" &&
    export_ 2 --model $data/model --out "$work/b.gguf" &&
    export_ 2 --model $data/model --adapter $data/patterns/adapter --adapter $data/patterns/adapter --out "$work/b.gguf" &&
    has "$work/error" "one --adapter" && [ ! -e "$work/b.gguf" ]
result "wrong usage" $?

mkdir "$work/dora" && cp $data/patterns/adapter/* "$work/dora" &&
    sed 's/"use_dora": false/"use_dora": true/' $data/patterns/adapter/adapter_config.json >"$work/dora/adapter_config.json" &&
    export_ 1 --model $data/model --adapter "$work/dora" --out "$work/a.gguf" && has "$work/error" "use_dora" &&
    cmp "$work/a.gguf" "$work/first" &&
    export_ 1 --model $data/model --adapter $data/patterns/adapter --out "$work/dora" && [ ! -e "$work/dora.tmp" ] &&
    export_ 1 --model $data/model --adapter $data/patterns/adapter --out "$work/none/a.gguf" &&
    cp -r $data/model "$work/model" &&
    export_ 1 --model "$work/model" --adapter $data/patterns/adapter --out "$work/model" && has "$work/error" "over the model"
result "refused: what was there stays, nothing half-written" $?

export_ 0 --model test/goldens/data/train/model --adapter test/goldens/data/train/adapter/initial_adapter --out "$work/z.gguf" &&
    has "$work/error" "changes nothing"
result "an adapter that changes nothing is warned of" $?

echo "$passed passed, $failed failed, 0 skipped"
