"""The engine for OpenAI-compatible servers with the wire replaced: what it makes of bad answers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import orjson
import pytest
from engine_lab import place

from actors.engines import Answer, make_engine, openai
from actors.engines.openai import OpenAiEngine
from actors.prompts import Prompt

Reply = Callable[[str], httpx2.Response]
Make = Callable[[Reply], OpenAiEngine]


def said(text: str) -> httpx2.Response:
    return httpx2.Response(200, json={"choices": [{"message": {"content": text}}]})


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes an engine whose server answers a record's text with `reply(text)`."""
    made: list[Any] = []
    monkeypatch.setattr(openai, "BACKOFF", 0.001)
    monkeypatch.setattr(openai, "PATIENCE", 0.3)

    def one(reply: Reply) -> OpenAiEngine:
        def served(request: httpx2.Request) -> httpx2.Response:
            if request.method == "GET":
                return httpx2.Response(200, json={"data": [{"id": "m"}]})
            return reply(orjson.loads(request.content)["messages"][-1]["content"])

        client = functools.partial(httpx2.Client, transport=httpx2.MockTransport(served))
        monkeypatch.setattr(openai.httpx2, "Client", client)
        made.append(make_engine("openai:http://lab/v1", place()))
        return made[-1]

    yield one
    for engine in made:
        engine.close()


def test_a_record_that_always_gets_5xx_fails_alone_and_the_others_keep_their_answers(make: Make) -> None:
    asked: list[str] = []

    def reply(text: str) -> httpx2.Response:
        asked.append(text)
        return httpx2.Response(500, text="boom") if text == "poison" else said(text.upper())

    engine = make(reply)
    found = engine.answer([Prompt(body=f"a {n}") for n in range(40)] + [Prompt(body="poison")])
    assert found[:40] == [Answer(f"A {n}") for n in range(40)]
    assert "failed at this record" in str(found[40])
    assert "status 500: boom" in str(found[40])
    assert openai.TRIES <= asked.count("poison") < 20
    width = engine.gate.width
    engine.answer([Prompt(body="a"), Prompt(body="poison")])
    assert engine.gate.width >= width // 2  # once for the record, not once for each try


def test_a_server_that_dies_amid_a_span_is_a_fault_and_no_record_s_own(make: Make) -> None:
    def reply(text: str) -> httpx2.Response:
        return said("A") if text == "first" else httpx2.Response(502)

    with pytest.raises(ConnectionError, match="status 502"):
        make(reply).answer([Prompt(body="first"), Prompt(body="second")])


def test_broken_unicode_of_a_server_becomes_text_that_can_be_written(make: Make) -> None:
    def reply(text: str) -> httpx2.Response:
        if text == "refuse":
            return httpx2.Response(400, content=b'{"error": {"message": "no \\ud83d"}}')
        if text == "odd":
            return httpx2.Response(200, content=b'{"odd": "\\ud83d"}')
        return httpx2.Response(200, content=b'{"choices": [{"message": {"content": "hi \\ud83d"}}]}')

    answer, refused, odd = make(reply).answer([Prompt(body="a"), Prompt(body="refuse"), Prompt(body="odd")])
    assert answer == Answer("hi ?")
    assert str(refused).endswith("status 400: no ?")
    orjson.dumps([str(refused), str(odd)])
