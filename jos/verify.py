"""Whether everything that a job left in storage is there, whole, and adds up.

Reads on after each thing that is wrong, so that one look names them all. Changes nothing.
May import: jos.core, jos.storage, jos.store, jos.archive. Tests: tests/integration/test_verify.py.
For people: docs/recovery.md.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from jos import archive
from jos.core import standing
from jos.core.errors import JosError, NotFound
from jos.core.ledger import Blob, Finished, InputLedger
from jos.core.model import InputState, InputStatus, Job, Output, Status, job_folder
from jos.core.rebuild import later_claims
from jos.storage.base import Storage
from jos.store.redis import Store
from jos.verify_log import AT_ONCE, LogCheck, Problem, Progress, Report

__all__ = ["Problem", "Progress", "Report", "Told", "owner", "told_by", "verify", "verify_with_store"]

PIECE = 8 << 20  # bytes read at once of a large object
NAMED = 20  # orphans that are named; the rest is counted

_OF_THE_JOB = ("parts/", "outputs/", "state/", "models/")  # where only the log says what counts


@dataclass(frozen=True)
class Told:
    """What the store says of the job, to be held against its log."""

    job: Job
    inputs: Mapping[str, InputState]
    outputs: Sequence[Output]


async def told_by(store: Store, job_id: str) -> Told:
    """Raises NotFound, StoreUnavailable."""
    return Told(await store.get(job_id), await store.inputs(job_id), await store.outputs(job_id))


def verify(
    storage: Storage,
    org_id: str,
    job_id: str,
    *,
    deep: bool = True,
    told: Told | None = None,
    progress: Progress = lambda what, done, of: None,
) -> Report:
    """Looks at everything; with `deep` reads every byte that the log names, else only asks for sizes. Of a job that
    runs it sees what was there when it began. Raises StorageUnavailable."""
    check = _Check(storage, org_id, job_id, deep, progress)
    check.request()
    check.plan()
    check.log()
    check.sums()
    check.objects()
    check.archived()
    if told is not None:
        check.record(told)
    check.orphans()
    return check.report


async def owner(store: Store, storage: Storage, job_id: str, likely: str) -> str:
    """The organisation of a job, by the store or else by the folder that it has in storage. Raises NotFound."""
    known = (await store.get_many([job_id])).get(job_id)
    if known is not None:
        return known.org_id

    def search() -> str | None:
        orgs = (likely, *storage.folders(""))
        return next((org for org in orgs if next(storage.list(job_folder(org, job_id)), None) is not None), None)

    found = await asyncio.to_thread(search)
    if found is None:
        raise NotFound(f"Neither Redis nor {storage.url} has anything of a job {job_id}.")
    return found


async def verify_with_store(store: Store, storage: Storage, org_id: str, job_id: str, *, deep: bool = True) -> Report:
    """The same, and whether the store says what the log says, if it knows the job."""
    try:
        told = await told_by(store, job_id)
    except NotFound:
        told = None
    report = await asyncio.to_thread(verify, storage, org_id, job_id, deep=deep, told=told)
    if told is None:
        report.notes.append(f"the store has no job {job_id}")
    return report


class _Check(LogCheck):
    """The rest: what the log adds up to, the objects that it names, the archive, the store."""

    def __init__(self, storage: Storage, org_id: str, job_id: str, deep: bool, progress: Progress) -> None:
        super().__init__(storage, org_id, job_id, progress)
        self.deep = deep

    # --- what it adds up to

    def sums(self) -> None:
        outputs = [f for one in self.ledger.inputs.values() for f in one.finished.values()]
        names: dict[str, Finished] = {}
        for one in outputs:
            other = names.setdefault(one.filename, one)
            if other is not one:
                self.problem(
                    one.blob.key, f"has the name of {other.blob.key}: {one.filename}", self._entry_of(one.blob)
                )
        self.report.counts["outputs"] = len(outputs)

    def complete(self, said_by: str) -> None:
        """The job is said to be complete: is it?"""
        if self.spec is not None:
            wanted = [o for group in standing.planning(self.spec) for o in group.inputs]
            for ordinal in (o for o in wanted if o not in self.plans):
                self.problem("plan/", f"input {ordinal} has no plan, but {said_by} says COMPLETED")
        for ordinal, plan in sorted(self.plans.items()):
            one = self.ledger.inputs.get(ordinal, InputLedger())
            for low, high in one.done.missing(0, plan.tasks):
                self.problem(
                    "log/", f"tasks {low}..{high} of input {ordinal} are missing, but {said_by} says COMPLETED"
                )
            for part in (p for p in range(plan.parts) if p not in one.finished):
                self.problem("log/", f"part {part} of input {ordinal} is missing, but {said_by} says COMPLETED")

    # --- objects that the log names

    def live(self) -> dict[str, Blob]:
        """All that must be there: outputs, pieces of those that are not put together, a trainer's models and latest
        state."""
        found: dict[str, Blob] = {}
        for one in self.ledger.inputs.values():
            pieces = [c for commits in (*one.bodies.values(), *one.kept.values()) for c in commits]
            blobs = [*(c.body for c in pieces), *(f.blob for f in one.finished.values())]
            blobs += [*(c.model for c in one.models), one.state.state if one.state else None]
            found |= {blob.key: blob for blob in blobs if blob is not None}
        return found

    def objects(self) -> None:
        live = self.live()
        wrong: list[tuple[Blob, str]] = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for at, (blob, what) in enumerate(pool.map(self._look, live.values())):
                if what:
                    wrong.append((blob, what))
                self.progress("objects", at + 1, len(live))
        if wrong and self.grown():  # it runs: pieces that were put together meanwhile are gone rightly
            live = self.live()
        for blob, what in wrong:
            if blob.key in live:
                self.problem(blob.key, what, self._entry_of(blob))
        self.report.counts["objects"] = len(live)
        self.report.counts["bytes"] = sum(blob.num_bytes for blob in live.values())

    def _entry_of(self, blob: Blob) -> int | None:
        return self.named.get(blob.key)

    def _look(self, blob: Blob) -> tuple[Blob, str]:
        stat = self.storage.stat(self.folder + blob.key)
        if stat is None:
            return blob, "is missing"
        if stat.num_bytes != blob.num_bytes:
            return blob, f"has {stat.num_bytes:,} bytes instead of {blob.num_bytes:,}"
        if not self.deep:
            return blob, ""
        digest = hashlib.sha256()
        try:
            for start in range(0, blob.num_bytes, PIECE):
                digest.update(self.storage.read(self.folder + blob.key, start, min(start + PIECE, blob.num_bytes)))
        except NotFound:
            return blob, "is missing"
        return blob, "" if digest.hexdigest() == blob.sha256 else "has another content than the log says (sha256)"

    # --- archive/, the store

    def archived(self) -> None:
        for name in archive.NAMES:
            due = 1
            for first, key in archive.chunks(self.storage, self.org_id, self.job_id, name):
                due = self._check_chunk(name, first, key, due)
            self.report.counts[f"archived {name}"] = due - 1
        try:
            end = archive.end_of(self.storage, self.org_id, self.job_id)
        except JosError as error:
            self.problem("archive/end.json", str(error))
            return
        if end is not None and end.job.status is Status.COMPLETED and not later_claims(end.job, self.claims):
            self.complete("archive/end.json")

    def _check_chunk(self, name: str, first: int, key: str, due: int) -> int:
        short = key.removeprefix(self.folder)
        if first != due:
            self.report.notes.append(
                f"{name} {due}..{first - 1} are not in the archive" if first > due else f"{short} overlaps"
            )
        try:
            for number, entry in enumerate(archive.chunk_entries(self.storage, key), first):
                if entry["id"] != number:
                    self.problem(short, f"holds entry {entry['id']} where {number} is due")
                    break
                due = number + 1
        except JosError as error:
            self.problem(short, str(error))
        return due

    def record(self, told: Told) -> None:
        """The store's word against the log's."""
        job, where = told.job, "the store"
        if job.status is Status.COMPLETED:
            self.complete(where)
        if job.status is Status.COMPLETED or (job.status.terminal and not job.holds_capacity):
            finished = {f.filename: f for f in self._outputs()}
            shown = {output.filename: output for output in told.outputs}
            for name in sorted(finished.keys() - shown.keys()):
                blob = finished[name].blob
                self.problem(blob.key, f"{name} is finished, but {where} does not list it", self._entry_of(blob))
        for output in told.outputs:
            if output.key not in self.named:
                self.problem(output.key, f"{where} lists it as {output.filename}, but the log does not name it")
        self._check_states(told)

    def _outputs(self) -> Iterator[Finished]:
        """Those that are for people."""
        for ordinal, one in self.ledger.inputs.items():
            if ordinal not in self.plans or not standing.internal(self.plans[ordinal]):
                yield from one.finished.values()

    def _check_states(self, told: Told) -> None:
        ordinals = {source.id: at for at, source in enumerate(self.spec.inputs)} if self.spec else {}
        for state in told.inputs.values():
            if state.input_id not in ordinals:
                self.problem("job.json", f"the store knows an input {state.input_id} that the job does not have")
                continue
            ordinal = ordinals[state.input_id]
            if self.spec is None or not standing.scattered(self.spec, ordinal):
                continue
            one = self.ledger.inputs.get(ordinal, InputLedger())
            ended = state.status in (InputStatus.COMPLETED, InputStatus.FAILED)
            if state.done > len(one.done) or (ended and state.done != len(one.done)):
                what = f"the store says {state.done:,} tasks of {state.input_id} are done, the log {len(one.done):,}"
                self.problem("log/", what)

    # --- objects that nothing names

    def orphans(self) -> None:
        """What killed or fenced drivers left: it takes space and harms nothing."""
        live, count, size = self.live(), 0, 0
        for place in _OF_THE_JOB:
            for stat in self.storage.list(self.folder + place):
                if stat.key.removeprefix(self.folder) not in live:
                    count, size = count + 1, size + stat.num_bytes
                    if count <= NAMED:
                        self.report.notes.append(f"{stat.key} is named by no log entry that counts")
        if count > NAMED:
            self.report.notes.append(f"and {count - NAMED:,} more of them")
        self.report.counts |= {"orphans": count, "orphan bytes": size}
