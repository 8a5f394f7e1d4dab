"""API keys: who may call the HTTP API, and as what. Only a secret's SHA-256 is kept; nobody can read it back.

A secret has 256 random bits, so one plain hash protects it: there is nothing to guess.
May import: jos.core, jos.store.connection. Tests: tests/integration/test_store_keys.py.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import datetime
from typing import Literal

from jos.core.ids import new_id
from jos.core.model import Model
from jos.store.connection import Connection

Role = Literal["reader", "user", "admin"]

# HASH SHA-256 of the secret => ApiKey as JSON: one look-up for each request, and one place to revoke
KEYS = "jos:keys"


class ApiKey(Model):
    id: str  # key_…
    org_id: str
    role: Role
    name: str
    hash: str  # SHA-256 of the secret, in hexadecimal
    last4: str  # of the secret, so that a person can tell keys apart
    created_at: datetime


class ApiKeys:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(self, org_id: str, role: Role, name: str, now: datetime) -> tuple[ApiKey, str]:
        """A new key and its secret, which is seen here and never again."""
        secret = f"sk_{secrets.token_urlsafe(32)}"
        key = ApiKey(
            id=new_id("key"),
            org_id=org_id,
            role=role,
            name=name,
            hash=hash_of(secret),
            last4=secret[-4:],
            created_at=now,
        )
        await self.put(key)
        return key, secret

    async def find(self, secret: str) -> ApiKey | None:
        """The key with this secret; None when there is none, or it was revoked."""
        hashed = hash_of(secret)
        record = await self._connection.command("HGET", KEYS, hashed)
        if record is None:
            return None
        key = ApiKey.stored(record)
        return key if hmac.compare_digest(key.hash, hashed) else None

    async def get(self, key_id: str) -> ApiKey | None:
        return next((key for key in await self.list(None) if key.id == key_id), None)

    async def list(self, org_id: str | None) -> list[ApiKey]:
        """Oldest first; `org_id` None: of all organisations."""
        records = await self._connection.command("HVALS", KEYS)
        keys = [ApiKey.stored(record) for record in records]
        return sorted((key for key in keys if org_id in (None, key.org_id)), key=lambda key: key.id)

    async def revoke(self, key_id: str) -> bool:
        """From now on nobody gets in with it. False: there is no such key."""
        key = await self.get(key_id)
        if key is None:
            return False
        await self._connection.command("HDEL", KEYS, key.hash)
        return True

    async def put(self, key: ApiKey) -> None:
        """Writes a key as it is: for recovery."""
        await self._connection.command("HSET", KEYS, key.hash, key.model_dump_json())


def hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
