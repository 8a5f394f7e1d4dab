"""Where the tests of actors compute: with JOS_TEST_DEVICE=cuda (`make gpu`) the same tests run on a GPU.

On a CPU a window's result has the same bits in any company, machine by machine; on a GPU it is alike within rounding.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from actors.fitting import steady
from actors.knn import NearestNeighbours

DEVICE = os.environ.get("JOS_TEST_DEVICE", "cpu")
of_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="is promised of CPUs")
steady(1)  # as workers are; one thread, for tests run side by side


class Neighbours(NearestNeighbours):
    """Takes references and queries from the CPU, and gives its answers there."""

    def __init__(self, references: Tensor, labels: npt.NDArray[np.int64], classes: int, **options: Any) -> None:
        super().__init__(references.to(DEVICE), labels, classes, **options)

    def scores(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        state, score = super().scores(queries.to(DEVICE))
        return state.cpu(), score.cpu()

    def neighbours(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        distance, number = super().neighbours(queries.to(DEVICE))
        return distance.cpu(), number.cpu()


def assert_alike(one: Tensor, other: Tensor) -> None:
    """The same bits on a CPU, and within rounding elsewhere."""
    close = {"rtol": 0.0, "atol": 0.0} if DEVICE == "cpu" else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(one, other, **close)
