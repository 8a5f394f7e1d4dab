"""`jos.run(...)` for notebooks and scripts: start a job, watch it, get its results as a DataFrame.

May import: jos.engine. Tests: tests/e2e/test_doors.py.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, Self

from tqdm.auto import tqdm

from jos.core.errors import ComputeFailed, Conflict, JosError
from jos.core.model import Event, Output, Status, job_folder
from jos.core.model import Job as Record
from jos.engine import Engine
from jos.launch.local import LocalDriver
from jos.request import build
from jos.settings import Settings

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


class Job:
    """A handle on one job. `jos.Job(job_id)` takes up a job of another process."""

    def __init__(self, job_id: str, on: Engine | None = None, driver: LocalDriver | None = None) -> None:
        self.id = job_id
        self._engine = on or engine()
        self._driver = driver

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.status}>"

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

    def wait(self, timeout: float | None = None, *, progress: bool = True, check: bool = True) -> Self:
        """Blocks until the job is over. Raises TimeoutError; and unless `check` is false, JobFailed when it did not
        complete. Interrupting (Ctrl-C, kernel stop) leaves the job running."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with tqdm(total=None, unit=" tasks", desc=self.id[:12], disable=not progress) as bar:
            while True:
                record = self.record
                self._show(bar, record)
                if record.status.terminal:
                    break
                self._check_driver(record)
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError(f"job {self.id} is still {record.status} after {timeout:g} s")
                time.sleep(0.2)
        if check and record.status is not Status.COMPLETED:
            raise JobFailed(self._why(record), suggestion=f"jos.Job({self.id!r}).resume() goes on where it ended.")
        return self

    def _show(self, bar: Any, record: Record) -> None:
        now = self.progress
        bar.total = now.get("items_total") if now.get("planned") else None
        bar.set_postfix_str(str(record.status), refresh=False)
        bar.update(max(0, now.get("items_processed", 0) - bar.n))

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
        """All outputs as one DataFrame, in the order of the inputs, with the column `input_file`."""
        import pandas

        names = {i["id"]: i["filename"] for i in self.inputs()}
        folder = job_folder(self.record.org_id, self.id)
        frames = []
        for output in self.outputs():
            data = BytesIO(self._engine.storage.read(folder + output.key))
            lines = output.filename.endswith(".jsonl")
            frame = pandas.read_json(data, lines=True) if lines else pandas.read_csv(data)
            frame.insert(0, "input_file", names.get(output.input_id or "", ""))
            frames.append(frame)
        return pandas.concat(frames, ignore_index=True) if frames else pandas.DataFrame()
