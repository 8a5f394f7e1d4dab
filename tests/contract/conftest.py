"""The storages that the storage suites run on: a folder, and a real S3 (tests/lab/services_lab.py)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from files_lab import Api, serving
from services_lab import BUCKET, S3

from jos.storage import Storage, open_storage


@pytest.fixture
def s3(seaweedfs: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """SeaweedFS with this process's environment pointing at it."""
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    return seaweedfs


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty storage root of each kind."""
    if request.param == "local":
        return open_storage(str(tmp_path / "root"))
    request.getfixturevalue("s3")
    return open_storage(f"s3://{BUCKET}/{secrets.token_hex(6)}")


@pytest.fixture(params=["local", "s3"])
def api(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Api]:
    """A running service on each kind of storage, with nothing in it."""
    storage = None
    if request.param == "s3":
        request.getfixturevalue("s3")
        storage = f"s3://{BUCKET}/{secrets.token_hex(6)}"
    with serving(tmp_path, storage) as running:
        yield running
