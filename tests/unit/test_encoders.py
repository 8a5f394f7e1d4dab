"""Every encoder: the same each time, indifferent to its company, and able to tell one signal from another."""

from __future__ import annotations

import pytest
import torch
from devices import DEVICE

from actors.encoders import DEFAULT_ENCODER, ENCODERS, Encoder


def windows(count: int, channels: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, channels, length, generator=torch.Generator().manual_seed(seed))


def fitted(name: str, channels: int, length: int) -> Encoder:
    encoder = ENCODERS[name](channels, length, DEVICE)
    encoder.fit(windows(40, channels, length))
    return encoder


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(("channels", "length"), [(1, 3), (1, 8), (2, 9), (3, 17), (9, 64), (40, 16), (1, 700)])
def test_any_shape_gives_finite_features(name: str, channels: int, length: int) -> None:
    some = fitted(name, channels, length).encode(windows(5, channels, length, seed=1))
    assert some.shape[0] == 5
    assert some.shape[1] >= 8
    assert some.dtype == torch.float32
    assert torch.isfinite(some).all()


@pytest.mark.parametrize("name", ENCODERS)
def test_two_encoders_of_one_seed_are_one(name: str) -> None:
    some = windows(7, 3, 50, seed=2)
    assert torch.equal(fitted(name, 3, 50).encode(some), fitted(name, 3, 50).encode(some))


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("length", [16, 100])
def test_a_window_is_encoded_alike_alone_and_in_company(name: str, length: int) -> None:
    encoder = fitted(name, 3, length)
    some = windows(33, 3, length, seed=3)
    alone = torch.cat([encoder.encode(one[None]) for one in some])
    torch.testing.assert_close(encoder.encode(some), alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ENCODERS)
def test_constant_channels_and_extremes_do_no_harm(name: str) -> None:
    encoder = ENCODERS[name](2, 20, DEVICE)
    flat = windows(20, 2, 20)
    flat[:, 1] = 0
    encoder.fit(flat)
    some = torch.stack([torch.zeros(2, 20), torch.full((2, 20), 8.0), torch.full((2, 20), -8.0)])
    assert torch.isfinite(encoder.encode(some)).all()


@pytest.mark.parametrize("name", ENCODERS)
def test_sees_shape_and_level(name: str) -> None:
    """A slow wave, a fast one and a shifted one: nearest to their own kind, in noise."""
    time = torch.arange(64.0)
    kinds = torch.stack([torch.sin(time / 5), torch.sin(time / 2), torch.sin(time / 5) + 2])[:, None]
    noisy = torch.cat([kinds + 0.2 * windows(3, 1, 64, seed=seed) for seed in range(20)])
    encoder = ENCODERS[name](1, 64, DEVICE)
    encoder.fit(noisy[:30])
    embeddings = encoder.encode(noisy)
    nearest = torch.cdist(embeddings[30:], embeddings[:30]).argmin(1)
    assert (nearest % 3).tolist() == list(range(3)) * 10


@pytest.mark.parametrize("name", ENCODERS)
def test_costs_are_known_and_grow_with_the_window(name: str) -> None:
    costs = [ENCODERS[name](9, length).seconds() for length in (16, 64, 256)]
    assert costs == sorted(costs)
    assert all(1e-6 < cost < 0.01 for cost in costs)


def test_the_default_is_one_of_them() -> None:
    assert DEFAULT_ENCODER in ENCODERS


@pytest.mark.parametrize(("channels", "length"), [(0, 10), (1, 2)])
def test_shapes_that_cannot_be_are_refused(channels: int, length: int) -> None:
    with pytest.raises(ValueError, match="needs at least 1 channel and windows of 3 rows"):
        ENCODERS["stats"](channels, length)
