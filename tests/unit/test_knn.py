"""The batched neighbours against a naive search, and ties, which must fall the same way every time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actors import knn
from actors.knn import METRICS, WEIGHTS, NearestNeighbours

torch.set_num_threads(1)  # tests run side by side


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
    monkeypatch.setattr(knn, "PAIRS", pairs)
    random = np.random.default_rng(7)
    references, queries = random.normal(3, 1, (90, 6)), random.normal(3, 1, (40, 6))
    labels = random.integers(0, 3, 90)
    neighbours = NearestNeighbours(
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
    neighbours = NearestNeighbours(same, np.zeros(1000, np.int64), 1, n_neighbors=4, metric=metric)
    distance, index = neighbours.neighbours(torch.randn(33, 40, generator=torch.Generator().manual_seed(1)))
    assert index.tolist() == [[0, 1, 2, 3]] * 33
    assert (distance[:, :1] == distance).all()


@pytest.mark.parametrize("metric", METRICS)
def test_an_exact_match_takes_all_the_weight(metric: str) -> None:
    references = torch.randn(50, 8, generator=torch.Generator().manual_seed(2)) * 1000
    labels = np.arange(50) % 2
    neighbours = NearestNeighbours(references, labels, 2, n_neighbors=5, metric=metric, weights="distance")
    state, score = neighbours.scores(references)
    assert state.tolist() == labels.tolist()
    assert score.amax(1).tolist() == [1.0] * 50


def test_of_equal_scores_the_class_of_the_nearest_wins() -> None:
    references = torch.tensor([[1.0], [1.2], [-0.5], [-1.5], [9.0]])
    labels = np.array([0, 0, 1, 1, 0])
    neighbours = NearestNeighbours(references, labels, 2, n_neighbors=4)
    assert neighbours.scores(torch.tensor([[0.0], [0.5]]))[0].tolist() == [1, 0]


@pytest.mark.parametrize("metric", METRICS)
def test_a_query_is_answered_alike_alone_and_in_company(metric: str) -> None:
    random = torch.Generator().manual_seed(3)
    references, queries = torch.randn(700, 300, generator=random), torch.randn(64, 300, generator=random)
    neighbours = NearestNeighbours(references, np.arange(700) % 5, 5, metric=metric, weights="distance")
    together = neighbours.scores(queries)[1]
    alone = torch.cat([neighbours.scores(query[None])[1] for query in queries])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-8)


def test_more_neighbours_than_references_are_refused() -> None:
    with pytest.raises(ValueError, match="5 neighbours of 4 references"):
        NearestNeighbours(torch.zeros(4, 2), np.zeros(4, np.int64), 1)
