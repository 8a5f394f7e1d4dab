"""From a request to a job that can run: validate, find every input, write `job.json`, then the record.

May import: jos.core, jos.checkpoints, jos.registry, jos.storage, jos.store. Tests: tests/integration/test_driver.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from jos import checkpoints
from jos.core import config, lifecycle
from jos.core.errors import BadRequest, JosError, NotFound
from jos.core.ids import new_id
from jos.core.model import InputRef, Job, JobInput, JobRequest, JobSpec, Json, Pipeline, job_folder
from jos.registry import Registry
from jos.storage.base import Storage
from jos.storage.source import stat_input
from jos.store.redis import Store


def find_inputs(
    request: JobRequest, pipeline: Pipeline, storage: Storage, models: Mapping[str, checkpoints.Found]
) -> list[JobInput]:
    """Looks at every input; raises BadRequest that names all that are missing or unreadable. `models`: the checkpoints
    that there are."""
    refs = [(port, ref) for port, refs in request.inputs.items() for ref in refs]

    def look(named: tuple[str, InputRef]) -> JobInput | JosError:
        port, ref = named
        try:
            if ref.file_id is not None:
                return _of_file(port, ref, ref.file_id, pipeline.inputs[port].tracked)
            return checkpoints.as_input(storage, port, ref, _known(ref.checkpoint_id or "", models))
        except JosError as error:
            return error

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(look, refs))
    errors = [f for f in found if isinstance(f, JosError)]
    if errors:
        unavailable = next((e for e in errors if not isinstance(e, NotFound | BadRequest) and e.retryable), None)
        if unavailable is not None:
            raise unavailable
        lines = "\n".join(f"  {e}" for e in errors[:100])
        raise BadRequest(f"{len(errors)} of {len(refs)} input files cannot be used:\n{lines}")
    return [f for f in found if isinstance(f, JobInput)]


def _of_file(port: str, ref: InputRef, url: str, tracked: bool) -> JobInput:
    num_bytes, fingerprint = stat_input(url)
    return JobInput(
        id=new_id("inp"),
        port=port,
        url=url,
        filename=url.rstrip("/").rpartition("/")[2],
        file_id=url,
        num_bytes=num_bytes,
        fingerprint=fingerprint,
        metadata=ref.metadata,
        tracked=tracked,
    )


def _known(checkpoint_id: str, models: Mapping[str, checkpoints.Found]) -> checkpoints.Found:
    if checkpoint_id not in models:
        raise NotFound(
            f"There is no checkpoint {checkpoint_id}.", suggestion="`jos checkpoints JOB` lists those of a training."
        )
    return models[checkpoint_id]


def resolved(
    request: JobRequest,
    pipeline: Pipeline,
    parameters: dict[str, Json],
    inputs: list[JobInput],
    org_id: str,
    job_id: str | None = None,
) -> JobSpec:
    return JobSpec(
        id=job_id or new_id("job"),
        org_id=org_id,
        name=request.name,
        pipeline=pipeline,
        parameters=parameters,
        inputs=inputs,
        priority=pipeline.priority if request.priority is None else request.priority,
        created_at=datetime.now(UTC),
    )


async def submit(
    request: JobRequest, store: Store, storage: Storage, registry: Registry, org_id: str, job_id: str | None = None
) -> Job:
    """Creates a job, PENDING, for a driver that admits itself. `job.json` is written first: a record without it could
    never run, while the other way round only a file is left behind. Raises NotFound (pipeline), ConfigInvalid (all
    violations), BadRequest (inputs)."""
    pipeline = await asyncio.to_thread(registry.get, request.pipeline_key, request.pipeline_version)
    parameters = config.resolve(pipeline, request, model_files=True)
    models = await checkpoints.named(store, org_id, request)
    inputs = await asyncio.to_thread(find_inputs, request, pipeline, storage, models)
    spec = resolved(request, pipeline, parameters, inputs, org_id, job_id)
    await checkpoints.mark_reader(store.connection, models.values(), spec.id)
    return await enter(spec, store, storage, queue="")


async def enter(spec: JobSpec, store: Store, storage: Storage, queue: str | None = None) -> Job:
    """Writes a resolved request down, to wait in `queue` (default: the pipeline's own)."""
    spec = spec.model_copy(update={"queue": queue})
    key = f"{job_folder(spec.org_id, spec.id)}job.json"
    if not await asyncio.to_thread(storage.create, key, spec.model_dump_json(indent=1, by_alias=True).encode()):
        # an id of the caller's own, whose record was lost or is being made: what is there is what will run
        spec = JobSpec.stored(await asyncio.to_thread(storage.read, key))
    made = lifecycle.new_job(spec, datetime.now(UTC))
    return await store.create(made.job, list(made.events))


async def load_spec(job: Job, storage: Storage) -> JobSpec:
    data = await asyncio.to_thread(storage.read, f"{job_folder(job.org_id, job.id)}job.json")
    return JobSpec.stored(data)
