"""An index without Ray: leases in, commits and faults out, bytes in a folder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jos.core.ledger import STEPS, InputLedger
from jos.core.model import JobInput, JobSpec
from jos.core.plan import InputPlan, PlanWork, SpanWork, remaining
from jos.driver.index import Index
from jos.driver.messages import IndexConfig, LeaseReply
from jos.registry import Registry
from jos.storage.source import stat_input

LAB = Path(__file__).parents[1] / "lab"
FOLDER = "org/jobs/job/"


def make_index(tmp_path: Path, pipeline: str, lines: list[str] | None = None, **config: Any) -> Index:
    registry = Registry(extra=[LAB / "pipelines"])
    template = registry.get(pipeline)
    inputs = []
    if lines is not None:
        file = tmp_path / "in.jsonl"
        file.write_text("".join(f"{line}\n" for line in lines))
        size, fingerprint = stat_input(str(file))
        inputs = [
            JobInput(
                id="inp_a",
                port="worker.data",
                url=str(file),
                filename=file.name,
                file_id=file.name,
                num_bytes=size,
                fingerprint=fingerprint,
            )
        ]
    parameters = {"worker": {"parallelism": 1, "config": template.default_config["worker"]["config"] | config}}
    spec = JobSpec(
        id="job",
        org_id="org",
        name="n",
        pipeline=template,
        parameters=parameters,
        inputs=inputs,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    storage = str(tmp_path / "storage")
    return Index(IndexConfig(spec.model_dump_json().encode(), storage, FOLDER, "token", 0, 1, "cpu", 1, (str(LAB),)))


def using(index: Index, *leases: Callable[[Index], Any]) -> list[Any]:
    async def go() -> list[Any]:
        ready = await index.ready()
        assert ready.error is None, ready.error
        return [await lease(index) for lease in leases]

    return asyncio.run(go())


def spans(index: Index) -> tuple[InputPlan, list[SpanWork]]:
    (reply,) = using(index, lambda i: i.run(0, (PlanWork(0, (0,)),)))
    (plan,) = reply.plans
    return plan, list(remaining(plan, InputLedger()))


def stored(tmp_path: Path, key: str) -> bytes:
    return (tmp_path / "storage" / FOLDER / key).read_bytes()


def test_a_lease_comes_back_with_its_commits_in_order_and_its_bytes_in_storage(tmp_path: Path) -> None:
    index = make_index(tmp_path, "shout", [f'{{"text": "t{i}"}}' for i in range(40)])
    plan, work = spans(index)
    assert plan.bounds == [0, 16, 32, 40]
    reply: LeaseReply = asyncio.run(index.run(1, tuple(work)))
    assert [(c.start, c.end, c.failed) for c in reply.commits] == [(0, 16, 0), (16, 32, 0), (32, 40, 0)]
    body = reply.commits[2].body
    assert body is not None
    assert stored(tmp_path, body.key).startswith(b'{"line_index":32,"text":"T32"}\n')
    assert body.num_bytes == len(stored(tmp_path, body.key))


def test_an_event_that_is_said_while_others_are_taken_is_not_lost(tmp_path: Path) -> None:
    index = make_index(tmp_path, "shout", [])

    class Slow(Mapping[str, Any]):
        """A payload in whose middle the event loop takes what was said, as it may at any time."""

        def __iter__(self) -> Iterator[str]:
            index._take_events()
            return iter(("key",))

        def __getitem__(self, key: str) -> Any:
            return key

        def __len__(self) -> int:
            return 1

    index._emit("a.kind", "WARN", "said", Slow())
    assert [event.message for event in index._take_events()] == ["said"]
    assert index._take_events() == []


def test_one_bad_span_does_not_stop_the_others_of_its_lease(tmp_path: Path) -> None:
    lines = ['{"text": "a"}'] * 20 + ['{"do": "raise", "text": "x"}'] + ['{"text": "a"}'] * 19
    index = make_index(tmp_path, "fragile", lines)
    _, work = spans(index)
    reply = asyncio.run(index.run(1, tuple(work)))
    assert [c.start for c in reply.commits] == [0, 32]
    (fault,) = reply.faults
    assert (fault.work.start, fault.final, fault.dropped) == (16, False, False)
    assert "poison" in fault.message


def test_a_buried_span_is_written_without_being_touched(tmp_path: Path) -> None:
    index = make_index(tmp_path, "fragile", ['{"do": "die"}'])
    spans(index)
    work = SpanWork(0, 0, 1, hint=[0, 1], hint_end=1, output=True, bury="it kills")
    reply = asyncio.run(index.run(1, (work,)))
    (commit,) = reply.commits
    assert commit.failed == 1
    assert commit.failures[0][1].endswith("it kills")
    assert commit.body is not None
    assert stored(tmp_path, commit.body.key) == b'{"line_index":0,"error":"it kills"}\n'


def test_an_input_that_changed_is_a_final_fault(tmp_path: Path) -> None:
    index = make_index(tmp_path, "shout", ['{"text": "a"}'])
    _, work = spans(index)
    (tmp_path / "in.jsonl").write_text('{"text": "another"}\n')
    reply = asyncio.run(index.run(1, tuple(work)))
    (fault,) = reply.faults
    assert fault.final
    assert "changed" in fault.message


def test_an_index_that_is_asked_to_stop_drops_what_it_has_not_begun(tmp_path: Path) -> None:
    index = make_index(tmp_path, "shout", ['{"text": "a"}'] * 40)
    _, work = spans(index)

    async def go() -> LeaseReply:
        await index.stop(5)
        return await index.run(1, tuple(work))

    reply = asyncio.run(go())
    assert [f.dropped for f in reply.faults] == [True, True, True]


def test_a_full_gpu_halves_the_batch_and_loses_nothing(tmp_path: Path) -> None:
    index = make_index(tmp_path, "hungry", ['{"text": "a"}'] * 10)
    _, work = spans(index)
    reply = asyncio.run(index.run(1, tuple(work)))
    assert [(c.start, c.end) for c in reply.commits] == [(0, 10)]
    assert [e.payload["batch_size"] for e in reply.events if e.event_type == "inference.oom"] == [5, 2]
    body = reply.commits[0].body
    assert body is not None
    assert stored(tmp_path, body.key).count(b"\n") == 10


def test_a_trainer_goes_on_from_a_state_and_refuses_a_step_it_does_not_stand_at(tmp_path: Path) -> None:
    index = make_index(tmp_path, "quick-train", steps=40, span_steps=10)
    one, two, four = (SpanWork(STEPS, a, a + 10) for a in (0, 10, 30))
    first, second, wrong = using(
        index, lambda i: i.run(0, (one,)), lambda i: i.run(1, (two,)), lambda i: i.run(2, (four,))
    )
    assert [f.dropped for f in wrong.faults] == [True]
    state = first.commits[0].state
    other = make_index(tmp_path, "quick-train", steps=40, span_steps=10)
    (again,) = using(other, lambda i: i.run(0, (SpanWork(STEPS, 10, 20, state=state.key),)))
    assert again.commits[0].state.sha256 == second.commits[0].state.sha256
    assert again.commits[0].metrics == second.commits[0].metrics


def test_a_full_disk_is_no_fault_of_the_span(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jos.core.errors import StorageUnavailable

    index = make_index(tmp_path, "shout", ['{"text": "a"}'])
    _, work = spans(index)

    def full(*_: object) -> None:
        raise StorageUnavailable("the disk is full")

    monkeypatch.setattr(index.storage, "write", full)
    reply = asyncio.run(index.run(1, tuple(work)))
    assert reply.storage_error == "the disk is full"
    assert [f.dropped for f in reply.faults] == [True]


def test_an_input_that_cannot_be_planned_is_told_in_its_plan(tmp_path: Path) -> None:
    index = make_index(tmp_path, "shout", ['{"text": "a"}'])
    (tmp_path / "in.jsonl").unlink()
    plan, work = spans(index)
    assert plan.error is not None
    assert "in.jsonl" in plan.error
    assert work == []


@pytest.mark.parametrize(
    ("bounds", "hints", "says"), [([1, 2], [], "begin at 0"), ([0, 5, 5], [], "grow"), ([0, 5], [1, 2], "2 hints")]
)
def test_a_plan_that_breaks_the_contract_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bounds: list[int], hints: list[int], says: str
) -> None:
    from jos.worker import Plan

    index = make_index(tmp_path, "shout", ['{"text": "a"}'])
    asyncio.run(index.ready())
    monkeypatch.setattr(index.worker, "plan", lambda source: Plan(bounds, hints))
    reply = asyncio.run(index.run(0, (PlanWork(0, (0,)),)))
    assert says in (reply.plans[0].error or "")
