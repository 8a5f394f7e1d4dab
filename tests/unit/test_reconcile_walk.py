"""A small world that does anything: drivers die, hang, come late or twice, the launcher cannot be reached, users cancel
and retry, controllers are replaced between any two orders. Whatever happens, no attempt is driven by two, and once the
world calms down all capacity comes back and no driver is left."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from jos.controller.reconcile import LIMITS, Action, Gone, Sight, Start, Stop, decide, orphans
from jos.core import commands as c
from jos.core.errors import Conflict
from jos.core.lifecycle import decide as transition
from jos.core.lifecycle import overdue
from jos.core.model import Job, Status, Timeouts
from jos.launch.base import DriverSeen

BEGAN = datetime(2026, 4, 14, 10, 5, 0, tzinfo=UTC)
LEFT = (Status.PENDING, Status.PREEMPTED, Status.CANCELLED, Status.FAILED, Status.COMPLETED)


@dataclass
class Process:
    """A driver: started for one attempt, whatever became of that since."""

    token: str
    state: str = "starting"
    took: bool = False
    hangs: bool = False
    stubborn: bool = False  # beats, but neither completes nor leaves
    beats: int = 0


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = BEGAN
        self.job = Job(
            id="job_1", org_id="org_a", name="n", pipeline_type="batch", pipeline_key="k", pipeline_version="1.0.0",
            parameters={}, created_at=BEGAN, updated_at=BEGAN, queued_at=BEGAN, timeouts=Timeouts(drain=30, run=300),
        )  # fmt: skip
        self.processes: dict[str, Process] = {}
        self.answers, self.since = True, BEGAN
        self.tokens = 0
        self.users_cancel = self.cluster_returns = True
        self.beat: tuple[str, datetime] | None = None  # as the store has it
        self.takers: dict[str, list[str]] = {}
        self.new_controller()

    # --- what a controller does, order by order ---

    @rule()
    def new_controller(self) -> None:
        """It knows nothing of before."""
        self.listening_since, self.known_since = self.now, self.now
        self.heard: tuple[tuple[str, datetime], datetime] | None = None

    @rule(orders=st.integers(0, 3))
    def look(self, orders: int = 3) -> None:
        """A look, broken off after so many orders."""
        job = self.job
        if expire := overdue(job, self.now):
            self.say(expire)
        sight = self.sight(job)
        for action in decide(job, sight, self.now, LIMITS)[:orders]:
            self.obey(job, action)
        if self.answers and orders:
            needed = {name(self.job)} if self.job.holds_capacity else set()
            for one in orphans(self.seen(), needed)[:orders]:
                self.processes[one].state = "ended"

    def sight(self, job: Job) -> Sight:
        if self.beat is not None and (self.heard is None or self.heard[0] != self.beat):
            self.heard = (self.beat, self.now)
        token = job.attempt.token if job.attempt else ""
        mine = self.heard if self.heard is not None and self.heard[0][0] == token else None
        floor = max(job.attempt.admitted_at if job.attempt else BEGAN, self.listening_since)
        return Sight(
            name=name(job),
            driver=self.seen().get(name(job)) if self.answers else None,
            answers=self.answers,
            since=max(self.since, self.known_since),
            heard=max(floor, mine[1]) if mine else floor,
            beats=mine is not None,
        )

    def seen(self) -> dict[str, DriverSeen]:
        return {n: DriverSeen(n, p.state) for n, p in self.processes.items()}  # type: ignore[arg-type]

    def obey(self, job: Job, action: Action) -> None:
        match action:
            case Start() if self.answers and name(job) not in self.processes:
                assert job.attempt is not None
                self.processes[name(job)] = Process(job.attempt.token)
            case Stop(driver) if self.answers and driver in self.processes:
                self.processes[driver].state = "ended"
            case Gone(token, message):
                self.say(c.DriverGone(token, message))

    @rule()
    def admit(self) -> None:
        waits = self.job.status is Status.PENDING and not self.job.holds_capacity
        if waits and not (self.job.not_before and self.job.not_before > self.now) and self.answers:
            self.tokens += 1
            self.say(c.Admit(f"tok{self.tokens}", indexes=1))

    @rule()
    def preempt(self) -> None:
        if self.job.status in (Status.ADMITTED, Status.RUNNING):
            self.say(c.Preempt("for another"))

    # --- what drivers do ---

    @rule(which=st.randoms(use_true_random=False))
    def boot(self, which: Any) -> None:
        if process := self.one_of(which, "starting"):
            process.state = "running"

    @rule(which=st.randoms(use_true_random=False))
    def go_on(self, which: Any) -> None:
        """Take, start, beat; leave when told."""
        if (process := self.one_of(which, "running")) is not None and not process.hangs:
            self.advance(process)

    def advance(self, process: Process) -> None:
        driver = next(n for n, p in self.processes.items() if p is process)
        if not process.took:
            if not self.say(c.Taken(process.token, driver)):
                process.state = "ended"
                return
            process.took = True
            self.takers.setdefault(process.token, []).append(driver)
            if self.job.status is Status.ADMITTED:
                self.say(c.Started(process.token))
        elif self.job.attempt is None or self.job.attempt.token != process.token or not self.job.holds_capacity:
            process.state = "ended"  # its heartbeat is refused
        elif self.job.status in LEFT and not process.stubborn:
            self.say(c.Drained(process.token))
            process.state = "ended"
        else:
            self.beat = (process.token, self.now)
            process.beats += 1

    @rule(which=st.randoms(use_true_random=False))
    def complete(self, which: Any) -> None:
        process = self.one_of(which, "running")
        if process is not None and process.took and not process.hangs and self.say(c.Completed(process.token)):
            process.state = "ended"

    @rule(which=st.randoms(use_true_random=False))
    def die(self, which: Any) -> None:
        if process := self.one_of(which, "starting", "running"):
            process.state = "ended"

    @rule(which=st.randoms(use_true_random=False))
    def hang(self, which: Any) -> None:
        if process := self.one_of(which, "starting", "running"):
            process.hangs = True

    @rule(which=st.randoms(use_true_random=False))
    def turn_stubborn(self, which: Any) -> None:
        if process := self.one_of(which, "starting", "running"):
            process.stubborn = True

    # --- what the world does ---

    @rule(seconds=st.sampled_from([0.5, 5, 20, 50, 100, 700]))
    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @rule()
    def launcher_away(self) -> None:
        self.answers, self.since = False, self.now if self.answers else self.since

    @rule()
    def launcher_back(self) -> None:
        self.answers, self.since = True, self.since if self.answers else self.now

    @rule()
    def cancel(self) -> None:
        self.say(c.Cancel())

    @rule()
    def retry(self) -> None:
        self.say(c.Retry())

    # --- what must always be true ---

    @invariant()
    def one_driver_an_attempt(self) -> None:
        assert all(len(takers) == 1 for takers in self.takers.values())

    def teardown(self) -> None:
        """Calm: nobody asks for anything, time passes. Drivers may still hang, and the cluster may stay away: then
        what was not taken waits for it, and who will not leave cannot be made to."""
        if self.cluster_returns:
            self.launcher_back()
        for _ in range(600):
            self.now += timedelta(seconds=1)
            self.look()
            for process in list(self.processes.values()):
                self.live_on(process)
            if (self.users_cancel or not self.cluster_returns) and not self.job.status.terminal:
                self.say(c.Cancel())
        assert not self.job.holds_capacity
        if self.cluster_returns:
            assert all(process.state == "ended" for process in self.processes.values())

    def live_on(self, process: Process) -> None:
        if process.state == "starting":
            process.state = "running"
        elif process.state == "running" and not process.hangs:
            process.stubborn = process.stubborn and self.cluster_returns
            if process.beats > 5 and not process.stubborn and self.say(c.Completed(process.token)):
                process.state = "ended"
            else:
                self.advance(process)
            if self.job.status is Status.ADMITTED and process.took:
                self.say(c.Started(process.token))

    # --- inside ---

    @initialize(users_cancel=st.booleans(), cluster_returns=st.booleans())
    def begin(self, users_cancel: bool, cluster_returns: bool) -> None:
        self.users_cancel, self.cluster_returns = users_cancel, cluster_returns
        self.admit()

    def say(self, command: c.Command) -> bool:
        try:
            self.job = transition(self.job, command, self.now).job
            return True
        except Conflict:
            return False

    def one_of(self, which: Any, *states: str) -> Process | None:
        found = [p for p in self.processes.values() if p.state in states]
        return which.choice(found) if found else None


def name(job: Job) -> str:
    return f"jos-{job.id}-{job.attempt.number if job.attempt else 0}"


TestWorld = World.TestCase
TestWorld.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
