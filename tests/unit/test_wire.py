"""The shapes of the wire: what clients rely on in every answer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import ValidationError

from jos import wire

WHEN = datetime(2026, 4, 14, 12, 5, 0, 123456, tzinfo=timezone(timedelta(hours=2)))


def test_times_are_utc_with_microseconds_and_z_and_come_back_the_same() -> None:
    event = wire.Event(id=1, event_type="job.created", level="INFO", message="m", created_at=WHEN)
    assert '"created_at":"2026-04-14T10:05:00.123456Z"' in event.model_dump_json()
    assert wire.Event.model_validate_json(event.model_dump_json()).created_at == WHEN


def test_a_time_without_a_zone_is_utc() -> None:
    body = {"id": 1, "event_type": "x", "level": "INFO", "message": "", "created_at": "2026-04-14T10:05:00"}
    assert wire.Event.model_validate(body).created_at == datetime(2026, 4, 14, 10, 5, tzinfo=UTC)


JOB = {"name": "n", "pipeline_type": "batch", "pipeline_key": "k"}


def test_an_answer_may_say_more_than_is_known() -> None:
    assert wire.Deleted.model_validate({"id": "job_x", "deleted": True, "new": 1}).model_dump()["new"] == 1


def test_what_other_services_clients_send_besides_is_passed_over() -> None:
    more = {"pipeline_id": "ppl_x", "description": "d", "metadata": {"a": 1}, "tags": ["x"]}
    refs = [{"file_id": "a.csv", "file_uid": "fil_x", "metadata": None, "checkpoint_id": None}]
    nulls = {
        "pipeline_version": None,
        "priority": None,
        "parameters": {"worker": {"parallelism": None, "config": None}},
    }
    made = wire.JobCreate.model_validate({**JOB, **more, **nulls, "inputs": {"worker.data": refs}})
    (ref,) = made.inputs["worker.data"]
    assert (ref.file_id, ref.metadata, made.parameters["worker"].config) == ("a.csv", {}, {})
    assert made == wire.JobCreate.model_validate(made.model_dump())
    assert wire.JobCreate.model_validate({**JOB, "inputs": None, "parameters": None}).inputs == {}


@pytest.mark.parametrize("wrong", ["parameter", "Parameters", "input", "priorty", "pipeline_verison"])
def test_a_misspelt_field_is_told(wrong: str) -> None:
    with pytest.raises(ValidationError, match=wrong):
        wire.JobCreate.model_validate({**JOB, wrong: {}})


def test_a_setting_beside_the_config_is_told() -> None:
    with pytest.raises(ValidationError, match="batch_size"):
        wire.JobCreate.model_validate({**JOB, "parameters": {"worker": {"batch_size": 4}}})


@pytest.mark.parametrize(
    "many",
    [
        {"inputs": {"worker.data": [1] * 200_000}},
        {"inputs": {"worker.data": [{"file_id": "good"}] * 1000 + [{"file_id": 1}] * 200_000}},
        {"inputs": {str(n): [] for n in range(100_000)}},
        {"parameters": {str(n): 1 for n in range(100_000)}},
        {"parameters": {"worker": {str(n): 1 for n in range(100_000)}}},
    ],
    ids=["no refs", "wrong refs", "ports", "components", "settings"],
)
def test_a_body_of_nothing_but_mistakes_is_told_some_of_them(many: dict[str, Any]) -> None:
    """Each error is a hundred times as large as the mistake: millions of them would fill the memory."""
    with pytest.raises(ValidationError) as caught:
        wire.JobCreate.model_validate({**JOB, **many})
    assert 1 <= caught.value.error_count() <= 1000


def test_mistakes_in_a_list_are_told_with_their_places() -> None:
    with pytest.raises(ValidationError) as caught:
        wire.JobCreate.model_validate({**JOB, "inputs": {"worker.data": [{"file_id": "a"}, 2, {"file_id": 3}]}})
    assert [e["loc"][:3] for e in caught.value.errors()] == [("inputs", "worker.data", n) for n in (1, 2)]
