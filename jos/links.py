"""URLs that need no key: to read one object of the storage, or to send one part of an upload, until they expire.

On S3 they are the store's own presigned URLs, unless who asks wants the API's; in a folder JOS signs them and serves
them itself (jos/api/signed.py).
May import: jos.core, jos.storage, jos.store, jos.signing. Tests: tests/contract/test_files_read.py.
"""

from __future__ import annotations

import time
from typing import Self
from urllib.parse import quote, urlencode

from jos.core.files import OCTETS, Part
from jos.signing import SECRET, Signer
from jos.storage.base import Storage
from jos.storage.local import LocalStorage
from jos.store.connection import Connection
from jos.store.secrets import secret

SIGNED = "signed"  # below each base of the API
_VERSION = "/v0.5"
LINK_SECONDS = 3600  # how long the links of a job's inputs and outputs are good


class Links:
    def __init__(self, storage: Storage, signer: Signer, public_endpoint: str | None = None) -> None:
        """`public_endpoint`: where clients reach the S3 store, if not where this process does."""
        self._storage, self._signer, self._public = storage, signer, public_endpoint

    @classmethod
    async def open(cls, connection: Connection, storage: Storage, public_endpoint: str | None = None) -> Self:
        return cls(storage, Signer(await secret(connection, SECRET)), public_endpoint)

    def download(self, key: str, filename: str, base_url: str, seconds: int = 3600) -> str:
        """An absolute URL of the object, which answers with it as an attachment of this name. No request is made."""
        if isinstance(self._storage, LocalStorage):
            return self.through_api(key, filename, base_url, seconds)
        from jos.storage.s3 import ObjectStorage

        assert isinstance(self._storage, ObjectStorage)
        if self._storage.bucket.scheme != "s3":
            return self._storage.signed_url(key, seconds)
        from jos.storage.uploads_s3 import presigned

        where = {
            "Bucket": self._storage.bucket.name,
            "Key": self._storage.at(key),
            "ResponseContentDisposition": disposition(filename),
            "ResponseContentType": OCTETS,
        }
        return presigned(self._public, "get_object", where, seconds)

    def through_api(self, key: str, filename: str, base_url: str, seconds: int = 3600) -> str:
        """The same, served by the API whatever the storage: for a page that asks no other origin."""
        expires = int(time.time()) + seconds
        signature = self._signer.sign("GET", _object(key, filename), expires)
        query = urlencode({"key": key, "expires": expires, "signature": signature}, quote_via=quote)
        return f"{_below(base_url)}/files/{quote(filename, safe='')}?{query}"

    def part(self, handle: str, part: Part, base_url: str, expires: int) -> str:
        """Where the API itself takes one part; `expires` in Unix seconds."""
        signature = self._signer.sign("PUT", _part(handle, part), expires)
        query = urlencode({"offset": part.offset, "length": part.length, "expires": expires, "signature": signature})
        return f"{_below(base_url)}/parts/{handle}/{part.number}?{query}"

    def check_download(self, key: str, filename: str, expires: int, signature: str) -> None:
        """Raises LinkRefused."""
        self._signer.check("GET", _object(key, filename), expires, signature, time.time())

    def check_part(self, handle: str, part: Part, expires: int, signature: str) -> None:
        """Raises LinkRefused."""
        self._signer.check("PUT", _part(handle, part), expires, signature, time.time())


def disposition(filename: str) -> str:
    """Always an attachment, so that no browser runs a file in the API's origin. Old clients get an ASCII name."""
    plain = "".join(c if " " <= c <= "~" and c not in '"\\%' else "_" for c in filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


def _below(base_url: str) -> str:
    """The base may be the whole of what clients are told, such as https://host/api or https://host/api/v0.5."""
    return f"{base_url.rstrip('/').removesuffix(_VERSION)}{_VERSION}/{SIGNED}"


def _object(key: str, filename: str) -> str:
    return f"{quote(key)}\n{quote(filename)}"  # quoted: no line feed of a name can make two names one


def _part(handle: str, part: Part) -> str:
    return f"{handle}\n{part.number}\n{part.offset}\n{part.length}"
