"""Controllers and their launchers for Kubernetes on a fake cluster with its operators at work, all in real time: what
drivers do is a script, but each claims its attempt, beats and speaks its last word in a real Valkey.

Drivers live in asyncio tasks and die with their head pod; KubeRay's stand-in starts them, as often as it is asked to.
"""

from __future__ import annotations

import asyncio
import secrets
import shlex
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from controller_lab import new_job, now, until
from kube.errors import ApiError
from kube.fixtures import NAMESPACE, Cluster
from kube.kuberay import Waits
from kube.parts import Made
from kube.standins import ENDED, Scripted
from kube.world import World
from kuberay_lab import PIPELINE

from jos.controller.controller import Controller, Paces
from jos.controller.reconcile import Limits
from jos.core.commands import Cancel, Completed, Drained, Started, Taken
from jos.core.errors import InvalidTransition, JosError, StaleAttempt
from jos.core.model import EventDraft, Job, Pipeline, RetryPolicy, Status
from jos.core.queues import QueueConfig
from jos.launch.kube_api import KubeApi
from jos.launch.kube_profile import KubeProfile
from jos.launch.kube_stop import Deadlines
from jos.launch.kuberay import KubeRay
from jos.storage import open_storage
from jos.store.records import Mirror
from jos.store.redis import Store

BEAT = 0.1  # seconds
PACES = Paces(lease=2.0, idle=0.1, look=0.1, rescue=0.1, meter=1.0, archive=1.0, prune=1.0, again=0.5)
LIMITS = Limits(silence=4.0, alone=8.0, moment=0.3, start=30.0, evicted=0.3, drain=0.5, proof=2.0, orphan=0.5)
DEADLINES = Deadlines(answer=1.0, drain=0.5, deletion=2.0)
KEPT = 300  # seconds that a RayJob stays after its end, for people


@dataclass
class Driver:
    """One process."""

    submission: str
    job_id: str
    token: str
    process: str
    task: asyncio.Task[None] | None = None
    took: bool = False


class Drivers(Scripted):
    """`work`: how many heartbeats a job's driver needs; None: until it is told to finish, or to leave."""

    dashboard = "127.0.0.1:1"  # nobody answers there: who is to be stopped is asked over the store, and then deleted

    def __init__(self, clock: Callable[[], Any], store: Store) -> None:
        super().__init__(clock)
        self.store = store
        self.work: dict[str, int | None] = {}  # by job; 3 unless said otherwise
        self.alive: list[Driver] = []
        self.taken: Counter[str] = Counter()  # tokens
        self.refused = 0  # processes that came for an attempt that another one had
        self.most_at_once = 0  # drivers of one job that had taken it
        self._loop = asyncio.get_running_loop()

    def submit(
        self,
        submission_id: str,
        entrypoint: str,
        env: Mapping[str, str],
        runtime_env: Mapping[str, Any],
        metadata: Mapping[str, str],
    ) -> None:
        super().submit(submission_id, entrypoint, env, runtime_env, metadata)
        words = shlex.split(entrypoint)
        job_id, token = words[words.index("attempt") + 1 : words.index("attempt") + 3]
        driver = Driver(submission_id, job_id, token, secrets.token_hex(4))
        self._loop.call_soon_threadsafe(self._start, driver)

    def head_gone(self, submission_id: str) -> None:
        super().head_gone(submission_id)
        self._loop.call_soon_threadsafe(self.kill, submission_id)

    def kill(self, submission_id: str) -> None:
        """All its processes, which say nothing."""
        for driver in [d for d in self.alive if d.submission == submission_id]:
            self.alive.remove(driver)
            if driver.task is not None:
                driver.task.cancel()

    def _start(self, driver: Driver) -> None:
        self.alive.append(driver)
        driver.task = asyncio.create_task(self._live(driver))

    async def _live(self, driver: Driver) -> None:
        try:
            await self._drive(driver)
        except StaleAttempt:
            self.refused += not driver.took
            status, words = "FAILED", "Job entrypoint command failed with exit code 3"
        except JosError as error:
            status, words = "FAILED", str(error)
        else:
            status, words = "SUCCEEDED", "Job finished successfully."
        if driver in self.alive:
            self.alive.remove(driver)
            others = any(d.submission == driver.submission for d in self.alive)
            if not others and self.jobs.get(driver.submission) and self.jobs[driver.submission].status not in ENDED:
                self.say(driver.submission, status, words)

    async def _drive(self, driver: Driver) -> None:
        job_id, token = driver.job_id, driver.token
        job = await self._admitted(driver)
        job = await self.store.transact(job_id, Taken(token, driver.submission, "n1", 1, driver.process), now())
        driver.took = True
        self.taken[token] += 1
        self.most_at_once = max(self.most_at_once, sum(d.took for d in self.alive if d.job_id == job_id))
        if job.status is Status.ADMITTED:
            await self.store.transact(job_id, Started(token, "n1", 1), now())
        beats = 0
        while (work := self.work.get(job_id, 3)) is None or beats < work:
            beats += 1
            reply = await self.store.mirror(job_id, Mirror(token, beats, now()))
            if reply.status not in (Status.ADMITTED, Status.RUNNING):
                await self.store.transact(job_id, Drained(token), now())
                return
            await asyncio.sleep(BEAT)
        await self.store.transact(job_id, Completed(token), now())

    async def _admitted(self, driver: Driver) -> Job:
        """As a real driver, it waits for its admission where the cluster was quicker."""
        number = int(driver.submission.rpartition("-")[2])
        while True:
            job = await self.store.get(driver.job_id)
            attempt = job.attempt
            ahead = number > (attempt.number if attempt else 0)
            again = attempt is not None and attempt.ended_by == "Recall" and attempt.token == driver.token
            if job.status is not Status.PENDING:
                return job
            if not (ahead or again):
                raise StaleAttempt("It is of an attempt that is over.")
            await asyncio.sleep(BEAT / 2)


@dataclass
class Town:
    cluster: Cluster
    world: World
    drivers: Drivers
    store: Store
    folder: Path
    profile: KubeProfile
    running: dict[asyncio.Task[None], tuple[Controller, KubeRay]] = field(default_factory=dict)
    made: Counter[tuple[str, str]] = field(default_factory=Counter)  # (job, attempt) -> RayJobs that were made for it
    calls: Counter[str] = field(default_factory=Counter)  # to the API server, of controllers that are gone

    # --- controllers ---

    def controller(self) -> Controller:
        async def pipeline_of(_job: Job) -> Pipeline:
            return PIPELINE

        profile = self.profile.model_copy(update={"kept_seconds": KEPT})
        launcher = KubeRay(KubeApi.connect(NAMESPACE), profile, "0123abcd", pipeline_of, DEADLINES)
        one = Controller(
            self.store,
            open_storage(str(self.folder / "storage")),
            launcher,
            lambda: QueueConfig.of(None),
            paces=PACES,
            limits=LIMITS,
            offers=launcher.offers,
            news=launcher,
        )
        self.running[asyncio.create_task(one.run())] = one, launcher
        return one

    async def kill(self) -> None:
        """Every controller, as a crash does: the lease is left to run out."""
        for task, (one, launcher) in list(self.running.items()):
            one.leadership.release = _nothing  # type: ignore[method-assign]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self.calls += launcher.api.calls
            await launcher.close()
            del self.running[task]

    @property
    def launcher(self) -> KubeRay:
        [(_, launcher)] = self.running.values()
        return launcher

    # --- jobs ---

    async def submit(self, work: int | None = 3, **fields: Any) -> Job:
        policy = RetryPolicy(max_retries=1000, backoff=0.02, backoff_max=0.1)
        job = new_job(**{"queue": "default", "pipeline_key": "shout", "retry_policy": policy, **fields})
        self.drivers.work[job.id] = work
        return await self.store.create(job, [EventDraft(event_type="job.created", message="", created_at=now())])

    async def cancel(self, job: Job) -> bool:
        """False: it was over."""
        with suppress(InvalidTransition):
            await self.store.transact(job.id, Cancel(), now())
            return True
        return False

    async def reaches(self, job: Job, *statuses: Status, seconds: float = 30.0) -> Job:
        async def there() -> Job | None:
            one = await self.store.get(job.id)
            return one if one.status in statuses else None

        found: Job = await until(there, seconds, f"{job.id} {statuses}")
        return found

    async def told(self, job: Job) -> list[str]:
        return [event.event_type for event in (await self.store.events(job.id, limit=1000))[1]]

    def rayjobs(self, job: Job | None = None) -> list[Made]:
        found = self.cluster.objects.list("rayjobs", NAMESPACE)
        return [one for one in found if job is None or one["metadata"]["labels"]["jos.dev/job"] == job.id]

    async def running_rayjob(self, job: Job, attempt: int = 1) -> str:
        """The name of that attempt's RayJob, once its driver runs. States that pass quickly are not waited for."""

        async def runs() -> bool:
            one = await self.store.get(job.id)
            return one.status is Status.RUNNING and one.attempt is not None and one.attempt.number == attempt

        await until(runs, 30.0, f"attempt {attempt} of {job.id} runs")
        return f"jos-{job.id}-{attempt}".replace("_", "-")

    def kill_head(self, rayjob: str) -> bool:
        """False: there is none."""
        with suppress(ApiError, ValueError):
            found = self.cluster.objects.get("rayjobs", NAMESPACE, rayjob)
            self.world.kubelet.kill_head(NAMESPACE, found.get("status", {}).get("rayClusterName", ""))
            return True
        return False

    # --- the end ---

    async def settled(self, seconds: float = 45.0) -> list[Job]:
        """Waits until every job is over and nothing is left of any; all jobs."""

        async def over() -> list[Job] | None:
            _, jobs = await self.store.jobs(None, 0, 1000)
            done = all(job.status.terminal and not job.holds_capacity for job in jobs)
            left = self.rayjobs() or self.drivers.alive or self.cluster.objects.list("pods", NAMESPACE)
            return jobs if done and not left else None

        try:
            found: list[Job] = await until(over, seconds, "every job is over, and nothing is left in the cluster")
        except AssertionError:
            await self._tell_what_is_left()
            raise
        return found

    async def _tell_what_is_left(self) -> None:
        for job in (await self.store.jobs(None, 0, 1000))[1]:
            if not job.status.terminal or job.holds_capacity:
                print(job.id, job.status, job.reason, job.reason_message, job.attempt)
        for one in self.rayjobs():
            print(one["metadata"], one["spec"].get("suspend"), one.get("status"))
        for kind in ("workloads", "pods"):
            for one in self.cluster.objects.list(kind, NAMESPACE):
                print(kind, one["metadata"]["name"], one.get("status"))
        print(self.drivers.alive, self.world.operator.errors)

    def sound(self) -> None:
        """Whatever happened: no attempt was driven twice, and no job by two at one time."""
        assert max(self.drivers.taken.values(), default=1) == 1
        assert self.drivers.most_at_once <= 1
        assert not self.world.operator.errors


@asynccontextmanager
async def town(cluster: Cluster, folder: Path, profile: KubeProfile = KubeProfile()) -> AsyncIterator[Town]:
    async with await Store.open(None, folder / "redis") as store:
        drivers = Drivers(cluster.objects.clock, store)
        waits = Waits(poll=0.2)
        world = World(cluster.objects, drivers, waits, start_seconds=lambda pod: 0.05, stop_seconds=0.02)
        world.kubelet.add_node("n1", {"cpu": 10_000, "memory": "10Ti", "ephemeral-storage": "10Ti", "pods": 10_000})
        here = Town(cluster, world.start(), drivers, store, folder, profile)

        def note(change: Any) -> None:
            if change.resource == "rayjobs" and change.type == "ADDED":
                labels = change.obj["metadata"]["labels"]
                here.made[labels["jos.dev/job"], labels["jos.dev/attempt"]] += 1

        cluster.objects.subscribe(note)
        try:
            yield here
        finally:
            await here.kill()
            await asyncio.to_thread(world.close)
            for driver in list(drivers.alive):
                drivers.kill(driver.submission)


async def _nothing() -> None:
    return None


def keep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """RayJobs that are over go at once."""
    monkeypatch.setattr(f"{__name__}.KEPT", 0)


def in_town(
    cluster: Cluster, folder: Path, test: Callable[[Town], Awaitable[None]], profile: KubeProfile = KubeProfile()
) -> None:
    async def run() -> None:
        async with town(cluster, folder, profile) as here:
            await test(here)

    asyncio.run(run())
