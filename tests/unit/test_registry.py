"""Templates from files: which version runs, what an author is told, and that a published version never changes."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from jos.core.config import resolve
from jos.core.errors import ConfigInvalid, Conflict, NotFound
from jos.core.model import JobRequest, Pipeline
from jos.core.template import check_template
from jos.registry import (
    PUBLISHED,
    Registry,
    component_id,
    content_hash,
    packaged_folder,
    pipeline_id,
    publish,
    read_yaml,
)
from jos.registry_check import check_folder

BASE: dict[str, Any] = {
    "pipeline_key": "echo",
    "pipeline_version": "1.0.0",
    "name": "Echo",
    "status": "draft",
    "worker": "echo_worker:Echo",
    "default_config": {"worker": {"parallelism": 1, "config": {"batch_size": 8}}},
    "config_schema": {"worker": {"type": "object", "properties": {"batch_size": {"type": "integer"}, "seed": {}}}},
    "user_config_schema": {"worker": {"type": "object", "properties": {"batch_size": {"type": "integer"}}}},
    "inputs": {"worker.data": {"name": "Data"}},
    "outputs": {"worker.results": {"name": "Results"}},
}


def write(folder: Path, version: str = "1.0.0", key: str = "echo", **changes: Any) -> Path:
    path = folder / key / f"{version}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = BASE | {"pipeline_key": key, "pipeline_version": version} | changes
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "pipelines"


@pytest.fixture
def registry(folder: Path) -> Registry:
    return Registry([folder])


# --- which version runs -------------------------------------------------------------------------------


def test_the_latest_published_version_runs_in_order_of_numbers(folder: Path, registry: Registry) -> None:
    for version in ("1.9.0", "1.10.0", "1.2.30"):
        write(folder, version, status="published")
    write(folder, "2.0.0")
    assert registry.get("echo").pipeline_version == "1.10.0"
    assert registry.get("echo", "2.0.0").status == "draft"


def test_an_unknown_pipeline_is_told_with_what_is_near(folder: Path, registry: Registry) -> None:
    write(folder)
    with pytest.raises(NotFound, match='no pipeline "ecco"') as caught:
        registry.get("ecco")
    assert caught.value.suggestion == 'Did you mean "echo"?'


def test_an_unknown_version_is_told_with_the_known_ones(folder: Path, registry: Registry) -> None:
    write(folder, "1.0.0", status="published")
    write(folder, "1.1.0")
    with pytest.raises(NotFound, match='"echo" has no version "3"') as caught:
        registry.get("echo", "3")
    assert "1.1.0 (draft), 1.0.0 (published)" in str(caught.value)


def test_without_a_published_version_a_draft_must_be_named(folder: Path, registry: Registry) -> None:
    write(folder)
    with pytest.raises(NotFound, match="no published version") as caught:
        registry.get("echo")
    assert "1.0.0 (draft)" in str(caught.value)


def test_a_deactivated_version_takes_no_new_jobs(folder: Path, registry: Registry) -> None:
    write(folder, "1.0.0", status="published")
    write(folder, "1.1.0", status="deactivated")
    assert registry.get("echo").pipeline_version == "1.0.0"
    with pytest.raises(Conflict, match=r"echo 1\.1\.0 is deactivated"):
        registry.get("echo", "1.1.0")


def test_a_deleted_version_is_gone(folder: Path, registry: Registry) -> None:
    write(folder, status="deleted")
    with pytest.raises(NotFound):
        registry.get("echo", "1.0.0")
    assert "echo" not in {pipeline.pipeline_key for pipeline in registry.list()}


def test_keys_and_versions_are_looked_up_and_never_become_paths(folder: Path, registry: Registry) -> None:
    write(folder)
    for key, version in (("../echo", "1.0.0"), ("echo", "../echo/1.0.0"), ("", "")):
        with pytest.raises(NotFound):
            registry.get(key, version)


def test_the_list_is_by_key_with_the_newest_version_first(folder: Path, registry: Registry) -> None:
    for version in ("1.2.0", "1.10.0"):
        write(folder, version)
    write(folder, key="alpha")
    listed = [(p.pipeline_key, p.pipeline_version) for p in registry.list() if p.pipeline_key in ("alpha", "echo")]
    assert listed == [("alpha", "1.0.0"), ("echo", "1.10.0"), ("echo", "1.2.0")]


def test_a_new_version_and_a_changed_draft_need_no_restart(folder: Path, registry: Registry) -> None:
    path = write(folder, name="before")
    assert registry.get("echo", "1.0.0").name == "before"
    assert registry.get("echo", "1.0.0") is registry.get("echo", "1.0.0")
    write(folder, name="after and longer")
    os.utime(path, ns=(1, 1))
    assert registry.get("echo", "1.0.0").name == "after and longer"
    write(folder, "1.1.0", status="published")
    assert registry.get("echo").pipeline_version == "1.1.0"


def test_an_earlier_folder_wins(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write(tmp_path / name, name=name)
    assert Registry([tmp_path / "first", tmp_path / "second"]).get("echo", "1.0.0").name == "first"


def test_a_broken_template_breaks_no_other(folder: Path, registry: Registry) -> None:
    write(folder)
    broken = write(folder, key="broken")
    broken.write_text("name: [")
    assert registry.get("echo", "1.0.0")
    assert "broken" not in {pipeline.pipeline_key for pipeline in registry.list()}
    assert [problem.path for problem in registry.problems()] == [broken]
    with pytest.raises(ConfigInvalid, match=r"broken 1\.0\.0 is broken"):
        registry.get("broken", "1.0.0")


def test_ids_are_the_same_everywhere_and_lead_back(folder: Path, registry: Registry) -> None:
    write(folder)
    wanted = pipeline_id("echo", "1.0.0")
    assert wanted.startswith("ppl_")
    assert registry.by_id(wanted).pipeline_key == "echo"
    assert component_id("echo", "1.0.0", "worker").startswith("cmp_")
    with pytest.raises(NotFound):
        registry.by_id("ppl_other")


# --- published versions -------------------------------------------------------------------------------


def test_publishing_records_the_content_and_marks_the_file(folder: Path, registry: Registry) -> None:
    path = write(folder)
    digest = publish(folder, "echo", "1.0.0")
    assert json.loads((folder / PUBLISHED).read_text()) == {"echo/1.0.0": digest}
    assert registry.get("echo").status == "published"
    assert yaml.safe_load(path.read_text()) == BASE | {"status": "published"}
    assert publish(folder, "echo", "1.0.0") == digest
    assert check_folder(folder).ok


def test_a_template_that_names_no_status_can_be_published(folder: Path, registry: Registry) -> None:
    path = write(folder)
    path.write_text(path.read_text().replace("status: draft\n", ""))
    publish(folder, "echo", "1.0.0")
    assert registry.get("echo").status == "published"


def test_a_published_version_that_changes_is_refused(folder: Path, registry: Registry) -> None:
    path = write(folder)
    publish(folder, "echo", "1.0.0")
    path.write_text(path.read_text().replace("batch_size: 8", "batch_size: 9"))
    with pytest.raises(ConfigInvalid, match="changed after it was published"):
        registry.get("echo")
    with pytest.raises(Conflict, match="changed after it was published"):
        publish(folder, "echo", "1.0.0")
    (finding,) = check_folder(folder).findings
    assert finding.file == path
    assert "changed after it was published" in finding.violation.message


def test_comments_order_and_status_may_change_after_publication(folder: Path, registry: Registry) -> None:
    path = write(folder)
    publish(folder, "echo", "1.0.0")
    content = yaml.safe_load(path.read_text()) | {"status": "deactivated"}
    path.write_text("# a comment\n" + yaml.safe_dump(content, sort_keys=True))
    assert check_folder(folder).ok
    with pytest.raises(Conflict, match="deactivated"):
        registry.get("echo", "1.0.0")


def test_check_finds_what_was_published_past_the_record(folder: Path) -> None:
    write(folder, status="published")
    (finding,) = check_folder(folder).findings
    assert "publish it with `jos pipelines publish`" in str(finding)


def test_check_finds_a_published_version_that_is_gone(folder: Path) -> None:
    write(folder, "1.1.0")
    path = write(folder)
    publish(folder, "echo", "1.0.0")
    path.unlink()
    assert [str(finding) for finding in check_folder(folder).findings] == [f"{path}: $: was published and is gone."]


def test_a_broken_template_is_not_published(folder: Path) -> None:
    write(folder, worker="not a worker")
    with pytest.raises(ConfigInvalid, match="cannot be published"):
        publish(folder, "echo", "1.0.0")
    with pytest.raises(NotFound):
        publish(folder, "echo", "9.0.0")
    assert not (folder / PUBLISHED).exists()


def test_the_hash_is_of_the_content() -> None:
    assert content_hash({"a": 1, "b": [1]}) == content_hash({"b": [1], "a": 1, "status": "draft"})
    assert content_hash({"a": 1}) != content_hash({"a": 2})


# --- what an author is told ---------------------------------------------------------------------------


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets the field at `a/b/c`, or removes it for `...`."""

    def apply(content: dict[str, Any]) -> None:
        *parents, name = path.split("/")
        for parent in parents:
            content = content.setdefault(parent, {})
        if value is ...:
            del content[name]
        else:
            content[name] = value

    return apply


SHOTS = {"name": "Examples", "mode": "n_shot_file_list", "distribute": "replicate", "tracked": False}
TEMPLATES: dict[str, tuple[Callable[[dict[str, Any]], None], str, str]] = {
    "a field that does not exist": (change("comand", []), "$.comand", 'Did you mean "command"?'),
    "a field is missing": (change("worker", ...), "$.worker", "is required"),
    "a version that is none": (change("pipeline_version", "1.0"), "$.pipeline_version", "pattern"),
    "a key that is not the folder's": (change("pipeline_key", "other"), "$.pipeline_key", "lies at echo/1.0.0.yaml"),
    "a worker without a class": (change("worker", "echo_worker"), "$.worker", "package.module:Class"),
    "an image that moves": (change("image", "jos:latest"), "$.image", "latest"),
    "an image without a tag": (change("image", "registry:5000/jos"), "$.image", "no tag"),
    "no command": (change("command", []), "$.command", "words"),
    "a component without a schema": (
        *(change("config_schema", {}), "$.config_schema.worker"),
        "needs a schema",
    ),
    "a schema without a component": (
        *(change("config_schema/trainer", {}), "$.config_schema.trainer"),
        "no default_config",
    ),
    "a schema that is none": (
        *(
            change("config_schema/worker/properties/seed", {"type": "integr"}),
            "$.config_schema.worker.properties.seed.type",
        ),
        "not valid JSON Schema",
    ),
    "a schema of another draft": (
        *(change("config_schema/worker/$schema", "http://json-schema.org/draft-07/schema#"),),
        *('$.config_schema.worker["$schema"]', "2020-12"),
    ),
    "a schema that reaches for the network": (
        *(change("config_schema/worker/properties/seed", {"$ref": "https://example.com/seed.json"}),),
        *("$.config_schema.worker", "only to itself"),
    ),
    "a schema of a list": (change("config_schema/worker/type", "array"), "$.config_schema.worker.type", "object"),
    "a required field that is not declared": (
        *(change("config_schema/worker/required", ["window"]), "$.config_schema.worker.required"),
        "not among the properties",
    ),
    "a default that breaks its schema": (
        *(change("default_config/worker/config/batch_size", "8"), "$.default_config.worker.config.batch_size"),
        "integer",
    ),
    "a default parallelism that is too large": (
        *(change("default_config/worker/parallelism", 5000), "$.default_config.worker.parallelism"),
        "max_parallelism",
    ),
    "a misspelt default": (
        *(change("default_config/worker/paralelism", 2), "$.default_config.worker.paralelism"),
        'Did you mean "parallelism"?',
    ),
    "a user field that does not exist": (
        *(change("user_config_schema/worker/properties/batchsize", {}),),
        *("$.user_config_schema.worker.properties.batchsize", 'Did you mean "batch_size"?'),
    ),
    "a date that YAML made of a text": (
        *(change("default_config/worker/config/seed", date(2026, 4, 1)),),
        *("$.default_config.worker.config.seed", "is a date, not a JSON value"),
    ),
    "a port of another component": (
        *(change("inputs/wroker.data", {"name": "x"}), '$.inputs["wroker.data"]'),
        'Did you mean "worker"?',
    ),
    "a port without a component": (change("outputs/results", {"name": "x"}), "$.outputs.results", "component.port"),
    "no inputs": (change("inputs", {}), "$.inputs", "nothing to work on"),
    "nothing to share out": (change("inputs", {"worker.shots": SHOTS}), "$.inputs", "no scatter port"),
    "examples that are shared out": (
        *(change("inputs/worker.shots", SHOTS | {"distribute": "scatter"}), '$.inputs["worker.shots"].distribute'),
        "replicate",
    ),
    "a checkpoint that is tracked": (
        *(change("inputs/worker.ckp", SHOTS | {"mode": "checkpoint", "tracked": True}),),
        *('$.inputs["worker.ckp"].tracked', "must be false"),
    ),
    "shared out and not counted": (
        *(change("inputs/worker.more", {"name": "x", "tracked": False}), '$.inputs["worker.more"].tracked'),
        "counted in progress",
    ),
    "an edge to nowhere": (
        *(change("edges", [{"from": "worker", "output": "results", "to": "worker", "input": "dta"}]),),
        *("$.edges[0].input", '"worker.dta" is not among the inputs'),
    ),
    "a task that may outlast its attempt": (
        *(change("timeouts", {"run": 60, "task": 60}), "$.timeouts.task"),
        "run timeout",
    ),
    "a task that may outlast the watch over progress": (
        *(change("timeouts", {"task": 60, "no_progress": 30}), "$.timeouts.task"),
        "strike first",
    ),
    "a drain without end": (change("timeouts", {"drain": 7200}), "$.timeouts.drain", "over an hour"),
    "a back-off above its limit": (
        *(change("retry_policy", {"backoff": 60, "backoff_max": 10}), "$.retry_policy.backoff"),
        "backoff_max",
    ),
    "a GPU that is required and not asked for": (
        *(change("resources", {"gpu": {"required": True}}), "$.resources.gpu.count"),
        "required",
    ),
    "a GPU and a half": (change("resources", {"gpu": {"count": 1.5}}), "$.resources.gpu.count", "whole number"),
}


def test_labelled_files_may_be_shared_out_to_learn_from(folder: Path) -> None:
    shared = {"worker.shots": SHOTS | {"distribute": "scatter", "tracked": True}}
    write(folder, pipeline_type="training", inputs=shared)
    assert check_folder(folder).ok


@pytest.mark.parametrize("case", TEMPLATES)
def test_check(case: str, folder: Path) -> None:
    apply, path, message = TEMPLATES[case]
    content = copy.deepcopy(BASE)
    apply(content)
    file = write(folder)
    file.write_text(yaml.safe_dump(content))
    findings = check_folder(folder).findings
    assert [(f.file, f.violation.path) for f in findings] == [(file, path)]
    assert message in findings[0].violation.message


def test_a_sound_template_has_nothing_wrong(folder: Path) -> None:
    write(folder)
    report = check_folder(folder)
    assert report.ok
    assert check_folder(folder / "echo").templates[0].content_hash == report.templates[0].content_hash
    assert report.templates[0].content_hash.startswith("sha256:")
    assert check_template(Pipeline.model_validate(BASE)) == []


def test_the_report_can_be_read_by_people_and_programs(folder: Path) -> None:
    path = write(folder, worker="echo")
    report = check_folder(folder)
    said = report.to_json()
    assert json.loads(json.dumps(said)) == said
    assert (said["ok"], said["templates"][0]["status"]) == (False, "draft")
    assert said["findings"][0] | {"message": ""} == {
        "file": str(path),
        "path": "$.worker",
        "message": "",
        "code": "invalid",
    }
    assert str(report).splitlines()[0].startswith("echo 1.0.0  draft  sha256:")
    assert str(report).endswith("1 thing wrong")


def test_a_record_that_cannot_be_read_is_told(folder: Path, registry: Registry) -> None:
    write(folder)
    (folder / PUBLISHED).write_text("{")
    with pytest.raises(ConfigInvalid, match="cannot be read as JSON"):
        registry.get("echo", "1.0.0")


def test_two_components_are_not_run(folder: Path) -> None:
    pipeline = Pipeline.model_validate(
        BASE
        | {
            name: {"worker": BASE[name]["worker"], "other": BASE[name]["worker"]}
            for name in ("default_config", "config_schema", "user_config_schema")
        }
    )
    assert [violation.path for violation in check_template(pipeline)] == ["$.default_config"]


YAML_ERRORS = [
    ("name: [1\nworker: x\n", "line 2, column 7"),
    ("name: a\nworker: b\nname: c\n", 'line 3, column 1: "name" is given twice'),
    ("a: {b: 1, b: 2}\n", 'line 1, column 11: "b" is given twice'),
    ("name: a\n\tworker: b\n", "line 2"),
    ("a: !!python/object:os.system x\n", "line 1"),
]


@pytest.mark.parametrize(("text", "message"), YAML_ERRORS)
def test_yaml_errors_name_the_line(folder: Path, text: str, message: str) -> None:
    path = write(folder)
    path.write_text(text)
    (finding,) = check_folder(folder).findings
    assert finding.violation.path == "$"
    assert message in finding.violation.message


def test_yaml_anchors_and_merges_are_welcome(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: &b\n  <<: *a\n  y: 3\nc:\n  <<: *b\n  z: 4\n")
    assert read_yaml(path) == ({"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 3, "z": 4}}, [])


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"name: \xff\n")
    assert "cannot be read" in read_yaml(path)[1][0].message


@pytest.mark.parametrize("content", [[], None, "text", 3])
def test_a_file_that_is_no_mapping(folder: Path, content: Any) -> None:
    write(folder).write_text(yaml.safe_dump(content))
    assert [f.violation.path for f in check_folder(folder).findings] == ["$"]


def test_a_file_whose_name_is_no_version(folder: Path) -> None:
    write(folder)
    (folder / "echo" / "latest.yaml").write_text("name: x\n")
    (finding,) = check_folder(folder).findings
    assert "must be a version" in finding.violation.message


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    assert "holds no template" in str(check_folder(tmp_path).findings[0])


def test_examples_must_be_requests_that_the_pipeline_takes(folder: Path) -> None:
    write(folder)
    examples = folder / "echo" / "examples"
    examples.mkdir()
    request = {"name": "x", "pipeline_key": "echo", "inputs": {"worker.data": [{"file_id": "a.csv"}]}}
    (examples / "job.yaml").write_text(yaml.safe_dump(request))
    assert check_folder(folder).ok
    request["parameters"] = {"worker": {"config": {"seed": 1}}}
    (examples / "job.yaml").write_text(yaml.safe_dump(request))
    (examples / "other.yaml").write_text(yaml.safe_dump(request | {"pipeline_key": "other"}))
    (examples / "version.yaml").write_text(yaml.safe_dump(request | {"pipeline_version": "9.0.0"}))
    found = [(f.file.name, f.violation.path) for f in check_folder(folder).findings]
    assert found == [
        ("job.yaml", "$.parameters.worker.config.seed"),
        ("other.yaml", "$.pipeline_key"),
        ("version.yaml", "$.pipeline_version"),
    ]


# --- workers ------------------------------------------------------------------------------------------

WORKERS = {
    "class Echo(Worker): port = 'worker.results'": [],
    "class Echo(Worker): port = 'worker.other'": ["$.outputs"],
    "class Echo(Trainer): pass": ["$.worker"],
    "class Echo: pass": ["$.worker"],
    "Echo = 3": ["$.worker"],
    "class Other(Worker): pass": ["$.worker"],
    "import os; os._exit(3)": ["$.worker"],
    "print('noise'); raise RuntimeError('no such device')": ["$.worker"],
}


@pytest.fixture
def workers(tmp_path: Path, folder: Path) -> Path:
    write(folder)
    return tmp_path / "echo_worker.py"


@pytest.mark.parametrize("code", WORKERS)
def test_workers_are_imported_only_when_asked_and_elsewhere(workers: Path, folder: Path, code: str) -> None:
    workers.write_text(f"from jos.worker import Trainer, Worker\n{code}\n")
    assert check_folder(folder).ok
    assert [f.violation.path for f in check_folder(folder, import_worker=True).findings] == WORKERS[code]


# --- our own pipelines --------------------------------------------------------------------------------

OWN = packaged_folder()


def test_our_own_pipelines_and_their_examples_are_sound_and_unchanged() -> None:
    assert [str(finding) for finding in check_folder(OWN).findings] == []


def undescribed(schema: Any, at: str) -> Iterator[str]:
    for name, sub in schema.get("properties", {}).items():
        if not sub.get("description"):
            yield f"{at}.{name}"
        yield from undescribed(sub, f"{at}.{name}")


@pytest.mark.parametrize("pipeline", Registry().list(), ids=lambda p: f"{p.pipeline_key}-{p.pipeline_version}")
def test_each_setting_of_our_own_pipelines_is_described(pipeline: Pipeline) -> None:
    for component, schema in pipeline.config_schema.items():
        assert list(undescribed(schema, component)) == []
    readme = (OWN / pipeline.pipeline_key / "README.md").read_text()
    for port in (*pipeline.inputs, *pipeline.outputs):
        assert f"`{port}`" in readme


MACHINE_STATE = {
    "model_type": "omega_1_4_base",
    "batch_size": 64,
    "flush_every_n_iteration": 100,
    "reader_config": {"data_columns": ["a1", "a2"], "timestamp_column": "timestamp", "window_size": 64, "step_size": 1},
    "classifier_config": {
        "n_neighbors": 5,
        "metric": "cosine",
        "weights": "distance",
        "normalize_embeddings": True,
    },
    "omega_1_5": {"base_model_path": "models/omega_1_5_base"},
    "data_source": {"source_type": "csv"},
}


def machine_state(config: dict[str, Any], **inputs: Any) -> JobRequest:
    shots = [{"file_id": f"{name}.csv", "metadata": {"class": name}} for name in ("idle", "running")]
    body = {
        "name": "x",
        "pipeline_key": "machine-state-classification",
        "inputs": {"worker.inference": [{"file_id": "a.csv"}], "worker.n_shots": shots} | inputs,
        "parameters": {"worker": {"config": config}},
    }
    return JobRequest.model_validate(body)


def test_what_clients_send_to_machine_state_classification_is_taken() -> None:
    pipeline = Registry().get("machine-state-classification")
    merged = resolve(pipeline, machine_state(MACHINE_STATE))["worker"]
    assert merged["parallelism"] == 1
    assert merged["config"] == MACHINE_STATE | {"operations": merged["config"]["operations"]}
    for model in ("omega_1_3_surface", "omega_1_3_power_drive", "omega_1_5_base", "rocket", "hydra", "stats"):
        assert resolve(pipeline, machine_state(MACHINE_STATE | {"model_type": model}))


def test_machine_state_classification_refuses_what_it_must() -> None:
    pipeline = Registry().get("machine-state-classification")
    config = copy.deepcopy(MACHINE_STATE) | {"operations": {"span_seconds": 9}, "batch_size": 0}
    del config["reader_config"]["window_size"]
    config["reader_config"]["step_size"] = 0
    config["classifier_config"]["n_neighbors"] = 2
    config["classifier_config"]["metric"] = "euclid"
    with pytest.raises(ConfigInvalid) as caught:
        resolve(pipeline, machine_state(config))
    assert sorted((v.path.removeprefix("$.parameters.worker.config."), v.code) for v in caught.value.violations) == [
        ("batch_size", "invalid"),
        ("classifier_config.metric", "invalid"),
        ("classifier_config.n_neighbors", "invalid"),
        ("operations", "locked"),
        ("reader_config.step_size", "invalid"),
        ("reader_config.window_size", "missing"),
    ]
    checkpoint = {"worker.fine_tune_checkpoint": [{"kind": "checkpoint", "checkpoint_id": "ckp_1"}]}
    assert resolve(pipeline, machine_state({}, **checkpoint))
    merged = resolve(pipeline, machine_state({"reader_config": {"timestamp_column": "t"}}, **checkpoint))
    assert merged["worker"]["config"]["reader_config"] == {"timestamp_column": "t"}  # the step is the checkpoint's


TRAINED = [{"file_id": f"{name}.csv", "metadata": {"class": name}} for name in ("idle", "running")]


@pytest.mark.parametrize("key", ["fine-tuning-omega", "knn-fine-tuning-omega"])
def test_what_clients_send_to_the_fine_tuning_pipelines_is_taken(key: str) -> None:
    config = {
        "model_type": "omega_1_4_base",
        "batch_size": 32,
        "reader_config": {"data_columns": ["a1", "a2"], "window_size": 64, "step_size": 1},
        "train_config": {"epochs": 5},
        "seed": 42,
        "omega_1_5": None,
        "data_source": None,
    }
    body = {
        "name": "x",
        "pipeline_type": "training",
        "pipeline_key": key,
        "inputs": {"worker.train_data": TRAINED, "worker.eval_data": TRAINED[:1]},
        "parameters": {"worker": {"config": config}},
    }
    merged = resolve(Registry().get(key), JobRequest.model_validate(body))["worker"]["config"]
    assert merged == merged | {**config, "train_config": merged["train_config"]}
    assert merged["train_config"]["epochs"] == 5
    body["inputs"] = {"worker.train_data": TRAINED[:1]}
    with pytest.raises(ConfigInvalid, match="two or more"):
        resolve(Registry().get(key), JobRequest.model_validate(body))
