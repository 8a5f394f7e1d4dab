"""From submitting a job to its first finished task, beside what Ray itself needs for as much.

    python -m benchmarks.startup [--rounds 5]

Cold: no Ray is running, `python -m jos.driver run job.yaml` starts one of its own. Warm: a Ray head is up, the driver
process is fresh. Ray itself: a fresh process that imports ray, connects, makes one actor that imports the same worker
module, and calls it once. Bar: warm JOS at most 1.5 s beyond that.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import data, harness
from benchmarks.harness import Report, Spread, bar, bars, ray_head, rounds, run_job, sandbox, table

MOST_BEYOND = 1.5
WORKERS = {"no-op": "", "machine state": "actors.machine_state"}
STEPS = ("imported", "submitted", "connected", "index_up", "planned", "first_push", "first_done")


def request(folder: Path, worker: str) -> dict[str, Any]:
    if worker == "no-op":
        made = harness.noop_request(folder, 256, 256)
    else:
        made = data.classify_request("256 windows", *data.sensor_files(folder / "csv", 256, files=1))
    made["parameters"]["worker"]["parallelism"] = 1  # as Ray itself has one actor
    return made


def jos(folder: Path, job: dict[str, Any], address: str | None) -> dict[str, Any]:
    trace = run_job(folder, job, address)
    steps = {name: round(trace.at[name] - trace.spawned, 3) for name in STEPS if name in trace.at}
    return {"first_task": trace.to_first_task, "total": trace.total, "steps": steps}


def ray_itself(module: str, address: str | None) -> dict[str, Any]:
    began = time.monotonic()
    result = harness.contender("benchmarks.startup", "--ray-itself", address or "local", "--module", module)
    return {"first_task": result["called"] - began, "total": time.monotonic() - began, "steps": result["steps"]}


def call_once(address: str, module: str) -> None:
    """Runs in a process of its own: all that a program on Ray needs before its first result."""
    began = time.monotonic()
    import ray

    steps = {"imported": time.monotonic() - began}
    ray.init(address=address, include_dashboard=None if address != "local" else False, log_to_driver=False)
    steps["connected"] = time.monotonic() - began

    class Once:
        def __init__(self, module: str) -> None:
            import importlib

            if module:
                importlib.import_module(module)

        def call(self) -> int:
            return 1

    assert ray.get(ray.remote(num_cpus=1)(Once).remote(module).call.remote()) == 1
    called = time.monotonic()
    ray.shutdown()
    print(json.dumps({"called": called, "steps": steps}))


def contenders(folder: Path, address: str) -> dict[str, Callable[[], dict[str, Any]]]:
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for worker, module in WORKERS.items():
        job = request(folder, worker)
        for state, where in (("warm", address), ("cold", None)):
            found[f"Ray itself, {worker}, {state}"] = partial(ray_itself, module, where)
            found[f"JOS, {worker}, {state}"] = partial(jos, folder, job, where)
    return found


def report(results: dict[str, list[dict[str, Any]]]) -> None:
    first = {name: Spread.of([r["first_task"] for r in runs]) for name, runs in results.items()}
    rows, verdicts = [], []
    for name, spread in first.items():
        beyond = ""
        if name.startswith("JOS"):
            own = first[name.replace("JOS", "Ray itself")]
            extra = spread.median - own.median
            beyond = f"{extra:+.2f}"
            if "warm" in name:
                verdicts.append(
                    f"{name}: {extra:+.2f} s beyond Ray (at most {MOST_BEYOND}: {bar(extra <= MOST_BEYOND)})."
                )
        rows.append([name, spread.text(2), beyond])
    out = Report("startup", "Seconds from submitting to the first finished task")
    out.raw = {"rounds": results}
    out.add(table(["", "seconds", "beyond Ray itself"], rows), *verdicts)
    steps = [n for n in first if n.startswith("JOS")]
    middles = [[s, *(f"{Spread.of([r['steps'][s] for r in results[n]]).median:.2f}" for n in steps)] for s in STEPS]
    out.add("Where it goes: seconds from the start of the process.", table(["", *steps], middles))
    count = len(next(iter(results.values())))
    out.add(f"Medians of {count} interleaved rounds (least..most); one index. Warm: Valkey and the Ray head are up.")
    out.write(lambda axes: bars(axes, first, "seconds to the first finished task"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ray-itself", metavar="ADDRESS", help=argparse.SUPPRESS)
    parser.add_argument("--module", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ray_itself:
        call_once(arguments.ray_itself, arguments.module)
        return
    with sandbox() as folder, ray_head() as address:
        results = rounds(contenders(folder, address), arguments.rounds)
    report(results)


if __name__ == "__main__":
    main()
