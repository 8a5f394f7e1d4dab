"""`jos.Client`: the service from Python.

    client = jos.Client()                      # JOS_URL and JOS_API_KEY, a profile, or the server of `jos up` here
    job = client.jobs.create("machine-state-classification", inputs={"inference": "plant.csv", …})
    frame = job.wait(progress=True).to_pandas()

May import: httpx2, jos.wire, jos.profiles, jos.client.*. Tests: tests/unit/test_client_*.py, tests/e2e/test_client.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import httpx2

from jos import profiles, wire
from jos.client.files import Files
from jos.client.handles import Job, pages
from jos.client.http import Http, RetryPolicy, ambiguous
from jos.client.inputs import sort_out
from jos.client.stream import PAGE
from jos.core.errors import BadRequest, NotFound
from jos.core.model import ComponentParameters, InputRef, JobRequest
from jos.finetune import EVAL, TRAIN, labelled, pipeline_of, upload_names
from jos.finetune import parameters as tuning
from jos.request import listed
from jos.shown.pipeline import Pipeline, chosen, together
from jos.wire import JobCreate


class Client:
    """A connection to one server; safe to use from several threads. `with jos.Client() as client: …`, or `close()`."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        profile: str | None = None,
        retry: RetryPolicy | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Without a URL: that of the profile, of JOS_URL, or of the server that `jos up` runs here."""
        target = profiles.Target(url, api_key) if url and api_key else profiles.required(url, api_key, profile)
        self.url = target.url
        self._http = Http(target.url, target.api_key, retry, transport)
        self.files = Files(self._http)
        self.jobs = Jobs(self._http, self.files)
        self.pipelines = Pipelines(self._http)
        self.keys = Keys(self._http)

    def __repr__(self) -> str:
        return f"<Client {self.url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def job(self, job_id: str) -> Job:
        return self.jobs.get(job_id)

    def fine_tune(
        self,
        train: Any,
        columns: Sequence[str],
        window: int,
        *,
        validation: Any = (),
        method: str = "head",
        step: int | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        name: str | None = None,
        parallelism: int | None = None,
        replace: bool = False,
        progress: bool | Callable[[int, int], object] = False,
    ) -> Job:
        """Trains a classifier from labelled CSV files here, which are uploaded first; after `job.wait()` the best model
        is `job.checkpoints()[-1].id`.

        train, validation: one or several of: a folder whose sub-folders are the classes, a glob, or (file, class).
        columns: names of the header. window, step: rows. method: head (trained) or knn (stored examples).
        """
        files = {TRAIN: labelled(listed(train), "train"), EVAL: labelled(listed(validation), "validation")}
        names = upload_names(path for pairs in files.values() for path, _ in pairs)
        parameters = tuning(columns, window, step=step, epochs=epochs, batch_size=batch_size, seed=seed)
        if parallelism is not None:
            parameters["worker"]["parallelism"] = parallelism
        request = JobRequest(
            name=name or f"fine-tuning ({method})",
            pipeline_type="training",
            pipeline_key=pipeline_of(method),
            inputs={
                port: [InputRef(file_id=names[path], metadata={"class": label}) for path, label in pairs]
                for port, pairs in files.items()
                if pairs
            },
            parameters=parameters,
        )
        local = [(Path(path).expanduser(), called) for path, called in names.items()]
        return self.jobs.create_from(request, local, replace=replace, progress=progress)

    def queue(self) -> dict[str, int]:
        """How many jobs wait, by pipeline type."""
        found = self._http.get("/batch/jobs/queue", wire.QueueList)
        return {q.pipeline_type: q.depth for q in found.queues}


class Jobs:
    def __init__(self, http: Http, files: Files) -> None:
        self._http, self._files = http, files

    def create(
        self,
        pipeline: str,
        inputs: Mapping[str, Any],
        parameters: Mapping[str, Any] | None = None,
        parallelism: int | None = None,
        *,
        name: str | None = None,
        version: str | None = None,
        priority: int | None = None,
        replace: bool = False,
        progress: bool | Callable[[int, int], object] = False,
        idempotency_key: str | None = None,
    ) -> Job:
        """Creates a job; local files among its inputs are uploaded first, unless the server has them.

        inputs: port -> one or several of: a path, `(path, class)`, the name of an uploaded file, or
        `{"file_id": …, "metadata": {…}}`. parameters: component -> {"parallelism": n, "config": {…}}.
        Raises ConfigInvalid with everything that is wrong with the request.
        """
        components = {c: ComponentParameters.model_validate(dict(p)) for c, p in (parameters or {}).items()}
        if parallelism is not None:
            own = components.get("worker", ComponentParameters())
            components["worker"] = own.model_copy(update={"parallelism": parallelism})
        request = JobRequest(
            name=name or pipeline,
            pipeline_key=pipeline,
            pipeline_version=version,
            parameters=components,
            priority=priority,
        )
        return self._create(request, inputs, Path.cwd(), replace, progress, idempotency_key)

    def submit(
        self,
        request: JobRequest,
        inputs: Mapping[str, Any] | None = None,
        *,
        replace: bool = False,
        progress: bool | Callable[[int, int], object] = False,
    ) -> Job:
        """A request as `jos.request` reads it from a job.yaml, perhaps with other inputs."""
        given = request.inputs if inputs is None else inputs
        return self._create(request, given, Path.cwd(), replace, progress, None)

    def _create(
        self,
        request: JobRequest,
        inputs: Mapping[str, Any],
        folder: Path,
        replace: bool,
        progress: bool | Callable[[int, int], object],
        idempotency_key: str | None,
    ) -> Job:
        named = sort_out(inputs, folder)
        made = request.model_copy(update={"inputs": named.inputs})
        local = [(path, path.name) for path in named.local]
        return self.create_from(made, local, replace=replace, progress=progress, idempotency_key=idempotency_key)

    def create_from(
        self,
        request: JobRequest,
        files: Sequence[tuple[Path, str]],
        *,
        replace: bool = False,
        progress: bool | Callable[[int, int], object] = False,
        idempotency_key: str | None = None,
    ) -> Job:
        """A request whose inputs are all on the server, or among the files, which are uploaded first: (path, the name
        that it is to have there)."""
        pipeline_type = request.pipeline_type or self._type_of(request.pipeline_key, request.pipeline_version)
        if files:
            self._files.upload_as(files, replace=replace, progress=progress)
        body = JobCreate(
            name=request.name,
            pipeline_type=pipeline_type,
            pipeline_key=request.pipeline_key,
            pipeline_version=request.pipeline_version,
            inputs={port: [_bare(r) for r in refs] for port, refs in request.inputs.items()},
            parameters=request.parameters,
            priority=request.priority,
        )
        content = body.model_dump(mode="json", exclude_none=True)
        record = self._http.post("/batch/jobs", wire.Job, content, key=idempotency_key or str(uuid4()))
        return Job(self._http, record)

    def _type_of(self, key: str, version: str | None) -> Any:
        try:
            return Pipelines(self._http).find(key, version).pipeline_type
        except NotFound:
            return "batch"  # the server says it better, with everything else that is wrong

    def get(self, job_id: str) -> Job:
        """`last` is the newest one."""
        if job_id == "last":
            _, newest = self.list(limit=1)
            if not newest:
                raise NotFound("there is no job yet.", suggestion="Create one with `jos submit`.")
            return newest[0]
        if not job_id or "/" in job_id:
            raise BadRequest(f"{job_id!r} is no job's id.")
        return Job(self._http, self._http.get(f"/batch/jobs/{job_id}", wire.Job))

    def list(
        self,
        *,
        offset: int = 0,
        limit: int = 20,
        status: str | None = None,
        pipeline_type: str | None = None,
        q: str | None = None,
    ) -> tuple[int, list[Job]]:
        """(how many there are, this page of them), newest first."""
        found = self._http.get(
            "/batch/jobs", wire.JobList, offset=offset, limit=limit, status=status, pipeline_type=pipeline_type, q=q
        )
        return found.total, [Job(self._http, record) for record in found.jobs]


def _bare(ref: InputRef) -> InputRef:
    """Without the fields that nobody set: an older server knows fewer of them."""
    return InputRef.model_validate(ref.model_dump(exclude_unset=True, exclude_none=True))


class Pipelines:
    def __init__(self, http: Http) -> None:
        self._http = http

    def list(self, **filters: str) -> list[Pipeline]:
        """Filters: pipeline_type, visibility, status. Each shows itself: ports, versions, settings."""

        def page(offset: int) -> tuple[int, list[wire.Pipeline]]:
            path = "/batch/registry/pipelines"
            found = self._http.get(path, wire.PipelineList, offset=offset, limit=PAGE, **filters)
            return found.total, found.pipelines

        return together(pages(page))

    def find(self, key: str, version: str | None = None) -> Pipeline:
        """By key; the latest published version unless one is named."""
        found = chosen(self.list(), key, version)
        if found is None:
            wanted = f"{key} {version}" if version else f"published version of {key}"
            raise NotFound(f"there is no pipeline {wanted}.", suggestion="`jos pipelines` lists what there is.")
        return found

    def get(self, pipeline_id: str) -> Pipeline:
        one = self._http.get(f"/batch/registry/pipelines/{pipeline_id}", wire.Pipeline)
        return Pipeline.model_validate(one.model_dump())

    def schema(self, key: str, version: str | None = None) -> wire.PipelineSchema:
        found = self.find(key, version)
        return self._http.get(f"/batch/registry/pipelines/{found.id}/schema", wire.PipelineSchema)


class Keys:
    """For keys with the admin role."""

    def __init__(self, http: Http) -> None:
        self._http = http

    def create(self, name: str = "", role: str = "user", org_id: str | None = None) -> wire.Key:
        """The answer's `.key` is the secret; it is told this once."""
        return self._http.post("/keys", wire.Key, {"name": name, "role": role} | ({"org_id": org_id} if org_id else {}))

    def list(self) -> list[wire.Key]:
        def page(offset: int) -> tuple[int, list[wire.Key]]:
            found = self._http.get("/keys", wire.KeyList, offset=offset, limit=PAGE)
            return found.total, found.keys

        return pages(page)

    def revoke(self, key_id: str) -> None:
        try:
            self._http.send("DELETE", f"/keys/{key_id}")
        except NotFound as error:
            if not ambiguous(error):
                raise
