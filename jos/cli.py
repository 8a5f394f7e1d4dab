"""The command line. Every command takes --json; errors say what to do; exit codes: 0 good, 1 the job failed, 2 the
request or the set-up is at fault, 4 the job was left unfinished (`jos resume` goes on).

May import: everything below it. Tests: tests/e2e/test_cli.py, tests/unit/test_cli_docs.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from jos.core.errors import BadRequest, ComputeFailed, ConfigInvalid, JosError
from jos.core.model import Event, Job, JobRequest, Pipeline, Progress, Status, utc
from jos.display import Watch, event_line, summary
from jos.engine import Engine
from jos.launch.local import LocalDriver
from jos.request import from_options, read_request
from jos.settings import Settings
from jos.wiring import open_registry

app = typer.Typer(
    help="JOS runs batch jobs over many files on Ray, and survives anything.\n\n"
    "Try `jos demo`, or `jos run job.yaml`. Settings come from JOS_HOME, JOS_REDIS_URL, JOS_STORAGE, "
    "JOS_RAY_ADDRESS, JOS_PIPELINES; without any, JOS keeps everything under ~/.jos and starts its own Valkey and Ray.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)
pipelines_app = typer.Typer(help="List pipelines, or check a template of your own.", invoke_without_command=True)
app.add_typer(pipelines_app, name="pipelines")

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or `last` for the newest.")]

EXIT_FAILED, EXIT_FAULT, EXIT_UNFINISHED = 1, 2, 4


def columns(*names: str) -> Table:
    """A plain table; what is too long is folded, never cut: a cut id cannot be pasted."""
    table = Table(box=None)
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def emit(data: Any) -> None:
    """One JSON document on stdout."""
    out.file.write(orjson.dumps(data, option=orjson.OPT_INDENT_2).decode() + "\n")


@contextmanager
def told(as_json: bool = False) -> Iterator[None]:
    """Errors that a person can act on, without a traceback."""
    try:
        yield
    except JosError as error:
        if as_json:
            entry: dict[str, Any] = {"code": error.code, "message": error.message, "suggestion": error.suggestion}
            if isinstance(error, ConfigInvalid):
                entry["violations"] = [vars(v) for v in error.violations]
            emit({"errors": [entry]})
        err.print(f"[bold red]error[/] ({error.code}): ", end="")
        err.print(str(error), markup=False, highlight=False)
        raise typer.Exit(EXIT_FAULT) from error


@contextmanager
def opened(as_json: bool = False) -> Iterator[Engine]:
    with told(as_json), Engine(Settings()) as engine:
        yield engine


def resolve_id(engine: Engine, job_id: str) -> str:
    if job_id != "last":
        return job_id
    _, newest = engine.jobs(limit=1)
    if not newest:
        raise BadRequest("there is no job yet.", suggestion="Create one with `jos run`.")
    return newest[0].id


def command_line(engine: Engine, rest: str) -> str:
    """A `jos` command that works as it is when pasted, wherever this one had its JOS_HOME from."""
    program = "jos" if shutil.which("jos") else os.path.relpath(sys.argv[0])
    elsewhere = engine.settings.home != Settings.model_fields["home"].default
    home = f"JOS_HOME={os.path.relpath(engine.settings.home_dir)} " if elsewhere else ""
    return f"[bold]{home}{program} {rest}[/]"


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
        table = columns("input", "port", "status", "tasks", "failed", "")
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
        table = columns("output", "tasks", "bytes", "location")
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


# --- pipelines ----------------------------------------------------------------------------------------


@pipelines_app.callback()
def pipelines(context: typer.Context, as_json: AsJson = False) -> None:
    """List the pipelines that jobs can name."""
    if context.invoked_subcommand is not None:
        return
    with told(as_json):
        found = open_registry(Settings()).list()
        if as_json:
            emit({"total": len(found), "pipelines": [p.model_dump(mode="json", by_alias=True) for p in found]})
            return
        table = columns("key", "version", "type", "status", "description")
        for one in found:
            first = one.description.strip().split("\n")[0]
            table.add_row(one.pipeline_key, one.pipeline_version, one.pipeline_type, one.status, first)
        out.print(table)


@pipelines_app.command("check")
def check(
    folder: Annotated[Path, typer.Argument(help="A pipeline's folder, or one that holds several.")],
    worker: Annotated[bool, typer.Option("--worker/--no-worker", help="Also import the worker class.")] = True,
    as_json: AsJson = False,
) -> None:
    """Check a pipeline's templates as their author would: schemas, defaults, ports, worker, published versions."""
    from jos.registry_check import check_folder

    with told(as_json):
        report = check_folder(folder, import_worker=worker)
        if as_json:
            emit(report.to_json())
        else:
            out.print(str(report), markup=False, highlight=False)
        if not report.ok:
            raise typer.Exit(EXIT_FAULT)


@pipelines_app.command("publish")
def publish_version(
    key: Annotated[str, typer.Argument(help="The pipeline's key.")],
    version: Annotated[str, typer.Argument(help="The version to publish.")],
    folder: Annotated[Path, typer.Option(help="The folder of pipelines.")] = Path("pipelines"),
) -> None:
    """Publish a version: its content is recorded by hash and never changes again."""
    from jos.registry import publish

    with told():
        out.print(f"{key} {version} is published: {publish(folder, key, version)}", highlight=False)


@app.command()
def schema(
    pipeline: Annotated[str, typer.Argument(help="The pipeline's key.")],
    version: Annotated[str | None, typer.Option(help="Default: the latest published.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a pipeline takes: ports, fields a user may set, their defaults and meaning."""
    with told(as_json):
        found = open_registry(Settings()).get(pipeline, version)
        if as_json:
            wanted = {"pipeline_key", "pipeline_version", "config_schema", "user_config_schema", "inputs", "outputs"}
            emit(found.model_dump(mode="json", include={*wanted, "default_config"}))
            return
        _print_schema(found)


def _print_schema(found: Pipeline) -> None:
    out.print(f"[bold]{found.pipeline_key} {found.pipeline_version}[/]  {found.name}")
    ports = columns("port", "mode", "share", "required", "description")
    for port, what in found.inputs.items():
        ports.add_row(port, what.mode, what.distribute, "yes" if what.required else "no", what.description)
    out.print(ports)
    for component, user in found.user_config_schema.items():
        fields = columns("field (--set …=value)", "type", "default", "description")
        defaults = found.default_config[component]
        fields.add_row(f"{component}.parallelism", "integer", str(defaults["parallelism"]), "the most indexes at once")
        for path, field in _fields(user, f"{component}.config"):
            at: Any = defaults
            for key in path.split(".")[1:]:
                at = at.get(key) if isinstance(at, dict) else None
            kind = " | ".join(map(str, field["enum"])) if "enum" in field else str(field.get("type", ""))
            fields.add_row(path, kind, "" if at is None else str(at), field.get("description", ""))
        out.print(fields)


def _fields(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every leaf field of an object schema, with its dotted path."""
    for key, what in node.get("properties", {}).items():
        if what.get("type") == "object" and what.get("properties"):
            yield from _fields(what, f"{path}.{key}")
        else:
            yield f"{path}.{key}", what


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


if __name__ == "__main__":
    app()
