"""The command line. Every command takes --json; errors say what to do; exit codes: 0 good, 1 the job failed, 2 the
request or the set-up is at fault, 4 the job was left unfinished (`jos resume`, or the service, goes on).

May import: everything below it. Tests: tests/e2e, tests/unit/test_docs.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from jos import cli_engine, cli_files, cli_finetune, cli_jobs, cli_kubernetes, cli_service
from jos.cli_pipelines import pipelines_app, schema
from jos.terminal import use_profile

app = typer.Typer(
    help="JOS runs batch jobs over many files on Ray, and survives anything.\n\n"
    "Try `jos demo`, or `jos run job.yaml`; `jos up` starts the service, `jos submit job.yaml` uses it. Settings come "
    "from JOS_HOME, JOS_REDIS_URL, JOS_STORAGE, JOS_RAY_ADDRESS, JOS_PIPELINES; without any, JOS keeps everything "
    "under ~/.jos and starts its own Valkey and Ray. Commands about jobs talk to the server of JOS_URL, of a profile, "
    "or of `jos up` here; without one they look at the local engine.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)


@app.callback()
def options(
    profile: Annotated[str | None, typer.Option(help="The server saved by `jos login URL --profile NAME`.")] = None,
) -> None:
    use_profile(profile)


ORDER: list[tuple[str, list[Callable[..., object]]]] = [
    ("On this machine", [cli_engine.run, cli_engine.resume, cli_engine.demo, cli_engine.doctor]),
    ("Jobs", [*cli_jobs.COMMANDS, cli_finetune.finetune]),
    ("Files", cli_files.COMMANDS),
    ("Pipelines", [schema]),
    ("The service", cli_service.COMMANDS),
    ("Kubernetes", [cli_kubernetes.render]),
]
for panel, commands in ORDER:
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(pipelines_app, name="pipelines", rich_help_panel="Pipelines")
app.add_typer(cli_service.keys_app, name="keys", rich_help_panel="The service")

if __name__ == "__main__":
    app()
