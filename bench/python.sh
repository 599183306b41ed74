#!/bin/sh
# A script of this folder in a Python environment that has the peers (PyTorch, Transformers, PEFT, bitsandbytes).
#
#   bench/python.sh SCRIPT [OPTION...]
#
# Makes the environment in build/bench-python first, by plain pip, some gigabytes; BENCH_PYTHON names
# another folder for it, PYTHON=/path/to/python an interpreter that has requirements.txt already.
set -e
here=$(cd "$(dirname "$0")" && pwd)
folder=${BENCH_PYTHON:-$here/../build/bench-python}
if [ -z "$PYTHON" ]; then
    PYTHON=$folder/bin/python
    if [ ! -e "$folder/complete" ]; then
        python3 -m venv "$folder"
        "$PYTHON" -m pip install -q -r "$here/requirements.txt"
        touch "$folder/complete"
    fi
fi
export PYTHONDONTWRITEBYTECODE=1
script=$1
shift
exec "$PYTHON" "$here/$script" "$@"
