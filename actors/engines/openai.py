"""Any server that speaks OpenAI's chat completions: vLLM, llama-server, a hosted one.

Requests run side by side: their number doubles while all goes well and halves when the server says that it is too
busy. 429, 5xx and broken connections are tried again, later each time, or when the server says (Retry-After); any other
refusal is that record's own, and so is a 5xx that one record gets again and again from a server that answers others:
it must not take their answers with it. The seed is sent along; whether the same seed gives the same text is the
server's matter. A key is named, never given: `api_key_env` names a variable of the indexes' environment that holds the
server's address and the key, so that a key cannot be sent to another server than the operator meant it for.

May import: httpx2, orjson, actors.prompts, jos.records, jos.worker. Tests: tests/unit/test_engine_openai.py,
tests/integration/test_engine_openai.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
import orjson

from actors.engines import Answer, Place, label_space, sound, within
from actors.prompts import TOKEN_BUDGET, Prompt, estimated, fitted
from jos.records import RecordFailed
from jos.worker import JobImpossible

FIRST, MOST = 8, 64  # requests side by side, unless batch_size says
PATIENCE = 300.0  # seconds that a record is tried again, before JOS hears of it
TRIES = 4  # of a record that gets 5xx from a server that answers others
START_PATIENCE = 30.0  # and the list of models, before the index is given up
BACKOFF, LONGEST_PAUSE = 0.5, 30.0
READ_TIMEOUT = 600.0
_SHOWN = 300  # characters of a server's own words


class OpenAiEngine:
    """See the module. `base_url` ends before /chat/completions, e.g. http://host:8000/v1."""

    span_records = 2 * MOST
    sees = frozenset({"image", "video"})

    def __init__(self, base_url: str, place: Place) -> None:
        if not base_url.startswith(("http://", "https://")) or set(base_url) & set("@?#"):
            raise JobImpossible(
                "model_variant names no server that can be asked: its address must begin with http:// or https:// and "
                "hold no user, password, ? or #.",
                suggestion="E.g. openai:http://localhost:8000/v1; a key is named by engine.api_key_env.",
            )
        self.place, self.generation = place, place.generation
        self.budget = max(TOKEN_BUDGET - self.generation.max_new_tokens, TOKEN_BUDGET // 2)
        most = min(place.batch_size or MOST, self.span_records)
        self.gate = Gate(min(FIRST, most), most)
        self.pool = ThreadPoolExecutor(most, thread_name_prefix="jos-lm")
        self.key = _key(place.options.get("api_key_env"), base_url)
        self.http = httpx2.Client(
            base_url=base_url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            timeout=httpx2.Timeout(READ_TIMEOUT, connect=10),
            limits=httpx2.Limits(max_connections=most, max_keepalive_connections=most),
        )
        try:
            self.model = self._model(place.options.get("model"))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.pool.shutdown()
        self.http.close()

    def _model(self, wanted: str | None) -> str:
        """The model's name at the server: the one asked for, or the only one there."""
        answer = self._sent("GET", "models", None, START_PATIENCE)
        if isinstance(answer, Refused):
            if wanted and answer.status not in (401, 403):
                return wanted  # not all servers list their models
            raise JobImpossible(
                f"{self.http.base_url} does not list its models: {answer}",
                suggestion="Name the model as engine.model, and a key as engine.api_key_env if the server wants one.",
            )
        listed = answer.get("data")
        names = [
            sound(str(m["id"]))
            for m in (listed if isinstance(listed, list) else [])
            if isinstance(m, dict) and "id" in m
        ]
        if wanted or len(names) == 1:
            return wanted or names[0]
        raise JobImpossible(
            f"{self.http.base_url} has {len(names)} models.",
            suggestion=f"Name one as engine.model: {', '.join(names[:10])}.",
        )

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer | RecordFailed]:
        served = threading.Event()  # set by the first that is answered
        return list(self.pool.map(lambda prompt: self._one(prompt, served), prompts))

    def _one(self, prompt: Prompt, served: threading.Event) -> Answer | RecordFailed:
        prompt, cut = fitted(prompt, self.budget, estimated)
        answer = self._sent("POST", "chat/completions", self._request(prompt), PATIENCE, served)
        if isinstance(answer, Refused):
            return answer
        try:
            text = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            return RecordFailed(f"the server's answer holds no text: {json.dumps(answer)[:_SHOWN]}")
        if not isinstance(text, str):
            return RecordFailed("the server's answer holds no text")
        if self.generation.labels:
            found = label_in(text, self.generation.labels)
            if found is None:
                return RecordFailed(f"the answer {text[:_SHOWN]!r} is none of the labels")
            return Answer(found, cut)
        return Answer(text.strip(), cut)

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        """What is neutral is left out: servers refuse fields that they do not know."""
        generation = self.generation
        request: dict[str, Any] = {
            "model": self.model,
            "messages": _with_media(prompt),
            "max_tokens": label_space(generation.labels) if generation.labels else generation.max_new_tokens,
            "seed": prompt.seed,
            "temperature": 0.0 if generation.greedy else generation.temperature,
        }
        if not generation.greedy and generation.top_p < 1:
            request["top_p"] = generation.top_p
        if not generation.greedy and generation.top_k > 0:
            request["top_k"] = generation.top_k
        if generation.repetition_penalty != 1:
            request["repetition_penalty"] = request["repeat_penalty"] = generation.repetition_penalty
        if any(media.kind == "video" for media in prompt.media):
            request["media_io_kwargs"] = {"video": {"num_frames": self.place.max_video_frames}}
        if generation.labels:
            request["response_format"] = _one_of(generation.labels)
        return request

    # --- the wire ---

    def _sent(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        patience: float = PATIENCE,
        served: threading.Event | None = None,
    ) -> dict[str, Any] | Refused:
        """The server's answer, or its refusal. Tried again for `patience` seconds; then the last trouble is raised.
        With `served` set by others, so many 5xx as TRIES are a refusal, if the server still answers something else."""
        content = None if body is None else orjson.dumps(body)
        until, pause, faults = time.monotonic() + patience, BACKOFF, 0
        while True:
            answer = self._asked(method, path, content, again=faults > 0)
            if not isinstance(answer, Trouble):
                if served is not None:
                    served.set()
                return answer
            faults += answer.status >= 500
            if served is not None and served.is_set() and faults >= TRIES and answer.status >= 500 and self._lives():
                said = f"the server failed at this record {faults} times, and answers others: {answer}"
                return Refused(said, answer.status)
            wait = max(answer.after, random.uniform(pause / 2, pause))
            pause = min(2 * pause, LONGEST_PAUSE)
            if time.monotonic() + wait > until or self.place.stopping.wait(wait):
                raise ConnectionError(f"{self.http.base_url}: {answer}")

    def _lives(self) -> bool:
        """Whether the server answers the smallest question. Others of the span may have been answered before it died,
        and then no record is to blame."""
        smallest = {"model": self.model, "messages": [{"role": "user", "content": "ok"}], "max_tokens": 1}
        return not isinstance(self._asked("POST", "chat/completions", orjson.dumps(smallest), again=True), Trouble)

    def _asked(
        self, method: str, path: str, content: bytes | None, *, again: bool
    ) -> dict[str, Any] | Refused | Trouble:
        """One try. Of 5xx only a record's first is a sign of a busy server: the next may be the record's own matter."""
        try:
            with self.gate.passed():
                answer = self.http.request(method, path, content=content, headers={"Content-Type": "application/json"})
        except httpx2.TransportError as error:
            return Trouble(f"{type(error).__name__}: {error}")
        if answer.status_code == 429 or answer.status_code >= 500:
            if answer.status_code == 429 or not again:
                self.gate.narrow()
            said = f"status {answer.status_code}: {self._words(answer)}"
            return Trouble(said, _retry_after(answer), answer.status_code)
        if answer.status_code >= 300:
            said = f"the server refused this record with status {answer.status_code}: {self._words(answer)}"
            return Refused(said, answer.status_code)
        self.gate.widen()
        try:
            found = answer.json()
        except ValueError:
            found = None
        return found if isinstance(found, dict) else Refused("the server's answer is no JSON object", 200)

    def _words(self, answer: httpx2.Response) -> str:
        """The server's own message, cut. Some tell the key that they did not like: that goes."""
        try:
            found = answer.json()
            error = found.get("error", found)
            said = str(error.get("message", error) if isinstance(error, dict) else error)
        except (ValueError, AttributeError):
            said = answer.text
        return sound(said.replace(self.key, "…") if self.key else said)[:_SHOWN]


class Refused(RecordFailed):
    """A server's no, which it will say again."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Trouble:
    """What may pass, and after how many seconds the server says it will."""

    message: str
    after: float = 0.0
    status: int = 0  # 0: no answer at all

    def __str__(self) -> str:
        return self.message


class Gate:
    """Lets so many through at once: one more after as many successes as that, so that it doubles with each full round
    at first; half as many when the server is too busy, and slowly from then on."""

    def __init__(self, width: int, most: int) -> None:
        self.width, self.most = width, most
        self.inside, self.good, self.narrowed = 0, 0, False
        self.changed = threading.Condition()

    @contextlib.contextmanager
    def passed(self) -> Iterator[None]:
        with self.changed:
            self.changed.wait_for(lambda: self.inside < self.width)
            self.inside += 1
        try:
            yield
        finally:
            with self.changed:
                self.inside -= 1
                self.changed.notify_all()

    def widen(self) -> None:
        with self.changed:
            self.good += 1
            if self.good >= self.width and self.width < self.most:
                self.width = min(self.most, self.width + 1 if self.narrowed else 2 * self.width)
                self.good = 0
                self.changed.notify_all()

    def narrow(self) -> None:
        """Once for all that were under way together."""
        with self.changed:
            if self.good or not self.narrowed:
                self.width, self.good, self.narrowed = max(1, self.width // 2), 0, True


def _key(variable: str | None, base_url: str) -> str:
    """The key that `variable` holds as "ADDRESS KEY". Never says what it holds."""
    if not variable:
        return ""
    address, _, key = os.environ.get(variable, "").strip().partition(" ")
    if not key:
        raise JobImpossible(
            f"engine.api_key_env names {variable}, which is not set where the indexes run.",
            suggestion=f'Set {variable}="<base_url> <key>" there; with Ray Jobs, name it in JOS_PASS_ENV.',
        )
    if not within(base_url, address):
        raise JobImpossible(f"The key in {variable} is for another server than {base_url}.")
    return key.strip()


def _with_media(prompt: Prompt) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = list(prompt.messages())
    if prompt.media:
        last = messages[-1]
        parts = [{"type": f"{m.kind}_url", f"{m.kind}_url": {"url": m.url}} for m in prompt.media]
        messages[-1] = {"role": last["role"], "content": [{"type": "text", "text": last["content"]}, *parts]}
    return messages


def _one_of(labels: Sequence[str]) -> dict[str, Any]:
    """An answer {"label": one of them}: servers want an object at the root."""
    schema = {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": list(labels)}},
        "required": ["label"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "label", "strict": True, "schema": schema}}


def label_in(text: str, labels: Sequence[str]) -> str | None:
    """The label that an answer is: bare, quoted, or as the object asked for. Servers do not all keep to the schema."""
    text = text.strip()
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        found = text
    if isinstance(found, dict):
        found = found.get("label")
    return found if isinstance(found, str) and found in labels else None


def _retry_after(answer: httpx2.Response) -> float:
    """Seconds; 0 where nothing (sensible) is said."""
    said = answer.headers.get("Retry-After", "")
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return min(max(seconds, 0.0), PATIENCE)
