"""The part `file` of a multipart body, as it arrives: nothing of it is kept.

Clients that call it otherwise are served as well: a file of another name counts if none is called `file`. Only the
beginning of one is held back, until that is known.

May import: python_multipart, jos.core. Tests: tests/contract/test_files_post.py.
"""

from __future__ import annotations

import binascii
import re
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import unquote

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from jos.core.errors import BadRequest

FIELD = "file"
HELD = 1 << 20  # bytes of a part of another name that wait for one called `file`


@dataclass
class FormFile:
    filename: str
    content_type: str
    chunks: AsyncIterator[bytes]


async def form_file(content_type: str, body: AsyncIterator[bytes]) -> FormFile:
    """The part named `file`, once its headers are here, or the one other part that is a file; parts before it are
    skipped. BadRequest if there is none."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise BadRequest(
            "The body must be multipart/form-data with a part named 'file'.",
            suggestion="For example: curl -F file=@data.csv …",
        )
    parts = _Parts(boundary)
    while not parts.named and parts.held <= HELD and (data := await anext(body, None)) is not None:
        parts.feed(data)
    if parts.found is None:
        raise BadRequest(f"The multipart body has no part named '{FIELD}' with a filename.")
    parts.settled = True
    return FormFile(*parts.found, _rest(parts, body))


async def _rest(parts: _Parts, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while True:
        while parts.data:
            yield parts.data.popleft()
        if parts.ended:
            break
        data = await anext(body, None)
        if data is None:
            raise BadRequest("The multipart body breaks off before its end.")
        parts.feed(data)
    async for data in body:  # the closing line, and parts that nobody asked for
        if not parts.named:
            parts.feed(data)
    if parts.several:
        raise BadRequest(
            "The multipart body has several files.", suggestion=f"Send one, or name the one that is meant '{FIELD}'."
        )


@dataclass
class _Parts:
    """What python-multipart calls back with, told apart."""

    boundary: bytes
    found: tuple[str, str] | None = None  # filename and type of the part that is wanted
    named: bool = False  # it is called `file`
    settled: bool = False  # it is being read: no other can take its place
    several: bool = False  # there are others that may have been meant
    ended: bool = False
    held: int = 0  # bytes that came of it
    data: deque[bytes] = field(default_factory=deque)
    _headers: dict[str, bytes] = field(default_factory=dict)
    _name: bytes = b""
    _value: bytes = b""
    _wanted: bool = False

    def __post_init__(self) -> None:
        try:
            self._parser = MultipartParser(
                self.boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_end,
                },
            )
        except MultipartParseError as error:
            raise BadRequest(f"The multipart body cannot be read: {error}.") from error

    def feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise BadRequest(f"The multipart body cannot be read: {error}.") from error

    def _begin(self) -> None:
        self._headers, self._name, self._value = {}, b"", b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value
        self._name, self._value = b"", b""

    def _headers_finished(self) -> None:
        disposition = self._headers.get("content-disposition", b"").decode("latin-1")
        _, options = parse_options_header(disposition)
        filename = _filename(disposition, options)
        named = options.get(b"name") == FIELD.encode()
        if filename is None or self.named or not (named or filename):
            return
        if self.found is not None and (self.settled or not named):
            self.several = True
            return
        self.data.clear()
        self.ended, self.several, self.held = False, False, 0
        self._wanted, self.named = True, named
        self.found = filename, self._headers.get("content-type", b"").decode("latin-1")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._wanted:
            self.data.append(data[start:end])
            self.held += end - start

    def _part_end(self) -> None:
        self.ended = self.ended or self._wanted
        self._wanted = False


def _filename(disposition: str, options: dict[bytes, bytes]) -> str | None:
    """UTF-8 as browsers, curl and requests send it; or `filename*` of older clients."""
    extended = re.search(r";\s*filename\*\s*=\s*utf-8'[^']*'([^;]+)", disposition, re.IGNORECASE)
    if extended:
        return unquote(extended[1].strip().strip('"'))
    raw = options.get(b"filename")
    if raw is None:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


# --- base64 -----------------------------------------------------------------------------------------------

_SPACE = b" \t\r\n"


async def decoded(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The bytes that a base64 text stands for; white space in it is skipped. BadRequest if it is none."""
    left, padded = b"", False
    async for chunk in chunks:
        text = left + chunk.translate(None, _SPACE)
        if padded and text:
            raise BadRequest("The part 'file' is not base64: there is text behind its end.")
        cut = len(text) // 4 * 4
        left = text[cut:]
        if cut:
            padded = text[cut - 1 : cut] == b"="
            yield _decode(text[:cut])
    if left:
        raise BadRequest("The part 'file' is not base64: it breaks off.")


def _decode(text: bytes) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        raise BadRequest(f"The part 'file' is not base64: {error}.") from error
