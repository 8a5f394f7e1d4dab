"""A whole pipeline: counts the words of each record. docs/pipelines.md walks through it."""

from collections.abc import Mapping
from typing import Any

from jos.records import RecordFailed, RecordWorker


class WordCount(RecordWorker):
    def setup(self) -> None:
        self.shortest = self.context.config["shortest"]

    def process(self, record: dict[str, Any]) -> Mapping[str, Any]:
        if not isinstance(record.get("text"), str):
            raise RecordFailed("the record has no text")
        return {"words": sum(len(word) >= self.shortest for word in record["text"].split())}
