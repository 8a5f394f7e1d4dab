"""Which server a command or a `jos.Client()` talks to, and with which key.

The first of these that is there: arguments, a profile named by --profile, JOS_URL (with JOS_API_KEY), JOS_PROFILE, the
profile of `jos login`, the server that `jos up` runs in this JOS_HOME. May import: stdlib, jos.settings, jos.core.
Tests: tests/unit/test_client_profiles.py. For people: docs/client.md.
"""

from __future__ import annotations

import fcntl
import json
import os
import tomllib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jos.core.errors import BadRequest, NotFound
from jos.settings import Settings

LOCAL = "local"  # the profile that `jos up` writes for its own server
PROFILES, SERVER, LOCK = "profiles.toml", "server.json", "up.lock"


@dataclass(frozen=True)
class Target:
    url: str
    api_key: str | None
    source: str = "given"


@dataclass
class Profiles:
    """The file of profiles: `default`, and url and api_key of each."""

    default: str | None = None
    by_name: dict[str, Target] = field(default_factory=dict)


def file_of(settings: Settings) -> Path:
    return settings.home_dir / PROFILES


def load(settings: Settings) -> Profiles:
    path = file_of(settings)
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return Profiles()
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise BadRequest(f"{path} cannot be read: {error}", suggestion="Repair or remove it.") from error
    found = {
        name: Target(str(one.get("url", "")), one.get("api_key"), f"profile {name}")
        for name, one in data.get("profiles", {}).items()
    }
    return Profiles(data.get("default"), found)


def save(settings: Settings, name: str, url: str, api_key: str, *, default: bool) -> Path:
    """Adds or replaces one profile. Only its owner may read the file, from its first byte on."""
    found = load(settings)
    found.by_name[name] = Target(url, api_key)
    lines = [f"default = {_quoted(name if default else found.default)}"] if default or found.default else []
    for key, one in found.by_name.items():
        lines += ["", f"[profiles.{_quoted(key)}]", f"url = {_quoted(one.url)}"]
        lines += [f"api_key = {_quoted(one.api_key)}"] if one.api_key else []
    path = file_of(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write("\n".join(lines) + "\n")
    partial.replace(path)
    return path


def _quoted(text: str | None) -> str:
    return json.dumps(text or "", ensure_ascii=False)  # a JSON string is a TOML string


# --- the server of `jos up` ---------------------------------------------------------------------------


def running(settings: Settings) -> dict[str, Any] | None:
    """What `jos up` left about itself in this home, if it lives: it holds the lock for as long as it does."""
    try:
        with (settings.home_dir / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with suppress(OSError, json.JSONDecodeError):
            said: dict[str, Any] = json.loads((settings.home_dir / SERVER).read_text())
            return said
    except OSError:
        return None
    return None


# --- the choice ---------------------------------------------------------------------------------------


def choose(settings: Settings | None = None, profile: str | None = None) -> Target | None:
    """The server to talk to; None: there is none, the local engine is meant."""
    settings = settings or Settings()
    found = load(settings)
    url, key = os.environ.get("JOS_URL"), os.environ.get("JOS_API_KEY")
    if profile is None and url:
        return Target(url, key or _key_for(found, url), "JOS_URL")
    name = profile or os.environ.get("JOS_PROFILE") or found.default
    if name:
        if name not in found.by_name:
            raise NotFound(
                f"there is no profile {name!r} in {file_of(settings)}.",
                suggestion=f"Known: {', '.join(found.by_name) or 'none'}. `jos login URL --profile NAME` makes one.",
            )
        one = found.by_name[name]
        return Target(one.url, key if profile is None and key else one.api_key, one.source)
    if (server := running(settings)) is not None:
        local = found.by_name.get(LOCAL)
        return Target(str(server["url"]), key or (local.api_key if local else None), "jos up")
    return None


def _key_for(found: Profiles, url: str) -> str | None:
    same = (t.api_key for t in found.by_name.values() if t.url.rstrip("/") == url.rstrip("/"))
    return next(same, None)


def required(url: str | None = None, api_key: str | None = None, profile: str | None = None) -> Target:
    """As `choose`, with what the caller gave first; raises NotFound with the ways to name a server."""
    settings = Settings()
    if url is not None:
        key = api_key or os.environ.get("JOS_API_KEY") or _key_for(load(settings), url)
        return Target(url, key)
    found = choose(settings, profile)
    if found is None:
        raise NotFound(
            "no JOS server is known here.",
            suggestion="Start one with `jos up`, save one with `jos login URL`, or set JOS_URL and JOS_API_KEY. "
            "Without a server, `jos run` works with the local engine.",
        )
    return Target(found.url, api_key or found.api_key, found.source)
