"""While a job runs: the live page of a notebook's cell, the bar of a terminal, and what Ctrl-C says.

Nothing of ipywidgets is needed: a cell's output is replaced as it changes, which every notebook can.
May import: tqdm, IPython where it runs already. Tests: tests/unit/test_shown.py, tests/e2e/test_notebook.py.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

EVERY = 0.5  # seconds between two looks, at least
SHARE = 5  # … and this many times as long as a look takes: a slow server is not asked all the time

Bundle = dict[str, str]


class Detached(KeyboardInterrupt):
    """Ctrl-C, or the notebook's stop button, while waiting: the job goes on, and the message says how to come back."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the message, without a page of stack."""
        return [str(self)]


@contextmanager
def detachable(job_id: str, comeback: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Detached(f"Stopped waiting; job {job_id} goes on. Come back with {comeback}") from None


def in_kernel() -> bool:
    """Whether this is a notebook's process: IPython runs already, with a kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def cell_number() -> int | None:
    """Of the cell that runs; None outside of notebooks."""
    return sys.modules["IPython"].get_ipython().execution_count if in_kernel() else None


def bar(**options: Any) -> Any:
    """tqdm: with widgets where a notebook has them, in text elsewhere, and no word about those that are not there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm

        return tqdm(**options)


class Cell:
    """The output of the cell that waits. `look` makes the page; it is asked no more often than the job can bear."""

    def __init__(self, look: Callable[[], Bundle]) -> None:
        self._look = look
        self._id = f"jos-{uuid4().hex}"
        self._next = 0.0
        self._there = False

    def show(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if now < self._next and not last:
            return
        bundle = self._look()
        self._next = time.monotonic() + max(EVERY, SHARE * (time.monotonic() - now))
        from IPython.display import display

        display(bundle, raw=True, display_id=self._id, update=self._there)
        self._there = True
