"""Proofs in URLs: bound to method, subject and expiry, and to the secret."""

from __future__ import annotations

import pytest

from jos.core.files import LinkRefused
from jos.signing import Signer

SIGNER = Signer(b"s" * 32)


def test_a_proof_opens_what_it_was_made_for() -> None:
    SIGNER.check("GET", "key", 100, SIGNER.sign("GET", "key", 100), now=99.9)


@pytest.mark.parametrize(
    ("method", "subject", "expires"), [("PUT", "key", 100), ("GET", "key2", 100), ("GET", "key", 101)]
)
def test_and_nothing_else(method: str, subject: str, expires: int) -> None:
    with pytest.raises(LinkRefused, match="not made by this service"):
        SIGNER.check(method, subject, expires, SIGNER.sign("GET", "key", 100), now=0)


@pytest.mark.parametrize("signature", ["", "é", "0" * 64, Signer(b"t" * 32).sign("GET", "key", 100)])
def test_a_foreign_proof_is_refused(signature: str) -> None:
    with pytest.raises(LinkRefused) as caught:
        SIGNER.check("GET", "key", 100, signature, now=0)
    assert caught.value.http_status == 403


def test_it_ends_when_it_says() -> None:
    with pytest.raises(LinkRefused, match="expired"):
        SIGNER.check("GET", "key", 100, SIGNER.sign("GET", "key", 100), now=100)
