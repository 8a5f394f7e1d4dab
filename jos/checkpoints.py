"""A checkpoint as an input of another job: found by its id alone, pinned by its checksum, and kept for as long as the
job may read it.

May import: jos.core, jos.storage, jos.store. Tests: tests/integration/test_api_checkpoints.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from jos.core.errors import BadRequest, NotFound
from jos.core.ids import is_id, new_id
from jos.core.model import Checkpoint, InputRef, Job, JobInput, JobRequest, JobSpec, job_folder
from jos.storage.base import Storage
from jos.storage.source import stat_input
from jos.store import checkpoints as index
from jos.store.connection import Connection
from jos.store.readers import Readers, judged
from jos.store.redis import Store

_JOB = "job_[0-9a-hjkmnp-tv-z]{26}"


@dataclass(frozen=True)
class Found:
    job: Job  # that left it
    checkpoint: Checkpoint

    @property
    def key(self) -> str:
        """Where its bytes are in the storage root."""
        return job_folder(self.job.org_id, self.job.id) + self.checkpoint.key


async def find(store: Store, org_id: str, checkpoint_id: str) -> Found | None:
    """None for what the organisation does not have. As quick with many jobs as with few."""
    if not is_id(checkpoint_id, "ckp"):
        return None
    job_id = await index.job_of(store.connection, checkpoint_id)
    if job_id is None:
        return None
    try:
        job = await store.get(job_id)
    except NotFound:
        return None
    checkpoint = await store.checkpoint(job_id, checkpoint_id) if job.org_id == org_id else None
    return None if checkpoint is None else Found(job, checkpoint)


async def named(store: Store, org_id: str, request: JobRequest) -> dict[str, Found]:
    """The checkpoints among a request's inputs that there are, by their ids."""
    ids = dict.fromkeys(ref.checkpoint_id for refs in request.inputs.values() for ref in refs if ref.checkpoint_id)
    found = {one: await find(store, org_id, one) for one in ids}
    return {one: there for one, there in found.items() if there is not None}


def as_input(storage: Storage, port: str, ref: InputRef, found: Found) -> JobInput:
    """Raises BadRequest where its bytes are gone."""
    url = storage.location(found.key)
    try:
        num_bytes, fingerprint = stat_input(url)
    except NotFound as error:
        raise BadRequest(
            f"The bytes of the checkpoint {found.checkpoint.id} are gone.",
            suggestion="Train it again; `jos verify` tells what else is missing.",
        ) from error
    return JobInput(
        id=new_id("inp"),
        port=port,
        url=url,
        filename=found.checkpoint.name,
        file_id=found.checkpoint.id,
        num_bytes=num_bytes,
        fingerprint=fingerprint,
        sha256=found.checkpoint.sha256 or None,
        metadata=ref.metadata,
        tracked=False,
    )


# --- readers ------------------------------------------------------------------------------------------


async def mark_reader(connection: Connection, found: Iterable[Found], reader: str) -> None:
    """Call it before the record of the job `reader` is there: from then on the jobs that left these checkpoints stay
    until it is over. Raises BadRequest when one was deleted meanwhile."""
    for one in found:
        if not await index.mark(connection, one.job.id, reader, datetime.now(UTC)):
            raise BadRequest(f"The checkpoint {one.checkpoint.id} was deleted meanwhile.")


async def mark_again(connection: Connection, spec: JobSpec) -> None:
    """For recovery: the marks of a live job."""
    urls = [source.url for source in spec.inputs if is_id(source.file_id, "ckp")]
    for owner in _owners(spec.org_id, " ".join(urls)):
        await index.mark(connection, owner, spec.id, datetime.now(UTC))


async def release(connection: Connection, org_id: str, request: str, reader: str) -> None:
    """Takes the marks back of a job that was deleted; `request` is its `job.json`."""
    for owner in _owners(org_id, request):
        await index.unmark(connection, owner, reader)


def _owners(org_id: str, text: str) -> set[str]:
    """The organisation's jobs in whose folders the URLs are that stand in the text."""
    return set(re.findall(job_folder(re.escape(org_id), f"({_JOB})"), text))


async def readers(store: Store, job_id: str) -> Readers:
    """The jobs that read a checkpoint of this one."""
    return await judged(store, await index.readers(store.connection, job_id), datetime.now(UTC))
