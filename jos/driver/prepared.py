"""What the first stage of a training made of its inputs, for the trainer's `begin`: read from the commit log, which
alone says what counts.

May import: jos.core, jos.storage. Tests: tests/unit/test_index_training.py, tests/integration/test_training.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from jos.core import standing
from jos.core.ledger import Blob, InputLedger
from jos.core.model import JobSpec
from jos.storage.base import Storage
from jos.storage.log import CommitLog
from jos.storage.source import FileSource, source_of


@dataclass(frozen=True)
class PreparedInput:
    """See jos.worker.Prepared."""

    source: FileSource
    port: str
    tasks: int
    storage: Storage
    folder: str
    parts: tuple[Blob, ...]

    def read(self) -> bytes:
        return b"".join(self.storage.read(self.folder + part.key) for part in self.parts)


def prepared(spec: JobSpec, storage: Storage, folder: str) -> list[PreparedInput]:
    """In the order of the job's inputs, without those that have no tasks."""
    if not any(standing.scattered(spec, ordinal) for ordinal in range(len(spec.inputs))):
        return []
    known = CommitLog.open(storage, folder).ledger.inputs
    found = []
    for ordinal, one in enumerate(spec.inputs):
        ledger = known.get(ordinal, InputLedger())
        if standing.scattered(spec, ordinal) and len(ledger.done):
            parts = tuple(finished.blob for _, finished in sorted(ledger.finished.items()))
            found.append(PreparedInput(source_of(one), one.port, len(ledger.done), storage, folder, parts))
    return found
