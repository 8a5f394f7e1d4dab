"""Drivers on a Ray cluster that `jos up` did not start: which settings they are given, and what they cannot reach.

Whatever is passed can be seen in Ray's dashboard, so no secret is passed unless it is named in JOS_PASS_ENV.
May import: jos.core.errors, jos.settings. Tests: tests/unit/test_outside.py, tests/e2e/test_up_outside.py.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

from jos.core.errors import BadRequest
from jos.settings import Settings

# not credentials: those are the cluster's own, or named in JOS_PASS_ENV
_PASSED = (
    *("JOS_REDIS_URL", "JOS_STORAGE", "JOS_WARM_INDEXES"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"),
    *("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "AWS_ALLOW_HTTP"),
)
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS")


def passed_names(settings: Settings, dashboard: str) -> str:
    """JOS_PASS_ENV for `jos up` on this cluster: what the user named, and all that a driver needs and is no secret. A
    name with a minus before it is not passed, for the cluster's own environment has it. Raises BadRequest for what
    drivers there could not reach."""
    named = [name for name in map(str.strip, settings.pass_env.split(",")) if name]
    here = on_this_machine(urlsplit(dashboard).hostname or "")
    if not here:
        for problem, suggestion in _out_of_reach(settings, named):
            raise BadRequest(f"Drivers at {_shown(dashboard)} {problem}", suggestion=suggestion)
    if has_password(settings.redis_url or "") and not {"JOS_REDIS_URL", "-JOS_REDIS_URL"} & set(named):
        raise BadRequest(
            f"Drivers at {_shown(dashboard)} need JOS_REDIS_URL, and it holds a password, which everybody who sees "
            "the Ray dashboard could read.",
            suggestion="Set JOS_REDIS_URL in the cluster's own environment and JOS_PASS_ENV=-JOS_REDIS_URL here; or, "
            "where all who see the dashboard may know it, JOS_PASS_ENV=JOS_REDIS_URL.",
        )
    ours = ["JOS_HOME", *(["JOS_PIPELINES"] if settings.pipelines else [])] if here else []  # paths of this machine
    needed = [
        name for name in (*ours, *_PASSED) if name == "JOS_REDIS_URL" or not has_password(os.environ.get(name, ""))
    ]
    return ",".join(dict.fromkeys(name for name in (*named, *needed) if f"-{name}" not in named))


def secrets_to_have(settings: Settings) -> list[str]:
    """Variables that are set here, and that the cluster must have too, as they are not passed."""
    if not settings.storage_url.startswith(("s3://", "gs://")):
        return []
    named = [name.strip().removeprefix("-") for name in settings.pass_env.split(",")]
    return [name for name in _SECRETS if name in os.environ and name not in named]


def _out_of_reach(settings: Settings, named: list[str]) -> Iterator[tuple[str, str]]:
    redis = settings.redis_url
    if (redis is None or redis.startswith("unix:")) and "-JOS_REDIS_URL" not in named:
        yield "cannot reach a Redis on a socket of this machine.", "Give one that they reach with --redis-url."
    if not settings.storage_url.startswith(("s3://", "gs://")) and "-JOS_STORAGE" not in named:
        yield (
            f"cannot be assumed to see the folder {settings.storage_url}.",
            "Give s3:// or gs:// with --storage. If each node has that folder under a path of its own, set "
            "JOS_STORAGE in the cluster's environment and JOS_PASS_ENV=-JOS_STORAGE here.",
        )


def has_password(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.password or "password" in parse_qs(parts.query))
    except ValueError:
        return True  # no URL; whatever it is, it is shown to nobody


def on_this_machine(host: str) -> bool:
    """Whether the address is one of ours."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return any(_ours(family, address) for family, _, _, _, address in found)


def _ours(family: int, address: tuple[object, ...]) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address[0], 0, *address[2:]))  # a stranger's address cannot be bound
    except OSError:
        return False
    return True


def _shown(dashboard: str) -> str:
    """Without a name and password that it may hold."""
    return urlsplit(dashboard).netloc.rpartition("@")[2]
