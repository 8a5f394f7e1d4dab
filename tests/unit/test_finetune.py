"""Labelled files as people name them, and the configuration of a training."""

from __future__ import annotations

from pathlib import Path

import pytest

from jos.core.errors import BadRequest
from jos.finetune import labelled, parameters, pipeline_of, upload_names


@pytest.fixture
def train(tmp_path: Path) -> Path:
    for name in ("idle/2.csv", "idle/1.CSV", "busy/1.csv", "busy/.hidden.csv", "busy/notes.txt", "loose.csv"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).touch()
    return tmp_path / "train"


def test_the_classes_of_a_folder_are_its_sub_folders(train: Path) -> None:
    found = [
        (str(train / "busy/1.csv"), "busy"),
        (str(train / "idle/1.CSV"), "idle"),
        (str(train / "idle/2.csv"), "idle"),
    ]
    assert labelled([str(train)], "--train") == found
    assert labelled([f"{train}/*/*"], "--train") == found
    assert labelled([str(train), f"{train}/*/*"], "--train") == found  # once each


def test_the_class_of_a_file_is_its_folder_unless_it_is_given(train: Path) -> None:
    assert labelled([str(train / "busy/1.csv")], "--train") == [(str(train / "busy/1.csv"), "busy")]
    assert labelled([f"{train}/loose.csv,class=odd one"], "--train") == [(str(train / "loose.csv"), "odd one")]
    assert {label for _, label in labelled([f"{train}/idle/*.*,class=off"], "--train")} == {"off"}


def test_a_relative_file_here_has_the_class_of_this_folder(train: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(train / "idle")
    assert labelled(["2.csv"], "--train") == [("2.csv", "idle")]


def test_a_comma_may_be_part_of_a_name(train: Path) -> None:
    odd = train / "idle" / "a,b.csv"
    odd.touch()
    for given in (str(odd), odd, f"{odd},class=idle", (odd, "idle")):
        assert labelled([given], "--train") == [(str(odd), "idle")]


def test_files_of_one_name_get_names_of_their_own_on_a_server(train: Path) -> None:
    paths = [str(train / name) for name in ("idle/1.csv", "busy/1.csv", "idle/2.csv")]
    assert list(upload_names(paths).values()) == ["idle_1.csv", "busy_1.csv", "2.csv"]


def test_all_that_names_no_file_is_told_at_once(train: Path) -> None:
    texts = [str(train / "idle"), f"{train}/*/none.csv", f"{train}/loose.csv,label=x", f"{train}/loose.csv,class="]
    with pytest.raises(BadRequest) as caught:
        labelled(texts, "--eval")
    assert all(repr(text) in caught.value.message for text in texts)
    assert "--eval" in caught.value.message
    assert "class=NAME" in str(caught.value.suggestion)


def test_only_what_is_given_is_set() -> None:
    assert parameters(["a"], 8) == {"worker": {"config": {"reader_config": {"data_columns": ["a"], "window_size": 8}}}}
    full = parameters(["a", "b"], 8, step=2, epochs=3, batch_size=4, seed=0)["worker"]["config"]
    assert (full["reader_config"]["step_size"], full["train_config"], full["batch_size"], full["seed"]) == (
        2,
        {"epochs": 3},
        4,
        0,
    )


def test_an_unknown_method_is_told_with_those_there_are() -> None:
    assert pipeline_of("knn") == "knn-fine-tuning-omega"
    with pytest.raises(BadRequest, match="svm"):
        pipeline_of("svm")


def test_files_of_one_name_in_one_class_of_several_sets_are_told_apart_too(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("train/a/1.csv", "eval/a/1.csv", "train/b/1.csv", "eval/b/2.csv")]
    names = upload_names(paths)
    assert list(names.values()) == ["train_a_1.csv", "eval_a_1.csv", "b_1.csv", "2.csv"]
    taken = [str(tmp_path / name) for name in ("a/1.csv", "b/1.csv", "c/a_1.csv")]
    assert len(set(upload_names(taken).values())) == 3
