"""Shout that keeps count: each record computed adds a byte to a file of this process, which outlives a kill -9.

Used by benchmarks/resume.py, with the same `shout` for JOS and its rival. May import: jos.records, stdlib.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jos.records import RecordWorker


class Counter:
    """How many records this process has computed, as the length of a file that is only appended to."""

    def __init__(self, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = f"{os.getpid()}-{time.monotonic_ns()}"
        self.file = os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def add(self) -> None:
        os.write(self.file, b".")


def counted(folder: str | Path) -> int:
    """Records computed in all, by all processes so far."""
    return sum(path.stat().st_size for path in Path(folder).glob("*-*"))


def shout(text: str, seconds: float) -> str:
    time.sleep(seconds)
    return text.upper()


class CountedShout(RecordWorker):
    def setup(self) -> None:
        config = self.context.config
        self.span_records, self.seconds = int(config["span_records"]), float(config["seconds"])
        self.counter = Counter(str(config["folder"]))

    def process(self, record: dict[str, Any]) -> Mapping[str, Any]:
        text = shout(record["text"], self.seconds)
        self.counter.add()
        return {"id": record["id"], "text": text}
