"""A made-up plant, to see which choices collapse when time goes on. Synthetic: it shows a mechanism and proves no
accuracy on anybody's machines.

40 channels, four states, values z-scored over the plant's whole history, evaluation from the last third of it.

    drifting   states differ in how a dozen channels vibrate; levels wander and shift, gains creep, sensors die, and
               each state was labelled a few times over the first half
    one file   the same, but each state was labelled once: its levels give it away in training, and mislead later
    levels     states differ in the level of a few channels, which hardly drift: levels must be looked at
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Part = list[tuple[str, str, Floats]]  # name, label, rows

KINDS = ("drifting", "one file", "levels")
CHANNELS, WINDOW, STATES = 40, 128, 4
STRETCH = 640  # rows that the plant stays in a state
STRETCHES = 72
SPOKEN = 12  # channels that tell the states apart


def plant(kind: str, seed: int) -> tuple[Part, Part, Part]:
    """(train, validation, evaluation): the first half, up to two thirds, and the last third of the history."""
    random = np.random.default_rng([seed, KINDS.index(kind)])
    states = np.concatenate([random.permutation(STATES) for _ in range(STRETCHES // STATES)])
    rows = _noise(random, len(states) * STRETCH)
    spoken = random.permutation(CHANNELS)[:SPOKEN]
    if kind == "levels":
        rows += 0.15 * _drift(random, rows.shape[1])
        rows[spoken] += np.repeat(random.normal(0, 1.5, (SPOKEN, STATES))[:, states], STRETCH, axis=1)
    else:
        rows[spoken] += _vibration(random, states)
        rows = rows * np.exp(0.15 * _wander(random, rows.shape[1])) + _drift(random, rows.shape[1])
    _break(random, rows)
    rows = (rows - np.nanmean(rows, 1, keepdims=True)) / np.maximum(np.nanstd(rows, 1, keepdims=True), 1e-9)
    parts = _parts(np.round(rows, 4), states)
    if kind != "one file":
        return parts
    first = {label: (name, label, some) for name, label, some in reversed(parts[0])}
    return [first[label] for label in sorted(first)], [], parts[2]


def _noise(random: np.random.Generator, count: int) -> Floats:
    """Each channel with a memory of its own, spread 1; every third also hears the one before."""
    noise = random.normal(0, 1, (CHANNELS, count))
    memory = random.uniform(0, 0.8, (CHANNELS, 1))
    for at in range(1, count):
        noise[:, at] = memory[:, 0] * noise[:, at - 1] + np.sqrt(1 - memory[:, 0] ** 2) * noise[:, at]
    noise[2::3] = 0.8 * noise[2::3] + 0.6 * noise[1:-1:3][: len(noise[2::3])]
    return noise


def _vibration(random: np.random.Generator, states: npt.NDArray[np.int64]) -> Floats:
    """A tone per state, its strength per channel and state, its phase per stretch."""
    time = np.arange(STRETCH)
    tones = random.permutation(np.linspace(0.03, 0.3, STATES))
    strength = random.uniform(0, 1.1, (SPOKEN, STATES))
    pieces = [
        strength[:, state, None]
        * random.uniform(0.7, 1.3)
        * np.sin(2 * np.pi * (tones[state] * random.uniform(0.95, 1.05) * time + random.uniform(0, 1, (SPOKEN, 1))))
        for state in states
    ]
    return np.concatenate(pieces, axis=1)


def _wander(random: np.random.Generator, count: int) -> Floats:
    """A slow random walk per channel, spread about 1 over the history."""
    knots = random.normal(0, 1, (CHANNELS, 40)).cumsum(1) / np.sqrt(20)
    at = np.linspace(0, 39, count)
    return np.array([np.interp(at, np.arange(40), channel) for channel in knots])


def _drift(random: np.random.Generator, count: int) -> Floats:
    """Levels wander, and now and then a sensor is calibrated anew."""
    drift = 3 * _wander(random, count)
    for channel in drift:
        for start in random.integers(0, count, random.poisson(5)):
            channel[start:] += random.normal(0, 4)
    return drift


def _break(random: np.random.Generator, rows: Floats) -> None:
    """Two sensors die late and repeat their last value, three stick for a while, and some cells are missing."""
    count = rows.shape[1]
    for channel in random.permutation(CHANNELS)[:2]:
        at = random.integers(int(0.6 * count), int(0.8 * count))
        rows[channel, at:] = rows[channel, at]
    for channel in random.permutation(CHANNELS)[:3]:
        at = random.integers(0, count - 4000)
        rows[channel, at : at + 4000] = rows[channel, at]
    for at in random.integers(0, count - 3, count // 2000):
        rows[random.integers(CHANNELS), at : at + 3] = np.nan


def _parts(rows: Floats, states: npt.NDArray[np.int64]) -> tuple[Part, Part, Part]:
    stretches = [
        (f"stretch-{at}", f"state {state}", rows[:, at * STRETCH : (at + 1) * STRETCH])
        for at, state in enumerate(states)
    ]
    half, two_thirds = len(states) // 2, 2 * len(states) // 3
    return stretches[:half], stretches[half:two_thirds], stretches[two_thirds:]
