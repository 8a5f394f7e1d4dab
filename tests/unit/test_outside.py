"""What drivers on a cluster that is not ours are given, and what is refused before anything starts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jos.core.errors import BadRequest, NotFound
from jos.driver.attempts import Leave, run_admitted
from jos.driver.driver import Ending
from jos.launch.outside import on_this_machine, passed_names, secrets_to_have
from jos.launch.ray_jobs import passed_environment
from jos.settings import Settings
from jos.store.connection import Connection

HERE, ELSEWHERE = "http://127.0.0.1:8265", "http://192.0.2.1:8265"
REAL: dict[str, Any] = {"redis_url": "redis://redis.example:6379/0", "storage": "s3://bucket/jos"}


def names(dashboard: str = ELSEWHERE, **settings: Any) -> list[str]:
    return passed_names(Settings(**{**REAL, **settings}), dashboard).split(",")


def test_drivers_are_told_which_redis_and_storage_and_how_the_store_is_reached() -> None:
    assert {"JOS_REDIS_URL", "JOS_STORAGE", "AWS_ENDPOINT_URL", "AWS_REGION"} <= set(names())
    assert not {"JOS_HOME", "JOS_PIPELINES"} & set(names(pipelines="/here/only"))


def test_no_secret_is_passed_that_nobody_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://me:secret@s3.example")
    assert "secret" not in passed_environment(",".join(names())).values()
    assert "https://me:secret@s3.example" not in passed_environment(",".join(names())).values()
    assert secrets_to_have(Settings(**REAL)) == ["AWS_SECRET_ACCESS_KEY"]
    assert secrets_to_have(Settings(**REAL, pass_env="AWS_SECRET_ACCESS_KEY")) == []


@pytest.mark.parametrize("url", ["redis://:pw@redis.example", "rediss://u:pw@redis.example", "redis://r?password=pw"])
def test_a_redis_password_is_passed_only_if_its_variable_is_named(url: str) -> None:
    with pytest.raises(BadRequest, match="holds a password") as refused:
        names(redis_url=url)
    assert "pw@" not in str(refused.value) + str(refused.value.suggestion)
    assert "JOS_REDIS_URL" in names(redis_url=url, pass_env="JOS_REDIS_URL")
    known = names(redis_url=url, pass_env="OTHER, -JOS_REDIS_URL")
    assert "OTHER" in known
    assert "JOS_REDIS_URL" not in known


@pytest.mark.parametrize(
    ("settings", "what"),
    [({"redis_url": None}, "Redis on a socket"), ({"redis_url": "unix:///r.sock"}, "Redis on a socket"),
     ({"storage": None}, "the folder"), ({"storage": "/data"}, "the folder")],
)  # fmt: skip
def test_what_only_this_machine_has_is_refused_for_a_cluster_elsewhere(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(BadRequest, match=what):
        names(**settings)
    assert "JOS_HOME" in names(HERE, home=Path("/home"), **settings)


def test_an_address_of_this_machine_is_known_from_a_stranger_s() -> None:
    assert [on_this_machine(host) for host in ("localhost", "127.0.0.1", "::1")][:2] == [True, True]
    assert not on_this_machine("192.0.2.1")
    assert not on_this_machine("no-such-host.invalid")


def test_a_driver_that_does_not_find_its_job_says_where_it_looked() -> None:
    async def transact(*_arguments: object) -> None:
        raise NotFound("There is no job job_1.")

    connection = Connection("redis://:hush@redis.example:6380/0", None)
    wired: Any = SimpleNamespace(
        store=SimpleNamespace(transact=transact, connection=connection), storage=SimpleNamespace(url="s3://bucket/jos")
    )
    outcome = asyncio.run(run_admitted("job_1", "token", "driver", wired, Leave()))
    assert outcome.ending is Ending.FENCED
    assert "Redis at redis://redis.example:6380; the storage is s3://bucket/jos" in outcome.message
    assert "hush" not in outcome.message
