"""The worker of the pipeline my-pipeline: one JSON record in, one JSON record out."""

from collections.abc import Mapping
from typing import Any

from jos.records import RecordFailed, RecordWorker


class MyPipeline(RecordWorker):
    def setup(self) -> None:
        """Once in each index: load models here. `self.context` has config, device, threads and inputs."""
        self.shortest = self.context.config["shortest"]

    def process(self, record: dict[str, Any]) -> Mapping[str, Any]:
        """One record's answer; `line_index` is added to it. For a model that answers many records in one call
        override `process_batch` instead."""
        if not isinstance(record.get("text"), str):
            raise RecordFailed("the record has no text")
        return {"words": sum(len(word) >= self.shortest for word in record["text"].split())}
