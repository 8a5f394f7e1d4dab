"""`jos run` and `jos resume`: a job with the local engine, watched to its end; `jos demo` and `jos doctor`.

Where `jos up` runs on the same home and store, it drives every job there: then a job is made here, and watched.
May import: jos.engine, jos.display, jos.terminal. Tests: tests/e2e/test_doors.py, tests/e2e/test_up.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from jos import profiles
from jos.core.errors import BadRequest, ComputeFailed
from jos.core.model import Checkpoint, Job, JobRequest, Status
from jos.display import Watch, summary
from jos.finetune import CLASSIFY
from jos.request import from_options, read_request
from jos.settings import Settings
from jos.shown.look import metrics_line
from jos.terminal import (
    EXIT_FAILED,
    EXIT_FAULT,
    EXIT_UNFINISHED,
    AsJson,
    JobId,
    command_line,
    emit,
    err,
    opened,
    out,
    told,
)

if TYPE_CHECKING:
    from jos import wire
    from jos.engine import Engine
    from jos.launch.local import LocalDriver

RunDemo = Callable[["Engine", Path, int, Console, Any], bool]  # jos.demo.run_demo and its like

# The options that make a request, the same for `run` and `submit`.
RequestFile = Annotated[Path | None, typer.Argument(help="A job.yaml; see pipelines/*/examples.")]
PipelineKey = Annotated[str | None, typer.Option(help="Instead of a file: the pipeline's key.")]
PipelineVersion = Annotated[str | None, typer.Option(help="Its version; default: the latest published.")]
JobName = Annotated[str | None, typer.Option(help="A name for the job.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="component.path=value, e.g. worker.config.batch_size=64; repeat.")
]
Parallelism = Annotated[int | None, typer.Option(min=1, help="The most indexes (actors) at once.")]
Priority = Annotated[int | None, typer.Option(help="Default: the pipeline's.")]


def resolve_id(engine: Engine, job_id: str) -> str:
    if job_id != "last":
        return job_id
    _, newest = engine.jobs(limit=1)
    if not newest:
        raise BadRequest("there is no job yet.", suggestion="Create one with `jos run`.")
    return newest[0].id


def job_json(job: Job) -> dict[str, Any]:
    return job.model_dump(mode="json", exclude={"timeouts", "retry_policy"})


def service_drives(engine: Engine) -> bool:
    """Whether a `jos up` drives the jobs of this store that wait in a queue: a driver of ours would only lose to it."""
    server = profiles.running(engine.settings)
    return server is not None and server.get("redis_url") == engine.settings.redis_url


def run(
    file: RequestFile = None,
    pipeline: PipelineKey = None,
    version: PipelineVersion = None,
    name: JobName = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="PORT=FILE[,class=NAME]; repeat; FILE may be a glob, a URL, or ckp_…."),
    ] = None,
    sets: Sets = None,
    parallelism: Parallelism = None,
    priority: Priority = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return at once; follow with `jos events JOB --follow`.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a job and watch it. Ctrl-C stops it cleanly; `jos resume JOB` goes on from there."""
    with opened(as_json) as engine:
        request = request_of(file, pipeline, version, name, inputs or [], sets or [], parallelism, priority)
        job = engine.submit(request)
        drive(engine, job.id, as_json, detach)


def request_of(
    file: Path | None,
    pipeline: str | None,
    version: str | None,
    name: str | None,
    inputs: list[str],
    sets: list[str],
    parallelism: int | None,
    priority: int | None,
) -> JobRequest:
    if (file is None) == (pipeline is None):
        raise BadRequest(
            "give either a job.yaml or --pipeline with --input.",
            suggestion="See `jos run --help`, `jos submit --help`.",
        )
    if parallelism is not None:
        sets = [*sets, f"worker.parallelism={parallelism}"]
    if pipeline is not None:
        return from_options(pipeline, version, name, inputs, sets, priority)
    assert file is not None
    return read_request(file, inputs=inputs, sets=sets, name=name, version=version, priority=priority)


def resume(
    job: JobId,
    take_over: Annotated[bool, typer.Option("--take-over", help="Do not ask whether its last driver lives.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return at once.")] = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a job where its commit log ends: after Ctrl-C, a failure, a cancel, or a kill of anything."""
    with opened(as_json) as engine:
        job_id = resolve_id(engine, job)
        if engine.get(job_id).status is Status.COMPLETED:
            _result(engine, engine.get(job_id), as_json)
            return
        total, _ = engine.events(job_id, limit=1)
        drive(engine, job_id, as_json, detach, take_over=take_over, after=total)


def drive(engine: Engine, job_id: str, as_json: bool, detach: bool, *, take_over: bool = False, after: int = 0) -> None:
    """Starts a driver and watches it to the job's end."""
    if engine.get(job_id).queue and service_drives(engine):
        _watch_service(engine, job_id, as_json, detach, after)
        return
    driver = engine.start(job_id, take_over=take_over)
    if detach:
        if as_json:
            emit({"id": job_id, "pid": driver.process.pid, "log": str(driver.log)})
        else:
            out.print(
                f"{job_id} runs in process {driver.process.pid}; follow it with [bold]jos events {job_id} --follow[/]"
            )
        return
    screen = err if as_json else out
    screen.print(f"job [bold]{job_id}[/]  (driver's log: {driver.log})", highlight=False)
    watch = Watch(engine, screen, gone=lambda: driver.process.poll() is not None)
    try:
        ended = watch.run(job_id, after)
    except KeyboardInterrupt:
        ended = _stop(engine, driver, job_id, screen)
    driver.process.wait()
    _result(engine, ended, as_json, driver)


def _watch_service(engine: Engine, job_id: str, as_json: bool, detach: bool, after: int) -> None:
    """The same for a job that the service on this home drives. Ctrl-C only ends the watching."""
    if engine.get(job_id).status in (Status.FAILED, Status.CANCELLED):
        engine.retry(job_id)
    follow = command_line(engine.settings, f"events {job_id} --follow")
    if detach:
        if as_json:
            emit({"id": job_id})
        else:
            out.print(f"{job_id} is with the service that runs here; follow it with {follow}")
        return
    screen = err if as_json else out
    screen.print(f"job [bold]{job_id}[/]  (driven by the service that runs here)", highlight=False)
    try:
        ended = Watch(engine, screen, gone=lambda: False).run(job_id, after)
    except KeyboardInterrupt:
        screen.print(f"the job goes on; follow it with {follow}", highlight=False)
        raise typer.Exit(EXIT_UNFINISHED) from None
    _result(engine, ended, as_json)


def _stop(engine: Engine, driver: LocalDriver, job_id: str, screen: Console) -> Job:
    """Ctrl-C: let it commit what is in hand. A second Ctrl-C does not wait (nothing committed can be lost)."""
    screen.print("[yellow]stopping: committing what is in hand (Ctrl-C again to not wait)[/]")
    driver.process.send_signal(signal.SIGTERM)
    try:
        driver.process.wait(60)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        driver.process.kill()
        driver.process.wait()
    return engine.get(job_id)


def _result(engine: Engine, job: Job, as_json: bool, driver: LocalDriver | None = None) -> None:
    """Says how it ended and what to do next; sets the exit code."""
    live = engine.live(job.id)
    models = engine.checkpoints(job.id) if job.pipeline_type == "training" else []
    if as_json:
        record = {**job_json(job), "progress": live.data if live else {}}
        emit(record | ({"checkpoints": [m.model_dump(mode="json", exclude={"key"}) for m in models]} if models else {}))
    if job.status is Status.COMPLETED:
        if not as_json and models:
            out.print(summary(job))
            tell_model(models[-1], command_line(engine.settings, classify_line("run", models[-1].id)))
        elif not as_json:
            out.print(summary(job))
            out.print(f"outputs: {command_line(engine.settings, f'outputs {job.id} --download DIR')}", highlight=False)
            out.print(f"details: {command_line(engine.settings, f'show {job.id}')}", highlight=False)
        return
    err.print(summary(job))
    if driver is not None and not job.status.terminal and driver.process.returncode not in (0, 4):
        err.print(
            f"the driver ended with code {driver.process.returncode}; its log says:\n{driver.tail()}", markup=False
        )
    err.print(
        f"all committed work is safe; go on with {command_line(engine.settings, f'resume {job.id}')}", highlight=False
    )
    raise typer.Exit(EXIT_FAILED if job.status.terminal else EXIT_UNFINISHED)


def tell_model(model: Checkpoint | wire.Checkpoint, classify: str) -> None:
    """The best checkpoint of a training, and the command that uses it."""
    out.print(f"model: [bold]{model.id}[/] ({model.name}  {metrics_line(model.metrics)})", highlight=False)
    out.print(f"classify with it: {classify}", highlight=False)


def classify_line(verb: str, checkpoint_id: str) -> str:
    inputs = f"--input worker.inference=FILE --input worker.fine_tune_checkpoint={checkpoint_id}"
    return f"{verb} --pipeline {CLASSIFY} {inputs}"


def doctor(as_json: AsJson = False) -> None:
    """Check this machine: Ray, Redis, storage, GPU, and say what to do about what does not work."""
    from jos.doctor import examine

    findings = examine(Settings())
    if as_json:
        emit({"ok": all(f.state != "fail" for f in findings), "findings": [vars(f) for f in findings]})
    else:
        marks = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[bold red]fail[/]"}
        table = Table(box=None, show_header=False)
        for finding in findings:
            table.add_row(marks[finding.state], finding.name, finding.detail)
            if finding.advice:
                table.add_row("", "", f"[dim]→ {finding.advice}[/]")
        out.print(table)
    if any(f.state == "fail" for f in findings):
        raise typer.Exit(EXIT_FAULT)


def _demo_states() -> RunDemo:
    from jos.demo import run_demo

    return run_demo


def _demo_activity() -> RunDemo:
    from jos.demo_activity import run_demo

    return run_demo


def _demo_finetune() -> RunDemo:
    from jos.demo_finetune import run_finetune_demo

    return run_finetune_demo


DEMOS: dict[str, Callable[[], RunDemo]] = {
    "states": _demo_states,
    "activity": _demo_activity,
    "finetune": _demo_finetune,
}


def demo(
    name: Annotated[str, typer.Argument(help=f"Which: {', '.join(DEMOS)}.")] = "states",
    folder: Annotated[Path, typer.Option(help="Where the demo keeps its files.")] = Path("build/demo"),
    parallelism: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Real wrist-sensor recordings (BasicMotions) classified from one command, and the result scored: by neighbours
    (states), told in words to a language model (activity), or by a head that is trained first (finetune)."""
    from jos.engine import Engine

    with told():
        if name not in DEMOS:
            raise BadRequest(f"there is no demo {name!r}.", suggestion=f"There are: {', '.join(DEMOS)}.")
        run_demo = DEMOS[name]()
        settings = Settings()
        if "JOS_HOME" not in os.environ:
            settings = settings.model_copy(update={"home": folder.absolute() / "home"})
        with Engine(settings) as engine:
            scored = run_demo(engine, folder, parallelism, out, drive)
        if not scored:
            raise ComputeFailed("the demo's job gave no outputs to score.")
