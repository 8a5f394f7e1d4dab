"""Which encoder and scaling suit labelled recordings?

May import: actors.{embedder}, numpy, stdlib. Tests: tests/unit/test_choose.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.embedder import Recipe
from actors.encoders import DEFAULT_ENCODER
from actors.scaling import DEFAULT_SCALING, Floats

AUTO = "auto"


@dataclass(frozen=True)
class Recording:
    """A labelled file: rows as (channels, rows)."""

    name: str
    label: str
    rows: Floats


def choose(
    train: Sequence[Recording],
    validation: Sequence[Recording],
    *,
    window: int,
    step: int,
    encoder: str = AUTO,
    scaling: str = AUTO,
    seed: int = 0,
    device: str = "cpu",
) -> Recipe:
    return Recipe(
        DEFAULT_ENCODER if encoder == AUTO else encoder,
        DEFAULT_SCALING if scaling == AUTO else scaling,
    )
