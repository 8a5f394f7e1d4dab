"""Redis is lost: every job, key, pipeline and file is put back from what lies in storage.

What is there already is left alone, so it may run again, or beside a service that works. A job that cannot be read is
named and the others go on.
May import: jos.core, jos.storage, jos.store, jos.archive. Tests: tests/integration/test_recovery.py.
For people: docs/recovery.md.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

import orjson
import structlog
from pydantic import ValidationError

from jos import archive, checkpoints, removal
from jos.core import lifecycle, rebuild, standing
from jos.core.errors import JosError, NotFound, StaleAttempt, StorageUnavailable, StoreUnavailable
from jos.core.model import InputState, InputStatus, Job, JobSpec, Model, ProgressDraft, job_folder
from jos.core.standing import Replay
from jos.storage.base import Storage
from jos.storage.log import CommitLog
from jos.store.keys import ApiKey, ApiKeys
from jos.store.pipelines import PipelineRecord, Pipelines
from jos.store.records import Mirror
from jos.store.redis import Store

AT_ONCE = 8  # jobs being read at one time
KEYS = "system/keys/"
PIPELINES = "system/pipelines/"
PLATFORM = "platform"  # in place of an organisation, for a pipeline that belongs to none

log = structlog.get_logger()

M = TypeVar("M", bound=Model)


class Recoverable(Protocol):
    """A room that puts its own records back (jos.files)."""

    async def recover(self) -> Any:
        """Tells how many, as a number or something with a length."""
        ...


@dataclass
class Recovered:
    """What was put back, or with `dry_run` would have been. Anything in `problems`: not everything could be."""

    jobs: int = 0
    statuses: Counter[str] = field(default_factory=Counter)  # of these jobs
    there: int = 0  # jobs that the store had
    keys: int = 0
    pipelines: int = 0
    files: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # worth a look, nothing wrong


async def recover(
    store: Store,
    storage: Storage,
    *,
    files: Recoverable | None = None,
    keys: ApiKeys | None = None,
    pipelines: Pipelines | None = None,
    queue_of: Callable[[JobSpec], str] | None = None,
    dry_run: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Recovered:
    """Puts back all that the store lacks; `report` hears a line for each. `queue_of`: where the routes send a job
    (default: its pipeline's own queue). Raises StoreUnavailable or StorageUnavailable; running it again goes on."""
    work = _Recovery(store, storage, queue_of, dry_run, report)
    if keys is not None:
        await work.keys(keys)
    if pipelines is not None:
        await work.pipelines(pipelines)
    await work.jobs()
    if not dry_run:
        await work.readers()
    if files is not None and not dry_run:
        restored = await files.recover()
        work.found.files = restored if isinstance(restored, int) else len(restored or ())
    return work.found


# --- copies of what only the store has ----------------------------------------------------------------


async def save_key(storage: Storage, key: ApiKey) -> None:
    """Call it when a key is made. It holds the secret's hash, not the secret."""
    await asyncio.to_thread(storage.write, f"{KEYS}{key.id}.json", key.model_dump_json().encode())


async def drop_key(storage: Storage, key_id: str) -> None:
    """Call it before the key is revoked in the store: a copy that stayed behind would bring the key back."""
    await asyncio.to_thread(storage.delete, [f"{KEYS}{key_id}.json"])


async def save_pipeline(storage: Storage, record: PipelineRecord) -> None:
    """Call it whenever a pipeline is created or changed over the API."""
    one = record.pipeline
    key = _pipeline_key(record.org_id, one.pipeline_key, one.pipeline_version)
    await asyncio.to_thread(storage.write, key, record.model_dump_json(by_alias=True).encode())


async def drop_pipeline(storage: Storage, org_id: str | None, key: str, version: str) -> None:
    """Call it before the pipeline is deleted from the store."""
    await asyncio.to_thread(storage.delete, [_pipeline_key(org_id, key, version)])


def _pipeline_key(org_id: str | None, key: str, version: str) -> str:
    return f"{PIPELINES}{org_id or PLATFORM}/{key}/{version}.json"


# --- a job whose last driver died ---------------------------------------------------------------------


async def put_away(store: Store, storage: Storage, job: Job, *, everything: bool) -> archive.Archived:
    """jos.archive.archive, after what the last driver of a job that is over committed and could not tell."""
    if everything and job.attempt is not None and job.attempt.ended_by == "DriverGone":
        try:
            _, replay = await asyncio.to_thread(read_job, storage, job.org_id, job.id)
        except StorageUnavailable:
            raise
        except (JosError, ValueError, KeyError, TypeError, AttributeError) as error:  # `jos verify` says what is wrong
            log.warning("the log of a job could not be read", job=job.id, error=str(error))
        else:
            await _tell(store, job, job.attempt.token, replay)
    return await archive.archive(store, storage, job, everything=everything)


async def _tell(store: Store, job: Job, token: str, replay: Replay) -> None:
    """Tells the store, in place of the attempt's dead driver, which inputs and outputs the log has beyond it."""
    known = await store.inputs(job.id)
    listed = {output.id for output in await store.outputs(job.id)}
    models = {one.id for one in await store.checkpoints(job.id)}
    inputs = _news(replay.states(), known)
    outputs = [output for output in replay.outputs() if output.id not in listed]
    checkpoints = [one for one in replay.checkpoints() if one.id not in models]
    if not (inputs or outputs or checkpoints):
        return
    number = await store.last_seq(job.id, token) + 1
    told = Mirror(token, number, datetime.now(UTC), inputs=inputs, outputs=outputs, checkpoints=checkpoints)
    with suppress(StaleAttempt):  # retried meanwhile: the next attempt tells it
        await store.mirror(job.id, told)


def _news(states: Iterable[InputState], known: Mapping[str, InputState]) -> list[InputState]:
    """Those that the store has otherwise; inputs that are over now come after those that were."""
    rank = max((state.step or 0 for state in known.values()), default=0)
    found = []
    for state in sorted(states, key=lambda state: state.step or 0):
        was = known.get(state.input_id, InputState(input_id=state.input_id, status=InputStatus.PENDING))
        begun = was.status is InputStatus.PROCESSING and state.status is InputStatus.PENDING
        if begun or state.model_copy(update={"step": was.step, "completed_at": was.completed_at}) == was:
            continue
        if state.step is not None:
            rank = rank if was.step else rank + 1
            state = state.model_copy(update={"step": was.step or rank})
        found.append(state)
    return found


# --- the walk -----------------------------------------------------------------------------------------


def job_folders(storage: Storage) -> Iterator[tuple[str, str]]:
    """(organisation, job id) of all jobs in storage. Holds no more than the names of one organisation's jobs."""
    for org_id in storage.folders(""):
        for job_id in storage.folders(f"{org_id}/jobs/"):
            yield org_id, job_id


# --- inside -------------------------------------------------------------------------------------------


class _Recovery:
    def __init__(
        self,
        store: Store,
        storage: Storage,
        queue_of: Callable[[JobSpec], str] | None,
        dry_run: bool,
        report: Callable[[str], None],
    ) -> None:
        self.store, self.storage, self.queue_of = store, storage, queue_of
        self.dry_run, self.report = dry_run, report
        self.found = Recovered()
        self.now = datetime.now(UTC)  # one time for all: in the queue they stand in the order of their ids

    def problem(self, what: str) -> None:
        self.found.problems.append(what)
        self.report(f"NOT RECOVERED  {what}")

    # --- keys and pipelines

    async def keys(self, keys: ApiKeys) -> None:
        there = {key.id for key in await keys.list(None)}
        for key in await self._records(KEYS, ApiKey):
            if key.id in there:
                continue
            if not self.dry_run:
                await keys.put(key)
                if await asyncio.to_thread(self.storage.stat, f"{KEYS}{key.id}.json") is None:  # revoked meanwhile
                    await keys.revoke(key.id)
                    continue
            self.found.keys += 1
            self.report(f"key {key.id}: {key.role} of {key.org_id}")

    async def pipelines(self, pipelines: Pipelines) -> None:
        there = {record.place for record in await pipelines.all()}
        for record in await self._records(PIPELINES, PipelineRecord):
            if record.place in there:
                continue
            if not self.dry_run:
                await pipelines.put(record, replace=False)
            self.found.pipelines += 1
            self.report(f"pipeline {record.pipeline.pipeline_key} {record.pipeline.pipeline_version}")

    async def _records(self, prefix: str, model: type[M]) -> list[M]:
        records: list[M] = []
        for stat in await asyncio.to_thread(lambda: list(self.storage.list(prefix))):
            try:
                records.append(model.stored(await asyncio.to_thread(self.storage.read, stat.key)))
            except ValidationError as error:
                self.problem(f"{self.storage.location(stat.key)} cannot be read: {_first(error)}")
            except NotFound:
                continue  # revoked meanwhile
        return records

    # --- jobs

    async def jobs(self) -> None:
        folders = job_folders(self.storage)
        turn = asyncio.Lock()  # a generator has one reader at a time

        async def work() -> None:
            while True:
                async with turn:
                    folder = await asyncio.to_thread(next, folders, None)
                if folder is None:
                    return
                await self._named(*folder)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(work())
        except ExceptionGroup as errors:  # store or storage is away: one of them says it as well as all
            raise errors.exceptions[0] from None

    async def _named(self, org_id: str, job_id: str) -> None:
        try:
            await self._job(org_id, job_id)
        except (StoreUnavailable, StorageUnavailable):
            raise
        except JosError as error:
            self.problem(f"{job_id}: {error}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # an object that says something else
            text = _first(error) if isinstance(error, ValidationError) else str(error)
            self.problem(
                f"{job_id}: its folder {self.storage.location(job_folder(org_id, job_id) + 'job.json')}: {text}"
            )

    async def _job(self, org_id: str, job_id: str) -> None:
        if await _exists(self.store.get(job_id)):
            self.found.there += 1
            return
        if not await asyncio.to_thread(self._has_request, org_id, job_id):
            await self._leave(job_folder(org_id, job_id))
            return
        spec, replay = await asyncio.to_thread(read_job, self.storage, org_id, job_id)
        if await removal.marked(self.store.connection, org_id, job_id) or spec.created_at > self.now:
            return  # it is being deleted or created at this moment
        end = await asyncio.to_thread(archive.end_of, self.storage, org_id, job_id)
        queue = self.queue_of(spec) if self.queue_of and spec.queue != "" else None
        job = rebuild.rebuilt(spec, replay, end.job if end else None, self.now, queue)
        if self.dry_run or await self._write(job, spec, replay, end):
            self.found.jobs += 1
            self.found.statuses[job.status.value] += 1
            self.report(f"{job.id}  {job.status:<9}  {replay.ledger.tasks_done:,} tasks committed  {job.name}")
        else:
            self.found.there += 1

    async def readers(self) -> None:
        """The marks of all live jobs on the jobs whose checkpoints they read. They are put back once all jobs are."""
        for job in await self.store.active():
            key = f"{job_folder(job.org_id, job.id)}job.json"
            with suppress(NotFound, ValidationError):  # not a job of this storage, or one that cannot run
                spec = JobSpec.stored(await asyncio.to_thread(self.storage.read, key))
                await checkpoints.mark_again(self.store.connection, spec)

    def _has_request(self, org_id: str, job_id: str) -> bool:
        return self.storage.stat(f"{job_folder(org_id, job_id)}job.json") is not None

    async def _leave(self, folder: str) -> None:
        """A folder whose `job.json` is gone is of a job that was being deleted, for that goes first. Or it is empty,
        which on a disk remains."""
        if await asyncio.to_thread(lambda: next(self.storage.list(folder), None)) is not None:
            where = self.storage.location(f"{folder}job.json")
            self.found.notes.append(f"{where} is missing: no job is made of the rest.")
            self.report(f"note: {self.found.notes[-1]}")

    async def _write(self, job: Job, spec: JobSpec, replay: Replay, end: archive.End | None) -> bool:
        archived = [
            await asyncio.to_thread(archive.archived_until, self.storage, job.org_id, job.id, name)
            for name in archive.NAMES
        ]
        (events, _), (progress, last) = archived
        created = [] if events else list(lifecycle.new_job(spec, spec.created_at).events)
        return await self.store.restore(
            job,
            events=[*created, rebuild.told(job, replay, self.now)],
            inputs=replay.states(),
            outputs=replay.outputs(),
            progress=_untold(replay, last, self.now),
            checkpoints=replay.checkpoints(),
            event_count=max(events, end.events if end else 0),
            progress_count=max(progress, end.progress if end else 0),
        )


def read_job(storage: Storage, org_id: str, job_id: str) -> tuple[JobSpec, Replay]:
    """Its request, and all that its log says. Raises JosError that names what cannot be read."""
    folder = job_folder(org_id, job_id)
    try:
        spec = JobSpec.stored(storage.read(f"{folder}job.json"))
    except ValidationError as error:
        raise JosError(f"{storage.location(folder + 'job.json')} cannot be read: {_first(error)}") from error
    if (spec.org_id, spec.id) != (org_id, job_id):
        raise JosError(f"{storage.location(folder + 'job.json')} is that of {spec.org_id}/{spec.id}.")
    stored = read_plans(storage, folder)
    replay = Replay(spec, standing.plans_of(stored, 0))
    ledger = CommitLog.open(storage, folder, replay.see).ledger
    replay.ledger, replay.plans = ledger, standing.plans_of(stored, ledger.era)
    return spec, replay


def read_plans(storage: Storage, folder: str) -> dict[int, list[dict[str, Any]]]:
    """The content of all `plan/` objects, by their numbers. Raises JosError that names one that is damaged."""
    prefix, stored = f"{folder}plan/", {}
    for stat in storage.list(prefix):
        number = stat.key.removeprefix(prefix).partition(".")[0]
        try:
            stored[int(number)] = orjson.loads(storage.read(stat.key))
        except ValueError as error:
            raise JosError(f"The plan {storage.location(stat.key)} cannot be read: {error}") from error
    return stored


def _untold(replay: Replay, last: dict[str, Any] | None, now: datetime) -> list[ProgressDraft]:
    """Progress that is not in the archive: of a training job each committed span of steps, of any other one entry for
    each input, which says how far it is."""
    if replay.steps:
        told = last["step"] or 0 if last is not None and last["kind"] == "training" else 0
        return [entry for entry in replay.steps if (entry.step or 0) > told]
    if last is not None:
        return []
    at = replay.last_at or now
    kind = standing.PREPARATION if standing.training(replay.spec) else "inference"
    begun = [s for s in replay.states() if s.done or s.status in (InputStatus.COMPLETED, InputStatus.FAILED)]
    return [standing.input_progress(kind, state, state.completed_at or at) for state in begun]


async def _exists(asked: Awaitable[Job]) -> bool:
    try:
        await asked
    except NotFound:
        return False
    return True


def _first(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    one = error.errors(include_url=False)[0]
    where = ".".join(map(str, one["loc"]))
    return f"{where}: {one['msg']}" if where else one["msg"]
