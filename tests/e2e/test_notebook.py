"""The example notebook, executed by a kernel as Jupyter would; and a kernel that is interrupted while it waits.

docs/notebook.ipynb is kept with the outputs of a run, for those who read it; they are not compared, because ids and
times change. JOS_WRITE_NOTEBOOK=1 writes it anew with the outputs of this run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from jobs_lab import REPOSITORY, Lab
from jupyter_client.manager import KernelManager
from up_lab import Up

NOTEBOOK = REPOSITORY / "docs" / "notebook.ipynb"


@pytest.fixture(autouse=True)
def own_jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's own settings, and nothing left among them."""
    for name in ("CONFIG", "DATA", "RUNTIME"):
        monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(tmp_path / ".jupyter" / name.lower()))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / ".ipython"))


def executed(notebook: Any, folder: Path, environment: Mapping[str, str]) -> None:
    """Fills in its outputs. A cell that raises fails the test with its traceback."""
    client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3")
    client.execute(cwd=str(folder), env=dict(environment))


def texts(cell: Any, kind: str = "text/plain") -> str:
    """What a cell showed, as one kind."""
    found = [o["data"].get(kind, "") if "data" in o else o.get("text", "") for o in cell.outputs]
    return "\n".join(found)


def test_the_example_notebook_classifies_watches_plots_fine_tunes_and_compares(up: Up, tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    environment = up.environment | {"JOS_URL": up.url, "JOS_API_KEY": up.key}
    executed(notebook, tmp_path, environment | {"IPYTHONDIR": str(tmp_path / ".ipython")})
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    said = {cell.source.splitlines()[-1]: cell for cell in cells}
    assert "worker.n_shots" in texts(said['client.pipelines.find("machine-state-classification")'], "text/html")
    watched = said["job.wait()"]
    assert [o.output_type for o in watched.outputs] == ["display_data", "execute_result"]
    assert "text/html" not in watched.outputs[1]["data"]  # the handle that ends the cell is one line: it is shown above
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


# --- interrupting -------------------------------------------------------------------------------------


class Kernel:
    """A kernel of this Python, spoken to as a notebook does."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.manager = KernelManager()
        self.manager.start_kernel(env=dict(environment), cwd=str(folder))
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(60)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()

    def run(self, code: str, stop_at: str = "") -> list[dict[str, Any]]:
        """What the cell showed, in order. The stop button is pressed when a page says `stop_at`."""
        shown: list[dict[str, Any]] = []

        def hook(message: dict[str, Any]) -> None:
            kind, content = message["header"]["msg_type"], message["content"]
            if kind in ("display_data", "update_display_data", "execute_result", "error", "stream"):
                shown.append({"kind": kind, **content})
            nonlocal stop_at
            if stop_at and stop_at in content.get("data", {}).get("text/html", ""):
                stop_at = ""
                self.manager.interrupt_kernel()

        self.client.execute_interactive(code, output_hook=hook, timeout=120)
        return shown


@pytest.fixture
def kernels(tmp_path: Path) -> Iterator[Any]:
    started: list[Kernel] = []

    def start(environment: Mapping[str, str]) -> Kernel:
        started.append(Kernel(tmp_path, environment))
        return started[-1]

    yield start
    for one in started:
        one.close()


SLOW = '{"worker": {"config": {"seconds": 0.1, "span_records": 2}}}'
HERE_ = f"""import jos
job = jos.run("shout", {{"data": "slow.jsonl"}}, {SLOW}, parallelism=1)
job.wait()"""
THERE = f"""import jos
client = jos.Client()
job = client.jobs.create("shout", {{"data": "slow.jsonl"}}, {SLOW}, parallelism=1)
job.wait()"""


def stopped_and_taken_up(kernel: Kernel, code: str) -> None:
    """The stop button ends the waiting alone, and the line that it shows finishes the job."""
    first, *_, last = kernel.run(code, stop_at=">RUNNING<")
    assert first["kind"] == "display_data"
    assert "progressbar" in first["data"]["text/html"]
    assert (last["kind"], last["ename"]) == ("error", "Detached")
    assert len(last["traceback"]) == 1
    [way_back] = re.findall(r"Come back with (.*)", last["traceback"][0])
    shown = kernel.run(way_back)
    assert "error" not in {one["kind"] for one in shown}, shown
    assert "COMPLETED" in shown[-1]["data"]["text/plain"]
    [frame] = kernel.run("len(job.to_pandas())")
    assert frame["data"]["text/plain"] == "40"
    [picture] = kernel.run("job.plot()")
    assert picture["data"]["image/png"]


def slow(folder: Path) -> None:
    (folder / "slow.jsonl").write_text("".join(f'{{"text": "a {n}"}}\n' for n in range(40)))


def test_stopping_a_cell_leaves_the_job_of_a_server_running(up: Up, kernels: Any, tmp_path: Path) -> None:
    slow(tmp_path)
    stopped_and_taken_up(kernels(up.environment | {"JOS_URL": up.url, "JOS_API_KEY": up.key}), THERE)


def test_stopping_a_cell_leaves_the_job_of_jos_run_running(lab: Lab, kernels: Any) -> None:
    slow(lab.folder)
    stopped_and_taken_up(kernels(lab.environment), HERE_)
