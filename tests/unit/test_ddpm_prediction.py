"""What a network says, in every form: one answer read in four parametrizations, clipping, and the noise's position."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from data import rng
from data.errors import InputError
from train.ddpm import diffusion, prediction
from train.ddpm import schedule as schedules
from train.ddpm.samplers import SeededNoise, seeded_noise
from train.ddpm.schedule import Schedule

EVERY = sorted(set(schedules.SCHEDULES) - {"quadratic"})
SHAPE = (6, 3, 4, 5)
STEPS = torch.tensor([0, 1, 9, 250, 750, 999])


def sample(name: str) -> Tensor:
    return rng.normal(SHAPE, "prediction tests", name).double()


def close(found: Tensor, expected: Tensor, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def answered(kind: prediction.Parametrization, schedule: Schedule) -> tuple[prediction.Prediction, Tensor, Tensor]:
    """The prediction of a network that answers exactly right, and the x_0 and eps that it was right about."""
    x0, eps = sample("x0"), sample("eps")
    xt = diffusion.add_noise(schedule, x0, eps, STEPS)
    return kind(lambda xt, t: kind.target(schedule, x0, eps, t), schedule)(xt, STEPS), x0, eps


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("kind", prediction.PARAMETRIZATIONS)
def test_03_every_parametrization_says_the_same(kind: str, name: str) -> None:
    schedule = schedules.make_schedule(name, 1000)
    seen, x0, eps = answered(prediction.get_parametrization(kind), schedule)
    mean = diffusion.posterior(schedule, x0, seen.xt, STEPS)[0]
    # a form that divides by a small number makes rounding grow by it: eps by sqrt(abar), 1.5e-5 at the cosine's end;
    # the mean by the weight of x_0 in it for x_0, 1e-7 there, and by beta for eps, 1e-4 at the beginning
    smallest = {"eps": schedule.sqrt_alphas_cumprod, "mean": schedule.posterior_mean_coef_x0.minimum(schedule.betas)}
    scale = diffusion.gather(smallest.get(kind, torch.ones(1000, dtype=torch.float64)), STEPS, x0)
    close(scale * seen.x0, scale * x0, atol=1e-11)
    close(scale * seen.eps, scale * eps, atol=1e-11)
    close(scale * seen.v, scale * diffusion.velocity(schedule, x0, eps, STEPS), atol=1e-11)
    close(seen.mean, mean, atol=1e-10)
    close(diffusion.add_noise(schedule, seen.x0, seen.eps, STEPS), seen.xt, atol=1e-9)
    assert seen.fraction is None


@pytest.mark.parametrize("kind", prediction.PARAMETRIZATIONS)
def test_17_at_zero_terminal_snr_all_but_eps_find_the_picture(kind: str) -> None:
    schedule = schedules.zero_terminal_snr(schedules.linear(1000))
    if kind == "eps":
        with pytest.raises(InputError, match=r"zero terminal SNR.*; allowed: v or x0 prediction"):
            prediction.get_parametrization(kind)(lambda xt, t: xt, schedule)
        return
    seen, x0, eps = answered(prediction.get_parametrization(kind), schedule)
    close(seen.x0[-1], x0[-1], atol=1e-10)
    close(seen.eps[-1], eps[-1], atol=1e-10)


def test_clipping_keeps_eps_in_agreement() -> None:
    schedule, xt = schedules.linear(1000), 2 * sample("xt")
    plain = prediction.eps(lambda xt, t: 0.5 * xt, schedule)
    seen, cut = plain(xt, STEPS), prediction.clipped(plain)(xt, STEPS)
    assert seen.x0.abs().max() > 10  # divided by sqrt(abar_T) = 0.006
    assert torch.equal(cut.x0, seen.x0.clamp(-1, 1))
    close(diffusion.add_noise(schedule, cut.x0, cut.eps, STEPS), xt, atol=1e-12)
    inside = seen.x0.abs() < 1
    close(cut.eps[inside], seen.eps[inside], atol=1e-11)
    narrow = prediction.clipped(plain, 0.0, 0.5)(xt, STEPS)
    assert (narrow.x0.min(), narrow.x0.max()) == (0.0, 0.5)
    close(cut.mean, diffusion.posterior(schedule, cut.x0, xt, STEPS)[0], atol=1e-12)


def test_a_learned_range_is_a_second_half_of_channels() -> None:
    schedule, xt = schedules.linear(1000), sample("xt")
    between = sample("between").tanh()
    kind = prediction.get_parametrization("v", learned_range=True)
    seen = kind(lambda xt, t: torch.cat([0.1 * xt, between], dim=1), schedule)(xt, STEPS)
    plain = prediction.v(lambda xt, t: 0.1 * xt, schedule)(xt, STEPS)
    assert torch.equal(seen.x0, plain.x0)
    assert seen.fraction is not None
    assert torch.equal(seen.fraction, (between + 1) / 2)
    assert seen.clipped().fraction is seen.fraction
    with pytest.raises(AssertionError, match="2C channels"):
        kind(lambda xt, t: xt, schedule)(xt, STEPS)


def test_detached_keeps_the_variance_alone() -> None:
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    kind = prediction.eps.with_learned_range()
    seen = kind(lambda xt, t: torch.cat([weight * xt, weight * xt], dim=1), schedules.linear(1000))(sample("x"), STEPS)
    still = seen.detached()
    assert still.fraction is not None
    assert not still.x0.requires_grad
    assert not still.mean.requires_grad
    assert still.fraction.requires_grad
    assert seen.mean.requires_grad


def test_22_noise_is_a_function_of_seed_and_position() -> None:
    noise = seeded_noise(7, 3, (1, 2, 2))
    assert torch.equal(noise.start(), noise("start"))
    assert torch.equal(noise(5)[2], seeded_noise(9, 1, (1, 2, 2))(5)[0])
    assert torch.equal(SeededNoise((8, 7), (1, 2, 2))(5).flip(0), noise(5)[:2])
    assert not torch.equal(noise(5), noise(6))
    assert not torch.equal(noise(5), noise("known", 5))
    many = seeded_noise(0, 4, (1, 50, 50))(1)
    assert many.std().item() == pytest.approx(1, abs=0.03)
    assert abs(torch.corrcoef(many.flatten(1))[0, 1].item()) < 0.08
