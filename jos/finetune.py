"""Fine-tuning as people ask for it: labelled files, columns and a window become a request of a training pipeline.

Pure but for looking at folders. May import: jos.core. Tests: tests/unit/test_finetune.py.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jos.core.errors import BadRequest

PIPELINES = {"head": "fine-tuning-omega", "knn": "knn-fine-tuning-omega"}  # by method
TRAIN, EVAL = "worker.train_data", "worker.eval_data"
CLASSIFY = "machine-state-classification"  # what uses the checkpoints
Labelled = tuple[str, str]  # path, class


def labelled(texts: Iterable[str], option: str) -> list[Labelled]:
    """Files with their classes, sorted within each text. A text is a folder, whose sub-folders are the classes; a file
    or a glob, whose class is the folder that a file lies in; or `FILE,class=NAME`. Raises BadRequest that names all
    texts that give none."""
    found, wrong = list[Labelled](), list[str]()
    for text in texts:
        path, comma, pair = text.partition(",")
        key, _, label = pair.partition("=")
        if comma and (key != "class" or not label or "," in label):
            wrong.append(f"{text!r}: what follows the comma must be class=NAME.")
            continue
        files = _files(Path(path).expanduser())
        if not files:
            wrong.append(f"{text!r}: there is no CSV file.")
        found += [(str(file), label or file.absolute().parent.name) for file in files]
    if wrong:
        raise BadRequest(
            f"{option} " + f"; {option} ".join(wrong),
            suggestion="Name a folder with one sub-folder for each class (train/idle/*.csv, train/busy/*.csv), a glob "
            "like 'train/*/*.csv', or FILE,class=NAME.",
        )
    return list(dict.fromkeys(found))


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.glob("*/*") if _is_csv(file))
    if path.is_file():
        return [path]
    return sorted(file for file in map(Path, glob.glob(str(path), recursive=True)) if _is_csv(file))


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv" and not path.name.startswith(".") and path.is_file()


def pipeline_of(method: str) -> str:
    if method not in PIPELINES:
        raise BadRequest(f"there is no method {method!r}.", suggestion=f"Take one of: {', '.join(PIPELINES)}.")
    return PIPELINES[method]


def parameters(
    columns: Sequence[str],
    window: int,
    *,
    step: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Of the component `worker`; what is None keeps the pipeline's default. `window` and `step` are in rows."""
    reader = {"data_columns": list(columns), "window_size": window, "step_size": step}
    config = {"reader_config": _given(reader), "batch_size": batch_size, "seed": seed}
    if epochs is not None:
        config["train_config"] = {"epochs": epochs}
    return {"worker": {"config": _given(config)}}


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
