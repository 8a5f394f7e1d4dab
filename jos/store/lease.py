"""A lease: of all processes that ask for it, one holds it, and only as long as it renews it in time.

A holder that was paused may believe in a lease that is over; so the writes that count carry the lease's token, and
the write script refuses them once another token (or none) is there (`Store.transact(…, lease=…)`).
May import: jos.core.errors, jos.store.connection. Tests: tests/integration/test_store_lease.py.
"""

from __future__ import annotations

import secrets

from jos.core.errors import JosError
from jos.store.connection import Connection


class LeaseLost(JosError):
    """The lease is over or another process holds it: whoever wrote must stop acting as its holder."""

    code, http_status = "lease_lost", 409


class Lease:
    """STRING jos:lease:NAME => token of the holder; the server lets it expire."""

    def __init__(self, connection: Connection, name: str, holder: str, ttl: float = 5.0) -> None:
        self._connection = connection
        self._ttl_ms = max(1, int(ttl * 1000))
        self.name = name
        self.holder = holder  # for people: which process it is
        self.token = ""  # fresh at each acquisition, so that a former life of this holder is a stranger
        self.key = key_of(name)

    async def acquire(self) -> bool:
        """Whether it is ours now. Does not wait; ask again after a while."""
        if self.token and await self.renew():
            return True
        token = f"{self.holder}#{secrets.token_hex(8)}"
        commands = [("SET", self.key, token, "NX", "PX", self._ttl_ms), ("GET", self.key)]
        _, there = await self._connection.commands(commands)
        self.token = token if there == token.encode() else ""  # ours as well when the first try's reply was lost
        return bool(self.token)

    async def renew(self) -> bool:
        """Holds it for another `ttl`. False: it is over, perhaps another holds it."""
        if not self.token:
            return False
        return bool(await self._connection.script("lease", [self.key], [self.token, self._ttl_ms]))

    async def release(self) -> None:
        """Lets the next one in at once; does nothing when it is not ours any more."""
        if self.token:
            token, self.token = self.token, ""
            await self._connection.script("lease", [self.key], [token, 0])


def key_of(name: str) -> str:
    return f"jos:lease:{name}"


async def holder(connection: Connection, name: str) -> str | None:
    """Who holds it, for people; None when nobody does."""
    token = await connection.command("GET", key_of(name))
    return None if token is None else str(token.decode().rpartition("#")[0])
