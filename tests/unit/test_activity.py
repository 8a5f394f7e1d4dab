"""The worker of activity-detection with an engine that echoes: which prompts it makes, and which lines it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import orjson
import pytest

from actors import activity
from actors.engines import Answer, Place, check_allowed, label_space, make_engine
from actors.prompts import Prompt
from jos.core import config as configuration
from jos.core.errors import ConfigInvalid
from jos.core.model import JobRequest
from jos.records import RecordFailed
from jos.registry import read_template
from jos.testing import LocalFile, Outputs, run_worker
from jos.worker import JobImpossible

TEMPLATE = Path(__file__).parents[2] / "pipelines" / "activity-detection" / "1.0.0.yaml"


class Echo:
    span_records = 3
    sees = frozenset({"image"})

    def __init__(self, place: Place) -> None:
        self.place, self.asked = place, list[Prompt]()

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer | RecordFailed]:
        self.asked += prompts
        return [
            RecordFailed("refused") if "refuse" in p.body else Answer(p.body[:9], cut="long" in p.body) for p in prompts
        ]


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> list[Echo]:
    made: list[Echo] = []

    def make(variant: str, place: Place) -> Echo:
        made.append(Echo(place))
        return made[-1]

    monkeypatch.setattr(activity, "make_engine", make)
    return made


def write(path: Path, *records: Any) -> Path:
    path.write_bytes(b"".join(r if isinstance(r, bytes) else orjson.dumps(r) + b"\n" for r in records))
    return path


def run(file: Path, config: Mapping[str, Any] | None = None, examples: Sequence[LocalFile] = ()) -> Outputs:
    replicated = {"worker.examples": examples} if examples else None
    return run_worker(activity.ActivityWorker, [file], config=config, replicated=replicated)


def test_each_line_has_its_answer_and_a_bad_one_a_null_and_why(tmp_path: Path, echo: list[Echo]) -> None:
    file = write(tmp_path / "a.jsonl", {"prompt": "one"}, b"{\n", {}, {"prompt": "refuse"}, {"prompt": "long one"})
    found = run(file)
    assert list(found.files) == ["inp_a_output.jsonl"]
    lines = [orjson.loads(line) for line in found.files["inp_a_output.jsonl"].splitlines()]
    assert [line["line_index"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["prediction"] for line in lines] == ["one", None, None, None, "long one"]
    assert lines[0] == {"line_index": 0, "prediction": "one"}
    assert lines[1]["error"] == "parse error"  # the contract's word, and nothing else
    assert lines[1]["detail"] in found.failures["a.jsonl"][1]
    assert found.failures["a.jsonl"][1].startswith("a.jsonl line 2: parse error: ")
    assert lines[3] == {"line_index": 3, "prediction": None, "error": "refused"}
    assert lines[4]["truncated"] is True
    assert found.failures["a.jsonl"][2].startswith("a.jsonl line 3: the record holds no text")
    assert [(kind, level) for kind, level, *_ in found.events] == [("inference.truncation", "WARN")]


def test_what_an_engine_cannot_see_fails_that_record_alone(tmp_path: Path, echo: list[Echo]) -> None:
    film, picture = ([{"type": kind, "data": "https://a/b"}] for kind in ("video", "image"))
    records = [{"prompt": "a", "inputs": film}, {"prompt": "b", "inputs": picture}]
    found = run(write(tmp_path / "a.jsonl", *records), {"model_variant": "hf:/m"})
    assert found.failures["a.jsonl"] == {0: "a.jsonl line 1: hf:/m reads text only, and the record has video"}
    assert [prompt.body for prompt in echo[0].asked] == ["b"]


def test_labels_come_with_a_hint_and_the_examples_most_like_the_record(tmp_path: Path, echo: list[Echo]) -> None:
    on = write(tmp_path / "on.jsonl", {"prompt": "flow high"}, {"prompt": "flow high again", "label": "on"})
    off = write(tmp_path / "more.jsonl", b"\xef\xbb\xbf", {"prompt": "flow none", "label": "off"})  # with a BOM
    examples = [LocalFile(on, {"class": "on"}), LocalFile(off)]
    config = {"labels": ["on", "off"], "examples_per_record": 2}
    run(write(tmp_path / "a.jsonl", {"prompt": "flow none now", "instruction": "Which?"}), config, examples)
    (prompt,) = echo[0].asked
    assert prompt.shots[-1] == ("flow none", "off")
    assert prompt.instruction == "Which?\nAnswer with exactly one of these labels: on, off."
    assert echo[0].place.generation.greedy


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (b"{oops\n", "more.jsonl line 1: parse error"),
        ({"prompt": "a"}, "line 1 has the label None, which is not among the labels"),
        ({"prompt": "a", "label": "maybe"}, "'maybe'"),
        ({"label": "on"}, "holds no text"),
        ({"label": "on", "system": "only"}, "has no prompt"),
    ],
)
def test_a_bad_example_ends_the_job_with_file_and_line(
    tmp_path: Path, echo: list[Echo], record: Any, said: str
) -> None:
    examples = [LocalFile(write(tmp_path / "more.jsonl", record))]
    with pytest.raises(JobImpossible, match=said):
        run(write(tmp_path / "a.jsonl", {"prompt": "x"}), {"labels": ["on", "off"]}, examples)


def test_examples_have_a_limit_in_sum_and_the_file_that_passes_it_is_named(
    tmp_path: Path, echo: list[Echo], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = write(tmp_path / "a.jsonl", {"prompt": "x"})
    files = [write(tmp_path / f"{label}.jsonl", {"prompt": "x" * 50, "label": label}) for label in ("on", "off")]
    sizes = [file.stat().st_size for file in files]
    examples = [LocalFile(file) for file in files]
    monkeypatch.setattr(activity, "MOST_EXAMPLE_BYTES", sum(sizes))
    run(inputs, {"labels": ["on", "off"]}, examples)
    monkeypatch.setattr(activity, "MOST_EXAMPLE_BYTES", sum(sizes) - 1)
    said = f"off.jsonl has {sizes[1]} bytes, which makes {sum(sizes)} with the example files before it"
    with pytest.raises(JobImpossible, match=said) as refused:
        run(inputs, {"labels": ["on", "off"]}, examples)
    assert "fewer or shorter records on the port worker.examples" in str(refused.value)


def test_an_answer_that_is_none_of_the_labels_fails_its_record(tmp_path: Path, echo: list[Echo]) -> None:
    found = run(write(tmp_path / "a.jsonl", {"prompt": "on"}, {"prompt": "o"}), {"labels": ["on", "off"]})
    assert found.failures["a.jsonl"] == {1: "a.jsonl line 2: the answer 'o' is none of the labels"}


def test_the_longest_label_has_room_whatever_the_tokenizer() -> None:
    assert label_space(["on", "Ω" * 200]) > 400


def test_examples_without_labels_are_refused(tmp_path: Path, echo: list[Echo]) -> None:
    examples = [LocalFile(write(tmp_path / "more.jsonl", {"prompt": "a", "label": "on"}))]
    with pytest.raises(JobImpossible, match="no labels to choose from"):
        run(write(tmp_path / "a.jsonl", {"prompt": "x"}), {}, examples)


def test_an_unknown_variant_is_told_with_those_that_are_known() -> None:
    with pytest.raises(JobImpossible, match="smollm2-135m-instruct, openai:<base_url>, hf:<path>"):
        make_engine("gpt", None)  # type: ignore[arg-type]


# --- the template -------------------------------------------------------------------------------------


def resolved(**config: Any) -> dict[str, Any]:
    pipeline = read_template(TEMPLATE).pipeline
    assert pipeline is not None
    request = {
        "name": "n",
        "pipeline_key": pipeline.pipeline_key,
        "inputs": {"worker.data": [{"file_id": "a.jsonl"}]},
        "parameters": {"worker": {"config": config}},
    }
    return dict(configuration.resolve(pipeline, JobRequest.model_validate(request))["worker"]["config"])


def test_the_contract_s_settings_are_taken_and_the_defaults_are_those_of_the_worker() -> None:
    generation = {
        "do_sample": True, "max_new_tokens": 64, "repetition_penalty": 1.1,
        "temperature": 0.7, "top_k": 40, "top_p": 0.9,
    }  # fmt: skip
    found = resolved(generation=generation, model_variant="newton/c:2.4.0-7b-base", batch_size=8, max_video_frames=4)
    settings = activity.Settings.of(found)
    assert settings.generation.top_k == 40
    assert (settings.batch_size, settings.max_video_frames) == (8, 4)
    assert activity.Settings.of(resolved()) == activity.Settings.of({})


@pytest.mark.parametrize(
    "config",
    [
        {"model_variant": "gpt-9"},
        {"generation": {"temperature": -1}},
        {"generation": {"beams": 2}},
        {"batch_size": 0},
        {"labels": ["a", "a"]},
        {"engine": {"api_key_env": "AWS_SECRET_ACCESS_KEY"}},
        {"engine": {"api_key": "sk-1"}},
    ],
)
def test_what_cannot_be_is_refused_when_the_job_is_created(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigInvalid):
        resolved(**config)


@pytest.mark.parametrize("address", ["http://me:pw/S3CRET@h/v1", "http://h/v1?api_key=S3CRET", "http://h/#S3CRET"])
def test_a_password_or_key_in_an_address_is_refused_and_not_told(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigInvalid) as invalid:
        resolved(model_variant=f"openai:{address}")
    (violation,) = invalid.value.violations
    assert "without user, password, @, ? and #" in violation.message
    assert "S3CRET" not in violation.message
    with pytest.raises(JobImpossible, match="names no server") as refused:
        make_engine(f"openai:{address}", None)  # type: ignore[arg-type]
    assert "S3CRET" not in str(refused.value)
    monkeypatch.setenv("LM_ALLOW", "hf:/models")
    for variant in (f"openai:{address}", address):
        with pytest.raises(JobImpossible) as refused:
            make_engine(variant, None)  # type: ignore[arg-type]
        assert "S3CRET" not in str(refused.value)


@pytest.mark.parametrize(
    ("variant", "allowed"),
    [
        ("openai:http://vllm:8000/v1/", True),
        ("openai:http://vllm:8000/v1/team", True),
        ("openai:http://vllm:8000/v10", False),
        ("openai:http://vllm:8000@elsewhere/v1", False),
        ("openai:http://169.254.169.254/latest", False),
        ("hf:/models/one", True),
        ("hf:/models/../home", False),
        ("smollm2-135m-instruct", True),
    ],
)
def test_with_a_list_of_the_operator_s_no_other_server_or_folder_is_touched(
    variant: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LM_ALLOW", "openai:http://vllm:8000/v1 hf:/models/")
    with nullcontext() if allowed else pytest.raises(JobImpossible, match="not among those that the operator"):
        check_allowed(variant)
