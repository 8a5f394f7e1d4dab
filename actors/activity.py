"""activity-detection: records of text to a language model, one answer each.

A record is {system?, instruction?, prompt?, inputs?: [{type, format, data}]}; its answer {"line_index", "prediction"},
with "truncated": true where the text was too long, or a prediction of null and an error. With `labels` the answer is
one of them, and labelled examples like the record stand before it. Which engine answers: actors/engines.

May import: jos.worker, jos.records, actors.*, stdlib. Tests: tests/unit/test_activity.py,
tests/integration/test_activity.py. Pipeline: pipelines/activity-detection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.engines import DEFAULT_MODEL, Answer, Generation, Place, make_engine
from actors.nearest_texts import NearestTexts
from actors.prompts import Prompt, label_hint, read_prompt, text_of
from jos.records import PARSE_ERROR, RecordFailed, RecordWorker, parse
from jos.worker import JobImpossible, Source

EXAMPLES = "worker.examples"
MOST_EXAMPLE_BYTES = 4 << 20  # of all example files: each index holds their texts, and compares each record with them


@dataclass(frozen=True)
class Settings:
    """The configuration of the component, checked."""

    model_variant: str
    generation: Generation
    seed: int
    batch_size: int | None
    max_video_frames: int
    shots: int  # examples before each record

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Settings:
        told = config.get("generation", {})
        labels = tuple(config.get("labels") or ())
        if any(not isinstance(label, str) or not label.strip() or label != label.strip() for label in labels):
            raise JobImpossible("A label is empty, or begins or ends with a blank.", suggestion="Mend labels.")
        batch_size = config.get("batch_size", "auto")
        return cls(
            model_variant=config.get("model_variant", DEFAULT_MODEL),
            generation=Generation(
                max_new_tokens=int(told.get("max_new_tokens", 128)),
                do_sample=bool(told.get("do_sample", False)),
                temperature=float(told.get("temperature", 1.0)),
                top_k=int(told.get("top_k", 0)),
                top_p=float(told.get("top_p", 1.0)),
                repetition_penalty=float(told.get("repetition_penalty", 1.0)),
                labels=labels,
            ),
            seed=int(config.get("seed", 0)),
            batch_size=None if batch_size == "auto" else int(batch_size),
            max_video_frames=int(config.get("max_video_frames", 16)),
            shots=int(config.get("examples_per_record", 4)),
        )


class ActivityWorker(RecordWorker):
    """See the module."""

    port = "worker.result"
    output_name = "inp_{file_uid}_output.jsonl"

    def setup(self) -> None:
        self.settings = settings = Settings.of(self.context.config)
        self.examples = Examples.read(self.context.inputs.get(EXAMPLES, ()), settings.generation.labels)
        place = Place(
            device=self.context.device,
            threads=self.context.threads,
            generation=settings.generation,
            batch_size=settings.batch_size,
            options=self.context.config.get("engine", {}),
            max_video_frames=settings.max_video_frames,
            stopping=self.context.stopping,
            warn=self.context.warn,
        )
        self.engine = make_engine(settings.model_variant, place)
        # The engine sorts a span's records into batches by itself: it knows their lengths, and its own memory.
        self.span_records = self.batch_size = self.engine.span_records

    def process_batch(self, records: Sequence[dict[str, Any]]) -> list[Mapping[str, Any] | RecordFailed]:
        prompts = [self._prompt(record) for record in records]
        answers = iter(self.engine.answer([prompt for prompt in prompts if isinstance(prompt, Prompt)]))
        return [self._line(next(answers)) if isinstance(prompt, Prompt) else prompt for prompt in prompts]

    def _prompt(self, record: dict[str, Any]) -> Prompt | RecordFailed:
        try:
            prompt = read_prompt(record, self.settings.seed)
        except RecordFailed as failed:
            return failed
        unseen = sorted({media.kind for media in prompt.media} - self.engine.sees)
        if unseen:
            return RecordFailed(
                f"{self.settings.model_variant} reads text only, and the record has {', '.join(unseen)}"
            )
        if not self.settings.generation.labels:
            return prompt
        hint = label_hint(self.settings.generation.labels)
        instruction = f"{prompt.instruction}\n{hint}" if prompt.instruction else hint
        return replace(prompt, instruction=instruction, shots=self.examples.like(prompt.body, self.settings.shots))

    def _line(self, answer: Answer | RecordFailed) -> Mapping[str, Any] | RecordFailed:
        labels = self.settings.generation.labels
        if isinstance(answer, Answer) and labels and answer.text not in labels:
            return RecordFailed(f"the answer {answer.text[:300]!r} is none of the labels")
        if isinstance(answer, RecordFailed) or not answer.cut:
            return answer if isinstance(answer, RecordFailed) else {"prediction": answer.text}
        self.context.warn(
            "inference.truncation",
            "Some records are longer than the model can read: examples were left out, then the beginning of the text "
            'was. Their lines in the output hold "truncated": true.',
        )
        return {"prediction": answer.text, "truncated": True}

    def error_line(self, message: str) -> Mapping[str, Any]:
        """The contract wants the bare word for a line that is no JSON object; what is wrong with it stands beside."""
        word, _, detail = message.partition(": ")
        if word == PARSE_ERROR:
            return {"prediction": None, "error": PARSE_ERROR, "detail": detail}
        return {"prediction": None, "error": message}


class Examples:
    """Labelled records, to be shown before one that is like them."""

    def __init__(self, texts: Sequence[str], labels: Sequence[str]) -> None:
        self.texts, self.labels = texts, labels
        self.index = NearestTexts(texts) if texts else None

    @classmethod
    def read(cls, sources: Sequence[Source], labels: Sequence[str]) -> Examples:
        """From JSONL files whose records have a `label`, or whose metadata have a `class`. Raises JobImpossible that
        names the file, and the line if it is to blame."""
        if sources and not labels:
            raise JobImpossible(
                "There are labelled examples, but no labels to choose from.", suggestion="Set worker.config.labels."
            )
        _check_size(sources)
        texts, found = [], []
        for source in sources:
            with source.open() as file:
                for number, line in enumerate(file):
                    if line.strip():
                        text, label = _example(source, number, line, labels)
                        texts.append(text)
                        found.append(label)
        return cls(texts, found)

    def like(self, text: str, count: int) -> tuple[tuple[str, str], ...]:
        """The nearest last: what stands next to the question weighs most."""
        if self.index is None:
            return ()
        return tuple((self.texts[at], self.labels[at]) for at in reversed(self.index.nearest(text, count)))


def _check_size(sources: Sequence[Source]) -> None:
    total = 0
    for source in sources:
        total += source.num_bytes
        if total > MOST_EXAMPLE_BYTES:
            before = " with the example files before it" if total > source.num_bytes else ""
            raise JobImpossible(
                f"The example file {source.filename} has {source.num_bytes:,} bytes, which makes {total:,}{before}; "
                f"all example files together may have {MOST_EXAMPLE_BYTES:,}: every index holds all of them in memory.",
                suggestion=f"Give fewer or shorter records on the port {EXAMPLES}: a few for each label are enough.",
            )


def _example(source: Source, number: int, raw: bytes, labels: Sequence[str]) -> tuple[str, str]:
    line = parse(number, raw.rstrip(b"\r\n"))
    where = f"The example {source.filename} line {number + 1}"
    if line.record is None:
        raise JobImpossible(f"{where}: {line.error}.")
    label = line.record.get("label", source.metadata.get("class"))
    if label not in labels:
        raise JobImpossible(
            f"{where} has the label {label!r}, which is not among the labels.",
            suggestion='Each example needs a "label" (or its file a metadata.class) that worker.config.labels names.',
        )
    try:
        text = text_of(line.record)
    except RecordFailed as failed:
        raise JobImpossible(f"{where}: {failed}.") from failed
    if not text.strip():
        raise JobImpossible(f"{where} has no prompt and no text among its inputs.")
    return text, str(label)
