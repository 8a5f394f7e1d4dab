"""The commit log of one job: numbered entries, each created only if absent. This is the fence between drivers.

    {prefix}log/00000000000000000017.json         one entry; never replaced, never removed
    {prefix}log/segments/00000000000000000256.json  entries 256 to 511 again, one a line: only makes opening fast

Whoever creates entry n owns the log from n on. A driver starts by creating an empty one (`claim`); the driver
before it finds its next number taken, gets FenceLost and must exit. No clock, no Redis, no lease.
May import: jos.core, jos.storage.base. Tests: tests/contract/test_commit_log.py.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import orjson

from jos.core.errors import FenceLost, JosError, NotFound, StorageUnavailable
from jos.core.ledger import Commit, Entry, Finished, Ledger
from jos.storage.base import Storage

SEGMENT = 256  # entries; a multiple of it starts a segment
AHEAD = 16  # reads in flight while opening


class LogDamaged(JosError):
    """An object of the log was changed, cut or removed by somebody; the message names it."""

    code = "log_damaged"


class CommitLog:
    """Opened with `CommitLog.open`. `ledger` is the fold of all entries read or written so far."""

    def __init__(self, storage: Storage, prefix: str, seen: Callable[[Entry, Ledger], None] | None = None) -> None:
        self.storage = storage
        self._seen = seen
        self.prefix = prefix if not prefix or prefix.endswith("/") else prefix + "/"
        self.ledger = Ledger()
        self._tail: list[bytes] = []  # entries since the last full segment
        self._unclear: tuple[Entry, bytes] | None = None  # storage failed while this was being written
        self._lost: FenceLost | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, storage: Storage, prefix: str, seen: Callable[[Entry, Ledger], None] | None = None) -> CommitLog:
        """Reads everything. `prefix` is the job's folder. Needs about one read per 256 entries, 16 in flight. `seen`
        is called with each entry that is read, once it is folded."""
        log = cls(storage, prefix, seen)
        log._read_from_start()
        return log

    def claim(self, attempt: str, at: str, retry: int = 0) -> Entry:
        """Takes the log over for a new attempt, whoever had it before; `ledger` is complete afterwards. A `retry`
        higher than any before opens failed tasks again.
        Raises FenceLost if this attempt had it and lost it."""
        with self._lock:
            self._unclear = None  # should it have been written after all, the next lines find and fold it
            while True:
                if self._lost or attempt in self.ledger.attempts[:-1]:
                    raise self._lost or FenceLost(f"Attempt {attempt} has been replaced by a later one.")
                entry = Entry(self.ledger.next_number, attempt, at, retry=retry)
                if self._create(entry, orjson.dumps(entry)) is None:
                    return entry
                self._catch_up()  # somebody else wrote meanwhile: try behind them

    def append(
        self,
        attempt: str,
        at: str,
        commits: Sequence[Commit] = (),
        finished: Sequence[Finished] = (),
        *,
        fold: bool = True,
    ) -> Entry:
        """Writes the next entry; once it returns, the commits are durable. With `fold=False` the caller must
        `ledger.apply` it before anything else is appended: for one whose other threads read the ledger meanwhile.

        Raises FenceLost if another attempt has taken over, now and ever after. After StorageUnavailable the entry
        may or may not be there: append the very same again (or open and claim anew), nothing else is accepted.
        Raises ValueError, with nothing written, for work that is already committed.
        """
        with self._lock:
            if self._lost:
                raise self._lost
            if not self.ledger.attempts or self.ledger.attempts[-1] != attempt:
                raise ValueError(f"attempt {attempt} does not own the log of {self.prefix}: claim it first")
            entry = Entry(self.ledger.next_number, attempt, at, tuple(commits), tuple(finished))
            if self._unclear is None:
                self.ledger.check(entry)
                data = _encode(entry)
            else:
                same, data = self._unclear
                if replace(entry, at=same.at) != same:
                    raise ValueError(f"entry {same.number} may be written already: append the very same again")
                entry = same
            there = self._create(entry, data, fold)
            if there is not None:
                self._lost = FenceLost(
                    f"Entry {entry.number} of the log of {self.prefix} was written by {_author(there)}, "
                    f"so attempt {attempt} has lost this job and must stop."
                )
                raise self._lost
            return entry

    # --- writing --------------------------------------------------------------------------------------

    def _create(self, entry: Entry, data: bytes, fold: bool = True) -> bytes | None:
        """None: the entry is ours, durable, and folded if that is wanted. Otherwise the bytes of whoever was first."""
        key = self._entry_key(entry.number)
        try:
            if not self.storage.create(key, data):
                # Ours all the same if it is what we wrote: only the reply to an earlier try was lost.
                there = self.storage.read(key)
                if there != data:
                    return there
        except (StorageUnavailable, NotFound) as error:
            self._unclear = (entry, data)
            if isinstance(error, NotFound):
                raise StorageUnavailable(f"{key} exists and yet cannot be read.") from error
            raise
        self._unclear = None
        if fold:
            self.ledger.apply(entry)
        self._keep(entry.number + 1, data)
        return None

    def _keep(self, entries: int, data: bytes) -> None:
        """Every full segment is written once more as one object. It says only what the entries say, so anybody
        may write it and nothing is lost if it fails: the next opening does it."""
        self._tail.append(data)
        if entries % SEGMENT == 0:
            lines, self._tail = self._tail, []
            with contextlib.suppress(StorageUnavailable):
                self.storage.create(self._segment_key(entries - SEGMENT), b"\n".join(lines) + b"\n")

    # --- reading --------------------------------------------------------------------------------------

    def _read_from_start(self) -> None:
        folder = f"{self.prefix}log/segments/"
        segments = {stat.key for stat in self.storage.list(folder)}
        with ThreadPoolExecutor(AHEAD) as pool:
            while True:
                firsts = self._run_of(segments)
                for first, data in zip(firsts, _ahead(pool, self._read_segment, firsts), strict=True):
                    self._fold_segment(first, data)
                if not self._fold_entries(pool):
                    break
        beyond = [key for key in segments if key >= self._segment_key(self.ledger.next_number)]
        if beyond:
            raise self._damaged(self._entry_key(self.ledger.next_number), f"is missing, but {min(beyond)} is there")

    def _catch_up(self) -> None:
        with ThreadPoolExecutor(AHEAD) as pool:
            while self._fold_entries(pool):
                pass

    def _run_of(self, segments: set[str]) -> list[int]:
        """The segments that are there from the next number on, up to the first gap."""
        firsts, first = [], self.ledger.next_number
        while self._segment_key(first) in segments:
            firsts.append(first)
            first += SEGMENT
        return firsts

    def _fold_segment(self, first: int, data: bytes) -> None:
        lines = data.splitlines()
        if len(lines) != SEGMENT:
            raise self._damaged(self._segment_key(first), f"has {len(lines)} entries instead of {SEGMENT}")
        for line in lines:
            self._fold(self._segment_key(first), line)

    def _fold_entries(self, pool: ThreadPoolExecutor) -> bool:
        """Reads single entries up to the end of a segment (True) or of the log (False). Reads ahead further the
        more there are, as most logs are opened while they are empty."""
        width = 1
        while True:
            number = self.ledger.next_number
            numbers = range(number, min(number + width, (number // SEGMENT + 1) * SEGMENT))
            found = list(pool.map(self._read_entry, numbers))
            for at, data in zip(numbers, found, strict=True):
                if data is None and any(found[at - number :]):
                    data = self._read_entry(at)  # written while we read; entries are written in order
                    if data is None:
                        raise self._damaged(self._entry_key(at), "is missing, but a later entry is there")
                if data is None:
                    return False
                self._fold(self._entry_key(at), data)
                self._keep(at + 1, data)
            if self.ledger.next_number % SEGMENT == 0:
                return True
            width = min(width * 4, AHEAD)

    def _fold(self, key: str, data: bytes) -> None:
        try:
            entry = Entry.from_json(orjson.loads(data))
            self.ledger.apply(entry)
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # orjson's own is a ValueError
            raise self._damaged(key, f"cannot be used: {error!r}") from error
        if self._seen is not None:
            self._seen(entry, self.ledger)

    def _read_entry(self, number: int) -> bytes | None:
        try:
            return self.storage.read(self._entry_key(number))
        except NotFound:
            return None

    def _read_segment(self, first: int) -> bytes:
        return self.storage.read(self._segment_key(first))

    def _entry_key(self, number: int) -> str:
        return f"{self.prefix}log/{number:020d}.json"

    def _segment_key(self, first: int) -> str:
        return f"{self.prefix}log/segments/{first:020d}.json"

    def _damaged(self, key: str, what: str) -> LogDamaged:
        repair = "Restore it from a backup of the bucket or folder, or start the job anew."
        if "/segments/" in key:
            repair = "Delete it: it is made again from the entries."
        return LogDamaged(f"The commit log is damaged: {self.storage.location(key)} {what}.", suggestion=repair)


def _ahead(pool: ThreadPoolExecutor, read: Any, items: Iterable[int]) -> Iterator[bytes]:
    """`pool.map` with bounded memory: at most AHEAD results wait."""
    waiting: deque[Future[bytes]] = deque()
    for item in items:
        waiting.append(pool.submit(read, item))
        if len(waiting) >= AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _encode(entry: Entry) -> bytes:
    """JSON in which two encodings of one entry are the same bytes."""
    try:
        return orjson.dumps(entry, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError:  # a message quoting a file name that is not UTF-8 must not stop the job
        clean = [
            replace(c, failures=tuple((task, m.encode(errors="replace").decode()) for task, m in c.failures))
            for c in entry.commits
        ]
        return orjson.dumps(replace(entry, commits=tuple(clean)), option=orjson.OPT_SERIALIZE_NUMPY)


def _author(data: bytes) -> str:
    try:
        entry = orjson.loads(data)
        return f"attempt {entry['attempt']} at {entry['at']}"
    except (ValueError, KeyError, TypeError):
        return "somebody else"
