"""Intervals hold the truth as often as they say, tests raise false alarms as seldom: closed forms and simulations."""

import math

import numpy as np
import pytest
from scipy import stats

from data.errors import InputError
from data.metrics import distances, statistics
from data.metrics.distances import unbiased_mmd

SIMULATIONS = 400
# what 400 draws of a share of 0.95 (or 0.05) can show: four standard errors
SLACK = 4 * math.sqrt(0.05 * 0.95 / SIMULATIONS)


def prompts_and_seeds(rng: np.random.Generator, mean: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Scores of 25 prompts of 4 seeds: prompts differ (0.5) more than seeds do (0.2)."""
    scores = mean + rng.normal(0, 0.5, (25, 1)) + rng.normal(0, 0.2, (25, 4))
    return scores.ravel(), np.repeat(np.arange(25), 4)


def test_the_interval_over_prompts_is_students() -> None:
    values, clusters = prompts_and_seeds(np.random.default_rng(0))
    found = statistics.mean_interval(values, clusters)
    means = values.reshape(25, 4).mean(axis=1)
    low, high = stats.t.interval(0.95, 24, means.mean(), stats.sem(means))
    assert (found.value, found.low, found.high) == pytest.approx((means.mean(), low, high))
    assert found.excludes(0.0) == (low > 0)
    assert str(statistics.Interval(0.5, 0.25, 0.75)) == "0.5 (0.25 to 0.75)"


def test_an_interval_over_prompts_holds_the_truth_95_times_in_100() -> None:
    rng = np.random.default_rng(1)
    drawn = [prompts_and_seeds(rng) for _ in range(SIMULATIONS)]
    held = [not statistics.mean_interval(*each).excludes(0.3) for each in drawn]
    assert np.mean(held) == pytest.approx(0.95, abs=SLACK)
    per_image = [not statistics.mean_interval(values, np.arange(100)).excludes(0.3) for values, _ in drawn]
    assert np.mean(per_image) < 0.8, "images of a prompt taken for independent ones: far too sure"


def test_leaving_out_one_is_students_for_a_mean_and_holds_for_a_spread() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(2.0, 1.0, 40)
    left_out = statistics.jackknife_interval(lambda keep: float(values[keep].mean()), range(40))
    plain = statistics.mean_interval(values, np.arange(40))
    assert (left_out.low, left_out.high) == pytest.approx((plain.low, plain.high), rel=1e-9)
    held = []
    for _ in range(SIMULATIONS):
        sample = rng.normal(2.0, 1.0, 40)
        interval = statistics.jackknife_interval(lambda keep, sample=sample: math.log(sample[keep].std()), range(40))
        held.append(not interval.excludes(0.0))
    assert np.mean(held) == pytest.approx(0.95, abs=SLACK + 0.02), "log of a deviation, truth 0"


def test_leaving_out_one_holds_for_the_kernel_distance() -> None:
    """A set metric: 30 prompts of 2 images against 60 others, one source shifted by 1 in a direction of 4."""
    rng = np.random.default_rng(3)
    shift, clusters, held = np.array([1.0, 0, 0, 0]), np.repeat(np.arange(30), 2), []
    reference = rng.normal(0, 1, (80, 4))
    big = rng.normal(0, 1, (4000, 4)) + shift
    truth = unbiased_mmd(big, reference)
    for _ in range(100):
        drawn = rng.normal(0, 1, (60, 4)) + shift
        interval = statistics.jackknife_interval(
            lambda keep, drawn=drawn: unbiased_mmd(drawn[keep], reference), clusters
        )
        held.append(not interval.excludes(truth))
    assert np.mean(held) >= 0.88, "0.95 less four standard errors of 100 draws"


def test_wilson() -> None:
    found = statistics.wilson_interval(8, 10)
    assert (found.low, found.high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6), "Newcombe 1998's method 3"
    assert statistics.wilson_interval(0, 12).low == 0.0 < statistics.wilson_interval(0, 12).high < 0.3
    rng = np.random.default_rng(4)
    held = [not statistics.wilson_interval(int(k), 30).excludes(0.7) for k in rng.binomial(30, 0.7, SIMULATIONS)]
    assert np.mean(held) == pytest.approx(0.95, abs=SLACK + 0.01)


def test_redrawn_splits_are_wider_by_the_shared_images() -> None:
    differences = np.array([0.02, 0.03, 0.01, 0.05, 0.04])
    found = statistics.resampled_interval(differences, train=800, test=200)
    plain = statistics.mean_interval(differences, range(5))
    wider = math.sqrt((1 / 5 + 0.25) / (1 / 5))
    assert (found.high - found.value) == pytest.approx(wider * (plain.high - plain.value))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: statistics.mean_interval(np.ones(4), np.zeros(4)), "an interval over 1 prompts; allowed: 2 or more"),
        (
            lambda: statistics.jackknife_interval(lambda _: 0.0, [1, 2]),
            "leaving out one of 2 prompts; allowed: 3 prompts",
        ),
        (lambda: statistics.wilson_interval(3, 2), "3 of 2; allowed: 0 to all of 1 or more"),
        (lambda: statistics.resampled_interval(np.ones(1), 8, 2), "an interval over 1 repeats; allowed: 2 or more"),
        (lambda: statistics.sign_flip_test(np.ones(4), np.zeros(4)), "a test over 1 prompts; allowed: 2 or more"),
        (
            lambda: statistics.equivalence_test(np.ones(4), np.zeros(4), 0.1),
            "a test over 1 prompts; allowed: 2 or more",
        ),
    ],
)
def test_too_little_to_say(call: object, text: str) -> None:
    assert callable(call)
    with pytest.raises(InputError) as caught:
        call()
    assert text in str(caught.value)


def test_exchanging_rows_raises_5_false_alarms_in_100() -> None:
    rng = np.random.default_rng(5)
    values = [
        statistics.kernel_two_sample_test(rng.normal(0, 1, (15, 3)), rng.normal(0, 1, (20, 3)), draws=99, seed=seed)
        for seed in range(SIMULATIONS)
    ]
    assert np.mean(np.array(values) <= 0.05) == pytest.approx(0.05, abs=SLACK)
    assert stats.kstest(values, "uniform").pvalue > 1e-3, "p-values are spread evenly when nothing is different"
    assert statistics.kernel_two_sample_test(rng.normal(0, 1, (30, 3)), rng.normal(1, 1, (30, 3))) <= 0.002


def test_the_exchanged_distance_is_the_distance() -> None:
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(7, 3)), rng.normal(1, 1, size=(9, 3))
    pooled = np.concatenate([x, y])
    gram = distances.polynomial_kernel(pooled, pooled)
    np.fill_diagonal(gram, 0.0)
    sides = np.array([[1.0] * 7 + [0.0] * 9])
    assert statistics.permuted_mmd(gram, sides)[0] == pytest.approx(unbiased_mmd(x, y))


def test_flipping_signs() -> None:
    assert statistics.sign_flip_test(np.array([1.0, 2.0, 3.0]), range(3)) == pytest.approx(2 / 8), "all up or all down"
    rng = np.random.default_rng(7)
    exact = [statistics.sign_flip_test(rng.normal(0, 1, 8), range(8)) for _ in range(SIMULATIONS)]
    assert np.mean(np.array(exact) <= 0.05) <= 0.05 + SLACK
    drawn = [
        statistics.sign_flip_test(rng.normal(0, 1, 20), range(20), draws=199, seed=seed) for seed in range(SIMULATIONS)
    ]
    assert np.mean(np.array(drawn) <= 0.05) == pytest.approx(0.05, abs=SLACK)
    assert statistics.sign_flip_test(np.full(20, 1.0) + rng.normal(0, 0.1, 20), range(20)) < 0.001


def test_equal_for_all_purposes() -> None:
    rng = np.random.default_rng(8)
    assert statistics.equivalence_test(rng.normal(0, 0.01, 30), range(30), 0.1) < 1e-6
    assert statistics.equivalence_test(rng.normal(0, 1.0, 5), range(5), 0.1) > 0.2, "badly known is not equal"
    at_margin = [statistics.equivalence_test(rng.normal(0.5, 1.0, 30), range(30), 0.5) for _ in range(SIMULATIONS)]
    assert np.mean(np.array(at_margin) <= 0.05) == pytest.approx(0.05, abs=SLACK)
    assert statistics.equivalence_test(np.zeros(3), range(3), 0.1) == 0.0
    assert statistics.equivalence_test(np.full(3, 0.2), range(3), 0.1) == 1.0


def test_holm() -> None:
    assert statistics.holm_correction({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert statistics.holm_correction([0.9, 0.8]) == {"0": 1.0, "1": 1.0}
    rng = np.random.default_rng(9)
    alarms = [min(statistics.holm_correction(list(rng.uniform(size=6))).values()) <= 0.05 for _ in range(SIMULATIONS)]
    assert np.mean(alarms) == pytest.approx(0.05, abs=SLACK)
