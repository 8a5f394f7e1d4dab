"""Who may do what: service accounts' tokens, checked against the Roles and bindings in the store; and what they did.

Nothing is granted but by the objects stored; the lab's own token is an administrator's.
"""

from __future__ import annotations

import secrets
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from kube.errors import ApiError, forbidden
from kube.kinds import KINDS
from kube.objects import Objects
from kube.paths import Target
from kube.shelf import Kept

ADMIN = "system:admin"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
Use = tuple[str, str, str, str]  # verb, API group, resource, subresource ("" for none)


class Guard:
    """`used` holds what each identity asked for and was allowed, `calls` how often."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._lock = threading.Lock()
        self.admin_token = secrets.token_hex(16)
        self._users = {self.admin_token: ADMIN}
        self.used: dict[str, set[Use]] = defaultdict(set)
        self.calls: Counter[tuple[str, str, str]] = Counter()

    def token(self, namespace: str, account: str) -> str:
        """A new bearer token of this service account, whether it is stored or not."""
        token = secrets.token_hex(16)
        self._users[token] = f"system:serviceaccount:{namespace}:{account}"
        return token

    def user(self, headers: Mapping[str, str]) -> str:
        """Who asks. kubectl sends no token where there is no TLS, so that nobody is the administrator here.

        `kubectl --as` impersonates, which only the administrator may.
        """
        token = headers.get("authorization", "").removeprefix("Bearer ")
        user = self._users.get(token) if token else ADMIN
        if user is None:
            raise ApiError(401, "Unauthorized", "Unauthorized")
        return headers.get("impersonate-user", user) if user == ADMIN else user

    def check(self, user: str, target: Target) -> None:
        """Raises 403 as the server words it; what is allowed is written down."""
        kind, subresource, space = target.kind, target.subresource or "", _space(target)
        if not self._may(user, target):
            shown = kind.plural + (f"/{subresource}" if subresource else "")
            where = f'in the namespace "{space}"' if space else "at the cluster scope"
            what = f'cannot {target.verb} resource "{shown}" in API group "{kind.group}" {where}'
            raise forbidden(kind, target.name or "", f'User "{user}" {what}')
        with self._lock:
            self.used[user].add((target.verb, kind.group, kind.plural, subresource))
            self.calls[user, target.verb, kind.plural] += 1

    def reviewed(self, user: str, review: dict[str, Any]) -> dict[str, Any]:
        """A SelfSubjectAccessReview with its answer, for `kubectl auth can-i`. It counts as no use."""
        asked = (review.get("spec") or {}).get("resourceAttributes") or {}
        kind = KINDS.get(asked.get("resource", ""))
        allowed = user == ADMIN
        if kind is not None and kind.group == asked.get("group", ""):
            place = asked.get("namespace"), asked.get("name"), asked.get("subresource")
            allowed = self._may(user, Target(asked["verb"], kind, *place))
        return review | {"metadata": {}, "status": {"allowed": allowed}}

    def _may(self, user: str, target: Target) -> bool:
        return user == ADMIN or any(_allows(rule, target) for rule in self._rules(user, _space(target)))

    def _rules(self, user: str, namespace: str | None) -> Iterator[dict[str, Any]]:
        bindings: list[tuple[str | None, Kept]] = []
        bindings += [(None, binding) for binding in self._objects.listing("clusterrolebindings")[0]]
        if namespace is not None:
            bindings += [(namespace, binding) for binding in self._objects.listing("rolebindings", namespace)[0]]
        for space, binding in bindings:
            if any(_is(user, subject, space) for subject in binding.obj.get("subjects") or ()):
                yield from self._role(binding.obj["roleRef"], space)

    def _role(self, reference: dict[str, str], namespace: str | None) -> list[dict[str, Any]]:
        plural = "clusterroles" if reference["kind"] == "ClusterRole" else "roles"
        try:
            role = self._objects.kept(plural, namespace, reference["name"])
        except ApiError:
            return []
        return role.obj.get("rules") or []


def _space(target: Target) -> str | None:
    """A namespace lies in itself."""
    return target.name if target.kind.plural == "namespaces" else target.namespace


def _is(user: str, subject: dict[str, str], namespace: str | None) -> bool:
    parts = user.split(":")
    if subject["kind"] == "ServiceAccount":
        return user == f"system:serviceaccount:{subject.get('namespace', namespace)}:{subject['name']}"
    if subject["kind"] == "Group":
        groups = {"system:authenticated", "system:serviceaccounts", f"system:serviceaccounts:{parts[2]}"}
        return subject["name"] in groups
    return user == subject["name"]


def _allows(rule: dict[str, Any], target: Target) -> bool:
    wanted = target.kind.plural + (f"/{target.subresource}" if target.subresource else "")
    anywhere = f"*/{target.subresource}" if target.subresource else "*"
    names = rule.get("resourceNames")
    return (
        bool({"*", target.verb} & set(rule["verbs"]))
        and bool({"*", target.kind.group} & set(rule.get("apiGroups", ())))
        and bool({"*", anywhere, wanted} & set(rule.get("resources", ())))
        and (not names or (target.verb != "create" and target.name in names))
    )
