"""What idle worker processes of JOS's own Ray import ahead of time, so that an index is up as soon as it is wanted:
`RAY_preload_python_modules=jos.driver.preload` in the environment of the head (jos/launch/ray_head.py).

May import: anything that an index is likely to need. Tests: tests/integration/test_launch_head.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import Any

# Ray sets it in the processes that only supervise a submitted driver: they need none of this.
_SUPERVISOR = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
# pandas: pyarrow imports it at its first conversion, wherever it is installed
_MODULES = ("jos.driver.index", "numpy", "pyarrow.csv", "pandas", "torch")


def preload() -> None:
    for name in _MODULES:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    if "torch" in sys.modules:
        _touch(sys.modules["torch"])


def _touch(torch: Any) -> None:
    """Its first operations set up libraries of their own, for some 0.1 s. No GPU is touched: it is not ours yet."""
    ones = torch.ones(1, 1, 16)
    torch.nn.functional.conv1d(ones, ones[..., :3])
    torch.linalg.eigh(torch.eye(4))


if _SUPERVISOR not in os.environ:
    preload()
