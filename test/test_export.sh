# lora export over the small goldens: what it writes, wrong usage, refusals that leave no file or the old one.
. test/checks.sh
data=test/goldens/data/lora-grad/llama
has() { grep -qF -- "$2" "$1" || { echo "  no '$2' in:"; cat "$1"; return 1; }; }
# export CODE WORDS...: messages in $dir/error
export_() {
    want=$1; shift
    $EXE "$LORA" export "$@" >"$dir/out" 2>"$dir/error"
    code=$?
    [ $code = "$want" ] && [ ! -s "$dir/out" ] || { echo "  exit $code, not $want: $*"; cat "$dir/error"; return 1; }
}

export_ 0 --model $data/model --adapter $data/patterns/adapter --out "$dir/a.gguf" &&
    has "$dir/error" "a.gguf: 8 linears" && [ "$(head -c 4 "$dir/a.gguf")" = GGUF ] && [ ! -e "$dir/a.gguf.tmp" ] &&
    has "$dir/a.gguf" blk.1.ffn_down.weight.lora_b &&
    cp "$dir/a.gguf" "$dir/first" && export_ 0 --model $data/model --adapter $data/patterns/adapter --out "$dir/a.gguf" &&
    cmp "$dir/a.gguf" "$dir/first"
result "a file, and the same over it" $?

$EXE "$LORA" inspect --model "$dir/a.gguf" >"$dir/out" 2>"$dir/error"
[ $? = 1 ] && [ ! -s "$dir/out" ] && has "$dir/error" "lora: not a model: $dir/a.gguf: general.type: found adapter"
result "it is no model" $?

export_ 2 --model $data/model --adapter $data/patterns/adapter && has "$dir/error" "--out are needed" &&
    export_ 2 --model $data/model --out "$dir/b.gguf" &&
    export_ 2 --model $data/model --adapter $data/patterns/adapter --adapter $data/patterns/adapter --out "$dir/b.gguf" &&
    has "$dir/error" "one --adapter" && [ ! -e "$dir/b.gguf" ]
result "wrong usage" $?

mkdir "$dir/dora" && cp $data/patterns/adapter/* "$dir/dora" &&
    sed 's/"use_dora": false/"use_dora": true/' $data/patterns/adapter/adapter_config.json >"$dir/dora/adapter_config.json" &&
    export_ 1 --model $data/model --adapter "$dir/dora" --out "$dir/a.gguf" && has "$dir/error" "use_dora" &&
    cmp "$dir/a.gguf" "$dir/first" &&
    export_ 1 --model $data/model --adapter $data/patterns/adapter --out "$dir/dora" && [ ! -e "$dir/dora.tmp" ] &&
    export_ 1 --model $data/model --adapter $data/patterns/adapter --out "$dir/none/a.gguf" &&
    cp -r $data/model "$dir/model" &&
    export_ 1 --model "$dir/model" --adapter $data/patterns/adapter --out "$dir/model" && has "$dir/error" "found the model" &&
    cp -r $data/patterns/adapter "$dir/adapter" && for to in model/model adapter/adapter_model; do
        export_ 1 --model "$dir/model" --adapter "$dir/adapter" --out "$dir/$to.safetensors" && has "$dir/error" "expected another file for --out, found the ${to%%/*}" || break
        $EXE "$LORA" gradients --model "$dir/model" --adapter "$dir/adapter" --data $data/none --out "$dir/$to.safetensors" 2>"$dir/error"
        has "$dir/error" "expected another file for --out, found the ${to%%/*}" || break
    done && cmp "$dir/model/model.safetensors" $data/model/model.safetensors &&
    cmp "$dir/adapter/adapter_model.safetensors" $data/patterns/adapter/adapter_model.safetensors
result "refused: what was there stays, nothing half-written" $?

export_ 0 --model test/goldens/data/train/model --adapter test/goldens/data/train/adapter/initial_adapter --out "$dir/z.gguf" &&
    has "$dir/error" "changes nothing"
result "an adapter that changes nothing is warned of" $?

zero_adapter "$dir/one" model.layers.0.self_attn.q_proj 2 24 24
export_ 0 --model $data/model --adapter "$dir/one" --out "$dir/one.gguf" && has "$dir/error" "one.gguf: 1 linear," &&
    $EXE "$LORA" merge --model $data/model --adapter "$dir/one" --out "$dir/merged" 2>"$dir/error" && has "$dir/error" "merged: 1 linear merged"
result "one linear is one" $?

finish
