#!/usr/bin/env python3
"""Parts a CSV file of rows by their number: every tenth goes to apart.csv, the others to train.csv.

    bench/apart.py banking77/train.csv FOLDER
"""
import csv
import pathlib
import sys

if len(sys.argv) != 3:
    sys.exit(__doc__)
with open(sys.argv[1], newline="", encoding="utf-8") as source:
    head, *rows = csv.reader(source)
folder = pathlib.Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
for name, part in (("train", [row for i, row in enumerate(rows) if i % 10 != 9]), ("apart", rows[9::10])):
    with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([head, *part])
    print(f"{folder / name}.csv: {len(part)} rows")
