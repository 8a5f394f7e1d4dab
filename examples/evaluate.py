"""Scores results against the truth: python examples/evaluate.py FOLDER WINDOW STEP [RESULTS]

FOLDER/truth.csv has the class of each row of each file in FOLDER/test. A result file has a line for each window, in
order; windows that show two classes have no truth and do not count. RESULTS: FOLDER/results.
"""

import csv
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

PART = re.compile(r"_output_(.+)_part_(\d+)\.csv$")


def pairs(folder, results, window, step):
    """(truth, prediction) of each window that shows one class."""
    rows = defaultdict(list)
    with open(folder / "truth.csv", newline="") as file:
        for line in csv.DictReader(file):
            rows[line["file"]].append(line["class"])
    said = defaultdict(list)
    parts = [(PART.search(path.name), path) for path in results.glob("*.csv")]
    for found, path in sorted(parts, key=lambda part: (part[0][1], int(part[0][2]))):
        with open(path, newline="") as file:
            said[f"{found[1]}.csv"] += [line["Prediction"] for line in csv.DictReader(file)]
    if set(said) != set(rows):
        raise SystemExit(f"{results} has results of {len(said)} files, and {folder / 'truth.csv'} tells of {len(rows)}")
    for name, predictions in said.items():
        for number, prediction in enumerate(predictions):
            shown = set(rows[name][number * step : number * step + window])
            if len(shown) == 1:
                yield shown.pop(), prediction


def score(folder, results, window, step):
    """{"windows", "accuracy", "macro_f1", "recall" of each class}"""
    counts = Counter(pairs(Path(folder), Path(results), window, step))
    there, said = Counter(), Counter()
    for (truth, prediction), count in counts.items():
        there[truth] += count
        said[prediction] += count
    right = {name: counts[name, name] for name in sorted(there)}
    return {
        "windows": there.total(),
        "accuracy": sum(right.values()) / there.total(),
        "macro_f1": sum(2 * n / (there[name] + said[name]) for name, n in right.items()) / len(right),
        "recall": {name: n / there[name] for name, n in right.items()},
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    results = Path(sys.argv[4]) if len(sys.argv) > 4 else folder / "results"
    scored = score(folder, results, int(sys.argv[2]), int(sys.argv[3]))
    for name, recall in scored["recall"].items():
        print(f"  {name:<14} recall {recall:.3f}")
    print(f"accuracy {scored['accuracy']:.3f}, macro-F1 {scored['macro_f1']:.3f} on {scored['windows']} windows")
