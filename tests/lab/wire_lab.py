"""A wire between a service and its Redis that knows what is written: something can happen just before a certain write
is carried out, or after that and before it is answered.

Tests: tests/e2e/test_kuberay_crashes.py.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Snare:
    """Once. `marks` are all in the bytes of the write; `lost`: its writer is dead by then, so that it is not carried
    out, or nobody hears the answer."""

    marks: tuple[bytes, ...]
    spring: Callable[[], None]
    after: bool
    lost: bool

    def holds(self, data: bytes) -> bool:
        return all(mark in data for mark in self.marks)


class Wire:
    """Listens on a port of this machine, and hands on to the server of a unix socket."""

    def __init__(self, url: str) -> None:
        self._path = url.removeprefix("unix://")
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._snares: list[Snare] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, name="wire", daemon=True).start()

    def snare(self, *marks: str, spring: Callable[[], None], after: bool, lost: bool) -> None:
        """`marks` tell one write: small enough to come as a whole."""
        with self._lock:
            self._snares.append(Snare(tuple(mark.encode() for mark in marks), spring, after, lost))

    def close(self) -> None:
        with self._lock:
            ends = [self._listener, *self._open]
        for end in ends:
            _shut(end)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                Link(self, client).start(self._path)

    def _caught(self, data: bytes) -> Snare | None:
        with self._lock:
            found = next((snare for snare in self._snares if snare.holds(data)), None)
            if found is not None:
                self._snares.remove(found)
            return found


class Link:
    """One client's connection. It waits for each answer before it asks again."""

    def __init__(self, wire: Wire, client: socket.socket) -> None:
        self._wire, self._client = wire, client
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._awaited: Snare | None = None  # to spring when the answer comes

    def start(self, path: str) -> None:
        self._server.connect(path)
        with self._wire._lock:
            self._wire._open |= {self._client, self._server}
        for way in (self._ask, self._answer):
            threading.Thread(target=self._run, args=(way,), name="link", daemon=True).start()

    def _run(self, way: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):
            way()
        with self._wire._lock:
            self._wire._open -= {self._client, self._server}
        _shut(self._client)
        _shut(self._server)

    def _ask(self) -> None:
        while data := self._client.recv(1 << 20):
            snare = self._wire._caught(data)
            if snare is not None and not snare.after:
                snare.spring()
                if snare.lost:
                    return
            elif snare is not None:
                self._awaited = snare
            self._server.sendall(data)

    def _answer(self) -> None:
        while data := self._server.recv(1 << 20):
            snare, self._awaited = self._awaited, None
            if snare is not None:
                snare.spring()
                if snare.lost:
                    return
            self._client.sendall(data)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
