#!/bin/sh
# Matrix products by PyTorch, OpenBLAS and this program on the shapes of real models: see README.md here.
#
#   bench/products.sh [options of products.py]
exec "$(dirname "$0")/python.sh" products.py "$@"
