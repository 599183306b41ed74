#!/bin/sh
# Faults planted in copies of the CUDA kernels: `lora verify` over the emulator finds each. The copies are compiled as the
# Makefile says in EMULATE, with their accesses checked.
. test/checks.sh
build=$(dirname "$LORA")
if [ -z "$EMULATE" ] || [ -n "$EXE" ]; then
    name="planted faults in CUDA kernels"
    if [ -n "$EXE" ]; then skip "too slow under an emulator"; else skip "this build has no emulator of CUDA that checks accesses"; fi
    finish; exit
fi
mkdir "$dir/cuda"

# planted FILE EDIT: all files copied, FILE with the edit of sed, and compiled.
planted() {
    for f in *.cu *.cuh; do
        if [ "$f" = "$1" ]; then sed "$2" "$f" >"$dir/$f"; else cp "$f" "$dir/$f"; fi
        [ "$f" != "$1" ] || [ -z "$2" ] || ! cmp -s "$f" "$dir/$f" || wrong "nothing was changed: $2"
        awk -v file="$f" -f test/emulate.awk "$dir/$f" >"$dir/cuda/$f"
    done
    $EMULATE -x c -c -o "$dir/kernels.o" "$dir/cuda/kernels_cuda.cu" 2>"$dir/log" || { wrong "it does not compile"; head -n 5 "$dir/log"; }
    ${CC:-cc} -shared -Wl,-Bsymbolic -Wl,--wrap=memset -Wl,--wrap=memcpy -Wl,--wrap=memmove -o "$dir/planted.so" "$dir/kernels.o" "$build/test/emulator.o" "$build/test/emulator_memory.o" -lm
}

# verify CODE OP [WORDS]
verify() {
    checked
    want=$1; op=$2; shift 2
    "$LORA" verify --backend "$dir/planted.so" --op $op "$@" >"$dir/out" 2>"$dir/log"
    code=$?
    [ "$code" = "$want" ] || { wrong "lora verify --op $op $*: exit $code, not $want"; tail -n 2 "$dir/out"; tail -n 3 "$dir/log"; }
}

# fault NAME FILE EDIT OP [WORDS]: found.   barrier N FILE OP [WORDS]: the N-th of the file left out, found by what is read.
fault() {
    what=$1 file=$2 edit=$3; shift 3
    begin "found: $what"
    planted "$file" "$edit"
    verify 1 "$@"
    grep -q ' failed: ' "$dir/out" || { wrong "no case failed"; tail -n 3 "$dir/log"; }
    end
}
barrier() {
    line=$(grep -n '^ *__syncthreads();' "$2" | sed -n "$1s/:.*//p")
    number=$1 file=$2; shift 2
    fault "barrier $number of $file left out, $*" "$file" "${line}s/__syncthreads();//" "$@"
    grep -q '^emulator: .*\(barrier\|did not write there\)' "$dir/log" || echo "  by its numbers alone"
}

begin "copies without a fault are right"
planted kernels_cuda.cu ''
for op in bias_backward swiglu rmsnorm gather; do verify 0 $op; done
end

barrier 1 kernels_cuda.cu bias_backward
barrier 2 kernels_cuda.cu rmsnorm
barrier 3 kernels_cuda.cu cross_entropy
barrier 4 kernels_cuda.cu adamw8bit
barrier 2 device.cuh rmsnorm
barrier 1 gemm_cuda.cuh matmul_dw
barrier 2 gemm_cuda.cuh matmul_dw
barrier 4 gemm_cuda.cuh matmul
barrier 6 gemm_cuda.cuh matmul --compute bf16
barrier 2 attention_cuda.cuh attention
barrier 4 attention_cuda.cuh attention

fault "a swapped index in sums of columns" kernels_cuda.cu 's/warp_sum(sums\[lane\]\[warp\])/warp_sum(sums[warp][lane])/' bias_backward
fault "a swapped index in gather" kernels_cuda.cu 's/x\[(size_t)rows\[m\] \* C + i\]/x[(size_t)rows[m] * C + C - 1 - i]/' gather
fault "an unguarded tail in gather" kernels_cuda.cu 's/if (i < C) out\[(size_t)m/out[(size_t)m/' gather
fault "an unguarded tail in AdamW" kernels_cuda.cu 's/if (i < n) adamw_one/adamw_one/' adamw
fault "an unguarded tail in a product" gemm_cuda.cuh 's/if (n + i < p->N) c\[i\] = result/c[i] = result/' matmul_dw
fault "a wrong sign in SwiGLU's backward" kernels_cuda.cu 's/(1 + z \* rest)/(1 - z * rest)/' swiglu_backward
fault "a wrong sign in the loss's gradient" kernels_cuda.cu 's/d -= weight\[s\]/d += weight[s]/' cross_entropy
fault "+= for = in rmsnorm" kernels_cuda.cu 's/out_n\[i\] = x_n\[i\] \* rstd/out_n[i] += x_n[i] * rstd/' rmsnorm
fault "= for += in sums of columns" kernels_cuda.cu 's/out\[i\] += sum;/out[i] = sum;/' bias_backward
finish
