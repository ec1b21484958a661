"""Mistakes that people can make with the mathematics: each is an InputError that names what is wrong and allowed."""

import math
from collections.abc import Callable

import pytest
import torch

from data.errors import InputError
from tests import analytic
from tests.gaussian_data import DATA, quadrature_noise
from train.ddpm import editing, elbo, guidance, losses, prediction, samplers
from train.ddpm import schedule as schedules
from train.ddpm.editing import Inpainting, Inversion
from train.ddpm.samplers import make_sampler
from train.ddpm.schedule import Schedule

LINEAR, F64 = schedules.linear(1000), torch.float64
DDIM, IMAGES = make_sampler("ddim"), torch.rand(2, 2, 4, 4)


def from_config(**config: object) -> Schedule:
    return schedules.from_diffusers(config, where="m/scheduler_config.json")


def betas(*values: object) -> Schedule:
    return Schedule(torch.tensor(values, dtype=F64))


def interpolate(start: int) -> torch.Tensor:
    pair, share = (IMAGES[0], IMAGES[1]), torch.zeros(2)
    sampler, predict = make_sampler("ddim", count=10), analytic.gaussian_denoiser(LINEAR)
    return editing.interpolate(sampler, predict, LINEAR, pair, share, start, lambda *position: IMAGES)


def bits(x0: torch.Tensor) -> object:
    return elbo.bits_per_dim(analytic.gaussian_denoiser(LINEAR), LINEAR, x0, quadrature_noise)


def learned_range_without_one() -> object:
    predict, noise = analytic.gaussian_denoiser(LINEAR), samplers.seeded_noise(0, 1, (1, 2, 2))
    return samplers.generate(make_sampler("learned-range"), predict, LINEAR, noise.start(), noise)


def clip(low: float, high: float) -> object:
    return prediction.clipped(prediction.x0(lambda x, t: x, LINEAR), low, high)


# what to do, a part of what the error says, a part of what it allows
MISTAKES: list[tuple[Callable[[], object], str, str | None]] = [
    (lambda: schedules.make_schedule("liner", 10), "did you mean 'linear'", "scaled_linear"),
    (lambda: schedules.make_schedule("linear", 10, beta_stop=0.1), "did you mean 'beta_start'", "beta_end"),
    (lambda: schedules.linear(0), "0 steps", "1 or more"),
    (lambda: schedules.make_schedule("linear", 2.5), "2.5 steps", "1 or more"),  # pyright: ignore
    (lambda: schedules.linear(10, 0.0), "step 0 of the noise schedule is 0", "0 < beta < 1"),
    (lambda: betas(0.1, 1.0, 0.5), "step 1 of the noise schedule is 1", "0 < beta < 1"),
    (lambda: betas(0.1, 1.5), "is 1.5", "0 < beta < 1"),
    (lambda: betas(0.1, math.nan), "is nan", "0 < beta < 1"),
    (lambda: betas([0.1], [0.1]), "(2, 1)", "T >= 1"),
    (lambda: schedules.scaled_linear(3, -1e-4), "beta_start -0.0001", "0 < beta < 1"),
    (lambda: schedules.zero_terminal_snr(schedules.linear(1)), "zero terminal SNR", "T >= 2"),
    (lambda: from_config(trained_betas=[]), "(0,)", "T >= 1"),
    (lambda: from_config(beta_schedule="sigmoidal"), "did you mean 'sigmoid'", "linear"),
    (lambda: from_config(beta_start="low"), "cannot be read", None),
    (lambda: from_config(trained_betas="low"), "cannot be read", None),
    (lambda: from_config(num_train_timesteps="1000"), "'1000' steps", "1 or more"),
    (lambda: from_config(beta_schedule=None), "cannot be read", None),
    (lambda: prediction.get_parametrization("epsilon"), "did you mean 'eps'", "x0"),
    (lambda: prediction.get_variance("larg"), "'larg'", "fixed-large"),
    (lambda: clip(1.0, -1.0), "[1, -1]", "low < high"),
    (lambda: losses.huber_deltas("sn", LINEAR, 0.1), "did you mean 'snr'", "constant"),
    (lambda: losses.timestep_weights("min_snr", LINEAR, 5.0, "epsilon"), "did you mean 'min-snr'", "soft-min-snr"),
    (lambda: losses.timestep_weights("min-snr", LINEAR, 5.0, "v"), "prediction type 'v'", "v_prediction"),
    (lambda: losses.get_loss("hubre"), "did you mean 'huber'", "l1"),
    (lambda: make_sampler("dimm"), "did you mean 'ddim'", "heun"),
    (lambda: make_sampler("ddim", etta=1.0), "did you mean 'eta'", "count, spacing, eta"),
    (lambda: make_sampler("ddim", eta=1.5), "eta 1.5", "0 (deterministic)"),
    (lambda: make_sampler("fixed-large", noise_scale=-1.0), "noise_scale -1", "0"),
    (lambda: samplers.Ancestral("fixed"), "did you mean 'fixed-", "fixed-large"),
    (lambda: make_sampler("ddim", count=5, spacing="trail").chain(LINEAR), "did you mean 'trailing'", "leading"),
    (lambda: make_sampler("ddim", count=0).chain(LINEAR), "0 sampling steps", "1 to 1000"),
    (lambda: make_sampler("heun", count=1001).chain(LINEAR), "1001 sampling steps", "1 to 1000"),
    (
        lambda: make_sampler("ddim", count=10, spacing="leading").chain(schedules.zero_terminal_snr(LINEAR)),
        "leaves out the last one",
        "trailing",
    ),
    (learned_range_without_one, "learned none", "fixed-large, fixed-small, beta"),
    (lambda: bits(DATA * 0.1234), "of a grey level off", "8-bit"),
    (lambda: bits(DATA * 3), "from -3 to 3", "8-bit"),
    (lambda: guidance.guide(lambda *_: IMAGES, torch.tensor([0]), 2, math.nan), "nan", "a number"),
    (lambda: Inpainting(DDIM, IMAGES, IMAGES, 0), "0 repeats", "1 or more"),
    (lambda: Inpainting(DDIM, IMAGES, torch.ones(2, 2, 4, 3)), "(2, 2, 4, 3)", "1 along an axis"),
    (lambda: Inpainting(DDIM, IMAGES, torch.ones(4, 4)), "(4, 4)", "1 along an axis"),
    (lambda: Inpainting(make_sampler("naive"), IMAGES, IMAGES), "linear mix", "Gaussian"),
    (lambda: Inversion(refinements=-1), "-1 refinements", "0 or more"),
    (lambda: interpolate(10), "step 10", "0 to 9"),
]


@pytest.mark.parametrize(("make", "what", "allowed"), MISTAKES, ids=[str(each[1]) for each in MISTAKES])
def test_mistakes_are_named(make: Callable[[], object], what: str, allowed: str | None) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert what in caught.value.what and "\n" not in str(caught.value)
    assert allowed is None or allowed in str(caught.value.allowed)


def test_a_scheduler_config_is_named_by_its_file() -> None:
    with pytest.raises(InputError) as caught:
        from_config(beta_schedule="sigmoidal")
    assert caught.value.where == "m/scheduler_config.json"
