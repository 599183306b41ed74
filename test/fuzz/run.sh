# Fuzzes the readers of files: sh test/fuzz/run.sh [SECONDS]. With clang's fuzzer each target runs for
# SECONDS (default 60); without it, the seeds run whole, cut and damaged. Sanitizers are on in both.
set -e
cd "$(dirname "$0")/../.."
seconds=${1:-60}
out=${BUILD:-build}/fuzz
mkdir -p "$out"
flags="-std=c99 -D_POSIX_C_SOURCE=200809L -g -O1 -ffp-contract=off -Dmmap=no_mmap -I."
sanitize=-fsanitize=address,undefined
library="util.c weight.c blocks.c formats/json.c formats/names.c formats/safetensors.c formats/gguf.c test/fuzz/fuzz.c"
[ -d /dev/shm ] && export TMPDIR=/dev/shm       # files in memory: many more runs a second

printf '%s\n' '#include <stddef.h>' 'int LLVMFuzzerTestOneInput(const unsigned char *p, size_t n) { return p && n > 9; }' >"$out/probe.c"
if ${CLANG:-clang} -fsanitize=fuzzer -o "$out/probe" "$out/probe.c" 2>/dev/null; then fuzzer=1; else fuzzer=; fi

for kind in json safetensors gguf; do
    target=$out/fuzz_$kind
    if [ -n "$fuzzer" ]; then
        ${CLANG:-clang} $flags $sanitize,fuzzer -fno-sanitize-recover=all -o "$target" "test/fuzz/fuzz_$kind.c" $library -lm
        rm -rf "$out/corpus_$kind"
        mkdir -p "$out/corpus_$kind"
        cp test/fuzz/seeds/$kind-* "$out/corpus_$kind"
        echo "== $kind: $seconds s"
        "$target" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
            -artifact_prefix="$out/$kind-" "$out/corpus_$kind" >"$out/$kind.log" 2>&1 || { tail -n 40 "$out/$kind.log"; exit 1; }
        grep -E 'number_of_executed_units|new_units_added' "$out/$kind.log"
    else
        ${CC:-cc} $flags $sanitize -fno-sanitize-recover=all -o "$target" "test/fuzz/fuzz_$kind.c" test/fuzz/driver.c $library -lm
        echo "== $kind: no fuzzer in this compiler; seeds, whole, cut and damaged"
        "$target" test/fuzz/seeds/$kind-*
    fi
done
