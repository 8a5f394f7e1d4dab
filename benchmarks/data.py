"""Made-up inputs for the benchmarks: machines with nine sensors, as CSV, and records as JSON lines; seeded.

Three states differ in frequency, level and noise, so that neighbours mean something; the numbers are written with
four decimals, as data loggers do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

CHANNELS, WINDOW = 9, 64
COLUMNS = [f"sensor_{n}" for n in range(CHANNELS)]
STATES = ("idle", "running", "worn")
SHOT_ROWS = 512  # a file


def _signal(state: int, rows: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    time = np.arange(rows)[:, None]
    phase = random.uniform(0, 2 * np.pi, CHANNELS)
    wave = np.sin(2 * np.pi * (0.02 + 0.04 * state) * time + phase)
    return state + (0.5 + state) * wave + random.normal(0, 0.2 + 0.2 * state, (rows, CHANNELS))


def _csv(path: Path, values: np.ndarray) -> None:
    import pyarrow as pa
    from pyarrow import csv

    path.parent.mkdir(parents=True, exist_ok=True)
    start = np.datetime64("2026-01-01T00:00:00", "ms")
    stamps = np.datetime_as_string(start + 100 * np.arange(len(values)).astype("timedelta64[ms]"))
    columns = {"timestamp": stamps, **{c: np.round(values[:, n], 4) for n, c in enumerate(COLUMNS)}}
    csv.write_csv(pa.table(columns), path, csv.WriteOptions(quoting_style="none"))


def sensor_files(folder: Path, windows: int, files: int = 8) -> tuple[list[Path], dict[str, Path]]:
    """`files` CSV files with so many windows in all, in which the state changes now and then; and the n-shots."""
    inputs, each = [], windows // files
    for number in range(files):
        path = folder / f"machine-{windows}-{number}.csv"
        rows = each + WINDOW - 1
        pieces = -(-rows // 500)
        values = np.concatenate([_signal((p + number) % 3, 500, 1000 * number + p) for p in range(pieces)])[:rows]
        _csv(path, values)
        inputs.append(path)
    shots = {}
    for at, state in enumerate(STATES):
        shots[state] = folder / f"shot-{state}.csv"
        _csv(shots[state], _signal(at, SHOT_ROWS, 900_000 + at))
    return inputs, shots


def classify_config() -> dict[str, Any]:
    return {
        "reader_config": {
            "data_columns": COLUMNS,
            "timestamp_column": "timestamp",
            "window_size": WINDOW,
            "step_size": 1,
        },
        "classifier_config": {"n_neighbors": 5},
    }


def classify_request(name: object, inputs: list[Path], shots: dict[str, Path]) -> dict[str, Any]:
    return {
        "name": f"classify {name}",
        "pipeline_key": "machine-state-classification",
        "inputs": {
            "worker.inference": [{"file_id": str(path)} for path in inputs],
            "worker.n_shots": [{"file_id": str(path), "metadata": {"class": s}} for s, path in shots.items()],
        },
        "parameters": {"worker": {"parallelism": 2, "config": classify_config()}},
    }


def record_files(folder: Path, records: int, files: int = 8) -> list[Path]:
    """JSON lines with an id that is unique in all files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, each = [], records // files
    for number in range(files):
        path = folder / f"records-{number}.jsonl"
        lines = [json.dumps({"id": number * each + n, "text": f"record {n} of file {number}"}) for n in range(each)]
        path.write_text("\n".join(lines) + "\n")
        paths.append(path)
    return paths
