"""Libraries that are not always there, and what to install when one is missing.

May import: jos.core. Tests: tests/unit/test_plots.py.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from jos.core.errors import BadRequest

EXTRA = "notebook"


def needed(library: str, what: str) -> Any:
    """The module. Raises BadRequest that names the extra."""
    try:
        return import_module(library)
    except ModuleNotFoundError as error:
        name = library.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != name:
            raise  # it is there, and broken
        raise BadRequest(f"{what} needs {name}, which is not here.", suggestion=f"pip install 'jos[{EXTRA}]'") from None
