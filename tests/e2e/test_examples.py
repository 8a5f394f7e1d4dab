"""The whole examples, step by step as a person would run them, against a real `jos up`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jobs_lab import REPOSITORY
from up_lab import Up

EXAMPLES = REPOSITORY / "examples"
# this repository does not hold the files: they are looked for beside it
VOLVE = Path(os.environ.get("VOLVE", REPOSITORY.parent / "shared" / "data" / "volve"))


class Steps:
    """Runs the scripts of one example, from another folder than theirs."""

    def __init__(self, up: Up, folder: Path) -> None:
        self.environment = up.environment | {"JOS_URL": up.url, "JOS_API_KEY": up.key}
        self.cwd = folder.parent

    def __call__(self, script: str, *arguments: object, **environment: str) -> str:
        """What it printed."""
        program = "sh" if script.endswith(".sh") else sys.executable
        done = subprocess.run(
            [program, str(EXAMPLES / script), *map(str, arguments)],
            capture_output=True,
            text=True,
            env=self.environment | environment,
            cwd=self.cwd,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{script}:\n{done.stdout}\n{done.stderr}"
        return done.stdout


def accuracy(said: str) -> float:
    [found] = re.findall(r"^accuracy (\d\.\d+)", said, re.MULTILINE)
    return float(found)


def results(folder: Path) -> dict[str, bytes]:
    """What was predicted, by input file: names have the input's id in them, which each job makes anew."""
    return {path.name.partition("_output_")[2]: path.read_bytes() for path in (folder / "results").iterdir()}


def whole(step: Steps, folder: Path, window: int, stride: int) -> tuple[float, float]:
    """Every step in Python, then in curl on the same files; the accuracies. Both get the same bytes."""
    step("upload.py", folder)
    assert "COMPLETED" in step("run.py", folder)
    step("download.py", folder)
    first, by_python = accuracy(step("evaluate.py", folder, window, stride)), results(folder)
    step("upload.sh", folder)
    assert '"status":"COMPLETED"' in step("run.sh", folder)
    step("download.sh", folder)
    assert results(folder) == by_python
    return first, accuracy(step("evaluate.py", folder, window, stride))


def test_the_wearables_are_prepared_classified_fetched_scored_and_searched(up: Up, tmp_path: Path) -> None:
    folder, step = tmp_path / "wearables", Steps(up, tmp_path / "wearables")
    step("wearables/prepare.py", folder)
    first, second = whole(step, folder, 50, 5)
    assert first == second >= 0.95
    table = [line.split() for line in step("search.py", folder).splitlines()[1:]]
    assert {(window, model) for *_, window, model in table} == {
        ("25", "stats"), ("25", "hydra"), ("50", "stats"), ("50", "hydra"),
    }  # fmt: skip
    assert [row[1] for row in table] == sorted((row[1] for row in table), reverse=True)
    found = step("search.sh", folder, WINDOWS="50").splitlines()
    by_curl = {line.split()[-1]: accuracy(line) for line in found}
    assert by_curl == {model: float(score) for score, _, window, model in table if window == "50"}  # the same jobs


@pytest.mark.skipif(not (VOLVE / "volve_drilling.csv").exists(), reason="the Volve files are not here")
def test_drilling_is_told_from_not_drilling(up: Up, tmp_path: Path) -> None:
    folder, step = tmp_path / "drilling", Steps(up, tmp_path / "drilling")
    step("drilling/prepare.py", VOLVE, folder)
    first, second = whole(step, folder, 16, 4)
    assert first == second >= 0.9
    assert len(step("search.py", folder, "16", "stats,hydra").splitlines()) == 3


def test_missing_files_are_named(tmp_path: Path) -> None:
    script = EXAMPLES / "drilling" / "prepare.py"
    command = [sys.executable, str(script), str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "volve_drilling.csv" in done.stderr
