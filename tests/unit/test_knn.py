"""The batched neighbours against a naive search, and ties, which must fall the same way every time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from devices import DEVICE, Neighbours, of_cpu
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import torch as safetensors

from actors import knn_exact
from actors.knn import METRICS, WEIGHTS


def naive(
    queries: np.ndarray, references: np.ndarray, labels: np.ndarray, k: int, metric: str, weights: str, unit: bool
) -> tuple[list[int], list[list[float]]]:
    if unit or metric == "cosine":
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        references = references / np.linalg.norm(references, axis=1, keepdims=True)
    states, scores = [], []
    for query in queries:
        difference = references - query
        distance = {
            "euclidean": np.sqrt((difference**2).sum(1)),
            "manhattan": np.abs(difference).sum(1),
            "cosine": 1 - references @ query,
        }[metric]
        nearest = sorted(range(len(references)), key=lambda at: (distance[at], at))[:k]
        weight = [1.0 if weights == "uniform" else 1 / distance[at] for at in nearest]
        score = [0.0, 0.0, 0.0]
        for at, one in zip(nearest, weight, strict=True):
            score[labels[at]] += one
        best = max(score)
        states.append(next(int(labels[at]) for at in nearest if score[labels[at]] > best - 1e-12 * best))
        scores.append([one / sum(score) for one in score])
    return states, scores


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("pairs", [1 << 22, 100], ids=["one chunk", "many chunks"])
def test_agrees_with_a_naive_search(
    metric: str, weights: str, unit: bool, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn_exact, "KEYS", pairs)
    random = np.random.default_rng(7)
    references, queries = random.normal(3, 1, (90, 6)), random.normal(3, 1, (40, 6))
    labels = random.integers(0, 3, 90)
    neighbours = Neighbours(
        torch.from_numpy(references),
        labels,
        3,
        n_neighbors=5,
        metric=metric,
        weights=weights,
        normalize_embeddings=unit,
    )
    state, score = neighbours.scores(torch.from_numpy(queries))
    states, scores = naive(queries, references, labels, 5, metric, weights, unit)
    assert state.tolist() == states
    np.testing.assert_allclose(score.numpy(), scores, atol=1e-6)
    np.testing.assert_allclose(score.sum(1), 1)


@pytest.mark.parametrize("metric", METRICS)
def test_equal_distances_fall_to_the_earlier_reference(metric: str) -> None:
    same = torch.ones(1000, 40) * 1.7
    neighbours = Neighbours(same, np.zeros(1000, np.int64), 1, n_neighbors=4, metric=metric)
    distance, index = neighbours.neighbours(torch.randn(33, 40, generator=torch.Generator().manual_seed(1)))
    assert index.tolist() == [[0, 1, 2, 3]] * 33
    assert (distance[:, :1] == distance).all()


@pytest.mark.parametrize("metric", METRICS)
def test_an_exact_match_takes_all_the_weight(metric: str) -> None:
    references = torch.randn(50, 8, generator=torch.Generator().manual_seed(2)) * 1000
    labels = np.arange(50) % 2
    neighbours = Neighbours(references, labels, 2, n_neighbors=5, metric=metric, weights="distance")
    state, score = neighbours.scores(references)
    assert state.tolist() == labels.tolist()
    assert score.amax(1).tolist() == [1.0] * 50


def test_of_equal_scores_the_class_of_the_nearest_wins() -> None:
    references = torch.tensor([[1.0], [1.2], [-0.5], [-1.5], [9.0]])
    labels = np.array([0, 0, 1, 1, 0])
    neighbours = Neighbours(references, labels, 2, n_neighbors=4)
    assert neighbours.scores(torch.tensor([[0.0], [0.5]]))[0].tolist() == [1, 0]


@pytest.mark.parametrize("metric", METRICS)
def test_a_query_is_answered_alike_alone_and_in_company(metric: str) -> None:
    random = torch.Generator().manual_seed(3)
    references, queries = torch.randn(700, 300, generator=random), torch.randn(64, 300, generator=random)
    neighbours = Neighbours(references, np.arange(700) % 5, 5, metric=metric, weights="distance")
    together = neighbours.scores(queries)[1]
    alone = torch.cat([neighbours.scores(query[None])[1] for query in queries])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-8)


def test_more_neighbours_than_references_are_refused() -> None:
    with pytest.raises(ValueError, match="5 neighbours of 4 references"):
        Neighbours(torch.zeros(4, 2), np.zeros(4, np.int64), 1)


def brute(queries: np.ndarray, references: np.ndarray, metric: str, unit: bool) -> np.ndarray:
    """All distances in double precision, (queries, references), from the differences."""
    queries, references = queries.astype(np.float64), references.astype(np.float64)
    if unit or metric == "cosine":
        queries, references = (
            some / np.maximum(np.linalg.norm(some, axis=1, keepdims=True), 1e-30) for some in (queries, references)
        )
    if metric == "cosine":
        return 1 - queries @ references.T
    apart = queries[:, None] - references
    return np.abs(apart).sum(2) if metric == "manhattan" else np.sqrt(np.square(apart).sum(2))


@st.composite
def awkward(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """(references, queries, k) with ties, copies, constant and zero vectors, far from zero, all but equal."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, dims = draw(st.integers(1, 400)), draw(st.sampled_from([1, 2, 7, 40]))
    spread, offset = draw(st.sampled_from([1e-3, 1.0, 1e3])), draw(st.sampled_from([0.0, 1.0, 1e6]))
    vectors = random.normal(0, 1, (count + 12, dims))
    if draw(st.booleans()):
        vectors = vectors.round()  # ties
    vectors = vectors * spread + offset
    for _ in range(draw(st.integers(0, 3))):  # copies, constant ones, zeros
        some = random.integers(0, len(vectors), len(vectors) // 2)
        vectors[some] = draw(st.sampled_from([vectors[0], np.full(dims, offset), np.zeros(dims)]))
    k = draw(st.sampled_from([1, 3, 5, count]))
    return vectors[:count].astype(np.float32), vectors[count:].astype(np.float32), min(k, count)


@settings(max_examples=150, deadline=None)
@given(awkward(), st.sampled_from(METRICS), st.booleans(), st.sampled_from([1 << 20, 2000]))
def test_the_nearest_are_those_of_a_search_by_force(
    vectors: tuple[np.ndarray, np.ndarray, int], metric: str, unit: bool, keys: int
) -> None:
    references, queries, k = vectors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn_exact, "KEYS", keys)
        search = Neighbours(
            torch.from_numpy(references),
            np.zeros(len(references), np.int64),
            1,
            n_neighbors=k,
            metric=metric,
            normalize_embeddings=unit,
        )
        distance, index = (some.numpy() for some in search.neighbours(torch.from_numpy(queries)))
        order = search.exact.nearest(torch.from_numpy(queries).to(DEVICE), distances=False)[1].cpu().numpy()
    every = brute(queries, references, metric, unit)
    size = np.abs(every).max() + (1.0 if unit or metric == "cosine" else 0.0)
    tolerance = {"rtol": 1e-8, "atol": 2e-12 * size}
    np.testing.assert_allclose(distance, np.sort(every, axis=1)[:, :k], **tolerance)
    np.testing.assert_allclose(np.take_along_axis(every, index, 1), distance, **tolerance)
    assert (order == index).all()
    for distances, numbers in zip(distance, index, strict=True):
        assert len(set(numbers)) == k
        if metric == "euclidean":  # ranked by squares, of which two may have the same root
            assert [*distances] == sorted(distances)
        else:
            assert [*zip(distances, numbers, strict=True)] == sorted(zip(distances, numbers, strict=True))


@of_cpu
@settings(max_examples=60, deadline=None)
@given(awkward(), st.sampled_from(METRICS))
def test_answers_are_the_same_bits_in_any_batch_and_chunk(
    vectors: tuple[np.ndarray, np.ndarray, int], metric: str
) -> None:
    references, queries, k = vectors
    some = torch.from_numpy(np.concatenate([queries] * 4))
    labels = np.arange(len(references)) % 3
    search = Neighbours(torch.from_numpy(references), labels, 3, n_neighbors=k, metric=metric)
    together = search.neighbours(some)
    apart = [search.neighbours(one[None]) for one in some]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn_exact, "KEYS", 700)
        patch.setattr(knn_exact, "BLOCK", 5)
        chunks = search.neighbours(some)
    for at in (0, 1):
        assert torch.equal(together[at], torch.cat([one[at] for one in apart]))
        assert torch.equal(together[at], chunks[at])


def test_whole_numbers_tie_exactly_and_fall_to_the_earlier_reference() -> None:
    random = np.random.default_rng(5)
    references = random.integers(-2, 3, (3000, 6)).astype(np.float32) + 7
    queries = random.integers(-2, 3, (50, 6)).astype(np.float32) + 7
    search = Neighbours(torch.from_numpy(references), np.zeros(3000, np.int64), 1, n_neighbors=20)
    squares = np.square(queries[:, None] - references).sum(2)
    expected = np.argsort(squares, axis=1, kind="stable")[:, :20]
    np.testing.assert_array_equal(search.neighbours(torch.from_numpy(queries))[1], expected)


@pytest.mark.parametrize("size", [1e-22, 1e15, 1e25], ids=["squares vanish", "large", "squares overflow"])
def test_sizes_that_single_precision_cannot_square_are_compared_all_the_same(size: float) -> None:
    random = np.random.default_rng(6)
    references = (random.normal(0, 1, (300, 9)) * size).astype(np.float32)
    queries = (random.normal(0, 1, (20, 9)) * size).astype(np.float32)
    search = Neighbours(torch.from_numpy(references), np.zeros(300, np.int64), 1, n_neighbors=4)
    expected = np.argsort(brute(queries, references, "euclidean", False), axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(search.neighbours(torch.from_numpy(queries))[1], expected)


@pytest.mark.parametrize("copies", [50, 3000])
def test_many_copies_of_one_reference_do_not_hide_the_others(copies: int) -> None:
    references = np.zeros((3000, 5), np.float32)
    references[copies:] = np.random.default_rng(8).normal(0, 1, (3000 - copies, 5))
    queries = np.zeros((300, 5), np.float32)
    search = Neighbours(torch.from_numpy(references), np.zeros(3000, np.int64), 1, n_neighbors=60)
    expected = np.argsort(brute(queries, references, "euclidean", False), axis=1, kind="stable")[:, :60]
    distance, index = search.neighbours(torch.from_numpy(queries))
    np.testing.assert_array_equal(index, expected)
    assert (distance[:, :copies] == 0).all()


def clustered(count: int, queries: int) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
    random = np.random.default_rng(9)
    centres = random.normal(0, 1, (60, 16))
    labels = random.integers(0, 60, count + queries)
    vectors = torch.from_numpy((centres[labels] + random.normal(0, 0.3, (count + queries, 16))).astype(np.float32))
    return vectors[:count], labels[:count] % 4, vectors[count:]


@of_cpu
def test_an_approximate_index_finds_nearly_all_neighbours_and_is_restored_as_it_was() -> None:
    references, labels, queries = clustered(6000, 200)
    exact = Neighbours(references, labels, 4, index="exact")
    search = Neighbours(references, labels, 4, index="approximate")
    assert search.approximate is not None
    found, true = search.neighbours(queries), exact.neighbours(queries)
    hits = (found[1][:, :, None] == true[1][:, None]).any(2)
    assert hits.double().mean() > 0.97
    assert search.recall() > 0.97
    assert (search.scores(queries)[0] == exact.scores(queries)[0]).double().mean() > 0.99
    again = Neighbours.restore(json.loads(json.dumps(search.settings())), search.tensors())
    for one in (again, Neighbours(references, labels, 4, index="approximate")):
        assert torch.equal(one.neighbours(queries)[1], found[1])
        assert torch.equal(one.neighbours(queries)[0], found[0])
    alone = torch.cat([search.neighbours(one[None])[1] for one in queries])
    assert torch.equal(alone, found[1])


@of_cpu
def test_lists_with_too_little_in_them_are_made_up_for_by_the_exact_search() -> None:
    references, labels, queries = clustered(5000, 40)
    exact = Neighbours(references, labels, 4, n_neighbors=4900, index="exact")
    search = Neighbours(references, labels, 4, n_neighbors=4900, index="approximate")
    assert search.approximate is not None
    assert torch.equal(search.neighbours(queries)[1], exact.neighbours(queries)[1])


@of_cpu
@pytest.mark.parametrize(("metric", "count", "why"), [("manhattan", 5000, "manhattan"), ("euclidean", 90, "Fewer")])
def test_where_no_index_can_be_the_search_is_exact_and_says_why(metric: str, count: int, why: str) -> None:
    references, labels, queries = clustered(count, 10)
    search = Neighbours(references, labels, 4, metric=metric, index="approximate")
    assert why in search.note
    assert search.recall() == 1.0
    exact = Neighbours(references, labels, 4, metric=metric, index="exact")
    assert not exact.note
    assert torch.equal(search.neighbours(queries)[1], exact.neighbours(queries)[1])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_restored_neighbours_answer_bit_for_bit(metric: str, weights: str, tmp_path: Path) -> None:
    references, labels, queries = clustered(700, 30)
    search = Neighbours(references, labels, 4, n_neighbors=7, metric=metric, weights=weights, normalize_embeddings=True)
    safetensors.save_file(search.tensors(), tmp_path / "stored")
    stored = safetensors.load_file(tmp_path / "stored")
    again = Neighbours.restore(json.loads(json.dumps(search.settings())), stored)
    for old, new in zip(search.scores(queries), again.scores(queries), strict=True):
        assert torch.equal(old, new)


def test_spoilt_tensors_are_refused_by_name() -> None:
    references, labels, _ = clustered(90, 0)
    search = Neighbours(references, labels, 4)
    tensors, values = search.tensors(), search.settings()

    def refused(**spoilt: torch.Tensor) -> str:
        with pytest.raises(ValueError) as error:  # noqa: PT011 the text is what is asked for
            Neighbours.restore(values, {**tensors, **spoilt})
        return str(error.value)

    assert "not finite" in refused(references=tensors["references"] * math.inf)
    assert "not finite float32" in refused(references=tensors["references"].double())
    assert "(4,) stored labels for 90" in refused(labels=tensors["labels"][:4])
    assert "0 … 3" in refused(labels=tensors["labels"] + 1)
    with pytest.raises(ValueError, match="lack labels, metric"):
        Neighbours.restore(
            {name: value for name, value in values.items() if name != "metric"}, {"references": tensors["references"]}
        )
