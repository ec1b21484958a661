"""The diffusion process against closed forms and diffusers; predictions in four parametrizations; seeded noise."""

import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from data import rng
from data.errors import InputError
from tests.gaussian_data import EVERY_SCHEDULE, close
from train.ddpm import diffusion, prediction
from train.ddpm import schedule as schedules
from train.ddpm.samplers import SeededNoise, seeded_noise
from train.ddpm.schedule import Schedule

SHAPE = (6, 3, 4, 5)
STEPS = torch.tensor([0, 1, 9, 250, 750, 999])


def sample(name: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return rng.normal(SHAPE, "process tests", name).to(dtype)


# ---------------------------------------------------------------- identities


def test_noise_is_added_as_equation_4_says() -> None:
    schedule, x0, eps = schedules.linear(1000), sample("x0"), sample("eps")
    xt = diffusion.add_noise(schedule, x0, eps, STEPS)
    for row, t in enumerate(STEPS.tolist()):
        abar = math.prod(1 - (1e-4 + (0.02 - 1e-4) * step / 999) for step in range(t + 1))
        close(xt[row], math.sqrt(abar) * x0[row] + math.sqrt(1 - abar) * eps[row], atol=1e-12)


@pytest.mark.parametrize("name", EVERY_SCHEDULE)
def test_03_posterior_mean_by_three_routes(name: str) -> None:
    schedule, x0, eps = schedules.make_schedule(name, 1000), sample("x0"), sample("eps")
    t = STEPS.clamp(min=1)  # the first step has no precision to weigh by
    xt = diffusion.add_noise(schedule, x0, eps, t)
    mean, variance = diffusion.posterior(schedule, x0, xt, t)
    table = {name: diffusion.gather(getattr(schedule, name), t, x0) for name in ("alphas", "betas")}
    abar, before = (diffusion.gather(row, t, x0) for row in (schedule.alphas_cumprod, schedule.alphas_cumprod_prev))
    # eq. 11: mu = 1 / sqrt(alpha_t) (x_t - beta_t / sqrt(1 - abar_t) eps)
    by_eps = (xt - table["betas"] / (1 - abar).sqrt() * eps) / table["alphas"].sqrt()
    close(table["alphas"].sqrt() * mean, table["alphas"].sqrt() * by_eps, atol=1e-11)
    # Bayes: q(x_{t-1} | x_0) with mean sqrt(abar_{t-1}) x_0, times q(x_t | x_{t-1}) read as a Gaussian in x_{t-1}
    prior, likelihood = 1 / (1 - before), table["alphas"] / table["betas"]
    by_bayes = (prior * before.sqrt() * x0 + likelihood * xt / table["alphas"].sqrt()) / (prior + likelihood)
    close(mean, by_bayes, atol=1e-11)
    close(variance, 1 / (prior + likelihood), rtol=1e-11)


def test_the_first_step_back_returns_the_image() -> None:
    schedule, x0, xt = schedules.linear(1000), sample("x0"), sample("xt")
    mean, variance = diffusion.posterior(schedule, x0, xt, torch.zeros(6, dtype=torch.int64))
    close(mean, x0, atol=1e-11)
    assert variance.eq(0).all()


# ---------------------------------------------------------------- against diffusers

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}


def test_noising_and_velocity_are_those_of_diffusers() -> None:
    scheduler: Any = DDPMScheduler.from_config(SD)
    schedule = schedules.from_diffusers(SD)
    x0, eps = sample("x0", torch.float32), sample("eps", torch.float32)
    close(diffusion.add_noise(schedule, x0, eps, STEPS), scheduler.add_noise(x0, eps, STEPS), atol=1e-5)
    close(diffusion.velocity(schedule, x0, eps, STEPS), scheduler.get_velocity(x0, eps, STEPS), atol=1e-5)


# ---------------------------------------------------------------- zero terminal SNR


@pytest.fixture(scope="module")
def without_signal() -> Schedule:
    return schedules.zero_terminal_snr(schedules.from_diffusers(SD))


def test_17_the_last_step_forgets_the_image_but_v_finds_it(without_signal: Schedule) -> None:
    x0, eps, last = sample("x0"), sample("eps"), torch.full((6,), 999)
    xt = diffusion.add_noise(without_signal, x0, eps, last)
    assert torch.equal(xt, eps)  # independent of x_0
    v = diffusion.velocity(without_signal, x0, eps, last)
    assert torch.equal(v, -x0)
    assert torch.equal(diffusion.x0_from_v(without_signal, xt, v, last), x0)
    assert torch.equal(diffusion.eps_from_v(without_signal, xt, v, last), eps)
    assert diffusion.gather(without_signal.snr, last, last).eq(0).all()


# ---------------------------------------------------------------- shapes, precision, mistakes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    schedule, x0, eps = schedules.linear(1000), sample("x0", dtype), sample("eps", dtype)
    xt = diffusion.add_noise(schedule, x0, eps, STEPS)
    exact = diffusion.add_noise(schedule, x0.double(), eps.double(), STEPS)
    half = dtype in (torch.float16, torch.bfloat16)
    # half precision: one rounding of the exact result and no other
    expected = exact.to(dtype)
    close(xt, expected, rtol=torch.finfo(dtype).eps if half else 1e-5, atol=1e-6)
    for convert in (
        diffusion.x0_from_eps,
        diffusion.eps_from_x0,
        diffusion.x0_from_v,
        diffusion.eps_from_v,
        diffusion.velocity,
    ):
        assert convert(schedule, x0, eps, STEPS).dtype == dtype
    mean, variance = diffusion.posterior(schedule, x0, xt, STEPS)
    assert (mean.dtype, variance.dtype) == (dtype, torch.float32 if half else dtype)


def test_the_noise_level_at_the_first_step_survives_half_precision() -> None:
    # 1 - abar_1 = 1e-4; sqrt(1 - abar_1) taken in bfloat16 would be 0
    schedule, one = schedules.linear(1000), torch.ones(1, 1, dtype=torch.bfloat16)
    noised = diffusion.add_noise(schedule, one * 0, one, torch.tensor([0]))
    assert noised.item() == pytest.approx(0.01, rel=1 / 256)


@pytest.mark.parametrize("shape", [(2,), (2, 7), (2, 4, 8, 8), (2, 3, 5, 4, 4)])
def test_any_sample_shape(shape: tuple[int, ...]) -> None:
    schedule, t = schedules.linear(10), torch.tensor([2, 7])
    ones = torch.ones(shape)
    assert diffusion.gather(schedule.betas, t, ones).shape == (2,) + (1,) * (len(shape) - 1)
    xt = diffusion.add_noise(schedule, ones, ones * 0, t)
    close(xt[1].flatten()[0].double(), schedule.sqrt_alphas_cumprod[7], rtol=1e-7)
    assert xt.shape == shape
    assert diffusion.gather(schedule.snr, t.int(), t).dtype == torch.float32  # small integer timesteps


@pytest.mark.parametrize("t", [-1, 10])
def test_a_timestep_outside_the_schedule_is_an_error(t: int) -> None:
    with pytest.raises(RuntimeError, match="out of bounds"):
        diffusion.gather(schedules.linear(10).snr, torch.tensor([0, t]), torch.tensor([0, 1]))


def test_our_own_mistakes_are_named() -> None:
    schedule, x, t = schedules.linear(10), torch.ones(2, 3), torch.tensor([0, 1])
    with pytest.raises(AssertionError, match="one shape"):
        diffusion.add_noise(schedule, x, torch.ones(2, 1), t)
    with pytest.raises(AssertionError, match="one timestep a sample"):
        diffusion.add_noise(schedule, x, x, torch.tensor([1]))
    with pytest.raises(AssertionError, match="one timestep a sample"):
        diffusion.add_noise(schedule, x, x, torch.tensor(1))
    with pytest.raises(AssertionError, match=r"call schedule.to\(device\) once"):
        diffusion.add_noise(schedule.to("meta"), x, x, t)


def test_gradients_flow_and_compilation_finds_one_graph() -> None:
    schedule = schedules.linear(1000).to("cpu")

    def there_and_back(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        xt = diffusion.add_noise(schedule, x0, eps, t)
        return diffusion.x0_from_v(schedule, xt, diffusion.velocity(schedule, x0, eps, t), t)

    x0, eps = sample("x0", torch.float32).requires_grad_(), sample("eps", torch.float32)
    compiled = torch.compile(there_and_back, backend="eager", fullgraph=True)  # a read of the device would break it
    found = compiled(x0, eps, STEPS)
    close(found, x0, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), x0)
    close(gradient, torch.ones(SHAPE), atol=1e-5)


# ---------------------------------------------------------------- predictions in every form


def answered(kind: prediction.Parametrization, schedule: Schedule) -> tuple[prediction.Prediction, Tensor, Tensor]:
    """The prediction of a network that answers exactly right, and the x_0 and eps that it was right about."""
    x0, eps = sample("x0"), sample("eps")
    xt = diffusion.add_noise(schedule, x0, eps, STEPS)
    return kind(lambda xt, t: kind.target(schedule, x0, eps, t), schedule)(xt, STEPS), x0, eps


@pytest.mark.parametrize("name", EVERY_SCHEDULE)
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
def test_17_at_zero_terminal_snr_all_but_eps_find_the_image(kind: str) -> None:
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
