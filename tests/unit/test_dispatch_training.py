"""The driver's brain on trainings: inputs are prepared, then the steps are done by one index or by a group."""

from __future__ import annotations

from dataclasses import replace

from dispatch_lab import World, plan

from jos.core.dispatch import Dispatch, Limits
from jos.core.ledger import STEPS, Blob, Commit, Entry, Finished, Ledger
from jos.core.plan import InputPlan, PlanWork, SpanWork
from jos.core.spans import cut
from jos.core.stimuli import (
    AllCommitted,
    Committed,
    Grant,
    IndexUp,
    LeaseDone,
    Push,
    SpanFault,
    StartIndex,
    StopIndex,
    Tick,
)


def training(sizes: list[int], steps: int, indexes: int = 3, group: int = 1, granted: int | None = None) -> World:
    """Inputs to be prepared, nothing planned; the plan of the steps as the trainer would make it then."""
    plans = [*(plan(n, ordinal=o) for o, n in enumerate(sizes)), InputPlan(STEPS, cut(steps, 10), group=group)]
    return World.of(plans, indexes, planned=False, granted=granted, training=True)


def spans_of(world: World, ordinal: int) -> list[tuple[int, int, int]]:
    """(index, start, end) of every span of an input that was pushed, in order."""
    pushed = [(s.index, w) for s in world.seen if isinstance(s, Push) for w in s.work if isinstance(w, SpanWork)]
    return [(index, w.start, w.end) for index, w in pushed if w.input == ordinal]


def test_steps_are_planned_once_every_input_is_prepared_and_done_by_who_planned_them() -> None:
    world = training([40, 30], steps=30)
    world.up()
    world.finish()
    pushed = [w for s in world.seen if isinstance(s, Push) for w in s.work]
    at = next(n for n, w in enumerate(pushed) if isinstance(w, PlanWork) and STEPS in w.inputs)
    assert all(w.input != STEPS for w in pushed[:at] if isinstance(w, SpanWork))
    assert all(w.input == STEPS for w in pushed[at + 1 :] if isinstance(w, SpanWork))
    assert {index for index, _, _ in spans_of(world, STEPS)} == {world.brain.seat}
    assert {i for i, x in world.brain.indexes.items() if x.stopping} == set(range(3)) - {world.brain.seat}
    assert world.ledger.tasks_done == 100


def test_steps_wait_until_what_was_prepared_is_put_together() -> None:
    world = World.of([plan(20, part=20)], indexes=1, planned=False, training=True)
    world.to_plan[STEPS] = InputPlan(STEPS, [0, 5])
    world.up(0)
    world.work(0)
    while world.held[0]:
        world.work(0)
    world.write()
    assert not spans_of(world, STEPS)
    assert not world.held[0]
    blob = Blob("k", 1, "0")
    world.ledger.apply(Entry(world.ledger.next_number, "a", "t", (), (Finished(0, 0, "n", blob, 20, "t"),)))
    world.tell(Committed(()))
    assert world.held[0][0].work[0] == PlanWork(1, (STEPS,))


def test_indexes_stay_until_it_is_known_how_many_do_the_steps() -> None:
    world = training([40], steps=20, indexes=3)
    world.up()
    while not any(
        isinstance(w, PlanWork) and STEPS in w.inputs for p in world.held.values() for le in p for w in le.work
    ):
        for i in world.lives:
            if world.held[i]:
                world.work(i)
        world.write()
        assert world.brain.wanted() == 3
        assert not world.brain.settled()
    planner = next(i for i, pushes in world.held.items() if pushes)
    world.work(planner)
    assert (world.brain.wanted(), world.brain.settled()) == (1, True)
    assert sorted(s.index for s in world.seen if isinstance(s, StopIndex)) == sorted({0, 1, 2} - {planner})


def test_a_group_takes_the_place_of_all_indexes() -> None:
    world = training([40], steps=30, indexes=3, group=2)
    world.up()
    world.finish()
    starts = [s for s in world.seen if isinstance(s, StartIndex)]
    assert [(s.index, s.life, s.group) for s in starts] == [(0, 1, 1), (1, 1, 1), (2, 1, 1), (0, 2, 2)]
    assert sorted(s.index for s in world.seen if isinstance(s, StopIndex)) == [0, 1, 2]
    assert {index for index, _, _ in spans_of(world, STEPS)} == {0}
    assert world.brain.wanted() == 2


def test_a_group_is_no_larger_than_what_is_granted_and_starts_again_as_large() -> None:
    world = training([10], steps=30, indexes=4, group=4, granted=2)
    world.up()
    while not world.brain.stepping or world.brain.seat is None:
        for i in list(world.lives):
            if world.held[i]:
                world.work(i)
        world.write()
    world.tell(Grant(4))
    world.up(0)
    world.work(0)
    world.down(0)
    assert [s.group for s in world.seen if isinstance(s, StartIndex)][-2:] == [2, 2]
    world.finish()
    assert world.ledger.tasks_done == 40


def test_a_resume_in_the_middle_of_the_steps_starts_only_who_does_them() -> None:
    ledger = Ledger()
    plans = [plan(10), InputPlan(STEPS, cut(30, 10), group=2)]
    state = Blob("state/a", 1, "0")
    ledger.apply(Entry(0, "a", "t", (Commit(0, 0, 10), Commit(STEPS, 0, 10, state=state))))
    brain = Dispatch(ledger, plans, [], 4, Limits(training=True), 0.0)
    assert brain.start() == [StartIndex(0, 1, 0.0, group=2)]
    push = next(i for i in brain.handle(IndexUp(0, 1), 0.0) if isinstance(i, Push))
    assert isinstance(push.work[0], SpanWork)
    assert (push.work[0].start, push.work[0].state, push.work[0].last) == (10, "state/a", 30)


def test_steps_that_are_not_needed_are_forgotten_when_a_training_stops_early() -> None:
    world = World.of([plan(50, ordinal=STEPS)], indexes=1, training=True)
    world.up(0)
    first = world.held[0].pop(0)
    commit = Commit(STEPS, 0, 50, stopped=7, state=Blob("s", 1, "0"))
    world.tell(LeaseDone(0, 1, first.lease, 1.0, (commit,)))
    ahead = world.held[0].pop(0)
    world.tell(LeaseDone(0, 1, ahead.lease, 0.0, (), (SpanFault(ahead.work[0], "dropped", dropped=True),)))  # type: ignore[arg-type]
    assert not world.held[0]
    world.write()
    assert isinstance(world.seen[-1], AllCommitted)
    assert world.ledger.tasks_done == 50


def test_a_training_whose_steps_cannot_be_planned_is_over() -> None:
    world = training([10], steps=10)
    world.to_plan[STEPS] = InputPlan(STEPS, [0], error="only one class", group=2)
    world.up()
    world.finish()
    assert isinstance(world.seen[-1], AllCommitted)
    assert world.brain.group == 1


def seated(world: World) -> World:
    """Worked until the steps are planned."""
    while world.brain.seat is None:
        for i in list(world.lives):
            if world.held[i]:
                world.work(i)
        world.write()
    return world


def test_an_index_that_still_waits_for_a_node_is_stopped_when_one_does_the_steps() -> None:
    world = training([40], steps=20, indexes=3)
    world.up(0, 1)
    seated(world)
    others = {0, 1, 2} - {world.brain.seat}
    assert {s.index for s in world.seen if isinstance(s, StopIndex)} == others
    world.down(2)
    assert world.seen[-1] != StartIndex(2, 2, 0.0, "killed")  # it is wanted no more
    assert world.brain.wanted() == 1


def test_a_group_is_no_larger_than_the_cluster_where_nobody_grants() -> None:
    plans = [plan(10), InputPlan(STEPS, cut(30, 10), group=4)]
    ledger = Ledger()
    ledger.apply(Entry(0, "a", "t", (Commit(0, 0, 10),)))
    brain = Dispatch(ledger, plans, [], 4, Limits(training=True, most_together=2), 0.0)
    assert brain.start() == [StartIndex(0, 1, 0.0, group=2)]


def test_how_long_preparation_took_says_nothing_of_the_steps() -> None:
    world = training([400], steps=40, indexes=1)
    world.brain.limits = replace(world.brain.limits, task_seconds=10.0)
    world.up(0)
    seated(world)
    assert world.held[0]
    world.now += 90.0  # ten steps of 9 s each
    world.tell(Tick())
    assert not [s for s in world.seen if isinstance(s, StopIndex)]


def test_deaths_while_the_steps_are_planned_do_not_make_the_training_impossible() -> None:
    world = training([10], steps=10, indexes=1)
    world.up(0)
    while not world.brain.stepping:
        world.work(0)
        world.write()
    for _ in range(5):
        world.down(0)
        world.up(0)
        (push,) = world.held[0]
        assert push.work == (PlanWork(1, (STEPS,)),)
    world.finish()
    assert world.ledger.tasks_done == 20
