"""Proofs in URLs: who holds one may do the one thing it was made for, until it expires, without a key.

HMAC-SHA256 over method, subject and expiry with a secret of the store that all API processes share.
May import: jos.core. Tests: tests/unit/test_files_signing.py.
"""

from __future__ import annotations

import hashlib
import hmac

from jos.core.files import LinkRefused

SECRET = "urls"  # its name in jos.store.secrets


class Signer:
    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, method: str, subject: str, expires: int) -> str:
        """`expires` in Unix seconds."""
        message = "\n".join((method, str(expires), subject)).encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()

    def check(self, method: str, subject: str, expires: int, signature: str, now: float) -> None:
        """Raises LinkRefused."""
        good = self.sign(method, subject, expires).encode()
        if not hmac.compare_digest(good, signature.encode(errors="replace")):
            raise LinkRefused("This link was not made by this service, or was changed on the way.")
        if now >= expires:
            raise LinkRefused("This link has expired.", suggestion="Ask for a new one.")
