"""The head: learns, resumes to the same bits, stops in time, and is the same from one rank or two."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from devices import DEVICE
from safetensors.torch import load, save

from actors.head import LEAST_STEPS, Head, HeadSettings, HeadTraining
from actors.model_file import pack, unpack
from actors.scores import accuracy, macro_f1

SMALL = HeadSettings(epochs=12, batch_size=16)


def embeddings(count: int = 90, dims: int = 12, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    rows = torch.randn(count, dims, generator=generator)
    rows[torch.arange(count), labels] += 3
    return rows, labels


def training(settings: HeadSettings = SMALL, seed: int = 0, count: int = 90) -> HeadTraining:
    return HeadTraining(*embeddings(count), *embeddings(60, seed=1), 3, settings, seed, device=DEVICE)


def weights(trained: HeadTraining) -> torch.Tensor:
    return torch.cat([layer.flatten() for layer in trained.head().layers])


def run(trained: HeadTraining, start: int = 0, end: int | None = None) -> list[dict[str, float]]:
    return [trained.step(number) for number in range(start, end or trained.total_steps)]


@pytest.mark.parametrize("hidden", [0, 8])
def test_learns(hidden: int) -> None:
    trained = training(HeadSettings(epochs=20, batch_size=16, hidden=hidden))
    metrics = run(trained)
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert metrics[-1]["macro_f1"] > 0.9
    rows, truth = embeddings(60, seed=2)
    predicted, score = (some.cpu() for some in trained.head().scores(rows))
    assert accuracy(truth.numpy(), predicted.numpy()) > 0.85
    assert score.dtype == torch.float64
    assert torch.allclose(score.sum(1), torch.ones(60, dtype=torch.float64))


def test_scores_come_at_the_end_of_each_epoch_only() -> None:
    trained = training(HeadSettings(epochs=5, batch_size=8))
    assert (trained.steps_per_epoch, trained.total_steps) == (12, 60)
    metrics = run(trained)
    assert [at for at, some in enumerate(metrics) if "macro_f1" in some] == list(range(11, 60, 12))
    assert all(set(some) >= {"loss", "learning_rate"} for some in metrics)


def test_the_rate_warms_up_and_falls() -> None:
    rates = [some["learning_rate"] for some in run(training(HeadSettings(epochs=10, batch_size=16, warmup=0.1)))]
    assert rates.index(max(rates)) == 10
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.01 * rates[10]


def test_an_epoch_of_few_windows_goes_over_them_until_there_are_steps_enough() -> None:
    trained = training(count=12)
    assert trained.steps_per_epoch == LEAST_STEPS
    seen = trained._order(0)
    assert len(seen) == LEAST_STEPS * 12
    assert torch.equal(seen.bincount().cpu(), torch.full((12,), LEAST_STEPS))
    assert not torch.equal(seen, trained._order(1))


@pytest.mark.parametrize("hidden", [0, 8])
@pytest.mark.parametrize("at", [0, 1, 6, 50])
def test_goes_on_after_a_kill_to_the_same_bits(hidden: int, at: int) -> None:
    settings = HeadSettings(epochs=12, batch_size=16, hidden=hidden)
    whole, first, second = (training(settings) for _ in range(3))
    metrics = run(whole)
    run(first, 0, at or None) if at else None
    second.load(first.save())
    assert run(second, at) == metrics[at:]
    assert second.save() == whole.save()
    assert torch.equal(weights(second), weights(whole))


def test_embeddings_of_one_dimension_train_and_the_head_has_tensors_of_its_own() -> None:
    rows, labels = embeddings(30, dims=1, classes=1)[0], torch.arange(30) % 3
    trained = HeadTraining(rows, labels, rows, labels, 3, SMALL, 0, device=DEVICE)
    run(trained, 0, 10)
    assert trained.scale.stride() == (1,)
    model = pack({"kind": "head"}, trained.head().tensors())
    assert unpack(model, "it")[1]["scale"].shape == (1,)


def test_a_load_goes_back_too() -> None:
    trained = training()
    run(trained, 0, 10)
    state = trained.save()
    after = run(trained, 10, 20)
    trained.load(state)
    assert run(trained, 10, 20) == after


def test_a_step_out_of_turn_is_refused() -> None:
    with pytest.raises(ValueError, match="step 3 out of turn: the next is 0"):
        training().step(3)


@pytest.mark.parametrize("state", [b"", b"rubbish", b"\x00" * 100])
def test_rubbish_for_a_state_is_refused(state: bytes) -> None:
    with pytest.raises(ValueError, match="no state of a head's training"):
        training().load(state)


def test_the_state_of_another_head_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no state of a head's training|of another shape"):
        training().load(training(HeadSettings(epochs=12, hidden=4)).save())


def test_the_seed_decides_and_nothing_else() -> None:
    one, same, other = training(), training(), training(seed=1)
    for trained in (one, same, other):
        torch.rand(3)
        run(trained, 0, 15)
    assert torch.equal(weights(one), weights(same))
    assert not torch.equal(weights(one), weights(other))


def test_stops_when_nothing_gets_better() -> None:
    trained = training(HeadSettings(epochs=500, batch_size=90, patience=4))
    improved = []
    for number in range(trained.total_steps):
        if "macro_f1" in trained.step(number):
            improved.append(trained.improved)
        else:
            assert not trained.improved
        if trained.stopped:
            break
    assert len(improved) == max(at for at, better in enumerate(improved) if better) + 5 < 100
    assert improved[0]


def test_at_the_same_macro_f1_a_clearly_lower_loss_is_better() -> None:
    """Or the first epoch that gets a small validation right would be the last to count."""
    rows, labels = embeddings(60)
    validation = 5 * torch.eye(3, 12)
    trained = HeadTraining(rows, labels, validation, torch.arange(3), 3, SMALL, 0, device=DEVICE)
    better = [
        some["macro_f1"] for number in range(100) if "macro_f1" in (some := trained.step(number)) and trained.improved
    ]
    assert better[0] == 1
    assert len(better) > 3


def test_a_class_that_validation_lacks_does_no_harm() -> None:
    rows, labels = embeddings()
    seen = labels < 2
    trained = HeadTraining(rows, labels, rows[seen], labels[seen], 3, SMALL, 0, device=DEVICE)
    assert run(trained)[-1]["macro_f1"] > 0.6
    assert trained.head().scores(rows)[1].shape == (90, 3)


def test_a_class_that_training_lacks_is_never_likely() -> None:
    rows, labels = embeddings(classes=2)
    trained = HeadTraining(rows, labels, rows, labels, 3, SMALL, 0, device=DEVICE)
    run(trained)
    assert set(trained.head().scores(rows)[0].tolist()) == {0, 1}


def test_classes_count_alike_however_rare() -> None:
    rows, labels = embeddings(400, dims=2, classes=2)
    rows = rows / 3
    keep = (labels == 0) | (torch.arange(400) % 20 == 1)
    recalls = []
    for wanted in (False, True):
        settings = HeadSettings(epochs=20, batch_size=64, class_weights=wanted)
        trained = HeadTraining(rows[keep], labels[keep], rows, labels, 2, settings, 0, device=DEVICE)
        run(trained)
        recalls.append((trained.head().scores(rows)[0].cpu()[labels == 1] == 1).double().mean().item())
    assert recalls[1] > recalls[0]


def test_one_window_a_class_and_constant_embeddings_are_enough() -> None:
    rows = torch.zeros(2, 5)
    trained = HeadTraining(rows, torch.tensor([0, 1]), rows, torch.tensor([0, 1]), 2, SMALL, 0, device=DEVICE)
    run(trained)
    assert trained.head().scores(rows)[1].isfinite().all()


def test_scores_are_alike_alone_and_in_company() -> None:
    trained = training()
    run(trained)
    head, (rows, _) = trained.head(), embeddings(50, seed=3)
    alone = torch.cat([head.scores(row[None])[1] for row in rows])
    torch.testing.assert_close(head.scores(rows)[1], alone, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("hidden", [0, 8])
def test_a_head_comes_back_from_a_checkpoint_as_it_was(hidden: int) -> None:
    trained = training(HeadSettings(epochs=2, batch_size=16, hidden=hidden))
    run(trained)
    head, (rows, _) = trained.head(), embeddings(50, seed=3)
    back = Head.restore(json.loads(json.dumps(head.settings())), load(save(head.tensors())), DEVICE)
    assert torch.equal(back.scores(rows)[1], head.scores(rows)[1])
    with pytest.raises(ValueError, match="a head of 7 dimensions"):
        Head.restore({**head.settings(), "dims": 7}, head.tensors())
    with pytest.raises(KeyError):
        Head.restore(head.settings(), {})


def test_a_head_taken_does_not_change_with_further_steps() -> None:
    trained = training()
    run(trained, 0, 6)
    head, (rows, _) = trained.head(), embeddings(50, seed=3)
    before = head.scores(rows)[1]
    run(trained, 6)
    assert torch.equal(head.scores(rows)[1], before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": torch.zeros(0, 12), "labels": torch.zeros(0, dtype=torch.int64)}, "no training windows"),
        ({"validation": torch.zeros(0, 12)}, "no validation windows"),
        ({"labels": torch.zeros(90, dtype=torch.int64)}, "two or more classes"),
        ({"labels": torch.full((90,), 3)}, "training labels must be from 0 to 2"),
        ({"train": torch.full((90, 12), float("nan"))}, "training embeddings are not all finite"),
        ({"validation": torch.zeros(60, 5)}, "do not go together"),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused(change: dict[str, torch.Tensor], message: str) -> None:
    (train, labels), (validation, validation_labels) = embeddings(), embeddings(60, seed=1)
    data = {"train": train, "labels": labels, "validation": validation, "validation_labels": validation_labels}
    with pytest.raises(ValueError, match=message):
        HeadTraining(**{**data, **change}, classes=3, settings=SMALL, seed=0)


@pytest.mark.parametrize(
    "change", [{"epochs": 0}, {"learning_rate": 0.0}, {"label_smoothing": 1.0}, {"weight_decay": -1.0}, {"patience": 0}]
)
def test_settings_that_cannot_be_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be"):
        HeadSettings(**change).check()  # type: ignore[arg-type]


RANK = """
import sys, torch, torch.distributed as dist
sys.path[:0] = sys.argv[4:]
from tests.unit.test_head import HeadSettings, HeadTraining, embeddings, weights
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
settings = HeadSettings(epochs=8, batch_size=17, hidden=6)
trained = HeadTraining(*embeddings(70), *embeddings(60, seed=1), 3, settings, 5, rank=rank, ranks=2)
metrics = [trained.step(number) for number in range(trained.total_steps)]
torch.save((weights(trained), metrics), out)
dist.barrier()
dist.destroy_process_group()
"""


def test_two_ranks_make_the_head_of_one(tmp_path: Path) -> None:
    """In real processes, over gloo; batches that do not divide evenly, one of them smaller than the ranks."""
    outs = [tmp_path / f"rank-{rank}" for rank in (0, 1)]
    root = Path(__file__).resolve().parents[2]
    places = [str(root), str(root / "tests/lab")]
    commands = [
        [sys.executable, "-c", RANK, str(rank), str(tmp_path / "store"), str(outs[rank]), *places] for rank in (0, 1)
    ]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    (one, of_one), (two, of_two) = (torch.load(out) for out in outs)
    assert torch.equal(one, two)
    assert of_one == of_two
    settings = HeadSettings(epochs=8, batch_size=17, hidden=6)
    alone = HeadTraining(*embeddings(70), *embeddings(60, seed=1), 3, settings, 5)
    metrics = run(alone)
    torch.testing.assert_close(one, weights(alone), rtol=1e-3, atol=1e-4)
    assert [some["loss"] for some in of_one] == pytest.approx([some["loss"] for some in metrics], rel=1e-3)


def test_macro_f1_counts_classes_alike() -> None:
    truth, predicted = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 0])
    assert macro_f1(truth, predicted, 2) == pytest.approx((0.75 + 0.5) / 2)
    assert macro_f1(truth, predicted, 5) == macro_f1(truth, predicted, 2)
    assert macro_f1(truth, np.full(6, 2), 3) == 0
    assert macro_f1(truth[:0], truth[:0], 2) == accuracy(truth[:0], truth[:0]) == 0
    assert accuracy(truth, predicted) == pytest.approx(4 / 6)
