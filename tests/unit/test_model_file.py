"""The checkpoint file: what goes in comes out, the bytes are the same each time, and nothing unsound is opened."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

import pytest
import torch
from safetensors.torch import save

from actors.model_file import Model, open_model, pack, pack_model, unpack, unpack_model
from jos.worker import InputInvalid, JobImpossible

MODEL = Model(
    kind="head",
    classes=("idle", 'run, "fast"', "läuft"),
    data_columns=("b", "a"),
    window_size=16,
    step_size=4,
    embedder={"encoder": "stats", "scale": 0.1 + 0.2},
    classifier={"classes": 3},
    embedder_tensors={"basis": torch.arange(12, dtype=torch.float64).reshape(3, 4).T, "none": torch.zeros(0, 3)},
    classifier_tensors={"weight.0": torch.tensor([1.5, -0.0]), "one": torch.tensor(3), "half": torch.ones(2).half()},
)
WHOLE = pack_model(MODEL)


@dataclass
class Bytes:
    """A Source over bytes that says how much of it was read."""

    data: bytes
    num_bytes: int
    filename: str = "step_12.safetensors"
    id: str = "ckp_1"
    metadata: dict[str, Any] = field(default_factory=dict)
    read: int = 0

    def open(self) -> IO[bytes]:
        return io.BytesIO(self.data)

    def read_range(self, start: int, end: int) -> bytes:
        self.read += end - start
        return self.data[start:end]


def test_a_model_comes_back_as_it_was() -> None:
    found = open_model(Bytes(WHOLE, len(WHOLE)))
    for name in ("kind", "classes", "data_columns", "window_size", "step_size", "embedder", "classifier"):
        assert getattr(found, name) == getattr(MODEL, name)
    for name in ("embedder_tensors", "classifier_tensors"):
        before, after = getattr(MODEL, name), getattr(found, name)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)


def test_the_same_model_gives_the_same_bytes_whatever_the_order_of_its_parts() -> None:
    turned = Model(
        **vars(MODEL)
        | {
            name: dict(reversed(getattr(MODEL, name).items()))
            for name in ("embedder", "embedder_tensors", "classifier_tensors")
        }
    )
    assert pack_model(turned) == WHOLE


def test_a_tensor_of_one_number_is_packed_whatever_its_stride() -> None:
    one = torch.tensor(2.0)
    with_stride, without = (pack({"kind": "x"}, {"scale": some}) for some in (one.repeat(1), one.expand(1)))
    assert with_stride == without


def changed(**about: Any) -> bytes:
    """A sound file, but for these fields of its description."""
    described = {"version": 1, "content": {"kind": "head"}, "sha256": ""} | about
    return save({"a": torch.ones(2)}, {"jos-model": json.dumps(described)})


def flipped(at: int) -> bytes:
    return WHOLE[:at] + bytes([WHOLE[at] ^ 1]) + WHOLE[at + 1 :]


HEADER = 8 + int.from_bytes(WHOLE[:8], "little")
UNSOUND: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "is not a JOS checkpoint"),
    "a text": (lambda: b"time,a,b\n1,2,3\n" * 100, "is not a JOS checkpoint"),
    "a pickle": (lambda: pickle.dumps({"weight": [1.0] * 100}), "is not a JOS checkpoint"),
    "tensors of somebody else": (lambda: save({"a": torch.ones(2)}, {"format": "pt"}), "is not a JOS checkpoint"),
    "tensors without a description": (lambda: save({"a": torch.ones(2)}), "is not a JOS checkpoint"),
    "an encoder on its way": (lambda: pack({"kind": "embedder"}, {}), "is not a JOS checkpoint"),
    "a later format": (lambda: changed(version=2), "made by a newer JOS: format 2"),
    "a later kind": (
        lambda: pack(json.loads(json.dumps(DESCRIBED)) | {"kind": "forest"}, {}),
        "newer JOS: a classifier",
    ),
    "a description of other fields": (lambda: changed(content=[]), "damaged: its header"),
    "a file cut short": (lambda: WHOLE[:-1], "damaged: "),
    "a file cut in its header": (lambda: WHOLE[: HEADER - 40], "damaged: its header"),
    "a file grown": (lambda: WHOLE + b"\0", "damaged: "),
    "a number changed": (lambda: flipped(len(WHOLE) - 5), "does not agree with its checksum"),
    "a class renamed": (lambda: WHOLE.replace(b"idle", b"idol"), "does not agree with its checksum"),
    "a tensor renamed": (
        lambda: WHOLE.replace(b"embedder.basis", b"embedder.basil"),
        "does not agree with its checksum",
    ),
}
DESCRIBED, _ = unpack(WHOLE, "it")


@pytest.mark.parametrize("case", UNSOUND)
def test_a_file_that_is_not_whole_and_known_is_refused_with_its_name_and_why(case: str) -> None:
    make, why = UNSOUND[case]
    data = make()
    with pytest.raises(JobImpossible) as caught:
        unpack_model(data, "step_12.safetensors")
    assert "step_12.safetensors" in caught.value.message
    assert why in caught.value.message
    assert caught.value.suggestion
    with pytest.raises(JobImpossible, match="step_12"):
        open_model(Bytes(data, len(data)))


@pytest.mark.parametrize("at", range(0, HEADER, 7))
def test_a_bit_that_turned_in_the_header_is_never_overlooked(at: int) -> None:
    with pytest.raises(JobImpossible):
        unpack_model(flipped(at), "it")


def test_of_a_file_that_is_no_checkpoint_only_the_start_is_read() -> None:
    source = Bytes(b"time,a,b\n" + b"1,2,3\n" * 100_000, 600_009)
    with pytest.raises(JobImpossible, match="not a JOS checkpoint"):
        open_model(source)
    assert source.read == 8


def test_a_store_that_gives_fewer_bytes_than_the_file_has_is_told() -> None:
    with pytest.raises(JobImpossible, match=r"damaged: only [\d,]+ of its [\d,]+ bytes can be read"):
        open_model(Bytes(WHOLE, len(WHOLE) + 9))


def test_a_file_that_is_gone_stops_the_job() -> None:
    class Gone(Bytes):
        def read_range(self, start: int, end: int) -> bytes:
            raise InputInvalid(f"{self.filename} is gone.", suggestion="Put it back.")

    with pytest.raises(JobImpossible, match="cannot be read: step_12"):
        open_model(Gone(WHOLE, len(WHOLE)))


@pytest.mark.parametrize(
    ("changed", "tensors"),
    [
        ({"classes": None}, {}),
        ({"window_size": "abc"}, {}),
        ({"window_size": float("inf")}, {}),
        ({"step_size": 0}, {}),
        ({}, {"foreign.weight": torch.zeros(1)}),
    ],
)
def test_a_sound_file_with_a_senseless_description_is_refused_in_words(
    changed: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    described, whole = unpack(WHOLE, "step_12")
    crafted = pack({**described, **changed}, {**whole, **tensors})
    with pytest.raises(JobImpossible, match="does not fit its content"):
        unpack_model(crafted, "step_12")
