"""The embedder: one path from rows to embeddings, the same in any company and after any journey."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from devices import DEVICE, assert_alike
from safetensors.torch import load, save

from actors import encoders
from actors.csv_windows import Windows
from actors.embedder import Embedder, Recipe, _moved
from actors.encoders import ENCODERS
from actors.scaling import SCALINGS

RECIPES = [Recipe(encoder, scaling) for encoder, scaling in itertools.product(ENCODERS, SCALINGS)]
WINDOW = 20
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.encoder}-{recipe.scaling}")


def rows(seed: int, channels: int = 3, count: int = 120) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (channels, count)).cumsum(1)


def windows(embedder: Embedder, of: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(Windows(embedder.scaled(of), WINDOW, 1)[:]))


def fitted(recipe: Recipe, **options: int) -> Embedder:
    return Embedder.fit(recipe, [rows(0), rows(1)], WINDOW, 2, device=DEVICE, **options)


@each_recipe
def test_embeddings_have_the_same_bits_in_any_company(recipe: Recipe) -> None:
    embedder = fitted(recipe)
    some = windows(embedder, np.concatenate([rows(2), rows(3)], axis=1))
    together = embedder.encode(some)
    assert together.shape == (len(some), embedder.dims)
    assert together.dtype == torch.float32
    pieces = torch.cat([embedder.encode(piece) for piece in some.split([1, 130, 40, len(some) - 171])])
    assert_alike(pieces, together)


@each_recipe
def test_comes_back_from_a_checkpoint_as_it_was(recipe: Recipe) -> None:
    embedder = fitted(recipe)
    settings, tensors = json.loads(json.dumps(embedder.settings())), load(save(embedder.tensors()))
    back = Embedder.restore(settings, tensors, DEVICE)
    assert back.recipe == recipe
    assert (back.channels, back.window, back.dims) == (3, WINDOW, embedder.dims)
    some = windows(embedder, rows(2))
    assert torch.equal(windows(back, rows(2)), some)
    assert_alike(back.encode(some), embedder.encode(some))


@each_recipe
def test_all_of_it_lies_on_its_device(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's device without numbers refuses what lies elsewhere, as a GPU does; it cannot find directions."""
    monkeypatch.setattr(
        encoders, "_principal", lambda rows: torch.zeros(rows.shape[1], 9, dtype=rows.dtype, device=rows.device)
    )
    some, known = torch.zeros(5, 3, WINDOW), Embedder.fit(recipe, [rows(0)], WINDOW, 2)
    for embedder in (
        Embedder.fit(recipe, [rows(0)], WINDOW, 2, device="meta"),
        Embedder.restore(known.settings(), known.tensors(), "meta"),
    ):
        assert embedder.encode(some).device.type == embedder.encode(some[:0]).device.type == "meta"


def test_a_restored_encoder_needs_no_luck_with_random_kernels() -> None:
    """Kernels travel: another version of the library may draw others from the same seed."""
    embedder = fitted(Recipe("hydra"))
    for kernels in embedder.encoder.kernels:  # type: ignore[attr-defined]
        for kernel in kernels:
            kernel.neg_()
    back = Embedder.restore(embedder.settings(), embedder.tensors(), DEVICE)
    some = windows(embedder, rows(2))
    assert_alike(back.encode(some), embedder.encode(some))


def test_two_fits_are_one() -> None:
    some = windows(fitted(Recipe()), rows(2))
    assert_alike(fitted(Recipe()).encode(some), fitted(Recipe()).encode(some))


def test_fits_on_a_bounded_number_of_windows_evenly_taken() -> None:
    assert fitted(Recipe("stats"), most_windows=7).encoder.centre.isfinite().all()


def test_windows_with_bad_cells_do_not_spoil_the_fit() -> None:
    spoilt = rows(0, count=400)
    spoilt[1, 200] = np.nan
    embedder = Embedder.fit(Recipe("stats"), [spoilt], WINDOW, 1, device=DEVICE)
    clean = Embedder.fit(Recipe("stats"), [np.delete(spoilt, 200, axis=1)], WINDOW, 1, device=DEVICE)
    assert torch.allclose(embedder.encoder.scale, clean.encoder.scale, rtol=0.2)


def test_even_when_every_window_is_bad_there_is_an_embedding() -> None:
    spoilt = rows(0)
    spoilt[0] = np.nan
    embedder = Embedder.fit(Recipe("stats"), [spoilt], WINDOW, 1, device=DEVICE)
    assert embedder.encode(windows(embedder, rows(1))).isfinite().all()


def test_a_single_window_and_constant_channels_are_enough() -> None:
    for recipe in RECIPES:
        embedder = Embedder.fit(recipe, [np.ones((2, WINDOW))], WINDOW, 1, device=DEVICE)
        made = embedder.encode(windows(embedder, rows(1, channels=2)))
        assert made.isfinite().all()
        assert made.shape[1] == embedder.dims


def test_no_windows_give_no_embeddings() -> None:
    embedder = fitted(Recipe("stats"))
    assert embedder.encode(torch.zeros(0, 3, WINDOW)).shape == (0, embedder.dims)


@pytest.mark.parametrize("step", [1, 7, WINDOW, WINDOW + 5])
@pytest.mark.parametrize("cut", [slice(None), slice(3, 9), slice(2, 3), slice(4, 4), slice(None, None, 3)])
def test_windows_arrive_on_a_device_as_they_are_and_rows_that_they_share_travel_once(step: int, cut: slice) -> None:
    some = torch.from_numpy(Windows(rows(0, count=400).astype(np.float32), WINDOW, step)[cut])
    apart = some.stride(0) if len(some) else WINDOW
    travelled = []

    class Elsewhere(torch.Tensor):
        def to(self, device: torch.device) -> torch.Tensor:  # type: ignore[override]
            travelled.append(self.numel())
            return self.as_subclass(torch.Tensor).clone()

    moved = _moved(some.as_subclass(Elsewhere), torch.device("cpu"))
    assert torch.equal(moved, some)
    shared = (len(some) - 1) * apart + WINDOW if apart < WINDOW else len(some) * WINDOW
    assert travelled == [3 * shared]


def test_short_files_say_what_is_short() -> None:
    with pytest.raises(ValueError, match="no window of 20 rows in 2 recordings; the longest has 19 rows"):
        Embedder.fit(Recipe(), [np.ones((2, 19)), np.ones((2, 3))], WINDOW, 1, device=DEVICE)


@pytest.mark.parametrize(
    ("recipe", "message"), [({"encoder": "gpt"}, "unknown encoder 'gpt'"), ({"scaling": "x"}, "unknown scaling 'x'")]
)
def test_unknown_names_are_refused(recipe: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**recipe)


def test_settings_and_tensors_of_different_embedders_are_refused() -> None:
    one, other = fitted(Recipe("hydra")), Embedder.fit(Recipe("hydra"), [rows(0, channels=2)], WINDOW, 1, device=DEVICE)
    with pytest.raises(ValueError, match="kernels of shape"):
        Embedder.restore(one.settings(), other.tensors())
    with pytest.raises(KeyError):
        Embedder.restore(one.settings(), {})
    with pytest.raises(ValueError, match="a scaling of 2 channels for 3"):
        Embedder.restore({**one.settings(), "scaling": other.scaling.settings()}, one.tensors())
