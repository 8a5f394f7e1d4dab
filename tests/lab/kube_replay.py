"""Plays recordings of a real KubeRay and Kueue to JOS: launcher, controller and state machine, by the recording's
clock.

A recording knows one RayJob for each job, JOS makes one for each attempt. Each start that a recording tells of is thus
a life, which belongs to the attempt that JOS has by then: it is held back until JOS has made that attempt's RayJob, and
what KubeRay goes on to do with a RayJob that JOS has deleted is left out. A job may go on in another recording.
Drivers do what the recording says of their Ray job: they take the job when it runs, speak their last word when it
succeeds, and say nothing when it fails or its head pod goes.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from kuberay_lab import PIPELINE

from jos.controller import offerer, reconcile
from jos.controller.lookout import Lookout
from jos.controller.reconcile import Evict, Gone, PutBack, Start, Stop, Tell
from jos.controller.telling import new_holds
from jos.core import lifecycle
from jos.core.commands import Admit, Command, Completed, DriverGone, Hold, Preempt, Recall, Started, Taken, Waits
from jos.core.model import Job, Pipeline, RetryPolicy, Status
from jos.core.queues import QueueConfig
from jos.core.reasons import waits_first
from jos.core.snapshot import Hold as Said
from jos.launch.kube_api import Kind, KubeApi
from jos.launch.kube_cache import CLUSTERS, PODS, RAYJOBS, WORKLOADS
from jos.launch.kube_profile import KubeProfile
from jos.launch.kuberay import KubeRay
from jos.launch.rayjob import JOB
from jos.store.beats import Beat

RECORDINGS = Path(__file__).parents[1] / "data" / "kube-transcripts"
TICK = timedelta(seconds=0.5)
LONGEST = timedelta(seconds=60)  # that a recording waits for JOS

Object = dict[str, Any]


class Clock(datetime):
    """The recording's time, where `datetime` is asked what time it is."""

    at = datetime(2026, 11, 23, 13, 0, tzinfo=UTC)

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return cls.at


@dataclass(frozen=True)
class Change:
    t: float
    kind: str
    type: str
    thing: Object
    job: str  # what the recording calls its RayJob
    life: int | None  # None: whichever the job has


@dataclass
class Recording:
    name: str
    first: dict[str, Object] = field(default_factory=dict)  # RayJobs as they were made
    lives: dict[str, int] = field(default_factory=dict)  # how often each began
    changes: list[Change] = field(default_factory=list)

    def __post_init__(self) -> None:
        (path,) = RECORDINGS.glob(f"{self.name}-*.jsonl.gz")
        rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        rows = [row for row in rows if row["resource"] in (RAYJOBS, CLUSTERS, PODS, WORKLOADS)]
        lives = self._lives([row["object"] for row in rows if row["resource"] == RAYJOBS])
        for row in rows:
            kind, thing = row["resource"], row["object"]
            if kind == RAYJOBS:
                job, life = thing["metadata"]["name"], next(lives[0])
            elif kind == WORKLOADS:
                job, life = thing["metadata"]["ownerReferences"][0]["name"], None
            else:
                cluster = thing["metadata"]["name"] if kind == CLUSTERS else _label(thing, "ray.io/cluster")
                if cluster not in lives[1]:
                    continue  # the submitter's pod
                job, life = lives[1][cluster]
            self.changes.append(Change(row["t"], kind, row["type"], thing, job, life))

    def _lives(self, rayjobs: list[Object]) -> tuple[Iterator[int], dict[str, tuple[str, int]]]:
        """Which life each state belongs to, and each Ray cluster. A RayJob that ran and has no status begins anew."""
        ran: set[str] = set()
        of_states: list[int] = []
        of_clusters: dict[str, tuple[str, int]] = {}
        for thing in rayjobs:
            name, status = thing["metadata"]["name"], thing.get("status") or {}
            self.first.setdefault(name, thing)
            begins = name in ran and not status.get("jobDeploymentStatus")
            self.lives[name] = self.lives.get(name, 1) + begins
            if begins:
                ran.discard(name)
            elif status.get("jobDeploymentStatus") == "Running":
                ran.add(name)
            of_states.append(self.lives[name])
            if cluster := status.get("rayClusterName"):
                of_clusters[cluster] = name, self.lives[name]
        return iter(of_states), of_clusters


def _label(thing: Object, name: str) -> str:
    return str((thing["metadata"].get("labels") or {}).get(name) or "")


@dataclass
class Driver:
    job: str
    life: int
    token: str
    seq: int = 0


class Api:
    """Takes RayJobs and lets them go, and lists what the recording has told of so far."""

    def __init__(self, play: Play) -> None:
        self.play = play

    async def apply(self, kind: Kind, thing: Mapping[str, Any], *, manager: str = "", dry_run: bool = False) -> None:
        self.play.make(thing)

    async def delete(self, kind: Kind, name: str, uid: str | None = None) -> None:
        self.play.delete(name)

    async def list(self, kind: Kind, selector: Mapping[str, Any]) -> tuple[list[Object], str]:
        return list(self.play.there.get(kind.plural, {}).values()), ""

    async def close(self) -> None:
        pass


@dataclass
class Play:
    """`recordings` of one cluster, one after the other; `jobs`: what they call their RayJobs -> the job of JOS."""

    recordings: list[Recording]
    jobs: dict[str, Job]
    same: Mapping[str, str] = field(default_factory=dict)  # RayJob of a later recording -> the first one's
    kueue: bool = False
    told: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # (status, reason), each once in a row
    events: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # (type, message)
    orders: list[str] = field(default_factory=list)  # make, delete, with the RayJob
    drivers: dict[str, Driver] = field(default_factory=dict)  # by their names
    born: dict[str, tuple[str, int]] = field(default_factory=dict)  # RayJobs of JOS that are there
    deleted: set[tuple[str, int]] = field(default_factory=set)
    workloads: dict[str, Object] = field(default_factory=dict)  # the latest, by the recording's RayJob
    there: dict[str, dict[str, Object]] = field(default_factory=dict)  # all that is there, by kind and name

    # --- the cluster ---

    def make(self, body: Mapping[str, Any]) -> None:
        name, labels = body["metadata"]["name"], body["metadata"]["labels"]
        (known,) = [known for known, job in self.jobs.items() if job.id == labels["jos.dev/job"]]
        number = int(labels["jos.dev/attempt"])
        self.orders.append(f"make {name}")
        self.born[name] = known, number
        self._put(RAYJOBS, self._dressed(self._first(known, number), name, body, new=True))
        self.bodies[name] = body
        if (workload := self.workloads.get(known)) is not None:  # one that is new was never evicted
            fresh = [c for c in workload["status"]["conditions"] if c["type"] in ("QuotaReserved", "Admitted")]
            self._put(WORKLOADS, self._owned(workload | {"status": {"conditions": fresh}}, name))

    def delete(self, name: str) -> None:
        self.orders.append(f"delete {name}")
        known, number = self.born.pop(name)
        self.deleted.add((known, number))
        self.drivers = {n: d for n, d in self.drivers.items() if (d.job, d.life) != (known, number)}
        self._drop(RAYJOBS, self.launcher.cache.rayjobs[name])

    def _first(self, known: str, number: int) -> Object:
        for recording in self.recordings:
            names = [name for name in recording.first if self.same.get(name, name) == known]
            for name in names:
                if number <= recording.lives[name]:
                    return recording.first[name]
                number -= recording.lives[name]
        raise AssertionError(f"no recording tells of attempt {number} more of {known}")

    def _dressed(self, thing: Object, name: str, body: Mapping[str, Any], *, new: bool = False) -> Object:
        """A recorded RayJob as the one that JOS made: with its name, labels and jobId, and failures of its own."""
        made: Object = json.loads(json.dumps(thing))
        meta = made["metadata"]
        meta |= {"name": name, "uid": f"uid-{name}", "labels": body["metadata"]["labels"]}
        meta["annotations"] = body["metadata"]["annotations"]
        made["spec"]["jobId"] = body["spec"]["jobId"]
        if new:
            self.made_at[name] = Clock.at.strftime("%Y-%m-%dT%H:%M:%SZ")
        meta["creationTimestamp"] = self.made_at[name]
        if (failed := (made.get("status") or {}).get("failed")) is not None:
            before = self.failed.setdefault(name, failed if not made["status"].get("jobDeploymentStatus") else 0)
            made["status"]["failed"] = failed - before
        return made

    def _owned(self, workload: Object, name: str) -> Object:
        owner = {"kind": "RayJob", "name": name, "uid": f"uid-{name}"}
        return workload | {"metadata": workload["metadata"] | {"ownerReferences": [owner]}}

    def _put(self, kind: str, thing: Object) -> None:
        self.there.setdefault(kind, {})[thing["metadata"]["name"]] = thing
        self.launcher.cache.put(kind, thing)

    def _drop(self, kind: str, thing: Object) -> None:
        self.there[kind].pop(thing["metadata"]["name"], None)
        self.launcher.cache.drop(kind, thing)

    def _tell(self, change: Change, known: str, life: int | None) -> None:
        """One change of the recording, unless it is about what JOS has deleted."""
        if change.kind == WORKLOADS:
            self.workloads[known] = change.thing
            for name in [n for n, (job, _) in self.born.items() if job == known]:
                call = self._drop if change.type == "DELETED" else self._put
                call(WORKLOADS, self._owned(change.thing, name))
            return
        assert life is not None
        name = next((n for n, lived in self.born.items() if lived == (known, life)), None)
        if change.kind == RAYJOBS:
            if name is not None:
                self._tell_rayjob(change, name)
            return
        if (known, life) not in self.deleted or change.type == "DELETED":
            if change.kind == PODS and _label(change.thing, "ray.io/node-type") == "head" and change.type == "DELETED":
                self.drivers = {n: d for n, d in self.drivers.items() if (d.job, d.life) != (known, life)}
            thing = change.thing
            if change.kind == PODS:  # JOS's RayJobs give their pods this label
                labels = {**thing["metadata"].get("labels", {}), JOB: self.jobs[known].id}
                thing = {**thing, "metadata": {**thing["metadata"], "labels": labels}}
            (self._drop if change.type == "DELETED" else self._put)(change.kind, thing)

    def _tell_rayjob(self, change: Change, name: str) -> None:
        thing = self._dressed(change.thing, name, self.bodies[name])
        if change.type == "DELETED":
            del self.born[name]
            self._drop(RAYJOBS, thing)
            return
        self._drive(thing["spec"]["jobId"], *self.born[name], (thing.get("status") or {}).get("jobStatus"))
        self._put(RAYJOBS, thing)

    # --- drivers ---

    def _drive(self, name: str, known: str, life: int, says: str | None) -> None:
        job = self.jobs[known]
        if says == "RUNNING" and (known, life) not in self.drove:
            assert job.attempt is not None
            self.drove.add((known, life))
            self.drivers[name] = Driver(known, life, job.attempt.token)
            self.say(known, Taken(job.attempt.token, name, "fake-0", 1, name))
            self.say(known, Started(job.attempt.token, "fake-0", 1))
        elif says in ("SUCCEEDED", "FAILED"):
            driver = self.drivers.pop(name, None)
            if driver is not None and says == "SUCCEEDED":
                self.say(known, Completed(driver.token))

    def _beats(self) -> dict[str, Beat]:
        for driver in self.drivers.values():
            driver.seq += 1
            self.heard[self.jobs[driver.job].id] = driver.token, driver.seq
        return self.heard

    # --- JOS ---

    def say(self, known: str, command: Command) -> None:
        made = lifecycle.decide(self.jobs[known], command, Clock.at)
        self.jobs[known] = made.job
        self._note(known)
        self.events[known] += [(event.event_type, event.message) for event in made.events]

    def _note(self, known: str) -> None:
        now = str(self.jobs[known].status), self.jobs[known].reason
        if self.told[known][-1:] != [now]:
            self.told[known].append(now)

    async def step(self) -> None:
        """What the controller's loops do, once; and what they left to others goes on."""
        await asyncio.sleep(0)
        await self.lookout.look(Clock.at)
        holding = [job for job in self.jobs.values() if job.holds_capacity]
        self.lookout.hear(holding, self._beats(), Clock.at)
        for known in list(self.jobs):
            await self._look_after(known)
        await (self._offer() if self.kueue else self._admit())

    async def _look_after(self, known: str) -> None:
        job = self.jobs[known]
        for action in reconcile.decide(job, self.lookout.sight(job), Clock.at) if job.holds_capacity else ():
            match action:
                case Start():
                    await self.launcher.start(job)
                case Stop(name):
                    await self.launcher.stop(name)
                case Tell(token, reason, message):
                    self.say(known, Waits(token, reason, message))
                case Evict(token, message):
                    self.say(known, Preempt(message, token))
                case PutBack(token, message):
                    self.say(known, Recall(token, message))
                case Gone(token, message):
                    self.say(known, DriverGone(token, message))

    async def _admit(self) -> None:
        for known, job in self.jobs.items():
            if job.status is Status.PENDING and waits_first(job.not_before, job.holds_capacity, Clock.at) is None:
                number = job.attempt.number + 1 if job.attempt else 1
                self.say(known, Admit(f"{known}-{number}", indexes=job.parallelism))
                await self.launcher.start(self.jobs[known])

    async def _offer(self) -> None:
        made = offerer.decide(self.jobs.values(), self.lookout.offers, self.config, Clock.at)
        known = {job.id: name for name, job in self.jobs.items()}
        for job, offer in made.admits:
            self.say(known[job.id], Admit(offer.token, indexes=job.parallelism))
        for job_id in made.withdraws:
            await self.launcher.withdraw(job_id)
        words = [Said(j.id, "WaitingInKueue", o.message) for j, o in made.offers if o is not None and o.message]
        for job, offer in made.offers:
            number = job.attempt.number + 1 if job.attempt else 1
            if offer is None and known[job.id] in self.come:
                await self.launcher.offer(job, f"{known[job.id]}-{number}")
        for hold in new_holds([*made.holds, *words], {job.id: job for job in self.jobs.values()}, Clock.at):
            self.say(known[hold.job_id], Hold(hold.reason, hold.message))

    # --- time ---

    async def run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with self._open(monkeypatch):
            shift: dict[str, int] = dict.fromkeys(self.jobs, 0)  # lives that earlier recordings told of
            for recording in self.recordings:
                began = Clock.at - timedelta(seconds=recording.changes[0].t)
                for change in recording.changes:
                    known = self.same.get(change.job, change.job)
                    life = None if change.life is None else shift[known] + change.life
                    await self._until(began + timedelta(seconds=change.t))
                    began += await self._wait_for(known, life)
                    self._tell(change, known, life)
                    await self.step()
                for name, lives in recording.lives.items():
                    shift[self.same.get(name, name)] += lives
            await self._until(Clock.at + timedelta(seconds=20))

    async def _until(self, at: datetime) -> None:
        while Clock.at + TICK < at:
            Clock.at += TICK
            await self.step()
        Clock.at = max(Clock.at, at)

    async def _wait_for(self, known: str, life: int | None) -> timedelta:
        """Lets time pass until JOS has made the RayJob that this is about; how long that took."""
        self.come.add(known)
        began = Clock.at
        while life is not None and (known, life) not in self.deleted and not self._made(known, life):
            assert Clock.at - began < LONGEST, f"JOS makes no RayJob for attempt {life} of {known}"
            await self.step()
            if not self._made(known, life):
                Clock.at += TICK
        return Clock.at - began

    def _made(self, known: str, life: int) -> bool:
        return f"make {kubernetes(self.jobs[known], life)}" in self.orders

    @asynccontextmanager
    async def _open(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
        async def pipeline_of(_job: Job) -> Pipeline:
            return PIPELINE

        async def fresh() -> None:
            pass

        monkeypatch.setattr(Clock, "at", Clock.at)
        monkeypatch.setattr("jos.launch.kuberay.datetime", Clock)
        profile = KubeProfile(admission="kueue") if self.kueue else KubeProfile()
        self.launcher = KubeRay(cast(KubeApi, Api(self)), profile, "0123abcd", pipeline_of)
        monkeypatch.setattr(self.launcher.watches, "fresh", fresh)
        self.lookout = Lookout(self.launcher, Clock.at, self.launcher.offers)
        self.config = QueueConfig.of(None)
        self.bodies: dict[str, Mapping[str, Any]] = {}
        self.made_at: dict[str, str] = {}
        self.failed: dict[str, int] = {}
        self.heard: dict[str, Beat] = {}
        self.drove: set[tuple[str, int]] = set()
        self.come: set[str] = set()  # jobs that were asked for
        for known in self.jobs:
            self.told[known], self.events[known] = [], []
            self._note(known)
        try:
            yield
        finally:
            await self.launcher.close()


def kubernetes(job: Job, attempt: int) -> str:
    return f"jos-{job.id}-{attempt}".replace("_", "-")


def waiting(number: int, **more: Any) -> Job:
    """As a user has asked for it; retried once, after two seconds."""
    name = f"job_{number:026d}"
    fields: dict[str, Any] = {
        "id": name,
        "org_id": "org_local",
        "name": name,
        "pipeline_type": "batch",
        "pipeline_key": "shout",
        "pipeline_version": "1.0.0",
        "parameters": {},
        "queue": "default",
        "reason": "WaitingForCapacity",
        "retry_policy": RetryPolicy(max_retries=1, backoff=2),
        "created_at": Clock.at,
        "updated_at": Clock.at,
        "queued_at": Clock.at,
    }
    return Job(**fields | more)
