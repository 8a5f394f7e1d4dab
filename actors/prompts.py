"""What a record of activity-detection asks a language model, checked, and cut to what the model can take.

May import: jos.records, stdlib, orjson. Tests: tests/unit/test_prompts.py.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from jos.records import RecordFailed

TEXTS = ("system", "instruction", "prompt")
KINDS = ("text", "image", "video")
FORMATS = ("plain", "base64")
TOKEN_BUDGET = 16_384  # a record, its answer included
LONGEST_TOKEN = 16  # bytes; longer ones (runs of blanks) are so rare that a text is first cut by this
_DATA_URL = re.compile(r"\s*data:[^,]{0,200};base64,", re.IGNORECASE)
_URLS = ("data:", "http://", "https://")
_MAGIC = ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG", "image/png"), (b"GIF8", "image/gif"), (b"RIFF", "image/webp"))

Message = dict[str, str]


@dataclass(frozen=True)
class Media:
    """A picture or a film, as a URL that holds it or names it."""

    kind: str  # "image" or "video"
    url: str


@dataclass(frozen=True)
class Prompt:
    """One question. `shots` are solved examples, (text, answer), the most like it last."""

    system: str = ""
    instruction: str = ""
    body: str = ""
    media: tuple[Media, ...] = ()
    shots: tuple[tuple[str, str], ...] = ()
    seed: int = 0

    def messages(self) -> list[Message]:
        """As a chat. With examples the instruction stands before them, else right before what it is about."""
        if self.shots:
            system = _joined(self.system, self.instruction)
            turns = [turn for text, answer in self.shots for turn in (_said("user", text), _said("assistant", answer))]
            return [*([_said("system", system)] if system else []), *turns, _said("user", self.body)]
        user = _joined(self.instruction, self.body)
        return [*([_said("system", self.system)] if self.system else []), _said("user", user)]


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _joined(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)


def read_prompt(record: Mapping[str, Any], seed: int) -> Prompt:
    """The question of a record. Raises RecordFailed that names the field and what it should be."""
    texts = {name: _text(record.get(name), name) for name in TEXTS}
    body, media = [texts["prompt"]], []
    entries = record.get("inputs")
    if entries is not None and not isinstance(entries, list):
        raise RecordFailed(f"inputs must be a list, not {_type(entries)}")
    for at, entry in enumerate(entries or ()):
        kind, data = _input(entry, f"inputs[{at}]")
        if kind == "text":
            body.append(data)
        elif data:
            media.append(Media(kind, data))
    if not any(text.strip() for text in (*texts.values(), *body)):
        raise RecordFailed("the record holds no text: give system, instruction, prompt or an input of type text")
    prompt = Prompt(texts["system"], texts["instruction"], _joined(*body), tuple(media))
    return replace(prompt, seed=_seed(prompt, seed))


def _seed(prompt: Prompt, seed: int) -> int:
    """From what is asked, not from where it stands: the same record has the same answer in any file and order."""
    asked = [seed, prompt.system, prompt.instruction, prompt.body, [m.url for m in prompt.media]]
    return int.from_bytes(hashlib.blake2b(orjson.dumps(asked), digest_size=8).digest(), "big") >> 33  # 31 bits


def _text(value: Any, name: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RecordFailed(f"{name} must be a text, not {_type(value)}")
    return value


def _type(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _input(entry: Any, where: str) -> tuple[str, str]:
    """(type, text or URL) of one entry of `inputs`; nothing for one that is told to be empty: clients send all of their
    fields, and null for those that they do not use."""
    if not isinstance(entry, dict):
        raise RecordFailed(f"{where} must be an object with type, format and data")
    kind, form, data = entry.get("type"), entry.get("format"), entry.get("data")
    if kind not in KINDS:
        raise RecordFailed(f"{where}.type must be one of {', '.join(KINDS)}, not {_shown(kind)}")
    form = "plain" if form is None else form
    if form not in FORMATS:
        raise RecordFailed(f"{where}.format must be plain or base64, not {_shown(form)}")
    if (data is None and "data" in entry) or (data == "" and kind == "text"):
        return kind, ""
    if not isinstance(data, str) or not data:
        raise RecordFailed(f"{where}.data must be a text that is not empty")
    if form == "plain":
        if kind != "text" and not data.startswith(_URLS):
            raise RecordFailed(f"{where}.data must be a URL (http, https or data), or have the format base64")
        return kind, data
    raw = _decoded(data, where)
    if kind == "text":
        return kind, _utf8(raw, where)
    mime = "video/mp4" if kind == "video" else next((m for start, m in _MAGIC if raw.startswith(start)), None)
    if mime is None:
        raise RecordFailed(f"{where}.data is no image that is known here (JPEG, PNG, GIF, WebP)")
    return kind, f"data:{mime};base64,{base64.b64encode(raw).decode()}"


def _shown(value: Any) -> str:
    return repr(value)[:60]


def _decoded(data: str, where: str) -> bytes:
    """Of bare base64 or a data URL, padded or not."""
    bare = "".join(data[len(found[0]) :].split() if (found := _DATA_URL.match(data)) else data.split()).rstrip("=")
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RecordFailed(f"{where}.data is not base64: {error}") from error


def _utf8(raw: bytes, where: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise RecordFailed(f"{where}.data holds, decoded, no UTF-8 text: {error.reason}") from error


# --- cutting ------------------------------------------------------------------------------------------


def fitted(prompt: Prompt, budget: int, count: Callable[[Prompt], int]) -> tuple[Prompt, bool]:
    """The prompt in at most `budget` tokens as `count` counts them, and whether anything had to go.

    First the examples go, the least alike before the others; then the beginning of the text, for readings are told in
    the order of time and the newest matter most; last the ends of instruction and system text, which say the most
    important thing first.
    """
    if _at_most(prompt) <= budget:
        return prompt, False
    most, whole = budget * LONGEST_TOKEN, prompt
    prompt = replace(prompt, body=prompt.body[-most:], instruction=prompt.instruction[:most])
    prompt = replace(prompt, system=prompt.system[:most])
    if count(prompt) <= budget:
        return prompt, prompt != whole
    while prompt.shots and count(prompt) > budget:
        prompt = replace(prompt, shots=prompt.shots[1:])
    for name, from_end in (("body", True), ("instruction", False), ("system", False)):
        if count(prompt) > budget:
            prompt = _cut(prompt, name, from_end, budget, count)
    return prompt, True


def _at_most(prompt: Prompt) -> int:
    """No tokenizer makes more tokens than bytes; some go to the turns of the chat."""
    texts = [text for shot in prompt.shots for text in shot]
    texts += [prompt.system, prompt.instruction, prompt.body]
    return sum(len(text.encode()) for text in texts) + 16 * (len(texts) + 4)


def _cut(prompt: Prompt, name: str, keep_end: bool, budget: int, count: Callable[[Prompt], int]) -> Prompt:
    """As much of one text as fits; nothing of it when even that is too much."""
    text: str = getattr(prompt, name)

    def kept(length: int) -> Prompt:
        changes: dict[str, Any] = {name: (text[len(text) - length :] if keep_end else text[:length])}
        return replace(prompt, **changes)

    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(kept(middle)) <= budget else (low, middle - 1)
    return kept(low)


def estimated(prompt: Prompt) -> int:
    """Tokens where no tokenizer is at hand: four bytes a token, as is usual for English text."""
    return sum(len(m["content"].encode()) for m in prompt.messages()) // 4


def text_of(record: Mapping[str, Any]) -> str:
    """What a labelled example says, without system text and instruction."""
    return read_prompt(record, 0).body


def label_hint(labels: Sequence[str]) -> str:
    return f"Answer with exactly one of these labels: {', '.join(labels)}."
