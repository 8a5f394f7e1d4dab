"""Watches and lists as the server gives them: events from a resourceVersion on, bookmarks, 410, pages.

A watch follows the store's history by itself; it is only told that there is something new.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson

from kube import selectors
from kube.errors import ApiError, bad_request
from kube.managers import Manager, rendered
from kube.objects import Objects
from kube.paths import Target
from kube.shelf import Change, Kept

Body = dict[str, Any]
INITIAL_END = "k8s.io/initial-events-end"


def seen(obj: Body, managers: tuple[Manager, ...]) -> Body:
    """An object as it leaves the server, with its managers."""
    return obj | {"metadata": obj["metadata"] | {"managedFields": rendered(managers)}}


def _line(type_: str, obj: Body) -> bytes:
    return orjson.dumps({"type": type_, "object": obj}) + b"\n"


@dataclass(frozen=True)
class Watch:
    """One client's watch. `rv` None: all that there is, as ADDED, and then changes."""

    target: Target
    matches: Callable[[Mapping[str, Any]], bool]
    rv: int | None
    bookmarks: bool
    initial: bool  # sendInitialEvents: all that there is, a bookmark that says so, and then changes

    @classmethod
    def asked(cls, target: Target, query: Mapping[str, str]) -> Watch:
        rv = query.get("resourceVersion", "")
        if rv and not rv.isdigit():
            raise bad_request(f"invalid resource version {rv!r}")
        initial = query.get("sendInitialEvents") == "true"
        by_label = selectors.labels(query.get("labelSelector"))
        by_field = selectors.fields(target.kind, query.get("fieldSelector"))
        begin = None if initial or rv in ("", "0") else int(rv)
        bookmarks = query.get("allowWatchBookmarks") in ("true", "1")
        return cls(target, lambda obj: by_label(obj) and by_field(obj), begin, bookmarks, initial)

    def event(self, change: Change) -> bytes | None:
        """What this watch shows of a change: an object that leaves the selection is DELETED for it."""
        if change.resource != self.target.kind.plural:
            return None
        space = self.target.namespace
        if space is not None and change.obj["metadata"].get("namespace") != space:
            return None
        now = change.type != "DELETED" and self.matches(change.obj)
        before = change.old is not None and self.matches(change.old)
        if not now and not before:
            return None
        type_ = "DELETED" if not now else "MODIFIED" if before else "ADDED"
        return _line(type_, seen(change.obj, change.managers))

    def bookmark(self, rv: int, **annotations: str) -> bytes:
        kind = self.target.kind
        meta: Body = {"resourceVersion": str(rv)} | ({"annotations": annotations} if annotations else {})
        return _line("BOOKMARK", {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": meta})


@dataclass
class Bell:
    """Wakes the watches: `ring` and `end` from any thread, `next` is what a watch waits for."""

    loop: asyncio.AbstractEventLoop
    _event: asyncio.Event
    ended: bool = False

    @classmethod
    def here(cls) -> Bell:
        return cls(asyncio.get_running_loop(), asyncio.Event())

    def ring(self) -> None:
        with suppress(RuntimeError):  # the server went down meanwhile
            self.loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    def next(self) -> asyncio.Event:
        return self._event

    def end(self) -> None:
        """Watches end, those too that begin from now on."""
        self.ended = True
        self.ring()


async def events(objects: Objects, watch: Watch, bell: Bell, seconds: float, marks: float) -> AsyncIterator[bytes]:
    """Lines of a watch for `seconds`; a bookmark each `marks` seconds and at the end, where they are wanted."""
    rv = watch.rv
    if rv is None:
        found, rv = objects.listing(watch.target.kind.plural, watch.target.namespace)
        for kept in found:
            if watch.matches(kept.obj):
                yield _line("ADDED", seen(kept.obj, kept.managers))
        if watch.initial:
            yield watch.bookmark(rv, **{INITIAL_END: "true"})
    clock = asyncio.get_running_loop().time
    end = clock() + seconds
    mark = clock() + marks
    while not bell.ended:
        ring = bell.next()
        try:
            changes = objects.changes(rv)
        except ApiError as error:
            yield _line("ERROR", error.body())
            return
        for change in changes:
            if line := watch.event(change):
                yield line
        rv = changes[-1].rv if changes else rv
        if clock() >= min(end, mark) and watch.bookmarks:
            yield watch.bookmark(rv)
            mark = clock() + marks
        if clock() >= end:
            return
        try:
            await asyncio.wait_for(ring.wait(), max(0.0, min(end, mark) - clock()))
        except TimeoutError:
            continue


class Pages:
    """Lists in parts: the rest of a list is kept as it was when its first page was read."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._rest: dict[str, tuple[list[Kept], int]] = {}

    def listed(self, target: Target, query: Mapping[str, str]) -> Body:
        token = query.get("continue")
        if token:
            found, rv = self._continued(token)
        else:
            labels, fields = query.get("labelSelector"), query.get("fieldSelector")
            found, rv = self._objects.listing(target.kind.plural, target.namespace, labels, fields)
        meta: Body = {"resourceVersion": str(rv)}
        limit = int(query.get("limit") or 0)
        if limit and len(found) > limit:
            token = secrets.token_urlsafe(12)
            self._rest[token] = (found[limit:], rv)
            meta |= {"continue": token, "remainingItemCount": len(found) - limit}
            found = found[:limit]
        kind = target.kind
        items = [seen(kept.obj, kept.managers) for kept in found]
        return {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": meta, "items": items}

    def _continued(self, token: str) -> tuple[list[Kept], int]:
        if token not in self._rest:
            raise ApiError(400, "BadRequest", "continue key is not valid")
        found, rv = self._rest[token]
        self._objects.changes(rv)  # 410 where the history of that list is gone
        del self._rest[token]
        return found, rv
