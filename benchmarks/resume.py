"""Work done twice after a `kill -9` of the driver at half of the job, for JOS and for Ray Data.

    python -m benchmarks.resume [--rounds 3] [--small]

Every process appends a byte to a file for each record that it computes (tests/lab/counted_worker.py), so that work
redone = records computed in all - records in the job. Ray Data does the same to each record and writes files, once
run again from the start, once with its job-level checkpoint. Bar: JOS redoes at most the spans in flight.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import data, harness
from benchmarks.harness import LAB, Report, Spread, bar, bars, ray_head, rounds, sandbox, table

RECORDS, SPAN_RECORDS, SECONDS = 16_000, 100, 0.002
JOS, AGAIN, CHECKPOINT = "JOS", "Ray Data, run again", "Ray Data, job-level checkpoint"
sys.path.append(str(LAB))

from counted_worker import Counter, counted, shout  # noqa: E402


def kill_at_half(process: subprocess.Popen[Any], counts: Path, records: int) -> int:
    """Waits for half of the records, then ends the driver as the out-of-memory killer does."""
    deadline = time.monotonic() + 600
    while (done := counted(counts)) < records // 2:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the job was over before it was killed")
        time.sleep(0.01)
    harness.kill(process)
    while (now := counted(counts)) != done:  # its actors die with it; count what they still do
        done = now
        time.sleep(1.0)
    return int(done)


# --- JOS ----------------------------------------------------------------------------------------------


def of_jos(folder: Path, address: str, files: list[Path], records: int) -> dict[str, Any]:
    home = folder / f"jos-{time.monotonic_ns()}"
    counts, job_id = home / "counts", f"job_{time.monotonic_ns()}"
    home.mkdir()
    config = {"span_records": SPAN_RECORDS, "seconds": SECONDS, "folder": str(counts)}
    request = {
        "name": "shout",
        "pipeline_key": "counted-shout",
        "inputs": {"worker.data": [{"file_id": str(path)} for path in files]},
        "parameters": {"worker": {"parallelism": 2, "config": config}},
    }
    process, trace, _ = harness.start_job(folder, request, address, job_id)
    at_kill = kill_at_half(process, counts, records)
    in_flight = pushed(trace) - committed(folder, job_id)
    resumed = harness.finish_job(*harness.start_job(folder, {}, address, job_id))
    computed, answers = counted(counts), outputs(folder, job_id)
    assert sorted(answers) == list(range(records)), "an answer is missing or there twice"
    return {"at_kill": at_kill, "computed": computed, "in_flight": in_flight, "seconds": resumed.total}


def pushed(trace: Path) -> int:
    """Tasks that the killed driver had given to its indexes; the probe notes them as it goes."""
    return sum(int(line) for line in trace.with_suffix(".pushed").read_text().split())


def _log(folder: Path, job_id: str) -> Any:
    from jos.storage import open_storage
    from jos.storage.log import CommitLog

    return CommitLog.open(open_storage(str(folder / "home" / "storage")), f"org_local/jobs/{job_id}/")


def committed(folder: Path, job_id: str) -> int:
    return int(_log(folder, job_id).ledger.tasks_done)


def outputs(folder: Path, job_id: str) -> Iterator[int]:
    log = _log(folder, job_id)
    for one in log.ledger.inputs.values():
        for finished in one.finished.values():
            for line in log.storage.read(f"org_local/jobs/{job_id}/{finished.blob.key}").splitlines():
                yield json.loads(line)["id"]


# --- Ray Data -----------------------------------------------------------------------------------------


def ray_data(source: str, target: str, counts: str, checkpoint: str) -> None:
    """Runs in a process of its own: read, shout, write."""
    import ray
    from ray.data.checkpoint import CheckpointConfig

    ray.init(address="auto", log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": _paths()})
    if checkpoint:
        ray.data.DataContext.get_current().checkpoint_config = CheckpointConfig("id", checkpoint)

    class Shout:
        def __init__(self) -> None:
            self.counter = Counter(counts)

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            text = shout(row["text"], SECONDS)
            self.counter.add()
            return {"id": row["id"], "text": text}

    pool = ray.data.ActorPoolStrategy(size=2)
    ray.data.read_json(source, lines=True).map(Shout, compute=pool, num_cpus=0.5).write_json(target)


def _paths() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(LAB), os.environ.get("PYTHONPATH", "")])}


def of_ray_data(folder: Path, address: str, source: Path, records: int, checkpoint: bool) -> dict[str, Any]:
    home = folder / f"ray-{time.monotonic_ns()}"
    counts, target, points = home / "counts", home / "out", home / "checkpoint"
    if checkpoint:
        points.mkdir(parents=True)
    arguments = [str(source), str(target), str(counts), str(points) if checkpoint else ""]
    command = [sys.executable, "-m", "benchmarks.resume", "--ray-data", *arguments]
    env = {**os.environ, **harness.ALONE, "RAY_ADDRESS": address}
    quiet = {"cwd": harness.ROOT, "env": env, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    at_kill = kill_at_half(subprocess.Popen(command, **quiet), counts, records)  # type: ignore[call-overload]
    if not checkpoint:
        shutil.rmtree(target, ignore_errors=True)  # files of a run that did not end cannot be told apart
    began = time.monotonic()
    subprocess.run(command, check=True, timeout=900, **quiet)  # type: ignore[call-overload]
    lines = [json.loads(li)["id"] for p in target.rglob("*.json") for li in p.read_text().splitlines()]
    answers = {"rows": len(lines), "different": len(set(lines))}
    return {"at_kill": at_kill, "computed": counted(counts), "seconds": time.monotonic() - began, **answers}


# --- the report ---------------------------------------------------------------------------------------


def report(results: dict[str, list[dict[str, Any]]], records: int) -> None:
    redone = {name: Spread.of([r["computed"] - records for r in runs]) for name, runs in results.items()}
    rows = []
    for name, runs in results.items():
        at_kill = Spread.of([r["at_kill"] for r in runs])
        share = f"{100 * redone[name].median / at_kill.median:.1f} %"
        rows.append(
            [name, at_kill.text(0), redone[name].text(0), share, Spread.of([r["seconds"] for r in runs]).text(1)]
        )
    out = Report("resume", "Work done twice after kill -9 of the driver at half of the job", records < RECORDS)
    out.raw = {"records": records, "span_records": SPAN_RECORDS, "rounds": results}
    out.add(table(["", "computed at the kill", "computed again", "of what was done", "seconds to the end"], rows))
    runs = results[JOS]
    met = all(r["computed"] - records <= r["in_flight"] for r in runs)
    flying = Spread.of([r["in_flight"] for r in runs])
    out.add(
        f"JOS computes again at most the spans in flight (those were {flying.text(0)} records): {bar(met)}. "
        "Every record was in its outputs once."
    )
    wrong = {n: [r["rows"] for r in runs if r["rows"] != records] for n, runs in results.items() if n != JOS}
    for name, counts in wrong.items():
        if counts:
            out.add(f"{name}: rows in the files in the end {counts}, where there should be {records:,}.")
    out.add(
        f"{records:,} records of {1000 * SECONDS:g} ms in 8 files, two workers, spans of {SPAN_RECORDS}; medians of "
        f"{len(runs)} interleaved rounds (least..most). Computed: by any process, the killed driver's actors included. "
        "In flight: given to an index and not in the commit log."
    )
    out.write(lambda axes: bars(axes, redone, "records computed again"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a quarter of the records")
    parser.add_argument("--ray-data", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ray_data:
        ray_data(*arguments.ray_data)
        return
    records = RECORDS // 4 if arguments.small else RECORDS
    with sandbox() as folder, ray_head() as address:
        files = data.record_files(folder / "in", records)
        contenders: dict[str, Callable[[], dict[str, Any]]] = {
            JOS: partial(of_jos, folder, address, files, records),
            AGAIN: partial(of_ray_data, folder, address, folder / "in", records, False),
            CHECKPOINT: partial(of_ray_data, folder, address, folder / "in", records, True),
        }
        report(rounds(contenders, arguments.rounds), records)


if __name__ == "__main__":
    main()
