#!/bin/sh
# Runs the test programs and scripts, sums their counts, and ends with one line. A program whose
# last line is not a count has died: a failure.
# Threads that wait must not spin: tests use more of them than there are processors.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
passed=0 failed=0 skipped=0
for t in "$@" test/test_*.sh; do
    [ -e "$t" ] || continue
    case $t in
    *.sh) name=$(basename "$t" .sh); output=$(sh "$t" 2>&1) ;;
    *)    name=$(basename "$t");     output=$($EXE "$t" 2>&1) ;;
    esac
    last=$(printf '%s\n' "$output" | tail -n 1)
    case $last in
    [0-9]*" passed, "[0-9]*" failed, "[0-9]*" skipped") ;;
    *) output="$output
FAIL $name ended without its count"; last="0 passed, 1 failed, 0 skipped" ;;
    esac
    p=${last%% passed*}; f=${last#*passed, }; f=${f%% failed*}; s=${last#*failed, }; s=${s%% skipped*}
    printf '%-22s %s\n' "$name" "$last"
    [ "$f" = 0 ] && [ -z "$VERBOSE" ] && printf '%s\n' "$output" | grep '^skip ' | sed 's/^/    /'
    { [ "$f" != 0 ] || [ -n "$VERBOSE" ]; } && printf '%s\n' "$output" | sed 's/^/    /'
    passed=$((passed + p)); failed=$((failed + f)); skipped=$((skipped + s))
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
