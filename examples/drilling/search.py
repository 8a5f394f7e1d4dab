"""Tries many configurations at once: python examples/drilling/search.py FOLDER [WINDOWS [MODELS]]

WINDOWS and MODELS are lists such as 8,16 and stats,hydra. A job for each pair is created, then all are
waited for; the server runs as many at a time as it has room for. Results are scored against the truth, the best first.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import jos

sys.path.insert(0, str(Path(__file__).parents[1]))
from evaluate import score
from run import READER, create

folder = Path(sys.argv[1])
windows = [int(size) for size in (sys.argv[2] if len(sys.argv) > 2 else "8,16").split(",")]
models = (sys.argv[3] if len(sys.argv) > 3 else "stats,hydra").split(",")
step = READER["step_size"]

with jos.Client() as client:
    jobs = {
        (size, model): create(client, folder, f"{model}, {size}", READER | {"window_size": size}, model_type=model)
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
