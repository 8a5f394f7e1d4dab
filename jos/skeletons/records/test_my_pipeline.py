"""Without Ray or anything else running: `pytest`."""

import json
from pathlib import Path

from my_pipeline import MyPipeline

from jos.testing import run_worker

EXAMPLES = Path(__file__).parent / "pipelines" / "my-pipeline" / "examples"


def test_words_are_counted_and_a_record_without_text_fails_alone() -> None:
    outputs = run_worker(MyPipeline, [EXAMPLES / "texts.jsonl"], config={"shortest": 3})
    [(name, content)] = outputs.files.items()
    assert name == "inp_texts_output.jsonl"
    assert [json.loads(line) for line in content.splitlines()] == [
        {"line_index": 0, "words": 4},
        {"line_index": 1, "words": 0},
        {"line_index": 2, "error": "the record has no text"},
    ]
    assert outputs.failures == {"texts.jsonl": {2: "texts.jsonl line 3: the record has no text"}}
