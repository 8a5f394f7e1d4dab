"""The same classification without JOS: `python -m benchmarks.classify_rivals NAME JOB.json OUT`, one JSON line out.

All use the worker's own functions (actors.machine_state). `bare`: two processes, each doing plan, read, compute and
write for every second file: nothing can be faster on two CPUs. `fused`: Ray Data hands whole files to two actors that
do the same. `staged`: Ray Data reads, cuts windows, classifies in two actors and writes, each its own stage.
Steady: from both workers being set up (Ray Data: from its first batch) to the end.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WORKERS = 2


def source(path: str, **metadata: str) -> Any:
    from jos.storage.source import FileSource, stat_input

    num_bytes, fingerprint = stat_input(path)
    return FileSource(f"inp_{Path(path).stem}", Path(path).name, path, num_bytes, fingerprint, metadata)


def worker_of(job: dict[str, Any]) -> Any:
    """A worker as an index makes it, without an index."""
    from actors.machine_state import N_SHOTS, MachineStateWorker
    from jos.worker import Context

    shots = [source(path, **{"class": state}) for state, path in job["shots"].items()]
    worker = MachineStateWorker()
    worker.context = Context(
        job["config"], 0, job.get("device", "cpu"), 1, {N_SHOTS: shots}, lambda *_: None, stopping=threading.Event()
    )
    worker.setup()
    return worker


def do_file(worker: Any, path: str, out: str) -> int:
    """One input from CSV to CSV, as an index does it, one step after the other; windows done."""
    from jos.worker import Span

    one = source(path)
    plan = worker.plan(one)
    with (Path(out) / f"{Path(path).stem}.csv").open("wb") as file:
        file.write(plan.header)
        for at, hint in enumerate(plan.hints):
            span = Span(plan.bounds[at], plan.bounds[at + 1], hint, plan.bounds[at], plan.bounds[at + 1])
            data = worker.read(one, span)
            size = worker.batch_size
            results = [worker.compute(data[i : min(i + size, len(span))]) for i in range(0, len(span), size)]
            file.write(worker.write(one, span, data, results).body)
        file.flush()
        os.fsync(file.fileno())
    return int(plan.tasks)


# --- the bare loop ------------------------------------------------------------------------------------


def _loop(job: dict[str, Any], files: list[str], out: str, ready: Any, told: Any) -> None:
    worker = worker_of(job)
    ready.wait()
    began = time.monotonic()
    done = sum(do_file(worker, path, out) for path in files)
    told.put((done, began, time.monotonic()))


def bare(job: dict[str, Any], out: str) -> dict[str, float]:
    context, workers = multiprocessing.get_context("spawn"), job.get("workers", WORKERS)
    ready, told = context.Barrier(workers), context.Queue()
    shares = [job["files"][n::workers] for n in range(workers)]
    processes = [context.Process(target=_loop, args=(job, share, out, ready, told)) for share in shares]
    for process in processes:
        process.start()
    ends = [told.get() for _ in processes]
    for process in processes:
        process.join()
    began, ended = min(e[1] for e in ends), max(e[2] for e in ends)
    return {"windows": sum(e[0] for e in ends), "steady": ended - began, "began": began, "ended": ended}


# --- Ray Data -----------------------------------------------------------------------------------------


class Fused:
    """A whole file a call."""

    def __init__(self, job: dict[str, Any], out: str) -> None:
        self.worker, self.out = worker_of(job), out

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        began = time.monotonic()
        windows = [do_file(self.worker, str(path), self.out) for path in batch["path"]]
        return {"windows": np.array(windows), "began": np.full(len(windows), began)}


def fused(job: dict[str, Any], out: str) -> dict[str, float]:
    import ray

    paths = ray.data.from_items([{"path": path} for path in job["files"]])
    done = paths.map_batches(
        Fused,
        fn_constructor_args=(job, out),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=WORKERS),
        num_cpus=1,
    ).take_all()
    ended = time.monotonic()
    return {"windows": sum(d["windows"] for d in done), "steady": ended - min(d["began"] for d in done)}


class Cut:
    """The rows of a file -> its windows, scaled, each an array of its own."""

    def __init__(self, job: dict[str, Any]) -> None:
        import numpy as np

        from actors.machine_state import Settings, read_references
        from actors.scaling import Scaling

        self.settings = Settings.of(job["config"])
        self.stamp = str(self.settings.timestamp_column)
        shots = [source(path, **{"class": state}) for state, path in job["shots"].items()]
        found = read_references(shots, self.settings)
        self.scaling = Scaling.of(np.concatenate([rows for files in found.values() for rows in files], axis=1))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        from actors.csv_windows import Windows

        rows = np.stack([batch[name] for name in self.settings.data_columns]).astype(float)
        windows = Windows(self.scaling.apply(rows), self.settings.window_size, self.settings.step_size)
        count = len(windows)
        stamps = batch[self.stamp][: count * self.settings.step_size : self.settings.step_size]
        return {self.stamp: stamps, "window": np.ascontiguousarray(windows[0:count])}


class Classify:
    """A batch of windows -> time stamp, class and scores."""

    def __init__(self, job: dict[str, Any], out: str) -> None:
        self.worker, self.marks = worker_of(job), Path(out)
        self.stamp = self.worker.settings.timestamp_column
        self.began = False

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        if not self.began:
            self.began = True
            (self.marks / f"began-{os.getpid()}").write_text(str(time.monotonic()))
        state, score = self.worker.compute(np.asarray(batch["window"]))
        names = np.array(self.worker.classes)[state]
        scores = {f"p_{name}": np.round(score[:, n], 4) for n, name in enumerate(self.worker.classes)}
        return {self.stamp: batch[self.stamp], "Prediction": names, **scores}


def staged(job: dict[str, Any], out: str) -> dict[str, float]:
    import ray
    from pyarrow import csv, string

    cut = Cut(job)  # learned once, sent to the tasks
    text = csv.ConvertOptions(column_types={cut.stamp: string()})
    rows = ray.data.read_csv(job["files"], convert_options=text, override_num_blocks=len(job["files"]))
    windows = rows.map_batches(cut.__call__, batch_size=None)
    pool = ray.data.ActorPoolStrategy(size=WORKERS)
    found = windows.map_batches(Classify, fn_constructor_args=(job, out), batch_size=1024, compute=pool, num_cpus=0.5)
    found.write_csv(str(Path(out) / "csv"))
    ended = time.monotonic()
    began = min(float(mark.read_text()) for mark in Path(out).glob("began-*"))
    files = list((Path(out) / "csv").rglob("*.csv"))
    count = sum(len(path.read_bytes().splitlines()) - 1 for path in files)
    return {"windows": count, "steady": ended - began}


RIVALS: dict[str, Callable[[dict[str, Any], str], dict[str, float]]] = {"bare": bare, "fused": fused, "staged": staged}


@contextlib.contextmanager
def connected(name: str) -> Iterator[None]:
    if name == "bare":
        yield
        return
    import ray

    address = os.environ.get("RAY_ADDRESS", "local")
    own = {"include_dashboard": False} if address == "local" else {}
    ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    yield
    ray.shutdown()


def main() -> None:
    name, job, out = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), sys.argv[3]
    Path(out).mkdir(parents=True)
    with connected(name):
        result = RIVALS[name](job, out)
    print(json.dumps({n: float(v) for n, v in result.items()}))


if __name__ == "__main__":
    main()
