"""How objects end: finalizers, owners and their dependents, a pod's grace period, a namespace with all in it.

Collection happens within the write that causes it, so that a test need not wait for a collector.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kube.kinds import KINDS, Kind
from kube.shelf import Kept, Obj, Shelf, owners_of

FOREGROUND = "foregroundDeletion"


class Endings(Shelf):
    def _delete(self, kind: Kind, old: Kept, propagation: str, grace: int | None) -> Obj:
        if kind.plural == "namespaces":
            return self._end_namespace(old)
        meta = old.obj["metadata"]
        finalizers = list(meta.get("finalizers", ()))
        if propagation == "Orphan":
            self._orphan(meta["uid"])
        elif propagation == "Foreground" and self._dependents.get(meta["uid"]) and FOREGROUND not in finalizers:
            finalizers.append(FOREGROUND)
        seconds = grace_of(kind, old.obj, grace)
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

    def _remove(self, kind: Kind, kept: Kept) -> Obj:
        obj = self._take_away(kind, kept)
        meta = kept.obj["metadata"]
        self._delete_dependents(meta["uid"], "Background")
        for owner in owners_of(kept.obj):
            self._end_foreground(owner)
        if kind.namespaced:
            self._close_namespace(meta["namespace"])
        return obj

    def _delete_dependents(self, uid: str, propagation: str) -> None:
        """Those of an owner that is gone or waits for them; one with another owner that lives loses the reference."""
        for resource, space, name in sorted(self._dependents.get(uid, ())):
            kept = self._kept[resource].get((space, name))
            if kept is None:
                continue
            if any(other in self._uids for other in owners_of(kept.obj) - {uid}):
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
        owners = owners_of(kept.obj)
        if owners and not any(uid in self._uids for uid in owners):
            self._delete(kind, kept, "Background", 0)


def _blocks(obj: Obj, uid: str) -> bool:
    return any(r["uid"] == uid and r.get("blockOwnerDeletion") for r in obj["metadata"].get("ownerReferences") or ())


def grace_of(kind: Kind, obj: Obj, asked: int | None) -> int:
    """Seconds that a pod has to end; none for what no kubelet runs."""
    if kind.plural != "pods" or not obj.get("spec", {}).get("nodeName"):
        return 0
    if obj.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return 0
    own = obj["spec"].get("terminationGracePeriodSeconds", 30)
    return int(own if asked is None else asked)
