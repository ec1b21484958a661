"""Intervals, distances and flipped signs against closed forms; the studies' verdicts on made-up pictures."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from infer.comparison import studies
from infer.comparison.studies import Scorer, Sweep


def grey(level: int, side: int = 8) -> Image.Image:
    return Image.new("RGB", (side, side), (level, level, level))


def test_an_interval_is_students() -> None:
    values = [0.1, 0.4, 0.2, 0.5]
    found = studies.interval(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((0.3, low, high))
    assert [studies.interval(each).sign for each in ([1.0, -1.1], values, [-1.0, -1.01])] == [0, 1, -1]
    assert math.isnan(studies.interval([1.0]).low)


def test_distances_are_root_mean_squares_and_do_not_see_the_size() -> None:
    assert studies.distance(grey(0), grey(255, 32)) == pytest.approx(1.0)
    assert studies.distance(grey(0), grey(51)) == pytest.approx(0.2)
    assert studies.mean_distance([grey(0), grey(51), grey(102)]) == pytest.approx((0.2 + 0.2 + 0.4) / 3)
    assert studies.mean_distance([grey(0)]) == 0


def test_flipping_signs_counts_every_flip() -> None:
    """In one dimension: the share of sign patterns whose sum is at least as large."""
    rows = np.array([[1.0], [2.0], [3.0], [-0.5]])
    sums = [
        abs(sum(s * r for s, r in zip(signs, rows[:, 0], strict=True)))
        for signs in itertools.product((1, -1), repeat=4)
    ]
    assert studies.flip_test(rows) == np.mean(np.array(sums) >= 5.5)
    assert studies.flip_test(np.ones((6, 3))) == 2 / 2**6, "the least there is"
    draw = np.random.default_rng(0)
    levels = [studies.flip_test(draw.normal(size=(8, 5))) for _ in range(200)]
    assert 0.01 < np.mean(np.array(levels) <= 0.05) < 0.11, "five in a hundred by chance"
    many = studies.flip_test(draw.normal(size=(20, 2)) + 1.5)
    assert 0 < many < 0.01


def sweep(
    values: Sequence[int], level: Mapping[tuple[str, int], int], score: Callable[[str, int, float], float]
) -> Sweep:
    """Pictures of one grey, by prompt and value; another seed is 100 brighter."""
    prompts = {"simple": ["a"], "complex": ["b b b b b"]}
    keys = itertools.product([p for group in prompts.values() for p in group], (1, 2), values)
    pictures: dict[studies.Key, Image.Image] = {(p, s, v): grey(level[p, v] + 100 * (s - 1)) for p, s, v in keys}
    return Sweep(prompts, (1, 2), values, pictures, {key: score(*key) for key in pictures}, "judge")


LEVELS = {
    ("a", 10): 20,
    ("a", 20): 50,
    ("a", 50): 51,
    ("b b b b b", 10): 0,
    ("b b b b b", 20): 51,
    ("b b b b b", 50): 102,
}


def test_curves_of_change() -> None:
    found = sweep((10, 20, 50), LEVELS, lambda p, s, v: 0.5)
    assert [point.mean for point in found.to_last(["a"])] == pytest.approx([31 / 255, 1 / 255, 0])
    assert [point.mean for point in found.per_unit(["a"])] == pytest.approx([3 / 255, 1 / 255 / 30])
    assert found.between_seeds(["a"]) == pytest.approx([100 / 255] * 3)
    assert found.middle == 20
    assert "simple from 20 on, complex from 50 on" in studies.steps_verdict(found)


@pytest.mark.parametrize(
    ("drop", "said"),
    [
        (0.0, "There is no evidence here that simple prompts get worse with many steps"),
        (-0.3, "Simple prompts do get worse with many steps here"),
        (0.3, "Simple prompts get better, not worse, with many steps here"),
    ],
)
def test_the_claim_of_the_thesis_gets_its_verdict(drop: float, said: str) -> None:
    verdict = studies.steps_verdict(
        sweep((10, 20, 50), LEVELS, lambda p, s, v: 0.5 + (0.001 * s * (-1) ** s + drop) * (v == 50))
    )
    assert verdict.startswith(said)
    assert "from 20 to 50 steps" in verdict and "(judge)" in verdict and "2 seeds) for simple prompts" in verdict


def test_guidance_is_told_as_hold_and_freedom() -> None:
    levels = {(p, v): 10 for p in ("a", "b b b b b") for v in (1, 8, 20)}
    verdict = studies.guidance_verdict(sweep((1, 8, 20), levels, lambda p, s, v: 0.1 * (v >= 8) + 0.001 * s))
    assert "from 1 to 8 the similarity (judge) changes by +0.100" in verdict
    assert "0.392 at 1, 0.392 at 8, 0.392 at 20" in verdict


class Brightness(Scorer):
    """A judge that sees how bright an image is."""

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        return np.array([[studies.to_pixels(image).mean()] for image in images])


@pytest.mark.parametrize(("shift", "said"), [(40, "a significant difference"), (0, "no significant difference")])
def test_a_trigger_is_held_against_other_seeds(shift: int, said: str) -> None:
    """Seeds are 10 grey levels apart; the word adds `shift`, or 3 up or down by turns."""
    seeds = range(8)
    move = {seed: shift or 3 * (-1) ** seed for seed in seeds}
    pictures = {
        ("a", seed, on): grey(50 + 10 * seed + (move[seed] if on else 0)) for seed in seeds for on in (False, True)
    }
    (effect,) = studies.trigger_effects(["a"], list(seeds), pictures, Brightness())
    assert effect.pair.mean == pytest.approx((shift or 3) / 255)
    assert effect.seeds == pytest.approx(30 / 255), "the mean gap of eight places in a row: 3 steps"
    assert f"'x' makes {said}" in studies.trigger_verdict("x", [effect], 8)
    assert "no p below 0.125 is possible" in studies.trigger_verdict("x", [effect], 4)
