"""The labelled texts most like a text, by the words and pairs of words that they share (tf-idf, cosine).

May import: numpy, stdlib. Tests: tests/unit/test_nearest_texts.py.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_WORD = re.compile(r"\w+(?:\.\w+)?")
_DECIMALS = 9  # of a likeness; below it two texts are equally alike, and the earlier one wins


class NearestTexts:
    """Remembers texts. Memory: one entry for each different word of each text."""

    def __init__(self, texts: Sequence[str]) -> None:
        counted = [_terms(text) for text in texts]
        told = Counter(term for terms in counted for term in terms)
        self.number = {term: at for at, term in enumerate(sorted(told))}
        self.rarity = np.array([np.log((1 + len(texts)) / (1 + told[t])) + 1 for t in self.number])
        self.size = len(texts)
        # for each term: the texts that hold it and its weight there
        holders: list[list[int]] = [[] for _ in self.number]
        weights: list[list[float]] = [[] for _ in self.number]
        for at, terms in enumerate(counted):
            for term, weight in zip(*self._weighed(terms), strict=True):
                holders[term].append(at)
                weights[term].append(float(weight))
        self.holders = [np.array(some) for some in holders]
        self.weights = [np.array(some) for some in weights]

    def nearest(self, text: str, count: int) -> list[int]:
        """The numbers of the `count` texts most like `text`, the most alike first."""
        alike = np.zeros(self.size)
        for term, weight in zip(*self._weighed(_terms(text)), strict=True):
            alike[self.holders[term]] += weight * self.weights[term]
        order = np.argsort(-np.round(alike, _DECIMALS), kind="stable")
        return [int(at) for at in order[:count]]

    def _weighed(self, terms: Counter[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Known terms by number, and their weights, scaled to length 1."""
        known = sorted((self.number[term], count) for term, count in terms.items() if term in self.number)
        at = np.array([number for number, _ in known], dtype=np.int64)
        weight = np.array([1 + np.log(count) for _, count in known]) * self.rarity[at]
        length = np.sqrt((weight * weight).sum())
        return at, weight / length if length > 0 else weight


def _terms(text: str) -> Counter[str]:
    words = _WORD.findall(text.lower())
    return Counter([*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))])
