"""Real services for the integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from valkey_lab import Valkey

from jos.store import embedded


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    server = Valkey(tmp_path / "redis")
    server.ensure()
    yield server
    embedded.stop(server.data_dir)
