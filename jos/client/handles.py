"""`Job`: a handle on one job of the service.

May import: jos.wire, jos.shown, jos.client.*. Tests: tests/e2e/test_client.py, tests/e2e/test_notebook.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self, TypeVar

from jos import wire
from jos.client.bars import Meter, metered, plain_name
from jos.client.errors import JobFailed, ServerFault, ServerUnreachable
from jos.client.http import Http, ambiguous
from jos.client.stream import PAGE, Following, events
from jos.client.transfer import fetch
from jos.core.errors import Conflict, NotFound, TooManyRequests
from jos.core.model import Status
from jos.shown import plots
from jos.shown.frames import frame_of
from jos.shown.handle import Shown
from jos.shown.look import LINES, READ, TAIL, InputLine, Look, Rate, brief, tasks
from jos.shown.watching import Cell, bar, detachable, in_kernel

if TYPE_CHECKING:
    import pandas

DOWNLOADS = 8  # at once
T = TypeVar("T")


def pages(get: Callable[[int], tuple[int, Sequence[T]]]) -> list[T]:
    """All items of a list; `get(offset)` gives (total, items)."""
    found: list[T] = []
    while True:
        total, items = get(len(found))
        found.extend(items)
        if not items or len(found) >= total:
            return found


class Job(Shown):
    """`client.job(job_id)` or what `client.jobs.create(…)` returned. `.record` is the job as it was last seen."""

    def __init__(self, http: Http, record: wire.Job) -> None:
        self._http = http
        self.record = record
        self._rate = Rate()

    def __repr__(self) -> str:
        return brief(self.record, self.record.input_progress.model_dump())

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def status(self) -> Status:
        """As it is now; one request, unless the job is known to be over."""
        return self.record.status if self.record.status.terminal else self.refresh().record.status

    @property
    def _path(self) -> str:
        return f"/batch/jobs/{self.id}"

    def refresh(self) -> Self:
        self.record = self._http.get(self._path, wire.Job)
        return self

    # --- following it ---

    def events(self, *, follow: bool = False, after: int = 0, **filters: str) -> Iterator[wire.Event]:
        """Oldest first; `follow` goes on until the job is over. Filters: level, event_type, input_id."""
        found = events(self._http, self.id, after=after, **filters)
        yield from found
        if not follow:
            return
        following = Following(self._http, self.id)
        following.last_event = found[-1].id if found else after
        for entry in following.run():
            if isinstance(entry, wire.Event) and all(str(getattr(entry, k)) == v for k, v in filters.items()):
                yield entry

    def follow(self) -> Iterator[wire.Event | wire.Progress]:
        """Events and progress entries from the first on, live, until the job is over."""
        yield from (e for e in Following(self._http, self.id).run() if e is not None)

    def wait(self, timeout: float | None = None, *, progress: bool | None = None, check: bool = True) -> Self:
        """Blocks until the job is over. Raises TimeoutError; and unless `check` is false, JobFailed when it did not
        complete. Interrupting it (Ctrl-C, a notebook's stop) raises Detached and leaves the job running.

        progress: a live page in a notebook, a bar elsewhere; None: only in a notebook.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with detachable(self.id, self._comeback):
            if progress is not False and in_kernel():
                with self._watched() as cell:
                    self._wait(deadline, _Page(cell))
            else:
                with bar(unit=" tasks", desc=self.id[:12], disable=not progress) as shown:
                    self._wait(deadline, _Bar(shown))
        if check and self.record.status is not Status.COMPLETED:
            error = self.record.error
            raise JobFailed(
                f"job {self.id} is {self.record.status}" + (f": {error.message}" if error else "."),
                suggestion="Job.retry(), or `jos retry`, goes on where it ended; committed work is not redone.",
            )
        return self

    def _wait(self, deadline: float | None, shown: _Bar | _Page) -> None:
        try:
            self._follow(deadline, shown)
        except TimeoutError:
            shown.end()
            raise
        shown.end()

    def _follow(self, deadline: float | None, shown: _Bar | _Page) -> None:
        if self.refresh().record.status.terminal:
            return
        shown.status(self.record.status)
        for entry in Following(self._http, self.id, deadline).run():
            if isinstance(entry, wire.Progress):
                shown.progress(entry)
            elif isinstance(entry, wire.Event) and entry.event_type.startswith("job."):
                shown.status(self.refresh().record.status)
                if self.record.status.terminal:
                    return
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {self.id} is still {self.refresh().record.status}.")
        self.refresh()

    # --- looking at it ---

    @property
    def _comeback(self) -> str:
        return f'client.job("{self.id}").wait()'

    def look(self) -> Look:
        self.refresh()
        lines, whole = self._lines()
        events = self._http.get(f"{self._path}/events", wire.EventList, limit=TAIL).events
        done, total = tasks(lines, whole)
        if not whole:
            done = self._curve().done[-1]
        latest: dict[str, Any] = {}
        if self.record.pipeline_type == "training":
            steps = self.entries(kind="training", order="desc", limit=1)
            done, total = (steps[0].step or 0) if steps else 0, None
            latest = steps[0].metrics if steps else {}
        return Look(
            job=self.record,
            comeback=self._comeback,
            counts=self.record.input_progress.model_dump(include={"pending", "processing", "completed", "failed"}),
            inputs=lines,
            events=sorted(events, key=lambda event: event.id),
            done=done,
            total=total,
            rate=self._rate.of(done, time.monotonic()),
            latest=latest,
            at=datetime.now(UTC),
        )

    def _lines(self) -> tuple[list[InputLine], bool]:
        """(tracked inputs, whether these are all); of very many, those that failed or are at work, and a few others."""
        path = f"{self._path}/inputs/progress"
        found = self._http.get(path, wire.InputProgressList, limit=READ)
        whole = found.total == len(found.items)
        if whole:
            return [_line(one) for one in found.items], True
        few = list(found.items[:LINES])
        for status in _TELLING:
            few += self._http.get(path, wire.InputProgressList, limit=LINES, status=status).items
        return [_line(one) for one in {one.input.id: one for one in few}.values()], False

    def entries(self, *, kind: str | None = None, order: str = "asc", limit: int | None = None) -> list[wire.Progress]:
        """Progress entries, oldest first unless `order` is `desc`; all of them, or `limit`."""

        def page(offset: int) -> tuple[int, Sequence[wire.Progress]]:
            size = PAGE if limit is None else min(limit - offset, PAGE)
            found = self._http.get(
                f"{self._path}/progress", wire.ProgressList, kind=kind, order=order, offset=offset, limit=size
            )
            return found.total if limit is None else min(found.total, limit), found.entries

        return pages(page)

    def _steps(self) -> Sequence[wire.Progress]:
        return self.entries(kind="training")

    def _curve(self) -> plots.Curve:
        found = self._http.get(f"{self._path}/inputs/progress/traces", wire.Traces, buckets=plots.BUCKETS)
        return plots.curve_of(found.points, found.bucket_seconds)

    def progress(self) -> dict[str, int]:
        """Tracked inputs by status: pending, processing, completed, failed."""
        counts = self._http.get(f"{self._path}/inputs/progress/counts", wire.InputProgressCounts)
        return counts.model_dump(include={"pending", "processing", "completed", "failed"})

    # --- changing it ---

    def cancel(self) -> Self:
        """Stops it within seconds; what it committed stays."""
        try:
            self._http.post(f"{self._path}/cancel", wire.Cancelled, twice=True)
        except Conflict as error:
            if not (ambiguous(error) and self.refresh().record.status is Status.CANCELLED):
                raise
        return self.refresh()

    def retry(self) -> Self:
        """FAILED or CANCELLED: goes on from what was committed, and tries failed inputs again."""
        before = self.refresh().record.retry_count
        try:
            self._http.post(f"{self._path}/retry", wire.Retried, twice=True)
        except Conflict as error:
            if not (ambiguous(error) and self.refresh().record.retry_count > before):
                raise
        return self.refresh()

    def delete(self) -> None:
        """Of a job that is over: its record, events, inputs and outputs are gone."""
        try:
            self._http.delete(self._path, wire.Deleted)
        except NotFound as error:
            if not ambiguous(error):
                raise

    # --- what went in and came out ---

    def inputs(self) -> list[wire.Input]:
        def page(offset: int) -> tuple[int, Sequence[wire.Input]]:
            found = self._http.get(f"{self._path}/inputs", wire.InputList, offset=offset, limit=PAGE)
            return found.total, found.inputs

        return pages(page)

    def inputs_progress(self) -> list[wire.InputProgress]:
        """Each input with its latest progress entry and its rank of completion."""

        def page(offset: int) -> tuple[int, Sequence[wire.InputProgress]]:
            path = f"{self._path}/inputs/progress"
            found = self._http.get(path, wire.InputProgressList, offset=offset, limit=PAGE)
            return found.total, found.items

        return pages(page)

    def outputs(self, **filters: str) -> list[wire.Output]:
        """Finished output files, also while the job runs. Filters: port_name, input_id."""

        def page(offset: int) -> tuple[int, Sequence[wire.Output]]:
            found = self._http.get(f"{self._path}/outputs", wire.OutputList, offset=offset, limit=PAGE, **filters)
            return found.total, found.outputs

        return pages(page)

    def checkpoints(self) -> list[wire.Checkpoint]:
        """Of a training job, by step: the last is the best. Its `id` is an input of another job."""

        def page(offset: int) -> tuple[int, Sequence[wire.Checkpoint]]:
            found = self._http.get(f"{self._path}/checkpoints", wire.CheckpointList, offset=offset, limit=PAGE)
            return found.total, found.checkpoints

        return pages(page)

    def fetch_checkpoint(
        self,
        checkpoint: wire.Checkpoint,
        folder: str | Path = ".",
        *,
        progress: bool | Callable[[int, int], object] = False,
    ) -> Path:
        """One of `checkpoints()` as a file in `folder`; complete or not there at all."""

        def ref_of(one: wire.Checkpoint) -> str:
            if one.data is None:
                raise NotFound("this server does not give the bytes of checkpoints.", suggestion="Update the server.")
            return one.data.ref

        def renewed() -> str:
            return ref_of(next(one for one in self.checkpoints() if one.id == checkpoint.id))

        first, data = ref_of(checkpoint), checkpoint.data
        name, size = (plain_name(data.filename), data.num_bytes) if data else ("", 0)
        target = Path(folder).expanduser() / name
        with metered(progress, size, name) as meter:
            return fetch(self._http, first, target, keyed=False, num_bytes=size, renew=renewed, add=meter.add)

    def download(
        self, folder: str | Path = ".", *, progress: bool | Callable[[int, int], object] = False
    ) -> list[Path]:
        """All outputs as files in `folder`, several at once; each complete or not there at all."""
        found = self.outputs()
        total = sum(o.data.num_bytes for o in found)
        with metered(progress, total, "download") as meter, ThreadPoolExecutor(DOWNLOADS, "jos-download") as pool:
            futures = [pool.submit(self._fetch, output, Path(folder).expanduser(), meter) for output in found]
            try:
                return [one.result() for one in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _fetch(self, output: wire.Output, folder: Path, meter: Meter) -> Path:
        def renewed() -> str:
            return next(o.data.ref for o in self._of(output) if o.id == output.id)

        target = folder / plain_name(output.data.filename)
        size = output.data.num_bytes
        return fetch(self._http, output.data.ref, target, keyed=False, num_bytes=size, renew=renewed, add=meter.add)

    def _of(self, output: wire.Output) -> list[wire.Output]:
        return self.outputs(input_id=output.input_id) if output.input_id else self.outputs()

    def to_pandas(self) -> pandas.DataFrame:
        """All outputs as one DataFrame, in the order of the inputs, with the column `input_file`. Raises BadRequest
        without pandas."""
        inputs = self.inputs()
        names = {i.id: i.data.filename if i.data else i.file_id or "" for i in inputs}
        order = {i.id: at for at, i in enumerate(inputs)}
        with TemporaryDirectory() as folder:
            paths = {p.name: p for p in self.download(folder)}
            named = sorted(
                (o for o in self.outputs() if o.data.filename in paths),
                key=lambda o: (order.get(o.input_id or "", -1), len(o.data.filename), o.data.filename),
            )
            return frame_of(
                (names.get(o.input_id or "", ""), o.data.filename, paths[o.data.filename].read_bytes()) for o in named
            )


_TELLING = ("failed", "processing")  # statuses of inputs that are worth a line


def _line(one: wire.InputProgress) -> InputLine:
    """Of a finished input what was done is all that there was."""
    metrics = one.latest_progress.metrics if one.latest_progress else {}
    source = one.input
    return InputLine(
        name=source.data.filename if source.data else source.file_id or source.id,
        status=str(source.status),
        done=int(metrics.get("items_processed") or 0),
        total=metrics.get("items_total"),
        failed=int(metrics.get("failed") or 0),
        error=source.error_message or "",
    )


class _Page:
    """What `wait` shows in a notebook: the job's page, looked at anew when something was told. Where the server is away
    for a while the page stays as it is: how long to be patient is for who follows the stream to say."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell

    def status(self, _status: Status) -> None:
        self._show()

    def progress(self, _entry: wire.Progress) -> None:
        self._show()

    def end(self) -> None:
        self._show(last=True)

    def _show(self, last: bool = False) -> None:
        with suppress(ServerUnreachable, ServerFault, TooManyRequests):
            self.cell.show(last=last)


class _Bar:
    """What it shows elsewhere: the sum over all inputs, whose entries come one by one."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        self.inputs: dict[str | None, tuple[int, int]] = {}

    def status(self, status: Status) -> None:
        self.bar.set_postfix_str(str(status))

    def progress(self, entry: wire.Progress) -> None:
        done, total = entry.metrics.get("items_processed"), entry.metrics.get("items_total")
        if not isinstance(done, int) or not isinstance(total, int):
            return
        self.inputs[entry.input_id] = (done, total)
        self.bar.total = sum(t for _, t in self.inputs.values())
        self.bar.update(sum(d for d, _ in self.inputs.values()) - self.bar.n)

    def end(self) -> None:
        pass
