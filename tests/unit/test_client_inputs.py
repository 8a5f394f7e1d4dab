"""What a caller of the client names as inputs: local files, uploaded ones, pairs with a class, and mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jos.client.inputs import sort_out
from jos.core.errors import ConfigInvalid
from jos.core.model import InputRef

CASES: dict[str, tuple[Any, list[dict[str, Any]], list[str]]] = {
    "a local file is uploaded under its name": ("here.csv", [{"file_id": "here.csv"}], ["here.csv"]),
    "any other name is a file of the server": ("there.csv", [{"file_id": "there.csv"}], []),
    "a pair is a file and its class": (
        ("here.csv", "idle"),
        [{"file_id": "here.csv", "metadata": {"class": "idle"}}],
        ["here.csv"],
    ),
    "a list holds several": (
        ["here.csv", "there.csv"],
        [{"file_id": "here.csv"}, {"file_id": "there.csv"}],
        ["here.csv"],
    ),
    "a glob is all that it matches": (
        "*.csv",
        [{"file_id": "also.csv"}, {"file_id": "here.csv"}],
        ["also.csv", "here.csv"],
    ),
    "a mapping is a reference": (
        {"file_id": "there.csv", "metadata": {"shift": "night"}},
        [{"file_id": "there.csv", "metadata": {"shift": "night"}}],
        [],
    ),
    "a checkpoint is known by its id": (
        "ckp_00000000000000000000000001",
        [{"kind": "checkpoint", "checkpoint_id": "ckp_00000000000000000000000001"}],
        [],
    ),
    "a checkpoint is no file": (
        {"kind": "checkpoint", "checkpoint_id": "ckp_1"},
        [{"kind": "checkpoint", "checkpoint_id": "ckp_1"}],
        [],
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("here.csv", "also.csv"):
        (tmp_path / name).write_text("a\n1\n")
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_inputs_are_told_apart(folder: Path, case: str) -> None:
    given, refs, local = CASES[case]
    named = sort_out({"inference": given}, folder)
    assert named.inputs == {"worker.inference": [InputRef.model_validate(r) for r in refs]}
    assert [p.name for p in named.local] == local


def test_all_that_is_wrong_is_told_at_once(folder: Path) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        sort_out({"a": ["sub/gone.csv", 7], "worker.b": "s3://bucket/x.csv"}, folder)
    assert [v.path for v in caught.value.violations] == [
        '$.inputs["worker.a"][0]',
        '$.inputs["worker.a"][1]',
        '$.inputs["worker.b"][0]',
    ]
