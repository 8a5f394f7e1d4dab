"""The example notebook, executed by a kernel as Jupyter would; and a kernel that is interrupted while it waits.

docs/notebook.ipynb is kept with the outputs of a run, for those who read it; they are not compared, because ids and
times change. JOS_WRITE_NOTEBOOK=1 writes it anew with the outputs of this run.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from jobs_lab import REPOSITORY, Lab
from up_lab import Up

nbformat = pytest.importorskip("nbformat") if not os.environ.get("CI") else __import__("nbformat")
nbclient = pytest.importorskip("nbclient") if not os.environ.get("CI") else __import__("nbclient")

NOTEBOOK = REPOSITORY / "docs" / "notebook.ipynb"


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Kernels write their connection files into a folder of their own."""
    yield


def executed(notebook: Any, folder: Path, environment: Mapping[str, str], **options: Any) -> Any:
    """The notebook with its outputs. A cell that raises fails the test with its traceback."""
    client = nbclient.NotebookClient(notebook, timeout=180, kernel_name="python3", **options)
    client.execute(cwd=str(folder), env=dict(environment))
    return notebook


def texts(cell: Any, kind: str = "text/plain") -> str:
    """What a cell showed, as one kind."""
    found = [o["data"].get(kind, "") if "data" in o else o.get("text", "") for o in cell.outputs]
    return "\n".join(found)


def test_the_example_notebook_classifies_watches_plots_fine_tunes_and_compares(up: Up, tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    environment = up.environment | {"JOS_URL": up.url, "JOS_API_KEY": up.key}
    executed(notebook, tmp_path, environment)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    said = {cell.source.splitlines()[-1]: cell for cell in cells}
    assert "worker.n_shots" in texts(said['client.pipelines.find("machine-state-classification")'], "text/html")
    watched = said["job.wait()"]
    assert "COMPLETED" in texts(watched, "text/html")
    assert "8 completed of 8 inputs" in texts(watched)
    for line in ("job.plot(truth=neighbours.apply(activity, axis=1))", "training.plot()"):
        assert texts(said[line], "image/png")
    table = texts(cells[-1])
    [neighbours, tuned] = [float(number) for number in re.findall(r"\d\.\d+", table)]
    assert min(neighbours, tuned) >= 0.9, table
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "stream"]  # no warnings, no bars in text
    if os.environ.get("JOS_WRITE_NOTEBOOK"):
        NOTEBOOK.write_text(nbformat.writes(_without_marks(notebook)) + "\n")


def _without_marks(notebook: Any) -> Any:
    """Without what says when it ran."""
    for cell in notebook.cells:
        cell.metadata = {}
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook
