#!/bin/sh
# Runs the test programs and scripts, two at a time (TEST_JOBS: so many), sums their counts, and ends with one line. A
# program whose last line is not a count has died: a failure. So is one that counts nothing at all, or whose exit status
# is not that of its count, and, where there is a timeout(1) as GNU's, one that takes half an hour (TEST_LIMIT: seconds).
# Each line has the seconds that the test took.
# Threads that wait must not spin: tests use more of them than there are processors.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"

# run.sh --one FOLDER TEST: what it says is in FOLDER under its name when it is done, the seconds beside it.
if [ "$1" = --one ]; then
    name=$2/$(basename "$3")
    start=$(date +%s)
    limit="timeout --foreground ${TEST_LIMIT:-1800}"
    $limit true 2>/dev/null || limit=
    case $3 in
    *.sh) $limit sh "$3" ;;
    *)    $limit $EXE "$3" ;;
    esac >"$name.part" 2>&1 </dev/null
    echo $? >"$name.status"
    echo $(($(date +%s) - start)) >"$name.seconds"
    mv "$name.part" "$name.out"
    echo "$3"
    exit 0      # xargs goes on
fi

folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM
passed=0 failed=0 skipped=0

# show TEST: its line, what it skipped, and what failed in it.
show() {
    name=$(basename "$1")
    output=$(cat "$folder/$name.out" 2>/dev/null || cat "$folder/$name.part" 2>/dev/null)
    seconds=$(cat "$folder/$name.seconds" 2>/dev/null)
    last=$(printf '%s\n' "$output" | tail -n 1)
    case $last in
    [0-9]*" passed, "[0-9]*" failed, "[0-9]*" skipped") ;;
    *) output="$output
FAIL $name ended without its count"; last="0 passed, 1 failed, 0 skipped" ;;
    esac
    p=${last%% passed*}; f=${last#*passed, }; f=${f%% failed*}; s=${last#*failed, }; s=${s%% skipped*}
    status=$(cat "$folder/$name.status" 2>/dev/null)
    if [ "$f" = 0 ] && { [ "$status" != 0 ] || [ $((p + s)) = 0 ]; }; then
        f=1 last="$p passed, 1 failed, $s skipped"
        output="$output
FAIL $name: exit status $status"
    fi
    printf '%-24s %4s s  %s\n' "${name%.sh}" "$seconds" "$last"
    [ "$f" = 0 ] && [ -z "$VERBOSE" ] && printf '%s\n' "$output" | grep '^skip ' | sed 's/^/    /'
    { [ "$f" != 0 ] || [ -n "$VERBOSE" ]; } && printf '%s\n' "$output" | sed 's/^/    /'
    passed=$((passed + p)); failed=$((failed + f)); skipped=$((skipped + s))
}

# The scripts first, as the longest are among them; shown in this order, each as soon as those before it are.
set -- test/test_*.sh "$@"
printf '%s\n' "$@" | xargs -n 1 -P "${TEST_JOBS:-2}" sh "$0" --one "$folder" | {
    while read -r _; do
        while [ $# -gt 0 ] && [ -e "$folder/$(basename "$1").out" ]; do show "$1"; shift; done
    done
    for t in "$@"; do show "$t"; done       # of those that were never done
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ]
}
