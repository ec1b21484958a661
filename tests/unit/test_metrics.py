"""Distances between sets of features: closed forms, hand-made sets, and the libraries that people use."""

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from data import features as extracting
from data.errors import InputError
from data.features import make_extractor
from data.metrics import distances as frechets
from data.metrics import distances as kernels
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
    assert frechets.frechet_distance(REAL, DRAWN[:7]) > 0


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
        kernels.kernel_distance(REAL, DRAWN[:19])


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
