"""`jos.run(...)` for notebooks and scripts: start a job, watch it, get its results as a DataFrame.

May import: jos.engine, jos.shown, jos.api.traces. Tests: tests/e2e/test_doors.py, tests/e2e/test_notebook.py.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from jos import wire
from jos.api.traces import Trace
from jos.core.errors import ComputeFailed, Conflict, JosError, NotFound
from jos.core.model import Checkpoint, Event, InputState, Output, Progress, Status, job_folder
from jos.core.model import Job as Record
from jos.engine import Engine
from jos.launch.local import LocalDriver
from jos.registry import component_id, pipeline_id
from jos.request import build
from jos.settings import Settings
from jos.shown import plots
from jos.shown.frames import frame_of
from jos.shown.handle import Shown
from jos.shown.look import TAIL, InputLine, Look, brief, tasks
from jos.shown.pipeline import Pipeline, chosen, together
from jos.shown.watching import bar, detachable, in_kernel
from jos.wiring import open_registry

if TYPE_CHECKING:
    import pandas

EXIT_FAULT = 2  # of a driver that could not even begin
FENCED = 3  # exit code of a driver that found another one at work
SILENCE_SECONDS = 60.0  # a driver that says nothing for so long, while nobody else started one, is gone


class JobFailed(JosError):
    """The job did not complete; the message says why and what to do."""

    code = "job_failed"


@cache
def _engine(settings_json: str) -> Engine:
    engine = Engine(Settings.model_validate_json(settings_json))
    atexit.register(engine.close)
    return engine


def engine(settings: Settings | None = None) -> Engine:
    """The process's engine for these settings; made once."""
    return _engine((settings or Settings()).model_dump_json())


def run(
    pipeline: str,
    inputs: Mapping[str, Any],
    parameters: Mapping[str, Any] | None = None,
    parallelism: int | None = None,
    *,
    name: str | None = None,
    version: str | None = None,
    settings: Settings | None = None,
) -> Job:
    """Starts a job and returns at once; `.wait()` for its end.

    inputs: port -> file or files; a file is a path or URL, or `(path, class)` for labelled examples.
    parameters: component -> {"parallelism": n, "config": {…}}; what is left out keeps the pipeline's default.
    Raises ConfigInvalid, BadRequest or NotFound with everything that is wrong with the request.

        job = jos.run("machine-state-classification",
                      inputs={"inference": "plant.csv", "n_shots": [("idle.csv", "idle"), ("busy.csv", "busy")]},
                      parallelism=2)
        frame = job.wait().to_pandas()
    """
    own = engine(settings)
    request = build(pipeline, inputs, parameters, parallelism=parallelism, name=name, version=version)
    job = own.submit(request)
    return Job(job.id, own, own.start(job.id))


def pipelines(settings: Settings | None = None) -> list[Pipeline]:
    """What `jos.run` can run; each shows its ports, versions and settings."""
    registry = open_registry(settings or Settings())
    found = []
    for one in registry.list():
        key, version = one.pipeline_key, one.pipeline_version
        at = registry.changed_at(key, version)
        found.append(
            wire.Pipeline(
                id=pipeline_id(key, version),
                components={name: component_id(key, version, name) for name in one.default_config},
                edges=[edge.model_dump(by_alias=True) for edge in one.edges],
                org_id=None,
                created_at=at,
                updated_at=at,
                **one.model_dump(mode="json", exclude={"edges"}),
            )
        )
    return together(found)


def pipeline(key: str, version: str | None = None, *, settings: Settings | None = None) -> Pipeline:
    """The latest published version, unless one is named. Raises NotFound."""
    found = chosen(pipelines(settings), key, version)
    if found is None:
        raise NotFound(
            f"there is no pipeline {key} {version or ''}".rstrip() + ".", suggestion="jos.pipelines() lists them."
        )
    return found


class Job(Shown):
    """A handle on one job. `jos.Job(job_id)` takes up a job of another process."""

    def __init__(self, job_id: str, on: Engine | None = None, driver: LocalDriver | None = None) -> None:
        self.id = job_id
        self._engine = on or engine()
        self._driver = driver

    def __repr__(self) -> str:
        return brief(self.record)

    @property
    def record(self) -> Record:
        return self._engine.get(self.id)

    @property
    def status(self) -> Status:
        return self.record.status

    @property
    def progress(self) -> dict[str, Any]:
        """Totals and a line per index, as of the driver's last heartbeat; empty before the first."""
        live = self._engine.live(self.id)
        return live.data if live else {}

    def events(self) -> list[Event]:
        """All events so far, oldest first."""
        found: list[Event] = []
        while True:
            _, more = self._engine.events(self.id, after=found[-1].id if found else 0)
            if not more:
                return found
            found.extend(more)

    def outputs(self) -> list[Output]:
        return self._engine.outputs(self.id)

    def inputs(self) -> list[dict[str, Any]]:
        return self._engine.inputs(self.id)

    def checkpoints(self) -> list[Checkpoint]:
        """Of a training job, by step: the last is the best. Its `id` is an input of another job."""
        return self._engine.checkpoints(self.id)

    def download(self, folder: str | Path = ".") -> list[Path]:
        """All outputs as files in `folder`; each complete or not there at all."""
        return [self._engine.download(self.id, output, Path(folder).expanduser()) for output in self.outputs()]

    # --- looking at it ---

    @property
    def _comeback(self) -> str:
        return f'jos.Job("{self.id}").wait()'

    def look(self) -> Look:
        record, live = self.record, self.progress
        lines = [_line(row) for row in self.inputs() if row["status"] != "reference"]
        counts = {name: sum(line.status == name for line in lines) for name in _STATES}
        done, total = tasks(lines, whole=True)
        latest: dict[str, Any] = {}
        if record.pipeline_type == "training":
            steps = self._engine.progress(self.id, limit=1, kind="training", order="desc")
            done, total = (steps[0].step or 0) if steps else 0, None
            latest = steps[0].metrics if steps else {}
        return Look(
            job=record,
            comeback=self._comeback,
            counts=counts,
            inputs=lines,
            events=self._engine.events(self.id, limit=TAIL, order="desc")[1][::-1],
            done=done,
            total=total,
            rate=live.get("tasks_per_second"),
            latest=latest,
            at=datetime.now(UTC),
        )

    def entries(self, *, kind: str | None = None) -> list[Progress]:
        """All progress entries, oldest first."""
        found: list[Progress] = []
        while more := self._engine.progress(self.id, after=found[-1].id if found else 0, kind=kind):
            found.extend(more)
        return found

    def _steps(self) -> list[Progress]:
        return self.entries(kind="training")

    def _curve(self) -> plots.Curve:
        trace, record = Trace(), self.record
        for entry in self.entries():
            trace.add(entry)
        seconds, _, points = trace.points(record.started_at or record.created_at, list[InputState](), plots.BUCKETS)
        return plots.curve_of(points, seconds)

    # --- waiting for it ---

    def wait(self, timeout: float | None = None, *, progress: bool = True, check: bool = True) -> Self:
        """Blocks until the job is over. Raises TimeoutError; and unless `check` is false, JobFailed when it did not
        complete. Interrupting it (Ctrl-C, a notebook's stop) raises Detached and leaves the job running.

        progress: a live page in a notebook, a bar elsewhere."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with detachable(self.id, self._comeback):
            if progress and in_kernel():
                with self._watched() as cell:
                    record = self._wait(timeout, deadline, lambda record: cell.show(last=record.status.terminal))
            else:
                with bar(total=None, unit=" tasks", desc=self.id[:12], disable=not progress) as shown:
                    record = self._wait(timeout, deadline, lambda record: self._show(shown, record))
        if check and record.status is not Status.COMPLETED:
            raise JobFailed(self._why(record), suggestion=f"jos.Job({self.id!r}).resume() goes on where it ended.")
        return self

    def _wait(self, timeout: float | None, deadline: float | None, show: Callable[[Record], None]) -> Record:
        while True:
            record = self.record
            show(record)
            if record.status.terminal:
                return record
            self._check_driver(record)
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {self.id} is still {record.status} after {timeout:g} s")
            time.sleep(0.2)

    def _show(self, shown: Any, record: Record) -> None:
        now = self.progress
        shown.total = now.get("items_total") if now.get("planned") else None
        shown.set_postfix_str(str(record.status), refresh=False)
        shown.update(max(0, now.get("items_processed", 0) - shown.n))

    def _check_driver(self, record: Record) -> None:
        """A driver that died without a word leaves the record RUNNING: say so instead of waiting for ever."""
        gone = self._driver is not None and self._driver.process.poll() is not None
        if gone:
            record = self.record  # its last word may have come just now
            if record.status.terminal:
                return
        live = self._engine.live(self.id)
        heard = max(record.updated_at, live.at) if live else record.updated_at
        silent = (datetime.now(UTC) - heard).total_seconds() > SILENCE_SECONDS
        if record.not_before is not None and record.not_before > datetime.now(UTC):
            silent = False  # it waits before it tries again
        if gone and self._driver is not None and self._driver.process.returncode == FENCED:
            gone = False  # another driver runs the job: ours stepped back
        if gone or silent:
            tail = f" Its last lines:\n{self._driver.tail()}" if self._driver else ""
            raise ComputeFailed(
                f"the driver of job {self.id} is gone.{tail}",
                suggestion=f"All committed work is safe: jos.Job({self.id!r}).resume() goes on from there.",
            )

    def _why(self, record: Record) -> str:
        return f"job {self.id} is {record.status}" + (f": {record.error.message}" if record.error else "")

    def cancel(self) -> Self:
        """Stops the job; what it committed stays, and `resume` goes on from there."""
        self._engine.cancel(self.id)
        return self

    def resume(self, *, take_over: bool = False) -> Self:
        """Goes on where the commit log ends: after a failure, a cancel, or a driver that was killed."""
        if self.status is Status.COMPLETED:
            raise Conflict(f"job {self.id} is already completed.")
        self._driver = self._engine.start(self.id, take_over=take_over)
        while self.status.terminal:  # until the new driver has it
            if self._driver.process.poll() is not None:
                if self.status.terminal and self._driver.process.returncode == EXIT_FAULT:
                    raise Conflict(f"job {self.id} was not resumed:\n{self._driver.tail(3)}")
                break
            time.sleep(0.05)
        return self

    def to_pandas(self) -> pandas.DataFrame:
        """All outputs as one DataFrame, in the order of the inputs, with the column `input_file`. Raises BadRequest
        without pandas."""
        names = {i["id"]: i["filename"] for i in self.inputs()}
        folder, read = job_folder(self.record.org_id, self.id), self._engine.storage.read
        return frame_of((names.get(o.input_id or "", ""), o.filename, read(folder + o.key)) for o in self.outputs())


_STATES = ("pending", "processing", "completed", "failed")


def _line(row: Mapping[str, Any]) -> InputLine:
    return InputLine(
        name=row["filename"],
        status=row["status"],
        done=row.get("done", 0),
        total=row.get("tasks"),
        failed=row.get("failed", 0),
        error=row.get("error_message") or "",
    )
