"""What answers prompts: one module for each kind of engine behind one seam, chosen by `model_variant`.

A new kind is a new module with a class that has `span_records`, `sees` and `answer`, and a line in `make_engine`.
May import: jos.worker, jos.records, jos.core.schema, actors.prompts; an engine's own libraries when it is chosen.
Tests: tests/unit/test_activity.py, tests/integration/test_engine_smollm2.py, test_engine_openai.py, test_engine_hf.py.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from actors.prompts import Prompt
from jos.core.schema import without_secrets
from jos.records import RecordFailed
from jos.worker import JobImpossible

DEFAULT_MODEL = "smollm2-135m-instruct"
CLOSED = "newton/"  # names of the hosted service's models, whose weights are not public
OPENAI, HF = "openai:", "hf:"
ALLOW = "LM_ALLOW"  # in the indexes' environment: allowed beginnings of openai: and hf: variants, with blanks between


def sound(text: str) -> str:
    """With ? for the lone surrogates that a server's JSON may hold: they are in no UTF-8, so no output holds them."""
    return text.encode("utf-8", "replace").decode()


@dataclass(frozen=True)
class Answer:
    """A text, made sound whichever engine gave it, and whether the prompt had to be cut for it."""

    text: str
    cut: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", sound(self.text))


@dataclass(frozen=True)
class Generation:
    """How a text is made. `labels`: if any, the answer is one of them."""

    max_new_tokens: int = 128
    do_sample: bool = False  # else the likeliest token each time
    temperature: float = 1.0
    top_k: int = 0  # 0 = all
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    labels: tuple[str, ...] = ()

    @property
    def greedy(self) -> bool:
        return not self.do_sample or self.temperature == 0 or bool(self.labels)


@dataclass(frozen=True)
class Place:
    """Where an engine runs and what it was told beside the prompts."""

    device: str
    threads: int
    generation: Generation
    batch_size: int | None  # None: the engine finds its own
    options: Mapping[str, Any]  # config.engine
    max_video_frames: int
    stopping: threading.Event
    warn: Callable[..., None]  # warn(event_type, message, **payload)


def label_space(labels: Sequence[str]) -> int:
    """Tokens that are enough for any of `labels`, in JSON too: no tokenizer makes more of them than there are bytes."""
    return 32 + 2 * max(len(label.encode()) for label in labels)


class Engine(Protocol):
    """Same prompt and settings → same answer, alone or among others, as far as the machine's arithmetic allows; each
    module says how far."""

    span_records: int  # records in a span: what a kill costs at most, times two or three
    sees: frozenset[str]  # kinds of media that it can look at

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer | RecordFailed]:
        """In order. An exception is a fault that may pass; a RecordFailed is one record's own and final."""
        ...


def within(inner: str, outer: str) -> bool:
    """Whether an address or path is the other one, or below it: http://a/v1 is below http://a, http://a.b is not."""
    return (inner.rstrip("/") + "/").startswith(outer.rstrip("/") + "/")


def check_allowed(variant: str) -> None:
    """Servers and folders are the operator's to open: with ALLOW set, only those below what it lists."""
    allowed = os.environ.get(ALLOW, "").split()
    outside = variant.startswith((OPENAI, HF))
    if outside and (".." in variant.split("/") or (allowed and not any(within(variant, one) for one in allowed))):
        raise JobImpossible(
            f"model_variant {without_secrets(variant)} is not among those that the operator of this service allows.",
            suggestion=f"Ask for it to be added to {ALLOW}, or use {DEFAULT_MODEL}.",
        )


def make_engine(variant: str, place: Place) -> Engine:
    """Raises JobImpossible where `variant` names nothing, or what it names is not here or not allowed."""
    check_allowed(variant)
    if variant.startswith(OPENAI):
        from actors.engines.openai import OpenAiEngine

        return OpenAiEngine(variant.removeprefix(OPENAI), place)
    if variant.startswith(HF):
        from actors.engines.hf import TransformersEngine

        return TransformersEngine(variant.removeprefix(HF), place)
    if variant.startswith(CLOSED):
        place.warn(
            "model.substituted",
            f"{without_secrets(variant)} is not an open model: {DEFAULT_MODEL} runs instead.",
            model_variant=without_secrets(variant),
            model=DEFAULT_MODEL,
        )
        variant = DEFAULT_MODEL
    if variant == DEFAULT_MODEL:
        from actors.engines.smollm2 import SmolLm2Engine

        return SmolLm2Engine(place)
    raise JobImpossible(
        f"Unknown model_variant {without_secrets(variant)!r}.",
        suggestion=f"Known: {DEFAULT_MODEL}, openai:<base_url>, hf:<path>, and the names newton/….",
    )
