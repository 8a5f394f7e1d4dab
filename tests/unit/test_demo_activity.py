"""What the demo tells of recordings, and how it scores the answers."""

from __future__ import annotations

import numpy as np

from jos.demo import CHANNELS
from jos.demo_activity import LEVELS, score, told


def test_a_recording_is_told_by_how_its_channels_stand_among_the_examples() -> None:
    swing = np.array([[-1.0, 1.0]])
    examples = np.stack([np.repeat(size * swing, len(CHANNELS), axis=0) for size in range(1, 101)])
    calm, wild = (np.repeat(size * swing, len(CHANNELS), axis=0) for size in (5, 95))
    mixed = np.concatenate([wild[:1], calm[1:]])
    low, high, both = told(np.stack([calm, wild, mixed]), examples)
    assert low == ", ".join(f"{c} {LEVELS[0]}" for c in CHANNELS)
    assert high == ", ".join(f"{c} {LEVELS[-1]}" for c in CHANNELS)
    assert both.startswith(f"{CHANNELS[0]} {LEVELS[-1]}, {CHANNELS[1]} {LEVELS[0]}")


def test_no_answer_counts_as_a_wrong_one() -> None:
    found = score(["a", None, "b", "a"], ["a", "a", "b", "b"])
    assert found == {"accuracy": 0.5, "classes": {"a": (2, 1), "b": (2, 1)}}
