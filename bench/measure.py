#!/usr/bin/env python3
"""Runs a command as a child and says how long it took and the most memory that it had resident at once.

    python3 bench/measure.py [--most MB] COMMAND [WORD...]

With --most, more memory than that is a failure. A megabyte is 10^6 bytes.

Nothing but the standard library: the figure of a child counts what its parent had before the exec, so the
parent must be small.
"""
import os
import subprocess
import sys
import time


def run(command, **options):
    """subprocess.Popen's options; returns (exit status, seconds, bytes)."""
    start = time.perf_counter()
    child = subprocess.Popen([str(word) for word in command], **options)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(words):
    most = float("inf")
    if words[:1] == ["--most"] and len(words) > 2:
        most, words = float(words[1]), words[2:]
    if not words:
        sys.exit(__doc__.strip())
    code, seconds, peak = run(words)
    over = peak > most * 1e6
    print(f"{seconds:.1f} s, peak {peak / 1e6:.0f} MB" + (f": more than {most:g} MB" if over else ""), file=sys.stderr)
    return code or over


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
