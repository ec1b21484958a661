"""Guidance, inpainting, inversion and interpolation: their limits are other things that are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from data import rng
from tests import analytic
from tests.gaussian_data import close, moments
from train.ddpm import diffusion, editing, guidance, prediction, samplers
from train.ddpm import schedule as schedules
from train.ddpm.editing import Inpainting, Inversion
from train.ddpm.samplers import FINISHED, SeededNoise, final_images

F64 = torch.float64
LINEAR = schedules.linear(200, 5e-4, 0.1)  # as much noise at its end as 1000 steps have
SHAPE = (2, 4, 4)
NOISE = SeededNoise((11, 12), SHAPE, dtype=F64)
PICTURES = torch.stack([rng.normal(SHAPE, "picture", i).double().tanh() for i in range(2)])


# ---------------------------------------------------------------- test 21: guidance

CLASS_MEANS = torch.tensor([-0.5, 0.5, 0.0], dtype=F64)  # the last is what is said without a class


def asked(xt: Tensor, t: Tensor, classes: Tensor) -> Tensor:
    """A network with classes that answers eps exactly, for images around the mean of their class."""
    A = LINEAR.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    off = xt - A.sqrt() * CLASS_MEANS[classes].reshape(-1, 1, 1, 1)
    return (1 - A).sqrt() / (A * 0.25 + 1 - A) * off


def test_21_guidance_is_linear_in_its_scale() -> None:
    classes, t, xt = torch.tensor([0, 1]), torch.tensor([5, 150]), NOISE("x")
    with_class, without = asked(xt, t, classes), asked(xt, t, torch.tensor([2, 2]))
    for scale in (0.0, 0.5, 1.0, 3.0, -1.0):
        found = guidance.guide(asked, classes, no_class=2, scale=scale)(xt, t)
        close(found, without + scale * (with_class - without), atol=1e-14)
    assert torch.equal(guidance.guide(asked, classes, 2, 0.0)(xt, t), without)
    close(guidance.guide(asked, classes, 2, 1.0)(xt, t), asked(xt, t, classes), atol=1e-14)


def test_21_guided_images_move_along_the_class() -> None:
    means = {}
    for scale in (0.0, 1.0, 2.0):
        predict = prediction.eps(guidance.guide(asked, torch.ones(202, dtype=torch.int64), 2, scale), LINEAR)
        means[scale] = moments(samplers.make_sampler("ddim"), predict, LINEAR)[0]
    assert means[0.0] == pytest.approx(0, abs=1e-12)
    assert means[1.0] == pytest.approx(0.5, abs=0.05)
    assert means[2.0] == pytest.approx(2 * means[1.0], rel=1e-9)


def test_21_guidance_leaves_a_learned_variance_to_the_class() -> None:
    def two_heads(xt: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        return torch.cat([asked(xt, t, classes), classes.reshape(-1, 1, 1, 1).expand_as(xt).to(xt.dtype)], dim=1)

    found = guidance.guide(two_heads, torch.tensor([0, 1]), 2, 3.0)(NOISE("x"), torch.tensor([5, 5]))
    assert found.shape == (2, 4, 4, 4)
    assert found[:, 2:].flatten(1).unique(dim=1).flatten().tolist() == [0.0, 1.0]


def test_classes_are_hidden_at_their_rate() -> None:
    classes = torch.arange(1000) % 10
    found = guidance.drop_classes(classes, (torch.arange(1000) + 0.5) / 1000, rate=0.1, no_class=10)
    assert (found == 10).sum() == 100
    assert torch.equal(found[100:], classes[100:])


# ---------------------------------------------------------------- test 21: inpainting


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("name", ["fixed-large", "ddim", "heun", "dpm++"])
def test_21_a_full_mask_returns_the_image(name: str, repeats: int) -> None:
    inpainting = Inpainting(samplers.make_sampler(name, count=20), PICTURES, torch.ones_like(PICTURES), repeats)
    found = samplers.generate(inpainting, analytic.gaussian_denoiser(LINEAR, std=0.5), LINEAR, NOISE.start(), NOISE)
    assert torch.equal(found, PICTURES)


@pytest.mark.parametrize("name", ["fixed-large", "ddim", "heun", "dpm++"])
def test_21_an_empty_mask_is_drawing_without_one(name: str) -> None:
    sampler, predict = samplers.make_sampler(name, count=20), analytic.gaussian_denoiser(LINEAR, std=0.5)
    found = samplers.generate(
        Inpainting(sampler, PICTURES, torch.zeros(1, 1, 4, 4)), predict, LINEAR, NOISE.start(), NOISE
    )
    assert torch.equal(found, samplers.generate(sampler, predict, LINEAR, NOISE.start(), NOISE))


def test_21_the_drawn_half_follows_the_known_half_when_steps_are_repeated() -> None:
    # two pixels that are always equal, x = (s, s): the right pixel to draw beside a known 0.8 is 0.8
    tied = Pair(0.5)
    n = 200
    noise = SeededNoise((1,), (n, 2), dtype=F64)
    picture, mask = torch.full((n, 1, 1, 2), 0.8, dtype=F64), torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)

    def of_shape(*position: int | str) -> Tensor:
        return noise(*position).reshape(n, 1, 1, 2)

    means = {}
    for repeats in (1, 10):
        inpainting = Inpainting(samplers.make_sampler("fixed-small", count=40), picture, mask, repeats)
        found = samplers.generate(inpainting, tied.denoiser, LINEAR, of_shape("start"), of_shape)
        assert torch.equal(found[..., 0], picture[..., 0])
        means[repeats] = found[..., 1].mean().item()
    assert abs(means[10] - 0.8) < abs(means[1] - 0.8)
    assert means[10] == pytest.approx(0.8, abs=0.1)


class Pair:
    """Images (s, s) with s ~ N(0, std^2): the exact denoiser."""

    def __init__(self, std: float) -> None:
        self.std = std

    def denoiser(self, xt: Tensor, t: Tensor) -> prediction.Prediction:
        A = LINEAR.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        # two looks at one s: precision 1 / std^2 + 2 A / (1 - A)
        s = A.sqrt() / (1 - A) * xt.sum(-1, keepdim=True) / (1 / self.std**2 + 2 * A / (1 - A))
        return prediction.x0.predict(LINEAR, xt, s.expand_as(xt), t)


# ---------------------------------------------------------------- inversion


def test_inversion_and_back_improves_with_steps_and_is_exact_when_refined() -> None:
    predict, errors = analytic.gaussian_denoiser(LINEAR, 0.2, 0.5), {}
    for count, refinements in ((50, 0), (200, 0), (50, 60)):
        ddim = samplers.make_sampler("ddim", count=count)
        up = Inversion(count=count, refinements=refinements)
        x_T = final_images(up.steps(predict, LINEAR, PICTURES))
        back = samplers.generate(ddim, predict, LINEAR, x_T, NOISE)
        errors[count, refinements] = (back - PICTURES).abs().max().item()
    assert errors[200, 0] < errors[50, 0] / 3
    assert errors[50, 60] < 1e-9


def test_inversion_shows_every_state_and_ends_in_noise() -> None:
    predict = analytic.gaussian_denoiser(LINEAR, 0.2, 0.5)
    states = list(Inversion(count=100).steps(predict, LINEAR, PICTURES))
    assert [state.t for state in states] == [
        FINISHED,
        *samplers.make_sampler("ddim", count=100).chain(LINEAR).timesteps,
    ]
    assert states[0].xt is PICTURES
    assert states[0].x0 is PICTURES
    # a linear flow: the gain of the way up is one over that of the way down, to the error of the steps
    gain = (states[-1].xt[0] - states[-1].xt[1]) / (PICTURES[0] - PICTURES[1])
    assert gain.mean().item() == pytest.approx(1 / analytic.flow_gain(LINEAR, 0.5), rel=0.1)
    assert gain.std() < 1e-9


def test_inversion_at_zero_terminal_snr_is_finite() -> None:
    schedule = schedules.zero_terminal_snr(LINEAR)
    x_T = final_images(Inversion(count=100).steps(analytic.gaussian_denoiser(schedule, std=0.5), schedule, PICTURES))
    assert x_T.isfinite().all()


# ---------------------------------------------------------------- interpolation


@pytest.mark.parametrize("name", ["fixed-small", "ddim"])
def test_21_interpolation_ends_in_the_two_reconstructions(name: str) -> None:
    sampler, predict = samplers.make_sampler(name, count=50), analytic.gaussian_denoiser(LINEAR, std=0.5)
    one_seed = SeededNoise((4, 4, 4), SHAPE, dtype=F64)
    pair = (PICTURES[0], PICTURES[1])
    share = torch.tensor([0.0, 0.5, 1.0])
    found = editing.interpolate(sampler, predict, LINEAR, pair, share, 25, one_seed)
    for row, picture in ((0, 0), (2, 1)):
        alone = (PICTURES[picture], PICTURES[picture])  # noised and drawn again, without a second image
        again = editing.interpolate(sampler, predict, LINEAR, alone, torch.zeros(3), 25, one_seed)
        close(found[row], again[row], atol=1e-14)
    close(found[1], (found[0] + found[2]) / 2, atol=1e-12)  # a linear denoiser, the same noise
    near = editing.interpolate(sampler, predict, LINEAR, pair, share, 0, one_seed)
    assert (near[0] - PICTURES[0]).abs().max() < 0.1, "little noise, little lost"


def test_a_mix_is_of_one_shape() -> None:
    with pytest.raises(AssertionError, match="one shape"):
        diffusion.linear_mix(PICTURES, PICTURES[:1], torch.zeros(2))
