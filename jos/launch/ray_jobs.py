"""Drivers as Ray Jobs, over the REST API of a cluster's dashboard; warm ones take their orders over the store.

A submission id is used once, so that one attempt gets one process however often it is submitted. Entrypoints can be
seen by everybody who sees the dashboard: they hold no settings and no secrets.
May import: httpx2, jos.core, jos.store. Tests: tests/contract/test_launcher.py, tests/unit/test_ray_jobs.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import httpx2
import structlog

from jos import __version__
from jos.core.admission import Node
from jos.core.errors import ComputeFailed
from jos.core.ids import new_id
from jos.core.model import Job
from jos.launch.base import DriverSeen
from jos.store.drivers import Drivers, Order

PREFIX, WARM = "jos-", "jos-warm-"
TIMEOUT = httpx2.Timeout(10.0, connect=3.0)
SUBMIT_TIMEOUT = httpx2.Timeout(30.0, connect=3.0)  # a head that just came up waits for its agent first
FORGET_SECONDS = 600.0  # after its end, a driver is forgotten by Ray too, or the list would grow for ever
STUCK_SECONDS = 180.0  # a warm driver that has not come up by then will not
SURPLUS_SECONDS = 60.0  # so long more warm drivers than wanted may be idle: the next jobs may want them
MOST_STARTS = 4  # warm drivers at once: starting is what they spare the jobs, not the machine

_STATES: dict[str, Literal["starting", "running", "ended"]] = {"PENDING": "starting", "RUNNING": "running"}

log = structlog.get_logger()


class RayJobs:
    """A Launcher. `pass_env`: variables for drivers on a cluster whose own environment does not hold JOS's settings;
    they can be seen in the Ray dashboard."""

    def __init__(
        self, dashboard: str, drivers: Drivers, storage_url: str, pass_env: Mapping[str, str] | None = None
    ) -> None:
        self.drivers = drivers
        # several installations of JOS may share a cluster; what lies in one storage root is one installation
        self.warm_prefix = f"{WARM}{hashlib.sha256(storage_url.encode()).hexdigest()[:8]}-"
        self.environment = dict(pass_env or {})
        self.client = httpx2.AsyncClient(base_url=dashboard.rstrip("/"), timeout=TIMEOUT, headers=authorization())
        self.tidying: asyncio.Task[None] | None = None
        self.surplus_since: float | None = None
        self.starting: dict[str, float] = {}  # warm drivers that have not come up -> since when, monotonic

    optional_gpus = True  # where the cluster has any: its nodes say so

    # --- drivers of one attempt ---

    def name_of(self, job: Job) -> str:
        number = job.attempt.number if job.attempt else 0
        return f"{PREFIX}{job.id}-{number}"

    async def start(self, job: Job) -> None:
        assert job.attempt is not None, "only an admitted job can be started"
        given = await self.drivers.give(Order(job.id, job.attempt.token, __version__))
        if given is not None:
            log.info("order given", job=job.id, driver=given)
            return
        name = self.name_of(job)
        arguments = f"attempt {job.id} {job.attempt.token} --name {name}"
        await self._submit(name, arguments, {"job": job.id, "attempt": str(job.attempt.number), "org": job.org_id})

    async def stop(self, name: str) -> None:
        answer = await self._ask("POST", f"/api/jobs/{name}/stop")
        if answer.status_code != 404:
            self._check(answer, f"stop {name}")
        await self.drivers.forget({name})

    # --- what there is ---

    async def seen(self) -> dict[str, DriverSeen]:
        answer = self._check(await self._ask("GET", "/api/jobs/"), "list jobs")
        jobs = [j for j in answer.json() if self._ours(j.get("submission_id") or "")]
        self._tidy(jobs)
        return {j["submission_id"]: _seen(j) for j in jobs}

    def _ours(self, name: str) -> bool:
        return name.startswith(self.warm_prefix) if name.startswith(WARM) else name.startswith(PREFIX)

    async def nodes(self) -> tuple[Node, ...] | None:
        query = "detail=true&limit=10000&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
        answer = self._check(await self._ask("GET", f"/api/v0/nodes?{query}"), "list nodes")
        found = answer.json()["data"]["result"]["result"]
        nodes = tuple(_node(n.get("resources_total") or {}) for n in found if n.get("state") == "ALIVE")
        if not nodes:  # a head that just came up; as an unknown capacity it would be one without a limit
            raise ComputeFailed("The Ray cluster has no living node yet.")
        return nodes

    # --- warm drivers ---

    async def keep_warm(self, count: int, driving: Collection[str] = ()) -> None:
        seen = {n: d for n, d in (await self.seen()).items() if n.startswith(WARM)}
        known, idle = await self.drivers.known(), await self.drivers.idle()
        live = {n for n, d in seen.items() if d.state != "ended"}
        await self.drivers.forget(known - live)
        await self._stop_stuck(live - known - set(driving))
        for _ in range(min(count - len(set(idle) & live) - len(self.starting), MOST_STARTS)):
            name = self.warm_prefix + new_id("drv").removeprefix("drv_")
            await self._submit(name, f"warm --name {name}", {"warm": "true"})
        await self._shrink(len(idle) - count)

    async def _stop_stuck(self, starting: set[str]) -> None:
        """By how long we have seen each one not to be up, and not by its age: a Redis that lost its memory knows none
        of them, until they say again that they are up."""
        now = time.monotonic()
        self.starting = {name: self.starting.get(name, now) for name in starting}
        for name, since in self.starting.items():
            if now - since > STUCK_SECONDS:
                log.warning("a warm driver did not come up; stopped", driver=name)
                await self.stop(name)

    async def _shrink(self, surplus: int) -> None:
        """Idle drivers that have been too many for long go, one at a time."""
        if surplus <= 0:
            self.surplus_since = None
        elif self.surplus_since is None:
            self.surplus_since = time.monotonic()
        elif time.monotonic() - self.surplus_since > SURPLUS_SECONDS:
            log.info("a spare driver is asked to leave", driver=await self.drivers.dismiss())

    async def close(self) -> None:
        if self.tidying is not None:
            self.tidying.cancel()
        await self.client.aclose()

    # --- the dashboard ---

    async def _submit(self, name: str, arguments: str, metadata: Mapping[str, str]) -> None:
        body: dict[str, Any] = {
            "entrypoint": f"exec python -m jos.driver {arguments}",
            "submission_id": name,
            "metadata": dict(metadata),
        }
        if self.environment:
            body["runtime_env"] = {"env_vars": self.environment}
        answer = await self._ask("POST", "/api/jobs/", json=body, timeout=SUBMIT_TIMEOUT)
        if answer.status_code >= 400 and "already exists" in answer.text:
            return
        self._check(answer, f"submit {name}")
        log.info("driver submitted", driver=name)

    async def _ask(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            return await self.client.request(method, path, **options)
        except httpx2.TransportError as error:
            raise ComputeFailed(
                f"The Ray dashboard at {self.client.base_url} cannot be reached: {str(error) or type(error).__name__}.",
                suggestion="Check that the cluster runs, and JOS_RAY_DASHBOARD.",
            ) from error

    def _check(self, answer: httpx2.Response, what: str) -> httpx2.Response:
        if answer.status_code >= 400:
            said = next(iter(answer.text.strip().splitlines()[-1:]), "")[:500]
            raise ComputeFailed(
                f"The Ray dashboard at {self.client.base_url} refused to {what}: {answer.status_code} {said}",
                suggestion="If it says 401, set RAY_AUTH_MODE and RAY_AUTH_TOKEN as the cluster has them."
                if answer.status_code == 401
                else None,
            )
        return answer

    def _tidy(self, jobs: Iterable[Mapping[str, Any]]) -> None:
        """Has Ray forget drivers that ended long ago."""
        before = (time.time() - FORGET_SECONDS) * 1000
        old = [
            j["submission_id"] for j in jobs if j["status"] not in _STATES and (j.get("end_time") or before) < before
        ]
        if old and (self.tidying is None or self.tidying.done()):
            self.tidying = asyncio.create_task(self._forget(old[:20]))

    async def _forget(self, names: list[str]) -> None:
        for name in names:
            try:
                await self._ask("DELETE", f"/api/jobs/{name}")
            except ComputeFailed as error:
                log.info("old drivers stay on Ray's list for now", error=str(error))
                return


def passed_environment(names: str) -> dict[str, str]:
    """The variables of JOS_PASS_ENV, comma-separated, that are set here; those with a minus before them never are."""
    wanted = (name.strip() for name in names.split(","))
    return {name: os.environ[name] for name in wanted if name in os.environ}


def authorization() -> dict[str, str]:
    """As Ray's own clients have it."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN")
    if token is None:
        token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser().read_text().strip()
    return {"Authorization": f"Bearer {token}"}


def _seen(job: Mapping[str, Any]) -> DriverSeen:
    state = _STATES.get(job["status"], "ended")
    started = job.get("start_time")
    return DriverSeen(
        job["submission_id"],
        state,
        (job.get("message") or "") if state == "ended" else "",
        job.get("driver_exit_code") if state == "ended" else None,
        datetime.fromtimestamp(started / 1000, UTC) if started else None,
    )


def _node(offered: Mapping[str, float]) -> Node:
    """Ray's names of resources as JOS has them: cpu, memory, gpu, gpu:H100."""
    found = {
        ours: float(offered[theirs]) for theirs, ours in (("CPU", "cpu"), ("memory", "memory")) if theirs in offered
    }
    if gpus := float(offered.get("GPU", 0)):
        found["gpu"] = gpus
        for name in offered:
            if name.startswith("accelerator_type:"):
                found[f"gpu:{name.partition(':')[2]}"] = gpus
    return Node(found)
