"""Hand-made jobs in storage: what a driver leaves behind, without one, to be recovered, verified and damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from jos.core.ids import new_id
from jos.core.ledger import STEPS, Blob, Commit, Entry, Finished
from jos.core.model import Distribute, InputPort, JobInput, JobSpec, Pipeline, job_folder, utc
from jos.core.plan import InputPlan
from jos.storage.base import Storage
from jos.storage.log import CommitLog

BEGAN = datetime(2026, 4, 14, 10, 0, 0, tzinfo=UTC)


def pipeline(**fields: Any) -> Pipeline:
    defaults: dict[str, Any] = {
        "pipeline_key": "kept",
        "pipeline_version": "1.0.0",
        "name": "Kept",
        "worker": "kept:Kept",
        "queue": "nightly",
        "default_config": {"worker": {"parallelism": 1, "config": {}}},
        "config_schema": {"worker": {"type": "object"}},
        "user_config_schema": {"worker": {"type": "object"}},
        "inputs": {"worker.data": InputPort(name="data")},
        "outputs": {},
    }
    return Pipeline(**{**defaults, **fields})


def spec(inputs: int = 2, *, training: bool = False, org_id: str = "org_a", job_id: str | None = None) -> JobSpec:
    """`training`: by steps alone, its inputs are only read."""
    port = InputPort(name="data", distribute=Distribute.REPLICATE if training else Distribute.SCATTER)
    return JobSpec(
        id=job_id or new_id("job"),
        org_id=org_id,
        name="kept",
        pipeline=pipeline(pipeline_type="training" if training else "batch", inputs={"worker.data": port}),
        parameters={"worker": {"parallelism": 3, "config": {}}},
        inputs=[
            JobInput(
                id=f"inp_{n}",
                port="worker.data",
                url=f"/in/{n}.csv",
                filename=f"{n}.csv",
                file_id=f"/in/{n}.csv",
                num_bytes=100,
                fingerprint="f",
            )
            for n in range(inputs)
        ],
        created_at=BEGAN,
    )


@dataclass
class Kept:
    """One job's folder. Each input has 20 tasks in two output files of two spans each, unless `tasks` says else."""

    storage: Storage
    spec: JobSpec = field(default_factory=spec)
    tasks: Mapping[int, int] = field(default_factory=dict)
    planned: bool = True
    clock: datetime = BEGAN

    def __post_init__(self) -> None:
        self.folder = job_folder(self.spec.org_id, self.spec.id)
        self.storage.create(f"{self.folder}job.json", self.spec.model_dump_json(by_alias=True).encode())
        if self.planned:
            ordinals = [STEPS] if self.training else range(len(self.spec.inputs))
            self.plan(0, [self.cut(o, self.tasks.get(o, 20)) for o in ordinals])
        self.log = CommitLog.open(self.storage, self.folder)

    @property
    def training(self) -> bool:
        return self.spec.pipeline.pipeline_type == "training"

    def cut(self, ordinal: int, tasks: int, error: str | None = None) -> InputPlan:
        bounds = [*range(0, tasks, 5), tasks] if tasks else [0]
        if ordinal == STEPS:
            return InputPlan(ordinal, bounds)
        return InputPlan(ordinal, bounds, [], 10, "{input_id}_{part}.txt", port="worker.out", error=error)

    def plan(self, group: int, plans: Sequence[InputPlan]) -> None:
        self.storage.create(f"{self.folder}plan/{group:08d}.json", orjson.dumps([p.to_json() for p in plans]))

    # --- the log

    def at(self) -> str:
        """A second later each time."""
        self.clock += timedelta(seconds=1)
        return utc(self.clock)

    def claim(self, attempt: str = "a", retry: int = 0) -> Entry:
        return self.log.claim(attempt, self.at(), retry)

    def put(self, key: str, data: bytes) -> Blob:
        self.storage.write(self.folder + key, data)
        return Blob(key, len(data), hashlib.sha256(data).hexdigest())

    def commit(self, ordinal: int, start: int, end: int, attempt: str = "a", failed: int = 0) -> Commit:
        """The fact that these tasks are done, and its bytes; the first `failed` of them failed."""
        name = f"{attempt}/{ordinal:06d}-{start:012d}-{end}"
        failures = tuple((task, f"task {task} is bad") for task in range(start, start + failed))
        if ordinal == STEPS:
            state = self.put(f"state/{name}", f"state {end}".encode())
            return Commit(ordinal, start, end, state=state, metrics={"loss": 1 / end})
        body = self.put(f"parts/{name}", f"tasks {start}..{end} of {ordinal}\n".encode())
        return Commit(ordinal, start, end, start // 10, failed=failed, failures=failures, body=body)

    def finished(self, ordinal: int, part: int, attempt: str = "a") -> Finished:
        """The output file of a part, put together."""
        bodies = sorted(self.log.ledger.of(ordinal).bodies[part], key=lambda c: c.start)
        data = b"".join(self.storage.read(self.folder + c.body.key) for c in bodies if c.body)
        blob = self.put(f"outputs/{attempt}/{ordinal:06d}-{part:06d}", data)
        return Finished(ordinal, part, f"{self.spec.inputs[ordinal].id}_{part}.txt", blob, 10, self.at())

    def append(self, *commits: Commit, finished: Sequence[Finished] = (), attempt: str = "a") -> Entry:
        return self.log.append(attempt, self.at(), commits, finished)

    def work(self, ordinal: int, attempt: str = "a", failed: int = 0) -> None:
        """The whole input, span by span; `failed` tasks of the first span fail."""
        for start in range(0, self.tasks.get(ordinal, 20), 5):
            self.append(self.commit(ordinal, start, start + 5, attempt, failed if not start else 0), attempt=attempt)
            if ordinal != STEPS and start % 10 == 5:
                self.append(finished=[self.finished(ordinal, start // 10, attempt)], attempt=attempt)

    def complete(self, attempt: str = "a", failed: int = 0) -> None:
        """Claims the log and does everything."""
        self.claim(attempt)
        for ordinal in [STEPS] if self.training else range(len(self.spec.inputs)):
            self.work(ordinal, attempt, failed)

    # --- harm

    def entry_key(self, number: int) -> str:
        return f"{self.folder}log/{number:020d}.json"

    def rewrite(self, number: int, change: Mapping[str, Any]) -> None:
        """An entry with other content."""
        data = orjson.loads(self.storage.read(self.entry_key(number)))
        self.storage.write(self.entry_key(number), orjson.dumps({**data, **change}))

    def flip(self, key: str, at: int = 3) -> None:
        """One bit."""
        data = bytearray(self.storage.read(key))
        data[at] ^= 1
        self.storage.write(key, bytes(data))

    def outputs(self) -> dict[str, bytes]:
        found = [f for one in self.log.ledger.inputs.values() for f in one.finished.values()]
        return {f.filename: self.storage.read(self.folder + f.blob.key) for f in found}
