"""`jos doctor`: what works on this machine, and what to do about what does not. Changes nothing that lasts.

May import: everything below cli. Tests: tests/e2e/test_doors.py.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from jos.core.errors import JosError
from jos.launch.kube_profile import KubeProfile, read_profile
from jos.launch.open import check_pods
from jos.launch.outside import has_password
from jos.settings import Settings
from jos.storage import open_storage, probe
from jos.store.redis import Store
from jos.wiring import open_registry

if TYPE_CHECKING:
    from jos.launch.kube_api import Kind, KubeApi

LITTLE_DISK = 5 << 30
LITTLE_SHM = 1 << 30


@dataclass(frozen=True)
class Finding:
    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    advice: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Every check, in the order in which a job would need the things."""
    checks: list[Callable[[Settings], Iterator[Finding]]] = [_python, _redis, _storage, _ray, _gpu, _torch, _pipelines]
    if settings.launcher == "kuberay":
        checks.append(_kubernetes)
    return [finding for check in checks for finding in _guarded(check, settings)]


def _guarded(check: Callable[[Settings], Iterator[Finding]], settings: Settings) -> list[Finding]:
    found: list[Finding] = []
    try:
        for finding in check(settings):
            found.append(finding)  # what was found before it fails counts
    except JosError as error:
        found.append(Finding(check.__name__.strip("_"), "fail", error.message, error.suggestion or ""))
    return found


def _python(_settings: Settings) -> Iterator[Finding]:
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    yield Finding("python", "ok", detail)


def _redis(settings: Settings) -> Iterator[Finding]:
    async def ping() -> None:
        async with await Store.open(settings.redis_url, settings.redis_dir) as store:
            await store.ping()

    asyncio.run(ping())
    yield Finding("redis", "ok", f"answers ({_where(settings)})")


def _where(settings: Settings) -> str:
    """Without the password that its URL may hold."""
    if settings.redis_url is None:
        return f"embedded, data in {settings.redis_dir}"
    return f"at {urlsplit(settings.redis_url).hostname}" if has_password(settings.redis_url) else settings.redis_url


def _storage(settings: Settings) -> Iterator[Finding]:
    url = settings.storage_url
    probe(open_storage(url))
    yield Finding("storage", "ok", f"{url}: writes, reads and create-if-absent work")
    if "://" not in url:
        free = shutil.disk_usage(url).free
        state: Literal["ok", "warn"] = "warn" if free < LITTLE_DISK else "ok"
        advice = "Free some space, or set JOS_STORAGE to a larger folder or a bucket." if state == "warn" else ""
        yield Finding("disk", state, f"{free / 1e9:.1f} GB free", advice)


def _ray(settings: Settings) -> Iterator[Finding]:
    yield Finding("ray", "ok", importlib.metadata.version("ray"))
    shm = Path("/dev/shm")
    if shm.exists() and (free := shutil.disk_usage(shm).free) < LITTLE_SHM:
        advice = "In a container, give it more: --shm-size=2g, or an emptyDir of medium Memory on Kubernetes."
        yield Finding("shared memory", "warn", f"{free / 1e6:.0f} MB free in /dev/shm", advice)
    address = settings.ray_address or os.environ.get("RAY_ADDRESS")
    if address is None:
        yield Finding("ray cluster", "ok", "none configured: each job starts a small one of its own")
        return
    command = ["ray", "status", "--address", address]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if asked.returncode == 0:
        yield Finding("ray cluster", "ok", f"{address} answers")
        if "://" not in settings.storage_url:
            advice = "Fine on one machine; for more, set JOS_STORAGE to s3:// or gs://, or a shared folder."
            yield Finding("ray storage", "warn", "the storage is a folder: every node must see it", advice)
    else:
        last = (asked.stderr or asked.stdout).strip().splitlines()[-1:]
        advice = "Check JOS_RAY_ADDRESS or RAY_ADDRESS, and that RAY_AUTH_MODE is the same as the cluster's."
        yield Finding("ray cluster", "fail", f"{address} does not answer: {''.join(last)}", advice)


def _gpu(_settings: Settings) -> Iterator[Finding]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        yield Finding("gpu", "ok", "none here: pipelines run on the CPU")
        return
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    asked = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    if asked.returncode == 0:
        yield Finding("gpu", "ok", "; ".join(asked.stdout.strip().splitlines()))
    else:
        yield Finding("gpu", "warn", "nvidia-smi fails", "Check the driver: run nvidia-smi by hand.")


def _torch(_settings: Settings) -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        advice = "pip install 'jos[torch]': machine-state-classification needs it where its indexes run."
        yield Finding("torch", "warn", "not installed", advice)
        return
    yield Finding("torch", "ok", importlib.metadata.version("torch"))


def _pipelines(settings: Settings) -> Iterator[Finding]:
    found = open_registry(settings).list()
    yield Finding(
        "pipelines", "ok" if found else "warn", ", ".join(f"{p.pipeline_key} {p.pipeline_version}" for p in found)
    )


def _kubernetes(settings: Settings) -> Iterator[Finding]:
    """Whether RayJobs of ours could be made there now. Of KubeRay's version only its CRDs can be seen, so one RayJob
    with all the fields that JOS writes is made dry."""
    profile = read_profile(settings.kube)
    where = str(settings.kube) if settings.kube else "defaults"
    yield Finding(
        "profile", "ok", f"{where}: namespace {profile.namespace}, image {profile.image}, by {profile.admission}"
    )
    yield from asyncio.run(_examine_cluster(profile))
    check_pods(settings, profile)
    yield Finding("pods' settings", "ok", "drivers in pods are told which Redis and storage")


async def _examine_cluster(profile: KubeProfile) -> list[Finding]:
    from jos.launch.kube_api import RAYJOB, KubeApi
    from jos.launch.kuberay import probe as sample
    from jos.launch.kuberay import rights

    api = KubeApi.connect(profile.namespace)
    try:
        found = [Finding("kubernetes", "ok", f"{api.server} answers, {await api.version()}")]
        lacking = [
            f"{verb} {kind.full}"
            for kind, verbs in rights(profile).items()
            for verb in sorted(verbs)
            if not await api.may(verb, kind)
        ]
        advice = "k8s/base holds the Role that JOS needs." if lacking else ""
        told = f"lacks: {', '.join(lacking)}" if lacking else f"all that JOS needs in namespace {profile.namespace}"
        found.append(Finding("rights", "fail" if lacking else "ok", told, advice))
        for kind in rights(profile):
            found += await _guarded_await(f"{kind.owner}: {kind.plural}", _listed(api, kind))
        made = api.apply(RAYJOB, sample(profile), dry_run=True)
        return found + await _guarded_await(
            "a RayJob, made dry", _said(made, "accepted, with every field of KubeRay 1.7")
        )
    finally:
        await api.close()


async def _listed(api: KubeApi, kind: Kind) -> str:
    things, _ = await api.list(kind, {"app.kubernetes.io/managed-by": "jos"} if kind.owner != "Kueue" else {})
    return f"{len(things)} there"


async def _said(call: Awaitable[None], what: str) -> str:
    await call
    return what


async def _guarded_await(name: str, check: Awaitable[str]) -> list[Finding]:
    try:
        return [Finding(name, "ok", await check)]
    except JosError as error:
        return [Finding(name, "fail", error.message, error.suggestion or "")]
