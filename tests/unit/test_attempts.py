"""A driver that its cluster started before its attempt was admitted waits for it; one that comes late or twice touches
nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from jos.core.commands import Admit, Cancel, Command, Drained, DriverGone, Recall, Taken
from jos.core.lifecycle import decide
from jos.core.model import Job, Status
from jos.driver import attempts
from jos.driver.attempts import Leave, run_admitted
from jos.driver.driver import Ending, Outcome

NOW = datetime(2026, 4, 14, 10, 5, tzinfo=UTC)


class Records:
    """A store of one job, which says what was written, and does something whenever it is asked in vain."""

    def __init__(self, *commands: Command, then: Callable[[Records], None] = lambda _: None) -> None:
        self.job = Job(
            id="job_1", org_id="o", name="n", pipeline_type="batch", pipeline_key="k", pipeline_version="1.0.0",
            parameters={}, created_at=NOW, updated_at=NOW, queued_at=NOW,
        )  # fmt: skip
        self.then, self.asked, self.written = then, 0, list[Command]()
        for command in commands:
            self.say(command)

    def say(self, command: Command) -> None:
        self.job = decide(self.job, command, NOW).job

    async def transact(self, _job_id: str, command: Command, now: datetime) -> Job:
        changed = decide(self.job, command, now).job
        if changed is not self.job:
            self.written.append(command)
        self.job = changed
        return changed

    async def get(self, _job_id: str) -> Job:
        self.asked += 1
        self.then(self)
        return self.job


def drive(store: Records, name: str, monkeypatch: pytest.MonkeyPatch, leave: Leave | None = None) -> Outcome:
    """What an attempt with the token "tok" comes to; the job itself is done in no time."""

    async def done(*_: object) -> Outcome:
        return Outcome(Ending.COMPLETED, "")

    monkeypatch.setattr(attempts, "_drive", done)
    monkeypatch.setattr(attempts, "LOOK_SECONDS", 0.001)
    wired: Any = SimpleNamespace(store=store)
    return asyncio.run(run_admitted("job_1", "tok", name, wired, leave or Leave(), admission=0.5))


def after(asks: int, *commands: Command) -> Callable[[Records], None]:
    def then(store: Records) -> None:
        for command in commands if store.asked == asks else ():
            store.say(command)

    return then


OLD = (Admit("old"), DriverGone("old"))


@pytest.mark.parametrize(
    ("_sentence", "before", "then", "name", "ending"),
    [
        ("it was admitted before", (Admit("tok"),), after(0), "jos-job_1-1", Ending.COMPLETED),
        ("it is admitted while it waits", (), after(3, Admit("tok")), "jos-job_1-1", Ending.COMPLETED),
        ("in the moment in which it asks", (), after(1, Admit("tok")), "jos-job_1-1", Ending.COMPLETED),
        ("after an attempt before", OLD, after(3, Admit("tok")), "jos-job_1-2", Ending.COMPLETED),
        ("anew, after its place was taken back", (Admit("tok"), Recall("tok")), after(2, Admit("tok")), "jos-job_1-1",
         Ending.COMPLETED),
        ("it is never admitted", (), after(0), "jos-job_1-1", Ending.FENCED),
        ("another one is admitted", (), after(2, Admit("other")), "jos-job_1-1", Ending.FENCED),
        ("the job is cancelled", (), after(2, Cancel()), "jos-job_1-1", Ending.FENCED),
        ("its place was taken back and the job cancelled", (Admit("tok"), Recall("tok"), Cancel()), after(0),
         "jos-job_1-1", Ending.FENCED),
        ("it is of an attempt that is over", (Admit("tok"), Drained("tok")), after(0), "jos-job_1-1", Ending.FENCED),
        ("it is of an attempt before that", (Admit("tok"), Drained("tok"), Admit("b"), Drained("b")), after(0),
         "jos-job_1-1", Ending.FENCED),
        ("another process has taken it", (Admit("tok"), Taken("tok", "jos-job_1-1", process="p")), after(0),
         "jos-job_1-1", Ending.FENCED),
        ("nothing says which attempt it is for", (), after(0), "by-hand", Ending.FENCED),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_becomes_of_a_driver(
    _sentence: str,
    before: tuple[Command, ...],
    then: Callable[[Records], None],
    name: str,
    ending: Ending,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Records(*before, then=then)
    outcome = drive(store, name, monkeypatch)
    assert outcome.ending is ending, outcome.message
    assert [type(command) for command in store.written] == ([Taken] if ending is Ending.COMPLETED else [])


def test_one_that_is_of_an_attempt_that_is_over_does_not_wait_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for commands in ((Admit("tok"), Drained("tok")), (Admit("tok"), Drained("tok"), Admit("b"), Drained("b"))):
        store = Records(*commands)
        assert drive(store, "jos-job_1-1", monkeypatch).ending is Ending.FENCED
        assert store.asked == 1


def test_a_driver_that_is_asked_to_leave_while_it_waits_leaves_and_has_touched_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave = Leave()
    store = Records(then=lambda one: leave.event.set() if one.asked == 3 else None)
    outcome = drive(store, "jos-job_1-1", monkeypatch, leave)
    assert (outcome.ending, store.written) == (Ending.DRAINED, [])
    assert store.job.status is Status.PENDING
