"""The real driver with a stop-watch: `python -m benchmarks.probe TRACE.json run job.yaml` is `python -m jos.driver run
job.yaml`, and in the end writes when things happened, how much memory the process had at most, and some counts.

It wraps a handful of the driver's methods, none of them called per task, and imports nothing that the driver does
not import at that moment anyway.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

AT: dict[str, float] = {"main": time.monotonic()}
COUNTS = {"pushes": 0, "entries": 0, "commits": 0, "replies": 0}

PUSHED = -1  # a file: how many tasks each lease held


def once(name: str) -> None:
    AT.setdefault(name, time.monotonic())


def before(owner: Any, name: str, note: Callable[..., None]) -> None:
    inner = getattr(owner, name)

    def outer(self: Any, *arguments: Any, **named: Any) -> Any:
        note(self, *arguments)
        return inner(self, *arguments, **named)

    setattr(owner, name, outer)


def pushed(_driver: Any, what: Any) -> None:
    COUNTS["pushes"] += 1
    once("first_lease")
    if hasattr(what.work[0], "start"):
        once("first_push")
        os.write(PUSHED, b"%d\n" % sum(w.end - w.start for w in what.work))  # outlives a kill -9


def ready(_driver: Any, index: int, *_: Any) -> None:
    once("index_up")
    once(f"index_up_{index}")


def replied(_driver: Any, _index: int, reply: Any) -> None:
    COUNTS["replies"] += 1
    if reply.plans:
        once("planned")
    if reply.commits:
        once("first_done")


def committed(_driver: Any, entry: Any) -> None:
    COUNTS["entries"] += 1
    COUNTS["commits"] += len(entry.commits)
    AT["last_commit"] = time.monotonic()


def peak() -> int:
    """The most memory that this process ever had resident, in bytes, as the kernel counts it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main() -> int:
    global PUSHED
    trace = Path(sys.argv.pop(1))
    PUSHED = os.open(trace.with_suffix(".pushed"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    from jos.driver import __main__ as program
    from jos.driver.driver import Driver

    once("imported")
    before(Driver, "run", lambda *_: once("submitted"))
    before(Driver, "_wire", lambda *_: once("connected"))
    before(Driver, "_ready", ready)
    before(Driver, "_note_push", pushed)
    before(Driver, "_reply", replied)
    before(Driver, "_committed", committed)
    before(Driver, "_finish", lambda *_: once("finishing"))
    code = program.main()
    once("over")
    partial = trace.with_suffix(".partial")
    partial.write_text(json.dumps({"at": AT, "peak": peak(), "counts": COUNTS}))
    partial.rename(trace)
    return code


if __name__ == "__main__":
    sys.exit(main())
