"""Pipelines that were created over the API, beside those in the `pipelines/` folder.

May import: jos.core, jos.store.connection. Tests: tests/integration/test_store_keys.py.
"""

from __future__ import annotations

from datetime import datetime

from jos.core.model import Model, Pipeline
from jos.store.connection import Connection

PIPELINES = "jos:pipelines"  # HASH "{org_id}/{pipeline_key}/{pipeline_version}" => PipelineRecord as JSON


class PipelineRecord(Model):
    pipeline: Pipeline
    org_id: str | None  # whose it is; None: the platform's, seen by every organisation
    created_at: datetime
    updated_at: datetime

    @property
    def place(self) -> str:
        return _place(self.org_id, self.pipeline.pipeline_key, self.pipeline.pipeline_version)


class Pipelines:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def put(self, record: PipelineRecord, *, replace: bool = True) -> bool:
        """Writes a record. False: there is one already, and it was not to be replaced."""
        command = "HSET" if replace else "HSETNX"
        written = await self._connection.command(
            command, PIPELINES, record.place, record.model_dump_json(by_alias=True)
        )
        return replace or bool(written)

    async def get(self, org_id: str | None, key: str, version: str) -> PipelineRecord | None:
        """As an organisation sees it: its own first, then the platform's."""
        owners = [None] if org_id is None else [org_id, None]
        found = await self._connection.command("HMGET", PIPELINES, *(_place(owner, key, version) for owner in owners))
        return next((PipelineRecord.stored(record) for record in found if record is not None), None)

    async def all(self) -> list[PipelineRecord]:
        """Of every organisation: for backups and administrators."""
        found = await self._connection.command("HVALS", PIPELINES)
        return sorted((PipelineRecord.stored(record) for record in found), key=lambda record: record.place)

    async def list(self, org_id: str | None) -> list[PipelineRecord]:
        """All that an organisation sees; `org_id` None: the platform's alone. By key and version."""
        found = await self._connection.command("HVALS", PIPELINES)
        records = [PipelineRecord.stored(record) for record in found]
        seen = [record for record in records if record.org_id in (None, org_id)]
        return sorted(seen, key=lambda record: (record.pipeline.pipeline_key, _version(record), record.org_id or ""))

    async def delete(self, org_id: str | None, key: str, version: str) -> bool:
        """Removes exactly this owner's record. False: there is none."""
        return bool(await self._connection.command("HDEL", PIPELINES, _place(org_id, key, version)))


def _place(org_id: str | None, key: str, version: str) -> str:
    return f"{org_id or ''}/{key}/{version}"


def _version(record: PipelineRecord) -> tuple[int, ...]:
    return tuple(int(part) for part in record.pipeline.pipeline_version.split("."))
