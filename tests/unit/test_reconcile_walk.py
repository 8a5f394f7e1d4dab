"""A small world that does anything: drivers die, hang, wake, come late or twice, will not leave, cannot be stopped or
are forgotten; the launcher cannot be reached or loses orders; users cancel and retry; controllers pause, and are
replaced between any two orders; the cluster takes places away, and gives them again.

The world knows the truth and judges by it, second by second: no order may harm a driver that is heard and wanted
(`judge`), and no trouble may last longer than docs/controller.md promises (`troubles`). What heals otherwise than by
the controller (a driver that leaves by itself) is no trouble.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from jos.controller.reconcile import Action, Evict, Gone, Limits, PutBack, Sight, Start, Stop, Tell, decide, orphans
from jos.core import commands as c
from jos.core.errors import Conflict
from jos.core.lifecycle import decide as transition
from jos.core.lifecycle import overdue, recalled
from jos.core.model import Attempt, Job, RetryPolicy, Status, Timeouts
from jos.launch.base import DriverSeen, Waits

BEGAN = datetime(2026, 4, 14, 10, 5, 0, tzinfo=UTC)
WANTED = (Status.ADMITTED, Status.RUNNING)
DRAIN = 30  # the pipeline's own
LEAVES = 3  # seconds that a driver needs to leave when it is told
SOON = 2  # seconds, that is looks, in which an order shows its effect, and the effect is seen

# What is promised, in numbers of this file's own: a limit that is changed by mistake is found too.
LIMITS = Limits(silence=15, alone=60, start=120, evicted=3, drain=10, proof=60, orphan=10)
SILENCE, ALONE, START, EVICTED, STAY, PROOF, ORPHAN = 15, 60, 120, 3, DRAIN + 10, 60, 10
TOLD = 10  # seconds that a reason stays, at most

THEN = st.sampled_from([4, 1, 18, 45, 130, 0])  # seconds that pass after something happened
SELDOM = st.sampled_from([False, False, False, True])


@dataclass
class Process:
    """A driver: `token` is of the attempt that it was started for or works on, whatever became of that since."""

    name: str
    token: str  # "": a spare driver without work
    boots: int = 1  # seconds
    warms_up: int = 0  # seconds from Taken to the first heartbeat
    state: str = "starting"
    took: bool = False
    beat: datetime | None = None  # its last of this attempt
    known: bool = True  # to the launcher
    hangs: bool = False
    stubborn: bool = False  # beats, but does not leave when told
    lingers: bool = False  # says its last word, but does not end
    stoppable: bool = True
    evicted: bool = False  # its cluster took its place: it is dead, and its entry there waits again

    @property
    def spare(self) -> bool:
        return self.name.startswith("jos-warm-")

    @property
    def ended(self) -> bool:
        return self.state == "ended"


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = BEGAN
        self.processes: dict[str, Process] = {}
        self.answers, self.answers_since, self.loses_orders = True, BEGAN, False
        self.tokens, self.jobs, self.boots, self.warms_up, self.by_hand = 0, 0, 1, 0, False
        self.beat: tuple[str, datetime] | None = None  # as the store has it
        self.placeless = ""  # token of an attempt whose place was taken back before its driver came
        self.waits: Waits | None = None  # what drivers on their way wait for
        self.begun: dict[str, datetime] = {}  # trouble -> since when
        self.submit()
        self.new_controller()

    # --- what happens; and then time passes ---

    @initialize(then=THEN, by_hand=SELDOM, spares=st.integers(0, 1))
    def begin(self, then: int, by_hand: bool, spares: int) -> None:
        self.by_hand = by_hand  # whether drivers admit themselves
        for _ in range(spares):
            self.a_spare_driver_comes(0)
        self.wait(then)

    @rule(then=THEN)
    def wait(self, then: int) -> None:
        for _ in range(then):
            self.second()

    @rule(then=THEN, which=st.integers(0, 2), what=st.sampled_from(["stubborn", "lingers"]))
    def goes_wrong(self, then: int, which: int, what: str) -> None:
        if process := self.one_of(which):
            setattr(process, what, True)
            self.wait(then)

    @rule(then=THEN, which=st.integers(0, 2), stoppable=st.booleans())
    def hangs(self, then: int, which: int, stoppable: bool) -> None:
        if process := self.one_of(which):
            process.hangs, process.stoppable = True, stoppable
            self.wait(then)

    @rule(then=THEN, which=st.integers(0, 2))
    def wakes(self, then: int, which: int) -> None:
        if process := self.one_of(which):
            process.hangs = False
            self.wait(then)

    @rule(then=THEN, which=st.integers(0, 2))
    def dies(self, then: int, which: int) -> None:
        if process := self.one_of(which):
            process.state = "ended"
            self.wait(then)

    @rule(then=THEN)
    def is_evicted(self, then: int) -> None:
        """The cluster takes the place of the driver at work, which dies without a word."""
        process = self.driver()
        if process and process.known and not process.spare and not process.ended:
            process.evicted = True
            self.wait(then)

    @rule(then=THEN)
    def its_place_is_taken_back(self, then: int) -> None:
        """Of an attempt that no driver has taken; what is on its way comes no more, until the place is given again."""
        if not self.job.holds_capacity and not self.by_hand:
            self.submit()
            self.admit()
        attempt = self.job.attempt
        ours = attempt is not None and attempt.indexes is not None and self.job.status is Status.ADMITTED
        if (
            ours
            and self.driver() is None
            and all(p.token != self.token or not p.spare for p in self.processes.values())
        ):
            self.placeless = self.token
            self.wait(then)
            self.placeless = ""

    @rule(then=THEN, reason=st.sampled_from(["", "PullingImage", "NoNodeForPods"]))
    def drivers_on_their_way_wait_for_something_else(self, then: int, reason: str) -> None:
        self.waits = Waits(reason, f"in words of {reason}") if reason else None
        self.wait(then)

    @rule(then=THEN)
    def is_forgotten(self, then: int) -> None:
        """The launcher knows nothing any more of the driver at work."""
        if process := self.driver():
            process.known = False
            self.wait(then)

    @rule(boots=st.sampled_from([1, 40, 500]), warms_up=st.sampled_from([0, 50, 500]))
    def drivers_get_slow_or_fast(self, boots: int, warms_up: int) -> None:
        self.boots, self.warms_up = boots, warms_up

    @rule(then=THEN)
    def a_spare_driver_comes(self, then: int) -> None:
        number = sum(p.spare for p in self.processes.values())
        self.processes[f"jos-warm-{number}"] = Process(f"jos-warm-{number}", "")
        self.wait(then)

    @rule(then=THEN, answers=st.booleans(), loses_orders=st.booleans())
    def the_launcher_changes(self, then: int, answers: bool, loses_orders: bool) -> None:
        if answers != self.answers:
            self.answers, self.answers_since = answers, self.now
        self.loses_orders = loses_orders
        self.begun.clear()
        self.wait(then)

    @rule(then=THEN, away=THEN)
    def the_launcher_is_away_for_a_while(self, then: int, away: int) -> None:
        self.the_launcher_changes(away, answers=False, loses_orders=self.loses_orders)
        self.the_launcher_changes(then, answers=True, loses_orders=self.loses_orders)

    @rule(then=THEN, orders=st.integers(0, 2))
    def the_controller_dies(self, then: int, orders: int) -> None:
        """In the middle of a look, after so many orders."""
        self.look(orders)
        self.new_controller()
        self.wait(then)

    @rule(then=THEN, seconds=st.sampled_from([3, 20, 100]))
    def the_controller_pauses(self, then: int, seconds: int) -> None:
        for _ in range(seconds):
            self.second(looks=False)
        self.begun.clear()
        if seconds > 5:
            self.listening_since, self.heard = self.now, None
        self.wait(then)

    @rule(then=THEN)
    def cancel(self, then: int) -> None:
        self.say(c.Cancel())
        self.wait(then)

    @rule(then=THEN, retried=st.booleans())
    def will_not_leave(self, then: int, retried: bool) -> None:
        if process := self.driver():
            process.stubborn = True
            self.say(c.Cancel())
            if retried:
                self.say(c.Retry())
            self.wait(then)

    @rule(then=THEN)
    def preempt(self, then: int) -> None:
        if self.job.status in WANTED:
            self.say(c.Preempt("for another"))
            self.wait(then)

    @precondition(lambda self: self.job.status in (Status.CANCELLED, Status.FAILED))
    @rule(then=THEN, by_hand=SELDOM)
    def retry(self, then: int, by_hand: bool) -> None:
        self.by_hand = by_hand
        self.say(c.Retry())
        self.wait(then)

    @rule(then=THEN)
    def complete(self, then: int) -> None:
        process = self.driver()
        if process and not process.hangs and not process.ended and self.say(c.Completed(process.token)):
            self.leave(process)
            self.submit()
            self.wait(then)

    def teardown(self) -> None:
        """Every trouble comes to its end."""
        self.wait(START + PROOF + 3 * SOON)

    # --- one second ---

    def second(self, looks: bool = True) -> None:
        """What the controller knows of processes is a little older than what it knows of the job."""
        self.now += timedelta(seconds=1)
        seen = self.seen()
        for process in list(self.processes.values()):
            if not process.ended and not process.hangs and not process.evicted:
                self.live(process)
        if looks:
            self.admit()
            self.look(seen=seen)
            self.no_trouble_lasts()

    def live(self, process: Process) -> None:
        job, attempt = self.job, self.job.attempt
        if process.token and process.token == self.placeless and not process.took:
            return
        if process.state == "starting":
            process.boots -= 1
            process.state = "starting" if process.boots > 0 else "running"
        elif not process.token:
            return
        elif not process.took and process.token == self.token and self.may_come_again():
            return  # it waits for its admission
        elif not process.took:
            process.took = self.say(c.Taken(process.token, process.name))
            if not process.took:
                self.leave(process)
        elif attempt is None or attempt.token != process.token or not job.holds_capacity:
            self.leave(process)  # its heartbeat is refused
        elif process.warms_up > 0:
            process.warms_up -= 1
        elif job.status in WANTED or process.stubborn or self.passed(self.told) < LEAVES:
            if job.status is Status.ADMITTED:
                self.say(c.Started(process.token))
            process.beat = self.now
            self.beat = (process.token, self.now)
        else:
            assert self.say(c.Drained(process.token))
            self.leave(process)

    def leave(self, process: Process) -> None:
        if process.lingers:
            process.hangs = True
        elif process.spare:
            process.token, process.took, process.beat = "", False, None
        else:
            process.state = "ended"

    def admit(self) -> None:
        job = self.job
        backs_off = job.not_before is not None and job.not_before > self.now
        if job.status is not Status.PENDING or job.holds_capacity or backs_off or not self.answers:
            return
        if job.attempt is not None and self.may_come_again():
            if job.attempt.token != self.placeless:
                assert self.say(c.Admit(job.attempt.token, indexes=1))
            return
        self.tokens += 1
        token = f"tok{self.tokens}"
        self.say(c.Admit(token, indexes=None if self.by_hand else 1))
        if self.by_hand:
            self.processes[token] = Process(token, token, state="running", took=True, known=False)

    # --- what a controller does ---

    def new_controller(self) -> None:
        """It knows nothing of before."""
        self.listening_since = self.known_since = self.now
        self.heard: tuple[tuple[str, datetime], datetime] | None = None
        self.idle: dict[str, datetime] = {}
        self.begun.clear()

    def look(self, orders: int = 99, seen: dict[str, DriverSeen] | None = None) -> None:
        seen = (self.seen() if seen is None else seen) if self.answers else {}
        if expire := overdue(self.job, self.now):
            self.say(expire)
        job = self.job
        if job.attempt is not None:
            for action in decide(job, self.sight(job, job.attempt, seen), self.now, LIMITS)[:orders]:
                self.judge(job, job.attempt, action)
                self.obey(job, job.attempt, action)
        job, attempt = self.job, self.job.attempt
        comes = job.holds_capacity or self.may_come_again()
        needed = {cold(job), attempt.driver} if attempt is not None and comes else set()
        self.idle = {name: self.idle.get(name, self.now) for name in orphans(seen, needed)}
        for name in [n for n, since in self.idle.items() if self.passed(since) >= ORPHAN][:orders]:
            process = self.processes[name]
            assert not process.spare, "a spare driver stopped"
            assert self.is_over(process.token), "a driver stopped that is needed"
            self.stop(name)

    def sight(self, job: Job, attempt: Attempt, seen: dict[str, DriverSeen]) -> Sight:
        if self.beat is not None and (self.heard is None or self.heard[0] != self.beat):
            self.heard = (self.beat, self.now)
        heard = self.heard if self.heard is not None and self.heard[0][0] == attempt.token else None
        floor = max(attempt.admitted_at, self.listening_since)
        name = attempt.driver or cold(job)
        return Sight(
            name=name,
            driver=seen.get(name),
            answers=self.answers,
            since=max(self.answers_since, self.known_since),
            heard=max(floor, heard[1]) if heard else floor,
            beats=heard is not None,
            displaced="others" if self.placeless == attempt.token else None,
        )

    def seen(self) -> dict[str, DriverSeen]:
        return {n: self.seen_of(p) for n, p in self.processes.items() if p.known}

    def seen_of(self, process: Process) -> DriverSeen:
        if process.evicted and not process.ended:
            return DriverSeen(process.name, "starting", waits=Waits("WaitingInKueue", "evicted"), suspended=True)
        waits = self.waits if process.state == "starting" else None
        return DriverSeen(process.name, process.state, waits=waits)  # type: ignore[arg-type]

    def obey(self, job: Job, attempt: Attempt, action: Action) -> None:
        match action:
            case Start() if self.answers and not self.loses_orders:
                spare = next((p for p in self.processes.values() if p.spare and not p.token and not p.ended), None)
                if all(p.token != attempt.token for p in self.processes.values()) and spare is not None:
                    spare.token = attempt.token
                elif cold(job) not in self.processes:
                    self.processes[cold(job)] = Process(cold(job), attempt.token, self.boots, self.warms_up)
            case Stop(name):
                self.stop(name)
            case Gone(token, message):
                self.say(c.DriverGone(token, message))
            case Tell(token, reason, message):
                assert self.say(c.Waits(token, reason, message))
            case Evict(token, message):
                count = self.job.preemption_count
                assert self.say(c.Preempt(message, token))
                assert self.job.preemption_count == count + 1
            case PutBack(token, message):
                spent = self.job.retries_spent, self.job.preemption_count
                assert self.say(c.Recall(token, message))
                assert (self.job.retries_spent, self.job.preemption_count) == spent

    def stop(self, name: str) -> None:
        process = self.processes[name]
        if self.answers and not self.loses_orders and process.stoppable:
            process.state = "ended"

    # --- what must never be done ---

    def judge(self, job: Job, attempt: Attempt, action: Action) -> None:
        driver = self.driver()
        untaken = driver is None
        silence = self.silence()
        too_long = silence > (SILENCE if driver and driver.beat else START)
        waited = self.passed(max(attempt.admitted_at, self.answers_since)) if self.answers else 0
        assert job.holds_capacity, "an order for a job that holds nothing"
        match action:
            case Start():
                assert untaken, "a second driver for an attempt that is taken"
                assert job.status is Status.ADMITTED, "a driver for a job that is to leave"
            case Stop(name):
                process = self.processes[name]
                assert process.known, "a driver stopped that is not the launcher's"
                assert process.token == attempt.token, "the driver of another attempt stopped"
                overstays = job.status not in WANTED and (untaken or process.evicted or self.passed(self.told) > STAY)
                in_time = waited <= START if untaken else not too_long
                assert overstays or not in_time, "a driver stopped that did nothing wrong"
            case Tell():
                assert untaken, "a driver that is at work waits for nothing"
            case Evict(token):
                assert token == attempt.token
                assert driver is not None
                assert driver.evicted, "a driver preempted that has its place"
                assert job.status in WANTED, "a driver preempted that was to leave"
            case PutBack(token):
                assert token == attempt.token == self.placeless
                assert untaken, "a job put back that is driven"
            case Gone(token) if driver is None:
                assert token == attempt.token
                born = self.processes.get(cold(job))
                dead = born is not None and born.ended
                assert dead or job.status is not Status.ADMITTED or waited > START, "an order given up before its time"
            case Gone(token) if not driver.ended:
                assert token == attempt.token
                if self.itself(attempt):
                    assert silence > ALONE, "a driver that admitted itself given up before its time"
                else:
                    assert too_long, "a driver given up that is heard"
                    unknown = self.answers and not driver.known
                    proof = silence - (SILENCE if driver.beat else START) > PROOF
                    assert unknown or proof, "a driver given up without proof"

    # --- what must not last ---

    def no_trouble_lasts(self) -> None:
        now = dict(self.troubles())
        self.begun = {trouble: self.begun.get(trouble, self.now) for trouble in now}
        for trouble, seconds in now.items():
            assert self.passed(self.begun[trouble]) <= seconds + SOON, f"{trouble} for too long"

    def troubles(self) -> Iterator[tuple[str, int]]:
        """Each with the seconds that it may last. It begins anew when its name changes."""
        able = self.answers and not self.loses_orders
        job, attempt = self.job, self.job.attempt
        if job.holds_capacity and attempt is not None:
            driver, about = self.driver(), f"{attempt.token} {job.status}:"
            if driver is None:
                yield from self.troubles_of_an_order(about)
            elif self.itself(attempt):
                if driver.hangs or driver.ended:
                    yield f"{about} fell silent, was never ours", ALONE
            else:
                allowed = SILENCE if driver.beat else START
                if driver.ended and driver.known and self.answers:
                    yield f"{about} its driver ended", 0
                if driver.evicted and driver.known and self.answers and not driver.ended:
                    if job.status in WANTED:
                        yield f"{about} lost its place", 0
                    elif able and driver.stoppable:
                        yield f"{about} lost its place and is dead", EVICTED + (0 if driver.beat else START)
                if driver.hangs or driver.ended or driver.evicted:
                    forgotten = self.answers and not driver.known
                    at_hand = forgotten or (able and (driver.stoppable or driver.ended))
                    yield f"{about} silent, at hand: {at_hand}", allowed + (0 if at_hand else PROOF)
                elif job.status not in WANTED and able and driver.known and driver.stoppable:
                    yield f"{attempt.token}: overstays", STAY
        for process in self.processes.values():
            cold_one = process.known and not process.spare and not process.ended
            if able and cold_one and process.stoppable and self.is_over(process.token):
                yield f"{process.name} runs for nothing", ORPHAN

    def troubles_of_an_order(self, about: str) -> Iterator[tuple[str, int]]:
        process = self.processes.get(cold(self.job))
        if self.job.status is not Status.ADMITTED:
            yield f"{about} left, but nobody had come", 0
        elif self.answers and self.placeless == self.token:
            yield f"{about} has no place any more", 0
        elif self.answers:
            if process is not None and process.known and process.state == "starting" and not process.hangs:
                told = self.waits.reason if self.waits else "CapacityGranted"
                if self.job.reason != told:
                    yield f"{about} is not told that it waits for {told}", TOLD + SOON
            yield f"{about} nobody comes", START
            if process is not None and process.ended:
                yield f"{about} its driver ended before it came", 0
            ordered = any(p.token == self.token and not p.ended and not p.hangs for p in self.processes.values())
            if process is None and not ordered and not self.loses_orders:
                yield f"{about} nobody was ordered", 0

    # --- inside ---

    def submit(self) -> None:
        self.jobs += 1
        self.job = Job(
            id=f"job_{self.jobs}", org_id="org_a", name="n", pipeline_type="batch", pipeline_key="k",
            pipeline_version="1.0.0", parameters={}, created_at=self.now, updated_at=self.now, queued_at=self.now,
            timeouts=Timeouts(drain=DRAIN, run=400),
            retry_policy=RetryPolicy(max_retries=999, backoff=1, backoff_max=2),
        )  # fmt: skip
        self.told = self.now  # when its driver was asked to leave

    def say(self, command: c.Command) -> bool:
        before = self.job.status
        try:
            self.job = transition(self.job, command, self.now).job
        except Conflict:
            return False
        if before in WANTED and self.job.status not in WANTED:
            self.told = self.now
        return True

    @property
    def token(self) -> str:
        return self.job.attempt.token if self.job.attempt else ""

    def is_over(self, token: str) -> bool:
        return token != self.token or not (self.job.holds_capacity or self.may_come_again())

    def may_come_again(self) -> bool:
        """Whether its place was taken back before its driver came: it, or its driver, waits for the place."""
        job = self.job
        return job.status is Status.PENDING and job.attempt is not None and recalled(job.attempt)

    def itself(self, attempt: Attempt) -> bool:
        return attempt.token in self.processes  # the name of its process, for want of a launcher's

    def driver(self) -> Process | None:
        """The process that took the attempt which holds the capacity."""
        if not self.job.holds_capacity:
            return None
        [*takers] = (p for p in self.processes.values() if p.took and p.token == self.token)
        assert len(takers) <= 1, "two drivers of one attempt"
        return takers[0] if takers else None

    def silence(self) -> float:
        driver, attempt = self.driver(), self.job.attempt
        assert attempt is not None
        return self.passed(driver.beat if driver and driver.beat else attempt.admitted_at)

    def passed(self, since: datetime) -> float:
        return (self.now - since).total_seconds()

    def one_of(self, which: int) -> Process | None:
        """The latest processes first."""
        found = [p for p in reversed(self.processes.values()) if not p.ended]
        return found[which % len(found)] if found else None


def cold(job: Job) -> str:
    return f"jos-{job.id}-{job.attempt.number if job.attempt else 0}"


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=300, stateful_step_count=25, deadline=None)
