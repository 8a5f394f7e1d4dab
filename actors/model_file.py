"""The checkpoint of a fine-tuned classifier as one file: safetensors, described by JSON in its metadata.

Nothing in it is code, and nothing is unpickled. A file is opened only whole and unchanged: its size, a SHA-256 over
description and tensors, the format and its version are looked at first, and what does not fit is told as JobImpossible.
The same inputs give the same bytes.

May import: jos.worker, safetensors, torch, stdlib. Tests: tests/unit/test_model_file.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from jos.worker import InputInvalid, JobImpossible, Source

FORMAT, VERSION = "jos-model", 1
HEAD, KNN = "head", "knn"
LARGEST = 1 << 30  # rows
LONGEST_HEADER = 100_000_000  # what safetensors itself allows
_AGAIN = "Take another checkpoint of that job, or train it again."


@dataclass(frozen=True)
class Model:
    """A classifier of windows, with everything that a job needs to use it."""

    kind: str  # HEAD or KNN
    classes: tuple[str, ...]  # their numbers are their places
    data_columns: tuple[str, ...]  # the channels, in this order
    window_size: int  # rows
    step_size: int  # rows; of the training windows
    embedder: Mapping[str, Any]  # actors.embedder.Embedder.settings()
    classifier: Mapping[str, Any]  # settings() of actors.head.Head or actors.knn.NearestNeighbours
    embedder_tensors: Mapping[str, Tensor]
    classifier_tensors: Mapping[str, Tensor]


def pack_model(model: Model) -> bytes:
    """The file's content."""
    described = {field.name: getattr(model, field.name) for field in fields(Model) if "tensors" not in field.name}
    tensors = {f"embedder.{name}": tensor for name, tensor in model.embedder_tensors.items()}
    tensors |= {f"classifier.{name}": tensor for name, tensor in model.classifier_tensors.items()}
    return pack(described, tensors)


def open_model(source: Source) -> Model:
    """The model in a file. The start is looked at before the rest is fetched: a wrong file may be huge. Raises
    JobImpossible."""
    name = source.filename
    try:
        start = source.read_range(0, 8)
        _described(start + source.read_range(8, 8 + _header_size(start, name)), name)
        data = source.read_range(0, source.num_bytes)
    except InputInvalid as error:  # gone, or changed since the job was created
        raise JobImpossible(f"The checkpoint cannot be read: {error.message}", suggestion=error.suggestion) from None
    if len(data) != source.num_bytes:
        raise _damaged(name, f"only {len(data):,} of its {source.num_bytes:,} bytes can be read")
    return unpack_model(data, name)


def unpack_model(data: bytes, name: str) -> Model:
    """The model in `data`, which people know as `name`. Raises JobImpossible."""
    described, tensors = unpack(data, name)
    if set(described) != {field.name for field in fields(Model) if "tensors" not in field.name}:
        raise _foreign(name)
    if described["kind"] not in (HEAD, KNN):
        raise _newer(name, f"a classifier of the kind {described['kind']!r}")
    parts: dict[str, dict[str, Tensor]] = {"embedder": {}, "classifier": {}}
    try:
        for full, tensor in tensors.items():
            part, _, own = full.partition(".")
            parts[part][own] = tensor
        for names in ("classes", "data_columns"):
            described[names] = tuple(str(one) for one in described[names])
        for number in ("window_size", "step_size"):
            if not 1 <= int(described[number]) <= LARGEST:
                raise ValueError(f"a {number} of {described[number]}")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _damaged(name, f"its description does not fit its content ({error!r})") from None
    return Model(**described, embedder_tensors=parts["embedder"], classifier_tensors=parts["classifier"])


def pack(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Any description (JSON) with its tensors."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {"version": VERSION, "content": described, "sha256": _digest(described, whole)}
    # one entry only: the order of several would vary from run to run
    return save(whole, {FORMAT: json.dumps(about, sort_keys=True)})


def unpack(data: bytes, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `pack` was given. Raises JobImpossible, in which the file is called `name`."""
    about = _described(data, name)
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise _damaged(name, f"{len(data):,} bytes are not what its header announces ({error})") from None
    if about.get("sha256") != _digest(about["content"], tensors):
        raise _damaged(name, "its content does not agree with its checksum")
    return about["content"], tensors


def _header_size(start: bytes, name: str) -> int:
    size = int.from_bytes(start[:8], "little")
    if len(start) < 8 or size > LONGEST_HEADER:
        raise _foreign(name)
    return size


def _described(data: bytes, name: str) -> dict[str, Any]:
    """The description in the header; the tensors after it need not be there."""
    header = data[8 : 8 + _header_size(data, name)]
    try:
        about = json.loads(json.loads(header)["__metadata__"][FORMAT])
        version, _ = int(about["version"]), about["content"]["kind"]
    except (ValueError, KeyError, TypeError, RecursionError):
        if header.startswith(b"{") and f'"{FORMAT}"'.encode() in header[:4096]:
            raise _damaged(name, "its header cannot be read") from None
        raise _foreign(name) from None
    if version > VERSION:
        raise _newer(name, f"format {version}, where this one reads {VERSION}")
    if version < VERSION or len(about) != 3:
        raise _damaged(name, "its header cannot be read")
    return dict(about)


def _digest(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        flat = tensor.reshape(-1)
        if flat.numel() == 1:  # may have any stride, even 0, and passes for contiguous; but not as bytes
            flat = flat.clone(memory_format=torch.contiguous_format)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def _foreign(name: str) -> JobImpossible:
    return JobImpossible(f"{name} is not a JOS checkpoint.", suggestion="Give a checkpoint of a fine-tuning job: ckp_…")


def _damaged(name: str, why: str) -> JobImpossible:
    return JobImpossible(f"The checkpoint {name} is damaged: {why}.", suggestion=_AGAIN)


def _newer(name: str, what: str) -> JobImpossible:
    return JobImpossible(f"{name} was made by a newer JOS: {what}.", suggestion="Upgrade JOS here, or train it again.")
