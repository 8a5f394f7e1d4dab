"""The launcher that the settings name, and what must be right before it can start a driver.

What a launcher needs besides is imported only where it is used: Kubernetes' client is an extra.
May import: everything below the API and the controller. Tests: tests/unit/test_launch_open.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from jos.core.errors import BadRequest
from jos.launch.base import Launcher, Offers
from jos.launch.kube_profile import PAGE, KubeProfile, read_profile
from jos.launch.ray_jobs import RayJobs, passed_environment
from jos.settings import Settings
from jos.store.drivers import Drivers

if TYPE_CHECKING:
    from jos.wiring import Wired

START_SECONDS = 120.0  # for the driver of an admitted job to come up, on a cluster that runs
MARGIN = 60.0  # beyond the time that its pods may take, on Kubernetes
_SHARED = ("s3://", "gs://")


def open_launcher(parts: Wired) -> Launcher:
    """Raises BadRequest or ConfigInvalid where no driver could be started."""
    settings = parts.settings
    if settings.launcher == "kuberay":
        check_pods(settings, read_profile(settings.kube))
        from jos.launch.kuberay import open_kuberay

        return open_kuberay(settings, parts.storage)
    if settings.ray_dashboard is None:
        raise BadRequest(
            "The controller knows no cluster.",
            suggestion="Set JOS_RAY_DASHBOARD to the http address of its dashboard, or use `jos up`; on Kubernetes set "
            "JOS_LAUNCHER=kuberay.",
        )
    drivers, passed = Drivers(parts.store.connection), passed_environment(settings.pass_env)
    return RayJobs(settings.ray_dashboard, drivers, parts.storage.url, passed)


def offers_of(launcher: Launcher) -> Offers | None:
    """Where another system's queue admits: what offers jobs there."""
    offers: Offers | None = getattr(launcher, "offers", None)
    return offers


def start_seconds(settings: Settings) -> float:
    """How long an attempt may take from its admission to the first sign of its driver."""
    if settings.start_timeout is not None:
        return settings.start_timeout
    if settings.launcher == "kuberay":
        return read_profile(settings.kube).pre_running_deadline_seconds + MARGIN
    return START_SECONDS


async def reach(profile: KubeProfile) -> str:
    """The version of the cluster's API server. Raises BadRequest or ComputeFailed where there is no way to it."""
    from jos.launch.kube_api import KubeApi

    api = KubeApi.connect(profile.namespace)
    try:
        return await api.version()
    finally:
        await api.close()


def check_pods(settings: Settings, profile: KubeProfile) -> None:
    """Whether drivers in pods know, and reach, this service's Redis and storage. Raises BadRequest if not."""
    for problem, suggestion in _out_of_reach(settings, profile):
        raise BadRequest(problem, suggestion=suggestion)


def _out_of_reach(settings: Settings, profile: KubeProfile) -> Iterator[tuple[str, str]]:
    redis, storage = settings.redis_url, settings.storage_url
    if redis is None or (redis.startswith("unix:") and "JOS_REDIS_URL" not in profile.env):
        advice = "Give one that they reach with JOS_REDIS_URL, or --redis-url."
        yield "Drivers in pods cannot reach a Redis on a socket of this machine.", advice
    if not storage.startswith(_SHARED) and "JOS_STORAGE" not in profile.env:
        advice = "Give s3:// or gs:// with JOS_STORAGE, or --storage."
        yield f"Drivers in pods do not see the folder {storage}.", advice
    for name, example in (
        ("JOS_REDIS_URL", "`secret_env: {JOS_REDIS_URL: {secret: jos, key: redis-url}}`"),
        ("JOS_STORAGE", "`env: {JOS_STORAGE: s3://bucket/jos}`"),
    ):
        if not profile.env_from and name not in profile.env and name not in profile.secret_env:
            where = f"the Kubernetes profile {settings.kube}" if settings.kube else "the Kubernetes profile (JOS_KUBE)"
            yield f"Drivers in pods are not told {name}.", f"Name it in {where}, such as {example}; {PAGE} tells more."
