"""Connecting to Ray: the cluster we are told of, the one we run in, or a small one of our own.

May import: ray, jos.core. Tests: tests/integration/test_driver.py.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from dataclasses import dataclass

from jos.core.errors import ComputeFailed
from jos.core.model import Resources


@dataclass(frozen=True)
class Cluster:
    own: bool  # started by this process, and ends with it
    cpus: float
    gpus: float
    nodes: int
    largest_cpus: float  # of one node: an index must fit on one

    def device(self, resources: Resources) -> str:
        return "cuda" if self.gpus and resources.gpu.count else "cpu"

    def misfit(self, resources: Resources) -> str | None:
        """Why no node as they are now could ever hold an index; an autoscaler may still bring one that can."""
        if resources.cpu > self.largest_cpus:
            return f"an index needs {resources.cpu:g} CPUs, the largest node has {self.largest_cpus:g}"
        if resources.gpu.required and resources.gpu.count > self.gpus:
            return f"an index needs {resources.gpu.count:g} GPUs, the cluster has {self.gpus:g}"
        return None


def connect(address: str | None) -> Cluster:
    """Connects this process to Ray. `address`: `host:port`, `auto`, or None for the cluster this process runs in
    (RAY_ADDRESS, as under `ray job submit`), else an own one. Raises ComputeFailed with what to check."""
    # Ray's default is about to change, and a client and a head that disagree end in a bare 401
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():  # a second attempt in this process
        return _look(own=address is None and "RAY_ADDRESS" not in os.environ)
    wanted = address or os.environ.get("RAY_ADDRESS")
    own = wanted is None
    try:
        _knock(wanted or "")
        ray.init(
            address="local" if own else wanted,
            include_dashboard=False if own else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            namespace="jos",
        )
    except (OSError, RuntimeError, ValueError) as error:
        where = f"at {wanted}" if wanted else "on this machine"
        raise ComputeFailed(
            f"Ray {where} cannot be reached: {error}.",
            suggestion="Check RAY_ADDRESS and that `ray status` works from here; `jos doctor` tells more.",
        ) from error
    return _look(own)


def _knock(address: str) -> None:
    """Ray itself waits more than a minute for a head that is not there. Raises OSError if nobody listens."""
    host, _, port = address.rpartition(":")
    if not host or "://" in address or not port.isdigit():
        return  # `auto`, `local`, a Ray Client URL
    for seconds in (1.0, 2.0, None):  # a head that is just starting
        try:
            socket.create_connection((host.strip("[]"), int(port)), 5.0).close()
            return
        except OSError:
            if seconds is None:
                raise
            time.sleep(seconds)


def _look(own: bool) -> Cluster:
    import ray

    resources = ray.cluster_resources()
    nodes = [n["Resources"].get("CPU", 0.0) for n in ray.nodes() if n["Alive"]]
    return Cluster(own, resources.get("CPU", 0.0), resources.get("GPU", 0.0), len(nodes), max(nodes, default=0.0))


def disconnect() -> None:
    """Leaves the cluster, or ends our own. Left to the interpreter's exit, Ray ends its processes before its own
    client, which then waits some 15 s for them."""
    if "ray" in sys.modules:
        import ray

        ray.shutdown()
