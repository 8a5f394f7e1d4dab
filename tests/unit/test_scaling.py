"""Scalings: robust, indifferent to how a file is cut, and each blind to what it says it is blind to."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from actors.scaling import CLIP, SCALINGS, Scaling

Floats = np.ndarray


def rows(seed: int = 0, channels: int = 3, count: int = 400) -> Floats:
    random = np.random.default_rng(seed)
    return random.normal(0, [[1.0], [20.0], [0.1]][:channels], (channels, count)) + [[5.0], [-300.0], [0.0]][:channels]


def seen(scaling: Scaling, of: Floats, size: int = 50) -> torch.Tensor:
    """What the encoder sees of a file, in windows side by side."""
    scaled = torch.from_numpy(scaling.apply(of))
    return scaling.windows(torch.stack(list(scaled.split(size, dim=1))))


@pytest.mark.parametrize("kind", SCALINGS)
def test_channels_of_any_unit_come_out_alike(kind: str) -> None:
    spreads = seen(Scaling.of(rows(), kind, 50), rows(1)).square().mean((0, 2)).sqrt()
    assert all(0.7 < spread < 1.5 for spread in spreads)


@pytest.mark.parametrize("kind", SCALINGS)
def test_a_piece_of_a_file_is_scaled_as_in_the_whole(kind: str) -> None:
    scaling = Scaling.of(rows(), kind, 50)
    assert np.array_equal(scaling.apply(rows(1))[:, 70:130], scaling.apply(rows(1)[:, 70:130]))


@pytest.mark.parametrize(("kind", "blind"), [(kind, kind != "global") for kind in SCALINGS])
def test_all_but_global_are_blind_to_a_drifted_level(kind: str, blind: bool) -> None:
    scaling = Scaling.of(rows(), kind, 50)
    drifted = rows(1) + np.array([[30.0], [900.0], [-7.0]])
    assert torch.allclose(seen(scaling, rows(1)), seen(scaling, drifted), atol=1e-3) is blind


@pytest.mark.parametrize("kind", ["window", "window+spread"])
def test_a_window_by_its_own_spread_shows_only_its_shape(kind: str) -> None:
    scaling = Scaling.of(rows(), kind, 50)
    middle = rows(1).mean(1, keepdims=True)
    wider = middle + 3 * (rows(1) - middle)
    assert torch.allclose(seen(scaling, rows(1)), seen(scaling, wider), atol=0.1)


def test_the_spread_that_a_window_loses_can_be_kept_as_features() -> None:
    scaling = Scaling.of(rows(), "window+spread", 50)
    windows = torch.from_numpy(scaling.apply(rows(1)))[None]
    kept = scaling.extras(windows)
    wider = scaling.extras(windows * 3)
    assert kept is not None
    assert wider is not None
    assert kept.shape == (1, 3)
    assert torch.allclose(wider - kept, torch.tensor(3.0).log(), atol=0.1)
    assert Scaling.of(rows(), "window").extras(windows) is None


@pytest.mark.parametrize("kind", SCALINGS)
def test_placeholders_and_bad_cells_in_a_few_rows_change_little(kind: str) -> None:
    spoilt = rows()
    spoilt[0, ::150], spoilt[1, 7], spoilt[2, 9] = -999.25, np.nan, np.inf
    clean, found = Scaling.of(rows(), kind, 50), Scaling.of(spoilt, kind, 50)
    assert np.allclose(found.spread, clean.spread, rtol=0.6)
    assert np.isfinite(found.apply(spoilt)).all()


@pytest.mark.parametrize("kind", SCALINGS)
def test_dead_channels_and_extremes_stay_finite_and_bounded(kind: str) -> None:
    dead = rows()
    dead[0], dead[1] = 4.0, np.nan
    extreme = np.full((3, 100), 1e300)
    extreme[:, ::2] = -1e300
    made = seen(Scaling.of(dead, kind, 50), extreme)
    assert torch.isfinite(made).all()
    assert made.abs().max() <= CLIP


@pytest.mark.parametrize("kind", SCALINGS)
def test_comes_back_from_json_as_it_was(kind: str) -> None:
    scaling = Scaling.of(rows(), kind, 50)
    back = Scaling.restore(json.loads(json.dumps(scaling.settings())))
    assert back.kind == kind
    assert np.array_equal(back.apply(rows(1)), scaling.apply(rows(1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "magic"}, "unknown scaling 'magic'; known: global"),
        ({"spread": [1.0, 0.0, 1.0]}, "a spread above 0"),
        ({"centre": [1.0]}, "for each channel"),
        ({"centre": [1.0, float("nan"), 1.0]}, "finite centre"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scaling.restore({**Scaling.of(rows()).settings(), **change})


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown scaling 'robust'"):
        Scaling.of(rows(), "robust")
