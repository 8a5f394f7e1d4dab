"""Cuts the labelled Volve rows in two: python examples/drilling/prepare.py VOLVE FOLDER

VOLVE holds volve_drilling.csv and volve_not_drilling.csv, which are not part of this repository.

    FOLDER/train/CLASS/*.csv   the first half of the rows of each class
    FOLDER/test/*.csv          the second half, in turns of 100 rows of one class and 100 of the other
    FOLDER/truth.csv           the class of each row of the test files; it stays here
    FOLDER/reader.json         how the files are read: columns, window and step
"""

import csv
import json
import sys
from pathlib import Path

CLASSES = ["drilling", "not_drilling"]
TURN, FILES = 100, 5
READER = {
    "data_columns": ["BPOS", "DBTM", "FLWI", "HDTH", "HKLD", "ROP", "RPM", "SPPA", "WOB"],
    "timestamp_column": "DATE_TIME",
    "window_size": 16,  # rows
    "step_size": 4,
}

volve, folder = Path(sys.argv[1]), Path(sys.argv[2])
missing = [str(volve / f"volve_{name}.csv") for name in CLASSES if not (volve / f"volve_{name}.csv").exists()]
if missing:
    raise SystemExit(f"not there: {', '.join(missing)}")


def write(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


turns = {}  # class -> its test rows, in turns
for name in CLASSES:
    with (volve / f"volve_{name}.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    half = len(rows) // 2
    write(folder / "train" / name / f"rig_{name}.csv", header, rows[:half])
    turns[name] = [rows[at : at + TURN] for at in range(half, len(rows) - TURN + 1, TURN)]

pairs = list(zip(*turns.values(), strict=True))  # a turn of each class
with (folder / "truth.csv").open("w", newline="") as file:
    truth = csv.writer(file)
    truth.writerow(["file", "class"])
    for number in range(FILES):
        own = [(name, turn) for pair in pairs[number::FILES] for name, turn in zip(CLASSES, pair, strict=True)]
        write(folder / "test" / f"rig_day_{number + 1}.csv", header, [row for _, turn in own for row in turn])
        truth.writerows((f"rig_day_{number + 1}.csv", name) for name, turn in own for _ in turn)
(folder / "reader.json").write_text(json.dumps(READER))
print(f"{len(CLASSES)} files to learn from and {FILES} to classify are in {folder}")
