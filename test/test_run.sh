#!/bin/sh
# test/run.sh and test/checks.sh themselves: what counts as a failure.
. test/checks.sh
here=$PWD
mkdir -p "$dir/test"
one() { printf '#!/bin/sh\n%s\n' "$2" >"$dir/test/test_$1.sh"; }    # one NAME COMMANDS: a test script
run() { (cd "$dir" && TEST_LIMIT=3 sh "$here/test/run.sh") >"$dir/log" 2>&1; code=$?; }

begin "tests that pass or are skipped"
one good 'echo "ok   a"; echo "2 passed, 0 failed, 0 skipped"'
one skips 'echo "skip b: it is not here"; echo "0 passed, 0 failed, 1 skipped"'
run
[ "$code" = 0 ] && [ "$(tail -n 1 "$dir/log")" = "2 passed, 0 failed, 1 skipped" ] || { wrong "exit $code"; cat "$dir/log"; }
says "^    skip b: it is not here$"

hangs='exec sleep 60'
timeout --foreground 1 true 2>/dev/null || hangs='exit 1'
begin "one that fails, dies, hangs, ends early, counts nothing, or ends with another status than its count"
for fault in 'echo "FAIL c"; echo "1 passed, 1 failed, 0 skipped"; exit 1' 'echo "ok   d"; kill -9 $$' 'echo "1 passed, 0 failed, 0 skipped"; kill -9 $$' \
             'echo "ok   e"' 'exit 0' 'echo "0 passed, 0 failed, 0 skipped"' 'echo "1 passed, 0 failed, 0 skipped"; exit 3' \
             'echo "1 passed, 0 failed, 0 skipped"; echo "more"' "$hangs"; do
    one faulty "$fault"
    run
    [ "$code" = 1 ] || wrong "exit $code: $fault"
    tail -n 1 "$dir/log" | grep -q "^[23] passed, 1 failed, 1 skipped$" || { wrong "$fault"; tail -n 3 "$dir/log"; }
    says "FAIL"
done

begin "a test of a script that checks nothing"
for script in 'begin a; end' 'begin a; checked; begin b' 'begin a; lora() { :; }; expect 0; begin b; end'; do
    sh -c ". test/checks.sh; $script; finish" >"$dir/log" 2>&1 && wrong "it passes: $script"
    says "^  nothing was checked$"; says " 1 failed, 0 skipped$"
done

begin "files that are not there neither differ nor are the same"
for check in differ same; do
    sh -c ". test/checks.sh; begin a; $check README.md $dir/none; begin b; $check $dir/none $dir/none; finish" >"$dir/log" 2>&1
    says "^0 passed, 2 failed, 0 skipped$"
done

begin "what is wrong outside a test"
sh -c ". test/checks.sh; lora() { return 1; }; expect 0; begin a; checked; end; expect 0; finish" >"$dir/log" 2>&1 && wrong "it passes"
says "^1 passed, 2 failed, 0 skipped$"
finish
