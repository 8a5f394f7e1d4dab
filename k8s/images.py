"""Builds JOS's images, pushes them, and writes the digests of all images into components/images.

`make image REGISTRY=registry.example/team` runs it. It takes the first of docker, podman and buildah that is there and
works. A tag can be moved to another image; a digest cannot, so only digests stand in manifests.
May import: stdlib. Tests: tests/contract/test_images.py.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).parents[1]
COMPONENT = Path(__file__).parent / "components" / "images"
OURS = ("service", "worker")
# other people's images that components use: their name in the manifests -> repository and tag whose digest is taken
OTHERS = {"valkey": "docker.io/valkey/valkey:9.1-alpine", "seaweedfs": "docker.io/chrislusf/seaweedfs:4.48"}
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Trouble(Exception):
    """What went wrong, and what to do about it, in words."""


class Engine(Protocol):
    def build(self, target: str, reference: str, arguments: Sequence[str]) -> None: ...

    def push(self, reference: str) -> str:
        """Returns the digest that the registry has it under."""
        ...

    def pull(self, reference: str) -> str: ...


def run(*command: str) -> str:
    """Standard output; the rest is shown as it comes."""
    print("+", " ".join(command), file=sys.stderr)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise Trouble(f"`{' '.join(command[:3])} …` ended with {done.returncode}; what it said stands above.")
    return done.stdout


class Docker:
    def build(self, target: str, reference: str, arguments: Sequence[str]) -> None:
        run("docker", "build", "--target", target, "--tag", reference, *arguments, str(ROOT))

    def push(self, reference: str) -> str:
        run("docker", "push", reference)
        return self._digest(reference)

    def pull(self, reference: str) -> str:
        run("docker", "pull", reference)
        return self._digest(reference)

    def _digest(self, reference: str) -> str:
        said = run("docker", "image", "inspect", "--format", "{{json .RepoDigests}}", reference)
        repository = repository_of(reference)
        names = {repository, repository.removeprefix("docker.io/"), repository.removeprefix("docker.io/library/")}
        for known in json.loads(said) or []:
            name, _, digest = known.partition("@")
            if name in names:
                return checked(digest, reference)
        raise Trouble(f"docker knows no digest of {reference}: was it pushed?")


class Podman:
    def build(self, target: str, reference: str, arguments: Sequence[str]) -> None:
        run("podman", "build", "--target", target, "--tag", reference, *arguments, str(ROOT))

    def push(self, reference: str) -> str:
        return pushed_with_file("podman", reference)

    def pull(self, reference: str) -> str:
        run("podman", "pull", reference)
        return checked(run("podman", "image", "inspect", "--format", "{{.Digest}}", reference).strip(), reference)


class Buildah:
    def build(self, target: str, reference: str, arguments: Sequence[str]) -> None:
        run("buildah", "build", "--target", target, "--tag", reference, *arguments, str(ROOT))

    def push(self, reference: str) -> str:
        return pushed_with_file("buildah", reference)

    def pull(self, reference: str) -> str:
        run("buildah", "pull", reference)
        said = run("buildah", "inspect", "--type", "image", "--format", "{{.FromImageDigest}}", reference)
        return checked(said.strip(), reference)


def pushed_with_file(program: str, reference: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "digest"
        run(program, "push", "--digestfile", str(file), reference, f"docker://{reference}")
        return checked(file.read_text().strip(), reference)


ENGINES: dict[str, type[Engine]] = {"docker": Docker, "podman": Podman, "buildah": Buildah}


def engine() -> Engine:
    """The first that is there and answers; `docker` alone is only a client."""
    silent = []
    for name, kind in ENGINES.items():
        if shutil.which(name) is None:
            continue
        if subprocess.run([name, "info"], capture_output=True, check=False).returncode == 0:
            return kind()
        silent.append(name)
    if silent:
        raise Trouble(f"{' and '.join(silent)} cannot work here: `{silent[0]} info` says why (does its daemon run?).")
    raise Trouble("No program that builds images: install docker, podman or buildah.")


def repository_of(reference: str) -> str:
    """Without the tag; a registry's port is none."""
    head, slash, last = reference.rpartition("/")
    return f"{head}{slash}{last.partition('@')[0].partition(':')[0]}"


def checked(digest: str, reference: str) -> str:
    if not DIGEST.fullmatch(digest):
        raise Trouble(f"No digest of {reference}, but {digest!r}.")
    return digest


def write(pins: dict[str, tuple[str, str]], folder: Path = COMPONENT) -> None:
    """`pins`: name in the manifests -> (repository, digest). Names that are not among them stay as they are."""
    file = folder / "kustomization.yaml"
    text = file.read_text()
    for name, (repository, digest) in pins.items():
        if name == "jos-worker":  # in no pod template, but in the profile of drivers' pods
            worker = folder / "worker.yaml"
            found, count = re.subn(r"(?m)^  image: .*$", f"  image: {repository}@{digest}", worker.read_text())
            worker.write_text(found)
        else:
            entry = rf"(?m)(^  - name: {name}\n    newName: ).*(\n    digest: ).*$"
            text, count = re.subn(entry, rf"\g<1>{repository}\g<2>{digest}", text)
        if count != 1:
            raise Trouble(f"{folder} has no place for the image {name}: was the file changed by hand?")
    file.write_text(text)


def pins(folder: Path = COMPONENT) -> dict[str, str]:
    """Name in the manifests -> repository@digest, as written down."""
    entry = r"(?m)^  - name: (\S+)\n    newName: (\S+)\n    digest: (\S+)$"
    entries = re.findall(entry, (folder / "kustomization.yaml").read_text())
    (worker,) = re.findall(r"(?m)^  image: (\S+)$", (folder / "worker.yaml").read_text())
    return {**{name: f"{repository}@{digest}" for name, repository, digest in entries}, "jos-worker": worker}


def build(registry: str, tag: str, arguments: Sequence[str], others: bool) -> dict[str, tuple[str, str]]:
    program, found = engine(), {}
    for target in OURS:
        reference = f"{registry}/jos-{target}:{tag}"
        program.build(target, reference, arguments)
        found[f"jos-{target}"] = (repository_of(reference), program.push(reference))
    for name, reference in OTHERS.items() if others else ():
        found[name] = (repository_of(reference), program.pull(reference))
    return found


def main() -> int:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", required=True, help="where images are pushed, e.g. registry.example/team")
    parser.add_argument("--tag", default=version, help="for people; default: the version of JOS")
    parser.add_argument(
        "--build-arg", action="append", default=[], metavar="NAME=VALUE", help="e.g. TORCH=torch==2.13.0"
    )
    parser.add_argument(
        "--only-ours", action="store_true", help="leave the digests of Valkey and SeaweedFS as they are"
    )
    given = parser.parse_args()
    arguments = [f"--build-arg={one}" for one in given.build_arg]
    try:
        write(build(given.registry.rstrip("/"), given.tag, arguments, not given.only_ours))
    except Trouble as trouble:
        print(f"error: {trouble}", file=sys.stderr)
        return 1
    for name, reference in pins().items():
        print(f"{name}\t{reference}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
