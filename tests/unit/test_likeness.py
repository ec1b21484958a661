"""Likeness of captions against numbers worked out by hand."""

import time

import pytest

from annotation.review.likeness import common_subsequence, rouge_l, slips, token_f1, words


@pytest.mark.parametrize(
    ("first", "second", "f1", "rouge"),
    [
        ("a red fox", "a red fox", 1.0, 1.0),
        ("a red fox", "A RED FOX!", 1.0, 1.0),
        ("a red fox", "fox red a", 1.0, 1 / 3),  # all words shared, one of them in order
        ("a red fox in snow", "a fox", 4 / 7, 4 / 7),  # 2 of 5 and 2 of 2
        ("the cat the dog", "the the the", 4 / 7, 4 / 7),  # `the` counts twice, not three times
        ("police killed the gunman", "police kill the gunman", 0.75, 0.75),  # Lin 2004, section 3.1
        ("police killed the gunman", "the gunman kill police", 0.75, 0.5),  # the same: LCS "the gunman"
        ("", "", 1.0, 1.0),
        ("", "a", 0.0, 0.0),
        ("!!", "", 1.0, 1.0),
    ],
)
def test_closed_forms(first: str, second: str, f1: float, rouge: float) -> None:
    assert token_f1(first, second) == token_f1(second, first) == pytest.approx(f1)
    assert rouge_l(first, second) == rouge_l(second, first) == pytest.approx(rouge)


@pytest.mark.parametrize(
    ("a", "b", "length"), [("ABCBDAB", "BDCABA", 4), ("XMJYAUZ", "MZJAWXU", 4), ("", "A", 0), ("AAAA", "AA", 2)]
)
def test_the_longest_common_subsequence(a: str, b: str, length: int) -> None:
    assert common_subsequence(a, b) == common_subsequence(b, a) == length


def test_the_subsequence_of_random_words_is_that_of_the_table() -> None:
    from data import seeds

    for case in range(40):
        a = [seeds.integer(4, "a", case, place) for place in range(seeds.integer(12, "n", case))]
        b = [seeds.integer(4, "b", case, place) for place in range(seeds.integer(12, "m", case))]
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        assert common_subsequence(a, b) == table[-1][-1]


def test_captions_of_100_kb_are_harmless() -> None:
    long = "word other thing " * 6000
    start = time.perf_counter()
    assert rouge_l(long, long[17:]) > 0.99
    assert time.perf_counter() - start < 5


def test_words_keep_hyphens_and_apostrophes_and_other_scripts() -> None:
    assert words("Fox's ball-shaped, \u202eرأس 電気 <b>x</b>") == ["fox's", "ball-shaped", "رأس", "電気", "b", "x", "b"]


@pytest.mark.parametrize(
    ("first", "second", "most", "distance"),
    [
        ("creature", "craeture", 1, 1),  # two letters swapped
        ("creature", "creture", 1, 1),
        ("creature", "creatture", 1, 1),
        ("creature", "creatury", 1, 1),
        ("creature", "craetuer", 1, None),
        ("creature", "craetuer", 2, 2),
        ("creature", "creature", 1, 0),
        ("fox", "foxes", 1, None),
        ("", "a", 1, 1),
    ],
)
def test_slips(first: str, second: str, most: int, distance: int | None) -> None:
    assert slips(first, second, most) == slips(second, first, most) == distance
