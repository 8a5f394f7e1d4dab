"""API keys, idempotency keys, secrets and pipelines of the API, on a real server."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from store_lab import on
from valkey_lab import NOW, Valkey

from jos.core.ids import is_id, new_id
from jos.core.model import Pipeline
from jos.store import idempotency
from jos.store.keys import ApiKey, ApiKeys
from jos.store.pipelines import PipelineRecord, Pipelines
from jos.store.redis import Store
from jos.store.secrets import secret

# --- API keys -----------------------------------------------------------------------------------------------


def test_a_key_is_found_by_its_secret_alone(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        keys = ApiKeys(store.connection)
        key, shown = await keys.create("org_a", "user", "ci", NOW)
        assert shown.startswith("sk_")
        assert len(shown) > 40
        assert (key.org_id, key.role, key.name, key.last4, key.created_at) == ("org_a", "user", "ci", shown[-4:], NOW)
        assert is_id(key.id, "key")
        assert await keys.find(shown) == key
        for wrong in ("", "sk_", shown[:-1], shown + "x", shown.upper(), key.id, key.hash, "sk_ü\0☃"):
            assert await keys.find(wrong) is None
        assert await keys.get(key.id) == key
        assert await keys.get("key_nobody") is None

    on(valkey, test)


def test_no_secret_is_kept_on_the_server(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        _, shown = await ApiKeys(store.connection).create("org_a", "admin", "", NOW)
        dump = await store.connection.command("HGETALL", "jos:keys")
        assert shown not in repr(dump)
        assert shown[3:] not in repr(dump)

    on(valkey, test)


def test_a_revoked_key_lets_nobody_in_and_leaves_the_others(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        keys = ApiKeys(store.connection)
        first, first_secret = await keys.create("org_a", "user", "first", NOW)
        second, second_secret = await keys.create("org_b", "reader", "second", NOW + timedelta(seconds=1))
        assert {key.id for key in await keys.list(None)} == {first.id, second.id}
        assert await keys.list("org_b") == [second]
        assert await keys.revoke(first.id)
        assert not await keys.revoke(first.id)
        assert await keys.find(first_secret) is None
        assert await keys.find(second_secret) == second
        assert await keys.list("org_a") == []

    on(valkey, test)


def test_a_key_can_be_put_back_and_opens_with_its_old_secret(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        keys = ApiKeys(store.connection)
        key, shown = await keys.create("org_a", "user", "ci", NOW)
        await store.connection.command("FLUSHALL")
        assert await keys.find(shown) is None
        saved = ApiKey.model_validate_json(key.model_dump_json())
        await keys.put(saved)
        await keys.put(saved)
        assert await keys.find(shown) == key
        assert await keys.list(None) == [key]

    on(valkey, test)


# --- idempotency keys ---------------------------------------------------------------------------------------


def test_of_many_claims_at_once_all_learn_of_the_same_job(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        jobs = [new_id("job") for _ in range(20)]
        claims = [idempotency.claim(store.connection, "org_a", "k", f"body-{job}", job) for job in jobs]
        got = set(await asyncio.gather(*claims))
        assert len(got) == 1
        job_id, body = got.pop()
        assert job_id in jobs
        assert body == f"body-{job_id}"

    on(valkey, test)


def test_a_claim_holds_for_a_day_for_this_organisation_and_key_alone(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        key = "k: with spaces, ☃ and " + "x" * 10_000
        assert await idempotency.claim(store.connection, "org_a", key, "b1", "job_1") == ("job_1", "b1")
        assert await idempotency.claim(store.connection, "org_a", key, "b2", "job_2") == ("job_1", "b1")
        assert await idempotency.claim(store.connection, "org_b", key, "b3", "job_3") == ("job_3", "b3")
        assert await idempotency.claim(store.connection, "org_a", key + "y", "b4", "job_4") == ("job_4", "b4")
        for name in await store.connection.command("KEYS", "jos:idempotency:*"):
            assert 24 * 3600 - 60 < await store.connection.command("TTL", name) <= 24 * 3600
            assert len(name) < 120

    on(valkey, test)


def test_all_who_ask_for_a_secret_at_once_get_the_same_and_another_name_another(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        found = set(await asyncio.gather(*(secret(store.connection, "urls") for _ in range(20))))
        assert len(found) == 1
        [value] = found
        assert len(value) == 32
        assert await secret(store.connection, "urls") == value
        assert await secret(store.connection, "cookies") != value

    on(valkey, test)


# --- pipelines ----------------------------------------------------------------------------------------------


def pipeline(version: str = "1.0.0", org_id: str | None = None, **fields: object) -> PipelineRecord:
    template = {
        "pipeline_key": "sensor-classify",
        "pipeline_version": version,
        "name": "Classify",
        "worker": "actors.x:X",
        "default_config": {"worker": {"config": {}}},
        "config_schema": {"worker": {}},
        "user_config_schema": {"worker": {}},
        "inputs": {},
        "outputs": {},
        "edges": [{"from": "a", "output": "b", "to": "c", "input": "d"}],
    }
    return PipelineRecord(pipeline=Pipeline(**{**template, **fields}), org_id=org_id, created_at=NOW, updated_at=NOW)


def test_an_organisation_sees_its_own_pipelines_and_those_of_the_platform(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        pipelines = Pipelines(store.connection)
        shared, own, newer = pipeline(), pipeline("1.9.0", "org_a"), pipeline("1.10.0", "org_a")
        for record in (newer, own, shared):
            assert await pipelines.put(record)
        assert await pipelines.list("org_a") == [shared, own, newer]
        assert await pipelines.list("org_b") == [shared]
        assert await pipelines.list(None) == [shared]
        assert len(await pipelines.all()) == 3
        assert await pipelines.get("org_b", "sensor-classify", "1.9.0") is None
        assert await pipelines.get("org_b", "sensor-classify", "1.0.0") == shared
        mine = pipeline("1.0.0", "org_a", name="Mine")
        await pipelines.put(mine)
        assert await pipelines.get("org_a", "sensor-classify", "1.0.0") == mine
        assert await pipelines.get(None, "sensor-classify", "1.0.0") == shared

    on(valkey, test)


def test_a_pipeline_is_replaced_only_when_asked_for_and_deleted_by_its_owner_alone(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        pipelines = Pipelines(store.connection)
        first, second = pipeline(org_id="org_a", name="First"), pipeline(org_id="org_a", name="Second")
        assert await pipelines.put(first, replace=False)
        assert not await pipelines.put(second, replace=False)
        assert await pipelines.get("org_a", "sensor-classify", "1.0.0") == first
        assert await pipelines.put(second)
        assert await pipelines.get("org_a", "sensor-classify", "1.0.0") == second
        assert not await pipelines.delete(None, "sensor-classify", "1.0.0")
        assert await pipelines.delete("org_a", "sensor-classify", "1.0.0")
        assert not await pipelines.delete("org_a", "sensor-classify", "1.0.0")
        assert await pipelines.list("org_a") == []

    on(valkey, test)
