"""Kubernetes' protobuf, as far as kubectl insists on it: what `kubectl create` and `kubectl auth can-i` send.

Only these kinds and of them only these fields; numbers as in Kubernetes' generated.proto files. Answers are JSON, which
the same clients read.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

from kube.errors import ApiError, bad_request

MAGIC = b"k8s\x00"
Read = Callable[[bytes], Any]
Fields = dict[int, tuple[str, Read]]


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Field numbers and contents of one message; numbers in it are passed over, for nothing here asks for one."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == 0:
            _, at = _varint(data, at)
        elif tag & 7 == 2:
            size, at = _varint(data, at)
            yield tag >> 3, data[at : at + size]
            at += size
        else:
            raise bad_request(f"protobuf with wire type {tag & 7} is not read here")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    found = shift = 0
    while True:
        byte = data[at]
        found |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return found, at


def _message(fields: Fields) -> Read:
    """Reads a message into a dict: empty strings are left out, entries of a map come together."""

    def read(data: bytes) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for number, content in _parts(data):
            name, inner = fields.get(number, ("", _text))
            value = inner(content) if name else None
            if isinstance(value, tuple):
                found.setdefault(name, {})[value[0]] = value[1]
            elif value not in (None, ""):
                found[name] = value
        return found

    return read


def _text(data: bytes) -> str:
    return data.decode()


def _coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _entry(value: Read) -> Read:
    def read(data: bytes) -> tuple[str, Any]:
        parts = dict(_parts(data))
        return _text(parts.get(1, b"")), value(parts.get(2, b""))

    return read


_META = _message(
    {
        1: ("name", _text),
        2: ("generateName", _text),
        3: ("namespace", _text),
        11: ("labels", _entry(_text)),
        12: ("annotations", _entry(_text)),
    }
)
_ATTRIBUTES = _message(
    {
        number: (name, _text)
        for number, name in enumerate(
            ("namespace", "verb", "group", "version", "resource", "subresource", "name"), start=1
        )
    }
)
_KINDS: dict[str, Read] = {
    "Namespace": _message({1: ("metadata", _META)}),
    "ServiceAccount": _message({1: ("metadata", _META)}),
    "ConfigMap": _message({1: ("metadata", _META), 2: ("data", _entry(_text)), 3: ("binaryData", _entry(_coded))}),
    "Secret": _message(
        {1: ("metadata", _META), 2: ("data", _entry(_coded)), 3: ("type", _text), 4: ("stringData", _entry(_text))}
    ),
    "SelfSubjectAccessReview": _message({2: ("spec", _message({1: ("resourceAttributes", _ATTRIBUTES)}))}),
}
_TYPE = _message({1: ("apiVersion", _text), 2: ("kind", _text)})


def decoded(data: bytes) -> dict[str, Any]:
    """The object in a request's body; 415 for a kind that is not read here."""
    if not data.startswith(MAGIC):
        raise bad_request("the body is no protobuf of Kubernetes")
    envelope = dict(_parts(data[len(MAGIC) :]))
    known: dict[str, Any] = _TYPE(envelope[1])
    read = _KINDS.get(known["kind"])
    if read is None:
        raise ApiError(415, "UnsupportedMediaType", f"protobuf of a {known['kind']} is not read here: send JSON")
    return known | dict(read(envelope.get(2, b"")))
