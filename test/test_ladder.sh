#!/bin/sh
# Each rung of docs/ladder is right at odd sizes, and what checks it can fail.
$EXE "$(dirname "$LORA")/docs/ladder/run" --check
