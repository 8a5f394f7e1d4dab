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

import structlog

from jos.core.errors import ComputeFailed
from jos.core.model import Resources

KEEP_SECONDS = 24 * 3600  # that a worker process started ahead waits to be used

log = structlog.get_logger()


@dataclass(frozen=True)
class Cluster:
    own: bool  # started by this process, and ends with it
    cpus: float
    gpus: float
    nodes: int
    largest_cpus: float  # of one node: an index must fit on one

    def device(self, resources: Resources) -> str:
        """A GPU that is required is asked for even where no living node has one: such a node may be on its way."""
        return "cuda" if resources.gpu.count and (self.gpus or resources.gpu.required) else "cpu"

    def room(self, resources: Resources) -> int:
        """How many indexes it holds at most as it is now, roughly; at least 1."""
        fits = self.cpus // resources.cpu
        if self.device(resources) == "cuda":
            fits = min(fits, self.gpus // resources.gpu.count)
        return max(1, int(fits))

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
    if (address or os.environ.get("RAY_ADDRESS", "")).startswith("127.0.0.1:"):
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # a head on loopback knows us by that address
    import ray

    if ray.is_initialized():  # a second attempt in this process
        return look(own=address is None and "RAY_ADDRESS" not in os.environ)
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
    return look(own)


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


def look(own: bool = False) -> Cluster:
    """The cluster that this process is connected to, as it is now."""
    import ray

    resources = ray.cluster_resources()
    nodes = [n["Resources"].get("CPU", 0.0) for n in ray.nodes() if n["Alive"]]
    return Cluster(own, resources.get("CPU", 0.0), resources.get("GPU", 0.0), len(nodes), max(nodes, default=0.0))


def prestart(indexes: int) -> None:
    """Asks Ray for so many worker processes of this job, started ahead of the indexes that will run in them: on
    this node, or where it offers no CPUs on one that does. An index is up in 0.1 s then and not in 1.5 s. Ray's
    libraries ask for this by a call of its own; where that fails, indexes start as they always do."""
    import grpc
    import ray
    from ray.core.generated import node_manager_pb2, node_manager_pb2_grpc

    context = ray.get_runtime_context()
    here = context.get_node_id()
    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
    nodes.sort(key=lambda n: n["NodeID"] != here)
    request = node_manager_pb2.PrestartWorkersRequest(
        job_id=bytes.fromhex(context.get_job_id()), num_workers=indexes, keep_alive_duration_secs=KEEP_SECONDS
    )
    request.runtime_env_info.serialized_runtime_env = context.get_runtime_env_string()
    for node in nodes[:1]:
        with grpc.insecure_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}") as channel:
            try:
                node_manager_pb2_grpc.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=5)
            except grpc.RpcError as error:
                log.info("no worker processes were started ahead", error=str(error.code()))


def connected() -> bool:
    """Whether this process still belongs to a living cluster: its node is there and alive. May hang while Ray
    looks for a head that is gone: to be asked in a thread, and given up after some seconds."""
    import ray

    try:
        here = ray.get_runtime_context().get_node_id()
        return any(n["NodeID"] == here and n["Alive"] for n in ray.nodes())
    except Exception as error:  # whatever Ray raises, it did not answer
        log.warning("ray does not answer", error=f"{type(error).__name__}: {error}")
        return False


def disconnect() -> None:
    """Leaves the cluster, or ends our own. Left to the interpreter's exit, Ray ends its processes before its own
    client, which then waits some 15 s for them."""
    if "ray" in sys.modules:
        import ray

        ray.shutdown()
