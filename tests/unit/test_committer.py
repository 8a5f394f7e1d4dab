"""The driver's pen on a folder: entries, output parts, and what is deleted when."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from jos.core.errors import StorageUnavailable
from jos.core.ledger import STEPS, Blob, Commit, Entry
from jos.core.model import JobInput, JobSpec, Pipeline
from jos.core.plan import InputPlan
from jos.driver import committer as module
from jos.driver.committer import Committer
from jos.storage.local import LocalStorage
from jos.storage.log import CommitLog

AT = datetime(2026, 1, 1, tzinfo=UTC)
PIPELINE = Pipeline(
    pipeline_key="p",
    pipeline_version="1.0.0",
    name="P",
    worker="p:P",
    default_config={"worker": {"parallelism": 1, "config": {}}},
    config_schema={"worker": {}},
    user_config_schema={"worker": {}},
    inputs={},
    outputs={},
)
SOURCE = JobInput(
    id="inp_a", port="worker.data", url="/a.csv", filename="a.csv", file_id="a", num_bytes=1, fingerprint=""
)
SPEC = JobSpec(
    id="job",
    org_id="org",
    name="n",
    pipeline=PIPELINE,
    parameters={"worker": {"parallelism": 1, "config": {}}},
    inputs=[SOURCE],
    created_at=AT,
)
PLAN = InputPlan(0, [0, 5, 10, 20], part_tasks=10, output_name="{input_id}_{stem}_{part}.csv")


class Desk:
    """A committer at work on `tmp_path`, with what it reported."""

    def __init__(self, tmp_path: Path, attempt: str = "a") -> None:
        self.storage = LocalStorage(tmp_path)
        self.log = CommitLog.open(self.storage, "job/")
        self.log.claim(attempt, "t")
        self.entries: list[Entry] = []
        self.errors: list[Exception] = []
        self.told = asyncio.Event()
        self.pen = Committer(SPEC, self.storage, self.log, attempt, {0: PLAN}, self.committed, self.errors.append)

    async def committed(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.told.set()

    def commit(self, start: int, end: int, failed: int = 0) -> Commit:
        key, data = f"parts/x/{start}", f"{start}-{end};".encode()
        self.storage.write(f"job/{key}", data)
        return Commit(0, start, end, PLAN.part_of(start), failed=failed, body=Blob(key, len(data), ""))

    def keys(self) -> list[str]:
        return [s.key.removeprefix("job/") for s in self.storage.list("job/") if "/log/" not in s.key]


def using(desk: Desk, *steps: Callable[[], Awaitable[None] | None], parts: bool = True) -> None:
    async def go() -> None:
        writing = asyncio.create_task(desk.pen.run())
        for step in steps:
            if (waiting := step()) is not None:
                await waiting
        await desk.pen.settle(parts=parts)
        if parts:
            await asyncio.gather(*desk.pen.tasks)
        writing.cancel()

    asyncio.run(go())


def test_a_part_of_one_span_is_the_span_s_own_object(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    using(desk, lambda: desk.pen.put((desk.commit(10, 20),)))
    (entry,) = desk.entries
    assert [(f.part, f.filename, f.blob.key) for f in entry.finished] == [(1, "inp_a_a_1.csv", "parts/x/10")]


def test_a_part_of_several_spans_is_put_together_in_task_order_and_its_pieces_go(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    using(desk, lambda: desk.pen.put((desk.commit(5, 10),)), lambda: desk.pen.put((desk.commit(0, 5),)))
    finished = desk.log.ledger.of(0).finished[0]
    assert desk.storage.read(f"job/{finished.blob.key}") == b"0-5;5-10;"
    assert (finished.blob.num_bytes, finished.tasks) == (9, 10)
    assert desk.keys() == [finished.blob.key]


def test_no_piece_goes_before_the_entry_that_makes_it_superfluous(tmp_path: Path) -> None:
    """The driver dies after the part was concatenated and while another entry is written: the next one still finds
    the pieces."""
    desk = Desk(tmp_path)
    append, concatenate, calls = desk.log.append, desk.pen._concatenate, []
    in_flight, together = threading.Event(), threading.Event()

    def put_together(name: str, keys: list[str]) -> Blob:
        assert in_flight.wait(10)
        return concatenate(name, keys)

    class Finished(list):  # type: ignore[type-arg]
        def append(self, one: object) -> None:
            super().append(one)
            together.set()

    desk.pen._concatenate, desk.pen.finished = put_together, Finished()  # type: ignore[method-assign]

    def slow(*args: object, **options: object) -> Entry:
        calls.append(args)
        if len(calls) == 2:  # the part is put together while this entry is in flight
            desk.pen.finished = Finished()
            in_flight.set()
            assert together.wait(10)
        if any(f.part == 0 for f in args[3]):  # type: ignore[index]
            raise StorageUnavailable("killed here")
        return append(*args, **options)  # type: ignore[arg-type]

    desk.log.append = slow  # type: ignore[method-assign, assignment]
    module.STORAGE_BACKOFF = ()  # type: ignore[assignment]
    try:
        first, second, third = desk.commit(0, 5), desk.commit(5, 10), desk.commit(10, 20)

        async def go() -> None:
            writing = asyncio.create_task(desk.pen.run())
            desk.pen.put((first, second))
            await desk.told.wait()
            desk.pen.put((third,))
            await desk.pen.broken.wait()
            writing.cancel()

        asyncio.run(go())
    finally:
        module.STORAGE_BACKOFF = (1.0, 2.0, 4.0)
    assert {"parts/x/0", "parts/x/5"} <= set(desk.keys())
    again = Desk(tmp_path, "b")
    using(again, lambda: again.pen.resume())
    assert again.storage.read(f"job/{again.log.ledger.of(0).finished[0].blob.key}") == b"0-5;5-10;"


def test_pieces_of_a_part_with_failed_tasks_stay_for_a_retry(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    using(desk, lambda: desk.pen.put((desk.commit(0, 5), desk.commit(5, 10, failed=1))))
    assert {"parts/x/0", "parts/x/5"} <= set(desk.keys())
    retried = CommitLog.open(desk.storage, "job/")
    retried.claim("b", "t", retry=1)
    assert [(c.start, c.end) for c in retried.ledger.of(0).bodies[0]] == [(0, 5)]


def test_who_must_leave_writes_commits_and_leaves_the_parts_to_the_next(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    using(desk, lambda: desk.pen.put((desk.commit(0, 5), desk.commit(5, 10))), parts=False)
    assert len(desk.log.ledger.of(0).done) == 10
    again = Desk(tmp_path, "b")
    using(again, lambda: again.pen.resume())
    assert list(again.log.ledger.of(0).finished) == [0]


def test_of_a_trainer_s_states_only_the_latest_stays(tmp_path: Path) -> None:
    desk = Desk(tmp_path)

    def state(start: int, end: int) -> Commit:
        desk.storage.write(f"job/state/{end}", b"s")
        return Commit(STEPS, start, end, state=Blob(f"state/{end}", 1, ""))

    using(desk, lambda: desk.pen.put((state(0, 5), state(5, 10))))
    assert desk.keys() == ["state/10"]
    again = Desk(tmp_path, "b")
    using(again, lambda: again.pen.put((state(10, 15),)))
    assert desk.keys() == ["state/15"]


def test_a_lost_fence_ends_the_pen(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    CommitLog.open(desk.storage, "job/").claim("b", "t")

    async def go() -> None:
        writing = asyncio.create_task(desk.pen.run())
        desk.pen.put((desk.commit(0, 5),))
        await desk.pen.broken.wait()
        writing.cancel()

    asyncio.run(go())
    assert [type(e).__name__ for e in desk.errors] == ["FenceLost"]


def test_an_output_can_be_saved_under_its_name_however_long_its_input_s_name(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.pen.spec = SPEC.model_copy(update={"inputs": [SOURCE.model_copy(update={"filename": "é" * 125 + ".csv"})]})
    name = desk.pen.filename(PLAN, 7)
    assert len(name.encode()) <= 255
    assert name.startswith("inp_a_ééé")
    assert name.endswith("é_7.csv")


def test_names_with_the_file_s_uid_differ_for_each_input_and_can_be_found_by_it(tmp_path: Path) -> None:
    uid = "fil_01jz8q5m3nf4v9w2x7y6k1t0ab"
    twice = [SOURCE.model_copy(update={"id": f"inp_{n}", "file_uid": uid}) for n in range(20)]
    local = SOURCE.model_copy(update={"id": "inp_zz"})
    desk = Desk(tmp_path)
    desk.pen = Committer(
        SPEC.model_copy(update={"inputs": [*twice, local]}), desk.storage, desk.log, "a", {}, desk.committed, print
    )
    plans = [InputPlan(n, [0, 1], output_name="inp_{file_uid}_output.jsonl") for n in range(21)]
    names = [desk.pen.filename(plan, 0) for plan in plans]
    assert len(set(names)) == 21
    assert names[0] == "inp_01jz8q5m3nf4v9w2x7y6k1t0ab_output.jsonl"
    assert names[20] == "inp_zz_output.jsonl"
    groups = [re.fullmatch(r"inp_([A-Za-z0-9]+)_output\.jsonl", name) for name in names]
    assert all(group and group[1] in uid for group in groups[:17])
