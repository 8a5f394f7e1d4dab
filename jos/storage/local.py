"""A folder as storage: for a laptop, or for a file system that every node mounts.

A file is written beside the others under `.tmp/`, synced, and then renamed (write) or hard-linked (create) to its
name: a reader sees all of it or nothing, and `link(2)` refuses a name that is taken. What a killed writer leaves
stays in `.tmp/`, is never listed, and is removed when old.
May import: jos.core, jos.storage.base, jos.storage.keys. Tests: tests/contract/test_storage.py.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from jos.core.errors import BadRequest, JosError, ObjectMissing, StorageUnavailable, StorageUnfit
from jos.storage.base import Stat
from jos.storage.keys import RESERVED, check_key, check_prefix

LEFTOVER_SECONDS = 86400  # a live writer touches its file far more often
_CHUNK = 1 << 20

_WHAT_TO_DO = {
    errno.ENOSPC: "The disk is full: free some space or choose another storage root.",
    errno.EDQUOT: "The disk quota is used up: free some space or ask for more.",
    errno.EFBIG: "A file may not grow this large here: raise the limit (ulimit -f) or choose another root.",
    errno.EROFS: "The file system is read-only: remount it writable or choose another storage root.",
    errno.EACCES: "Give the user that runs JOS read and write access to it, or choose another storage root.",
    errno.EPERM: "Give the user that runs JOS read and write access to it, or choose another storage root.",
}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


class LocalStorage:
    """Storage in a folder. Made if missing; safe in many threads and processes, and on many hosts if the folder
    is on a shared file system with working hard links (NFS, CephFS, Lustre)."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(os.path.abspath(Path(root).expanduser()))
        self._tmp = self.root / RESERVED
        with self.told("write to"):
            self.make_folder(self._tmp)
            self._remove_leftovers()

    @property
    def url(self) -> str:
        return str(self.root)

    def __repr__(self) -> str:
        return f"LocalStorage({str(self.root)!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return (LocalStorage, (str(self.root),))

    def location(self, key: str) -> str:
        return str(self._path(key))

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        with self.told("read from", key):
            try:
                with open(self._path(key), "rb") as file:
                    if start:
                        file.seek(start)
                    return file.read() if end is None else file.read(max(end - start, 0))
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise ObjectMissing(f"There is no {self._path(key)}.") from None

    def stat(self, key: str) -> Stat | None:
        path = self._path(key)
        with self.told("read from", key):
            try:
                found = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        if not stat.S_ISREG(found.st_mode):
            return None
        return Stat(key, found.st_size, f"{found.st_mtime_ns:x}-{found.st_ino:x}-{found.st_size:x}")

    def write(self, key: str, data: bytes | Iterable[bytes]) -> None:
        path = self._path(key)
        with self._temporary(key, data) as temporary, self.told("write to", key):
            self._place(os.replace, temporary, path)

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with self.told("write to", key):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "a folder")
            if os.path.lexists(path):  # saves a common loser two syncs; link(2) alone decides who wins
                return False
        with self._temporary(key, data) as temporary, self.told("write to", key):
            try:
                self._place(os.link, temporary, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                raise StorageUnfit(
                    f"{self.root} cannot make hard links ({error.strerror}), which JOS needs for create-if-absent.",
                    suggestion="Use a folder on a local disk (ext4, xfs, apfs), on NFS or CephFS, or an S3 bucket.",
                ) from error
        return True

    def list(self, prefix: str, after: str = "") -> Iterator[Stat]:
        """Holds the names of one folder per level in memory, no more."""
        check_prefix(prefix)
        with self.told("read from", prefix):
            yield from self._walk(self.root / prefix, prefix, after)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            with self.told("delete from", key), contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self._path(key).unlink()

    def folders(self, prefix: str) -> Iterator[str]:
        check_prefix(prefix)
        with self.told("read from", prefix):
            try:
                with os.scandir(self.root / prefix) as entries:
                    names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
            except (FileNotFoundError, NotADirectoryError):
                return
        yield from (name for name in names if prefix or name != RESERVED)

    # --- for uploads in parts ---------------------------------------------------------------------------

    def place(self, finished: Path, key: str) -> None:
        """Gives a synced file of this file system its name, replacing what is there."""
        self._place(os.replace, finished, self._path(key))

    # --- inside ---------------------------------------------------------------------------------------

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _walk(self, folder: Path, prefix: str, after: str) -> Iterator[Stat]:
        try:
            with os.scandir(folder) as entries:
                # A folder sorts as "name/", so that the walk meets keys in the order of S3: "a-b" before "a/b".
                names = [e.name + "/" if e.is_dir(follow_symlinks=False) else e.name for e in entries]
        except (FileNotFoundError, NotADirectoryError):
            return
        names.sort()
        for name in names:
            key = prefix + name
            if not name.endswith("/"):
                # A name that is no key (not UTF-8, say) was not put there by JOS.
                with contextlib.suppress(BadRequest):
                    if key > after and (found := self.stat(key)) is not None:
                        yield found
            elif not (key <= after and not after.startswith(key)) and key != RESERVED + "/":
                yield from self._walk(folder / name, key, after)

    @contextlib.contextmanager
    def _temporary(self, key: str, data: bytes | Iterable[bytes]) -> Iterator[Path]:
        """A synced file with this content, gone afterwards unless it was renamed."""
        path = self._tmp / f"{os.getpid()}-{secrets.token_hex(8)}"
        try:
            with self.told("write to", key):
                handle = self._open_new(path)
            with open(handle, "wb", buffering=0) as file:
                for chunk in [data] if isinstance(data, bytes) else data:  # its own errors pass as they are
                    with self.told("write to", key):
                        _write_all(file, chunk)
                with self.told("write to", key):
                    os.fsync(handle)
            yield path
        finally:
            with contextlib.suppress(OSError):
                path.unlink()

    def _open_new(self, path: Path) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o666)
        except FileNotFoundError:  # somebody tidied up the whole folder
            self.make_folder(self._tmp)
            return os.open(path, flags, 0o666)

    def _place(self, step: Callable[[Path, Path], None], temporary: Path, path: Path) -> None:
        """Gives the finished file its name, and makes the name as durable as the content."""
        try:
            step(temporary, path)
        except FileNotFoundError:  # the first file in this folder
            self.make_folder(path.parent)
            step(temporary, path)
        _sync_folder(path.parent)

    def make_folder(self, folder: Path) -> None:
        """mkdir -p in which every new name is durable before anything is put below it."""
        if folder.is_dir():
            return
        self.make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):  # another writer was faster; a file in the way shows later
            folder.mkdir()
        _sync_folder(folder.parent)

    def _remove_leftovers(self) -> None:
        oldest = time.time() - LEFTOVER_SECONDS
        with os.scandir(self._tmp) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # another process removes them too
                    if entry.stat().st_mtime < oldest:
                        os.unlink(entry.path)

    @contextlib.contextmanager
    def told(self, doing: str, key: str = "") -> Iterator[None]:
        """OSError -> an error that names the folder and what to do."""
        try:
            yield
        except (JosError, GeneratorExit):
            raise
        except (NotADirectoryError, IsADirectoryError) as error:
            raise BadRequest(
                f"'{key or self.root}' cannot be used: a name on its way is a file where a folder is needed, "
                "or the other way round."
            ) from error
        except OSError as error:
            raise StorageUnavailable(
                f"Cannot {doing} the storage folder {self.root}: {error.strerror or error}.",
                suggestion=_WHAT_TO_DO.get(error.errno or 0, "Check the disk and that the folder is mounted."),
            ) from error


def _write_all(file: io.FileIO, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[file.write(view[:_CHUNK]) :]


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems sync names by themselves and say so this way
            raise
    finally:
        os.close(handle)
