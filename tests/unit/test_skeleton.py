"""`jos pipelines new`: what it writes works under any name, and nothing of anybody's is overwritten."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jos.core.errors import BadRequest, Conflict
from jos.registry_check import check_folder
from jos.skeleton import Kind, write_skeleton


@pytest.mark.parametrize("kind", Kind)
def test_a_new_pipeline_passes_its_own_test_and_the_check(kind: Kind, tmp_path: Path) -> None:
    files = write_skeleton("tide-of-2026", kind, tmp_path)
    assert [str(f) for f in files[:2]] == ["test_tide_of_2026.py", "tide_of_2026.py"]
    assert all((tmp_path / file).is_file() for file in files)
    left = "".join((tmp_path / file).read_text() for file in files)
    assert "my-pipeline" not in left.lower().replace("_", "-").replace(" ", "-")
    assert [str(finding) for finding in check_folder(tmp_path / "pipelines", import_worker=True).findings] == []
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_one_folder_holds_several_pipelines_and_none_is_overwritten(tmp_path: Path) -> None:
    write_skeleton("one", Kind.RECORDS, tmp_path)
    write_skeleton("two", Kind.TRAINER, tmp_path)
    (tmp_path / "one.py").write_text("mine")
    (tmp_path / "test_one.py").unlink()
    with pytest.raises(Conflict, match=r"one\.py") as caught:
        write_skeleton("one", Kind.WORKER, tmp_path)
    assert "test_one.py" not in str(caught.value)
    assert (tmp_path / "one.py").read_text() == "mine"
    assert not (tmp_path / "test_one.py").exists()


@pytest.mark.parametrize("key", ["Words", "words_", "2words", "words--of", "-", "", "../words", "wörter"])
def test_what_is_no_key_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="cannot be the key"):
        write_skeleton(key, Kind.RECORDS, tmp_path)


@pytest.mark.parametrize("key", ["json", "class", "numpy", "jos"])
def test_a_module_that_python_has_already_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=f"would make a module {key}.*my-{key}"):
        write_skeleton(key, Kind.RECORDS, tmp_path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadRequest, match=r"file.* cannot be written"):
        write_skeleton("words", Kind.RECORDS, tmp_path / "file")
