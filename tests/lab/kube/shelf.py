"""What the store holds and what happened to it: states, their history, and who is told of changes.

The ground that `kube.endings` (deletion) and `kube.objects` (writing) stand on. Of Kubernetes' rules it knows but the
one counter of resourceVersions.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import orjson

from kube import selectors
from kube.errors import ApiError, expired, not_found
from kube.kinds import KINDS, Kind
from kube.managers import Manager

T = TypeVar("T")
Obj = dict[str, Any]
Key = tuple[str, str, str]  # resource, namespace ("" for what has none), name


@dataclass(frozen=True)
class Kept:
    """One stored state; never changed, only replaced."""

    obj: Obj
    managers: tuple[Manager, ...] = ()


@dataclass(frozen=True)
class Change:
    """`type` is ADDED, MODIFIED or DELETED; `old` is the state before, none for ADDED. Not to be changed."""

    rv: int
    type: str
    resource: str
    obj: Obj
    old: Obj | None = None
    managers: tuple[Manager, ...] = ()


def copied(obj: T) -> T:
    found: T = orjson.loads(orjson.dumps(obj))
    return found


Changes = list[Change]  # a method of the class below is called list


class Shelf:
    """States by resource, namespace and name. `history` is how many changes watches can look back."""

    def __init__(self, clock: Callable[[], datetime], history: int) -> None:
        self.clock, self.history = clock, history
        self._lock = threading.RLock()
        self._kept: dict[str, dict[tuple[str, str], Kept]] = defaultdict(dict)
        self._uids: dict[str, Key] = {}
        self._dependents: dict[str, set[Key]] = defaultdict(set)
        self._rv = 0
        self._changes: list[Change] = []
        self._compacted = 0
        self._callbacks: list[Callable[[Change], None]] = []
        self._untold: deque[Change] = deque()
        self._telling = False

    # --- reading ---

    @property
    def version(self) -> int:
        return self._rv

    def kept(self, resource: str, namespace: str | None, name: str) -> Kept:
        """The stored state with its managers; not to be changed."""
        kind = kind_of(resource)
        with self._lock:
            found = self._kept[resource].get((space_of(kind, namespace), name))
        if found is None:
            raise not_found(kind, name)
        return found

    def get(self, resource: str, namespace: str | None, name: str) -> Obj:
        return copied(self.kept(resource, namespace, name).obj)

    def listing(
        self,
        resource: str,
        namespace: str | None = None,
        labels: str | Mapping[str, str] | None = None,
        fields: str | None = None,
    ) -> tuple[list[Kept], int]:
        """Stored states in the order of their names, and the resourceVersion that they were read at."""
        kind = kind_of(resource)
        by_label, by_field = selectors.labels(labels), selectors.fields(kind, fields)
        with self._lock:
            found, rv = sorted(self._kept[resource].items()), self._rv
        return [
            kept
            for (space, _), kept in found
            if (namespace is None or space == namespace) and by_label(kept.obj) and by_field(kept.obj)
        ], rv

    def list(
        self,
        resource: str,
        namespace: str | None = None,
        labels: str | Mapping[str, str] | None = None,
        fields: str | None = None,
    ) -> list[Obj]:
        return [copied(kept.obj) for kept in self.listing(resource, namespace, labels, fields)[0]]

    def changes(self, since_rv: int = 0) -> Changes:
        """All changes after `since_rv`; raises Expired (410) where they are no longer known."""
        with self._lock:
            if since_rv < self._compacted:
                raise expired(since_rv, self._compacted)
            return self._changes[bisect_right(self._changes, since_rv, key=lambda change: change.rv) :]

    def subscribe(self, callback: Callable[[Change], None]) -> Callable[[], None]:
        """Calls back for each change from now on; what it returns ends that."""
        with self._lock:
            self._callbacks.append(callback)

        def leave() -> None:
            with self._lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)

        return leave

    def compact(self, keep: int = 0) -> None:
        """Forgets history but for the last `keep` changes: watches from before then get 410."""
        with self._lock:
            forgotten = len(self._changes) - keep
            if forgotten > 0:
                self._compacted = self._changes[forgotten - 1].rv
                del self._changes[:forgotten]

    # --- for those who write ---

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            yield
        self._tell()

    def _tell(self) -> None:
        """Hands changes to the subscribers, in order. One thread at a time does it, for all; none while it writes."""
        while True:
            with self._lock:
                if self._telling or not self._untold:
                    return
                self._telling = True
                change, callbacks = self._untold.popleft(), list(self._callbacks)
            try:
                for callback in callbacks:
                    callback(change)
            finally:
                with self._lock:
                    self._telling = False

    def _now(self, later: float = 0) -> str:
        return (self.clock() + timedelta(seconds=later)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _put(self, type_: str, kind: Kind, kept: Kept, old: Kept | None) -> Kept:
        self._rv += 1
        obj = kept.obj | {"metadata": kept.obj["metadata"] | {"resourceVersion": str(self._rv)}}
        kept = replace(kept, obj=obj)
        meta = obj["metadata"]
        key = (kind.plural, space_of(kind, meta.get("namespace")), meta["name"])
        self._kept[kind.plural][key[1:]] = kept
        self._uids[meta["uid"]] = key
        before = old.obj if old else None
        self._index(key, before, obj)
        self._note(Change(self._rv, type_, kind.plural, obj, before, kept.managers))
        return kept

    def _take_away(self, kind: Kind, kept: Kept) -> Obj:
        self._rv += 1
        meta = kept.obj["metadata"]
        key = (kind.plural, space_of(kind, meta.get("namespace")), meta["name"])
        del self._kept[kind.plural][key[1:]]
        del self._uids[meta["uid"]]
        self._index(key, kept.obj, None)
        obj = kept.obj | {"metadata": meta | {"resourceVersion": str(self._rv)}}
        self._note(Change(self._rv, "DELETED", kind.plural, obj, kept.obj, kept.managers))
        return obj

    def _note(self, change: Change) -> None:
        self._changes.append(change)
        self._untold.append(change)
        if len(self._changes) > 2 * self.history:
            self.compact(self.history)

    def _index(self, key: Key, old: Obj | None, new: Obj | None) -> None:
        before, after = owners_of(old), owners_of(new)
        for uid in before - after:
            self._dependents[uid].discard(key)
            if not self._dependents[uid]:
                del self._dependents[uid]
        for uid in after - before:
            self._dependents[uid].add(key)


def kind_of(resource: str) -> Kind:
    if resource not in KINDS:
        raise ApiError(404, "NotFound", "the server could not find the requested resource")
    return KINDS[resource]


def space_of(kind: Kind, namespace: str | None) -> str:
    return (namespace or "") if kind.namespaced else ""


def owners_of(obj: Obj | None) -> set[str]:
    return {reference["uid"] for reference in (obj or {"metadata": {}})["metadata"].get("ownerReferences") or ()}
