"""Likeness of texts by their words."""

from __future__ import annotations

from actors.nearest_texts import NearestTexts

TEXTS = ["flow high pressure high", "flow low pressure low", "flow high pressure low", "the pump is silent"]


def test_the_most_alike_come_first_and_equals_in_their_order() -> None:
    index = NearestTexts([*TEXTS, TEXTS[1]])
    assert index.nearest("pressure low, flow low", 3)[:2] == [1, 4]
    assert index.nearest("a silent pump", 1) == [3]


def test_pairs_of_words_tell_apart_what_single_words_cannot() -> None:
    index = NearestTexts(["flow high pressure low", "flow low pressure high"])
    assert index.nearest("flow low, pressure high", 1) == [1]


def test_a_text_that_shares_no_word_has_neighbours_all_the_same() -> None:
    assert NearestTexts(TEXTS).nearest("xyz", 2) == [0, 1]
    assert len(NearestTexts(TEXTS).nearest("", 99)) == 4
