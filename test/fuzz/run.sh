# Fuzzes the readers of files: sh test/fuzz/run.sh [SECONDS [TARGET...]]. With clang's fuzzer each target
# runs for SECONDS (default 60), two at a time; without it, the seeds run whole, cut and damaged.
# Sanitizers are on in both. run.sh probe: is the fuzzer there?
set -e
cd "$(dirname "$0")/../.."
out=${BUILD:-build}/fuzz
mkdir -p "$out"
flags="-std=c99 -D_POSIX_C_SOURCE=200809L -g -O1 -ffp-contract=off -Dmmap=no_mmap -I."
sanitize=-fsanitize=address,undefined
[ -d /dev/shm ] && export TMPDIR=/dev/shm       # files in memory: many more runs a second

printf '%s\n' '#include <stddef.h>' 'int LLVMFuzzerTestOneInput(const unsigned char *p, size_t n) { return p && n > 9; }' >"$out/probe.c"
if ${CLANG:-clang} $sanitize,fuzzer -o "$out/probe" "$out/probe.c" 2>/dev/null; then
    cc="${CLANG:-clang} $sanitize,fuzzer" main=
else
    cc="${CC:-cc} $sanitize" main=test/fuzz/driver.c
fi
if [ "$1" = probe ]; then [ -z "$main" ]; exit; fi
seconds=${1:-60}
[ $# -eq 0 ] || shift
targets=${*:-json safetensors gguf config model tokenizer_json tokenizer_model tokenizer_gguf}

# The library once, for all targets; of it each takes what it needs.
objects=
for source in *.c text/*.c formats/*.c test/fuzz/fuzz.c; do
    case $source in main.c | *kernels*) continue ;; esac
    object=$out/$(echo "$source" | tr / _).o
    $cc $flags -fno-sanitize-recover=all -c -o "$object" "$source"
    objects="$objects $object"
done
rm -f "$out/library.a"
ar rcs "$out/library.a" $objects

fuzz() {
    $cc $flags -fno-sanitize-recover=all -o "$out/fuzz_$1" "test/fuzz/fuzz_$1.c" $main "$out/library.a" -lm || return 1
    if [ -n "$main" ]; then
        "$out/fuzz_$1" test/fuzz/seeds/"$1"-* >"$out/$1.log" 2>&1
        return
    fi
    rm -rf "$out/corpus_$1"
    mkdir -p "$out/corpus_$1"
    cp test/fuzz/seeds/"$1"-* "$out/corpus_$1"
    "$out/fuzz_$1" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$out/$1-" "$out/corpus_$1" >"$out/$1.log" 2>&1
}

# What the target said; its failure ends the script.
report() {
    if ! wait "$2"; then
        echo "== $1: FAILED"
        tail -n 40 "$out/$1.log"
        exit 1
    fi
    echo "== $1:" $(grep -E 'number_of_executed_units|new_units_added|whole, cut' "$out/$1.log")
}

[ -z "$main" ] && echo "$seconds s each" || echo "no fuzzer in this compiler; seeds, whole, cut and damaged"
last= pid=
for kind in $targets; do
    fuzz "$kind" &
    next=$!
    [ -z "$last" ] || report "$last" "$pid"
    last=$kind pid=$next
done
report "$last" "$pid"
