"""Writes sktime's BasicMotions as CSV files: python examples/wearables/prepare.py FOLDER

FOLDER/train/CLASS/*.csv   40 recordings of 10 s, one activity each
FOLDER/test/*.csv          40 others, five to a file, as a logger would have written them
FOLDER/truth.csv           the activity of each row of the test files; it stays here
FOLDER/reader.json         how the files are read: columns, and a window of 5 s each half a second
"""

import csv
import json
import sys
from pathlib import Path

from sktime.datasets import load_basic_motions

COLUMNS = ["time_ms", "acc_x", "acc_y", "acc_z", "gyr_x", "gyr_y", "gyr_z"]
READER = {"data_columns": COLUMNS[1:], "timestamp_column": COLUMNS[0], "window_size": 50, "step_size": 5}  # rows


def write(path, recordings):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [row for recording in recordings for row in recording.T]
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(COLUMNS)
        out.writerows([100 * at, *(f"{value:.6f}" for value in row)] for at, row in enumerate(rows))


folder = Path(sys.argv[1])
series, labels = load_basic_motions(split="train", return_type="numpy3D")
for number, (recording, label) in enumerate(zip(series, labels, strict=True)):
    write(folder / "train" / label / f"wrist_{label}_{number:02}.csv", [recording])

series, labels = load_basic_motions(split="test", return_type="numpy3D")
with (folder / "truth.csv").open("w", newline="") as file:
    truth = csv.writer(file)
    truth.writerow(["file", "class"])
    for number in range(8):  # the set is sorted by activity: every eighth, so that a file shows several
        name = f"wrist_day_{number + 1}.csv"
        write(folder / "test" / name, series[number::8])
        truth.writerows((name, label) for label in labels[number::8] for _ in range(series.shape[2]))
(folder / "reader.json").write_text(json.dumps(READER))
print(f"{len(series)} recordings to learn from and 8 files to classify are in {folder}")
