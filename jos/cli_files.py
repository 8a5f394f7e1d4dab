"""Commands about files on the server: upload, list, fetch, delete.

May import: jos.client, jos.terminal. Tests: tests/e2e/test_client.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from jos.terminal import EXIT_UNFINISHED, AsJson, columns, connected, emit, err, out


def upload(
    files: Annotated[list[str], typer.Argument(help="Files, folders or globs.")],
    name: Annotated[str | None, typer.Option(help="Another name for it, of one file.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace files of other content.")] = False,
    abort: Annotated[bool, typer.Option("--abort", help="Throw away what an unfinished upload has sent.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload files to the server. Cut off by whatever, the same command again sends only what is missing."""
    with connected(as_json) as client:
        if abort:
            for file in files:
                client.files.abort(file, name=name)
            return
        try:
            records = client.files.upload(files, name=name, replace=replace, progress=not as_json and err.is_terminal)
        except KeyboardInterrupt:
            err.print("stopped; the same command again sends only what is missing, --abort throws it away")
            raise typer.Exit(EXIT_UNFINISHED) from None
        if as_json:
            emit({"files": [r.model_dump(mode="json") for r in records]})
            return
        for record in records:
            out.print(f"{record.file_id}  {record.file_uid}  {record.num_bytes:,} bytes", highlight=False)


def files(
    names: Annotated[list[str] | None, typer.Argument(help="Only these; default: all.")] = None,
    download: Annotated[Path | None, typer.Option(metavar="DIR", help="Fetch them into this folder.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the named ones from the server.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the files on the server, fetch them, or delete them."""
    with connected(as_json) as client:
        if delete:
            if not names:
                raise typer.BadParameter("--delete needs the names of files.")
            for name in names:
                client.files.delete(name)
            if as_json:
                emit({"deleted": names})
            return
        found = [client.files.get(n) for n in names] if names else list(client.files.list())
        rows = [r.model_dump(mode="json") for r in found]
        if download:
            download.mkdir(parents=True, exist_ok=True)
            for row in rows:
                row["location"] = str(client.files.download(row["file_id"], download, progress=err.is_terminal))
        if as_json:
            emit({"total": len(rows), "files": rows})
            return
        table = columns("file", "bytes", "type", "status", "id", long_first=True)
        for row in rows:
            table.add_row(
                row["file_id"], f"{row['num_bytes']:,}", row["file_type"], row["file_status"], row["file_uid"]
            )
        out.print(table if rows else "no files yet; `jos upload FILE` sends one")


COMMANDS: list[Callable[..., object]] = [upload, files]
