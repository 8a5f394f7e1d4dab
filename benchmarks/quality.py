"""How good are JOS's classifiers, with every choice left to JOS? Accuracy and macro-F1 against two rivals.

    python -m benchmarks.quality [--volve DIR] [--sets NAME ...] [--seeds 5] [--resume] [--json FILE] [--small]
    python -m benchmarks.quality --train DIR [--validation DIR] --eval DIR --columns A B C --window 128 --step 32

`--volve` (or JOS_VOLVE) is the folder with volve_drilling.csv and volve_not_drilling.csv. Labelled CSV files of one's
own: see `folder_set` in benchmarks/quality_sets.py for how a file says its class. `--resume` keeps what a run before
has measured. Writes benchmarks/results/quality.md and .json, and prints both tables.

The protocol, fixed before anything was run:

1. A set is train, validation and evaluation. sktime: the set's own training cases, a quarter of each class's drawn by
   the seed for validation; its own test cases are for evaluation. Volve: rows in order of time, five blocks a class;
   one block is evaluated, one validates, three train. Folders and the made-up plant: as given, evaluation from another
   time than training.
2. Contenders fit on train alone. Encoder, scaling, number of neighbours, penalty and the epoch to keep are chosen by
   validation, or by recordings of train held out in turn where there is none. Evaluation is looked at once. Settings
   of the head were fixed beforehand with training and validation parts of these sets alone.
3. "Few" is ten windows a class, drawn from train by the seed, and nothing else: choices by holding some of them out.
   "All" is every window of train.
4. JOS: `choose` with encoder and scaling "auto"; few-shot kNN and stored kNN (5 neighbours, euclidean), and the head
   with its default settings, the last improved epoch. With the same windows: MiniRocket and nearest neighbours (1, 3 or
   5, standardised or not: chosen), and statistics with a ridge classifier (penalty by leave-one-out). All see rows
   scaled by train. Windows with a bad cell are left out everywhere.
5. Five seeds, means and standard deviations; the seed draws the windows, the validation, the order of steps.

A first look at one seed of four sets (ItalyPowerDemand, BasicMotions, Volve, plant with one file a class) showed that
choices by a few windows followed chance. After it `choose` was given the rule of one standard error and the doubt about
levels of classes recorded once; nothing was changed by looking at evaluation since.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from actors.choose import Recording, choose, held_out
from actors.embedder import Embedder, Recipe, whole_windows
from actors.head import Head, HeadSettings, HeadTraining
from actors.knn import NearestNeighbours
from actors.scaling import Scaling
from actors.scores import accuracy, macro_f1
from benchmarks.harness import RESULTS, Report, bar, table
from benchmarks.quality_sets import SKTIME, Draw, Labelled, sets

Labels = npt.NDArray[np.int64]
SHOTS, NEIGHBOURS = 10, 5
MOST = 4000  # windows of a split, evenly taken
FEW = ("few-shot kNN", "head, few", "MiniRocket + kNN, few", "statistics + ridge, few")
ALL = ("stored kNN", "head", "MiniRocket + kNN", "statistics + ridge")
PLAIN = ("stored kNN, no choice", "head, no choice")  # the default encoder and scaling, whatever the data
Result = tuple[float, float, str]  # accuracy, macro-F1, recipe


@dataclass(frozen=True)
class Windowed:
    """Recordings as windows of unscaled rows (n, channels, window), without bad cells."""

    windows: npt.NDArray[np.float64]
    labels: Labels

    @classmethod
    def of(cls, recordings: Sequence[Recording], classes: list[str], window: int, step: int) -> Windowed:
        places = [
            (recording, start * step)
            for recording in recordings
            if recording.rows.shape[1] >= window
            for start in np.flatnonzero(whole_windows(recording.rows, window, step)).tolist()
        ]
        places = places[:: max(1, -(-len(places) // MOST))]
        windows = np.array([recording.rows[:, start : start + window] for recording, start in places])
        return cls(windows, np.array([classes.index(recording.label) for recording, _ in places], np.int64))

    def recordings(self, classes: list[str]) -> list[Recording]:
        """Each window on its own, as few-shot examples are given."""
        pairs = zip(self.labels.tolist(), self.windows, strict=True)
        return [Recording(f"window-{at}", classes[label], rows) for at, (label, rows) in enumerate(pairs)]


class Contest:
    """All contenders on one draw of a set."""

    def __init__(self, drawn: Labelled, seed: int) -> None:
        self.drawn, self.seed = drawn, seed
        self.classes = sorted({recording.label for recording in drawn.train})
        self.evaluation = self._windowed([r for r in drawn.evaluation if r.label in self.classes])
        self.train, self.validation = self._windowed(drawn.train), self._windowed(drawn.validation)
        self.few = _few(self.train, seed)

    def _windowed(self, recordings: Sequence[Recording]) -> Windowed:
        return Windowed.of(recordings, self.classes, self.drawn.window, self.drawn.step)

    def results(self) -> Iterator[tuple[str, Result]]:
        shots = self.few.recordings(self.classes)
        yield FEW[0], self._neighbours(self._chosen(shots, [], "knn"), self.few)
        yield FEW[1], self._head(self._chosen(shots, [], "head"), self.few, self.few)
        yield FEW[2], self._minirocket(self.few, None)
        yield FEW[3], self._ridge(self.few)
        train, validation = self.drawn.train, self.drawn.validation
        fit, held = self._head_split()
        yield ALL[0], self._neighbours(self._chosen(train, validation, "knn"), self.train)
        yield ALL[1], self._head(self._chosen(train, validation, "head"), fit, held)
        yield ALL[2], self._minirocket(self.train, self.validation if len(self.validation.labels) else None)
        yield ALL[3], self._ridge(self.train)
        yield PLAIN[0], self._neighbours(Recipe(), self.train)
        yield PLAIN[1], self._head(Recipe(), fit, held)

    def _head_split(self) -> tuple[Windowed, Windowed]:
        """What a head trains on and what says which epoch to keep."""
        if len(self.validation.labels):
            return self.train, self.validation
        pairs = held_out(self.drawn.train, self.drawn.window)
        if not pairs:
            return self.train, self.train
        fit, held = (self._windowed(some) for some in pairs[-1])
        return fit, held

    def _chosen(self, train: Sequence[Recording], validation: Sequence[Recording], classifier: str) -> Recipe:
        window, step = self.drawn.window, self.drawn.step
        return choose(train, validation, window=window, step=step, seed=0, classifier=classifier)

    def _embedded(self, recipe: Recipe, fit: Windowed, *others: Windowed) -> list[Tensor]:
        window = self.drawn.window
        embedder = Embedder.fit(recipe, list(fit.windows), window, window)
        return [embedder.encode(torch.from_numpy(embedder.scaled(some.windows))) for some in (fit, *others)]

    def _neighbours(self, recipe: Recipe, fit: Windowed) -> Result:
        references, queries = self._embedded(recipe, fit, self.evaluation)
        count = min(NEIGHBOURS, len(references))
        found = NearestNeighbours(references, fit.labels, len(self.classes), n_neighbors=count)
        predicted = torch.cat([found.scores(some)[0] for some in queries.split(128)])
        return self._score(predicted.numpy(), recipe)

    def _head(self, recipe: Recipe, fit: Windowed, held: Windowed) -> Result:
        train, validation, queries = self._embedded(recipe, fit, held, self.evaluation)
        labels = torch.from_numpy(fit.labels), torch.from_numpy(held.labels)
        made = HeadTraining(train, labels[0], validation, labels[1], len(self.classes), HeadSettings(), self.seed)
        best: Head = made.head()
        for number in range(made.total_steps):
            made.step(number)
            if made.improved:
                best = made.head()
            if made.stopped:
                break
        return self._score(best.scores(queries)[0].numpy(), recipe)

    def _scaled(self, fit: Windowed) -> Callable[[Windowed], Tensor]:
        scaling = Scaling.of(np.concatenate(list(fit.windows), axis=1))
        return lambda some: torch.from_numpy(scaling.apply(some.windows))

    def _minirocket(self, fit: Windowed, validation: Windowed | None) -> Result:
        from benchmarks.quality_rivals import minirocket_neighbours

        scaled = self._scaled(fit)
        held = None if validation is None else (scaled(validation), validation.labels)
        return self._score(minirocket_neighbours(scaled(fit), fit.labels, held, scaled(self.evaluation), self.seed))

    def _ridge(self, fit: Windowed) -> Result:
        from benchmarks.quality_rivals import statistics_ridge

        scaled = self._scaled(fit)
        return self._score(statistics_ridge(scaled(fit), fit.labels, scaled(self.evaluation)))

    def _score(self, predicted: Labels, recipe: Recipe | None = None) -> Result:
        truth = self.evaluation.labels
        name = f"{recipe.encoder}, {recipe.scaling}" if recipe else ""
        return accuracy(truth, predicted), macro_f1(truth, predicted, len(self.classes)), name


def _few(train: Windowed, seed: int) -> Windowed:
    """Ten windows a class, in order of time."""
    random = np.random.default_rng([seed, 3])
    picked = [
        np.sort(random.permutation(np.flatnonzero(train.labels == label))[:SHOTS]) for label in np.unique(train.labels)
    ]
    at = np.concatenate(picked)
    return Windowed(train.windows[at], train.labels[at])


# --- many draws ---------------------------------------------------------------------------------------

Results = dict[str, dict[str, dict[str, Result]]]  # set, seed, contender


def measure(chosen: dict[str, Draw], seeds: int, known: Results, keep: Callable[[Results], None]) -> Results:
    results: Results = {name: dict(known.get(name, {})) for name in chosen}
    todo = [(name, seed) for name in chosen for seed in range(seeds) if str(seed) not in results[name]]
    progress = tqdm(total=len(todo) * len(FEW + ALL + PLAIN), unit="result", file=sys.stderr, mininterval=1)
    for name, seed in todo:
        one: dict[str, Result] = {}
        for contender, result in Contest(chosen[name](seed), seed).results():
            progress.set_description(f"{name}, seed {seed}, {contender}")
            one[contender] = result
            progress.update()
        results[name][str(seed)] = one
        keep(results)
    progress.close()
    return results


# --- tables -------------------------------------------------------------------------------------------


def _means(results: Results, name: str, contender: str, which: int) -> npt.NDArray[np.float64]:
    return np.array([one[contender][which] for one in results[name].values()], np.float64)


def _table(results: Results, contenders: Sequence[str], which: int) -> str:
    rows = []
    for name in results:
        values = [_means(results, name, contender, which) for contender in contenders]
        best = max(value.mean() for value in values)
        cells = [f"{value.mean():.3f} ± {value.std():.3f}" for value in values]
        seeds = len(results[name])
        title = name if seeds == 5 else f"{name} ({seeds} seeds)"
        rows.append([title, *(f"**{c}**" if v.mean() > best - 5e-4 else c for c, v in zip(cells, values, strict=True))])
    for title, names in (("mean, sktime", [n for n in results if n in SKTIME]), ("mean, all", list(results))):
        if len(names) > 1:
            means = [np.mean([_means(results, n, contender, which).mean() for n in names]) for contender in contenders]
            rows.append([f"*{title}*", *(f"{mean:.3f}" for mean in means)])
    return table(["set", *contenders], rows)


def _recipes(results: Results) -> str:
    """What was chosen, and how often."""
    rows = []
    for name, seeds in results.items():
        cells = []
        for contender in (FEW[0], FEW[1], ALL[0], ALL[1]):
            names = [one[contender][2] for one in seeds.values()]
            cells.append(
                "; ".join(f"{names.count(n)} × {n}" for n in sorted(set(names), key=lambda n: -names.count(n)))
            )
        rows.append([name, *cells])
    return table(["set", FEW[0], FEW[1], ALL[0], ALL[1]], rows)


def _verdicts(results: Results) -> Iterator[str]:
    """The bars of the issue, in words."""

    def mean(name: str, contender: str) -> float:
        return float(_means(results, name, contender, 1).mean())

    held = [name for name in results if name in SKTIME or name.startswith("Volve")]
    for own, few in ((ALL[1], FEW[0]), (FEW[1], FEW[0]), (ALL[1], ALL[0])):
        lost = [
            f"{name} ({mean(name, own) - mean(name, few):+.3f})" for name in held if mean(name, own) < mean(name, few)
        ]
        which = f"; below on {', '.join(lost)}" if lost else ""
        yield f"{own} at least as good as {few}, macro-F1: on {len(held) - len(lost)} of {len(held)} sets{which}."
    names = [name for name in results if name in SKTIME]
    for own, rivals in ((ALL[1], ALL[2:]), (ALL[0], ALL[2:]), (FEW[1], FEW[2:]), (FEW[0], FEW[2:])):
        for rival in rivals if names else ():
            gap = np.mean([mean(name, own) - mean(name, rival) for name in names])
            wins = sum(mean(name, own) >= mean(name, rival) for name in names)
            yield (
                f"{own} against {rival}, sktime: {gap:+.3f} macro-F1 on average ({bar(bool(gap > 0))}), "
                f"at least as good on {wins} of {len(names)}."
            )


def report(results: Results, options: argparse.Namespace) -> None:
    made = Report("quality", "Accuracy and macro-F1, every choice by JOS")
    made.small = options.small
    made.raw = dict(results)
    for title, contenders in ((f"{SHOTS} windows a class", FEW), ("All training windows", ALL)):
        made.add(f"{title}, macro-F1:", _table(results, contenders, 1), f"{title}, accuracy:")
        made.add(_table(results, contenders, 0))
    made.add("What the choice is worth (macro-F1; no choice: hydra, global):")
    made.add(_table(results, (PLAIN[0], ALL[0], PLAIN[1], ALL[1]), 1), "What was chosen:", _recipes(results))
    made.add(*_verdicts(results))
    made.add(
        "Mean ± standard deviation of five seeds where nothing else is said; the protocol is in benchmarks/quality.py. "
        "The plant is made up: it shows what drift does to choices, not what accuracy to expect. Some sktime sets "
        "have few test cases, and the encoders' sizes were once chosen with those sets in view (results/encoders.md)."
    )
    made.write()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volve", type=Path, default=os.environ.get("JOS_VOLVE"))
    parser.add_argument("--sets", nargs="+", help="only these; a beginning of the name will do")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="one seed of two small sets: does it run at all?")
    parser.add_argument("--train", type=Path)
    parser.add_argument("--validation", type=Path)
    parser.add_argument("--eval", type=Path)
    parser.add_argument("--columns", nargs="+", default=[], help="data columns of the CSV files")
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--step", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="keep what the last run measured")
    parser.add_argument("--json", type=Path, help="write the raw results here, and no files of benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.small:
        options.seeds, options.sets = 1, ["ItalyPowerDemand", "BasicMotions"]
    folders = [folder for folder in (options.train, options.validation, options.eval) if folder]
    if folders and not (options.train and options.eval and options.columns):
        parser.error("--train, --eval and --columns go together")
    found = sets(Path(options.volve) if options.volve else None, folders, options.window, options.step, options.columns)
    chosen = {n: d for n, d in found.items() if not options.sets or any(n.startswith(s) for s in options.sets)}
    if not chosen:
        parser.error(f"no such set; there are: {', '.join(found)}")
    kept = options.json or RESULTS / "quality.partial.json"
    known = json.loads(kept.read_text()) if options.resume and kept.exists() else {}
    results = measure(chosen, options.seeds, known, lambda some: _keep(kept, {**known, **some}))
    if options.json is None:
        report(results, options)
        kept.unlink(missing_ok=True)
    else:
        print("\n\n".join([_table(results, FEW, 1), _table(results, ALL, 1), _recipes(results), *_verdicts(results)]))


def _keep(path: Path, results: Any) -> None:
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
