"""Workers that the tests and benchmarks run: tiny, deterministic, and able to misbehave when told to."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from jos.core.spans import cut
from jos.records import RecordFailed, RecordWorker
from jos.worker import JobImpossible, Output, Plan, Prepared, Source, Span, Trainer, Worker


class Noop(Worker):
    """As many tasks as the input file says, none of which does anything: what is left is orchestration."""

    port = ""

    def setup(self) -> None:
        self.batch_size = int(self.context.config["batch_size"])

    def plan(self, source: Source) -> Plan:
        with source.open() as file:
            tasks = int(file.read())
        return Plan(cut(tasks, int(self.context.config["span_tasks"])))

    def read(self, source: Source, span: Span) -> range:
        return range(span.start, span.end)

    def compute(self, batch: range) -> int:
        for _task in batch:
            pass
        return len(batch)

    def write(self, source: Source, span: Span, data: range, results: list[int]) -> Output:
        return Output()


class Shout(RecordWorker):
    """The text in capitals; `seconds` makes a record slow, `trace` names a file that tells what was worked on."""

    def setup(self) -> None:
        self.span_records = int(self.context.config.get("span_records", 16))
        self.seconds = float(self.context.config.get("seconds", 0))

    def process(self, record: dict[str, Any]) -> Mapping[str, Any]:
        if self.seconds:
            time.sleep(self.seconds)
        if "refuse" in record:
            raise RecordFailed(str(record["refuse"]))
        if "trace" in record:
            with open(record["trace"], "a") as trace:
                trace.write(record["text"] + "\n")
        return {"text": record["text"].upper()}


class Fragile(Shout):
    """Does what a record tells it: raise, die, or die once (marked by a file)."""

    def setup(self) -> None:
        super().setup()
        if impossible := self.context.config.get("impossible"):
            raise JobImpossible(str(impossible))
        if self.context.config.get("broken_setup"):
            os._exit(3)

    def process(self, record: dict[str, Any]) -> Mapping[str, Any]:
        match record.get("do"):
            case "raise":
                raise ValueError("this record is poison")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "die once" if not Path(record["mark"]).exists():
                Path(record["mark"]).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(3600)
        return super().process(record)


class OutOfMemoryError(RuntimeError):
    """Named as torch's is; JOS knows it by its name."""


class Hungry(Shout):
    """A GPU too small for batches of more than `fits` records."""

    def setup(self) -> None:
        super().setup()
        self.batch_size = 16

    def process_batch(self, records: Any) -> Any:
        if len(records) > 3:
            raise OutOfMemoryError("CUDA out of memory")
        return super().process_batch(records)


class QuickTrain(Trainer):
    """Gradient descent on a line, with momentum and seeded noise: the state is everything, or the end differs."""

    def setup(self) -> None:
        config = self.context.config
        self.total, self.every = int(config["steps"]), int(config["span_steps"])
        self.seconds = float(config.get("seconds", 0))
        self.random = random.Random(int(config["seed"]))
        self.slope, self.momentum = 0.0, 0.0

    def steps(self) -> Plan:
        return Plan(cut(self.total, self.every))

    def step(self, number: int) -> Mapping[str, float]:
        if self.seconds:
            time.sleep(self.seconds)
        x = self.random.uniform(-1, 1)
        error = self.slope * x - 3.0 * x
        self.momentum = 0.9 * self.momentum + error * x
        self.slope -= 0.05 * self.momentum
        return {"loss": error * error, "slope": self.slope}

    def save(self) -> bytes:
        version, words, gauss = self.random.getstate()
        return orjson.dumps([self.slope, self.momentum, version, list(words), gauss])

    def load(self, state: bytes) -> None:
        self.slope, self.momentum, version, words, gauss = orjson.loads(state)
        self.random.setstate((version, tuple(words), gauss))


class TwoStageTrain(Trainer):
    """Numbers from text ({"x": 1.5} a line), prepared over all indexes; then a mean that creeps up to them.
    A checkpoint at the end of each epoch; `stop_after` epochs it stops early. `seconds` makes both slow."""

    def setup(self) -> None:
        config = self.context.config
        self.batch_size = 4
        self.seconds, self.mean = float(config["seconds"]), 0.0
        self.random = random.Random(int(config["seed"]))
        self.scale = float(self.context.once("scale", self._scale))

    def _scale(self) -> bytes:
        self.context.warn("scale.made", f"made by process {os.getpid()}")
        return b"2.0"

    def plan(self, source: Source) -> Plan:
        lines = source.read_range(0, source.num_bytes).splitlines()
        every = int(self.context.config["span_records"])
        return Plan(cut(len(lines), every), output_name="{input_id}.numbers", header=b"numbers\n")

    def read(self, source: Source, span: Span) -> list[bytes]:
        return source.read_range(0, source.num_bytes).splitlines()[span.start : span.end]

    def compute(self, batch: list[bytes]) -> list[float]:
        time.sleep(self.seconds * len(batch))
        return [float(orjson.loads(line)["x"]) * self.scale for line in batch]

    def write(self, source: Source, span: Span, data: list[bytes], results: list[list[float]]) -> Output:
        return Output(b"".join(b"%r\n" % x for batch in results for x in batch))

    def begin(self, prepared: Sequence[Prepared]) -> None:
        self.numbers = [float(line) for one in prepared for line in one.read().splitlines()[1:]]
        if not self.numbers:
            raise JobImpossible("there are no numbers to learn from")
        assert len(self.numbers) == sum(one.tasks for one in prepared)
        assert {one.port for one in prepared} == {"worker.data"}

    def steps(self) -> Plan:
        return Plan(cut(int(self.context.config["epochs"]) * len(self.numbers), max(1, len(self.numbers) // 2)))

    def step(self, number: int) -> Mapping[str, float]:
        time.sleep(self.seconds)
        self.mean += 0.1 * (self.random.choice(self.numbers) - self.mean)
        self.epoch_ended = (number + 1) % len(self.numbers) == 0
        stop = self.context.config["stop_after"]
        self.finished = stop is not None and number + 1 >= stop * len(self.numbers)
        return {"mean": self.mean}

    def save(self) -> bytes:
        version, words, gauss = self.random.getstate()
        return orjson.dumps([self.mean, version, list(words), gauss])

    def load(self, state: bytes) -> None:
        self.mean, version, words, gauss = orjson.loads(state)
        self.random.setstate((version, tuple(words), gauss))

    def checkpoint(self) -> bytes | None:
        return b"mean %r" % self.mean if self.epoch_ended else None


class TrainTogether(Trainer):
    """Linear regression in torch, with momentum. Each rank takes its share of a step's rows; the gradients are
    added up over all, so that any number of ranks comes to the same weights."""

    def setup(self) -> None:
        import torch

        config = self.context.config
        self.total, self.every, self.group = (int(config[name]) for name in ("steps", "span_steps", "group"))
        self.seconds, self.seed = float(config["seconds"]), int(config["seed"])
        self.trace = str(config["trace"])
        made = torch.Generator().manual_seed(self.seed)
        self.rows = torch.randn(256, 8, generator=made, dtype=torch.float64)
        self.wanted = self.rows @ torch.arange(8, dtype=torch.float64)
        self.weights, self.momentum = torch.zeros(2, 8, dtype=torch.float64)

    def steps(self) -> Plan:
        return Plan(cut(self.total, self.every), group=self.group)

    def step(self, number: int) -> Mapping[str, float]:
        import torch

        rank, ranks = self.context.rank, self.context.ranks
        if self.trace:
            with open(self.trace, "a") as trace:
                trace.write(f"{rank} {os.getpid()} {number}\n")
        time.sleep(self.seconds)
        batch = torch.randperm(256, generator=torch.Generator().manual_seed(self.seed + number))[:32]
        mine = batch[rank::ranks]
        gradient = self.rows[mine].T @ (self.rows[mine] @ self.weights - self.wanted[mine]) / len(batch)
        if ranks > 1:
            torch.distributed.all_reduce(gradient)
        self.momentum = 0.9 * self.momentum + gradient
        self.weights = self.weights - 0.05 * self.momentum
        return {"norm": float(self.weights.norm()), "ranks": ranks}

    def save(self) -> bytes:
        return orjson.dumps([self.weights.tolist(), self.momentum.tolist()])

    def load(self, state: bytes) -> None:
        import torch

        self.weights, self.momentum = (torch.tensor(v, dtype=torch.float64) for v in orjson.loads(state))
