"""Commands about jobs: submit, list, show, follow, fetch, stop, retry, delete.

May import: jos.cli_where, jos.cli_engine, jos.client, jos.terminal. Tests: tests/e2e/test_doors.py,
tests/e2e/test_client.py.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jos.cli_engine import (
    JobName,
    Parallelism,
    PipelineKey,
    PipelineVersion,
    Priority,
    RequestFile,
    Sets,
    classify_line,
    request_of,
    tell_model,
)
from jos.cli_where import dump, somewhere
from jos.core.errors import BadRequest, NotFound
from jos.core.model import JobRequest, Status
from jos.display import event_line, summary
from jos.request import named, parse_request, port_name, read_yaml, set_option
from jos.settings import Settings
from jos.shown.look import metrics_line
from jos.terminal import (
    EXIT_FAILED,
    EXIT_UNFINISHED,
    AsJson,
    JobId,
    columns,
    command_line,
    connected,
    emit,
    err,
    out,
    server_meant,
    told,
)

if TYPE_CHECKING:
    from jos.client import Job


# --- making -------------------------------------------------------------------------------------------


def submit(
    file: RequestFile = None,
    pipeline: PipelineKey = None,
    version: PipelineVersion = None,
    name: JobName = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", help="PORT=FILE[,class=NAME]; repeat; FILE is a path, a glob, an uploaded name, or ckp_…."
        ),
    ] = None,
    sets: Sets = None,
    parallelism: Parallelism = None,
    priority: Priority = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace uploaded files of other content.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Watch it to its end.")] = False,
    download: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Wait, then fetch all outputs into this folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Submit a job to the server; files of this machine that it names are uploaded first."""
    with connected(as_json) as client:
        if pipeline is not None or file is None:
            request = request_of(file, pipeline, version, name, [], sets or [], parallelism, priority)
        else:
            request = _of_file(file, sets or [], parallelism)
            changed = {"name": name, "pipeline_version": version, "priority": priority}
            request = request.model_copy(update={k: v for k, v in changed.items() if v is not None})
        more = _more_inputs(inputs or [])
        base = file.parent if file is not None else Path.cwd()
        given = {port: [_absolute(r, base) for r in refs] for port, refs in request.inputs.items()}
        for port, refs in more.items():
            given.setdefault(port, []).extend(refs)
        bar = not as_json and err.is_terminal
        job = client.jobs.submit(request, given, replace=replace, progress=bar)
        if not (wait or download):
            _submitted(job, as_json)
            return
        _watch(job, err if as_json else out)
        paths = job.download(download, progress=bar) if download else []
        _ended(job, paths, download, as_json)


def _of_file(path: Path, sets: list[str], parallelism: int | None) -> JobRequest:
    """A job.yaml with its names as they are: which of them are files here is for the client to say."""
    request = parse_request(read_yaml(path), str(path))
    parameters = {c: p.model_dump(exclude_unset=True) for c, p in request.parameters.items()}
    for text in [*sets, *([f"worker.parallelism={parallelism}"] if parallelism else [])]:
        set_option(parameters, text)
    return parse_request({**request.model_dump(exclude_unset=True), "parameters": parameters}, str(path))


def _absolute(ref: Any, base: Path) -> Any:
    """A file beside the job.yaml is found from wherever the command runs."""
    if ref.file_id is None or "://" in ref.file_id:
        return ref
    path = base / Path(ref.file_id).expanduser()
    return ref.model_copy(update={"file_id": str(path.absolute())}) if path.exists() or "/" in ref.file_id else ref


def _more_inputs(texts: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Those of --input. A name that is no file here may be one on the server."""
    found: dict[str, list[dict[str, Any]]] = {}
    for text in texts:
        port, equals, rest = text.partition("=")
        path, *pairs = rest.split(",")
        metadata = dict(pair.partition("=")[::2] for pair in pairs)
        if not equals or not path or not all(metadata.values()):
            raise BadRequest(
                f"--input {text!r} is not PORT=FILE[,key=value…].",
                suggestion="Write --input worker.inference=FILE, or worker.n_shots=FILE,class=NAME.",
            )
        found.setdefault(port_name(port), []).append({**named(path), "metadata": metadata})
    return found


def _submitted(job: Job, as_json: bool) -> None:
    if as_json:
        emit(dump(job.record))
        return
    out.print(f"job [bold]{job.id}[/] {job.record.status}", highlight=False)
    out.print(f"follow:  {_line(f'events {job.id} --follow')}", highlight=False)
    out.print(f"outputs: {_line(f'outputs {job.id} --download DIR')}", highlight=False)


def _line(rest: str) -> str:
    return command_line(Settings(), rest)


def _watch(job: Job, screen: Console) -> None:
    """Events as they come. Ctrl-C ends the watching, not the job."""
    screen.print(f"job [bold]{job.id}[/]", highlight=False)
    try:
        for event in job.events(follow=True):
            screen.print(event_line(event))
    except KeyboardInterrupt:
        screen.print(f"the job goes on; follow it with {_line(f'events {job.id} --follow')}", highlight=False)
        raise typer.Exit(EXIT_UNFINISHED) from None
    job.refresh()


def _ended(job: Job, paths: list[Path], download: Path | None, as_json: bool) -> None:
    good = job.record.status is Status.COMPLETED
    if as_json:
        emit({**dump(job.record), "outputs": [str(p) for p in paths]})
    else:
        out.print(summary(job.record))
        models = job.checkpoints() if good and job.record.pipeline_type == "training" else []
        if models:
            tell_model(models[-1], _line(classify_line("submit", models[-1].id)))
        elif download:
            out.print(f"{len(paths)} outputs are in {download}/", highlight=False)
        elif good:
            out.print(f"outputs: {_line(f'outputs {job.id} --download DIR')}", highlight=False)
    if not good:
        err.print(f"committed work is safe; go on with {_line(f'retry {job.id}')}", highlight=False)
        raise typer.Exit(EXIT_FAILED)


# --- looking ------------------------------------------------------------------------------------------


def jobs(
    status: Annotated[Status | None, typer.Option(help="Only these.")] = None,
    kind: Annotated[str | None, typer.Option("--type", help="batch or training; on a server.")] = None,
    q: Annotated[str | None, typer.Option("--q", help="Search name, pipeline and id; on a server.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    offset: Annotated[int, typer.Option(min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with somewhere(as_json) as where:
        found = where.jobs(offset, limit, status, kind, q)
        if as_json:
            emit(found)
            return
        table = columns("id", "name", "pipeline", "status", "created")
        for one in found["jobs"]:
            pipeline = f"{one['pipeline_key']} {one['pipeline_version']}"
            table.add_row(one["id"], one["name"], pipeline, one["status"], _when(one["created_at"]))
        out.print(table if found["jobs"] else "no jobs yet; create one with `jos submit` or `jos run`")


def _when(text: str) -> str:
    return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M:%S}"


def show(job: JobId, as_json: AsJson = False) -> None:
    """Show one job: status, progress, inputs, what went wrong."""
    with somewhere(as_json) as where:
        found = where.show(job)
        if as_json:
            emit(found)
            return
        out.print(_headline(found))
        facts = Table(box=None, show_header=False)
        for label, value in _facts(found):
            facts.add_row(label, value)
        out.print(facts)
        _print_inputs(found["inputs"])


def _headline(found: dict[str, Any]) -> Text:
    style = {"COMPLETED": "bold green", "FAILED": "bold red"}.get(found["status"], "bold yellow")
    text = Text(f"{found['id']} {found['status']}", style)
    return text.append(f": {found['error']['message']}", "default") if found.get("error") else text


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [("name", found["name"]), ("pipeline", f"{found['pipeline_key']} {found['pipeline_version']}")]
    waiting, live = found.get("waiting"), found.get("progress")
    if waiting:
        facts.append(("waits", f"{waiting['message'] or waiting['code']}"))
    elif found.get("reason"):
        facts.append(("reason", found["reason"]))
    if found.get("queue_position"):
        facts.append(("queue", f"{found['queue']}: {found['queue_position']} of {found['queue_depth']}"))
    facts.append(("created", found["created_at"]))
    if "attempt" in found:
        facts.append(("attempts", str(found["attempt"]["number"] if found["attempt"] else 0)))
    if live:
        done, total = live.get("items_processed", 0), live.get("items_total", 0)
        facts.append(("tasks", f"{done:,} of {total:,}, {live.get('failed', 0):,} failed"))
    if counts := found.get("input_progress"):
        facts.append(("inputs", ", ".join(f"{n} {what}" for what, n in counts.items())))
    return facts


def _print_inputs(rows: list[dict[str, Any]]) -> None:
    table = columns("input", "port", "status", "tasks", "failed", "", long_first=True)
    for row in rows:
        tasks = f"{row.get('done') or 0:,} / {row['tasks']:,}" if row.get("tasks") is not None else ""
        failed = f"{row['failed']:,}" if row.get("failed") else ""
        table.add_row(row["filename"], row["port"], row["status"], tasks, failed, row.get("error_message") or "")
    out.print(table)


def inputs(job: JobId, as_json: AsJson = False) -> None:
    """List a job's inputs and how far each is."""
    with somewhere(as_json) as where:
        found = where.inputs(job)
        if as_json:
            emit(found)
        else:
            _print_inputs(found["inputs"])


def events(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is over.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Only events after this id.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Print a job's events, oldest first."""
    with somewhere(as_json) as where:
        try:
            for event in where.events(job, after, follow):
                if as_json:
                    out.file.write(orjson.dumps(event.model_dump(mode="json")).decode() + "\n")
                    out.file.flush()
                else:
                    out.print(event_line(event))
        except KeyboardInterrupt:
            return


def outputs(
    job: JobId,
    download: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Copy all finished outputs into this folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List a job's output files, also while it runs; --download DIR fetches them."""
    with somewhere(as_json) as where:
        found = where.outputs(job, download, not as_json and err.is_terminal)
        if as_json:
            emit(found)
            return
        table = columns("output", "tasks", "bytes", "location", long_first=True)
        for row in found["outputs"]:
            tasks = f"{row['tasks']:,}" if row.get("tasks") is not None else ""
            place = "" if row["location"].startswith("http") else row["location"]  # signed and long: --json has it
            table.add_row(row["filename"], tasks, f"{row['num_bytes']:,}", place)
        out.print(table if found["outputs"] else f"no outputs yet; the job is {found['status']}")


def checkpoints(
    job: JobId,
    download: Annotated[Path | None, typer.Option(metavar="DIR", help="Copy all of them into this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the models that a training job has left, the best last; --download DIR fetches them."""
    with somewhere(as_json) as where:
        found = where.checkpoints(job, download, not as_json and err.is_terminal)
        if as_json:
            emit(found)
            return
        table = columns("checkpoint", "step", "metrics", "fetched to" if download else "bytes")
        for row in found["checkpoints"]:
            size = f"{row['num_bytes']:,}" if row["num_bytes"] is not None else ""
            last = row["location"] if download else size
            table.add_row(row["id"], f"{row['step']:,}", metrics_line(row["metrics"]), last)
        out.print(table if found["checkpoints"] else f"no checkpoints yet; the job is {found['status']}")


def queue(as_json: AsJson = False) -> None:
    """Show which jobs wait, in what place, and for what."""
    with connected(as_json) as client:
        depths = client.queue()
        _, waiting = client.jobs.list(status=Status.PENDING, limit=1000)
        rows = sorted((j.record for j in waiting), key=lambda r: (r.queue, r.queue_position or 0))
        if as_json:
            queues = [{"pipeline_type": kind, "depth": depth} for kind, depth in depths.items()]
            emit({"queues": queues, "jobs": [dump(r) for r in rows]})
            return
        table = columns("id", "queue", "place", "priority", "name", "waits for")
        for one in rows:
            why = one.waiting.message or one.waiting.code if one.waiting else ""
            table.add_row(one.id, one.queue, str(one.queue_position or ""), str(one.priority), one.name, why)
        out.print(table if rows else "nothing waits")


# --- changing -----------------------------------------------------------------------------------------


def cancel(job: JobId, as_json: AsJson = False) -> None:
    """Stop a job. What it committed stays; `jos retry JOB` or `jos resume JOB` goes on from there."""
    with somewhere(as_json) as where:
        found = where.cancel(job)
        if as_json:
            emit(found)
        else:
            out.print(_headline(found))


def retry(job: JobId, as_json: AsJson = False) -> None:
    """Go on with a job of the server that failed or was cancelled; failed inputs are tried again."""
    with told(as_json):
        if not server_meant():
            raise NotFound("no JOS server is known here.", suggestion=f"For the local engine: `jos resume {job}`.")
    with connected(as_json) as client:
        found = client.job(job).retry()
        if as_json:
            emit(dump(found.record))
        else:
            out.print(summary(found.record))


def delete(job: JobId, as_json: AsJson = False) -> None:
    """Delete a job of the server that is over, with its outputs and events."""
    with connected(as_json) as client:
        found = client.job(job)
        found.delete()
        if as_json:
            emit({"id": found.id, "deleted": True})
        else:
            out.print(f"{found.id} is deleted", highlight=False)


COMMANDS: list[Callable[..., object]] = [
    *(submit, jobs, show, inputs, events, outputs, checkpoints),
    *(queue, cancel, retry, delete),
]
