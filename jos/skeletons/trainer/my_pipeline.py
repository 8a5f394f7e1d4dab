"""The worker of the pipeline my-pipeline: fits y = f(x) to rows of x,y, with cosines of random frequencies."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jos.core.spans import cut
from jos.records import scan
from jos.worker import InputInvalid, JobImpossible, Output, Plan, Prepared, Source, Span, Trainer

SPAN_ROWS, SPAN_STEPS = 1000, 50  # choose 0.2-1 s of work each; the state is saved after each span of steps


class MyPipeline(Trainer):
    batch_size = 256

    def setup(self) -> None:
        """Once in each index: everything that needs no data, in its initial state. All that is random is seeded."""
        config = self.context.config
        self.width, self.seed = config["features"], config["seed"]
        # the first index to ask draws them; what it drew is kept with the job, for all others and every later attempt
        self.waves = np.frombuffer(self.context.once("waves", self._draw)).reshape(2, self.width)
        self.weights, self.momentum = np.zeros(self.width), np.zeros(self.width)
        self.loss, self.least, self.improved = 1.0, 1.0, False

    def _draw(self) -> bytes:
        return np.random.default_rng(self.seed).normal(0, 2, (2, self.width)).tobytes()

    # --- first stage, on all indexes: whatever is to be done once to each row ---

    def plan(self, source: Source) -> Plan:
        rows, offsets = scan(source, SPAN_ROWS)
        hints = list(itertools.pairwise([*offsets, source.num_bytes]))
        return Plan(cut(rows, SPAN_ROWS), hints, output_name="{input_id}.features")

    def read(self, source: Source, span: Span) -> np.ndarray[Any, Any]:
        lines = source.read_range(*span.hint).decode().splitlines()[span.start - span.hint_start :][: len(span)]
        try:
            return np.array([[float(cell) for cell in line.split(",")] for line in lines]).reshape(len(span), 2)
        except ValueError as error:
            where = f"{source.filename} lines {span.start + 1} to {span.end}"
            raise InputInvalid(f"{where}: rows of two numbers, x,y, are expected ({error}).") from error

    def compute(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """(rows, 2) -> (rows, features + 1), the last column being y."""
        frequencies, phases = self.waves
        return np.column_stack([np.cos(np.outer(batch[:, 0], frequencies) + phases), batch[:, 1]])

    def write(self, source: Source, span: Span, data: Any, results: list[Any]) -> Output:
        return Output(np.concatenate(results).tobytes())

    # --- second stage: steps, in order ---

    def begin(self, prepared: Sequence[Prepared]) -> None:
        """All that the first stage made, in the order of the inputs."""
        rows = [np.frombuffer(one.read()).reshape(-1, self.width + 1) for one in prepared]
        if sum(map(len, rows)) < 2:
            raise JobImpossible("there are fewer than 2 rows to learn from")
        table = np.concatenate(rows)
        self.features, self.wanted = table[:, :-1], table[:, -1]

    def steps(self) -> Plan:
        """With `group` > 1 so many indexes do each step together, as far as the job has them."""
        return Plan(cut(self.context.config["steps"], SPAN_STEPS), group=self.context.config["group"])

    def step(self, number: int) -> Mapping[str, float]:
        """What a step does depends on its number and the state alone, so that any index can go on after any death."""
        batch = np.random.default_rng([self.seed, number]).integers(0, len(self.wanted), 64)
        mine = batch[self.context.rank :: self.context.ranks]  # this index's share of the batch
        wrong = self.features[mine] @ self.weights - self.wanted[mine]
        sums = np.append(self.features[mine].T @ wrong, wrong @ wrong) / len(batch)
        if self.context.ranks > 1:
            import torch  # extra `train`

            torch.distributed.all_reduce(torch.from_numpy(sums))  # adds up over the group, in place
        self.momentum = 0.9 * self.momentum - 0.05 * sums[:-1]
        self.weights = self.weights + self.momentum
        self.loss = 0.9 * self.loss + 0.1 * float(sums[-1])
        self.improved, self.least = self.loss < self.least, min(self.loss, self.least)
        self.finished = self.loss < self.context.config["enough"]  # the steps that are left are not needed
        return {"loss": self.loss}

    def save(self) -> bytes:
        """Everything that the next step depends on."""
        return np.concatenate([self.weights, self.momentum, [self.loss, self.least]]).tobytes()

    def load(self, state: bytes) -> None:
        self.weights, self.momentum, rest = np.split(np.frombuffer(state), [self.width, 2 * self.width])
        self.loss, self.least = map(float, rest)

    def checkpoint(self) -> bytes | None:
        """Asked after each span of steps: the model as other jobs can use it, if it is worth keeping."""
        if not self.improved:
            return None
        return json.dumps({"waves": self.waves.tolist(), "weights": self.weights.tolist()}).encode()
