"""Sensor windows classified a second, CSV to CSV: JOS against the bare loop and Ray Data, staged and fused.

    python -m benchmarks.classify [--rounds 3] [--small]

All use the same worker functions on two workers with one thread each (benchmarks/classify_rivals.py says how).
Steady = once the workers are up; total = the whole process, with a Ray head up and without. Bars: steady at least 0.95
of the bare loop at both sizes; total at least twice as fast as staged, and ahead of fused, at both sizes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import data, harness
from benchmarks.harness import Report, Spread, bar, bars, ray_head, rounds, run_job, sandbox, table

JOS, BARE = "JOS", "bare loop, two processes"
FUSED, STAGED = "Ray Data, fused", "Ray Data, staged"
RIVALS = {BARE: "bare", FUSED: "fused", STAGED: "staged"}
LEAST_OF_BARE, TIMES_STAGED = 0.95, 2.0
SIZES = (50_000, 200_000)
Result = dict[str, float]


def of_jos(folder: Path, address: str | None, size: int, files: list[Path], shots: dict[str, Path]) -> Result:
    trace = run_job(folder, data.classify_request(size, files, shots), address)
    up = [when for name, when in trace.at.items() if name.startswith("index_up_")]
    return {"windows": size, "steady": trace.at["last_commit"] - sum(up) / len(up), "total": trace.total}


def of_rival(folder: Path, address: str | None, name: str, size: int, job: dict[str, Any]) -> Result:
    out = folder / f"out-{time.monotonic_ns()}"
    written = out.with_suffix(".json")
    written.write_text(json.dumps(job))
    env = {} if address is None else {"RAY_ADDRESS": address}
    began = time.monotonic()
    result = harness.contender("benchmarks.classify_rivals", name, str(written), str(out), env=env)
    total = time.monotonic() - began
    assert result["windows"] == size, f"{name} made {result['windows']:.0f} of {size} windows"
    shutil.rmtree(out)
    return {"windows": size, "steady": result["steady"], "total": total}


def contenders(folder: Path, address: str | None, size: int) -> dict[str, Callable[[], Result]]:
    files, shots = data.sensor_files(folder / f"in-{size}", size)
    job = {
        "files": [str(path) for path in files],
        "shots": {state: str(path) for state, path in shots.items()},
        "config": settings(data.classify_request("", [Path("any")], dict.fromkeys(data.STATES, Path("any")))),
    }
    found: dict[str, Callable[[], Result]] = {JOS: partial(of_jos, folder, address, size, files, shots)}
    for title, name in RIVALS.items():
        if name != "bare" or address is not None:  # the bare loop needs no Ray: one state is enough
            found[title] = partial(of_rival, folder, address, name, size, job)
    return found


def settings(asked: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a request's component with the pipeline's defaults, as JOS resolves it."""
    from jos.core import config
    from jos.core.model import JobRequest
    from jos.registry import Registry

    request = JobRequest.model_validate(asked)
    resolved = config.resolve(Registry().get(request.pipeline_key, None), request)
    return dict(resolved["worker"]["config"])


# --- the report ---------------------------------------------------------------------------------------


def spreads(results: dict[str, list[Result]], what: str) -> dict[str, Spread]:
    return {name: Spread.of([r["windows"] / r[what] for r in runs]) for name, runs in results.items()}


def verdicts(size: int, warm: dict[str, list[Result]], cold: dict[str, list[Result]]) -> list[str]:
    steady = spreads(warm, "steady")
    of_bare = steady[JOS].median / steady[BARE].median
    found = [f"{size:,} windows, steady: {of_bare:.3f} of the bare loop (at least {LEAST_OF_BARE}): "]
    found[0] += bar(of_bare >= LEAST_OF_BARE) + "."
    for state, runs in (("head up", warm), ("no head", cold)):
        total = {name: spread.median for name, spread in spreads(runs, "total").items()}
        staged, fused = total[JOS] / total[STAGED], total[JOS] / total[FUSED]
        found.append(
            f"{size:,} windows, total, {state}: {staged:.2f} × staged (at least {TIMES_STAGED:g}: "
            f"{bar(staged >= TIMES_STAGED)}), {fused:.2f} × fused (more than 1: {bar(fused > 1)})."
        )
    return found


def report(results: dict[int, tuple[dict[str, list[Result]], dict[str, list[Result]]]]) -> None:
    from actors.encoders import DEFAULT_ENCODER

    rows, texts, steady_all = [], [], {}
    for size, (warm, cold) in results.items():
        steady, total, without = spreads(warm, "steady"), spreads(warm, "total"), spreads(cold, "total")
        for name in warm:
            nothing = without[name].text(0) if name in without else "—"
            share = f"{steady[name].median / steady[BARE].median:.3f}"
            rows.append([f"{size:,}", name, steady[name].text(0), share, total[name].text(0), nothing])
            steady_all[f"{name}, {size // 1000}k"] = total[name]
        texts.extend(verdicts(size, warm, cold))
    out = Report("classify", "Windows classified a second, CSV to CSV, two workers", min(results) < SIZES[0])
    out.raw = {str(size): {"head_up": warm, "no_head": cold} for size, (warm, cold) in results.items()}
    head = ["windows", "", "steady", "of the bare loop", "total, head up", "total, no head"]
    out.add(table(head, rows), *texts)
    count = len(next(iter(next(iter(results.values()))[0].values())))
    out.add(
        f"Windows a second; medians of {count} interleaved rounds (least..most). {data.CHANNELS} channels, windows of "
        f"{data.WINDOW} rows, step 1, 8 files, encoder {DEFAULT_ENCODER}, one thread a worker. Steady: JOS "
        "from each index up (their mean: worker time counts from when there is a worker) to the last commit durable; "
        "bare loop from both workers set up; Ray Data from its first batch."
    )
    out.write(lambda axes: bars(axes, steady_all, "windows a second, whole process, Ray head up"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a tenth of the windows")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    arguments = parser.parse_args()
    sizes = [size // 10 for size in arguments.sizes] if arguments.small else arguments.sizes
    results = {}
    with sandbox() as folder:
        for size in sizes:
            with ray_head() as address:
                warm = rounds(contenders(folder, address, size), arguments.rounds)
            results[size] = warm, rounds(contenders(folder, None, size), arguments.rounds)
    report(results)


if __name__ == "__main__":
    main()
