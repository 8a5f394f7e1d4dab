"""The steps of the Dockerfile, and a way to follow them where no engine is: paths of the image moved into a folder."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from manifests_lab import ROOT

MOVED = ("/opt/jos", "/wheels", "/build", "/src")  # what the steps of stages that build write


@dataclass
class Stage:
    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)  # (instruction, the rest)


def stages(text: str) -> list[Stage]:
    """With arguments put in for their names in FROM."""
    text = re.sub(r"(?m)^\s*#.*\n", "", text)
    lines = [line.strip() for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]
    arguments: dict[str, str] = {}
    found: list[Stage] = []
    for line in lines:
        instruction, rest = line.split(maxsplit=1)
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            found.append(Stage(name, _filled(base, arguments)))
        elif not found:
            assert instruction == "ARG"
            name, _, value = rest.partition("=")
            arguments[name] = value
        else:
            found[-1].steps.append((instruction, rest))
    return found


def _filled(text: str, arguments: Mapping[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda m: arguments[m[1]], text)


def context(folder: Path) -> None:
    """Copies what an engine would be sent: tracked files that .dockerignore leaves."""
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    rules = [r for r in (ROOT / ".dockerignore").read_text().splitlines() if r and not r.startswith("#")]
    for name in tracked:
        if not _ignored(name, rules) and (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def _ignored(name: str, rules: list[str]) -> bool:
    """The last rule that matches the file or a folder above it."""
    places = [name, *(str(one) for one in Path(name).parents if str(one) != ".")]
    ignored = False
    for rule in rules:
        pattern = rule.removeprefix("!").removeprefix("**/")
        if any(fnmatch.fnmatch(place if "**" not in rule else Path(place).name, pattern) for place in places):
            ignored = not rule.startswith("!")
    return ignored


def follow(stage: Stage, sources: Path, root: Path, environment: Mapping[str, str]) -> None:
    """Does the stage's COPY, ARG and RUN steps under `root`; other stages' files are there already."""
    environment = dict(environment)
    where = root
    for instruction, rest in stage.steps:
        if instruction == "WORKDIR":
            where = moved_path(rest, root)
            where.mkdir(parents=True, exist_ok=True)
        elif instruction == "ARG":
            name, _, value = rest.partition("=")
            environment.setdefault(name, value)
        elif instruction == "COPY":
            _copy(rest, sources, root, where)
        elif instruction == "RUN":
            subprocess.run(["sh", "-euc", moved(rest, root)], cwd=where, env=environment, check=True)
        else:
            raise AssertionError(f"{stage.name}: nobody follows {instruction}")


def _copy(rest: str, sources: Path, root: Path, where: Path) -> None:
    *names, target = rest.split()
    if names[0].startswith("--from="):
        assert [moved_path(name, root).exists() for name in names[1:]] == [True]
        return  # all stages share the folder
    goal = moved_path(target, root) if target.startswith("/") else where / target
    for name in names:
        source = sources / name
        if source.is_dir():
            shutil.copytree(source, goal, dirs_exist_ok=True)
        else:
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, goal)


def moved(command: str, root: Path) -> str:
    for place in MOVED:
        command = re.sub(rf"(?<![\w./]){re.escape(place)}\b", f"{root}{place}", command)
    return command


def moved_path(path: str, root: Path) -> Path:
    return root / path.lstrip("/")
