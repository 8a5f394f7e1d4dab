"""Fine-tuning as people ask for it: labelled files, columns and a window become a request of a training pipeline.

Pure but for looking at folders. May import: jos.core. Tests: tests/unit/test_finetune.py.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jos.core.errors import BadRequest

PIPELINES = {"head": "fine-tuning-omega", "knn": "knn-fine-tuning-omega"}  # by method
TRAIN, EVAL = "worker.train_data", "worker.eval_data"
CLASSIFY = "machine-state-classification"  # what uses the checkpoints
Labelled = tuple[str, str]  # path, class


def labelled(given: Iterable[str | Path | tuple[str | Path, str]], option: str) -> list[Labelled]:
    """Files with their classes, sorted within each thing given: a folder, whose sub-folders are the classes; a file or
    a glob, whose class is the folder that a file lies in; `FILE,class=NAME`; or (file, class). Raises BadRequest that
    names all that give none; `option` says what was given."""
    found, wrong = list[Labelled](), list[str]()
    for one in given:
        path, label, mistake = _read(one)
        files = [] if mistake else _files(Path(path).expanduser())
        if not files:
            wrong.append(f"{str(one)!r}: {mistake or 'there is no CSV file.'}")
        found += [(str(file), label or file.absolute().parent.name) for file in files]
    if wrong:
        raise BadRequest(
            f"{option} " + f"; {option} ".join(wrong),
            suggestion="Name a folder with one sub-folder for each class (train/idle/*.csv, train/busy/*.csv), a glob "
            "like 'train/*/*.csv', or FILE,class=NAME.",
        )
    return list(dict.fromkeys(found))


def _read(one: str | Path | tuple[str | Path, str]) -> tuple[str, str, str]:
    """(path, class or "", what is wrong with it or "")."""
    if isinstance(one, tuple):
        return str(one[0]), str(one[1]), "" if str(one[1]) else "its class is empty."
    path, comma, pair = str(one).rpartition(",class=")
    if comma:
        return path, pair, "" if pair else "its class is empty."
    if isinstance(one, Path) or Path(one).expanduser().exists():
        return str(one), "", ""
    path, comma, _ = one.partition(",")
    return path, "", "what follows the comma must be class=NAME." if comma else ""


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.glob("*/*") if _is_csv(file))
    if path.is_file():
        return [path]
    return sorted(file for file in map(Path, glob.glob(str(path), recursive=True)) if _is_csv(file))


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv" and not path.name.startswith(".") and path.is_file()


def upload_names(files: Iterable[str]) -> dict[str, str]:
    """Path -> what to call it on a server, which knows a file by its name alone: folders of classes like to hold files
    of the same names, and these are told apart by the folders, as many as it takes."""
    paths = {file: Path(file).expanduser().absolute() for file in files}
    names = {path: path.name for path in paths.values()}
    for depth in range(2, max((len(path.parts) for path in names), default=0)):
        counts = Counter(names.values())
        if len(counts) == len(names):
            break
        names = {p: "_".join(p.parts[-depth:]) if counts[name] > 1 else name for p, name in names.items()}
    return {file: names[path] for file, path in paths.items()}


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
