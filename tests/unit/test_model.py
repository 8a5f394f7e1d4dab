"""The nouns: strict, frozen, and the same after a round trip through JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from pydantic import ValidationError

from jos.core.model import (
    Attempt,
    ComponentParameters,
    Edge,
    Event,
    EventDraft,
    Job,
    JobInput,
    JobRequest,
    JobSpec,
    Level,
    Model,
    Pipeline,
    Status,
    Timeouts,
    utc,
)
from jos.store.records import load_job

NOW = datetime(2026, 4, 14, 10, 5, 0, 123456, tzinfo=UTC)
PIPELINE = Pipeline.model_validate(
    {
        "pipeline_key": "states",
        "pipeline_version": "1.0.0",
        "name": "States",
        "worker": "states:States",
        "default_config": {"worker": {"parallelism": 2, "config": {"seed": 0}}},
        "config_schema": {"worker": {}},
        "user_config_schema": {"worker": {}},
        "inputs": {"worker.inference": {"name": "Inference"}},
        "outputs": {"worker.results": {"name": "Results"}},
        "edges": [{"from": "worker", "output": "results", "to": "worker", "input": "inference"}],
    }
)
SPEC = JobSpec(
    id="job_1",
    org_id="org_1",
    name="a job",
    pipeline=PIPELINE,
    parameters={"worker": {"parallelism": 3, "config": {"seed": 1}}},
    inputs=[
        JobInput(
            id="inp_1",
            port="worker.inference",
            url="/data/a.csv",
            filename="a.csv",
            file_id="a.csv",
            num_bytes=12,
            fingerprint="etag",
            metadata={"class": "idle"},
        )
    ],
    created_at=NOW,
)


JOB = Job(
    id="job_1",
    org_id="org_1",
    name="a job",
    pipeline_type="batch",
    pipeline_key="states",
    pipeline_version="1.0.0",
    parameters=SPEC.parameters,
    status=Status.RUNNING,
    attempt=Attempt(number=1, token="t", admitted_at=NOW, started_at=NOW, host="node", pid=3),
    holds_capacity=True,
    created_at=NOW,
    updated_at=NOW,
    queued_at=NOW,
)


def test_a_spec_comes_back_from_its_json() -> None:
    assert JobSpec.model_validate_json(SPEC.model_dump_json(by_alias=True)) == SPEC


def test_a_spec_tells_its_component() -> None:
    assert (SPEC.component, SPEC.parallelism, SPEC.config) == ("worker", 3, {"seed": 1})


def test_a_job_comes_back_from_its_json() -> None:
    assert Job.model_validate_json(JOB.model_dump_json()) == JOB


def test_an_edge_is_written_with_from_and_to() -> None:
    edge = PIPELINE.edges[0]
    assert edge.model_dump(by_alias=True) == {
        "from": "worker",
        "output": "results",
        "to": "worker",
        "input": "inference",
    }
    assert Edge.model_validate(edge.model_dump(by_alias=True)) == edge


def test_a_numbered_event_is_its_draft_and_a_number() -> None:
    draft = EventDraft(event_type="job.created", message="Created.", created_at=NOW)
    event = Event(id=1, **draft.model_dump())
    assert (event.level, event.payload) == (Level.INFO, {})


@pytest.mark.parametrize(("status", "terminal"), [(s, s in ("COMPLETED", "FAILED", "CANCELLED")) for s in Status])
def test_clients_stop_on_exactly_three_statuses(status: Status, terminal: bool) -> None:
    assert status.terminal is terminal


def test_nouns_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        SPEC.name = "another"


REFUSED = [
    (JobRequest, {"name": "x", "pipeline_key": "y", "piority": 3}, "piority"),
    (JobRequest, {"name": "", "pipeline_key": "y"}, "name"),
    (JobRequest, {"name": "x" * 256, "pipeline_key": "y"}, "name"),
    (JobRequest, {"name": "x"}, "pipeline_key"),
    (ComponentParameters, {"paralelism": 1}, "paralelism"),
    (Timeouts, {"run": 0}, "run"),
    (Pipeline, PIPELINE.model_dump(by_alias=True) | {"pipeline_key": "Not A Key"}, "pipeline_key"),
    (Pipeline, PIPELINE.model_dump(by_alias=True) | {"pipeline_version": "1.0"}, "pipeline_version"),
]


@pytest.mark.parametrize(("model", "data", "field"), REFUSED)
def test_refused(model: type[JobRequest], data: dict[str, object], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        model.model_validate(data)


def test_times_are_shown_in_utc_with_microseconds() -> None:
    assert utc(NOW) == "2026-04-14T10:05:00.123456Z"
    assert utc(NOW.astimezone(timezone(timedelta(hours=-7)))) == "2026-04-14T10:05:00.123456Z"
    assert utc(NOW.replace(microsecond=0))[11:19] == "10:05:00"


def test_what_a_newer_jos_stored_is_read_and_what_people_write_is_held_to_the_letter() -> None:
    """A rolling upgrade: replicas of two versions read each other's records."""
    text = '{"text": "a", "number": 1, "later": true, "part": {"text": "b", "later": [1]}}'

    class Part(Model):
        text: str

    class Record(Part):
        number: int
        part: Part

    assert Record.stored(text) == Record(text="a", number=1, part=Part(text="b"))
    with pytest.raises(ValidationError, match="later"):
        Record.model_validate_json(text)


def test_a_job_of_a_newer_jos_is_read() -> None:
    later = JOB.model_dump(mode="json") | {"later": 1}
    later["attempt"]["later"] = 2
    assert load_job(json.dumps(later).encode()) == JOB
