"""A job's outputs as one DataFrame.

May import: pandas when it is asked for. Tests: tests/e2e/test_client.py, tests/e2e/test_doors.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from typing import TYPE_CHECKING

from jos.shown.extras import needed

if TYPE_CHECKING:
    import pandas


def frame_of(outputs: Iterable[tuple[str, str, bytes]]) -> pandas.DataFrame:
    """`outputs`: (name of the input, name of the output, its bytes), in the order of the rows. CSV or JSON lines by the
    output's name; the input's name becomes the column `input_file`. Raises BadRequest without pandas."""
    pandas = needed("pandas", "a DataFrame")
    frames = []
    for input_file, filename, data in outputs:
        lines = filename.endswith(".jsonl")
        frame = pandas.read_json(BytesIO(data), lines=True) if lines else pandas.read_csv(BytesIO(data))
        frame.insert(0, "input_file", input_file)
        frames.append(frame)
    return pandas.concat(frames, ignore_index=True) if frames else pandas.DataFrame()
