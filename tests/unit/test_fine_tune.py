"""Head and neighbours trained from labelled files, as the engine drives them: the same bytes each time and from any
saved state, early stop, and what cannot be trained told clearly."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from devices import DEVICE, of_cpu
from test_machine_state import Memory, spoil, table

from actors import fine_tune, preparation
from actors.embedder import Recipe
from actors.fine_tune import HeadTrainer, KnnTrainer
from actors.head import HeadSettings
from actors.labelled import Use
from actors.model_file import Model, unpack_model
from jos.core.errors import InputInvalid
from jos.registry import Registry
from jos.testing import LocalPrepared, Outputs, _run_file, make_worker, run_worker
from jos.worker import JobImpossible, Trainer

TRAIN, EVAL = "worker.train_data", "worker.eval_data"


def file(name: str, label: str, level: float, rows: int = 60, seed: int = 0) -> Memory:
    return Memory(table(rows, level, seed), f"{name}.csv", f"inp_{name}", {"class": label})


def files(rows: int = 60, noise: float = 0.0) -> list[Memory]:
    """Three classes of four files each."""
    levels = {"idle": 0.0, "slow": 1.0 - noise, "fast": 2.0 - 2 * noise}
    return [
        file(f"{label}{nth}", label, level, rows, seed=10 * at + nth)
        for at, (label, level) in enumerate(levels.items())
        for nth in range(4)
    ]


def config(**changes: Any) -> dict[str, Any]:
    return {
        "model_type": "stats",
        "reader_config": {"data_columns": ["HKLD", "RPM"], "window_size": 16, "step_size": 2},
        "batch_size": 16,
        "train_config": {"epochs": 6, "patience": 6},
        "classifier_config": {"n_neighbors": 3},
        "seed": 7,
        "omega_1_5": None,
        "data_source": None,
    } | changes


def train(kind: type[Trainer], scattered: Mapping[str, Sequence[Memory]], **changes: Any) -> Outputs:
    return run_worker(kind, config=config(**changes), scattered=scattered, device=DEVICE)


def model(outputs: Outputs) -> Model:
    """The best one."""
    return unpack_model(outputs.checkpoints[max(outputs.checkpoints)], "it")


def trainer(scattered: Mapping[str, Sequence[Memory]], **changes: Any) -> HeadTrainer:
    """A head's trainer that stands before its first step."""
    outputs = Outputs()
    worker = make_worker(HeadTrainer, config(**changes), scattered, outputs.events, DEVICE)
    assert isinstance(worker, HeadTrainer)
    prepared = []
    for port, sources in scattered.items():
        for source in sources:
            plan, bodies = _run_file(worker, source, outputs)
            prepared.append(LocalPrepared(source, port, plan.tasks, plan.header + b"".join(bodies.values())))
    worker.begin(prepared)
    return worker


@pytest.fixture(autouse=True)
def chosen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No trying out of recipes, which has tests of its own, but where a test is about it."""
    if "choice" not in request.node.name:
        quick = Recipe("hydra", "global")
        monkeypatch.setattr(preparation, "choose", lambda *_, encoder, **__: replace(quick, encoder=encoder))


# --- what comes of it ----------------------------------------------------------------------------------


def test_a_head_learns_and_each_rise_leaves_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fine_tune, "SPAN_SECONDS", 1e-9)  # as on large data: spans within an epoch
    outputs = train(HeadTrainer, {TRAIN: files(noise=0.7)})
    found = model(outputs)
    assert (found.kind, found.classes) == ("head", ("fast", "idle", "slow"))
    assert (found.data_columns, found.window_size, found.step_size) == (("HKLD", "RPM"), 16, 2)
    best, risen = -1.0, 0
    steps_per_epoch = len(outputs.metrics) // 6
    for at, metrics in enumerate(outputs.metrics, 1):
        assert {"loss", "learning_rate", "epoch"} <= set(metrics)
        assert metrics["epoch"] == at // steps_per_epoch
        score = metrics.get("macro_f1", -1)
        if score > best:
            risen += 1
            assert at in outputs.checkpoints
        assert at not in outputs.checkpoints or score >= best  # as good a score with less loss is better too
        best = max(best, score)
    assert best > 0.5
    assert risen


def test_checkpoints_of_spans_of_many_epochs_carry_the_score_of_their_best() -> None:
    trained = trainer({TRAIN: files(noise=0.8)}, train_config={"epochs": 40, "patience": 40})
    trained.bounds = [0, *range(70, trained.training.total_steps, 70)]
    trained.starts = set(trained.bounds)
    best = -1.0
    for start, end in itertools.pairwise(trained.bounds):
        scores, improved = [], False
        for number in range(start, end):
            scores.append(trained.step(number))
            improved = improved or trained.training.improved
        assert scores[-1]["macro_f1"] == max(one.get("macro_f1", -1) for one in scores)
        assert (trained.checkpoint() is not None) == improved
        assert improved or scores[-1]["macro_f1"] <= best
        best = max(best, scores[-1]["macro_f1"])
    assert best == trained.training.best


@of_cpu
@pytest.mark.parametrize("kind", [HeadTrainer, KnnTrainer])
def test_two_runs_give_the_same_bytes(kind: type[Trainer]) -> None:
    one, two = (train(kind, {TRAIN: files()}) for _ in range(2))
    assert one.checkpoints
    assert one.checkpoints == two.checkpoints
    assert one.state == two.state
    assert one.metrics == two.metrics


def test_from_the_state_after_any_span_the_rest_gives_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fine_tune, "SPAN_SECONDS", 1e-9)
    calm = trainer({TRAIN: files(noise=0.7)})
    bounds = calm.steps().bounds
    spans = list(itertools.pairwise(bounds))
    states, metrics, checkpoints = [], [], []
    for start, end in spans:
        metrics.append([calm.step(number) for number in range(start, end)])
        checkpoints.append(calm.checkpoint())
        states.append(calm.save())
    assert len(states) > 10
    hurt = trainer({TRAIN: files(noise=0.7)})
    assert hurt.steps() == calm.steps()
    for at in range(0, len(spans) - 1, 5):
        hurt.load(states[at])
        for later in range(at + 1, len(spans)):
            assert [hurt.step(number) for number in range(*spans[later])] == metrics[later]
            assert hurt.checkpoint() == checkpoints[later]
        assert hurt.save() == states[-1]


def test_training_stops_when_nothing_gets_better() -> None:
    outputs = train(HeadTrainer, {TRAIN: files()}, train_config={"epochs": 500, "patience": 3})
    epochs = max(metrics["epoch"] for metrics in outputs.metrics)
    assert epochs < 50
    assert len(outputs.checkpoints) < epochs


def test_a_stopped_training_stays_stopped_when_it_is_loaded() -> None:
    outputs = train(HeadTrainer, {TRAIN: files()}, train_config={"epochs": 500, "patience": 3})
    again = trainer({TRAIN: files()}, train_config={"epochs": 500, "patience": 3})
    assert not again.finished
    again.load(outputs.state)
    assert again.finished


def test_epochs_end_with_spans_and_spans_are_neither_short_nor_long() -> None:
    worker = trainer({TRAIN: files()}, train_config={"epochs": 50})
    epoch, total = worker.training.steps_per_epoch, worker.training.total_steps
    assert list(worker.bounds) == list(range(0, total + 1, 2 * epoch))  # not fewer than 20, though all takes no second
    worker.epoch_seconds = 0.4
    assert worker._bounds() == list(range(0, total + 1, epoch))
    worker.epoch_seconds = 2.4
    assert set(range(0, total + 1, epoch)) <= set(worker._bounds())
    assert len(worker._bounds()) - 1 == 50 * 5


def test_neighbours_keep_every_window_and_are_scored_on_evaluation_files() -> None:
    eval_ = [file("later", "idle", 0, seed=77), file("too", "fast", 2, seed=78)]
    outputs = train(KnnTrainer, {TRAIN: files(), EVAL: eval_})
    assert list(outputs.checkpoints) == [1]
    assert outputs.metrics == [{"references": 12 * 23, "recall": 1.0, "macro_f1": 1.0, "accuracy": 1.0}]
    found = model(outputs)
    assert found.kind == "knn"
    vectors = max(found.classifier_tensors.values(), key=lambda tensor: tensor.numel())
    assert (len(vectors), vectors.dtype) == (12 * 23, torch.float32)


def test_without_evaluation_files_neighbours_have_no_score_and_still_all_windows() -> None:
    assert train(KnnTrainer, {TRAIN: files()}).metrics == [{"references": 12 * 23, "recall": 1.0}]


def test_an_index_that_is_asked_for_and_cannot_be_is_told() -> None:
    settings = {"classifier_config": {"index": "approximate", "n_neighbors": 3}}
    outputs = train(KnnTrainer, {TRAIN: files()}, **settings)
    found = model(outputs)
    assert found.classifier["index"] == "approximate"
    assert outputs.metrics[0]["recall"] == 1.0  # so few are searched exactly
    assert [event[0] for event in outputs.events if event[1] == "WARN"] == ["training.no_index"]


def test_two_files_with_one_id_are_refused_before_their_labels_are_mixed_up() -> None:
    with pytest.raises(ValueError, match="name the files differently"):
        train(KnnTrainer, {TRAIN: files(), EVAL: files()[:1]})


def test_a_group_of_indexes_is_asked_for_in_the_plan() -> None:
    assert trainer({TRAIN: files()}, train_config={"ranks": 3, "epochs": 2}).steps().group == 3
    assert trainer({TRAIN: files()}).steps().group == 1


def test_a_hosted_model_is_replaced_by_a_choice_and_the_owner_told() -> None:
    outputs = train(KnnTrainer, {TRAIN: files()}, model_type="omega_1_4_base")
    [event] = outputs.events
    assert event[:2] == ("model.substituted", "WARN")
    assert "chooses" in event[2]


def test_the_defaults_that_the_pipeline_shows_are_those_of_the_head() -> None:
    shown = Registry().get("fine-tuning-omega").default_config["worker"]["config"]
    settings = HeadSettings(
        batch_size=shown["batch_size"], **{k: v for k, v in shown["train_config"].items() if k != "ranks"}
    )
    assert settings == HeadSettings()


# --- what validates ------------------------------------------------------------------------------------


def test_of_four_files_of_a_class_the_last_validates_whole() -> None:
    worker = trainer({TRAIN: files()})
    assert [use for use in worker.uses.values() if use is Use.VALIDATE] == [Use.VALIDATE] * 3
    assert worker.uses["inp_idle3"] is Use.VALIDATE
    assert (len(worker.training.train), len(worker.training.validation)) == (9 * 23, 3 * 23)


def test_of_one_file_the_last_fifth_validates_and_shares_no_row_with_what_trains() -> None:
    one_each = [file("a", "idle", 0, rows=200), file("b", "fast", 2, rows=200, seed=1)]
    worker = trainer({TRAIN: one_each})
    windows = (200 - 16) // 2 + 1
    validation = windows // 5
    first_row = 2 * (windows - validation)
    train_windows = (first_row - 16) // 2 + 1
    assert len(worker.training.validation) == 2 * validation
    assert len(worker.training.train) == 2 * train_windows


def test_with_evaluation_files_all_training_files_train() -> None:
    worker = trainer({TRAIN: files(), EVAL: [file("later", "idle", 0, seed=77)]})
    assert (len(worker.training.train), len(worker.training.validation)) == (12 * 23, 23)


def test_files_too_short_to_hold_anything_out_validate_themselves_with_a_warning() -> None:
    short = [file("a", "idle", 0, rows=18), file("b", "fast", 2, rows=18, seed=1)]
    outputs = train(HeadTrainer, {TRAIN: short})
    assert [event[0] for event in outputs.events] == ["training.no_validation"]
    assert outputs.checkpoints


def test_classes_that_only_evaluation_files_show_are_told_and_left_out_of_the_score() -> None:
    eval_ = [file("later", "idle", 0, seed=77), file("odd", "exploded", 9, seed=78)]
    outputs = train(HeadTrainer, {TRAIN: files(), EVAL: eval_})
    assert "'exploded'" in outputs.events[0][2]
    worker = trainer({TRAIN: files(), EVAL: eval_})
    assert len(worker.training.validation) == 23


# --- bad data ------------------------------------------------------------------------------------------


def test_windows_with_a_bad_cell_fail_with_their_place_and_are_left_out() -> None:
    bad = [*files()[:-1], file("fast3", "fast", 2)]
    bad[0] = Memory(spoil(bad[0].data, 50, b"1400000049,abc,idle,1"), "idle0.csv", "inp_idle0", {"class": "idle"})
    outputs = train(KnnTrainer, {TRAIN: bad})
    failures = outputs.failures["idle0.csv"]
    assert set(failures.values()) == {"idle0.csv row 50 (line 51), column 'HKLD': 'abc' is not a number"}
    assert outputs.metrics[0]["references"] == 12 * 23 - len(failures)


def test_windows_that_jos_gave_up_are_left_out() -> None:
    worker = make_worker(KnnTrainer, config(), {TRAIN: files()}, [])
    assert isinstance(worker, KnnTrainer)
    outputs, prepared = Outputs(), []
    for source in files():
        plan, bodies = _run_file(worker, source, outputs)
        width = 4 * worker.embedder.dims
        body = worker.failed(source, preparation.Span(0, 2), "it crashed") + bodies[0][2 * width :]
        prepared.append(LocalPrepared(source, TRAIN, plan.tasks, plan.header + body))
    worker.begin(prepared)
    assert worker.step(0) == {"references": 12 * 21, "recall": 1.0}


ONLY = [file(f"idle{n}", "idle", 0, seed=n) for n in range(3)]
IMPOSSIBLE: dict[str, tuple[dict[str, list[Memory]], dict[str, Any], str]] = {
    "no file": ({}, {}, "there are none"),
    "one class": ({TRAIN: ONLY}, {}, "only 'idle'"),
    "a file without a class": (
        {TRAIN: [*ONLY, Memory(b"", "x.csv")]},
        {},
        "x.csv on the port worker.train_data has no",
    ),
    "a class without a window": (
        *({TRAIN: [*ONLY, file("f", "fast", 2, rows=15)]}, {}),
        "class 'fast' hold no window of 16 rows that can be used. f.csv has 15 rows.",
    ),
    "a class without a column": (
        *({TRAIN: [*ONLY, Memory(b"a,b\n1,2\n" * 40, "f.csv", metadata={"class": "fast"})]}, {}),
        "f.csv has no column 'HKLD'",
    ),
    "a class of bad cells": (
        *(
            {TRAIN: [*ONLY, Memory(table(20, 1, 0).replace(b",idle,", b",idle,x"), "f.csv", "f", {"class": "fast"})]},
            {},
        ),
        "All 3 windows failed",
    ),
    "evaluation that is no use": (
        *({TRAIN: files(), EVAL: [file("odd", "exploded", 9)]}, {}),
        "worker.eval_data hold no window",
    ),
    "no columns": ({TRAIN: files()}, {"reader_config": {"window_size": 16}}, "lacks data_columns"),
    "a tiny window": (
        *({TRAIN: files()}, {"reader_config": {"data_columns": ["HKLD"], "window_size": 2}}),
        "at least 3",
    ),
    "an unknown model": ({TRAIN: files()}, {"model_type": "gpt"}, "Unknown model_type 'gpt'"),
    "a rate of nothing": ({TRAIN: files()}, {"train_config": {"learning_rate": 0}}, "learning_rate must be"),
    "too many windows": ({TRAIN: files()}, {"operations": {"most_windows": 100}}, "hold 276 windows; at most 100"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_be_trained_is_told(case: str) -> None:
    scattered, changes, why = IMPOSSIBLE[case]
    with pytest.raises(JobImpossible) as caught:
        train(HeadTrainer, scattered, **changes)
    assert why in caught.value.message


def test_more_neighbours_than_windows_are_told() -> None:
    with pytest.raises(JobImpossible, match="n_neighbors is 999, but the training files hold only 276 windows"):
        train(KnnTrainer, {TRAIN: files()}, classifier_config={"n_neighbors": 999})


def test_a_file_that_cannot_be_read_fails_alone() -> None:
    broken = Memory(b"a,b\n1,2\n", "broken.csv", "inp_broken", {"class": "idle"})
    worker = make_worker(HeadTrainer, config(), {TRAIN: [*files(), broken]}, [])
    with pytest.raises(InputInvalid, match="no column 'HKLD'"):
        worker.plan(broken)


@of_cpu
def test_an_embedding_is_the_same_wherever_the_spans_are_cut() -> None:
    long = file("long", "idle", 0, rows=700)
    made = []
    for seconds in (60, 1e-9):
        changes = config(model_type="hydra", operations={"span_seconds": seconds})
        worker = make_worker(HeadTrainer, changes, {TRAIN: [*files(), long]}, [])
        plan, bodies = _run_file(worker, long, Outputs())
        made.append((len(plan.bounds) - 1, bodies[0]))
    assert [spans for spans, _ in made] == [1, plan.tasks]
    assert made[0][1] == made[1][1]
    assert isinstance(worker, HeadTrainer)
    assert len(made[0][1]) == plan.tasks * 4 * worker.embedder.dims
    assert np.isfinite(np.frombuffer(made[0][1], "<f4")).all()


def test_numbers_that_no_sensor_gives_are_told_in_words() -> None:
    def absurd(one: Memory) -> Memory:
        header, *lines = one.data.decode().splitlines()
        place = header.split(",").index("HKLD")
        for nth, line in enumerate(lines):
            cells = line.split(",")
            cells[place] = "1e308" if nth % 2 else "-1e308"
            lines[nth] = ",".join(cells)
        return Memory("\n".join([header, *lines, ""]).encode(), one.filename, one.id, dict(one.metadata))

    with pytest.raises(JobImpossible, match="No encoder can be fitted") as raised:
        train(KnnTrainer, {TRAIN: [absurd(one) for one in files()]}, model_type="auto")
    assert "placeholders" in str(raised.value.suggestion)
