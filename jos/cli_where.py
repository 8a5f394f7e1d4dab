"""Where commands about jobs act: on the local engine, or on a server. Both give the same documents, so that a command
is written once.

May import: jos.engine, jos.client, jos.terminal. Tests: tests/e2e/test_doors.py, tests/e2e/test_client.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from jos import wire
from jos.cli_engine import job_json, resolve_id
from jos.core.errors import BadRequest
from jos.core.model import Event, Progress, Status
from jos.terminal import connected, opened, server_meant

if TYPE_CHECKING:
    from jos.client import Client
    from jos.engine import Engine

Json = dict[str, Any]
Told = Iterator[Event | wire.Event]


class Where(Protocol):
    def jobs(self, offset: int, limit: int, status: Status | None, kind: str | None, q: str | None) -> Json: ...
    def show(self, job_id: str) -> Json: ...
    def events(self, job_id: str, after: int, follow: bool) -> Told: ...
    def inputs(self, job_id: str) -> Json: ...
    def outputs(self, job_id: str, download: Path | None, bar: bool) -> Json: ...
    def checkpoints(self, job_id: str, download: Path | None, bar: bool) -> Json: ...
    def cancel(self, job_id: str) -> Json: ...


@contextmanager
def somewhere(as_json: bool = False) -> Iterator[Where]:
    """The server that is meant, else the engine of this home."""
    if server_meant():
        with connected(as_json) as client:
            yield There(client)
    else:
        with opened(as_json) as engine:
            yield Here(engine)


class Here:
    """The local engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def jobs(self, offset: int, limit: int, status: Status | None, kind: str | None, q: str | None) -> Json:
        if kind or q:
            raise BadRequest("--type and --q are for a server.", suggestion="`jos up` starts one here.")
        total, found = self.engine.jobs(offset, limit, status)
        return {"total": total, "offset": offset, "limit": limit, "jobs": [job_json(j) for j in found]}

    def show(self, job_id: str) -> Json:
        job_id = resolve_id(self.engine, job_id)
        live = self.engine.live(job_id)
        record = job_json(self.engine.get(job_id))
        return {**record, "progress": live.data if live else {}, "inputs": self.engine.inputs(job_id)}

    def events(self, job_id: str, after: int, follow: bool) -> Told:
        job_id = resolve_id(self.engine, job_id)
        while batch := self.engine.events(job_id, after)[1]:
            yield from batch
            after = batch[-1].id
        if not follow:
            return
        for entries in self.engine.follow(job_id, after):
            yield from (e for e in entries if not isinstance(e, Progress))
            if not entries and self.engine.get(job_id).status.terminal:
                return

    def inputs(self, job_id: str) -> Json:
        job_id = resolve_id(self.engine, job_id)
        found = self.engine.inputs(job_id)
        return {"job_id": job_id, "total": len(found), "inputs": found}

    def outputs(self, job_id: str, download: Path | None, bar: bool) -> Json:
        job_id = resolve_id(self.engine, job_id)
        record, rows = self.engine.get(job_id), []
        for output in self.engine.outputs(job_id):
            place = self.engine.download(job_id, output, download) if download else self.engine.location(record, output)
            rows.append({**output.model_dump(mode="json", exclude={"key"}), "location": str(place)})
        return {"job_id": job_id, "status": record.status, "total": len(rows), "outputs": rows}

    def checkpoints(self, job_id: str, download: Path | None, bar: bool) -> Json:
        job_id = resolve_id(self.engine, job_id)
        record, rows = self.engine.get(job_id), []
        for one in self.engine.checkpoints(job_id):
            place = self.engine.download(job_id, one, download) if download else self.engine.location(record, one)
            rows.append({**one.model_dump(mode="json", exclude={"key"}), "location": str(place)})
        return {"job_id": job_id, "status": record.status, "total": len(rows), "checkpoints": rows}

    def cancel(self, job_id: str) -> Json:
        return job_json(self.engine.cancel(resolve_id(self.engine, job_id)))


class There:
    """A server."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def jobs(self, offset: int, limit: int, status: Status | None, kind: str | None, q: str | None) -> Json:
        total, found = self.client.jobs.list(offset=offset, limit=limit, status=status, pipeline_type=kind, q=q)
        return {"total": total, "offset": offset, "limit": limit, "jobs": [dump(j.record) for j in found]}

    def show(self, job_id: str) -> Json:
        job = self.client.job(job_id)
        return {**dump(job.record), "inputs": self.inputs(job.id)["inputs"]}

    def events(self, job_id: str, after: int, follow: bool) -> Told:
        yield from self.client.job(job_id).events(follow=follow, after=after)

    def inputs(self, job_id: str) -> Json:
        job = self.client.job(job_id)
        found = []
        tracked = {one.input.id: one for one in job.inputs_progress()}
        for one in job.inputs():
            progress = tracked.get(one.id)
            latest = progress.latest_progress if progress else None
            metrics, data = latest.metrics if latest else {}, one.data
            row = dump(one) | {"filename": data.filename if data else one.file_id}
            row |= {"step": progress.step if progress else None}
            row |= {"port": one.port_name, "num_bytes": data.num_bytes if data else None}
            row |= {"tasks": metrics.get("items_total"), "done": metrics.get("items_processed", 0)}
            found.append(row | {"failed": metrics.get("failed", 0)})
        return {"job_id": job.id, "total": len(found), "inputs": found}

    def outputs(self, job_id: str, download: Path | None, bar: bool) -> Json:
        job = self.client.job(job_id)
        paths = {p.name: str(p) for p in job.download(download, progress=bar)} if download else {}
        rows = []
        for output in job.outputs():
            name = output.data.filename
            if download and name not in paths:
                continue  # finished just now
            place = paths.get(name, output.data.ref)
            rows.append({**dump(output), "filename": name, "num_bytes": output.data.num_bytes, "location": place})
        return {"job_id": job.id, "status": job.record.status, "total": len(rows), "outputs": rows}

    def checkpoints(self, job_id: str, download: Path | None, bar: bool) -> Json:
        job, rows = self.client.job(job_id), []
        for one in job.checkpoints():
            place = job.fetch_checkpoint(one, download, progress=bar) if download else one.data and one.data.ref
            num_bytes = one.data.num_bytes if one.data else None
            rows.append({**dump(one), "num_bytes": num_bytes, "location": str(place or "")})
        return {"job_id": job.id, "status": job.record.status, "total": len(rows), "checkpoints": rows}

    def cancel(self, job_id: str) -> Json:
        return dump(self.client.job(job_id).cancel().record)


def dump(model: wire.Wire) -> Json:
    return model.model_dump(mode="json")
