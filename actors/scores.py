"""How good predictions are: accuracy and macro-F1.

May import: numpy. Tests: tests/unit/test_head.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]


def accuracy(truth: Labels, predicted: Labels) -> float:
    """Share of the predictions that are right; 0 where there are none."""
    return float(np.mean(truth == predicted)) if len(truth) else 0.0


def macro_f1(truth: Labels, predicted: Labels, classes: int) -> float:
    """Mean of F1 over the classes 0 … classes - 1 that occur in the truth or among the predictions; 0 for none."""
    pairs = np.zeros((classes, classes), np.int64)
    np.add.at(pairs, (truth, predicted), 1)
    hits, total = np.diag(pairs), pairs.sum(0) + pairs.sum(1)
    return float((2 * hits[total > 0] / total[total > 0]).mean()) if len(truth) else 0.0
