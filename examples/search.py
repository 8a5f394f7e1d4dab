"""Tries many configurations at once: python examples/search.py FOLDER [WINDOWS [MODELS]]

WINDOWS and MODELS are lists such as 25,50 and stats,rocket,hydra; without them, the window of FOLDER/reader.json and
half of it, by two encoders. A job for each pair is created, then all are waited for; the server runs as many at a time
as it has room for. Results are scored against the truth, the best first.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from evaluate import score
from run import create

import jos

folder = Path(sys.argv[1])
reader = json.loads((folder / "reader.json").read_text())
size, step = reader["window_size"], reader["step_size"]
windows = [int(rows) for rows in sys.argv[2].split(",")] if len(sys.argv) > 2 else [size // 2, size]
models = (sys.argv[3] if len(sys.argv) > 3 else "stats,hydra").split(",")

with jos.Client() as client:
    jobs = {
        (size, model): create(client, folder, f"{model}, {size}", reader | {"window_size": size}, model_type=model)
        for size in windows
        for model in models
    }
    scores = []
    for (size, model), job in jobs.items():
        with TemporaryDirectory() as results:
            job.wait().download(results)
            scores.append((score(folder, results, size, step), size, model))

print("accuracy  macro-F1  window  model")
for scored, size, model in sorted(scores, key=lambda one: one[0]["macro_f1"], reverse=True):
    print(f"{scored['accuracy']:8.3f}  {scored['macro_f1']:8.3f}  {size:6}  {model}")
