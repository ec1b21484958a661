"""Text similarity and agreement, against numbers worked out by hand."""

import time

import pytest

from annotation.agreement import common_subsequence, measure_agreement, rank, rouge_l, side_by_side, token_f1, words
from annotation.history import Answer
from annotation.vocabulary import edit_distance
from data import rng
from tests.answers import record


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


def test_the_subsequence_of_random_words_agrees_with_the_full_table() -> None:
    for case in range(40):
        a = [rng.integer(4, "a", case, place) for place in range(rng.integer(12, "n", case))]
        b = [rng.integer(4, "b", case, place) for place in range(rng.integer(12, "m", case))]
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        assert common_subsequence(a, b) == table[-1][-1]


def test_captions_of_100_kb_are_fast() -> None:
    long = "word other thing " * 6000
    start = time.perf_counter()
    assert rouge_l(long, long[17:]) > 0.99
    assert time.perf_counter() - start < 5


def test_words_keep_hyphens_apostrophes_and_other_scripts() -> None:
    assert words("Fox's ball-shaped, \u202eرأس 電気 <b>x</b>") == ["fox's", "ball-shaped", "رأس", "電気", "b", "x", "b"]


@pytest.mark.parametrize(
    ("first", "second", "limit", "distance"),
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
def test_edit_distance(first: str, second: str, limit: int, distance: int | None) -> None:
    assert edit_distance(first, second, limit) == edit_distance(second, first, limit) == distance


# ---- agreement


def answer(text: str, annotator: str, updated: str = "t") -> Answer:
    made = record(ord(annotator[0]), text, annotator=annotator, updated=updated, sha256="same")
    return Answer(made, made.values, False)


A, B, C = answer("a red fox", "a", "t1"), answer("a red fox in snow", "b", "t3"), answer("two cats", "c", "t4")


def test_agreement_is_the_mean_over_pairs_of_different_people() -> None:
    agreement = measure_agreement([A, B, C, answer("alone", "a")])
    assert agreement.images == 1
    assert agreement.pairs[-1].token_f1 == pytest.approx(2 * 3 / 8)
    assert agreement.token_f1 == pytest.approx(sum(pair.token_f1 for pair in agreement.pairs) / len(agreement.pairs))
    assert measure_agreement([A]).pairs == [] and measure_agreement([A]).token_f1 == 1.0
    lines = side_by_side(measure_agreement([A, answer("<b>\x1b" + "x " * 300, "c\n")]).pairs[0])
    assert len(lines) < 20 and not any("\x1b" in line or "\n" in line for line in lines)


def test_which_answer_wins() -> None:
    def names(*answers: Answer, **how: object) -> list[str]:
        return [each.record.annotator for each in rank(answers, **how)]  # type: ignore[arg-type]

    assert names(A, B, C)[-1] == "c"  # shares nothing with the others
    assert names(A, B) == ["b", "a"]  # two agree with each other equally: the newest
    assert names(A, B, C, wins="newest") == ["c", "b", "a"]
    assert names(A, B, C, wins="first") == ["a", "b", "c"]
    assert names(A, B, C, prefer=["c", "a"]) == ["c", "a", "b"]
