"""What all commands of the command line share: consoles, JSON output, errors without tracebacks, an open engine or a
connection to a server.

Engine and client are imported when one is opened: a command pays for what it uses. May import: typer, rich, jos.engine,
jos.client. Tests: tests/e2e.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from jos import profiles
from jos.core.errors import ConfigInvalid, JosError
from jos.settings import Settings

if TYPE_CHECKING:
    from jos.client import Client
    from jos.engine import Engine

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
EXIT_FAILED, EXIT_FAULT, EXIT_UNFINISHED = 1, 2, 4
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or `last` for the newest.")]

# what `jos --profile NAME …` named; set once, before any command runs
_named: list[str] = []


def use_profile(name: str | None) -> None:
    _named[:] = [name] if name else []


def named_profile() -> str | None:
    return _named[0] if _named else None


def columns(*names: str, long_first: bool = False) -> Table:
    """A plain table. Nothing is cut, since a cut id cannot be pasted: the first column is kept whole (or folded, if
    what it holds is long), the others are folded."""
    table = Table(box=None)
    for at, name in enumerate(names):
        table.add_column(name, overflow="fold", no_wrap=at == 0 and not long_first)
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
    """The local engine."""
    from jos.engine import Engine

    with told(as_json), Engine(Settings()) as engine:
        yield engine


@contextmanager
def connected(as_json: bool = False) -> Iterator[Client]:
    """A connection to the server that is meant; an error that names the ways to have one, if there is none."""
    from jos.client import Client

    with told(as_json):
        target = profiles.required(profile=named_profile())
        with Client(target.url, target.api_key) as client:
            yield client


def server_meant() -> bool:
    """Whether commands that can do either talk to a server."""
    return profiles.choose(profile=named_profile()) is not None


def command_line(settings: Settings, rest: str) -> str:
    """A `jos` command that works as it is when pasted, wherever this one had its JOS_HOME from."""
    program = "jos" if shutil.which("jos") else _near(sys.argv[0])
    elsewhere = settings.home != Settings.model_fields["home"].default
    home = f"JOS_HOME={_near(str(settings.home_dir))} " if elsewhere else ""
    return f"[bold]{home}{program} {rest}[/]"


def _near(path: str) -> str:
    """Relative where that is shorter to read, absolute else."""
    relative = os.path.relpath(path)
    return os.path.abspath(path) if relative.startswith("..") else relative
