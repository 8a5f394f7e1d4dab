"""The command line. Every command takes --json; errors say what to do; exit codes: 0 good, 1 the job failed, 2 the
request or the set-up is at fault, 4 the job was left unfinished (`jos resume` goes on).

May import: everything below it. Tests: tests/e2e, tests/unit/test_docs.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from jos.cli_pipelines import pipelines_app, schema
from jos.core.errors import BadRequest, ComputeFailed
from jos.core.model import Event, Job, JobRequest, Progress, Status, utc
from jos.display import Watch, event_line, summary
from jos.engine import Engine
from jos.launch.local import LocalDriver
from jos.request import from_options, read_request
from jos.settings import Settings
from jos.terminal import (
    EXIT_FAILED,
    EXIT_FAULT,
    EXIT_UNFINISHED,
    AsJson,
    columns,
    command_line,
    emit,
    err,
    opened,
    out,
    told,
)

app = typer.Typer(
    help="JOS runs batch jobs over many files on Ray, and survives anything.\n\n"
    "Try `jos demo`, or `jos run job.yaml`. Settings come from JOS_HOME, JOS_REDIS_URL, JOS_STORAGE, "
    "JOS_RAY_ADDRESS, JOS_PIPELINES; without any, JOS keeps everything under ~/.jos and starts its own Valkey and Ray.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or `last` for the newest.")]


def resolve_id(engine: Engine, job_id: str) -> str:
    if job_id != "last":
        return job_id
    _, newest = engine.jobs(limit=1)
    if not newest:
        raise BadRequest("there is no job yet.", suggestion="Create one with `jos run`.")
    return newest[0].id


def job_json(job: Job) -> dict[str, Any]:
    return job.model_dump(mode="json", exclude={"timeouts", "retry_policy"})


# --- run and resume -----------------------------------------------------------------------------------


@app.command()
def run(
    file: Annotated[Path | None, typer.Argument(help="A job.yaml; see pipelines/*/examples.")] = None,
    pipeline: Annotated[str | None, typer.Option(help="Instead of a file: the pipeline's key.")] = None,
    version: Annotated[str | None, typer.Option(help="Its version; default: the latest published.")] = None,
    name: Annotated[str | None, typer.Option(help="A name for the job.")] = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="PORT=FILE[,class=NAME]; repeat; FILE may be a glob or a URL.")
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="component.path=value, e.g. worker.config.batch_size=64; repeat.")
    ] = None,
    parallelism: Annotated[int | None, typer.Option(min=1, help="The most indexes (actors) at once.")] = None,
    priority: Annotated[int | None, typer.Option(help="Default: the pipeline's.")] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return at once; follow with `jos events JOB --follow`.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a job and watch it. Ctrl-C stops it cleanly; `jos resume JOB` goes on from there."""
    with opened(as_json) as engine:
        request = _request(file, pipeline, version, name, inputs or [], sets or [], parallelism, priority)
        job = engine.submit(request)
        _drive(engine, job.id, as_json, detach)


def _request(
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
        raise BadRequest("give either a job.yaml or --pipeline with --input.", suggestion="See `jos run --help`.")
    if parallelism is not None:
        sets = [*sets, f"worker.parallelism={parallelism}"]
    if pipeline is not None:
        return from_options(pipeline, version, name, inputs, sets, priority)
    assert file is not None
    return read_request(file, inputs=inputs, sets=sets, name=name, version=version, priority=priority)


@app.command()
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
        _drive(engine, job_id, as_json, detach, take_over=take_over, after=total)


def _drive(
    engine: Engine, job_id: str, as_json: bool, detach: bool, *, take_over: bool = False, after: int = 0
) -> None:
    """Starts a driver and watches it to the job's end."""
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
    if as_json:
        emit({**job_json(job), "progress": live.data if live else {}})
    if job.status is Status.COMPLETED:
        if not as_json:
            out.print(summary(job))
            out.print(f"outputs: {command_line(engine, f'outputs {job.id} --download DIR')}", highlight=False)
            out.print(f"details: {command_line(engine, f'show {job.id}')}", highlight=False)
        return
    err.print(summary(job))
    if driver is not None and not job.status.terminal and driver.process.returncode not in (0, 4):
        err.print(
            f"the driver ended with code {driver.process.returncode}; its log says:\n{driver.tail()}", markup=False
        )
    err.print(f"all committed work is safe; go on with {command_line(engine, f'resume {job.id}')}", highlight=False)
    raise typer.Exit(EXIT_FAILED if job.status.terminal else EXIT_UNFINISHED)


# --- looking ------------------------------------------------------------------------------------------


@app.command()
def jobs(
    status: Annotated[Status | None, typer.Option(help="Only these.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    offset: Annotated[int, typer.Option(min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with opened(as_json) as engine:
        total, found = engine.jobs(offset, limit, status)
        if as_json:
            emit({"total": total, "offset": offset, "limit": limit, "jobs": [job_json(j) for j in found]})
            return
        table = columns("id", "name", "pipeline", "status", "created")
        for one in found:
            pipeline = f"{one.pipeline_key} {one.pipeline_version}"
            table.add_row(one.id, one.name, pipeline, one.status, f"{one.created_at.astimezone():%Y-%m-%d %H:%M:%S}")
        out.print(table if found else "no jobs yet; create one with `jos run`")


@app.command()
def show(job: JobId, as_json: AsJson = False) -> None:
    """Show one job: status, progress, inputs, what went wrong."""
    with opened(as_json) as engine:
        job_id = resolve_id(engine, job)
        record, live, inputs = engine.get(job_id), engine.live(job_id), engine.inputs(job_id)
        if as_json:
            emit({**job_json(record), "progress": live.data if live else {}, "inputs": inputs})
            return
        out.print(summary(record))
        facts = Table(box=None, show_header=False)
        for label, value in _facts(record, live.data if live else {}):
            facts.add_row(label, value)
        out.print(facts)
        table = columns("input", "port", "status", "tasks", "failed", "", long_first=True)
        for row in inputs:
            tasks = f"{row.get('done', 0):,} / {row['tasks']:,}" if row.get("tasks") is not None else ""
            failed = f"{row['failed']:,}" if row.get("failed") else ""
            table.add_row(row["filename"], row["port"], row["status"], tasks, failed, row.get("error_message") or "")
        out.print(table)


def _facts(job: Job, live: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("name", job.name),
        ("pipeline", f"{job.pipeline_key} {job.pipeline_version}"),
        ("reason", job.reason),
        ("created", utc(job.created_at)),
        ("attempts", str(job.attempt.number) if job.attempt else "0"),
    ]
    if live:
        done, total = live.get("items_processed", 0), live.get("items_total", 0)
        facts.append(("tasks", f"{done:,} of {total:,}, {live.get('failed', 0):,} failed"))
    return facts


@app.command()
def events(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is over.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Only events after this id.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Print a job's events, oldest first."""
    with opened(as_json) as engine:
        job_id = resolve_id(engine, job)

        def tell(batch: list[Event]) -> None:
            for event in batch:
                if as_json:
                    out.file.write(event.model_dump_json() + "\n")
                else:
                    out.print(event_line(event))

        while batch := engine.events(job_id, after)[1]:
            tell(batch)
            after = batch[-1].id
        if follow:
            _follow(engine, job_id, after, tell)


def _follow(engine: Engine, job_id: str, after: int, tell: Any) -> None:
    try:
        for batch in engine.follow(job_id, after):
            tell([e for e in batch if not isinstance(e, Progress)])
            if not batch and engine.get(job_id).status.terminal:
                return
    except KeyboardInterrupt:
        return


@app.command()
def outputs(
    job: JobId,
    download: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Copy all finished outputs into this folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List a job's output files, also while it runs; --download DIR fetches them."""
    with opened(as_json) as engine:
        job_id = resolve_id(engine, job)
        record, found = engine.get(job_id), engine.outputs(job_id)
        rows = []
        for output in found:
            place = engine.download(job_id, output, download) if download else engine.location(record, output)
            rows.append({**output.model_dump(mode="json", exclude={"key"}), "location": str(place)})
        if as_json:
            emit({"job_id": job_id, "status": record.status, "total": len(rows), "outputs": rows})
            return
        table = columns("output", "tasks", "bytes", "location", long_first=True)
        for row in rows:
            table.add_row(row["filename"], f"{row['tasks']:,}", f"{row['num_bytes']:,}", row["location"])
        out.print(table if rows else f"no outputs yet; the job is {record.status}")


@app.command()
def cancel(job: JobId, as_json: AsJson = False) -> None:
    """Stop a job. What it committed stays; `jos resume JOB` goes on from there."""
    with opened(as_json) as engine:
        record = engine.cancel(resolve_id(engine, job))
        if as_json:
            emit(job_json(record))
        else:
            out.print(summary(record))


# --- this machine -------------------------------------------------------------------------------------


@app.command()
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


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the demo keeps its files.")] = Path("build/demo"),
    parallelism: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Classify real wrist-sensor recordings (BasicMotions) from one command, and score the result."""
    from jos.demo import run_demo

    with told():
        settings = Settings()
        if "JOS_HOME" not in os.environ:
            settings = settings.model_copy(update={"home": folder.absolute() / "home"})
        with Engine(settings) as engine:
            scored = run_demo(engine, folder, parallelism, out, _drive)
        if not scored:
            raise ComputeFailed("the demo's job gave no outputs to score.")


app.add_typer(pipelines_app, name="pipelines")
app.command()(schema)

if __name__ == "__main__":
    app()
