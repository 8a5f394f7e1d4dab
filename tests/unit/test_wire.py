"""The shapes of the wire: what clients rely on in every answer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

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


def test_an_answer_may_say_more_than_is_known_and_a_request_may_not() -> None:
    assert wire.Deleted.model_validate({"id": "job_x", "deleted": True, "new": 1}).model_dump()["new"] == 1
    body = {"name": "n", "pipeline_type": "batch", "pipeline_key": "k", "colour": "red"}
    with pytest.raises(ValidationError, match="colour"):
        wire.JobCreate.model_validate(body)
