"""No-op tasks through what JOS could have been built on: `python -m benchmarks.rivals NAME TASKS`, one JSON line out.

Each runs in a fresh process on two workers that are up before the clock starts (Ray Data: the clock starts with its
first batch). The work of a task is the same everywhere as in the lab's Noop worker: one turn of an empty loop.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Sequence

BATCH = 256
WORKERS = 2


def noop(batch: Sequence[int]) -> int:
    """As tests/lab/lab_workers.py: Noop.compute."""
    for _task in batch:
        pass
    return len(batch)


def batches(tasks: int) -> list[range]:
    return [range(at, min(at + BATCH, tasks)) for at in range(0, tasks, BATCH)]


def _actor_pool(work: Iterable[range], tasks: int) -> float:
    import ray
    from ray.util import ActorPool

    class Noop:
        def do(self, batch: range) -> int:
            return noop(batch)

    actors = [ray.remote(num_cpus=1)(Noop).remote() for _ in range(WORKERS)]
    ray.get([actor.do.remote(range(1)) for actor in actors])
    began = time.monotonic()
    done = sum(ActorPool(actors).map_unordered(lambda actor, batch: actor.do.remote(batch), work))
    seconds = time.monotonic() - began
    assert done == tasks
    return seconds


def actor_pool(tasks: int) -> float:
    return _actor_pool((range(at, at + 1) for at in range(tasks)), tasks)


def actor_pool_batched(tasks: int) -> float:
    return _actor_pool(batches(tasks), tasks)


def _ray_data(tasks: int, batch: int) -> float:
    import ray

    class Noop:
        def __call__(self, batch: dict) -> dict:  # type: ignore[type-arg]
            import numpy

            began = time.monotonic()
            return {"done": numpy.array([noop(batch["id"])]), "began": numpy.array([began])}

    # half a CPU an actor: two that take both CPUs leave none for the reading tasks, and it hangs for ever
    pool = ray.data.ActorPoolStrategy(size=WORKERS)
    data = ray.data.range(tasks).map_batches(Noop, batch_size=batch, compute=pool, num_cpus=0.5)
    done, began = 0, float("inf")
    for block in data.iter_batches(batch_size=None):
        done += int(block["done"].sum())
        began = min(began, float(block["began"].min()))
    seconds = time.monotonic() - began
    assert done == tasks
    return seconds


def ray_data_single(tasks: int) -> float:
    return _ray_data(tasks, 1)


def ray_data(tasks: int) -> float:
    return _ray_data(tasks, BATCH)


def pool_imap(tasks: int) -> float:
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        pool.map(noop, [range(1)] * 4 * WORKERS)
        began = time.monotonic()
        done = sum(pool.imap(noop, batches(tasks)))
        seconds = time.monotonic() - began
    assert done == tasks
    return seconds


RIVALS: dict[str, Callable[[int], float]] = {
    "actor-pool": actor_pool,
    "actor-pool-256": actor_pool_batched,
    "ray-data-1": ray_data_single,
    "ray-data-256": ray_data,
    "pool-imap": pool_imap,
}


def main() -> None:
    name, tasks = sys.argv[1], int(sys.argv[2])
    if name != "pool-imap":
        import ray

        ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    seconds = RIVALS[name](tasks)
    print(json.dumps({"steady": seconds}))


if __name__ == "__main__":
    main()
