"""The committed description of the API is the one that the routes give."""

from __future__ import annotations

from pathlib import Path

from jos.api.openapi import text

ROOT = Path(__file__).parents[2]


def test_openapi_json_is_up_to_date() -> None:
    committed = (ROOT / "openapi.json").read_text()
    assert committed == text(), "run: python -m jos.api.openapi > openapi.json"
