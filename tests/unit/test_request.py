"""Requests as people write them: options, keyword arguments, files."""

from __future__ import annotations

from pathlib import Path

import pytest

from jos.core.errors import BadRequest, ConfigInvalid
from jos.request import build, from_options, input_option, parse_request, read_request, set_option


def test_an_option_names_port_file_and_metadata(tmp_path: Path) -> None:
    assert input_option("worker.n_shots=a.csv,class=idle") == (
        "worker.n_shots",
        [{"file_id": "a.csv", "metadata": {"class": "idle"}}],
    )
    for name in ("b.csv", "a.csv"):
        (tmp_path / name).touch()
    _, refs = input_option(f"worker.inference={tmp_path}/*.csv")
    assert [Path(r["file_id"]).name for r in refs] == ["a.csv", "b.csv"]


def test_an_option_names_a_checkpoint_by_its_id_and_a_file_of_that_name_by_its_path() -> None:
    name = "ckp_00000000000000000000000001"
    assert input_option(f"fine_tune_checkpoint={name}") == (
        "worker.fine_tune_checkpoint",
        [{"kind": "checkpoint", "checkpoint_id": name, "metadata": {}}],
    )
    assert input_option(f"worker.fine_tune_checkpoint=./{name}")[1] == [{"file_id": f"./{name}", "metadata": {}}]


@pytest.mark.parametrize("text", ["worker.n_shots", "worker.n_shots=", "worker.n_shots=a.csv,idle", "x=/nowhere/*.csv"])
def test_a_bad_input_option_says_what_is_wrong_with_it(text: str) -> None:
    with pytest.raises(BadRequest, match="--input"):
        input_option(text)


def test_set_options_are_yaml_values_at_a_path() -> None:
    parameters: dict[str, object] = {}
    set_option(parameters, "worker.config.batch_size=64")
    set_option(parameters, "worker.config.reader_config.data_columns=[a, b]")
    set_option(parameters, "worker.parallelism=2")
    assert parameters == {
        "worker": {"parallelism": 2, "config": {"batch_size": 64, "reader_config": {"data_columns": ["a", "b"]}}}
    }


@pytest.mark.parametrize("text", ["worker", "worker=3", "worker..x=3", "worker.parallelism.x=3"])
def test_a_bad_set_option_says_what_is_wrong_with_it(text: str) -> None:
    with pytest.raises(BadRequest, match="--set"):
        set_option({"worker": {"parallelism": 2}}, text)


def test_keyword_arguments_take_paths_pairs_and_mappings() -> None:
    ref = {"file_id": "s3://b/c.csv", "metadata": {"class": "busy"}}
    request = build("p", {"inference": "a.csv", "worker.n_shots": [("b.csv", "idle"), ref]}, parallelism=3)
    assert request.parameters["worker"].parallelism == 3
    (one,) = request.inputs["worker.inference"]
    assert one.file_id == str(Path("a.csv").absolute())
    idle, busy = request.inputs["worker.n_shots"]
    assert idle.metadata == {"class": "idle"}
    assert (busy.file_id, busy.metadata) == ("s3://b/c.csv", {"class": "busy"})


def test_a_file_s_paths_are_relative_to_it_and_options_to_the_working_directory(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("name: n\npipeline_key: p\ninputs: {worker.data: [{file_id: a.csv}]}\n")
    request = read_request(file, inputs=["worker.data=b.csv"], sets=["worker.config.x=1"], name="other")
    assert [r.file_id for r in request.inputs["worker.data"]] == [
        str(tmp_path / "a.csv"),
        str(Path("b.csv").absolute()),
    ]
    assert (request.name, request.parameters["worker"].config) == ("other", {"x": 1})


@pytest.mark.parametrize("text", ["- a list", "name: [", "just words"])
def test_a_file_that_is_no_request_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(BadRequest, match=r"job\.yaml"):
        read_request(file)


def test_every_violation_of_a_request_comes_with_its_path() -> None:
    with pytest.raises(ConfigInvalid) as error:
        parse_request({"pipeline_key": "p", "inputs": {"worker.data": [{"file": "a"}]}, "parameters": {"worker": 3}})
    paths = {v.path for v in error.value.violations}
    assert paths == {"$.name", '$.inputs["worker.data"][0].file', "$.parameters.worker"}


def test_options_make_a_whole_request() -> None:
    request = from_options("p", "1.0.0", None, ["worker.data=a.csv"], ["worker.parallelism=2"], 7)
    assert (request.name, request.pipeline_version, request.priority) == ("p", "1.0.0", 7)
