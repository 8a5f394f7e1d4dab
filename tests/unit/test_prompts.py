"""Records become prompts, or a message that names the field; long ones lose the right end."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.prompts import Media, Prompt, fitted, read_prompt
from jos.records import RecordFailed


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_texts_of_all_fields_stand_in_one_chat_in_their_order() -> None:
    inputs = [
        {"type": "text", "format": "plain", "data": "flow 3", "extra": {"any": "thing"}},
        {"type": "text", "format": "base64", "data": coded("Größe 4".encode())},
    ]
    prompt = read_prompt({"system": "S", "instruction": "I", "prompt": "P", "inputs": inputs, "id": 9}, 0)
    assert prompt.messages() == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "I\n\nP\n\nflow 3\n\nGröße 4"},
    ]


def test_examples_stand_between_the_instruction_and_the_question() -> None:
    prompt = Prompt("S", "I", "P", shots=(("far", "a"), ("near", "b")))
    assert [m["content"] for m in prompt.messages()] == ["S\n\nI", "far", "a", "near", "b", "P"]
    assert [m["role"] for m in prompt.messages()] == ["system", "user", "assistant", "user", "assistant", "user"]


def test_pictures_become_urls_that_hold_them() -> None:
    png = b"\x89PNG\r\n\x1a\n and so on"
    inputs = [
        {"type": "image", "format": "base64", "data": coded(png)},
        {"type": "image", "format": "plain", "data": "https://example.com/a.png"},
        {"type": "video", "format": "base64", "data": coded(b"film")},
    ]
    prompt = read_prompt({"prompt": "what is this?", "inputs": inputs}, 0)
    assert prompt.media == (
        Media("image", f"data:image/png;base64,{coded(png)}"),
        Media("image", "https://example.com/a.png"),
        Media("video", f"data:video/mp4;base64,{coded(b'film')}"),
    )


def test_what_clients_leave_empty_or_write_another_way_is_taken() -> None:
    png = b"\x89PNG and so on"
    bare = coded(png).rstrip("=")
    assert bare != coded(png)
    empty = [
        {"type": "text", "data": ""},
        {"type": "image", "data": None},
        {"type": "text", "format": None, "data": "b"},
    ]
    images = [{"type": "image", "format": "base64", "data": d} for d in (f"data:image/png;base64,{coded(png)}", bare)]
    prompt = read_prompt({"prompt": "x", "inputs": [*empty, *images]}, 0)
    assert prompt.body == "x\n\nb"
    assert prompt.media == (Media("image", f"data:image/png;base64,{coded(png)}"),) * 2


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({}, "holds no text"),
        ({"prompt": "  ", "system": ""}, "holds no text"),
        ({"prompt": 3}, "prompt must be a text, not a number"),
        ({"system": ["a"]}, "system must be a text, not a list"),
        ({"prompt": "a", "inputs": "b"}, "inputs must be a list"),
        ({"prompt": "a", "inputs": ["b"]}, r"inputs\[0\] must be an object"),
        ({"prompt": "a", "inputs": [{"type": "sound", "data": "x"}]}, r"inputs\[0\].type must be one of"),
        ({"prompt": "a", "inputs": [{"type": "text", "format": "hex", "data": "x"}]}, r"inputs\[0\].format"),
        ({"prompt": "a", "inputs": [{"type": "text", "format": "plain"}]}, r"inputs\[0\].data must be a text"),
        ({"prompt": "a", "inputs": [{"type": "image", "data": ""}]}, r"inputs\[0\].data must be a text"),
        ({"inputs": [{"type": "text", "data": ""}, {"type": "text", "data": None}]}, "holds no text"),
        ({"inputs": [{"type": "text", "format": "base64", "data": "a?c="}]}, r"inputs\[0\].data is not base64"),
        ({"inputs": [{"type": "text", "format": "base64", "data": coded(b"\xff")}]}, "no UTF-8 text"),
        ({"prompt": "a", "inputs": [{"type": "image", "data": "file:///etc/passwd"}]}, "must be a URL"),
        ({"prompt": "a", "inputs": [{"type": "image", "format": "base64", "data": coded(b"no")}]}, "no image"),
    ],
)
def test_what_is_wrong_with_a_record_is_said_with_its_field(record: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordFailed, match=said):
        read_prompt(record, 0)


def test_the_seed_of_a_record_comes_from_the_job_s_seed_and_what_is_asked() -> None:
    asked = {"prompt": "flow 3"}
    assert read_prompt(asked, 1).seed == read_prompt({**asked, "id": "elsewhere"}, 1).seed
    assert len({read_prompt({"prompt": f"flow {n}"}, seed).seed for n in range(9) for seed in range(9)}) == 81
    assert 0 <= read_prompt(asked, 1).seed < 2**31


def words(prompt: Prompt) -> int:
    return sum(len(m["content"].split()) for m in prompt.messages())


def test_too_long_a_record_loses_far_examples_then_the_beginning_of_its_text() -> None:
    body = " ".join(f"reading{n}" for n in range(500))
    prompt = Prompt("be brief", "what goes on?", body, shots=(("far one", "a"), ("near one", "b")))
    cut, told = fitted(prompt, 400, words)
    assert told
    assert (cut.system, cut.instruction, cut.shots) == ("be brief", "what goes on?", ())
    assert body.endswith(cut.body)
    assert words(cut) == 400
    kept, told = fitted(Prompt("s", "i", "t " * 100, shots=(("f " * 100, "a"), ("n " * 100, "b"))), 210, words)
    assert told
    assert [answer for _, answer in kept.shots] == ["b"]


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400), st.integers(2, 300))
def test_whatever_is_too_long_comes_to_the_budget_and_nothing_else_is_touched(
    system: int, instruction: int, body: int, budget: int
) -> None:
    prompt = Prompt("s " * system, "i " * instruction, "b " * body)
    cut, told = fitted(prompt, budget, words)
    assert words(cut) <= budget
    assert told == (words(prompt) > budget)
    assert told or cut == prompt
