"""How long a resume takes to read its commit log, and how fast a driver can append to it.

    python benchmarks/log_open.py [STORAGE_URL]      a folder (default: a temporary one), s3:// or gs://

May import: jos.core, jos.storage. Prints a table; asserts nothing but that all commits are there.
"""

from __future__ import annotations

import secrets
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import orjson

from jos.core.ledger import Blob, Commit, Entry
from jos.storage import Storage, open_storage
from jos.storage.log import SEGMENT, CommitLog

AT = "2026-01-01T00:00:00.000000Z"
COMMITS = 100_000
APPENDS = 1_000


def commits(start: int, count: int) -> tuple[Commit, ...]:
    """Ten inputs in turn, as when many files are worked on at once."""
    return tuple(
        Commit(n % 10, n // 10 * 256, n // 10 * 256 + 256, index=n % 8, body=Blob(f"parts/a/{n:08d}", 20_000, "0" * 64))
        for n in range(start, start + count)
    )


def fill(storage: Storage, job: str, per_entry: int) -> int:
    """What a driver would have left behind, segments included, written with many hands."""
    lines = [orjson.dumps(Entry(0, "a", AT))]
    for start in range(0, COMMITS, per_entry):
        lines.append(orjson.dumps(Entry(len(lines), "a", AT, commits(start, per_entry))))
    full = len(lines) // SEGMENT * SEGMENT
    blobs = [
        (f"{job}log/segments/{first:020d}.json", b"\n".join(lines[first : first + SEGMENT]) + b"\n")
        for first in range(0, full, SEGMENT)
    ]
    blobs += [(f"{job}log/{number:020d}.json", lines[number]) for number in range(full, len(lines))]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda blob: storage.write(*blob), blobs))
    return len(lines)


def open_times(storage: Storage, job: str, repeats: int = 5) -> list[float]:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        log = CommitLog.open(storage, job)
        times.append(time.perf_counter() - started)
        assert log.ledger.commits == COMMITS
    return times


def append_rate(storage: Storage, job: str, per_entry: int) -> float:
    log = CommitLog.open(storage, job)
    log.claim("a", AT)
    ready = [commits(n * per_entry, per_entry) for n in range(APPENDS)]
    started = time.perf_counter()
    for some in ready:
        log.append("a", AT, some)
    return APPENDS / (time.perf_counter() - started)


def main(url: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage(url or folder)
        job = f"bench-{secrets.token_hex(4)}/"
        print(f"{storage.url}: opening a log of {COMMITS:,} commits; appending {APPENDS:,} entries one by one\n")
        print(f"{'commits/entry':>14} {'entries':>8} {'median s':>9} {'best s':>7} {'appends/s':>10} {'commits/s':>10}")
        for per_entry in (1, 20):
            at = f"{job}{per_entry}/"
            entries = fill(storage, at, per_entry)
            times = open_times(storage, at)
            rate = append_rate(storage, f"{at}append/", per_entry)
            row = f"{per_entry:>14} {entries:>8,} {statistics.median(times):>9.2f} {min(times):>7.2f}"
            print(f"{row} {rate:>10,.0f} {rate * per_entry:>10,.0f}")
        storage.delete([stat.key for stat in storage.list(job)])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
