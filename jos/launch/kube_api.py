"""Kubernetes' API as JOS uses it: lightkube, with errors that say what to do, a watch that asks for bookmarks and ends
when it should, and a count of all calls.

May import: lightkube (the extra `kubernetes`), httpx2, jos.core.errors. Tests: tests/unit/test_kube_api.py,
tests/integration/test_kuberay_launcher.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import httpx2

from jos.core.errors import BadRequest, ComputeFailed

if TYPE_CHECKING:
    from lightkube import AsyncClient
    from lightkube.core.exceptions import ApiError

FIELD_MANAGER = "jos"
TIMEOUT = httpx2.Timeout(15.0, connect=4.0)
SILENCE = 5.0  # seconds beyond the end of a watch, in which the server must have ended it
PAGE = 250  # objects of one answer of a list

_FORBIDDEN = re.compile(r'cannot (\w+) resource "([^"]+)" in API group "([^"]*)"')


@dataclass(frozen=True)
class Kind:
    group: str
    version: str
    kind: str
    plural: str
    owner: str  # who installs it, for people

    @property
    def full(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


RAYJOB = Kind("ray.io", "v1", "RayJob", "rayjobs", "KubeRay")
RAYCLUSTER = Kind("ray.io", "v1", "RayCluster", "rayclusters", "KubeRay")
POD = Kind("", "v1", "Pod", "pods", "Kubernetes")
WORKLOAD = Kind("kueue.x-k8s.io", "v1beta2", "Workload", "workloads", "Kueue")
ACCESS_REVIEW = Kind("authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", "Kubernetes")


class Expired(Exception):
    """The version that a watch was to go on from is not known any more (410): everything must be listed again."""


class Absent(Exception):
    """There is no such object."""


class Taken(ComputeFailed):
    """There is another object of that name, or this one is not what it was: 409."""


class Refused(ComputeFailed):
    """The API server will not take this object, however often it is asked: it breaks a rule."""

    retryable = False


@dataclass(frozen=True)
class Change:
    """One line of a watch; `thing` of a bookmark holds nothing but its version."""

    type: str  # ADDED MODIFIED DELETED BOOKMARK
    thing: Mapping[str, Any]

    @property
    def version(self) -> str:
        return str(self.thing["metadata"]["resourceVersion"])


class KubeApi:
    """One namespace of one cluster."""

    def __init__(self, client: AsyncClient, namespace: str) -> None:
        self.client, self.namespace = client, namespace
        self.calls: Counter[str] = Counter()  # "list rayjobs" -> how often

    @classmethod
    def connect(cls, namespace: str | None) -> KubeApi:
        """By the service account of this pod, else KUBECONFIG, else ~/.kube/config. Raises BadRequest without any."""
        try:
            from lightkube import AsyncClient
            from lightkube.core.exceptions import ConfigError
        except ImportError as error:
            raise missing_extra() from error
        try:
            client = AsyncClient(namespace=namespace, timeout=TIMEOUT, field_manager=FIELD_MANAGER)
        except (ConfigError, OSError, LookupError, ValueError, TypeError, AttributeError) as error:  # or an odd file
            raise BadRequest(
                f"JOS knows no Kubernetes cluster: {error}.",
                suggestion="Outside of a cluster, set KUBECONFIG to a file that kubectl works with.",
            ) from error
        return cls(client, namespace or client.namespace or "default")

    @property
    def server(self) -> str:
        return str(self.client.config.cluster.server)

    async def close(self) -> None:
        await self.client.close()

    # --- one object ---

    async def apply(
        self, kind: Kind, thing: Mapping[str, Any], *, manager: str = FIELD_MANAGER, dry_run: bool = False
    ) -> None:
        """Server-side apply without force: a field that another manager has set otherwise stays. Raises Taken then."""
        from lightkube.types import PatchType

        name = str(thing["metadata"]["name"])
        with self._told("patch", kind):
            await self.client.patch(
                resource(kind),
                name,
                dict(thing),
                namespace=self.namespace,
                patch_type=PatchType.APPLY,
                field_manager=manager,
                dry_run=dry_run,
            )

    async def merge(self, kind: Kind, name: str, change: Mapping[str, Any]) -> None:
        """Raises Absent."""
        from lightkube.types import PatchType

        with self._told("patch", kind):
            await self.client.patch(
                resource(kind), name, dict(change), namespace=self.namespace, patch_type=PatchType.MERGE
            )

    async def delete(self, kind: Kind, name: str, uid: str | None = None) -> None:
        """And all that belongs to it, in the background. Raises Absent, and Taken where `uid` is no more its own."""
        options: dict[str, Any] = {"propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        generic: Any = self.client._client  # its own `delete` sends no preconditions
        with self._told("delete", kind):
            request = generic.prepare_request("delete", res=resource(kind), name=name, namespace=self.namespace)
            request.data = options
            generic.raise_for_status(await generic.send(generic.build_adapter_request(request)))

    async def may(self, verb: str, kind: Kind) -> bool:
        """Whether we have that right here."""
        attributes = {"namespace": self.namespace, "verb": verb, "group": kind.group, "resource": kind.plural}
        review = resource(ACCESS_REVIEW, namespaced=False)
        asked = review({"spec": {"resourceAttributes": attributes}})
        with self._told("create", ACCESS_REVIEW):
            answer = await self.client.create(asked)
        return bool((answer.get("status") or {}).get("allowed"))

    async def version(self) -> str:
        """Of the API server."""
        generic: Any = self.client._client
        with self._told("get", Kind("", "", "", "version", "Kubernetes")):
            answer = await generic.send(generic._client.build_request("GET", "/version"))
            generic.raise_for_status(answer)
            return str(answer.json()["gitVersion"])

    # --- all of them ---

    async def list(
        self, kind: Kind, selector: Mapping[str, str | Sequence[str]]
    ) -> tuple[list[Mapping[str, Any]], str]:
        """All objects with these labels (of several values: any), and the version that a watch goes on from."""
        found: list[Mapping[str, Any]] = []
        with self._told("list", kind):
            pages = self.client.list(
                resource(kind), namespace=self.namespace, chunk_size=PAGE, labels=dict(selector) or None
            )
            async for thing in pages:
                found.append(thing)
            self.calls[f"list {kind.plural}"] += len(found) // PAGE  # one is counted already
            return found, pages.resourceVersion

    @asynccontextmanager
    async def watch(
        self, kind: Kind, selector: Mapping[str, str], version: str, seconds: int
    ) -> AsyncIterator[AsyncIterator[Change]]:
        """What changes after `version`, for so many seconds, which the server counts. Raises Expired. A server that is
        silent for longer is not there: ComputeFailed."""
        from lightkube.core.generic_client import WatchDriver
        from lightkube.core.selector import build_selector

        generic: Any = self.client._client  # its own `watch` neither asks for bookmarks nor lets go at the end of one
        parameters = {
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
            "labelSelector": build_selector(dict(selector)) if selector else None,
        }
        with self._told("watch", kind):
            request = generic.prepare_request(
                "list", res=resource(kind), namespace=self.namespace, watch=True, params=parameters
            )
            request.timeout = httpx2.Timeout(TIMEOUT.connect, read=seconds + SILENCE)
            driver: Any = WatchDriver(request, None)
            response = await generic.send(generic.build_adapter_request(request), stream=True)
            try:
                if response.is_error:
                    await response.aread()
                    generic.raise_for_status(response)
                yield (Change(*driver.process_one_line(line)) async for line in response.aiter_lines() if line)
            finally:
                await response.aclose()

    # --- errors ---

    @contextmanager
    def _told(self, verb: str, kind: Kind) -> Iterator[None]:
        """Counts the call, and turns what goes wrong into what JOS says of it."""
        from lightkube.core.exceptions import ApiError, ConfigError

        self.calls[f"{verb} {kind.plural}"] += 1
        try:
            yield
        except ApiError as error:
            raise self._explained(error, verb, kind) from error
        except httpx2.HTTPStatusError as error:  # an answer that is no Status: a proxy's, or the server's that starts
            raise self._odd(error.response, verb, kind) from error
        except KeyError as error:  # lightkube looks for a header that this answer has not
            answer = getattr(error.__context__, "response", None)
            if isinstance(answer, httpx2.Response):
                raise self._odd(answer, verb, kind) from error
            if error.args not in (("token",), ("status",)):
                raise
            raise ComputeFailed(
                f"The program that KUBECONFIG names to log in to {self.server} gives no token.",
                suggestion="Client certificates from such a program are not supported: use one that gives a token, or "
                "write certificate and key into KUBECONFIG.",
            ) from error
        except (
            ConfigError,
            FileNotFoundError,
            PermissionError,
        ) as error:  # of a token's file, or a program that logs in
            raise ComputeFailed(
                f"There are no credentials for the Kubernetes API server at {self.server}: {error}",
                suggestion="Log in again as the cluster's provider says; `kubectl get pods` must work here, too.",
            ) from error
        except httpx2.HTTPError as error:
            raise ComputeFailed(
                f"The Kubernetes API server at {self.server} cannot be reached: {str(error) or type(error).__name__}.",
                suggestion="Check that it runs, and that this process may reach it (network policies, KUBECONFIG).",
            ) from error

    def _explained(self, error: ApiError, verb: str, kind: Kind) -> Exception:
        status = error.status
        code, said = status.code or 0, " ".join((status.message or "").split())
        what = f"{verb} {kind.plural}"
        if code == 410:
            return Expired()
        if code == 401:
            advice = "Check the credentials in KUBECONFIG, or the pod's service account token."
            return ComputeFailed(f"The Kubernetes API server does not know us: {said}", suggestion=advice)
        if code == 403:
            return self._forbidden(said, what)
        if code == 404:
            return self._absent(status, said, kind)
        if code == 409:
            return Taken(f"The cluster could not {what}, for it holds something else of that name: {said}")
        if code in (400, 422) or "not declared in schema" in said:
            advice = "Check the profile (JOS_KUBE) and the pipeline; a field that is unknown needs KubeRay 1.7."
            return Refused(f"The cluster refuses to {what}: {said}{_causes(status)}", suggestion=advice)
        return self._strange(code, what, said)

    def _forbidden(self, said: str, what: str) -> ComputeFailed:
        right = _FORBIDDEN.search(said)
        if right is not None:
            verb, plural, group = right.groups()
            advice = (
                f"Give its service account the verb `{verb}` on `{plural}` of API group `{group}` in namespace "
                f"{self.namespace}; k8s/base holds the Role that JOS needs."
            )
            return ComputeFailed(f"JOS may not {what}: {said}", suggestion=advice)
        if "exceeded quota" in said:
            advice = "Raise the namespace's ResourceQuota, or wait until others have ended."
            return ComputeFailed(f"The namespace's quota is used up: {said}", suggestion=advice)
        return Refused(f"A policy of the cluster does not let JOS {what}: {said}")

    def _absent(self, status: Any, said: str, kind: Kind) -> Exception:
        named = status.details.kind if status.details is not None else None
        if named == "namespaces":
            advice = f"Create it: kubectl create namespace {self.namespace}. The profile names it."
            return ComputeFailed(f"There is no namespace {self.namespace}: {said}", suggestion=advice)
        if status.details is not None and status.details.name:
            return Absent()
        return ComputeFailed(
            f"The cluster knows no {kind.plural} in {kind.group or 'the core'}/{kind.version}: {said}",
            suggestion=f"Install {kind.owner} with its CRDs; docs/kubernetes.md says which version.",
        )

    def _odd(self, answer: httpx2.Response, verb: str, kind: Kind) -> Exception:
        if answer.status_code == 410:
            return Expired()
        return self._strange(answer.status_code, f"{verb} {kind.plural}", answer.text)

    def _strange(self, code: int, what: str, said: str) -> ComputeFailed:
        words = " ".join(said.split())[:500]
        return ComputeFailed(f"The Kubernetes API server at {self.server} could not {what}: {code} {words}")


def _causes(status: Any) -> str:
    """Each field that is wrong, where the message does not say."""
    causes = (status.details.causes if status.details is not None else None) or ()
    told = [f"{cause.field}: {cause.message}" for cause in causes if cause.field]
    return "".join(f"\n  {line}" for line in told if line not in (status.message or ""))


@cache
def resource(kind: Kind, *, namespaced: bool = True) -> Any:
    """lightkube's class for it: plain dictionaries, of which no table is kept, so that pods can be such too."""
    from lightkube.generic_resource import GenericGlobalResource, GenericNamespacedResource, create_api_info

    base: Any = GenericNamespacedResource if namespaced else GenericGlobalResource
    return type(kind.kind, (base,), {"_api_info": create_api_info(kind.group, kind.version, kind.kind, kind.plural)})


def missing_extra() -> BadRequest:
    return BadRequest("JOS on Kubernetes needs lightkube.", suggestion="Install it: pip install 'jos[kubernetes]'.")
