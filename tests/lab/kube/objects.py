"""The store of the fake cluster: objects with the rules that the API server keeps, in process and thread-safe.

A write answers with the object as it then stands, or raises `ApiError` with Kubernetes' reason. What a caller gets is
its own copy. Field managers are kept beside the objects (`kube.managers`): the HTTP server shows them, callers in
process do not see them. Who subscribes sees every change once, in order, outside the store's lock, and may write then.
Names of resources are plurals: "rayjobs", "pods".
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from kube import patches
from kube.birth import born
from kube.endings import Endings
from kube.errors import ApiError, already_exists, bad_request, conflict, forbidden, invalid, not_found, stale
from kube.fields import Shape
from kube.kinds import KINDS, Kind
from kube.managers import Manager, applied, parsed, updated
from kube.podsecurity import PodSecurity
from kube.policies import Policies, Review
from kube.shelf import Kept, Obj, copied, kind_of, space_of
from kube.validation import Schemas

_LETTERS = "bcdfghjklmnpqrstvwxz2456789"  # of generated names: no vowels, nothing that looks like another


class Objects(Endings):
    """`namespaces` are there from the start; `history` is how many changes watches can look back."""

    def __init__(
        self,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        namespaces: tuple[str, ...] = ("default", "kube-system"),
        history: int = 5_000,
    ) -> None:
        super().__init__(clock, history)
        self.rules = Schemas()
        self.mutators: list[Callable[[Review], None]] = []
        self.validators: list[Callable[[Review], None]] = [Policies(self), PodSecurity(self)]
        for name in namespaces:
            self.create("namespaces", {"metadata": {"name": name}})

    def create(self, resource: str, obj: Obj, *, field_manager: str = "lab", dry_run: bool = False) -> Obj:
        kind = kind_of(resource)
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
        kind, new = kind_of(resource), copied(obj)
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
        known = kind_of(resource)
        with self._writing():
            if kind == "apply":
                place = (namespace, name, subresource)
                return copied(self._apply(known, place, copied(body), field_manager, force, dry_run).obj)
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
        kind = kind_of(resource)
        with self._writing():
            old = self.kept(resource, namespace, name)
            _precondition(kind, name, "UID", uid, old.obj["metadata"]["uid"])
            _precondition(kind, name, "ResourceVersion", resource_version, old.obj["metadata"]["resourceVersion"])
            self._admit(self.validators, Review("DELETE", resource, old.obj, old.obj))
            return copied(old.obj if dry_run else self._delete(kind, old, propagation, grace))

    # --- inside ---

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
            meta["name"] = meta["generateName"] + "".join(secrets.choice(_LETTERS) for _ in range(5))
        space = self._living_space(kind, meta)
        if (space, meta["name"]) in self._kept[kind.plural]:
            raise already_exists(kind, meta["name"])
        taken = parsed(meta.pop("managedFields", None) or [])
        obj = self.rules.prepared(kind, born(kind, obj))
        meta = obj["metadata"]
        meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": self._now()}
        meta |= {"generation": 1} if kind.counted else {}
        for unset in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"):
            meta.pop(unset, None)
        review = Review("CREATE", kind.plural, obj)
        self._admit(self.mutators, review)
        obj = self.rules.prepared(kind, review.obj) if self.mutators else obj
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
        new = self.rules.prepared(kind, review.obj) if self.mutators else review.obj
        self._check(kind, new, old.obj)
        self._admit(self.validators, Review("UPDATE", kind.plural, new, old.obj, subresource))
        if kind.counted and _content(kind, new) != _content(kind, old.obj):
            new["metadata"]["generation"] = had.get("generation", 1) + 1
        if owners is None:
            me = self._manager(kind, manager, "Update", subresource)
            owners = updated(managers, me, old.obj, new, self.rules.shape(kind))
        if dry_run or (new == old.obj and _owners(owners) == _owners(old.managers)):
            return Kept(new, owners) if dry_run else old
        if (
            "deletionTimestamp" in had
            and not new["metadata"].get("finalizers")
            and not had["deletionGracePeriodSeconds"]
        ):
            self._remove(kind, old)
            return Kept(new, owners)
        return self._put("MODIFIED", kind, Kept(new, owners), old)

    def _apply(
        self,
        kind: Kind,
        place: tuple[str | None, str, str | None],
        wanted: Obj,
        manager: str,
        force: bool,
        dry_run: bool,
    ) -> Kept:
        namespace, name, subresource = place
        if not manager:
            what = "fieldManager: Required value: is required for apply patch"
            raise bad_request(f'PatchOptions.meta.k8s.io "" is invalid: {what}')
        meta = wanted.setdefault("metadata", {})
        if meta.get("managedFields"):
            raise bad_request("metadata.managedFields must be nil")
        meta["name"] = name
        if kind.namespaced:
            meta["namespace"] = namespace
        owned = _applicable(kind, wanted, subresource)
        me, shape = self._manager(kind, manager, "Apply", subresource), self.rules.shape(kind)
        old = self._kept[kind.plural].get((space_of(kind, namespace), name))
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
    """What a generation counts changes of. Where a pod is bound to is none."""
    found = {key: value for key, value in obj.items() if key != "metadata" and not (key == "status" and kind.status)}
    if kind.plural == "pods":
        found["spec"] = {key: value for key, value in found.get("spec", {}).items() if key != "nodeName"}
    return found


def _owners(managers: tuple[Manager, ...]) -> set[tuple[Any, ...]]:
    return {(manager.key, manager.fields) for manager in managers}
