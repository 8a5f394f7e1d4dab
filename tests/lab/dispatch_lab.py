"""A world for the driver's brain: indexes and a commit log that do what it says, without Ray or storage."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from jos.core.dispatch import Dispatch, Limits
from jos.core.ledger import STEPS, Blob, Commit, Entry, Ledger
from jos.core.plan import InputPlan, PlanWork, SpanWork, plan_groups
from jos.core.spans import cut
from jos.core.stimuli import (
    Committed,
    IndexDown,
    IndexUp,
    Instruction,
    LeaseDone,
    Push,
    SpanFault,
    StartIndex,
    StopIndex,
    WriteCommits,
)


def plan(tasks: int, span: int = 10, ordinal: int = 0, part: int | None = None) -> InputPlan:
    name = "{input_id}_{part}" if part else None
    return InputPlan(ordinal, cut(tasks, span, part), part_tasks=part, output_name=name, header=b"h\n")


@dataclass
class World:
    """Indexes and a commit log that do at once what the brain says, but for what a test lets happen."""

    brain: Dispatch
    ledger: Ledger
    to_plan: dict[int, InputPlan] = field(default_factory=dict)
    held: dict[int, list[Push]] = field(default_factory=dict)
    lives: dict[int, int] = field(default_factory=dict)
    unwritten: list[Commit] = field(default_factory=list)
    seen: list[Instruction] = field(default_factory=list)
    now: float = 0.0
    bad: frozenset[int] = frozenset()  # tasks that raise
    deadly: frozenset[int] = frozenset()  # tasks that kill the process
    sequence: int = 0  # a trainer's position

    @classmethod
    def of(
        cls,
        plans: list[InputPlan],
        indexes: int = 2,
        planned: bool = True,
        granted: int | None = None,
        **limits: object,
    ) -> World:
        ledger = Ledger()
        groups = [] if planned else plan_groups([(p.input, 1) for p in plans if p.input != STEPS], most=1)
        if limits.get("training") and not planned:
            groups.append(PlanWork(len(groups), (STEPS,)))
        brain = Dispatch(ledger, plans if planned else [], groups, indexes, Limits(**limits), 0.0, granted)  # type: ignore[arg-type]
        world = cls(brain, ledger, {p.input: p for p in plans})
        world.obey(brain.start())
        return world

    def obey(self, instructions: list[Instruction]) -> None:
        self.seen.extend(instructions)
        for what in instructions:
            match what:
                case StartIndex(index, life):
                    self.lives[index] = life
                    self.held[index] = []
                case StopIndex(index, _, kill):
                    if not kill:
                        assert not self.held[index], "an index with work in hand was let go"
                case Push(index, life):
                    assert life == self.lives[index]
                    self.held[index].append(what)
                case WriteCommits(commits):
                    self.unwritten.extend(commits)

    def tell(self, stimulus: object) -> list[Instruction]:
        out = self.brain.handle(stimulus, self.now)  # type: ignore[arg-type]
        self.obey(out)
        self.brain.check()
        return out

    def up(self, *indexes: int) -> None:
        for i in indexes or tuple(self.lives):
            self.tell(IndexUp(i, self.lives[i]))

    def down(self, index: int, reason: str = "killed") -> None:
        life = self.lives[index]
        self.held[index] = []
        self.tell(IndexDown(index, life, reason))

    def work(self, index: int) -> None:
        """The index does its oldest lease."""
        push = self.held[index].pop(0)
        commits, faults, plans = [], [], []
        for work in push.work:
            if isinstance(work, PlanWork):
                plans.extend(self.to_plan[o] for o in work.inputs)
                continue
            if work.input == STEPS:
                commits.append(replace(self.commit(work, index), state=Blob(f"state/{work.end}", 1, "0")))
                continue
            tasks = set(range(work.start, work.end))
            if work.bury is None and tasks & self.deadly:
                self.down(index, "segmentation fault")
                return
            if work.bury is None and tasks & self.bad:
                faults.append(SpanFault(work, "bad"))
                continue
            commits.append(self.commit(work, index))
        self.tell(
            LeaseDone(index, push.life, push.lease, 0.01 * len(push.work), tuple(commits), tuple(faults), tuple(plans))
        )

    @staticmethod
    def commit(work: SpanWork, index: int) -> Commit:
        failed = work.end - work.start if work.bury else 0
        return Commit(work.input, work.start, work.end, work.part, index, failed)

    def write(self) -> None:
        commits, self.unwritten = tuple(self.unwritten), []
        if commits:
            self.ledger.apply(Entry(self.ledger.next_number, "a", "t", commits))
            self.tell(Committed(commits))

    def finish(self) -> None:
        for _ in range(100_000):
            if self.brain.over:
                return
            for i in list(self.lives):
                if not self.brain.indexes[i].up and not self.brain.indexes[i].stopping:
                    self.up(i)
                if self.held[i]:
                    self.work(i)
            self.write()
        raise AssertionError("the job never ended")

    def failed(self) -> int:
        return self.ledger.tasks_failed
