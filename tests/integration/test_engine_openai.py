"""The engine for OpenAI-compatible servers against a real one on loopback that can be told to misbehave."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import uvicorn
from engine_lab import Told, place
from fastapi import FastAPI, Request, Response
from jobs_lab import until

from actors.engines import Answer, Generation, make_engine, openai
from actors.engines.openai import Gate, label_in
from actors.prompts import Media, Prompt
from jos.records import RecordFailed
from jos.worker import JobImpossible

KEY = "sk-very-secret"


class Server:
    """Answers with what was asked, in capitals; a body that begins with a number is answered with that status."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.models = ["only"]
        self.busy = 0  # so many requests are turned away first
        self.reply: str | None = None
        self.made: list[Any] = []  # engines, to be closed
        app = FastAPI()
        app.get("/v1/models")(self.list_models)
        app.post("/v1/chat/completions")(self.complete)
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"
        self.uvicorn = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
        self.thread = threading.Thread(target=self.uvicorn.run, kwargs={"sockets": [self.socket]}, daemon=True)

    def list_models(self, request: Request) -> Response:
        if self.keys and request.headers.get("authorization") not in self.keys:
            said = f"who are you, {request.headers.get('authorization')}?"
            return Response(orjson.dumps({"error": {"message": said}}), 401)
        return Response(orjson.dumps({"data": [{"id": name} for name in self.models]}))

    def complete(self, request: Request, body: dict[str, Any]) -> Response:
        if self.busy:
            self.busy -= 1
            return Response(b"later", 429, {"Retry-After": "0.1"})
        self.asked.append(body)
        content = body["messages"][-1]["content"]
        text = content if isinstance(content, str) else content[0]["text"]
        if text[:3].isdigit():
            return Response(orjson.dumps({"error": {"message": f"no to {text}"}}), int(text[:3]))
        answer = text.upper() if self.reply is None else self.reply
        return Response(orjson.dumps({"choices": [{"message": {"content": answer}}]}))


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    one.thread.start()
    until(lambda: one.uvicorn.started)
    yield one
    for engine in one.made:
        engine.close()
    one.uvicorn.should_exit = True
    one.thread.join()
    one.socket.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "BACKOFF", 0.01)
    monkeypatch.setattr(openai, "PATIENCE", 3.0)
    monkeypatch.setattr(openai, "START_PATIENCE", 0.3)


def engine(server: Server, **options: Any) -> Any:
    server.made.append(make_engine(f"openai:{server.url}", place(**options)))
    return server.made[-1]


def texts(answers: list[Answer | RecordFailed]) -> list[str]:
    return [a.text if isinstance(a, Answer) else f"! {a}" for a in answers]


def test_answers_come_in_order_and_a_refusal_is_one_record_s_own(server: Server) -> None:
    asked = [Prompt(body=f"flow {n}", seed=n) for n in range(40)]
    asked[7] = Prompt(body="400 tokens too many")
    found = texts(engine(server).answer(asked))
    assert found[6:9] == [
        "FLOW 6",
        "! the server refused this record with status 400: no to 400 tokens too many",
        "FLOW 8",
    ]
    assert found[39] == "FLOW 39"
    assert {request["model"] for request in server.asked} == {"only"}
    assert "top_k" not in server.asked[0]  # neutral settings are left out: some servers refuse what they do not know


def test_a_busy_server_is_asked_again_when_it_says_and_by_fewer_at_once(server: Server) -> None:
    one = engine(server)
    server.busy = 12
    began = time.monotonic()
    found = texts(one.answer([Prompt(body=f"a {n}") for n in range(16)]))
    assert found == [f"A {n}" for n in range(16)]
    assert time.monotonic() - began >= 0.1
    assert one.gate.width < openai.FIRST


def test_a_server_that_stays_broken_is_a_fault_and_no_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine(server)
    monkeypatch.setattr(openai, "PATIENCE", 0.1)
    with pytest.raises(ConnectionError, match="status 503: no to 503"):
        one._sent("POST", "chat/completions", one._request(Prompt(body="503")), 0.1)


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:9/v1/: ConnectError"):
        make_engine("openai:http://127.0.0.1:9/v1", place())
    for nonsense in ("openai:ftp://x", "openai:http://user:password@127.0.0.1/v1"):
        with pytest.raises(JobImpossible, match="names no server") as refused:
            make_engine(nonsense, place())
        assert "password@" not in str(refused.value)


def test_settings_seed_and_media_are_sent(server: Server) -> None:
    generation = Generation(
        max_new_tokens=9, do_sample=True, temperature=0.5, top_k=7, top_p=0.8, repetition_penalty=1.2
    )
    media = (Media("image", "data:image/png;base64,AA=="), Media("video", "data:video/mp4;base64,AA=="))
    prompt = Prompt("S", "I", "P", media, seed=77)
    assert texts(engine(server, generation=generation).answer([prompt])) == ["I\n\nP"]
    (sent,) = server.asked
    told = {"seed": 77, "max_tokens": 9, "temperature": 0.5, "top_k": 7, "top_p": 0.8, "repetition_penalty": 1.2}
    assert {name: sent[name] for name in told} == told
    assert sent["media_io_kwargs"] == {"video": {"num_frames": 16}}
    assert sent["messages"][-1]["content"] == [
        {"type": "text", "text": "I\n\nP"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA=="}},
    ]


def test_labels_are_asked_for_by_schema_and_the_answer_is_checked(server: Server) -> None:
    one = engine(server, generation=Generation(labels=("on", "off")))
    server.reply = '{"label": "off"}'
    assert texts(one.answer([Prompt(body="a")])) == ["off"]
    schema = server.asked[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["label"]["enum"] == ["on", "off"]
    server.reply = "Perhaps on?"
    assert texts(one.answer([Prompt(body="a")])) == ["! the answer 'Perhaps on?' is none of the labels"]
    assert label_in(' "on" ', ("on",)) == "on"
    assert label_in('{"label": 3}', ("3",)) is None


def test_a_record_over_the_budget_is_cut(server: Server) -> None:
    (answer,) = engine(server).answer([Prompt(instruction="I", body="flow 3; " * 20_000)])
    assert isinstance(answer, Answer)
    assert answer.cut
    assert len(server.asked[0]["messages"][-1]["content"]) < 16_384 * 4


def test_a_key_goes_only_to_the_server_that_it_is_for_and_is_told_to_nobody(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.keys = {f"Bearer {KEY}"}
    options: dict[str, Any] = {"engine": {"api_key_env": "LM_KEY_LAB"}}
    with pytest.raises(JobImpossible, match="names LM_KEY_LAB, which is not set"):
        engine(server, **options)
    monkeypatch.setenv("LM_KEY_LAB", f"{server.url} {KEY}")
    told = Told()
    assert texts(engine(server, told=told, **options).answer([Prompt(body="a"), Prompt(body="400")]))[0] == "A"
    for elsewhere in ("http://127.0.0.1:1/v1", f"{server.url}.example.com"):
        with pytest.raises(JobImpossible, match="is for another server") as refused:
            make_engine(f"openai:{elsewhere}", place(**options))
        assert KEY not in str(refused.value)
    monkeypatch.setenv("LM_KEY_LAB", f"{server.url} wrong-{KEY}")
    with pytest.raises(JobImpossible, match="status 401: who are you") as refused:
        engine(server, **options)
    assert KEY not in str(refused.value)


def test_the_model_must_be_named_where_there_are_several(server: Server) -> None:
    server.models = ["a", "b"]
    with pytest.raises(JobImpossible, match=r"has 2 models. Name one as engine.model: a, b"):
        engine(server)
    assert engine(server, engine={"model": "b"}).model == "b"


def test_requests_at_once_double_while_all_goes_well_and_halve_once_for_a_busy_moment() -> None:
    gate = Gate(4, 64)
    for _ in range(4 + 8 + 16):
        gate.widen()
    assert gate.width == 32
    gate.widen()
    for _ in range(5):
        gate.narrow()  # all of one moment
    assert gate.width == 16
    for _ in range(16):
        gate.widen()
    assert gate.width == 17
