"""`client.files`: upload, download, list, get, delete.

May import: jos.client.{http,transfer,bars}. Tests: tests/unit/test_client_transfer.py, tests/e2e/test_client.py.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from pydantic import TypeAdapter

from jos.client import crc
from jos.client.bars import Meter, metered
from jos.client.http import Http, ambiguous
from jos.client.transfer import CHUNK, Add, Sending, checksum_of, fetch
from jos.core.errors import BadRequest, Conflict, JosError, NotFound
from jos.core.files import file_type
from jos.wire import FileAnswer, FileInfo, FileRecord, UploadStart

SMALL = 64 << 20  # bytes; files up to this size go side by side, a larger one alone with its parts side by side
WORKERS = 4
Source = str | Path
_RECORDS: TypeAdapter[list[FileRecord]] = TypeAdapter(list[FileRecord])


def expand(sources: Source | Iterable[Source]) -> list[Path]:
    """Files, folders (all below them but hidden ones) and globs, as files. Raises BadRequest naming every source that
    gives none, and names that are there twice: an uploaded file is known by its name alone."""
    found: list[Path] = []
    nothing: list[str] = []
    for source in [sources] if isinstance(sources, str | Path) else sources:
        path = Path(source).expanduser()
        if path.is_file():
            more = [path]
        elif path.is_dir():
            more = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
        else:
            more = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        found += more
        nothing += [] if more else [str(source)]
    if nothing:
        raise BadRequest(f"no file there: {', '.join(nothing)}")
    return distinct(found)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def distinct(paths: Iterable[Path]) -> list[Path]:
    by_name: dict[str, dict[Path, Path]] = {}
    for path in paths:
        by_name.setdefault(path.name, {})[path.resolve()] = path
    clashes = [" and ".join(map(str, same.values())) for same in by_name.values() if len(same) > 1]
    if clashes:
        raise BadRequest(
            f"files of the same name: {'; '.join(clashes)}.",
            suggestion="The server knows a file by its name alone: rename one, or upload it with name=….",
        )
    return [path for same in by_name.values() for path in same.values()]


class Files:
    def __init__(self, http: Http) -> None:
        self._http = http

    # --- up ---

    def upload(
        self,
        sources: Source | Iterable[Source],
        *,
        name: str | None = None,
        replace: bool = False,
        workers: int = WORKERS,
        progress: bool | Callable[[int, int], object] = False,
    ) -> list[FileRecord]:
        """Uploads a file, a folder, a glob, or several of these; one record per file, in order.

        A file that is there already with the same content is not sent again; with other content it is a Conflict
        unless `replace`. A call that was cut off, by whatever, goes on where it was when it is made again.
        progress: a bar, or a function of (bytes done, bytes in all).
        """
        paths = expand(sources)
        if name is not None and len(paths) != 1:
            raise BadRequest(f"name={name!r} is for one file; these are {len(paths)}.")
        return self.upload_as(
            [(path, name or path.name) for path in paths],
            replace=replace,
            workers=workers,
            progress=progress,
        )

    def upload_as(
        self,
        files: Sequence[tuple[Path, str]],
        *,
        replace: bool = False,
        workers: int = WORKERS,
        progress: bool | Callable[[int, int], object] = False,
    ) -> list[FileRecord]:
        """As `upload`, of files with the names that they are to have on the server."""
        total = sum(path.stat().st_size for path, _ in files)
        with metered(progress, total, "upload") as meter:
            return self._upload_all(files, replace, workers, meter)

    def _upload_all(
        self, files: Sequence[tuple[Path, str]], replace: bool, workers: int, meter: Meter
    ) -> list[FileRecord]:
        small = {path for path, _ in files if path.stat().st_size <= SMALL} if len(files) > 1 else set()
        done: dict[str, FileRecord] = {}
        for path, name in files:
            if path not in small:
                done[name] = self._upload_one(path, name, replace, workers, meter.add)
        with ThreadPoolExecutor(workers, "jos-files") as pool:
            try:
                waiting = {
                    n: pool.submit(self._upload_one, p, n, replace, 1, meter.add) for p, n in files if p in small
                }
                done |= {name: one.result() for name, one in waiting.items()}
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [done[name] for _, name in files]

    def _upload_one(self, path: Path, name: str, replace: bool, workers: int, add: Add) -> FileRecord:
        start = UploadStart(
            filename=name, file_type=file_type(name), num_bytes=path.stat().st_size, resume_if_started=True
        )
        sending = Sending(self._http, path, start, workers, add)
        try:
            sending.run()
        except Conflict as error:
            there = self._registered(name)
            if there is None:
                raise  # another upload of the same name is unfinished
            if there.file_status == "Registered" and self._same(path, there):
                add(start.num_bytes)
                return there
            if not replace and there.file_status == "Registered":
                raise _taken(path, name) from error
            self.delete(name)
            Sending(self._http, path, start, workers, add).run()
        return self.get(name)

    def _registered(self, name: str) -> FileRecord | None:
        """What the name stands for; None while it is being uploaded."""
        try:
            record = self.get(name)
        except NotFound:
            return None
        return None if record.file_status == "Uploading" else record

    def _same(self, path: Path, there: FileRecord) -> bool:
        if path.stat().st_size != there.num_bytes:
            return False
        known = there.file_attributes.get("crc32c") or (there.model_extra or {}).get("crc32c")
        return checksum_of(path) == (known or self._checksum_there(there.file_id))

    def _checksum_there(self, name: str) -> str:
        """For a server that does not tell checksums: read it."""
        total = 0
        with self._http.open(f"/v0.5/files/download/{quote(name)}", keyed=True) as answer:
            for data in answer.iter_bytes(CHUNK):
                total = crc.extend(total, data)
        return crc.text(total)

    def abort(self, path: Source, *, name: str | None = None) -> None:
        """Throws away what an unfinished upload of this file has sent."""
        path = Path(path)
        start = UploadStart(
            filename=name or path.name,
            file_type=file_type(name or path.name),
            num_bytes=path.stat().st_size,
            resume_if_started=True,
        )
        from jos.wire import Upload

        upload = self._http.post("/files/uploads/initiate", Upload, start, twice=True)
        Sending(self._http, path, start, 1, lambda _: None).abort(upload.upload_id)

    # --- down and around ---

    def download(
        self,
        name: str,
        to: Source = ".",
        *,
        progress: bool | Callable[[int, int], object] = False,
    ) -> Path:
        """Into the folder or the file `to`; complete or not there at all."""
        target = Path(to).expanduser()
        record = self.get(name)
        target = target / Path(record.file_id).name if target.is_dir() else target
        with metered(progress, record.num_bytes, record.file_id) as meter:
            url = f"/v0.5/files/download/{quote(record.file_id)}"
            return fetch(self._http, url, target, keyed=True, num_bytes=record.num_bytes, add=meter.add)

    def list(self, *, kind: str | None = None) -> Sequence[FileRecord]:
        """`kind`: only those of this type, e.g. text/csv."""
        params = {"file_type": kind} if kind else {}
        return _RECORDS.validate_json(self._http.send("GET", "/files/metadata", params=params).content)

    def get(self, name: str) -> FileRecord:
        return self._http.get(f"/files/metadata/{quote(name)}", FileRecord)

    def info(self) -> FileInfo:
        return self._http.get("/files/info", FileInfo)

    def delete(self, name: str) -> None:
        """Raises Conflict while a job reads it."""
        try:
            self._http.delete(f"/files/delete/{quote(name)}", FileAnswer)
        except NotFound as error:
            if not ambiguous(error):
                raise


def _taken(path: Path, name: str) -> JosError:
    stem, dot, rest = name.rpartition(".")
    mark = hashlib.sha256(str(path).encode()).hexdigest()[:4]
    other = f"{stem or rest}_{mark}{dot}{rest if stem else ''}"
    return Conflict(
        f"{name} is on the server already, with other content than {path}.",
        suggestion=f"Upload it under another name (name={other!r}, `jos upload --name`), or replace what is there "
        "(replace=True, `jos upload --replace`); jobs that were made from it keep what they read.",
    )
