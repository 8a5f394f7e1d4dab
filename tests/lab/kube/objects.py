"""The store of the fake cluster: objects with the rules that the API server keeps, in process and thread-safe.

A write answers with the object as it then stands, or raises `ApiError` with Kubernetes' reason. What a caller gets is its
own copy. Field managers are kept beside the objects (`kube.managers`); the HTTP server shows them, callers in process do
not see them. Whoever subscribes sees every change once, in order, outside the store's lock; a callback may write. Names
of resources are plurals: "rayjobs", "pods".
"""

from __future__ import annotations

import secrets
import threading
import uuid
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import orjson

from kube import patches, selectors
from kube.birth import born
from kube.errors import ApiError, already_exists, bad_request, conflict, expired, forbidden, invalid, not_found, stale
from kube.fields import Shape
from kube.kinds import KINDS, Kind
from kube.managers import Manager, applied, parsed, updated

Obj = dict[str, Any]
Key = tuple[str, str, str]  # resource, namespace ("" for what has none), name
FOREGROUND = "foregroundDeletion"


@dataclass(frozen=True)
class Kept:
    """One stored state; never changed, only replaced."""

    obj: Obj
    managers: tuple[Manager, ...] = ()


@dataclass(frozen=True)
class Change:
    """`type` is ADDED, MODIFIED or DELETED; `old` is the state before, none for ADDED. Objects are not to be changed."""

    rv: int
    type: str
    resource: str
    obj: Obj
    old: Obj | None = None
    managers: tuple[Manager, ...] = ()


@dataclass
class Review:
    """What admission sees: `operation` is CREATE, UPDATE or DELETE. A mutator changes `obj` in place."""

    operation: str
    resource: str
    obj: Obj
    old: Obj | None = None
    subresource: str | None = None


class Rules(Protocol):
    """Schemas of the kinds that have one: see `kube.validation`."""

    def prepared(self, kind: Kind, obj: Obj) -> Obj: ...
    def problems(self, kind: Kind, obj: Obj, old: Obj | None) -> list[str]: ...
    def shape(self, kind: Kind) -> Shape: ...


class NoRules:
    def prepared(self, kind: Kind, obj: Obj) -> Obj:
        return obj

    def problems(self, kind: Kind, obj: Obj, old: Obj | None) -> list[str]:
        return []

    def shape(self, kind: Kind) -> Shape:
        return Shape(root=True)


def copied(obj: Any) -> Any:
    return orjson.loads(orjson.dumps(obj))


class Objects:
    """`history` is how many changes watches can look back; `compact` forgets more at once."""

    def __init__(
        self,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        rules: Rules | None = None,
        namespaces: tuple[str, ...] = ("default", "kube-system"),
        history: int = 50_000,
    ) -> None:
        self.clock, self.rules, self.history = clock, rules or NoRules(), history
        self.mutators: list[Callable[[Review], None]] = []
        self.validators: list[Callable[[Review], None]] = []
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
        for name in namespaces:
            self.create("namespaces", {"metadata": {"name": name}})

    # --- reading ---

    @property
    def version(self) -> int:
        return self._rv

    def kept(self, resource: str, namespace: str | None, name: str) -> Kept:
        """The stored state with its managers; not to be changed."""
        kind = _kind(resource)
        with self._lock:
            found = self._kept[resource].get((_space(kind, namespace), name))
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
        kind = _kind(resource)
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

    def changes(self, since_rv: int = 0) -> list[Change]:
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

    # --- writing ---

    def create(self, resource: str, obj: Obj, *, field_manager: str = "lab", dry_run: bool = False) -> Obj:
        kind = _kind(resource)
        with self._writing():
            return copied(self._create(kind, copied(obj), field_manager, dry_run).obj)

    def replace(
        self,
        resource: str,
        obj: Obj,
        *,
        subresource: str | None = None,
        field_manager: str = "lab",
        dry_run: bool = False,
    ) -> Obj:
        """A whole object in place of the stored one; 409 when its resourceVersion is not the stored one's."""
        kind, new = _kind(resource), copied(obj)
        meta = new.get("metadata") or {}
        with self._writing():
            old = self.kept(resource, meta.get("namespace"), meta.get("name", ""))
            if kind.custom and not meta.get("resourceVersion"):
                why = "metadata.resourceVersion: Invalid value: 0: must be specified for an update"
                raise invalid(kind, meta["name"], [why])
            return copied(self._update(kind, old, new, subresource, field_manager, dry_run).obj)

    def replace_status(self, resource: str, obj: Obj, *, field_manager: str = "lab") -> Obj:
        return self.replace(resource, obj, subresource="status", field_manager=field_manager)

    def patch(
        self,
        resource: str,
        namespace: str | None,
        name: str,
        body: Any,
        *,
        kind: str = "merge",
        subresource: str | None = None,
        field_manager: str = "lab",
        force: bool = False,
        dry_run: bool = False,
    ) -> Obj:
        """`kind` is merge, json, strategic or apply."""
        known = _kind(resource)
        with self._writing():
            if kind == "apply":
                wanted = copied(body)
                return copied(
                    self._apply(known, namespace, name, wanted, subresource, field_manager, force, dry_run).obj
                )
            old = self.kept(resource, namespace, name)
            if kind == "merge":
                new = patches.merge(old.obj, body)
            elif kind == "json":
                new = patches.json_patch(old.obj, body)
            elif kind == "strategic" and not known.custom:
                new = patches.strategic(old.obj, body, Shape(root=True))
            else:
                accepted = "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
                message = f"the body of the request was in an unknown format - accepted media types include: {accepted}"
                raise ApiError(415, "UnsupportedMediaType", message)
            return copied(self._update(known, old, copied(new), subresource, field_manager, dry_run).obj)

    def apply(
        self,
        resource: str,
        namespace: str | None,
        name: str,
        body: Obj,
        *,
        field_manager: str,
        force: bool = False,
        subresource: str | None = None,
        dry_run: bool = False,
    ) -> Obj:
        """Server-side apply: creates the object, or merges into it what this manager wants."""
        return self.patch(
            resource,
            namespace,
            name,
            body,
            kind="apply",
            subresource=subresource,
            field_manager=field_manager,
            force=force,
            dry_run=dry_run,
        )

    def delete(
        self,
        resource: str,
        namespace: str | None,
        name: str,
        *,
        propagation: str = "Background",
        grace: int | None = None,
        uid: str | None = None,
        resource_version: str | None = None,
        dry_run: bool = False,
    ) -> Obj:
        """Removes it, or marks it with a deletionTimestamp while finalizers (or a pod's kubelet) have work to do.

        A pod on a node stays for its grace period until somebody deletes it with `grace=0`, as a kubelet does.
        """
        kind = _kind(resource)
        with self._writing():
            old = self.kept(resource, namespace, name)
            _precondition(kind, name, "UID", uid, old.obj["metadata"]["uid"])
            _precondition(kind, name, "ResourceVersion", resource_version, old.obj["metadata"]["resourceVersion"])
            self._admit(self.validators, Review("DELETE", resource, old.obj, old.obj))
            return copied(old.obj if dry_run else self._delete(kind, old, propagation, grace))

    # --- inside ---

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

    def _manager(self, kind: Kind, name: str, operation: str, subresource: str | None) -> Manager:
        return Manager(name, operation, kind.api_version, subresource or "", self._now(), frozenset())

    @staticmethod
    def _admit(hooks: list[Callable[[Review], None]], review: Review) -> None:
        for hook in list(hooks):
            hook(review)

    def _check(self, kind: Kind, obj: Obj, old: Obj | None) -> None:
        if problems := self.rules.problems(kind, obj, old):
            raise invalid(kind, obj["metadata"].get("name", ""), problems)

    def _create(self, kind: Kind, obj: Obj, manager: str, dry_run: bool, owners: tuple[Manager, ...] = ()) -> Kept:
        meta = obj.setdefault("metadata", {})
        if meta.get("resourceVersion"):
            raise bad_request("resourceVersion should not be set on objects to be created")
        if not meta.get("name"):
            if not meta.get("generateName"):
                raise invalid(kind, "", ["metadata.name: Required value: name or generateName is required"])
            meta["name"] = meta["generateName"] + "".join(
                secrets.choice("bcdfghjklmnpqrstvwxz2456789") for _ in range(5)
            )
        space = self._living_space(kind, meta)
        if (space, meta["name"]) in self._kept[kind.plural]:
            raise already_exists(kind, meta["name"])
        taken = parsed(meta.pop("managedFields", None) or [])
        obj = self.rules.prepared(kind, born(kind, obj))
        meta = obj["metadata"]
        meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": self._now()} | (
            {"generation": 1} if kind.counted else {}
        )
        for unset in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"):
            meta.pop(unset, None)
        review = Review("CREATE", kind.plural, obj)
        self._admit(self.mutators, review)
        obj = self.rules.prepared(kind, review.obj)
        self._check(kind, obj, None)
        self._admit(self.validators, Review("CREATE", kind.plural, obj))
        me = self._manager(kind, manager, "Update", None)
        shape = self.rules.shape(kind)
        kept = Kept(obj, owners or updated(taken, me, None, obj, shape))
        if dry_run:
            return kept
        kept = self._put("ADDED", kind, kept, None)
        self._collect_orphan(kind, kept)
        return kept

    def _living_space(self, kind: Kind, meta: Obj) -> str:
        if not kind.namespaced:
            meta.pop("namespace", None)
            return ""
        space = meta.get("namespace")
        if not space:
            raise bad_request("an empty namespace may not be set during creation")
        home = self._kept["namespaces"].get(("", space))
        if home is None:
            raise not_found(KINDS["namespaces"], space)
        if "deletionTimestamp" in home.obj["metadata"]:
            why = f"unable to create new content in namespace {space} because it is being terminated"
            raise forbidden(kind, meta["name"], why)
        return str(space)

    def _update(
        self,
        kind: Kind,
        old: Kept,
        new: Obj,
        subresource: str | None,
        manager: str,
        dry_run: bool,
        owners: tuple[Manager, ...] | None = None,
    ) -> Kept:
        """`owners` is set by an apply, which works them out itself."""
        name, had = old.obj["metadata"]["name"], old.obj["metadata"]
        if subresource is not None and not (subresource == "status" and kind.status):
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        meta = new["metadata"]
        if meta.get("resourceVersion") not in (None, "", had["resourceVersion"]):
            raise stale(kind, name)
        _precondition(kind, name, "UID", meta.get("uid"), had["uid"])
        given = meta.pop("managedFields", None)
        managers = parsed(given) if given is not None and owners is None else old.managers
        new = _only(kind, old.obj, new, subresource)
        if set(new["metadata"].get("finalizers", ())) - set(had.get("finalizers", ())) and "deletionTimestamp" in had:
            why = "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted"
            raise invalid(kind, name, [why])
        review = Review("UPDATE", kind.plural, self.rules.prepared(kind, new), old.obj, subresource)
        self._admit(self.mutators, review)
        new = self.rules.prepared(kind, review.obj)
        self._check(kind, new, old.obj)
        self._admit(self.validators, Review("UPDATE", kind.plural, new, old.obj, subresource))
        if kind.counted and _content(kind, new) != _content(kind, old.obj):
            new["metadata"]["generation"] = had.get("generation", 1) + 1
        if owners is None:
            me = self._manager(kind, manager, "Update", subresource)
            owners = updated(managers, me, old.obj, new, self.rules.shape(kind))
        if dry_run or (new == old.obj and _owners(owners) == _owners(old.managers)):
            return Kept(new, owners) if dry_run else old
        if "deletionTimestamp" in had and not new["metadata"].get("finalizers") and not _on_node(kind, new):
            self._remove(kind, old)
            return Kept(new, owners)
        return self._put("MODIFIED", kind, Kept(new, owners), old)

    def _apply(
        self,
        kind: Kind,
        namespace: str | None,
        name: str,
        wanted: Obj,
        subresource: str | None,
        manager: str,
        force: bool,
        dry_run: bool,
    ) -> Kept:
        if not manager:
            raise bad_request(
                'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch'
            )
        meta = wanted.setdefault("metadata", {})
        if meta.get("managedFields"):
            raise bad_request("metadata.managedFields must be nil")
        meta["name"] = name
        if kind.namespaced:
            meta["namespace"] = namespace
        owned = _applicable(kind, wanted, subresource)
        me, shape = self._manager(kind, manager, "Apply", subresource), self.rules.shape(kind)
        old = self._kept[kind.plural].get((_space(kind, namespace), name))
        if old is None:
            if subresource:
                raise not_found(kind, name)
            if meta.get("uid") or meta.get("resourceVersion"):
                raise conflict(kind, name, "the object does not exist")
            obj, owners = applied((), me, {}, owned, shape, force)
            return self._create(kind, wanted | obj, manager, dry_run, owners)
        if meta.get("resourceVersion") not in (None, "", old.obj["metadata"]["resourceVersion"]):
            raise stale(kind, name)
        meta.pop("resourceVersion", None)
        new, owners = applied(old.managers, me, old.obj, owned, shape, force)
        return self._update(kind, old, copied(new), subresource, manager, dry_run, owners)

    def _delete(self, kind: Kind, old: Kept, propagation: str, grace: int | None) -> Obj:
        if kind.plural == "namespaces":
            return self._end_namespace(old)
        meta = old.obj["metadata"]
        finalizers = list(meta.get("finalizers", ()))
        if propagation == "Orphan":
            self._orphan(meta["uid"])
        elif propagation == "Foreground" and self._dependents.get(meta["uid"]) and FOREGROUND not in finalizers:
            finalizers.append(FOREGROUND)
        seconds = _grace(kind, old.obj, grace)
        if not finalizers and not seconds:
            return self._remove(kind, old)
        if "deletionTimestamp" in meta and seconds >= meta["deletionGracePeriodSeconds"]:
            return old.obj
        marks: Obj = {"deletionTimestamp": self._now(seconds), "deletionGracePeriodSeconds": seconds}
        marks |= {"finalizers": finalizers} if finalizers else {}
        if "generation" in meta and "deletionTimestamp" not in meta:
            marks["generation"] = meta["generation"] + 1
        kept = self._put("MODIFIED", kind, replace(old, obj=old.obj | {"metadata": meta | marks}), old)
        if FOREGROUND in finalizers:
            self._delete_dependents(meta["uid"], "Foreground")
            self._end_foreground(meta["uid"])
        return kept.obj

    def _end_namespace(self, old: Kept) -> Obj:
        """Terminating while anything lives in it; what lives in it is deleted."""
        kind, meta, name = KINDS["namespaces"], old.obj["metadata"], old.obj["metadata"]["name"]
        if "deletionTimestamp" not in meta:
            marks = {"deletionTimestamp": self._now(), "deletionGracePeriodSeconds": 0}
            obj = old.obj | {"metadata": meta | marks, "status": {"phase": "Terminating"}}
            old = self._put("MODIFIED", kind, replace(old, obj=obj), old)
        for resource, kept in list(self._inside(name)):
            if self._kept[resource].get((name, kept.obj["metadata"]["name"])) is kept:
                self._delete(KINDS[resource], kept, "Background", None)
        self._close_namespace(name)
        return old.obj

    def _inside(self, namespace: str) -> Iterator[tuple[str, Kept]]:
        for resource, found in list(self._kept.items()):
            yield from [(resource, kept) for (space, _), kept in list(found.items()) if space == namespace]

    def _close_namespace(self, name: str) -> None:
        home = self._kept["namespaces"].get(("", name))
        if home and "deletionTimestamp" in home.obj["metadata"] and not any(self._inside(name)):
            self._remove(KINDS["namespaces"], home)

    def _put(self, type_: str, kind: Kind, kept: Kept, old: Kept | None) -> Kept:
        self._rv += 1
        obj = kept.obj | {"metadata": kept.obj["metadata"] | {"resourceVersion": str(self._rv)}}
        kept = replace(kept, obj=obj)
        meta = obj["metadata"]
        key = (kind.plural, _space(kind, meta.get("namespace")), meta["name"])
        self._kept[kind.plural][key[1:]] = kept
        self._uids[meta["uid"]] = key
        self._index(key, old and old.obj, obj)
        self._note(Change(self._rv, type_, kind.plural, obj, old and old.obj, kept.managers))
        return kept

    def _remove(self, kind: Kind, kept: Kept) -> Obj:
        self._rv += 1
        meta = kept.obj["metadata"]
        key = (kind.plural, _space(kind, meta.get("namespace")), meta["name"])
        del self._kept[kind.plural][key[1:]]
        del self._uids[meta["uid"]]
        self._index(key, kept.obj, None)
        obj = kept.obj | {"metadata": meta | {"resourceVersion": str(self._rv)}}
        self._note(Change(self._rv, "DELETED", kind.plural, obj, kept.obj, kept.managers))
        self._delete_dependents(meta["uid"], "Background")
        for owner in _owners_of(kept.obj):
            self._end_foreground(owner)
        if kind.namespaced:
            self._close_namespace(key[1])
        return obj

    def _note(self, change: Change) -> None:
        self._changes.append(change)
        self._untold.append(change)
        if len(self._changes) > 2 * self.history:
            self.compact(self.history)

    # --- owners ---

    def _index(self, key: Key, old: Obj | None, new: Obj | None) -> None:
        before, after = _owners_of(old), _owners_of(new)
        for uid in before - after:
            self._dependents[uid].discard(key)
            if not self._dependents[uid]:
                del self._dependents[uid]
        for uid in after - before:
            self._dependents[uid].add(key)

    def _delete_dependents(self, uid: str, propagation: str) -> None:
        """Those of a gone owner, or of one that waits for them; who has another owner that lives loses only the name."""
        for resource, space, name in sorted(self._dependents.get(uid, ())):
            kept = self._kept[resource].get((space, name))
            if kept is None:
                continue
            if any(other in self._uids for other in _owners_of(kept.obj) - {uid}):
                self._disown(resource, kept, uid)
            else:
                self._delete(KINDS[resource], kept, propagation, None)

    def _disown(self, resource: str, kept: Kept, uid: str) -> None:
        meta = dict(kept.obj["metadata"])
        references = [reference for reference in meta.pop("ownerReferences") if reference["uid"] != uid]
        meta |= {"ownerReferences": references} if references else {}
        self._put("MODIFIED", KINDS[resource], replace(kept, obj=kept.obj | {"metadata": meta}), kept)

    def _orphan(self, uid: str) -> None:
        for resource, space, name in sorted(self._dependents.get(uid, ())):
            self._disown(resource, self._kept[resource][space, name], uid)

    def _end_foreground(self, uid: str) -> None:
        """An owner that waits for its dependents goes when the last that blocks it has gone."""
        key = self._uids.get(uid)
        owner = self._kept[key[0]].get(key[1:]) if key else None
        if key is None or owner is None or FOREGROUND not in owner.obj["metadata"].get("finalizers", ()):
            return
        dependents = (self._kept[resource][space, name].obj for resource, space, name in self._dependents.get(uid, ()))
        if any(_blocks(obj, uid) for obj in dependents):
            return
        kind, meta = KINDS[key[0]], dict(owner.obj["metadata"])
        meta["finalizers"] = [name for name in meta["finalizers"] if name != FOREGROUND]
        if meta["finalizers"]:
            self._put("MODIFIED", kind, replace(owner, obj=owner.obj | {"metadata": meta}), owner)
        else:
            self._remove(kind, owner)

    def _collect_orphan(self, kind: Kind, kept: Kept) -> None:
        """What was created for an owner that had gone meanwhile is collected as well."""
        owners = _owners_of(kept.obj)
        if owners and not any(uid in self._uids for uid in owners):
            self._delete(kind, kept, "Background", 0)


def _kind(resource: str) -> Kind:
    if resource not in KINDS:
        raise ApiError(404, "NotFound", "the server could not find the requested resource")
    return KINDS[resource]


def _space(kind: Kind, namespace: str | None) -> str:
    return (namespace or "") if kind.namespaced else ""


def _precondition(kind: Kind, name: str, what: str, wanted: str | None, found: str) -> None:
    if wanted and wanted != found:
        why = f"Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
        raise conflict(kind, name, why)


def _only(kind: Kind, old: Obj, new: Obj, subresource: str | None) -> Obj:
    """`new` without what this way of writing does not reach: the other of spec and status, and what is the server's."""
    if subresource == "status":
        found = {key: value for key, value in old.items() if key != "status"}
        found |= {"status": new["status"]} if "status" in new else {}
        return copied(found)
    found = dict(new)
    if kind.status:
        found.pop("status", None)
        found |= {"status": old["status"]} if "status" in old else {}
    meta, had = dict(new["metadata"]), old["metadata"]
    for name in ("name", "namespace", "uid", "creationTimestamp", "generation", "resourceVersion", "generateName"):
        meta.pop(name, None)
        meta |= {name: had[name]} if name in had else {}
    for name in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"):
        meta.pop(name, None)
        meta |= {name: had[name]} if name in had else {}
    for name in ("finalizers", "ownerReferences", "labels", "annotations"):
        if not meta.get(name):
            meta.pop(name, None)
    return found | {"metadata": meta, "apiVersion": kind.api_version, "kind": kind.kind}


def _applicable(kind: Kind, wanted: Obj, subresource: str | None) -> Obj:
    if subresource == "status":
        return {key: value for key, value in wanted.items() if key in ("status", "metadata", "apiVersion", "kind")}
    return {key: value for key, value in wanted.items() if not (key == "status" and kind.status)}


def _content(kind: Kind, obj: Obj) -> Obj:
    return {key: value for key, value in obj.items() if key != "metadata" and not (key == "status" and kind.status)}


def _owners(managers: tuple[Manager, ...]) -> set[tuple[Any, ...]]:
    return {(manager.key, manager.fields) for manager in managers}


def _owners_of(obj: Obj | None) -> set[str]:
    return {reference["uid"] for reference in (obj or {"metadata": {}})["metadata"].get("ownerReferences") or ()}


def _blocks(obj: Obj, uid: str) -> bool:
    return any(r["uid"] == uid and r.get("blockOwnerDeletion") for r in obj["metadata"].get("ownerReferences") or ())


def _on_node(kind: Kind, obj: Obj) -> bool:
    return _grace(kind, obj, obj["metadata"].get("deletionGracePeriodSeconds")) > 0


def _grace(kind: Kind, obj: Obj, asked: int | None) -> int:
    """Seconds that a pod has to end; none for what no kubelet runs."""
    if kind.plural != "pods" or not obj.get("spec", {}).get("nodeName"):
        return 0
    if obj.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return 0
    own = obj["spec"].get("terminationGracePeriodSeconds", 30)
    return int(own if asked is None else asked)
