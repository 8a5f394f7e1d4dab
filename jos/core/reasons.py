"""Why a job waits, in words for people. May import: stdlib, jos.core. Tests: tests/unit/test_admission.py."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from jos.core.capacity import CLUSTER, Amounts, Lack, Limits, Shape
from jos.core.commands import Reason
from jos.core.model import utc
from jos.core.queues import QueueConfig


def never_fits(limits: Limits, queue: str, shape: Shape) -> tuple[str, str] | None:
    """Why a job of this shape cannot be in line at all, as things are configured."""
    if verdict := closed(limits.config, queue):
        return verdict
    if name := limits.never(queue, shape):
        most = limits.most(queue, name)
        message = f"One index needs {amounts(shape.needs)}; queue {queue} may use {amount(name, most)} at most."
        return Reason.EXCEEDS_QUOTA, message
    if shape.places < 1:
        return Reason.NO_NODE_FITS, f"One index needs {amounts(shape.needs)} on one node, and no node has that."
    return None


def closed(config: QueueConfig, queue: str) -> tuple[str, str] | None:
    """Why nothing of this queue can begin, as an operator has it."""
    known = config.queues.get(queue)
    if known is None:
        return Reason.QUEUE_STOPPED, f"Queue {queue} is not configured any more; an operator must add it again."
    if known.stopped:
        return Reason.QUEUE_STOPPED, f"An operator stopped queue {queue}; it goes on when it is started again."
    return None


def waits_first(not_before: datetime | None, holds_capacity: bool, now: datetime) -> tuple[str, str] | None:
    """Why a job cannot be in line yet: through something of its own."""
    if not_before is not None and not_before > now:
        return Reason.WAITING_FOR_BACKOFF, f"The next attempt may start at {utc(not_before)}."
    if holds_capacity:
        return Reason.WAITING_FOR_DRIVER, "The driver of its last attempt has not left yet."
    return None


def lacking(shape: Shape, lack: Lack) -> tuple[str, str]:
    reason = Reason.CLUSTER_FULL if lack.where == CLUSTER else Reason.QUOTA_EXHAUSTED
    if lack.name == "places":
        return reason, f"One index needs {amounts(shape.needs)}; the nodes hold {lack.limit:g} such, and all are taken."
    free = amount(lack.name, max(0.0, lack.free))
    where = "free in the cluster" if lack.where == CLUSTER else f"left in {lack.where}"
    return reason, f"One index needs {amounts(shape.needs)}; {free} of {amount(lack.name, lack.limit)} is {where}."


def free_but_kept(shape: Shape, lacks: Sequence[Lack]) -> tuple[str, str]:
    """It is free, but promised to others; no lacks: it would have to be borrowed from somebody with a claim."""
    if not lacks:
        message = f"One index needs {amounts(shape.needs)}, partly borrowed, and jobs with a claim on that wait too."
        return Reason.CLAIMED, message
    reason = Reason.CLUSTER_FULL if lacks[0].where == CLUSTER else Reason.QUOTA_EXHAUSTED
    return reason, f"One index needs {amounts(shape.needs)}; what is free is kept for jobs that are before it."


def amounts(needs: Amounts) -> str:
    """`4 CPUs, 16 GB and 1 H100`."""
    typed = any(name.startswith("gpu:") for name in needs)
    words = [amount(name, number) for name, number in needs.items() if not (typed and name == "gpu")]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def amount(name: str, number: float) -> str:
    if name == "memory":
        return f"{number / 1e9:.3g} GB"
    word = "CPU" if name == "cpu" else name.partition(":")[2] or "GPU"
    return f"{number:g} {word}" if number == 1 or word not in ("CPU", "GPU") else f"{number:g} {word}s"
