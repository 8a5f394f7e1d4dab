"""From the body of POST /batch/jobs to a job that waits: everything that can be wrong with it is found before a trace
of it is left behind.

May import: jos below the API. Tests: tests/integration/test_api_jobs.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Mapping

from jos import checkpoints, removal, wire
from jos.api.context import Caller, Service
from jos.core import config
from jos.core.errors import BadRequest, Conflict, Forbidden, NotFound, TooManyRequests
from jos.core.files import File, FileStatus
from jos.core.ids import new_id
from jos.core.model import InputRef, Job, JobInput, JobRequest, Pipeline
from jos.store import idempotency
from jos.submission import enter, resolved
from jos.tracing import span

_QUEUE_SECONDS = 30  # what a client is told to wait while too many jobs wait
_LONGEST = 300  # characters of a name that are shown; no file has a longer one


async def create(parts: Service, caller: Caller, body: wire.JobCreate, idempotency_key: str | None) -> Job:
    if idempotency_key is not None and (made := await _made_before(parts, caller.org_id, idempotency_key, body)):
        return made
    _check_priority(parts, caller, body.priority)
    await _check_room(parts, caller.org_id)
    pipeline = await parts.catalogue.runnable(caller.org_id, body.pipeline_key, body.pipeline_version)
    request = JobRequest.model_construct(**vars(body))  # every part of it is validated already
    parameters = config.resolve(pipeline, request)
    models = await checkpoints.named(parts.store, caller.org_id, request)
    inputs = await _inputs(parts, caller.org_id, request, pipeline, models)
    job_id = new_id("job")
    if idempotency_key is not None:
        job_id, first = await _claim(parts, caller.org_id, idempotency_key, body, job_id)
        if not first:
            with contextlib.suppress(NotFound):  # whoever came first did not get that far: go on in its place
                return await parts.store.get(job_id)
            if await removal.deleted(parts.connection, job_id):  # its folder may still be on its way out
                raise Conflict("The job of this Idempotency-Key was deleted.", suggestion="Take a fresh key.")
    spec = resolved(request, pipeline, parameters, [source for source, _ in inputs], caller.org_id, job_id)
    # before the record is there: what it reads must not be deleted between the look at it and the job
    await checkpoints.mark_reader(parts.connection, models.values(), job_id)
    await _mark(parts, caller.org_id, sorted({uid for _, uid in inputs if uid}), job_id)
    queue = parts.queues.queue_of(pipeline.pipeline_key, pipeline.queue)
    try:
        with span("create", job_id, org=caller.org_id):
            return await enter(spec, parts.store, parts.storage, queue)
    except Conflict:
        if idempotency_key is None:
            raise
        return await parts.store.get(job_id)  # the same request, twice at once


def _check_priority(parts: Service, caller: Caller, priority: int | None) -> None:
    ceiling = parts.queues.ceiling(caller.role)
    if priority is not None and priority > ceiling:
        raise Forbidden(f"A key with the role {caller.role} may ask for a priority up to {ceiling}, not {priority}.")


async def _check_room(parts: Service, org_id: str) -> None:
    most = parts.queues.organisation(org_id).max_pending
    if most is not None and (waiting := await parts.store.pending(org_id)) >= most:
        raise TooManyRequests(
            f"{waiting:,} jobs of this organisation wait already; {most:,} are the most.",
            _QUEUE_SECONDS,
            suggestion="Wait until some have started, or cancel some.",
        )


async def _mark(parts: Service, org_id: str, uids: list[str], job_id: str) -> None:
    try:
        await parts.files.readers(org_id, uids, job_id)
    except NotFound as error:
        raise BadRequest(error.message) from error


async def _made_before(parts: Service, org_id: str, key: str, body: wire.JobCreate) -> Job | None:
    """The job of the same request: it stays the answer, whatever became of its files and pipeline since."""
    found = await idempotency.known(parts.connection, org_id, key)
    if found is None:
        return None
    _check_same(found[1], _digest(body))
    with contextlib.suppress(NotFound):
        return await parts.store.get(found[0])
    return None


def _digest(body: wire.JobCreate) -> str:
    return hashlib.sha256(body.model_dump_json().encode()).hexdigest()


def _check_same(known: str, digest: str) -> None:
    if known != digest:
        raise Conflict("This Idempotency-Key was used for another request.", suggestion="Take a fresh key.")


async def _claim(parts: Service, org_id: str, key: str, body: wire.JobCreate, job_id: str) -> tuple[str, bool]:
    """(the id that goes with this key, whether it is ours). Raises Conflict for another body."""
    digest = _digest(body)
    there, known = await idempotency.claim(parts.connection, org_id, key, digest, job_id)
    _check_same(known, digest)
    return there, there == job_id


# --- inputs -------------------------------------------------------------------------------------------


async def _inputs(
    parts: Service, org_id: str, request: JobRequest, pipeline: Pipeline, models: Mapping[str, checkpoints.Found]
) -> list[tuple[JobInput, str | None]]:
    """Every input, with the uid of its file. Raises BadRequest that names all that cannot be read."""
    refs = [(port, ref) for port, refs in request.inputs.items() for ref in refs]
    names = list(dict.fromkeys(ref.file_id for _, ref in refs if ref.file_id))
    files = await parts.files.named(org_id, names) if names else {}
    asked = dict.fromkeys(ref.checkpoint_id for _, ref in refs if ref.checkpoint_id)
    _check_readable(names, files, [name for name in asked if name not in models])
    made: list[tuple[JobInput, str | None]] = []
    for port, ref in refs:
        tracked = pipeline.inputs[port].tracked
        if ref.file_id:
            file = files[ref.file_id]
            made.append((_of_file(parts, port, ref, file, tracked), file.uid))
        elif ref.checkpoint_id:
            found = models[ref.checkpoint_id]
            made.append((await asyncio.to_thread(checkpoints.as_input, parts.storage, port, ref, found), None))
    return made


def _check_readable(names: list[str], files: Mapping[str, File], no_checkpoints: list[str]) -> None:
    unknown = [name for name in names if name not in files] + no_checkpoints
    uploading = [name for name in names if name in files and files[name].status is FileStatus.UPLOADING]
    corrupt = [name for name in names if name in files and files[name].status is FileStatus.CORRUPT]
    said = [
        f"{len(found)} of the inputs {what}: {', '.join(name[:_LONGEST] for name in found)}."
        for found, what in (
            (unknown, "do not exist"),
            (uploading, "are still being uploaded"),
            (corrupt, "are corrupt"),
        )
        if found
    ]
    if said:
        raise BadRequest(
            " ".join(said),
            suggestion="Upload the files first, corrupt ones again; a checkpoint is one that GET …/checkpoints of a "
            "training job shows.",
        )


def _of_file(parts: Service, port: str, ref: InputRef, file: File, tracked: bool) -> JobInput:
    return JobInput(
        id=new_id("inp"),
        port=port,
        url=parts.storage.location(file.key),
        filename=file.name,
        file_id=file.name,
        file_uid=file.uid,
        num_bytes=file.num_bytes,
        fingerprint=file.fingerprint,
        metadata=ref.metadata,
        tracked=tracked,
    )
