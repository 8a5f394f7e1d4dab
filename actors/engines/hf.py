"""A causal language model in a local folder, as transformers reads it (safetensors only, no code from the folder).

Records of a span are sorted by length and answered in batches of like ones, padded on the left. Batches grow from
FIRST records to as many as the span has, in the same steps each time, so that a span that is done again is done in the
same shapes and gives the same text. On an accelerator, where a small batch takes as long as a large one, they begin
there; when it runs out of memory they halve and stay so. Each record draws from its own random numbers. Other
neighbours in a batch change a number's last bits, and so, rarely, a text: a batch_size of 1 rules that out, for the
price of the batch's gain.

May import: torch, transformers, actors.prompts, jos.records, jos.worker. Tests: tests/integration/test_engine_hf.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.engines import Answer, Place
from actors.prompts import TOKEN_BUDGET, Prompt, fitted
from jos.records import RecordFailed
from jos.worker import JobImpossible

FIRST, MOST = 8, 256  # records in a batch
FALLBACK_CONTEXT = 2048  # where a model does not say


class TransformersEngine:
    """See the module."""

    span_records = 256
    sees: frozenset[str] = frozenset()

    def __init__(self, path: str, place: Place) -> None:
        self.place, self.generation = place, place.generation
        self.most = place.batch_size or MOST
        self.first = self.most if place.batch_size or place.device != "cpu" else FIRST
        self.tokenizer, self.model = load(path, place)
        self.allowed = self._trie(self.generation.labels) if self.generation.labels else None
        self.new_tokens = 1 + max(map(len, self.allowed)) if self.allowed else self.generation.max_new_tokens
        context = getattr(self.model.config, "max_position_embeddings", None) or FALLBACK_CONTEXT
        if self.new_tokens >= context:
            raise JobImpossible(
                f"An answer may have {self.new_tokens} tokens, and the model takes {context} with the prompt.",
                suggestion="Set a smaller max_new_tokens, or shorter labels.",
            )
        self.budget = min(TOKEN_BUDGET, context) - self.new_tokens

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer | RecordFailed]:
        fits = [fitted(prompt, self.budget, lambda p: len(self._tokens(p))) for prompt in prompts]
        tokens = [self._tokens(prompt) for prompt, _ in fits]
        order = sorted(range(len(tokens)), key=lambda at: (len(tokens[at]), at))
        texts: dict[int, str] = {}
        done, size = 0, min(self.first, self.most)
        while done < len(order):
            some = order[done : done + min(size, self.most)]
            made = self._made([tokens[at] for at in some], [prompts[at].seed for at in some])
            if made is None:
                continue
            texts.update(zip(some, made, strict=True))
            done, size = done + len(some), min(2 * size, self.most)
        return [Answer(texts[at], cut) for at, (_, cut) in enumerate(fits)]

    def _made(self, tokens: list[list[int]], seeds: list[int]) -> list[str] | None:
        """A batch's texts; None when it was too large and the next ones will be smaller. A single record that is too
        large is JOS's matter: the error comes through."""
        import torch

        try:
            return self._generated(tokens, seeds)
        except torch.OutOfMemoryError as error:
            if len(tokens) == 1:
                raise
            self.most = len(tokens) // 2
            message = f"out of memory with {len(tokens)} records at once; goes on with {self.most}"
            self.place.warn("inference.oom", message, batch_size=self.most, error=str(error)[:300])
        if self.place.device == "cuda":
            torch.cuda.empty_cache()
        return None

    def _generated(self, tokens: list[list[int]], seeds: list[int]) -> list[str]:
        import torch
        from transformers import LogitsProcessorList

        longest, pad = max(map(len, tokens)), self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(one)) + one for one in tokens], device=self.place.device)
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in tokens], device=self.place.device)
        processors = LogitsProcessorList()
        if self.generation.repetition_penalty != 1:
            processors.append(unrepeated(self.generation.repetition_penalty, mask))
        if not self.generation.greedy:
            processors.append(drawing(self.generation, seeds, self.new_tokens, longest))
        with torch.inference_mode():
            made = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self.new_tokens,
                do_sample=False,  # the draw is ours: transformers has one stream of chance for a whole batch
                num_beams=1,
                logits_processor=processors,
                prefix_allowed_tokens_fn=None if self.allowed is None else self._step(longest),
                pad_token_id=pad,
            )
        return [text.strip() for text in self.tokenizer.batch_decode(made[:, longest:], skip_special_tokens=True)]

    def _tokens(self, prompt: Prompt) -> list[int]:
        messages = prompt.messages()
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            text = "\n\n".join(m["content"] for m in messages) + "\n\n"
        found = self.tokenizer(text, add_special_tokens=not self.tokenizer.chat_template)["input_ids"]
        return list(found) or [self.tokenizer.pad_token_id]

    # --- labels ---

    def _trie(self, labels: Sequence[str]) -> dict[tuple[int, ...], list[int]]:
        """What may follow each beginning of a label, in tokens; the end after a whole one."""
        end = self.tokenizer.eos_token_id
        follow: dict[tuple[int, ...], set[int]] = {}
        for label in labels:
            ids = [*self.tokenizer(label, add_special_tokens=False)["input_ids"], end]
            for at, token in enumerate(ids):
                follow.setdefault(tuple(ids[:at]), set()).add(token)
        return {start: sorted(tokens) for start, tokens in follow.items()}

    def _step(self, longest: int) -> Callable[[int, Any], list[int]]:
        allowed, end = self.allowed or {}, [self.tokenizer.eos_token_id]

        def step(_row: int, ids: Any) -> list[int]:
            return allowed.get(tuple(ids[longest:].tolist()), end)

        return step


def load(path: str, place: Place) -> tuple[Any, Any]:
    """(tokenizer, model). Raises JobImpossible with what is missing."""
    if not (Path(path) / "config.json").is_file():
        raise JobImpossible(
            f"hf:{path} is no model: there is no {path}/config.json where the indexes run.",
            suggestion="Give the absolute path of a folder that every index can read.",
        )
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise JobImpossible(f"{error}.", suggestion="pip install 'jos[hf]', wherever the indexes run.") from error
    torch.set_num_threads(max(1, place.threads))
    kind = torch.float32 if place.device == "cpu" else "auto"
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **safe)
        model: Any = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, dtype=kind, **safe)
    except (OSError, ValueError) as error:
        raise JobImpossible(f"hf:{path} cannot be loaded: {error}") from error
    if tokenizer.eos_token_id is None:
        raise JobImpossible(f"hf:{path}: its tokenizer has no token for the end of a text (eos_token).")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # what the folder says about sampling must not mix with what the job says
    model.generation_config = type(model.generation_config)(eos_token_id=model.generation_config.eos_token_id)
    model.to(place.device)
    return tokenizer, model.eval()


def unrepeated(penalty: float, mask: Any) -> Callable[[Any, Any], Any]:
    """transformers' repetition penalty, blind to the padding: how much of it there is depends on the neighbours."""
    from transformers import RepetitionPenaltyLogitsProcessor

    processor, longest = RepetitionPenaltyLogitsProcessor(float(penalty)), mask.shape[1]

    def apply(ids: Any, scores: Any) -> Any:
        real = ids.clone()
        real[:, :longest] = ids[:, :longest].where(mask.bool(), ids[:, longest - 1 : longest])
        return processor(real, scores)

    return apply


def drawing(generation: Any, seeds: list[int], steps: int, longest: int) -> Callable[[Any, Any], Any]:
    """A logits processor that leaves one token a row: the one that the row's own next random number falls on, after
    temperature, top_k and top_p."""
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    chances = torch.from_numpy(np.stack([np.random.default_rng(seed).random(steps) for seed in seeds]))
    warpers: list[Any] = [TemperatureLogitsWarper(float(generation.temperature))] if generation.temperature != 1 else []
    warpers += [TopKLogitsWarper(generation.top_k)] if generation.top_k > 0 else []
    warpers += [TopPLogitsWarper(generation.top_p)] if generation.top_p < 1 else []

    def draw(ids: Any, scores: Any) -> Any:
        for warper in warpers:
            scores = warper(ids, scores)
        heaped = torch.softmax(scores.double(), dim=-1).cumsum(dim=-1)
        chance = chances[:, ids.shape[1] - longest].to(heaped.device).unsqueeze(1) * heaped[:, -1:]
        chosen = torch.searchsorted(heaped, chance, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)

    return draw
