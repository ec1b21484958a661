"""The Gaussian diffusion process: from x_0 to x_t, back from x_t to x_{t-1}, and between eps, x_0 and v.

Equation numbers are those of Ho et al. 2020, arXiv 2006.11239, unless another paper is named. x_0, eps and x_t are
(B, ...) tensors of one shape; t is (B,) int64 in [0, T), an index into the schedule's tables. Results have the inputs'
dtype; half precision is computed in float32. Nothing here waits for the device: call `schedule.to(device)` once.
The linear mix of Hugging Face's diffusion-models-class, a simpler corruption, is at the end.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from data.errors import InputError
from data.shapes import Images, PerSample, Table, Timesteps
from train.ddpm.schedule import Schedule


def gather(table: Table, t: Timesteps, like: Tensor) -> Tensor:
    """table[t], shaped (B, 1, ...) to multiply `like` (B, ...): in float64 if `like` is, else in float32.

    A t outside [0, T), a negative one too, is an error (on a GPU: a device-side assertion at the next synchronization).
    """
    assert t.shape == like.shape[:1], f"one timestep a sample: t {tuple(t.shape)} for {tuple(like.shape)}"
    assert t.device == table.device, f"t on {t.device}, tables on {table.device}: call schedule.to(device) once"
    # Tensor.gather and not table[t]: indexing would take -1 for the last step
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    return table.gather(0, t.long()).to(wide).reshape(-1, *[1] * (like.ndim - 1))


def wide(x: Tensor) -> Tensor:
    """x in float64 (float32 on MPS, which has no float64): for small differences of large numbers."""
    return x.float() if x.device.type == "mps" else x.double()


def signal_and_noise(schedule: Schedule, t: Timesteps, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(abar_t) and sqrt(1 - abar_t), each (B, 1, ...): the weights of x_0 and eps in x_t."""
    return gather(schedule.sqrt_alphas_cumprod, t, like), gather(schedule.sqrt_one_minus_alphas_cumprod, t, like)


def common_dtype(x: Tensor, y: Tensor) -> torch.dtype:
    """The dtype of a result computed from x and y, which must have one shape: broadcasting here is always a mistake."""
    assert x.shape == y.shape, f"two tensors of one shape, not {tuple(x.shape)} and {tuple(y.shape)}"
    return torch.promote_types(x.dtype, y.dtype)


def add_noise(schedule: Schedule, x0: Tensor, eps: Tensor, t: Timesteps) -> Tensor:
    """x_t, a sample of q(x_t | x_0) from the standard normal noise eps. Source: eq. 4."""
    dtype = common_dtype(x0, eps)
    signal, noise = signal_and_noise(schedule, t, x0)
    # x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps
    return (signal * x0 + noise * eps).to(dtype)


def posterior(schedule: Schedule, x0: Tensor, xt: Tensor, t: Timesteps) -> tuple[Tensor, Tensor]:
    """Mean (B, ...) and variance (B, 1, ...) of q(x_{t-1} | x_t, x_0); at the first step x_0 and 0. Source: eq. 6, 7.

    The variance is at least float32: it is small, and its root or logarithm is taken next.
    """
    dtype = common_dtype(x0, xt)
    weight_x0 = gather(schedule.posterior_mean_coef_x0, t, x0)
    weight_xt = gather(schedule.posterior_mean_coef_xt, t, xt)
    # mu~_t = sqrt(abar_{t-1}) beta_t / (1 - abar_t) x_0 + sqrt(alpha_t) (1 - abar_{t-1}) / (1 - abar_t) x_t
    mean = (weight_x0 * x0 + weight_xt * xt).to(dtype)
    # beta~_t = (1 - abar_{t-1}) / (1 - abar_t) beta_t
    return mean, gather(schedule.posterior_variance, t, mean)


def x0_from_eps(schedule: Schedule, xt: Tensor, eps: Tensor, t: Timesteps) -> Tensor:
    """x_0 from x_t and its noise; InputError if the schedule has zero terminal SNR. Source: eq. 15."""
    check_signal(schedule)
    dtype = common_dtype(xt, eps)
    signal, noise = signal_and_noise(schedule, t, xt)
    # x_0 = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)
    return ((xt - noise * eps) / signal).to(dtype)


def eps_from_x0(schedule: Schedule, xt: Tensor, x0: Tensor, t: Timesteps) -> Tensor:
    """The noise in x_t, from x_t and x_0. Source: eq. 4, solved for eps."""
    dtype = common_dtype(xt, x0)
    signal, noise = signal_and_noise(schedule, t, xt)
    # eps = (x_t - sqrt(abar_t) x_0) / sqrt(1 - abar_t)
    return ((xt - signal * x0) / noise).to(dtype)


def velocity(schedule: Schedule, x0: Tensor, eps: Tensor, t: Timesteps) -> Tensor:
    """v, the direction in which x_t turns from image to noise. Source: Salimans & Ho, arXiv 2202.00512, section 4."""
    dtype = common_dtype(x0, eps)
    signal, noise = signal_and_noise(schedule, t, x0)
    # v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0
    return (signal * eps - noise * x0).to(dtype)


def x0_from_v(schedule: Schedule, xt: Tensor, v: Tensor, t: Timesteps) -> Tensor:
    """x_0 from x_t and v, also where no signal is left. Source: arXiv 2202.00512, section 4."""
    dtype = common_dtype(xt, v)
    signal, noise = signal_and_noise(schedule, t, xt)
    # x_0 = sqrt(abar_t) x_t - sqrt(1 - abar_t) v
    return (signal * xt - noise * v).to(dtype)


def eps_from_v(schedule: Schedule, xt: Tensor, v: Tensor, t: Timesteps) -> Tensor:
    """eps from x_t and v. Source: arXiv 2202.00512, appendix D (x_t and v are eps and x_0, rotated)."""
    dtype = common_dtype(xt, v)
    signal, noise = signal_and_noise(schedule, t, xt)
    # eps = sqrt(1 - abar_t) x_t + sqrt(abar_t) v
    return (noise * xt + signal * v).to(dtype)


def x0_from_mean(schedule: Schedule, xt: Tensor, mean: Tensor, t: Timesteps) -> Tensor:
    """x_0 from x_t and the posterior mean mu~_t. Source: eq. 7, solved for x_0.

    It divides by the weight of x_0, which is 1e-4 at the end of the linear schedule: rounding grows by 10,000 there.
    """
    dtype = common_dtype(xt, mean)
    weight_x0 = gather(schedule.posterior_mean_coef_x0, t, xt)
    weight_xt = gather(schedule.posterior_mean_coef_xt, t, xt)
    # x_0 = (mu~_t - c_2 x_t) / c_1, with c_1 and c_2 the weights of x_0 and x_t in mu~_t
    return ((mean - weight_xt * xt) / weight_x0).to(dtype)


def eps_from_mean(schedule: Schedule, xt: Tensor, mean: Tensor, t: Timesteps) -> Tensor:
    """The noise in x_t, from x_t and the posterior mean mu~_t. Source: eq. 11, solved for eps."""
    dtype = common_dtype(xt, mean)
    alpha, beta = gather(schedule.alphas, t, xt), gather(schedule.betas, t, xt)
    noise = gather(schedule.sqrt_one_minus_alphas_cumprod, t, xt)
    # eps = sqrt(1 - abar_t) / beta_t (x_t - sqrt(alpha_t) mu~_t)
    return (noise / beta * (xt - alpha.sqrt() * mean)).to(dtype)


def check_signal(schedule: Schedule) -> None:
    """Raise InputError for noise prediction on a schedule with zero terminal SNR.

    There x_T is the noise itself: predicting it teaches nothing, and x_0 = (x_T - eps) / 0.
    Source: Lin et al. 2023, arXiv 2305.08891, section 3.3.
    """
    if not schedule.has_signal_left:
        what = "noise (epsilon) prediction on a noise schedule with zero terminal SNR: x_T holds no image"
        raise InputError(what, allowed="v or x0 prediction")


# ---- the linear mix. Source: Hugging Face's diffusion-models-class, unit 1; samplers.Naive reverses it


def linear_mix(image: Images, noise: Images, amount: PerSample) -> Images:
    """(B, C, H, W) images and noise, (B,) amounts in [0, 1] -> 0: the image, 1: the noise."""
    assert image.shape == noise.shape, f"one shape, not {tuple(image.shape)} and {tuple(noise.shape)}"
    amount = amount.to(image.dtype).reshape(-1, *[1] * (image.ndim - 1))
    # x = (1 - amount) x_0 + amount z
    return (1.0 - amount) * image + amount * noise


def mix_amount(t: Timesteps, steps: int) -> PerSample:
    """The amount of noise at timesteps (B,) of [0, steps): (t + 1) / steps, float32; the last is noise alone."""
    return (t + 1).to(torch.float32) / steps


def mix_noise(z: Tensor, *, uniform: bool) -> Tensor:
    """The mix's noise from standard normal noise z: z itself, or uniform in [-1, 1), by the distribution function.

    For images in [-1, 1] the latter is what the course's noise in [0, 1) is for its images in [0, 1].
    """
    # u = erf(z / sqrt(2))
    return torch.erf(z / math.sqrt(2.0)) if uniform else z


def adapt_mix_network(network: Callable[..., Tensor], schedule: Schedule) -> Callable[..., Tensor]:
    """A network trained on the mix, as one that takes x_t of the schedule (on its device) and t.

    For the amount a with a / (1 - a) = sqrt(1 - abar_t) / sqrt(abar_t) both are the same image at two scales:
    mix = x_t / (sqrt(abar_t) + sqrt(1 - abar_t)).
    """
    signal, noise = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
    scale = 1.0 / (signal + noise)
    # the timestep of a = (t + 1) / T at which the mix has that amount
    places = ((noise / (signal + noise) * schedule.steps).round().long() - 1).clamp(0, schedule.steps - 1)

    def adapted(xt: Images, t: Timesteps, labels: Tensor | None = None) -> Tensor:
        return network(gather(scale, t, xt).to(xt.dtype) * xt, places.gather(0, t), labels)

    return adapted
