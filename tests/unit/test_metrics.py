"""Metrics of feature sets: closed forms, simulations, planted faults, and the libraries that people use."""

import math

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from scipy import stats
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd
from vendi_score import vendi as reference_vendi

from data import features as extracting
from data.errors import InputError
from data.features import make_extractor
from data.metrics import adherence, distances, memorization, statistics
from data.metrics.distances import (
    frechet_distance,
    gaussian_frechet_distance,
    kernel_distance,
    precision_recall,
    unbiased_mmd,
)
from train.ddpm import image_sets

RNG = np.random.default_rng(5)
REAL, DRAWN = RNG.normal(size=(200, 6)), RNG.normal(0.3, 1.4, size=(150, 6))


def test_23_a_set_is_at_no_distance_from_itself() -> None:
    assert frechet_distance(REAL, REAL) < 1e-9
    assert precision_recall(REAL, REAL).precision == precision_recall(REAL, REAL).recall == 1.0


def test_23_the_distance_of_two_gaussians() -> None:
    """Diagonal: |m1 - m2|^2 + sum (s1 - s2)^2. Turned: the same."""
    turn = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
    s1, s2, gap = np.array([1.0, 2, 3]), np.array([2.0, 2, 0.5]), np.array([1.0, -2, 0])
    expected = (gap**2).sum() + ((s1 - s2) ** 2).sum()
    covariances = [turn @ np.diag(s**2) @ turn.T for s in (s1, s2)]
    found = gaussian_frechet_distance(np.zeros(3), covariances[0], gap @ turn.T, covariances[1])
    assert found == pytest.approx(expected, rel=1e-12)


def test_frechet_is_torchmetrics_and_symmetric() -> None:
    moments = [(torch.tensor(s.mean(0)), torch.tensor(np.cov(s, rowvar=False))) for s in (REAL, DRAWN)]
    theirs = float(_compute_fid(*moments[0], *moments[1]))
    assert frechet_distance(REAL, DRAWN) == pytest.approx(theirs, rel=1e-9)
    assert frechet_distance(DRAWN, REAL) == pytest.approx(theirs, rel=1e-9)


def test_frechet_survives_a_feature_that_never_changes() -> None:
    flat = np.concatenate([REAL, np.ones((200, 1))], axis=1)
    assert frechet_distance(flat, flat) < 1e-9
    assert frechet_distance(flat[:100], flat[100:]) == pytest.approx(frechet_distance(REAL[:100], REAL[100:]), rel=1e-9)


def test_23_too_few_images_for_a_frechet_distance() -> None:
    with pytest.raises(InputError, match=r"of 6 images in 6 features; allowed: 7 images or more"):
        frechet_distance(REAL, DRAWN[:6])
    assert frechet_distance(REAL, DRAWN[:7]) > 0


def test_the_kernel_distance_is_unbiased_and_torchmetrics() -> None:
    theirs = float(poly_mmd(torch.tensor(REAL[:150]), torch.tensor(DRAWN), degree=3, gamma=None, coef=1.0))
    assert unbiased_mmd(REAL[:150], DRAWN) == pytest.approx(theirs, rel=1e-9)
    halves = [unbiased_mmd(x[:20], x[20:]) for x in (RNG.normal(size=(40, 4)) for _ in range(400))]
    assert abs(np.mean(halves)) < 3 * np.std(halves) / 20  # of one distribution: 0 on average, often below
    assert min(halves) < 0


def test_a_kernel_distance_has_an_error() -> None:
    far = kernel_distance(REAL, DRAWN)
    assert far.value == pytest.approx(unbiased_mmd(REAL, DRAWN))
    near = kernel_distance(REAL[:100], REAL[100:])
    assert abs(near.value) < 4 * near.error < far.value
    assert str(far).startswith(f"{far.value:.5f} ±")
    with pytest.raises(InputError, match="a kernel distance of 19 images; allowed: 20 or more"):
        kernel_distance(REAL, DRAWN[:19])


def test_23_manifolds_by_hand() -> None:
    """Real at 0, 1, 2, 3 with k = 1: balls of radius 1. Drawn at 0.5 twice and 10 and 10.5."""
    real, drawn = (np.array(x, float)[:, None] for x in ([0, 1, 2, 3], [0.5, 0.6, 10, 10.5]))
    found = precision_recall(real, drawn, k=1)
    assert found.precision == 0.5  # two of four drawn ones are near a real one
    assert found.recall == 0.0  # the drawn balls at 0.5 and 0.6 reach 0.1
    assert found.coverage == 0.5  # 0 and 1 have a drawn one within 1
    assert found.density == 1.0  # 0.5 lies in two real balls, 0.6 too: 4 / (1 * 4)
    with pytest.raises(InputError, match="precision and recall of 3 images; allowed: 4 or more"):
        precision_recall(real, drawn[:3])


@pytest.mark.parametrize("k", [3, 5])
def test_manifolds_are_prdc(k: int) -> None:
    theirs = compute_prdc(REAL, DRAWN, nearest_k=k)
    assert vars(precision_recall(REAL, DRAWN, k=k)) == pytest.approx(theirs)


def test_23_a_distance_does_not_depend_on_how_images_were_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    images = image_sets.load_digit_images(8).select(range(120)).images()
    extractor = make_extractor("descriptors", None)
    found = []
    for batch in (32, 7, 120):
        monkeypatch.setattr(extracting, "BATCH_SIZE", batch)
        rows = extracting.extract_features(extractor, images, cache=False)
        found.append(frechet_distance(rows[:60], rows[60:]))
    assert found[0] > 0
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-9)


# ---- diversity, copies and adherence


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_vendi_counts_unlike_images() -> None:
    assert distances.vendi_score(np.eye(7)) == pytest.approx(7.0)
    assert distances.vendi_score(np.ones((5, 3))) == pytest.approx(1.0)
    assert distances.vendi_score(np.repeat(np.eye(4), 3, axis=0)) == pytest.approx(4.0), "copies add nothing"


@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")
@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_vendi_is_the_packages(shape: tuple[int, int], rng: np.random.Generator) -> None:
    x = distances.unit_rows(rng.normal(size=shape))
    assert distances.vendi_score(x) == pytest.approx(reference_vendi.score_K(x @ x.T), rel=1e-6)


def test_mean_distance(rng: np.random.Generator) -> None:
    assert distances.mean_pairwise_distance(np.array([[1.0, 0], [0, 2.0]])) == pytest.approx(1.0)
    x = distances.unit_rows(rng.normal(size=(9, 4)))
    pairs = [1 - x[i] @ x[j] for i in range(9) for j in range(i)]
    assert distances.mean_pairwise_distance(x) == pytest.approx(np.mean(pairs))


def test_planted_copies_are_seen(rng: np.random.Generator) -> None:
    train, held_out = rng.normal(size=(300, 16)), rng.normal(size=(100, 16))
    fresh = rng.normal(size=(200, 16))
    planted = fresh.copy()
    planted[:60] = train[:60] + rng.normal(0, 0.01, (60, 16))
    clean, copied = memorization.find_copies(train, held_out, fresh), memorization.find_copies(train, held_out, planted)
    assert clean.above < 0.05 < 0.29 < copied.above
    assert copied.nearest[:60].tolist() == list(range(60))
    assert memorization.authenticity(train, fresh) == pytest.approx(memorization.authenticity(train, held_out), abs=20)
    assert memorization.authenticity(train, planted) == pytest.approx(
        0.7 * memorization.authenticity(train, fresh), abs=4
    )
    assert abs(memorization.data_copying_score(train, held_out, fresh)) < 3
    assert memorization.data_copying_score(train, held_out, planted) < -3


def test_the_copying_score_is_standard_normal_when_nothing_is_copied(rng: np.random.Generator) -> None:
    scores = [
        memorization.data_copying_score(*(rng.normal(size=(count, 3)) for count in (40, 30, 30))) for _ in range(200)
    ]
    assert abs(np.mean(scores)) < 0.3
    assert np.std(scores) == pytest.approx(1.0, abs=0.25)


def test_every_copy_exact(rng: np.random.Generator) -> None:
    train = rng.normal(size=(20, 5))
    assert memorization.authenticity(train, train[:10]) == 0.0
    assert memorization.find_copies(train, rng.normal(size=(10, 5)), train).likeness == pytest.approx(np.ones(20))


def test_membership(rng: np.random.Generator) -> None:
    told = memorization.membership_inference(rng.normal(0, 1, 500), rng.normal(3, 1, 500))
    assert told.auc == pytest.approx(0.983, abs=0.01), "Phi(3 / sqrt 2)"
    assert told.found == pytest.approx(0.75, abs=0.1), "Phi(3 - 2.326)"
    blind = memorization.membership_inference(rng.normal(0, 1, 2000), rng.normal(0, 1, 2000))
    assert blind.auc == pytest.approx(0.5, abs=0.03)
    assert blind.found == pytest.approx(0.01, abs=0.01)
    assert memorization.membership_inference(np.ones(5), np.ones(5)).auc == 0.5, "ties are a half"


def test_own_text_first(rng: np.random.Generator) -> None:
    words = np.eye(6)
    images = np.concatenate([words, -words])
    own = np.array([*range(6), *range(6)])
    assert adherence.r_precision(images, words, own).tolist() == [True] * 6 + [False] * 6
    assert adherence.r_precision(np.ones((1, 6)), words, np.array([2])).tolist() == [False], "a tie is not first"
    many = rng.normal(size=(300, 32))
    chance = adherence.r_precision(rng.normal(size=(300, 32)), many, np.arange(300)).mean()
    assert chance < 0.05, "1 in 100"
    assert adherence.clip_text_similarity(words, words) == pytest.approx(np.ones(6))


def test_candidates_do_not_depend_on_who_asks(rng: np.random.Generator) -> None:
    words, shown = rng.normal(size=(250, 8)), rng.normal(size=(250, 8))
    own = np.arange(250)
    both = adherence.r_precision(shown, words, own)
    assert np.array_equal(adherence.r_precision(shown[10:20], words, own[10:20]), both[10:20])


def test_direction() -> None:
    before, after = np.zeros((3, 2)), np.array([[2.0, 0], [0, 1.0], [-1.0, 0]])
    said_before, said_after = np.zeros((3, 2)), np.tile([1.0, 0.0], (3, 1))
    assert adherence.directional_similarity(before, after, said_before, said_after) == pytest.approx([1.0, 0.0, -1.0])


def test_frechet_of_few_is_the_full_one(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(60, 6)), rng.normal(0.5, 2.0, size=(80, 6))
    assert distances.small_sample_frechet_distance(x, y) == pytest.approx(distances.frechet_distance(x, y), rel=1e-8)


def test_frechets_bias_falls_with_the_images(rng: np.random.Generator) -> None:
    floor = [distances.frechet_bias(rng.normal(size=(count, 64))) for count in (40, 160, 640)]
    assert floor[0] > 2 * floor[1] > 4 * floor[2] > 0


def test_cmmd_is_unbiased_and_about_10_times_the_squared_distance_of_means(rng: np.random.Generator) -> None:
    def features(middle: float) -> np.ndarray:
        return distances.unit_rows(np.array([1.0, middle, 0, 0]) + rng.normal(0, 0.2, (300, 4)))

    assert np.mean([distances.cmmd(features(0), features(0)) for _ in range(20)]) == pytest.approx(0, abs=0.05)
    x, y = features(0), features(1)
    assert distances.cmmd(x, y) == pytest.approx(10 * float(((x.mean(0) - y.mean(0)) ** 2).sum()), rel=0.02)


NAN = np.array([[0.0, 1.0], [math.nan, 1.0], [2.0, 2.0]])


@pytest.mark.parametrize(
    ("call", "allowed"),
    [
        (lambda: distances.vendi_score(np.empty((0, 4))), "1 or more"),
        (lambda: distances.mean_pairwise_distance(np.ones((1, 4))), "2 or more"),
        (lambda: distances.vendi_score(NAN), None),
        (lambda: memorization.authenticity(np.ones((3, 2)), np.ones((3, 5))), None),
        (lambda: memorization.find_copies(np.ones((3, 2)), np.ones((4, 2)), np.ones((3, 2))), "5 or more"),
        (lambda: memorization.membership_inference(np.ones(1), np.ones(3)), "2 or more on each side"),
        (lambda: adherence.directional_similarity(*(np.ones((1, 2)) for _ in range(4))), None),
        (lambda: distances.cmmd(np.ones((1, 2)), np.ones((3, 2))), "2 or more"),
    ],
)  # fmt: skip
def test_unusable_features(call: object, allowed: str | None) -> None:
    assert callable(call)
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.allowed == allowed
    assert allowed or caught.value.fix


# ---- intervals hold the truth as often as they say, tests raise false alarms as seldom


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
