"""`jos pipelines` and `jos schema`: what can be run, what it takes, and an author's first steps and checks.

May import: jos.registry, jos.skeleton, jos.client, jos.terminal. Tests: tests/e2e/test_doors.py, test_pipelines_doc.py.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from jos.settings import Settings
from jos.skeleton import Kind, module_of, write_skeleton
from jos.terminal import EXIT_FAULT, AsJson, columns, connected, emit, out, server_meant, told

pipelines_app = typer.Typer(help="List pipelines, or begin and check one of your own.", invoke_without_command=True)


@pipelines_app.callback()
def pipelines(context: typer.Context, as_json: AsJson = False) -> None:
    """List the pipelines that jobs can name."""
    if context.invoked_subcommand is not None:
        return
    with told(as_json):
        found = _all(as_json)
        if as_json:
            emit({"total": len(found), "pipelines": found})
            return
        table = columns("key", "version", "type", "status", "description")
        for one in found:
            first = one["description"].strip().split("\n")[0]
            table.add_row(one["pipeline_key"], one["pipeline_version"], one["pipeline_type"], one["status"], first)
        out.print(table)


def _all(as_json: bool) -> list[dict[str, Any]]:
    """Of the server that is meant, else of this machine."""
    if server_meant():
        with connected(as_json) as client:
            return [p.model_dump(mode="json") for p in client.pipelines.list()]
    from jos.wiring import open_registry

    return [p.model_dump(mode="json", by_alias=True) for p in open_registry(Settings()).list()]


@pipelines_app.command("new")
def new(
    key: Annotated[str, typer.Argument(metavar="NAME", help="The pipeline's key, such as word-count.")],
    kind: Annotated[
        Kind, typer.Option(help="records: JSON lines in and out; worker: full control; trainer: trains a model.")
    ] = Kind.RECORDS,
    folder: Annotated[
        Path | None, typer.Option(help="Where to write it; may hold other pipelines. Default: a new folder NAME.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Begin a pipeline of your own: a worker, its template, a test and a first job, all of which work."""
    with told(as_json):
        folder = folder if folder is not None else Path(key)
        files = write_skeleton(key, kind, folder)
        steps = ["pytest", "jos pipelines check pipelines", f"jos run pipelines/{key}/examples/job.yaml"]
        steps = ["export JOS_PIPELINES=$PWD/pipelines", *steps]
        if folder.resolve() != Path.cwd():
            steps.insert(0, f"cd {shlex.quote(str(folder))}")
        if as_json:
            emit({"folder": str(folder), "files": [str(file) for file in files], "next": steps})
            return
        table = columns("file", "holds")
        for file in files:
            table.add_row(str(file), _holds(file, module_of(key)))
        out.print(table)
        out.print("\nnext:")
        for step in steps:
            out.print(f"  {step}", markup=False, highlight=False)


def _holds(file: Path, module: str) -> str:
    """What a file of a new pipeline is for."""
    if file.parent.name == "examples":
        return "a first job" if file.suffix == ".yaml" else "its input"
    match file.suffix:
        case ".py":
            return "the work" if file.stem == module else "its test"
        case ".yaml":
            return "what it takes, needs and gives"
        case _:
            return "what those who run it should know"


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


def schema(
    pipeline: Annotated[str, typer.Argument(help="The pipeline's key.")],
    version: Annotated[str | None, typer.Option(help="Default: the latest published.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a pipeline takes: ports, fields a user may set, their defaults and meaning."""
    with told(as_json):
        found = _one(pipeline, version, as_json)
        if as_json:
            wanted = {"pipeline_key", "pipeline_version", "config_schema", "user_config_schema", "inputs", "outputs"}
            emit({k: v for k, v in found.items() if k in {*wanted, "default_config"}})
            return
        _print_schema(found)


def _one(key: str, version: str | None, as_json: bool) -> dict[str, Any]:
    if server_meant():
        with connected(as_json) as client:
            return client.pipelines.find(key, version).model_dump(mode="json")
    from jos.wiring import open_registry

    return open_registry(Settings()).get(key, version).model_dump(mode="json", by_alias=True)


def _print_schema(found: dict[str, Any]) -> None:
    out.print(f"[bold]{found['pipeline_key']} {found['pipeline_version']}[/]  {found['name']}")
    ports = columns("port", "mode", "share", "required", "description")
    for port, what in found["inputs"].items():
        required = "yes" if what["required"] else "no"
        ports.add_row(port, what["mode"], what["distribute"], required, what.get("description", ""))
    out.print(ports)
    for component, user in found["user_config_schema"].items():
        fields = columns("field (--set …=value)", "type", "default", "description")
        defaults = found["default_config"][component]
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
