"""The other side of benchmarks/kuberay.py, in a process of its own: a Kubernetes API server with the real schemas and
rules, and what lives behind it and in the store: RayJobs that run as soon as they are made, drivers that beat, users.

    python -m benchmarks.kuberay_site KUBECONFIG STORE_URL

Takes orders as JSON lines on stdin (`{"jobs": 1000}`, `{"changes": 5000, "rate": 50}`, `{"cpu": true}`,
`{"finish": true}`), each answered by a line of JSON. All times are of the monotonic clock, which the processes of a
machine share. May import: jos.core, jos.store, tests/lab.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kube.errors import ApiError
from kube.objects import Objects
from kube.server import Server

from benchmarks.kuberay import NAMESPACE, SENT_AT
from jos.core.commands import Completed, Started, Taken
from jos.core.errors import JosError
from jos.core.ids import new_id
from jos.core.model import EventDraft, Job, RetryPolicy
from jos.store.records import Mirror
from jos.store.redis import Store

BEAT = 5.0  # seconds between the heartbeats of one driver

Object = dict[str, Any]


def now() -> datetime:
    return datetime.now(UTC)


def job() -> Job:
    return Job(
        id=new_id("job"),
        org_id="org_bench",
        name="bench",
        pipeline_type="batch",
        pipeline_key="noop",
        pipeline_version="1.0.0",
        parameters={},
        queue="default",
        retry_policy=RetryPolicy(max_retries=1_000_000, backoff=0.05, backoff_max=0.05),
        created_at=now(),
        updated_at=now(),
        queued_at=now(),
    )


class Site:
    def __init__(self, objects: Objects, store: Store) -> None:
        self.objects, self.store = objects, store
        self.driving: dict[str, tuple[str, str]] = {}  # RayJob that runs -> (job, token)
        self.seq = 0
        self.made = 0
        self.gone = 0
        self.deaths: list[tuple[str, float]] = []
        self.pick = random.Random(1)
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        objects.subscribe(self._changed)

    def _changed(self, change: Any) -> None:
        if change.resource == "rayjobs" and change.type in ("ADDED", "DELETED"):
            self._loop.call_soon_threadsafe(self._came_or_went, change.type, change.obj)
        if change.resource == "pods" and change.type == "MODIFIED" and "deletionTimestamp" in change.obj["metadata"]:
            self._loop.call_soon_threadsafe(self._ends, change.obj["metadata"]["name"])

    def _came_or_went(self, kind: str, rayjob: Object) -> None:
        name = rayjob["metadata"]["name"]
        if kind == "DELETED":
            self.gone += 1
            self.driving.pop(name, None)
            return
        self.made += 1
        task = asyncio.create_task(self._live(name, rayjob))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _ends(self, pod: str) -> None:
        """As a kubelet does with a pod whose owner was deleted; else it would stay, and be known to controllers."""
        with suppress(ApiError):
            self.objects.delete("pods", NAMESPACE, pod, grace=0)

    async def _live(self, name: str, rayjob: Object) -> None:
        """KubeRay, the kubelet and Ray have done their part; the driver takes its attempt."""
        owner = rayjob["metadata"]["labels"]["jos.dev/job"], rayjob["metadata"]["annotations"]["jos.dev/token"]
        with suppress(ApiError, JosError):
            self._head(name, rayjob)
            info = {"startTime": now().isoformat()}
            self._status(name, jobDeploymentStatus="Running", jobStatus="RUNNING", rayJobInfo=info)
            await self.store.transact(owner[0], Taken(owner[1], rayjob["spec"]["jobId"], "n1", 1, name), now())
            await self.store.transact(owner[0], Started(owner[1], "n1", 1), now())
            self.driving[name] = owner

    def _head(self, name: str, rayjob: Object) -> None:
        mine = {"ray.io/cluster": f"{name}-c", "ray.io/node-type": "head"}
        labels = {**rayjob["metadata"]["labels"], **mine}
        reference = {k: rayjob["metadata"][k] for k in ("name", "uid")} | {"apiVersion": "ray.io/v1", "kind": "RayJob"}
        metadata = {"name": f"{name}-head", "namespace": NAMESPACE, "labels": labels, "ownerReferences": [reference]}
        containers = [{"name": "ray-head", "image": "jos:1"}]
        made = self.objects.create("pods", {"metadata": metadata, "spec": {"nodeName": "n1", "containers": containers}})
        ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        self.objects.replace_status("pods", made | {"status": ready})

    def _status(self, name: str, **told: Any) -> None:
        found = self.objects.get("rayjobs", NAMESPACE, name)
        status = {**found.get("status", {}), "rayClusterName": f"{name}-c", **told}
        self.objects.replace_status("rayjobs", found | {"status": status})

    # --- orders ---

    async def jobs(self, count: int) -> Object:
        """Until so many run."""
        for _ in range(count - len(self.driving)):
            await self._submit()
        while len(self.driving) < count:  # noqa: ASYNC110 (other processes do it)
            await asyncio.sleep(0.05)
        return {"running": len(self.driving)}

    async def _submit(self) -> None:
        await self.store.create(job(), [EventDraft(event_type="job.created", message="", created_at=now())])

    async def changes(self, count: int, rate: float) -> Object:
        """So many of them a second: of ten, eight that mean nothing, one head that dies, one job that completes while
        another comes."""
        self.deaths.clear()
        began = time.monotonic()
        for number in range(count):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            if not self.driving:
                continue
            name = self.pick.choice(list(self.driving))
            with suppress(ApiError, JosError):
                await self._change(name, number % 10)
        return {"deaths": self.deaths}

    async def _change(self, name: str, kind: int) -> None:
        if kind == 0:
            self.deaths.append((self.driving.pop(name)[0], time.monotonic()))
            self.objects.delete("pods", NAMESPACE, f"{name}-head", grace=0)
        elif kind == 5:
            owner, token = self.driving.pop(name)
            await self.store.transact(owner, Completed(token), now())
            self._status(name, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED", endTime=now().isoformat())
            await self._submit()
        else:
            patch = {"metadata": {"annotations": {SENT_AT: f"{time.monotonic()}"}}}
            self.objects.patch("rayjobs", NAMESPACE, name, patch)

    async def finish(self) -> Object:
        """All jobs complete; until nothing is left in the cluster."""
        for name in list(self.driving):
            owner, token = self.driving.pop(name)
            await self.store.transact(owner, Completed(token), now())
            self._status(name, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED", endTime=now().isoformat())
        while self.objects.list("rayjobs", NAMESPACE):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        return {"made": self.made, "gone": self.gone}

    async def beat(self) -> None:
        while True:
            self.seq += 1
            began = time.monotonic()
            for number, (owner, token) in enumerate(list(self.driving.values())):
                with suppress(JosError):
                    await self.store.mirror(owner, Mirror(token, self.seq, now()))
                if number % 20 == 19:
                    await asyncio.sleep(BEAT * 20 / max(len(self.driving), 20) / 2)
            await asyncio.sleep(max(0.1, BEAT - (time.monotonic() - began)))


async def main() -> None:
    kubeconfig, url = sys.argv[1:]
    objects = Objects(namespaces=("default", NAMESPACE), history=100_000)
    server = Server(objects)
    server.kubeconfig(Path(kubeconfig), namespace=NAMESPACE)
    async with await Store.open(url) as store:
        site = Site(objects, store)
        beating = asyncio.create_task(site.beat())
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 50, 1_000)  # its own pauses are nobody's that is measured
        print(json.dumps({"ready": True}), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            if "jobs" in order:
                answer = await site.jobs(order["jobs"])
            elif "cpu" in order:
                answer = {"cpu": time.process_time()}
            elif "changes" in order:
                answer = await site.changes(order["changes"], order["rate"])
            else:
                answer = await site.finish()
            print(json.dumps(answer), flush=True)
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
