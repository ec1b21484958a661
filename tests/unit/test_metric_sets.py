"""Diversity, copies and adherence: closed forms, the packages others use, planted faults, and what they refuse."""

import math

import numpy as np
import pytest
from vendi_score import vendi as reference_vendi

from data.errors import InputError
from data.metrics import adherence, distances, memorization


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
