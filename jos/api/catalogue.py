"""The pipelines that an organisation sees: templates in folders, which belong to the platform, and those that were
created over the API. What was read is kept for a second, and looked at again before anything is said not to exist.

May import: jos.core, jos.registry, jos.store. Tests: tests/integration/test_api_registry.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from time import monotonic

from jos import wire
from jos.core.errors import ConfigInvalid, Conflict, Forbidden, NotFound
from jos.core.ids import derived_id
from jos.core.model import Json, Pipeline, PipelineStatus
from jos.core.schema import did_you_mean
from jos.core.template import check_template
from jos.recovery import drop_pipeline, save_pipeline
from jos.registry import Registry, component_id, pipeline_id
from jos.storage.base import Storage
from jos.store.pipelines import PipelineRecord, Pipelines

FRESH = 1.0  # seconds


@dataclass(frozen=True)
class Entry:
    id: str
    pipeline: Pipeline
    org_id: str | None  # None: the platform's
    created_at: datetime
    updated_at: datetime
    record: PipelineRecord | None = None  # None: a template in a folder

    @property
    def name(self) -> str:
        return f'Pipeline "{self.pipeline.pipeline_key}" {self.pipeline.pipeline_version}'

    @property
    def order(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.pipeline.pipeline_version.split("."))


class Catalogue:
    def __init__(self, registry: Registry, pipelines: Pipelines, storage: Storage, operator: str) -> None:
        self._registry, self._pipelines, self._storage, self._operator = registry, pipelines, storage, operator
        self._entries: list[Entry] = []
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def warm(self) -> None:
        """Reads all templates and compiles their schemas, so that the first request need not."""
        for entry in await self.seen(self._operator):
            await asyncio.to_thread(check_template, entry.pipeline)

    # --- reading --------------------------------------------------------------------------------------

    async def seen(self, org_id: str, *, fresh: bool = False) -> list[Entry]:
        """By key, newest version first, deleted ones too."""
        async with self._reading:
            if fresh or monotonic() - self._read_at > FRESH:
                records = await self._pipelines.all()
                self._entries = _sorted([*await asyncio.to_thread(self._folders), *map(_recorded, records)])
                self._read_at = monotonic()
        return [entry for entry in self._entries if entry.org_id in (None, org_id)]

    async def by_id(self, org_id: str, wanted: str) -> Entry:
        """Raises NotFound."""
        for fresh in (False, True):
            for entry in await self.seen(org_id, fresh=fresh):
                if entry.id == wanted and entry.pipeline.status is not PipelineStatus.DELETED:
                    return entry
        raise NotFound(f"There is no pipeline {wanted}.")

    async def runnable(self, org_id: str, key: str, version: str | None) -> Pipeline:
        """The named version, or the latest published one; a draft runs only when it is named. Raises NotFound,
        Conflict (deactivated) or ConfigInvalid (a broken template)."""
        entry = _chosen(await self.seen(org_id), key, version)
        if entry is None:
            entry = _chosen(entries := await self.seen(org_id, fresh=True), key, version)
            if entry is None:
                raise _unknown(entries, key, version)
        if entry.record is None:  # it may be broken, or changed after it was published
            return self._registry.get(key, entry.pipeline.pipeline_version)
        if entry.pipeline.status is PipelineStatus.DEACTIVATED:
            raise Conflict(f"{entry.name} is deactivated: it takes no new jobs.")
        return entry.pipeline

    def _folders(self) -> list[Entry]:
        found = []
        for pipeline in self._registry.list():
            key, version = pipeline.pipeline_key, pipeline.pipeline_version
            owner = self._operator if pipeline.visibility == "org" else None
            when = self._registry.changed_at(key, version)
            found.append(Entry(pipeline_id(key, version), pipeline, owner, when, when))
        return found

    # --- writing --------------------------------------------------------------------------------------

    async def create(self, org_id: str, pipeline: Pipeline, now: datetime) -> Entry:
        """A draft, new or in place of one. Raises ConfigInvalid, Conflict, Forbidden."""
        pipeline = pipeline.model_copy(update={"status": PipelineStatus.DRAFT})
        if found := check_template(pipeline):
            raise ConfigInvalid("The pipeline is not valid.", found)
        entries = await self.seen(org_id, fresh=True)
        owner = org_id if pipeline.visibility == "org" else None
        self._check_allowed(org_id, owner, pipeline, entries)
        same = [e for e in entries if _names(e) == (pipeline.pipeline_key, pipeline.pipeline_version)]
        for entry in same:
            if entry.record is None or entry.org_id != owner or entry.pipeline.status is not PipelineStatus.DRAFT:
                raise Conflict(
                    f"{entry.name} is there already and {entry.pipeline.status}: a version never changes.",
                    suggestion="Create it under a new version.",
                )
        created = same[0].created_at if same else now
        record = PipelineRecord(pipeline=pipeline, org_id=owner, created_at=created, updated_at=now)
        if not await self._pipelines.put(record, replace=bool(same)):
            raise Conflict(f"{_recorded(record).name} was created by somebody else just now.")
        await save_pipeline(self._storage, record)  # so that it outlives Redis
        self._forget()
        return _recorded(record)

    def _check_allowed(self, org_id: str, owner: str | None, pipeline: Pipeline, entries: list[Entry]) -> None:
        """New code is the operator's to bring in: what runs is somebody's program on the operator's machines."""
        if org_id == self._operator:
            return
        if owner is None:
            raise Forbidden(
                "Only the operator's organisation creates pipelines for everybody.",
                suggestion='Give it "visibility": "org".',
            )
        offered = [e.pipeline for e in entries if e.org_id is None and e.pipeline.worker == pipeline.worker]
        if not any((one.image, one.command) == (pipeline.image, pipeline.command) for one in offered):
            raise Forbidden(
                f"worker, image and command must be those of a pipeline that the platform offers; "
                f'"{pipeline.worker}" with this image and command is none of them.',
                suggestion="Copy them from a pipeline of the registry, or ask the operator.",
            )
        known = [schema for one in offered for schema in _schemas(one)]
        if any(_refers(schema) for schema in _schemas(pipeline) if schema not in known):
            # references to references make a schema of a few lines that takes for ever to check
            raise Forbidden(
                "A schema with $ref or $dynamicRef must be one of the pipeline that the worker is taken from.",
                suggestion="Write it out, or copy the whole schema.",
            )

    async def move(self, entry: Entry, org_id: str, status: PipelineStatus, now: datetime) -> Entry:
        """Publishes, deactivates or deletes. A version that was published once stays taken when it is deleted, so
        that its name never means something else. Raises Conflict, Forbidden."""
        record = self._own(entry, org_id)
        before = record.pipeline.status
        if before is status:
            return entry
        if before not in _BEFORE[status]:
            raise Conflict(f"{entry.name} is {before}: it cannot become {status}.")
        self._forget()
        if status is PipelineStatus.DELETED and before is PipelineStatus.DRAFT:
            await drop_pipeline(self._storage, record.org_id, *_names(entry))
            await self._pipelines.delete(record.org_id, *_names(entry))
            return entry
        pipeline = record.pipeline.model_copy(update={"status": status})
        changed = record.model_copy(update={"pipeline": pipeline, "updated_at": now})
        await self._pipelines.put(changed)
        await save_pipeline(self._storage, changed)
        return _recorded(changed)

    def _own(self, entry: Entry, org_id: str) -> PipelineRecord:
        if entry.record is None:
            raise Conflict(
                f"{entry.name} lies in a folder of the service and is changed there.",
                suggestion="`jos pipelines publish` publishes it.",
            )
        if entry.org_id is None and org_id != self._operator:
            raise Forbidden(f"{entry.name} is the platform's: only the operator's organisation changes it.")
        return entry.record

    def _forget(self) -> None:
        self._read_at = float("-inf")


_BEFORE = {
    PipelineStatus.PUBLISHED: (PipelineStatus.DRAFT, PipelineStatus.DEACTIVATED),
    PipelineStatus.DEACTIVATED: (PipelineStatus.PUBLISHED,),
    PipelineStatus.DELETED: (PipelineStatus.DRAFT, PipelineStatus.PUBLISHED, PipelineStatus.DEACTIVATED),
}


def _schemas(pipeline: Pipeline) -> list[Json]:
    return [*pipeline.config_schema.values(), *pipeline.user_config_schema.values()]


def _refers(schema: object) -> bool:
    match schema:
        case dict():
            return any(name in schema for name in ("$ref", "$dynamicRef")) or any(map(_refers, schema.values()))
        case list():
            return any(map(_refers, schema))
    return False


def _chosen(entries: list[Entry], key: str, version: str | None) -> Entry | None:
    usable = [e for e in entries if e.pipeline.pipeline_key == key and e.pipeline.status is not PipelineStatus.DELETED]
    if version is not None:
        return next((e for e in usable if e.pipeline.pipeline_version == version), None)
    published = [e for e in usable if e.pipeline.status is PipelineStatus.PUBLISHED]
    return max(published, key=lambda entry: entry.order, default=None)


def _unknown(entries: list[Entry], key: str, version: str | None) -> NotFound:
    usable = [e.pipeline for e in entries if e.pipeline.status is not PipelineStatus.DELETED]
    versions = [f"{p.pipeline_version} ({p.status})" for p in usable if p.pipeline_key == key]
    if not versions:
        hint = did_you_mean(key, {p.pipeline_key for p in usable}).strip()
        which = f'"{key}"' if version is None else f'"{key}", version "{version}"'
        return NotFound(f"There is no pipeline {which}.", suggestion=hint or None)
    known = f"Known versions: {', '.join(versions)}. A draft runs only when its version is named."
    if version is None:
        return NotFound(f'Pipeline "{key}" has no published version.', suggestion=known)
    return NotFound(f'Pipeline "{key}" has no version "{version}".', suggestion=known)


def _recorded(record: PipelineRecord) -> Entry:
    key, version = record.pipeline.pipeline_key, record.pipeline.pipeline_version
    own = pipeline_id(key, version) if record.org_id is None else derived_id("ppl", key, version, record.org_id)
    return Entry(own, record.pipeline, record.org_id, record.created_at, record.updated_at, record)


def _names(entry: Entry) -> tuple[str, str]:
    return entry.pipeline.pipeline_key, entry.pipeline.pipeline_version


def _sorted(entries: list[Entry]) -> list[Entry]:
    newest = sorted((entry for entry in entries if entry.order), key=lambda entry: entry.order, reverse=True)
    return sorted(newest, key=lambda entry: entry.pipeline.pipeline_key)


def shown(entry: Entry) -> wire.Pipeline:
    pipeline = entry.pipeline
    key, version = pipeline.pipeline_key, pipeline.pipeline_version
    return wire.Pipeline(
        id=entry.id,
        components={name: component_id(key, version, name) for name in pipeline.default_config},
        edges=[edge.model_dump(by_alias=True) for edge in pipeline.edges],
        org_id=entry.org_id,
        created_at=entry.created_at,
        updated_at=entry.updated_at,
        **pipeline.model_dump(mode="json", exclude={"edges"}),
    )


def shown_schema(entry: Entry) -> wire.PipelineSchema:
    whole = shown(entry)
    return wire.PipelineSchema(
        id=whole.id,
        pipeline_key=whole.pipeline_key,
        pipeline_version=whole.pipeline_version,
        user_schema=whole.user_config_schema,
        config_schema=whole.config_schema,
        inputs=whole.inputs,
        outputs=whole.outputs,
    )
