"""The driver's brain: tables of single situations, then a random walk over all of them."""

from __future__ import annotations

import pytest
from dispatch_lab import World, plan
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jos.core.ledger import STEPS, Blob, Commit, Entry, Ledger
from jos.core.plan import InputPlan, PlanWork, SpanWork, plan_groups, ready_parts, remaining
from jos.core.spans import cut
from jos.core.stimuli import (
    AllCommitted,
    Drain,
    GiveUp,
    Grant,
    LeaseDone,
    NoRoom,
    Placed,
    Push,
    SpanFault,
    StartIndex,
    StopIndex,
    Tick,
)


def test_every_task_is_committed_once_and_then_it_says_so() -> None:
    world = World.of([plan(95), plan(7, ordinal=1), plan(0, ordinal=2)])
    world.up()
    world.finish()
    assert isinstance(world.seen[-1], AllCommitted)
    assert world.ledger.tasks_done == 102
    assert world.failed() == 0


def test_a_job_with_nothing_left_to_do_starts_no_index() -> None:
    world = World.of([plan(0)])
    assert world.seen == [AllCommitted()]


def test_inputs_are_planned_first_and_work_flows_at_once() -> None:
    world = World.of([plan(50, ordinal=o) for o in range(4)], planned=False)
    world.up(0)
    assert isinstance(world.held[0][0].work[0], PlanWork)
    world.finish()
    assert world.ledger.tasks_done == 200


def test_no_index_goes_while_another_still_plans() -> None:
    world = World.of([plan(50)], planned=False)
    world.up(0, 1)
    assert not [s for s in world.seen if isinstance(s, StopIndex)]
    world.finish()
    assert world.ledger.tasks_done == 50


def test_an_index_never_holds_more_than_two_leases_and_shares_a_short_queue() -> None:
    world = World.of([plan(60)])
    world.up()
    assert [len(world.held[i]) for i in (0, 1)] == [2, 2]


def test_the_last_spans_go_to_whoever_is_free_first() -> None:
    """Kept in advance behind a slow span, the last one would leave the other index idle."""
    world = World.of([plan(40)])
    world.up()  # index 0 comes up alone and takes two
    assert [len(world.held[i]) for i in (0, 1)] == [2, 1]
    world.work(1)
    assert [len(world.held[i]) for i in (0, 1)] == [2, 1]
    world.finish()
    assert world.ledger.tasks_done == 40


def test_what_a_dead_index_had_in_hand_is_done_by_others() -> None:
    world = World.of([plan(200)])
    world.up()
    world.work(0)
    world.down(0)
    assert isinstance(world.seen[-1], StartIndex | Push)
    world.finish()
    assert world.ledger.tasks_done == 200
    assert world.failed() == 0


@pytest.mark.parametrize("kind", ["bad", "deadly"])
def test_a_poison_record_is_found_by_halving_and_fails_alone(kind: str) -> None:
    world = World.of([plan(100, span=32)])
    setattr(world, kind, frozenset({41}))
    world.up()
    world.finish()
    assert isinstance(world.seen[-1], AllCommitted)
    assert world.failed() == 1
    assert world.ledger.tasks_done == 100


def test_two_poison_records_in_one_span_both_stand_alone() -> None:
    world = World.of([plan(64, span=64)])
    world.deadly = frozenset({0, 63})
    world.up()
    world.finish()
    assert world.failed() == 2


def test_a_fault_that_trying_again_cannot_help_is_recorded_at_once() -> None:
    world = World.of([plan(10)], indexes=1)
    world.up()
    (push,) = world.held[0]
    world.held[0].clear()
    (work,) = push.work
    assert isinstance(work, SpanWork)
    world.tell(LeaseDone(0, 1, push.lease, 0.1, faults=(SpanFault(work, "column x is missing", final=True),)))
    world.finish()
    assert world.failed() == 10


def test_a_trainers_span_that_comes_before_its_forerunner_is_done_again() -> None:
    """Two replies of one index may overtake each other on their way to the driver; or the first span's state could
    not be stored and the second's could. A log with a hole could never be filled: only the last state is kept."""
    world = World.of([plan(30, ordinal=STEPS)], indexes=1, training=True)
    world.up()
    first, second = world.held[0]
    world.held[0].clear()
    (early,) = second.work
    assert isinstance(early, SpanWork)
    world.tell(LeaseDone(0, 1, second.lease, 0.1, (world.commit(early, 0),)))
    assert world.unwritten == []
    (due,) = first.work
    assert isinstance(due, SpanWork)
    world.tell(LeaseDone(0, 1, first.lease, 0.1, (world.commit(due, 0),)))
    assert [c.start for c in world.unwritten] == [0]
    world.finish()
    assert world.ledger.tasks_done == 30


def test_an_attempt_whose_indexes_never_came_up_says_so() -> None:
    world = World.of([plan(100)], indexes=1)
    while not world.brain.over:
        world.down(0, "its process died")
    last = world.seen[-1]
    assert isinstance(last, GiveUp)
    assert "the last while it was being set up: its process died" in last.message


def test_losses_without_any_progress_end_the_attempt() -> None:
    world = World.of([plan(100)])
    for _ in range(20):
        for i in (0, 1):
            if not world.brain.over:
                world.down(i, "no GPU driver")
    last = world.seen[-1]
    assert isinstance(last, GiveUp)
    assert last.retryable
    assert "no GPU driver" in last.message


def test_restarts_are_delayed_more_and_more() -> None:
    world = World.of([plan(100)], indexes=1)
    for _ in range(4):
        world.down(0)
    delays = [s.delay for s in world.seen if isinstance(s, StartIndex)]
    assert delays == sorted(delays)
    assert delays[-1] > 0


def test_a_message_from_a_former_life_is_ignored() -> None:
    world = World.of([plan(100)], indexes=1)
    world.up()
    push = world.held[0][0]
    world.down(0)
    (work, *_) = push.work
    assert isinstance(work, SpanWork)
    assert world.tell(LeaseDone(0, push.life, push.lease, 0.1, (world.commit(work, 0),))) == []
    world.finish()
    assert world.ledger.tasks_done == 100


def test_a_task_that_hangs_is_timed_out_by_replacing_its_index() -> None:
    world = World.of([plan(10)], indexes=1, task_seconds=1.0)
    world.up()
    world.now = 10.5
    stops = [s for s in world.tell(Tick()) if isinstance(s, StopIndex)]
    assert [s.kill for s in stops] == [True]


def test_no_progress_for_too_long_ends_the_attempt() -> None:
    world = World.of([plan(10)], indexes=1, no_progress_seconds=60.0)
    world.up()
    world.now = 61.0
    (last,) = world.tell(Tick())
    assert isinstance(last, GiveUp)
    assert last.code == "no_progress"


def test_waiting_for_a_node_is_no_lack_of_progress() -> None:
    world = World.of([plan(10)], indexes=1, no_progress_seconds=60.0, no_room_seconds=300.0)
    world.now = 290.0
    assert world.tell(Tick()) == []
    world.tell(Placed(0, 1))
    world.now = 349.0
    assert world.tell(Tick()) == []
    world.now = 351.0
    (last,) = world.tell(Tick())
    assert isinstance(last, GiveUp)
    assert last.code == "no_progress"


def test_an_attempt_that_finds_no_room_leaves_through_no_fault_of_the_job() -> None:
    world = World.of([plan(10)], indexes=2, no_progress_seconds=60.0, no_room_seconds=300.0)
    world.now = 301.0
    assert world.tell(Tick()) == [NoRoom("no node has had room for an index for 300 s")]
    assert world.tell(Tick()) == []


def test_one_index_that_has_room_keeps_the_others_waiting() -> None:
    world = World.of([plan(1000)], indexes=2, no_room_seconds=300.0)
    world.up(0)
    world.now = 1000.0
    assert world.tell(Tick()) == []
    world.down(0, "its node left")
    world.now = 1299.0
    assert world.tell(Tick()) == []
    world.now = 1301.0
    assert isinstance(world.tell(Tick())[-1], NoRoom)


def test_an_index_that_went_because_nothing_was_left_for_it_has_no_room_to_give() -> None:
    world = World.of([plan(20)], indexes=2, no_room_seconds=300.0)
    world.up(0, 1)
    while not any(isinstance(s, StopIndex) for s in world.seen):
        world.work(1 if world.held[1] else 0)
    (stopped,) = (s.index for s in world.seen if isinstance(s, StopIndex))
    world.down(1 - stopped, "its node left")
    world.now = 301.0
    assert isinstance(world.tell(Tick())[-1], NoRoom)


def test_without_a_controller_an_attempt_that_finds_no_room_makes_no_progress() -> None:
    """Nobody would queue it again; so it is told, and after that waited for as after any failure."""
    world = World.of([plan(10)], indexes=1, no_progress_seconds=60.0)
    world.now = 61.0
    assert isinstance(world.tell(Tick())[-1], GiveUp)


def test_a_drain_pushes_nothing_more_and_ends_when_all_in_hand_is_committed() -> None:
    world = World.of([plan(1000)])
    world.up()
    assert world.tell(Drain()) == []
    while any(world.held.values()):
        for i in (0, 1):
            if world.held[i]:
                world.work(i)
    world.write()
    assert isinstance(world.seen[-1], AllCommitted)
    assert 0 < world.ledger.tasks_done < 1000


def test_a_full_disk_is_waited_for_and_then_ends_the_attempt() -> None:
    world = World.of([plan(10)], indexes=1)
    world.up()
    for second in (0.0, 2.0, 5.0, 10.0):
        world.now = second
        world.tell(Tick())
        (push,) = world.held[0]
        world.held[0].clear()
        faults = tuple(SpanFault(w, "disk full", dropped=True) for w in push.work if isinstance(w, SpanWork))
        world.tell(LeaseDone(0, 1, push.lease, 0.1, faults=faults, storage_error="disk full"))
    last = world.seen[-1]
    assert isinstance(last, GiveUp)
    assert last.code == "storage_unavailable"


def test_nothing_is_pushed_while_storage_cannot_keep_up() -> None:
    world = World.of([plan(20_000, span=1)], indexes=1)
    world.up()
    for _ in range(1000):
        if not world.held[0]:
            break
        world.work(0)  # and nothing is written
    assert not world.held[0]
    assert len(world.unwritten) < 500
    world.write()
    assert world.held[0]


def trainer(world: World, index: int = 0, *, die: bool = False) -> None:
    """A trainer that keeps its position, as jos.driver.index does."""
    push = world.held[index].pop(0)
    if die:
        world.sequence = 0
        world.down(index)
        return
    (work,) = push.work
    assert isinstance(work, SpanWork)
    if world.sequence != work.start:
        if work.state is None and work.start:
            world.tell(
                LeaseDone(index, push.life, push.lease, 0.1, faults=(SpanFault(work, "elsewhere", dropped=True),))
            )
            return
        assert work.start == 0 or work.state == f"state-{work.start}"
    world.sequence = work.end
    commit = Commit(STEPS, work.start, work.end, state=Blob(f"state-{work.end}", 1, ""))
    world.tell(LeaseDone(index, push.life, push.lease, 0.1, (commit,)))


def test_a_trainer_goes_on_from_the_last_committed_state_after_any_death() -> None:
    world = World.of([plan(100, ordinal=STEPS)], indexes=4, training=True)
    assert len(world.lives) == 1
    done: list[tuple[int, int]] = []
    for turn in range(200):
        if world.brain.over:
            break
        if not world.brain.indexes[0].up:
            world.up(0)
        if world.held[0]:
            trainer(world, die=turn % 7 == 3)
        if turn % 3 == 0:
            done.extend((c.start, c.end) for c in world.unwritten)
            world.write()
    assert world.brain.over
    assert isinstance(world.seen[-1], AllCommitted)
    assert done == sorted(done)
    assert world.ledger.tasks_done == 100


def test_a_training_step_that_keeps_failing_ends_the_job() -> None:
    world = World.of([plan(30, ordinal=STEPS)], indexes=1, training=True)
    world.up()
    for _ in range(20):
        if world.brain.over:
            break
        push = world.held[0].pop(0)
        (work,) = push.work
        assert isinstance(work, SpanWork)
        dropped = work.start > 0
        world.tell(LeaseDone(0, 1, push.lease, 0.1, faults=(SpanFault(work, "nan loss", dropped=dropped),)))
    last = world.seen[-1]
    assert isinstance(last, GiveUp)
    assert not last.retryable
    assert "nan loss" in last.message


def test_remaining_work_is_the_plan_without_the_commits() -> None:
    one = plan(100, span=10, part=50)
    ledger = Ledger()
    ledger.apply(Entry(0, "a", "t", (Commit(0, 0, 30), Commit(0, 35, 40), Commit(0, 50, 100))))
    left = list(remaining(one, ledger.of(0)))
    assert [(w.start, w.end, w.header) for w in left] == [(30, 35, b""), (40, 50, b"")]
    assert ready_parts(one, ledger.of(0), 0, 100) == [1]


def test_the_header_is_written_by_whoever_has_the_first_task_of_a_part() -> None:
    works = list(remaining(plan(20, span=5, part=10), Ledger().of(0)))
    assert [w.header for w in works] == [b"h\n", b"", b"h\n", b""]
    first, second = works[0].part_of(0, 2), works[0].part_of(2, 5)
    assert (first.header, second.header) == (b"h\n", b"")


def test_plan_groups_bound_files_and_bytes() -> None:
    groups = plan_groups([(i, 100) for i in range(10)] + [(10, 1000)], most=4, most_bytes=1000)
    assert [g.inputs for g in groups] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9), (10,)]


def test_one_outage_seen_by_several_leases_counts_once() -> None:
    world = World.of([plan(400, span=1)], indexes=2)
    world.up()
    for i in (0, 1):
        for push in list(world.held[i]):
            faults = tuple(SpanFault(w, "away", dropped=True) for w in push.work if isinstance(w, SpanWork))
            world.held[i].remove(push)
            world.tell(LeaseDone(i, 1, push.lease, 0.1, faults=faults, storage_error="away"))
    assert not world.brain.over
    assert not any(world.held.values())
    world.now = 5.0
    world.tell(Tick())
    world.finish()
    assert world.ledger.tasks_done == 400


def test_planning_is_not_measured_with_the_time_of_one_task() -> None:
    world = World.of([plan(10)], indexes=1, planned=False, task_seconds=1.0)
    world.up()
    world.now = 500.0
    assert world.tell(Tick()) == []


def test_a_hanging_task_is_not_given_the_time_of_all_others_once_the_pace_is_known() -> None:
    world = World.of([plan(10_000, span=1000)], indexes=1, task_seconds=60.0)
    world.up()
    world.work(0)
    world.write()
    world.now = 62.0
    assert [s.kill for s in world.tell(Tick()) if isinstance(s, StopIndex)] == [True]


def test_a_file_that_kills_whoever_plans_it_fails_alone() -> None:
    """Planned in one group with good files, then file by file, then given up without being touched."""
    plans = [plan(20, ordinal=o) for o in range(3)]
    world = World.of(plans, indexes=2, planned=False)
    world.brain.backlog.to_plan.clear()
    world.brain.backlog.to_plan.append(PlanWork(0, (0, 1, 2)))
    world.tell(Tick())
    for _ in range(500):
        if world.brain.over:
            break
        for i in (0, 1):
            if not world.brain.indexes[i].up:
                world.up(i)
            first = world.held[i][0].work[0] if world.held[i] else None
            if isinstance(first, PlanWork) and 1 in first.inputs:
                if first.bury is None:
                    world.down(i, "segmentation fault")
                else:
                    push = world.held[i].pop(0)
                    failed = InputPlan(1, [0], error=first.bury)
                    world.tell(LeaseDone(i, push.life, push.lease, 0.1, plans=(failed,)))
            elif first is not None:
                world.work(i)
        world.write()
    assert isinstance(world.seen[-1], AllCommitted)
    assert world.ledger.tasks_done == 40
    assert "cannot be planned" in (world.brain.plans[1].error or "")


def test_a_span_whose_input_cannot_be_read_is_not_cut_in_half() -> None:
    world = World.of([plan(64, span=64)], indexes=1)
    world.up()
    for _ in range(3):
        push = world.held[0].pop(0)
        (work,) = push.work
        assert isinstance(work, SpanWork)
        assert (work.start, work.end) == (0, 64)
        world.tell(LeaseDone(0, 1, push.lease, 0.1, faults=(SpanFault(work, "403", whole=True),)))
    world.finish()
    assert world.failed() == 64


# --- grants -------------------------------------------------------------------------------------------


def started(world: World) -> list[int]:
    return [s.index for s in world.seen if isinstance(s, StartIndex)]


def test_a_grant_limits_how_many_indexes_are_started_and_a_larger_one_starts_more() -> None:
    world = World.of([plan(1000)], indexes=4, granted=1)
    assert started(world) == [0]
    world.up(0)
    world.tell(Grant(3))
    assert started(world) == [0, 1, 2]
    world.tell(Grant(9))  # more than the job can use
    assert started(world) == [0, 1, 2, 3]
    world.finish()
    assert world.ledger.tasks_done == 1000


@pytest.mark.parametrize("granted", [None, 4, 9])
def test_without_a_limit_or_with_a_large_one_all_indexes_start_at_once(granted: int | None) -> None:
    assert started(World.of([plan(1000)], indexes=4, granted=granted)) == [0, 1, 2, 3]


def test_a_grant_that_is_repeated_or_smaller_changes_nothing() -> None:
    world = World.of([plan(1000)], indexes=4, granted=2)
    assert world.tell(Grant(2)) == world.tell(Grant(1)) == []
    assert started(world) == [0, 1]


def test_a_grant_starts_nothing_when_nothing_is_left_or_the_job_must_leave() -> None:
    world = World.of([plan(10)], indexes=2, granted=1)
    world.up(0)  # has all of it in hand now
    assert world.tell(Grant(2)) == []
    leaving = World.of([plan(1000)], indexes=2, granted=1)
    leaving.up(0)
    leaving.tell(Drain())
    assert leaving.tell(Grant(2)) == []


def test_training_stays_on_one_index_whatever_is_granted() -> None:
    world = World.of([plan(100, ordinal=STEPS)], indexes=4, granted=1, training=True)
    assert world.tell(Grant(4)) == []
    assert started(world) == [0]


class Walk(RuleBasedStateMachine):
    """Any order of work, deaths, poison and slow commits ends with every task in exactly one commit."""

    @initialize(
        sizes=st.lists(st.integers(0, 60), min_size=1, max_size=4),
        indexes=st.integers(1, 4),
        granted=st.none() | st.integers(1, 4),
        planned=st.booleans(),
        steps=st.none() | st.tuples(st.integers(1, 40), st.integers(1, 3)),
        bad=st.frozensets(st.integers(0, 59), max_size=2),
        deadly=st.frozensets(st.integers(0, 59), max_size=1),
    )
    def begin(
        self,
        sizes: list[int],
        indexes: int,
        granted: int | None,
        planned: bool,
        steps: tuple[int, int] | None,
        bad: frozenset[int],
        deadly: frozenset[int],
    ) -> None:
        self.sizes, self.steps = sizes, 0
        plans = [plan(n, span=7, ordinal=o) for o, n in enumerate(sizes)]
        if steps is not None:
            self.steps, planned = steps[0], False
            plans.append(InputPlan(STEPS, cut(steps[0], 7), group=steps[1]))
        self.world = World.of(plans, indexes, planned, granted, training=steps is not None)
        self.world.bad, self.world.deadly = bad, deadly - bad

    @property
    def over(self) -> bool:
        return self.world.brain.over

    @rule(index=st.integers(0, 3))
    def come_up(self, index: int) -> None:
        if index in self.world.lives and not self.over and not self.world.brain.indexes[index].up:
            self.world.up(index)

    @rule(index=st.integers(0, 3))
    def work(self, index: int) -> None:
        if not self.over and self.world.held.get(index):
            self.world.work(index)

    @rule(index=st.integers(0, 3))
    def die(self, index: int) -> None:
        if self.over or self.world.brain.losses >= 4 or index not in self.world.lives:
            return
        first = [w for push in self.world.held[index][:1] for w in push.work if isinstance(w, SpanWork)]
        if any(w.key in self.world.brain.backlog.attempts for w in first):
            return  # killed by chance over and over while it worked on one span, that would rightly be buried
        self.world.down(index)

    @rule(indexes=st.integers(1, 5))
    @precondition(lambda self: not self.over)
    def grow(self, indexes: int) -> None:
        self.world.tell(Grant(indexes))

    @rule()
    @precondition(lambda self: not self.over)
    def write(self) -> None:
        self.world.write()

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "world"):
            self.world.brain.check()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        if not self.over:
            self.world.finish()
        assert not any(isinstance(s, GiveUp) for s in self.world.seen)
        assert self.world.ledger.tasks_done == sum(self.sizes) + self.steps
        poison = self.world.bad | self.world.deadly
        assert self.world.failed() == sum(len(poison & set(range(n))) for n in self.sizes)


Walk.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestWalk = Walk.TestCase
