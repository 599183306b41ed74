#!/bin/sh
# This program and its peers (PyTorch, Transformers, PEFT, bitsandbytes) on the same rows: see README.md here.
#
#   bench/peers.sh [options of peers.py]
exec "$(dirname "$0")/python.sh" peers.py "$@"
