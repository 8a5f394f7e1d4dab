"""The engine for local transformers folders, on a tiny model with random weights that is made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from devices import DEVICE
from engine_lab import Told, place

from actors.engines import Answer, Generation, make_engine
from actors.prompts import Prompt
from jos.worker import JobImpossible

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
SAMPLED = Generation(max_new_tokens=6, do_sample=True, temperature=1.5, top_k=30, top_p=0.9, repetition_penalty=1.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers over single bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    path = tmp_path_factory.mktemp("model")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={"<end>": 0, **{c: n + 1 for n, c in enumerate(letters)}}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(path)
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=len(letters) + 1, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, eos_token_id=0, bos_token_id=0, initializer_range=0.4,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(path, safe_serialization=True)
    return path


def engine(folder: Path, **options: Any) -> Any:
    return make_engine(f"hf:{folder}", place(**options))


def asked(count: int = 12) -> list[Prompt]:
    return [Prompt(body="x" * (n % 5) + f"flow {n}", seed=n) for n in range(count)]


def texts(answers: list[Any]) -> list[str]:
    assert all(isinstance(a, Answer) for a in answers)
    return [a.text for a in answers]


def test_a_record_s_text_does_not_depend_on_its_neighbours_place_or_batch(folder: Path) -> None:
    one = engine(folder, generation=SAMPLED)
    prompts = asked()
    found = texts(one.answer(prompts))
    assert len(set(found)) > 6
    assert texts(one.answer(prompts[::-1])) == found[::-1]
    assert texts(engine(folder, generation=SAMPLED, batch_size=1).answer(prompts)) == found
    assert texts(one.answer([Prompt(body=p.body, seed=p.seed + 100) for p in prompts])) != found


def test_sampling_follows_the_settings(folder: Path) -> None:
    greedy = texts(engine(folder, generation=Generation(max_new_tokens=6)).answer(asked()))
    narrow = Generation(max_new_tokens=6, do_sample=True, top_k=1)
    assert texts(engine(folder, generation=narrow).answer(asked())) == greedy


def test_batches_grow_and_halve_for_good_when_memory_runs_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine(folder, told=(told := Told()))
    generate, sizes = one._generated, list[int]()

    def with_little_memory(tokens: list[list[int]], seeds: list[int]) -> list[str]:
        sizes.append(len(tokens))
        if len(tokens) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(generate(tokens, seeds))

    monkeypatch.setattr(one, "_generated", with_little_memory)
    whole = texts(one.answer(asked(40)))
    tried, kept = ([8, 16, 8, 8, 8, 8], [8]) if DEVICE == "cpu" else ([40, 20, 10, 10, 10, 10], [20, 10])
    assert sizes == tried
    assert whole == texts(engine(folder).answer(asked(40)))
    said = [(kind, payload["batch_size"]) for kind, _, payload in told.events]
    assert said == [("inference.oom", size) for size in kept]


def test_a_single_record_that_needs_too_much_memory_is_left_to_jos(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = engine(folder)

    def full(*_: Any) -> list[str]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(one, "_generated", full)
    with pytest.raises(torch.OutOfMemoryError):
        one.answer(asked(9))
    assert one.most == 1


def test_answers_are_labels_and_long_texts_are_cut(folder: Path) -> None:
    labels = ("on", "only off", "läuft")
    found = texts(engine(folder, generation=Generation(labels=labels)).answer(asked()))
    assert set(found) <= set(labels)
    (cut,) = engine(folder).answer([Prompt(body="flow 3; " * 100)])
    assert cut.cut


def test_what_is_no_model_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(JobImpossible, match=r"there is no .*config\.json"):
        engine(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(JobImpossible, match="cannot be loaded"):
        engine(tmp_path)
    with pytest.raises(JobImpossible, match="An answer may have 400 tokens"):
        engine(folder, generation=Generation(max_new_tokens=400))
