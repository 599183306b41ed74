# What test scripts share: the program, a folder that goes away, tests that begin and end, and their counts.
LORA=${LORA:-build/lora}
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0 skipped=0 name=

begin() { end; name=$1; bad=0; }
end() {
    [ -n "$name" ] || return 0
    if [ "$bad" = 0 ]; then passed=$((passed + 1)); echo "ok   $name"
    else failed=$((failed + 1)); echo "FAIL $name"; fi
    name=
}
skip() { skipped=$((skipped + 1)); echo "skip $name: $1"; name=; }
wrong() { bad=$((bad + 1)); echo "  $*"; }
