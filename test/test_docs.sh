#!/bin/sh
# What the documents name is there: every `file.c`, `function()`, table[] and `--option` between backticks.
. test/checks.sh
docs=$(ls ./*.md docs/*.md test/goldens/*.md 2>/dev/null)
sources=$(ls ./*.c ./*.h ./*.cu ./*.cuh vectors/*.[ch] text/*.[ch] formats/*.[ch] jobs/*.[ch] docs/*.[ch] docs/*.cu docs/ladder/*.[ch] verify/*.[ch] test/*.[ch] 2>/dev/null)
for doc in $docs; do
    missing=
    words=$(sed -e 's/``*/`/g' "$doc" | grep -o '`[^` ]*`' | tr -d '\140' | sort -u)
    for word in $words; do
        case $word in
        *'*'*|*NAME*|*TENSOR*|*STEP*|*.jsonl|*.json|*.safetensors|*.gguf) continue ;;
        *.c|*.h|*.cu|*.cuh|*.awk|*.py|*.sh|*.md)
            [ -e "$word" ] || [ -n "$(find . -path "*/$word" -not -path './build*' 2>/dev/null | head -n 1)" ] \
                || missing="$missing $word" ;;
        *'()') grep -qE "(^|[^a-z_0-9])${word%??}\(" $sources || missing="$missing $word" ;;
        *'[]') grep -qE "(^|[^a-z_0-9])${word%??}\[" $sources || missing="$missing $word" ;;
        --*) grep -qE "\"${word#--}[\"|]" $sources || grep -qE "[|\"]${word#--}\"" $sources || missing="$missing $word" ;;
        esac
    done
    [ -z "$missing" ] || echo "  not there:$missing"
    [ -z "$missing" ]; result "what $doc names is there" $?
done

# The page on the GPU path has every kernel.
missing=
for kernel in $(sed -n 's/^static __global__ void \(__launch_bounds__([^)]*) \)*\([a-z_0-9]*\)(.*/\2/p' ./*.cu ./*.cuh); do
    grep -q "\`$kernel\`" docs/cuda.md || missing="$missing $kernel"
done
[ -z "$missing" ] || echo "  not named:$missing"
[ -z "$missing" ]; result "every kernel is in docs/cuda.md" $?

# Each figure of the pages on NF4 and on bounds is made again, and the pack that the first page draws, which training lays down too.
$EXE "$(dirname "$LORA")/docs/nf4" docs/nf4.md
result "the figures of docs/nf4.md" $?
$EXE "$(dirname "$LORA")/docs/bounds" docs/bounds.md
result "the figures of docs/bounds.md" $?
begin "what lora verify prints of them"
if [ -n "$EXE" ]; then
    skip "too slow under an emulator"
else
    checked
    said=$(lora verify --backend ref --op matmul_dw | grep '^matmul_dw ') && grep -qF "$said" docs/bounds.md || wrong "$said"
fi
end
$EXE "$(dirname "$LORA")/docs/pack" docs/one-row.md
result "the pack of docs/one-row.md" $?
sed -n '/cat three.jsonl/,/lora train/s/^ *{/{/p' docs/one-row.md >"$dir/three.jsonl"
$EXE "$LORA" train --model data/model --data "$dir/three.jsonl" --batch-size 3 --max-steps 1 --out "$dir/out" --dry-run >"$dir/log" 2>&1 \
    && [ "$(wc -l <"$dir/three.jsonl")" = 3 ] && said=$(grep '^tokens: ' "$dir/log") && grep -q "^ *$said" docs/one-row.md
result "what lora train says of its rows" $?

begin "what the step of docs/one-row.md gives"
if [ -n "$EXE" ] || [ -z "$LORA_MODEL" ] || [ ! -r "$LORA_MODEL" ]; then
    skip "LORA_MODEL names no model file, or an emulator is too slow"
else
    sed -n '/cat row.jsonl/,/lora train/s/^ *{/{/p' docs/one-row.md >"$dir/row.jsonl"
    expect 0 train --model "$LORA_MODEL" --data "$dir/row.jsonl" --out "$dir/one" --max-steps 1 --warmup-steps 0 --learning-rate 1e-3
    for figure in "seven losses is %.4f" loss "together is %.3f" grad_norm "N = %d," computed_tokens "T = %d targets" target_tokens; do
        case $figure in *%*) format=$figure; continue ;; esac
        said=$(sed "s/.*\"$figure\":\([^,}]*\).*/\1/" "$dir/one/metrics.jsonl" | awk -v f="$format" '{ printf f, $1 }')
        grep -qF "$said" docs/one-row.md || wrong "the page does not say: $said"
    done
fi
end
finish
