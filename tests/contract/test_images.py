"""The Dockerfile and `make image`: what they name is there, and the steps work as far as no engine is needed.

JOS_IMAGE_STEPS=service (or worker) follows all installation steps of that image too: minutes, and gigabytes for torch.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import manifests_lab
import pytest
import yaml
from dockerfile_lab import Stage, context, follow, stages
from manifests_lab import K8S, ROOT
from packaging.requirements import Requirement

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILT = "jos/console/dist/"  # there where the console was built
STAGES = {stage.name: stage for stage in stages((ROOT / "Dockerfile").read_text())}
ZEROS = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("context")
    context(folder)
    return folder


@pytest.fixture(scope="module")
def image(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the stage `wheel` makes."""
    root = tmp_path_factory.mktemp("image")
    follow(STAGES["wheel"], sources, root, environment())
    return root


def environment() -> dict[str, str]:
    """With this interpreter's pip, which is the base image's."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_QUIET": "1"}


def test_hadolint_finds_nothing() -> None:
    command = [manifests_lab.program("hadolint"), "--failure-threshold", "style", str(ROOT / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_copied_is_in_the_context_and_nothing_else_is(sources: Path) -> None:
    copied = {
        name
        for stage in STAGES.values()
        for instruction, rest in stage.steps
        if instruction == "COPY" and not rest.startswith("--from=")
        for name in rest.split()[:-1]
    }
    assert copied == {one.name for one in sources.iterdir()}


def test_both_images_come_from_one_base_and_run_as_the_same_user_without_rights() -> None:
    assert STAGES["service"].base == STAGES["worker"].base == "base"
    others = {stage.base for stage in STAGES.values()} - {"base"}
    assert len(others) == 1
    assert re.fullmatch(r"docker\.io/library/python:3\.\d+-slim-\w+", others.pop())
    assert list(STAGES)[-1] == "service"
    (user,) = {rest for name in ("service", "worker") for step, rest in STAGES[name].steps if step == "USER"}
    assert user == "10001:10001"
    assert any("useradd --uid 10001" in rest for _, rest in STAGES["base"].steps)


def test_the_wheel_that_is_built_holds_all_that_git_has_of_jos_actors_and_pipelines(image: Path) -> None:
    (wheel,) = (image / "wheels").iterdir()
    assert wheel.name == f"jos-{PROJECT['version']}-py3-none-any.whl"
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith((BUILT, "jos-"))}
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "jos", "actors", "pipelines"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    sources = [name for name in tracked if not name.startswith("jos/console/")]  # of the console, what is built of them
    wanted = {re.sub("^pipelines/", "jos/_pipelines/", name) for name in sources if (ROOT / name).exists()}
    assert inside == wanted


def extras_of(stage: Stage) -> set[str]:
    (names,) = {m for _, rest in stage.steps for m in re.findall(r"jos-\*\.whl\)\[([\w,]+)\]", rest)}
    return set(names.split(","))


def test_extras_are_there_and_the_service_has_no_torch() -> None:
    known = PROJECT["optional-dependencies"]
    service, worker = (extras_of(STAGES[f"{name}-packages"]) for name in ("service", "worker"))
    assert service | worker <= set(known)
    assert "torch" in str([known[extra] for extra in worker])
    assert "torch" not in str([known[extra] for extra in service])


def test_versions_of_constraints_txt_are_allowed_by_the_wheel() -> None:
    """What pip would find out: each requirement that the images install has a version, and it fits."""
    lines = (ROOT / "constraints.txt").read_text().split()
    versions = {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}
    extras = [extra for name in ("service", "worker") for extra in extras_of(STAGES[f"{name}-packages"])]
    wanted = [*PROJECT["dependencies"], *(r for extra in extras for r in PROJECT["optional-dependencies"][extra])]
    unpinned = set()
    for one in map(Requirement, wanted):
        name = one.name.lower().replace("_", "-")
        if name in versions:
            assert one.specifier.contains(versions[name], prereleases=True), one
        else:
            unpinned.add(name)
    # torch is chosen by TORCH; who sends traces takes the newest exporter
    assert unpinned <= {"jos", "torch", "opentelemetry-exporter-otlp-proto-http", "lightkube"}


def test_torch_and_the_language_model_are_those_of_the_makefile() -> None:
    makefile = dict(re.findall(r"(?m)^(TORCH|SMOLLM2) \?= (\S+)$", (ROOT / "Makefile").read_text()))
    steps = STAGES["worker-packages"].steps
    assert dict(rest.split("=", 1) for step, rest in steps if step == "ARG") == makefile


@pytest.mark.skipif("JOS_IMAGE_STEPS" not in os.environ, reason="minutes and gigabytes: make image-steps")
@pytest.mark.timeout(3000)
def test_all_installation_steps_of_an_image_work(sources: Path, image: Path) -> None:
    which = os.environ["JOS_IMAGE_STEPS"]
    follow(STAGES[f"{which}-packages"], sources, image, environment())
    python = image / "opt" / "jos" / "bin" / "python"
    code = "import jos.api.app, jos.controller.__main__, jos.driver, importlib.util as u; print(u.find_spec('torch'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd=image)
    assert (done.stdout.strip() == "None") == (which == "service")
    assert subprocess.run([python.parent / "jos", "--help"], capture_output=True, check=False).returncode == 0


# --- make image -----------------------------------------------------------------------------------------


def images() -> ModuleType:
    spec = importlib.util.spec_from_file_location("k8s_images", K8S / "images.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ENGINE = """#!{python}
# Answers as docker, podman and buildah do to what k8s/images.py asks them, and writes down what it was asked.
import hashlib, json, pathlib, sys
name, arguments = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
with open({log!r}, "a") as log:
    print(name, *arguments, file=log)
plain = [a for a in arguments if not a.startswith("-") and not a.startswith("docker://")]
reference = plain[-1]
digest = "sha256:" + hashlib.sha256(reference.encode()).hexdigest()
if arguments[0] == "info":
    sys.exit({broken})
if "--digestfile" in arguments:
    pathlib.Path(arguments[arguments.index("--digestfile") + 1]).write_text(digest)
elif "inspect" in arguments and name == "docker":
    head, _, tag = reference.rpartition(":")
    print(json.dumps(["elsewhere.example/a@sha256:" + "1" * 64, head.removeprefix("docker.io/") + "@" + digest]))
elif "inspect" in arguments:
    print(digest)
"""


@pytest.fixture
def component(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    for file in (K8S / "components" / "images").iterdir():
        (folder / file.name).write_text(file.read_text())
    return folder


def engines(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str, broken: str = "") -> Path:
    """Puts such programs, and no others, on the path; `broken`: one whose daemon does not run. The log of calls."""
    log = folder / "calls"
    log.touch()
    (folder / "bin").mkdir()
    for name in names:
        file = folder / "bin" / name
        file.write_text(ENGINE.format(python=sys.executable, log=str(log), broken=int(name == broken)))
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder / "bin"))
    return log


@pytest.mark.parametrize("name", ["docker", "podman", "buildah"])
def test_make_image_builds_pushes_and_writes_down_every_digest(
    name: str, tmp_path: Path, component: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = engines(tmp_path, monkeypatch, name)
    module = images()
    found = module.build("registry.example:5000/team", "1.2.3", ["--build-arg=TORCH=torch==2.9"], others=True)
    module.write(found, component)
    pins = module.pins(component)
    assert set(pins) == {"jos-service", "jos-worker", "valkey", "seaweedfs"}
    assert ZEROS not in str(pins)
    assert len(set(pins.values())) == 4
    assert re.fullmatch(r"registry\.example:5000/team/jos-worker@sha256:[0-9a-f]{64}", pins["jos-worker"])
    assert pins["valkey"].startswith("docker.io/valkey/valkey@sha256:")
    calls = log.read_text().splitlines()
    assert all(call.startswith(name) for call in calls)
    builds = [call for call in calls if " build " in call]
    assert ["--target service" in builds[0], "--target worker" in builds[1]] == [True, True]
    assert all("--build-arg=TORCH=torch==2.9" in call for call in builds)
    assert (component / "kustomization.yaml").read_text().startswith("# Which images"), "comments stay"
    module.write({"valkey": ("elsewhere.example/valkey", ZEROS)}, component)
    assert module.pins(component) == pins | {"valkey": f"elsewhere.example/valkey@{ZEROS}"}


def test_the_first_engine_that_works_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines(tmp_path, monkeypatch, "docker", "buildah", broken="docker")
    module = images()
    assert type(module.engine()).__name__ == "Buildah"


@pytest.mark.parametrize(("there", "word"), [((), "install docker, podman or buildah"), (("docker",), "docker info")])
def test_without_an_engine_make_image_says_what_to_do(
    there: tuple[str, ...], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines(tmp_path, monkeypatch, *there, broken="docker")
    command = [sys.executable, "-I", str(K8S / "images.py"), "--registry", "registry.example/team"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_the_images_that_manifests_name_are_all_pinned_by_make_image() -> None:
    module = images()
    component = yaml.safe_load((K8S / "components" / "images" / "kustomization.yaml").read_text())
    assert {one["name"] for one in component["images"]} == {"jos-service", *module.OTHERS}
    assert json.dumps(list(module.pins())) == json.dumps([one["name"] for one in component["images"]] + ["jos-worker"])
