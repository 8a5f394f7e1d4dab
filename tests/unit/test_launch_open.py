"""Which launcher the settings name, how long it may take, and what is refused before anything starts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jos.core.errors import BadRequest, ConfigInvalid
from jos.launch.kube_profile import profile_of
from jos.launch.open import check_pods, offers_of, open_launcher, start_seconds
from jos.settings import Settings

REAL: dict[str, Any] = {
    "redis_url": "redis://redis.example:6379/0",
    "storage": "s3://bucket/jos",
    "launcher": "kuberay",
}
TOLD = {
    "secret_env": {"JOS_REDIS_URL": {"secret": "jos", "key": "redis-url"}},
    "env": {"JOS_STORAGE": "s3://bucket/jos"},
}


def profile(**fields: Any) -> Any:
    return profile_of(fields, "a test")


def test_pods_that_are_told_redis_and_storage_are_fine() -> None:
    check_pods(Settings(**REAL), profile(**TOLD))
    check_pods(Settings(**REAL), profile(env_from=[{"secret": "jos"}]))


@pytest.mark.parametrize(
    ("settings", "fields", "problem", "suggestion"),
    [
        ({"redis_url": None}, TOLD, "a Redis on a socket", "--redis-url"),
        ({"redis_url": "unix:///r.sock"}, TOLD, "a Redis on a socket", "JOS_REDIS_URL"),
        ({"storage": "/data"}, {"env_from": [{"secret": "jos"}]}, "do not see the folder /data", "--storage"),
        ({}, {}, "are not told JOS_REDIS_URL", "secret_env: {JOS_REDIS_URL: {secret: jos, key: redis-url}}"),
        (
            {},
            {"env": {"JOS_REDIS_URL": "redis://r/0"}},
            "are not told JOS_STORAGE",
            "env: {JOS_STORAGE: s3://bucket/jos}",
        ),
    ],
)
def test_pods_that_could_not_work_are_refused_with_what_to_write(
    settings: dict[str, Any], fields: dict[str, Any], problem: str, suggestion: str
) -> None:
    with pytest.raises(BadRequest, match=problem) as told:
        check_pods(Settings(**{**REAL, **settings}), profile(**fields))
    assert suggestion in str(told.value)


def test_a_folder_that_pods_have_too_is_named_in_their_environment() -> None:
    told = {"env": {"JOS_STORAGE": "/data", "JOS_REDIS_URL": "unix:///r.sock"}}
    check_pods(Settings(**{**REAL, "storage": "/data", "redis_url": "unix:///r.sock"}), profile(**told))


def test_a_start_may_take_a_minute_more_than_its_pods(tmp_path: Path) -> None:
    file = tmp_path / "kube.yaml"
    file.write_text("pre_running_deadline_seconds: 600\n")
    assert start_seconds(Settings()) == 120
    assert start_seconds(Settings(**REAL)) == 1860
    assert start_seconds(Settings(**REAL, kube=file)) == 660
    assert start_seconds(Settings(**REAL, kube=file, start_timeout=30)) == 30


def opened(settings: Settings) -> Any:
    parts: Any = SimpleNamespace(
        settings=settings, store=SimpleNamespace(connection=None), storage=SimpleNamespace(url="s3://bucket/jos")
    )
    return open_launcher(parts)


def test_a_controller_without_a_cluster_is_told_both_ways_to_one() -> None:
    with pytest.raises(BadRequest, match="knows no cluster") as told:
        opened(Settings())
    assert "JOS_RAY_DASHBOARD" in str(told.value)
    assert "JOS_LAUNCHER=kuberay" in str(told.value)


def test_the_profile_decides_whether_kueue_admits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text(
        "{clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}], users: [{name: u, user: {token: t}}],"
        " contexts: [{name: c, context: {cluster: c, user: u}}], current-context: c}"
    )
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    file = tmp_path / "kube.yaml"

    async def work(admission: str) -> bool:
        file.write_text(f"{{admission: {admission}, env_from: [{{secret: jos}}]}}")
        launcher = opened(Settings(**REAL, kube=file))
        try:
            return offers_of(launcher) is launcher
        finally:
            await launcher.close()

    assert [asyncio.run(work(admission)) for admission in ("jos", "kueue")] == [False, True]


def test_a_profile_with_mistakes_is_told(tmp_path: Path) -> None:
    file = tmp_path / "kube.yaml"
    file.write_text("namespaces: jos\n")
    with pytest.raises(ConfigInvalid, match="namespace"):
        opened(Settings(**REAL, kube=file))
