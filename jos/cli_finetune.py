"""`jos finetune`: labelled CSV files here become a model that classifies windows, with the local engine or on a server.

May import: jos.cli_engine, jos.client, jos.finetune, jos.terminal. Tests: tests/e2e/test_finetune.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jos import wire
from jos.cli_engine import JobName, Parallelism, classify_line, drive, tell_model
from jos.core.errors import BadRequest
from jos.core.model import Status
from jos.display import Pace, event_line, summary
from jos.finetune import EVAL, TRAIN, labelled, parameters, pipeline_of
from jos.request import build
from jos.settings import Settings
from jos.terminal import (
    EXIT_FAILED,
    EXIT_UNFINISHED,
    AsJson,
    command_line,
    connected,
    emit,
    err,
    opened,
    out,
    server_meant,
    told,
)

if TYPE_CHECKING:
    from jos.client import Job

_FILES = "A folder whose sub-folders are the classes, a glob, or FILE.csv,class=NAME; repeat."


def finetune(
    train: Annotated[list[str], typer.Option("--train", help=_FILES)],
    columns: Annotated[str, typer.Option("--columns", help="Columns that hold readings: a,b,c.")],
    window: Annotated[int, typer.Option("--window", min=1, help="Rows in a window.")],
    evaluation: Annotated[list[str] | None, typer.Option("--eval", help="The same, to validate on.")] = None,
    step: Annotated[int | None, typer.Option(min=1, help="Rows from window to window.")] = None,
    method: Annotated[str, typer.Option(help="head: trained; knn: stored examples.")] = "head",
    epochs: Annotated[int | None, typer.Option(min=1, help="The most passes over the data.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same model.")] = None,
    name: JobName = None,
    parallelism: Parallelism = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace uploaded files of other content.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="On a server: watch it to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a classifier from labelled CSV files. On this machine it is watched to its end."""
    with told(as_json):
        names = _names(columns)
        files = {TRAIN: labelled(train, "--train"), EVAL: labelled(evaluation or [], "--eval")}
        key, label = pipeline_of(method), name or f"fine-tuning ({method})"
    settings: dict[str, Any] = {"step": step, "epochs": epochs, "seed": seed}
    if not server_meant():
        with opened(as_json) as engine:
            inputs = {port: pairs for port, pairs in files.items() if pairs}
            asked = parameters(names, window, **settings)
            job = engine.submit(build(key, inputs, asked, parallelism=parallelism, name=label))
            drive(engine, job.id, as_json, detach=False)
        return
    with connected(as_json) as client:
        settings |= {"method": method, "name": label, "parallelism": parallelism, "replace": replace}
        bar = not as_json and err.is_terminal
        made = client.fine_tune(files[TRAIN], names, window, validation=files[EVAL], progress=bar, **settings)
        if watch:
            _watch(made, as_json)
            _ended(made, as_json)
        else:
            _submitted(made, as_json)


def _names(columns: str) -> list[str]:
    names = [name.strip() for name in columns.split(",")]
    if not all(names):
        raise BadRequest(f"--columns {columns!r} has an empty name.", suggestion="Write --columns a,b,c.")
    return names


def _submitted(job: Job, as_json: bool) -> None:
    if as_json:
        emit(job.record.model_dump(mode="json"))
        return
    out.print(f"job [bold]{job.id}[/] {job.record.status}", highlight=False)
    out.print(f"follow: {command_line(Settings(), f'events {job.id} --follow')}", highlight=False)
    out.print(f"models: {command_line(Settings(), f'checkpoints {job.id}')}", highlight=False)


def _watch(job: Job, as_json: bool) -> None:
    """Events, and loss and scores, as they come. Ctrl-C ends the watching, not the job."""
    screen, pace = err if as_json else out, Pace()
    screen.print(f"job [bold]{job.id}[/]", highlight=False)
    try:
        for entry in job.follow():
            line = pace.line(entry) if isinstance(entry, wire.Progress) else event_line(entry)
            if line is not None:
                screen.print(line)
    except KeyboardInterrupt:
        follow = command_line(Settings(), f"events {job.id} --follow")
        screen.print(f"the job goes on; follow it with {follow}", highlight=False)
        raise typer.Exit(EXIT_UNFINISHED) from None
    job.refresh()


def _ended(job: Job, as_json: bool) -> None:
    models = job.checkpoints()
    if as_json:
        shown = [model.model_dump(mode="json") for model in models]
        emit({**job.record.model_dump(mode="json"), "checkpoints": shown})
    else:
        out.print(summary(job.record))
    if job.record.status is not Status.COMPLETED:
        line = command_line(Settings(), f"retry {job.id}")
        err.print(f"committed work is safe; go on with {line}", highlight=False)
        raise typer.Exit(EXIT_FAILED)
    if not as_json and models:
        tell_model(models[-1], command_line(Settings(), classify_line("submit", models[-1].id)))
