"""What runs the behaviours: a queue of keys that changes of the store fill, and controllers that take them one by one.

Stepped by tests with a clock of their own, or in a thread in real time. A controller looks at one object at a time,
makes at most one change of its status, and says when it wants to look again.
May import: kube.objects, kube.errors. Tests: tests/contract/test_fake_kuberay.py.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

from kube.errors import ApiError
from kube.objects import Objects
from kube.shelf import Change, Key

MOST_LOOKS = 100_000  # in one step: more is two controllers that undo each other's work


def utc_now() -> datetime:
    return datetime.now(UTC)


class Controller(Protocol):
    def concerned(self, change: Change) -> Iterable[Key]:
        """Which of its objects this change makes it look at. Called in the thread of whoever changed something."""
        ...

    def reconcile(self, key: Key, now: datetime) -> float | None:
        """Looks at one object and acts. Seconds after which to look again; None: when something changes."""
        ...


class Operator:
    """Controllers over one store. `step` and the thread are not used at the same time."""

    def __init__(self, objects: Objects, controllers: Sequence[Controller], clock: Callable[[], datetime] = utc_now):
        self.objects, self.controllers, self.clock = objects, tuple(controllers), clock
        self.errors: list[str] = []
        self._ready: list[dict[Key, None]] = [{} for _ in self.controllers]  # each in the order in which they came
        self._later: list[tuple[datetime, int, tuple[int, Key]]] = []
        self._count = itertools.count()
        self._lock, self._woken, self._ended = threading.Lock(), threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._unsubscribe = objects.subscribe(self._changed)

    def _changed(self, change: Change) -> None:
        with self._lock:
            for number, controller in enumerate(self.controllers):
                for key in controller.concerned(change):
                    self._ready[number][key] = None
        self._woken.set()

    def look(self, key: Key) -> None:
        """Has every controller of this resource look at the object, as after a change from outside of the store."""
        with self._lock:
            for number, controller in enumerate(self.controllers):
                if key[0] in getattr(controller, "resources", ()):
                    self._ready[number][key] = None
        self._woken.set()

    # --- stepped ---

    def step(self, now: datetime) -> None:
        """Does all that is due at this time, and what follows from it at once."""
        for _ in range(MOST_LOOKS):
            if (due := self._take(now)) is None:
                return
            self._reconcile(*due, now)
        raise RuntimeError("the behaviours do not come to rest")

    def next_due(self) -> datetime | None:
        """When something is due next; None: nothing is, unless the store changes."""
        with self._lock:
            if any(self._ready):
                return datetime.min.replace(tzinfo=UTC)
            return self._later[0][0] if self._later else None

    def _take(self, now: datetime) -> tuple[int, Key] | None:
        """The next one. Those of an earlier controller first: it misses no state that a later one goes through."""
        with self._lock:
            while self._later and self._later[0][0] <= now:
                number, key = heapq.heappop(self._later)[2]
                self._ready[number][key] = None
            for number, keys in enumerate(self._ready):
                if keys:
                    key = next(iter(keys))
                    del keys[key]
                    return number, key
            return None

    def _reconcile(self, number: int, key: Key, now: datetime) -> None:
        try:
            again = self.controllers[number].reconcile(key, now)
        except ApiError as error:
            if error.reason not in ("Conflict", "NotFound", "AlreadyExists"):
                raise
            again = 0.0 if error.reason == "Conflict" else None  # it changed meanwhile: that change calls again
        if again is not None:
            with self._lock:
                at = now + timedelta(seconds=again)
                heapq.heappush(self._later, (at, next(self._count), (number, key)))

    # --- in real time ---

    def start(self) -> Operator:
        assert self._thread is None
        self._thread = threading.Thread(target=self._run, name="kube-operator", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ends the thread; fails if a behaviour failed meanwhile."""
        self._ended.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join(30)
        self._unsubscribe()
        assert not self.errors, "\n".join(self.errors)

    def _run(self) -> None:
        while not self._ended.is_set():
            self._woken.clear()
            try:
                self.step(self.clock())
            except Exception:  # told by stop(): a thread has nobody to raise to
                self.errors.append(traceback.format_exc())
            due = self.next_due()
            pause = None if due is None else max((due - self.clock()).total_seconds(), 0.0)
            self._woken.wait(pause)
