"""The controller's numbers, and the small HTTP server that shows them: /metrics for Prometheus, /healthz for probes.

May import: prometheus_client. Tests: tests/integration/test_controller_chores.py. For people: docs/controller.md.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter as Tally
from collections.abc import Callable, Iterable
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from jos.core.model import Job, Status
from jos.core.snapshot import Waiting
from jos.launch.base import DriverSeen

_WAITS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400)
_PLANS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"jos_{name}", text, labels, registry=registry)

        self.leader = gauge("controller_leader", "1 on the controller that leads.")
        self.cluster = gauge("cluster_answers", "1 while the cluster answers.")
        self.depth = gauge("queue_depth", "Jobs that wait.", "queue")
        self.oldest = gauge("queue_oldest_seconds", "How long the first in line waits already.", "queue")
        self.jobs = gauge("jobs", "Jobs that are not over, or whose driver has not left.", "status")
        self.drivers = gauge("drivers", "Driver processes that the launcher knows.", "state")
        self.tasks = gauge("tasks_per_second", "Tasks committed per second, of all jobs together.")
        self.utilisation = gauge("index_utilisation", "The share of time that indexes compute, 0 to 1.")
        self.granted = gauge("indexes_granted", "Indexes that running jobs may use.")
        self.admitted = Counter("jos_admissions", "Attempts admitted.", ["queue"], registry=registry)
        self.done = Counter("jos_tasks", "Tasks committed, of all jobs together.", registry=registry)
        self.commits = Counter("jos_commits", "Spans of tasks written to commit logs.", registry=registry)
        self.preempted = Counter("jos_preemptions", "Attempts told to leave for another job.", registry=registry)
        self.gone = Counter("jos_drivers_lost", "Attempts whose driver left without a last word.", registry=registry)
        self.errors = Counter("jos_loop_errors", "Failed steps of the controller's loops.", ["loop"], registry=registry)
        self.waited = Histogram(
            "jos_admission_seconds", "From queued (or the end of its back-off) to admitted.", buckets=_WAITS,
            registry=registry,
        )  # fmt: skip
        self.planning = Histogram("jos_plan_seconds", "Making one plan.", buckets=_PLANS, registry=registry)

    def failed(self, loop: str) -> None:
        self.errors.labels(loop).inc()

    def look(
        self, jobs: Iterable[Job], waiting: Iterable[Waiting], drivers: Iterable[DriverSeen], now: datetime
    ) -> None:
        """Takes the gauges anew; a queue without jobs is not shown. What stands in the cluster's own queue is no driver
        that starts."""
        for status, count in ({s: 0 for s in Status if not s.terminal} | Tally(job.status for job in jobs)).items():
            self.jobs.labels(status.value).set(count)
        states = Tally(driver.state for driver in drivers if not driver.suspended)
        for state, count in ({"starting": 0, "running": 0, "ended": 0} | states).items():
            self.drivers.labels(state).set(count)
        self.depth.clear()
        self.oldest.clear()
        depth: Tally[str] = Tally()
        first: dict[str, datetime] = {}
        for one in waiting:
            depth[one.queue] += 1
            first[one.queue] = min(first.get(one.queue, one.queued_at), one.queued_at)
        for queue, count in depth.items():
            self.depth.labels(queue).set(count)
            self.oldest.labels(queue).set(max(0.0, (now - first[queue]).total_seconds()))


async def serve(host: str, port: int, metrics: Metrics, healthy: Callable[[], bool]) -> asyncio.Server:
    """Answers GET /metrics and /healthz; closes each connection after its answer."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError, ValueError, asyncio.LimitOverrunError):
            async with asyncio.timeout(5):
                line = await reader.readline()
                while (await reader.readline()).strip():
                    continue  # headers
                writer.write(_response(line.decode("latin-1").split(" "), metrics, healthy))
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    return await asyncio.start_server(answer, host, port)


def _response(request: list[str], metrics: Metrics, healthy: Callable[[], bool]) -> bytes:
    path = request[1].partition("?")[0] if len(request) > 1 and request[0] == "GET" else ""
    status, kind, body = "404 Not Found", "text/plain", b"There are /metrics and /healthz.\n"
    if path == "/metrics":
        status, kind, body = "200 OK", CONTENT_TYPE_LATEST, generate_latest(metrics.registry)
    elif path == "/healthz":
        status, body = ("200 OK", b"ok\n") if healthy() else ("503 Service Unavailable", b"not healthy\n")
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
