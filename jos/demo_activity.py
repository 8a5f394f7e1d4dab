"""`jos demo activity`: a small language model is told wrist recordings in words and says which activity they show.

BasicMotions (in the sktime package, see jos.demo): each recording becomes a line, how strongly each channel moves. The
40 train recordings are the labelled examples; the 40 test recordings are asked, with the examples most like them before
each; their truth stays aside. How far likeness alone would come, without any model, is printed beside the score. Then a
few recordings are described freely.
May import: jos.engine, jos.demo, rich, sktime and numpy when it runs. Tests: tests/unit/test_demo_activity.py and
`make demo-activity`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jos.core.errors import BadRequest
from jos.demo import CHANNELS, Drive
from jos.engine import Engine
from jos.request import build

LEVELS = ["still", "faint", "mild", "strong", "violent"]  # fifths of what the examples show
SYSTEM = "A person wears a motion sensor on the wrist. You are told how strongly each of its channels moves."
FREE = 4  # recordings described in the model's own words
Record = dict[str, Any]


def told(recordings: Any, of: Any) -> list[str]:
    """Recordings (n × channels × rows) in words: the spread of each channel, among the fifths of those in `of`."""
    import numpy as np

    fifths = np.quantile(of.std(axis=2), [0.2, 0.4, 0.6, 0.8], axis=0)  # 4 × channels
    levels = (recordings.std(axis=2)[:, None, :] > fifths[None]).sum(axis=1)
    return [", ".join(f"{c} {LEVELS[at]}" for c, at in zip(CHANNELS, one, strict=True)) for one in levels]


def write_files(folder: Path) -> tuple[list[Path], Path, Path, list[str]]:
    """(questions, labelled examples, free questions, truth of the questions)."""
    try:
        from sktime.datasets import load_basic_motions
    except ImportError as error:
        raise BadRequest("the demo's recordings are not here.", suggestion="pip install 'jos[demo]'.") from error
    train, train_labels = load_basic_motions(split="train", return_type="numpy3D")
    test, truth = load_basic_motions(split="test", return_type="numpy3D")
    folder.mkdir(parents=True, exist_ok=True)
    asked = [
        {"system": SYSTEM, "instruction": "What does the person do?", "prompt": text} for text in told(test, train)
    ]
    half = len(asked) // 2
    questions = [_write(folder / f"wrist_{n}.jsonl", some) for n, some in ((1, asked[:half]), (2, asked[half:]))]
    examples = [
        {"prompt": text, "label": str(label)} for text, label in zip(told(train, train), train_labels, strict=True)
    ]
    free = [
        {**one, "instruction": "Describe in one sentence how the person moves."}
        for one in asked[:: -(-len(asked) // FREE)]
    ]
    (folder / "truth.json").write_text(json.dumps([str(label) for label in truth]))
    return (
        questions,
        _write(folder / "examples.jsonl", examples),
        _write(folder / "free.jsonl", free),
        [str(label) for label in truth],
    )


def _write(path: Path, records: Sequence[Record]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(paths: Sequence[Path]) -> list[Record]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def score(said: Sequence[str | None], truth: Sequence[str]) -> dict[str, Any]:
    """Accuracy, and per class how many were there and how many of them were found."""
    pairs = list(zip(said, truth, strict=True))
    return {
        "accuracy": sum(s == t for s, t in pairs) / len(pairs),
        "classes": {
            label: (sum(t == label for t in truth), sum(s == t == label for s, t in pairs))
            for label in sorted(set(truth))
        },
    }


def by_likeness_alone(questions: Sequence[Path], examples: Path) -> list[str]:
    """The label of the example most like each question: what there is without a model."""
    from actors.nearest_texts import NearestTexts

    known = read([examples])
    index = NearestTexts([one["prompt"] for one in known])
    return [known[index.nearest(one["prompt"], 1)[0]]["label"] for one in read(questions)]


def run_demo(engine: Engine, folder: Path, parallelism: int, console: Console, drive: Drive) -> bool:
    """Files, two jobs, display, score. Returns whether there was anything to score."""
    folder = folder / "activity"
    questions, examples, free, truth = write_files(folder)
    console.print(f"{len(truth)} recordings told in words and their labelled examples are in {folder}/")
    labels = sorted(set(truth))
    inputs = {"data": questions, "examples": [examples]}
    answers = _asked(engine, folder, parallelism, drive, "demo: which activity", inputs, {"labels": labels})
    if not answers:
        return False
    _print_score(
        score([a["prediction"] for a in answers], truth), by_likeness_alone(questions, examples), truth, console
    )
    generation = {"do_sample": True, "max_new_tokens": 40, "temperature": 0.7, "top_p": 0.95, "repetition_penalty": 1.1}
    config = {"generation": generation, "seed": 7}
    described = _asked(engine, folder, 1, drive, "demo: in its own words", {"data": [free]}, config)
    console.print("\nand in the model's own words (135 million parameters: take them as they are):")
    for record, answer in zip(read([free]), described, strict=True):
        console.print(f"  [dim]{record['prompt']}[/]\n  → {answer['prediction']}", highlight=False)
    console.print(f"\nresults: {folder / 'results'}/*.jsonl    truth: {folder / 'truth.json'}")
    return bool(described)


def _asked(
    engine: Engine,
    folder: Path,
    parallelism: int,
    drive: Drive,
    name: str,
    inputs: Mapping[str, Sequence[Path]],
    config: Record,
) -> list[Record]:
    """A job's answers, in the order of its files and their lines."""
    parameters = {"worker": {"config": config}}
    request = build("activity-detection", inputs, parameters, parallelism=parallelism, name=name)
    job = engine.submit(request)
    drive(engine, job.id, False, False)
    order = [i["id"] for i in engine.inputs(job.id)]
    outputs = sorted(engine.outputs(job.id), key=lambda output: order.index(output.input_id or ""))
    return read([engine.download(job.id, output, folder / "results") for output in outputs])


def _print_score(scored: dict[str, Any], likest: Sequence[str], truth: Sequence[str], console: Console) -> None:
    table = Table("activity", "recordings", "found", box=None)
    for label, (there, found) in scored["classes"].items():
        table.add_row(label, str(there), str(found))
    console.print(table)
    alone = score(likest, truth)["accuracy"]
    console.print(
        f"[bold]accuracy {scored['accuracy']:.3f}[/] on {len(truth)} recordings that were never seen; "
        f"the most alike example's label alone: {alone:.3f}; guessing: {1 / len(set(truth)):.3f}"
    )
