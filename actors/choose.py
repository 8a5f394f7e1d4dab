"""Which encoder and scaling suit labelled recordings: tried out on another time than they were fitted on.

What a channel's level says in training may mislead a month later, and windows drawn at random from one recording never
show it: they stand beside their own neighbours. So whole recordings are held out, those given for validation or a part
of each class's in turn; where a class has only one, blocks of its time with a gap of one window. What has one name is
one recording, whether it comes in pieces or its end is given for validation. First the scaling is chosen under the
default encoder, then the encoder under that scaling. The best macro-F1 counts; what lies within one standard error of
it is a tie, and ties fall to the default, then to what comes first. Where each class has but one recording, nothing can
show whether its levels are the state's or only that day's: levels must be worth DOUBT to count.

May import: actors.{embedder,encoders,knn,scaling,scores}, numpy, torch, stdlib.
Tests: tests/unit/test_choose.py. Measured by: benchmarks/quality.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from actors.embedder import Embedder, Recipe, whole_windows
from actors.encoders import DEFAULT_ENCODER, ENCODERS
from actors.knn import NearestNeighbours
from actors.scaling import SCALINGS, Floats
from actors.scores import macro_f1

Labels = npt.NDArray[np.int64]

AUTO = "auto"
CLASSIFIERS = ("knn", "head")
FOLDS = 4
MOST = 256  # windows that a recipe is fitted on, and as many to score it by: its cost does not grow with the data
ENOUGH = 100  # windows for validation; with fewer the training recordings are held out in turn as well
NEIGHBOURS = 5
DOUBT = 0.1  # of macro-F1, and ties: against levels where every class was recorded once, for they look too good there
_PENALTY = 0.03  # of the ridge that stands for a head, in variances of the embedding


@dataclass(frozen=True)
class Recording:
    """A labelled file: rows as (channels, rows). Several of one name are pieces of one file, in the order of time, and
    share no row."""

    name: str
    label: str
    rows: Floats


@dataclass(frozen=True)
class _Fold:
    """Unscaled windows (n, channels, window) with the numbers of their classes."""

    fit: Floats
    fit_labels: Labels
    held: Floats
    held_labels: Labels


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
    classifier: str = "knn",
) -> Recipe:
    """The recipe for these recordings. `encoder` and `scaling` are names, or "auto" for those to be chosen;
    `classifier` says what the embeddings are for. The same for the same recordings: nothing is drawn, and `seed` only
    moves which windows stand for very long recordings. Where nothing can be held out, the defaults. Raises ValueError
    for unknown names."""
    if classifier not in CLASSIFIERS:
        raise ValueError(f"unknown classifier {classifier!r}; known: {', '.join(CLASSIFIERS)}")
    first, *others = candidates(encoder, scaling)
    if not others:
        return first
    try:
        trial = _Trial(train, validation, (window, step, seed), classifier, device)
    except LookupError:
        return first
    scalings = [recipe for recipe in (first, *others) if recipe.encoder == first.encoder]
    found = trial.best(sorted(scalings, key=lambda recipe: trial.confounded and recipe.scaling == "global"))
    return trial.best([recipe for recipe in (first, *others) if recipe.scaling == found.scaling])


def candidates(encoder: str, scaling: str) -> list[Recipe]:
    """All recipes that the names allow: the default encoder first, then from cheap to dear; scalings in their order."""
    cheap = sorted(ENCODERS, key=lambda name: (name != DEFAULT_ENCODER, ENCODERS[name](1, 64).seconds()))
    encoders = cheap if encoder == AUTO else [encoder]
    scalings = SCALINGS if scaling == AUTO else (scaling,)
    return [Recipe(*names) for names in itertools.product(encoders, scalings)]


class _Trial:
    """Scores recipes on the same folds. Raises LookupError where nothing can be held out."""

    def __init__(
        self,
        train: Sequence[Recording],
        validation: Sequence[Recording],
        shape: tuple[int, int, int],  # window, step, seed
        classifier: str,
        device: str,
    ) -> None:
        window, step, _ = shape
        self.classifier, self.device = classifier, device
        classes = sorted({recording.label for recording in train})
        known = [r for r in validation if r.label in classes and r.rows.shape[1] >= window]
        names = {r.name for r in train}
        apart = [r for r in known if r.name not in names]
        whole = [*train, *(r for r in known if r.name in names)]  # the end of a training file shows no other time
        long = {(r.label, r.name) for r in train if r.rows.shape[1] >= window}
        self.classes, self.confounded = len(classes), not apart and len(long) == len({label for label, _ in long})
        self.folds = list(_folds(whole, apart, classes, *shape))
        if not self.folds:
            raise LookupError("nothing can be held out")
        self.truth = np.concatenate([fold.held_labels for fold in self.folds])
        self.independent = max(1.0, len(self.truth) * min(1.0, step / window))  # what overlaps does not count twice
        self.known: dict[Recipe, float] = {}

    def best(self, recipes: list[Recipe]) -> Recipe:
        """The first of those that nothing clearly beats."""
        scores = [self._score(recipe) for recipe in recipes]
        best = max(scores)
        error = math.sqrt(max(best * (1 - best), 0.25 / self.independent) / self.independent)
        return recipes[next(at for at, score in enumerate(scores) if score >= best - error)]

    def _score(self, recipe: Recipe) -> float:
        if recipe not in self.known:
            tried = [_tried(recipe, fold, self.classes, self.classifier, self.device) for fold in self.folds]
            doubt = DOUBT if self.confounded and recipe.scaling == "global" else 0
            self.known[recipe] = macro_f1(self.truth, np.concatenate(tried), self.classes) - doubt
        return self.known[recipe]


# --- what is held out ---------------------------------------------------------------------------------


def _folds(
    train: Sequence[Recording], validation: Sequence[Recording], classes: list[str], window: int, step: int, seed: int
) -> Iterator[_Fold]:
    """Those of which something can be learnt, with their windows, evenly thinned."""
    held = sum(int(whole_windows(recording.rows, window, step).sum()) for recording in validation)
    pairs = [(list(train), list(validation))] if held else []
    if held < ENOUGH or len({recording.label for recording in validation}) < len(classes):
        pairs += held_out(train, window)
    for fit, out in pairs:
        fold = _Fold(
            *_windows(fit, classes, window, step, MOST, seed),
            *_windows(out, classes, window, step, -(-MOST // len(pairs)), seed),
        )
        if len(np.unique(fold.fit_labels)) > 1 and len(fold.held):
            yield fold


def held_out(train: Sequence[Recording], window: int) -> list[tuple[list[Recording], list[Recording]]]:
    """(fit on, held out) for each of up to FOLDS folds; none where every class has but one short recording."""
    pairs: list[tuple[list[Recording], list[Recording]]] = [([], []) for _ in range(FOLDS)]
    for label in sorted({recording.label for recording in train}):
        own: dict[str, list[Recording]] = {}
        for recording in train:
            if recording.label == label and recording.rows.shape[1] >= window:
                own.setdefault(recording.name, []).append(recording)
        files = list(own.values())
        groups = _time_blocks(files[0], window) if len(files) == 1 else _whole_recordings(files)
        for (fit, out), (fit_too, out_too) in zip(pairs, groups, strict=True):
            fit += fit_too
            out += out_too
    return [(fit, out) for fit, out in pairs if out]


def _whole_recordings(files: list[list[Recording]]) -> list[tuple[list[Recording], list[Recording]]]:
    """All pieces of a file go together, and so do neighbours: recordings mostly come in the order of time."""
    count = min(FOLDS, len(files))
    group = [at * count // max(len(files), 1) for at in range(len(files))]
    return [
        (
            [r for file, of in zip(files, group, strict=True) if of != n for r in file],
            [r for file, of in zip(files, group, strict=True) if of == n for r in file],
        )
        for n in range(FOLDS)
    ]


def _time_blocks(only: list[Recording], window: int) -> list[tuple[list[Recording], list[Recording]]]:
    """A block of a file's time, and what is at least one window away from it. Between two pieces more time has passed
    than their rows tell, never less."""
    rows = sum(piece.rows.shape[1] for piece in only)
    count = min(FOLDS, rows // (2 * window))
    if count < 2:
        return [(only, [])] * FOLDS
    pairs = []
    for n in range(count):
        start, end = rows * n // count, rows * (n + 1) // count
        rest = [*_between(only, 0, start - window, window), *_between(only, end + window, rows, window)]
        pairs.append((rest, _between(only, start, end, window)))
    return [*pairs, *[(only, list[Recording]())] * (FOLDS - count)]


def _between(pieces: list[Recording], start: int, end: int, window: int) -> list[Recording]:
    """What of the pieces lies in rows [start, end) of all their rows, where it has a window."""
    found, before = [], 0
    for piece in pieces:
        rows = piece.rows[:, max(start - before, 0) : max(end - before, 0)]
        if rows.shape[1] >= window:
            found.append(replace(piece, rows=rows))
        before += piece.rows.shape[1]
    return found


def _windows(
    recordings: Sequence[Recording], classes: list[str], window: int, step: int, most: int, seed: int
) -> tuple[Floats, Labels]:
    """Unscaled windows without a bad cell, of each class at most its share of `most`, evenly taken."""
    taken: list[Floats] = []
    labels: list[int] = []
    for label in range(len(classes)):
        own = [r.rows for r in recordings if r.label == classes[label] and r.rows.shape[1] >= window]
        places = [(at, n) for at, rows in enumerate(own) for n in np.flatnonzero(whole_windows(rows, window, step))]
        every = max(1, -(-len(places) // max(1, most // len(classes))))
        for at, n in places[seed % every :: every]:
            taken.append(own[at][:, n * step : n * step + window])
            labels.append(label)
    channels = recordings[0].rows.shape[0] if recordings else 0
    return np.array(taken).reshape(-1, channels, window), np.array(labels, np.int64)


# --- how good a recipe is -----------------------------------------------------------------------------


def _tried(recipe: Recipe, fold: _Fold, classes: int, classifier: str, device: str) -> Labels:
    """What the classifier makes of the windows held out."""
    window = fold.fit.shape[2]
    embedder = Embedder.fit(recipe, list(fold.fit), window, window, device=device, most_windows=MOST)
    fit, held = (embedder.encode(torch.from_numpy(embedder.scaled(some))) for some in (fold.fit, fold.held))
    with torch.inference_mode():
        if classifier == "head":
            return _ridge(fit.cpu().double().numpy(), fold.fit_labels, held.cpu().double().numpy(), classes)
        near = NearestNeighbours(fit, fold.fit_labels, classes, n_neighbors=min(NEIGHBOURS, len(fit)))
        return np.asarray(near.scores(held)[0].cpu().numpy(), np.int64)


def _ridge(fit: Floats, labels: Labels, held: Floats, classes: int) -> Labels:
    """A ridge classifier, each class counting alike: in a closed form what a head comes to by many steps."""
    weight = 1 / np.bincount(labels, minlength=classes)[labels]
    weight /= weight.sum()
    centre = weight @ fit
    rows = fit - centre
    wanted = np.eye(classes)[labels]
    level = weight @ wanted
    square = rows.T @ (rows * weight[:, None])
    penalty = _PENALTY * max(np.trace(square) / len(square), 1e-12)
    solved = np.linalg.solve(square + penalty * np.eye(len(square)), rows.T @ (weight[:, None] * (wanted - level)))
    return np.asarray(((held - centre) @ solved + level).argmax(1), np.int64)
