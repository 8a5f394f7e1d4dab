"""Which server is meant: arguments, environment, profiles, the server of `jos up` on this home."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jos import profiles
from jos.core.errors import BadRequest, Conflict, NotFound
from jos.profiles import Target
from jos.settings import Settings
from jos.up import claimed


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("JOS_URL", "JOS_API_KEY", "JOS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JOS_HOME", str(tmp_path))
    return Settings()


def where(settings: Settings, profile: str | None = None) -> tuple[str, str | None] | None:
    found = profiles.choose(settings, profile)
    return (found.url, found.api_key) if found else None


def test_without_anything_the_local_engine_is_meant(settings: Settings) -> None:
    assert where(settings) is None
    with pytest.raises(NotFound, match=r"`jos up`.*`jos login URL`.*JOS_URL"):
        profiles.required()


def test_a_saved_profile_is_read_back_whatever_is_in_it_and_nobody_else_may(settings: Settings) -> None:
    odd = 'a "b"\\\n é'
    path = profiles.save(settings, odd, "http://one", "sk_'1\"", default=True)
    profiles.save(settings, "two", "http://two", "sk_2", default=False)
    assert where(settings) == ("http://one", "sk_'1\"")
    assert where(settings, "two") == ("http://two", "sk_2")
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_environment_wins_over_a_login_and_a_named_profile_over_both(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles.save(settings, "one", "http://one", "sk_1", default=True)
    profiles.save(settings, "two", "http://two", "sk_2", default=False)
    monkeypatch.setenv("JOS_PROFILE", "two")
    assert where(settings) == ("http://two", "sk_2")
    monkeypatch.setenv("JOS_URL", "http://three")
    monkeypatch.setenv("JOS_API_KEY", "sk_3")
    assert where(settings) == ("http://three", "sk_3")
    assert where(settings, "one") == ("http://one", "sk_1")


def test_a_url_alone_takes_the_key_that_was_saved_for_it(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    profiles.save(settings, "one", "http://one", "sk_1", default=False)
    monkeypatch.setenv("JOS_URL", "http://one/")
    assert where(settings) == ("http://one/", "sk_1")
    assert profiles.required("http://one") == Target("http://one", "sk_1")
    assert profiles.required("http://other").api_key is None


def test_an_unknown_profile_is_told_with_those_that_there_are(settings: Settings) -> None:
    profiles.save(settings, "one", "http://one", "sk_1", default=False)
    with pytest.raises(NotFound, match=r"no profile 'two'.*Known: one"):
        profiles.choose(settings, "two")


def test_a_broken_file_is_told(settings: Settings) -> None:
    profiles.file_of(settings).write_text("default = ")
    with pytest.raises(BadRequest, match="Repair or remove"):
        profiles.choose(settings)


def test_the_server_of_this_home_is_meant_while_it_runs_and_no_longer(settings: Settings) -> None:
    profiles.save(settings, profiles.LOCAL, "http://old", "sk_local", default=False)
    with claimed(settings.home_dir):
        (settings.home_dir / profiles.SERVER).write_text(json.dumps({"url": "http://here", "pid": 1}))
        assert where(settings) == ("http://here", "sk_local")
        profiles.save(settings, "one", "http://one", "sk_1", default=True)
        assert where(settings) == ("http://one", "sk_1")  # a login was wanted, a server that runs may be an accident
        with pytest.raises(Conflict, match=r"runs already for .*, at http://here"), claimed(settings.home_dir):
            pass
    assert profiles.running(settings) is None


def test_what_a_killed_server_left_is_not_believed(settings: Settings) -> None:
    (settings.home_dir / profiles.SERVER).write_text(json.dumps({"url": "http://here", "pid": 1}))
    (settings.home_dir / profiles.LOCK).touch()
    assert where(settings) is None


def test_the_client_is_light() -> None:
    heavy = {"ray", "torch", "redis", "fastapi", "pyarrow", "numpy", "pandas", "obstore"}
    code = f"import sys, jos; jos.Client; print(sorted({heavy!r} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
