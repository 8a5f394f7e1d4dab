"""docs/pipelines.md to the letter: its shell lines as one script, its Python as what the command wrote."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from jobs_lab import REPOSITORY, Lab

PAGE = (REPOSITORY / "docs" / "pipelines.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def squeezed(code: str) -> str:
    return re.sub(r"\n\n+", "\n", code).strip()


def test_a_stranger_follows_the_page_from_nothing_to_a_job_s_output(lab: Lab) -> None:
    ended = subprocess.run(
        ["sh", "-eu", "-c", "\n".join(blocks("sh"))],
        capture_output=True,
        text=True,
        env={k: v for k, v in lab.environment.items() if k != "JOS_PIPELINES"},
        cwd=lab.folder,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    [results] = blocks("text")
    assert results in ended.stdout
    assert ended.stdout.count("nothing wrong") == 2
    assert re.search(r"checkpoint\.saved +step_150 is saved", ended.stdout)
    folder: Path = lab.folder / "word-count"
    written = [(folder / name).read_text() for name in ("word_count.py", "row_means.py", "fit_curve.py")]
    assert squeezed("\n".join(blocks("python"))) == squeezed("\n".join(written))
