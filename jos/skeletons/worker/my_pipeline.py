"""The worker of the pipeline my-pipeline: rows of numbers in, a mean and the largest of each row out."""

import itertools
from typing import Any

import numpy as np

from jos.core.spans import cut
from jos.records import scan
from jos.worker import Output, Plan, Source, Span, Worker

SPAN_ROWS = 1000  # choose 0.2-1 s of work: a span is what a killed process costs


class MyPipeline(Worker):
    batch_size = 256  # rows in one call of `compute`; halved by itself where a GPU is too small

    def setup(self) -> None:
        """Once in each index: load models here. Raise JobImpossible where no attempt could succeed."""
        self.digits = self.context.config["digits"]

    def plan(self, source: Source) -> Plan:
        """How a file is cut: into tasks, here rows, and spans of tasks. The same on every machine. A span's hint tells
        `read` where it lies in the file."""
        rows, offsets = scan(source, SPAN_ROWS)
        hints = list(itertools.pairwise([*offsets, source.num_bytes]))
        return Plan(cut(rows, SPAN_ROWS), hints, output_name="{input_id}_rows.csv", header=b"row,mean,largest\n")

    def read(self, source: Source, span: Span) -> list[str]:
        """The span's tasks, as something that slices. Runs ahead of `compute`, in a thread of its own."""
        lines = source.read_range(*span.hint).decode().splitlines()
        return lines[span.start - span.hint_start :][: len(span)]

    def compute(self, batch: list[str]) -> list[Any]:
        """One call of the model; None for rows that are no numbers. An exception would fail the whole span, which is
        then cut in half again and again until the row at fault stands alone."""
        return [_summary(line) for line in batch]

    def write(self, source: Source, span: Span, data: list[str], results: list[Any]) -> Output:
        """The bytes of the span's tasks, and which of them failed. `results` holds one answer of `compute` per
        batch. The same span must always give the same bytes."""
        lines, failures = [], {}
        for row, answer in enumerate(itertools.chain.from_iterable(results), span.start):
            if answer is None:
                failures[row] = f"{self.where(source, row)}: numbers separated by commas are expected"
                lines.append(f"{row},,\n")
            else:
                mean, largest = answer
                lines.append(f"{row},{mean:.{self.digits}f},{largest:.{self.digits}f}\n")
        return Output("".join(lines).encode(), failures)

    def where(self, source: Source, task: int) -> str:
        return f"{source.filename} line {task + 1}"


def _summary(line: str) -> tuple[float, float] | None:
    try:
        numbers = np.array([float(cell) for cell in line.split(",")])
    except ValueError:
        return None
    return float(numbers.mean()), float(numbers.max())
