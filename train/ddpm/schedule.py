"""Noise schedules: how much noise each step of the forward process adds, and every table that follows from it.

Tables are computed in float64 on the CPU and cast last. Entry i of a table belongs to the paper's step t = i + 1: a
timestep index runs from 0 (almost no noise) to T - 1 (almost only noise).
Equation numbers without a paper are those of Ho et al. 2020, arXiv 2006.11239.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from data.errors import InputError, check_choice
from data.shapes import Table


@dataclass(frozen=True, eq=False)
class Schedule:
    """The variances beta_1..beta_T of the forward process, with the tables derived from them. Source: eq. 2.

    q(x_1..x_T | x_0) is the product of q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t).
    betas: (T,) float64 in (0, 1); the last one may be 1 (zero terminal SNR). InputError for anything else.
    """

    betas: Table

    def __post_init__(self) -> None:
        betas = self.betas
        assert betas.dtype == torch.float64, f"betas are cast last: build them in float64, not {betas.dtype}"
        if betas.ndim != 1 or len(betas) == 0:
            raise InputError(f"a noise schedule with betas of shape {tuple(betas.shape)}", allowed="(T,) with T >= 1")
        inside = (betas > 0) & (betas < 1)  # False for NaN too
        inside[-1] |= betas[-1] == 1
        if not bool(inside.all()):
            step = int(inside.logical_not().nonzero()[0])
            what = f"beta at step {step} of the noise schedule is {betas[step].item():g}"
            raise InputError(what, allowed="0 < beta < 1, and 1 at the last step only")

    @property
    def steps(self) -> int:
        """T, the number of steps."""
        return len(self.betas)

    def to(self, device: torch.device | str) -> Schedule:
        """A copy with every table on `device` (float32 on MPS, which has no float64). Call it once, before the loop.

        All tables are computed here, on the CPU, so that torch.compile finds them ready.
        """
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        names = ["betas", *(name for name, member in vars(Schedule).items() if isinstance(member, cached_property))]
        tables = {name: getattr(self, name) for name in names}
        moved = copy.copy(self)
        for name, table in tables.items():  # into the instance's __dict__, past the frozen fields
            vars(moved)[name] = table.to(dtype).to(device) if isinstance(table, Tensor) else table
        return moved

    @cached_property
    def alphas(self) -> Table:
        # alpha_t = 1 - beta_t                                                           above eq. 4
        return 1.0 - self.betas

    @cached_property
    def alphas_cumprod(self) -> Table:
        # abar_t = prod_{s=1}^{t} alpha_s                                                above eq. 4
        return torch.cumprod(self.alphas, dim=0)

    @cached_property
    def alphas_cumprod_prev(self) -> Table:
        # abar_{t-1}, where abar_0 = 1: no noise has been added yet
        return torch.cat([torch.ones_like(self.alphas_cumprod[:1]), self.alphas_cumprod[:-1]])

    @cached_property
    def sqrt_alphas_cumprod(self) -> Table:
        # sqrt(abar_t), the weight of the image in x_t                                   eq. 4
        return self.alphas_cumprod.sqrt()

    @cached_property
    def sqrt_one_minus_alphas_cumprod(self) -> Table:
        # sqrt(1 - abar_t), the standard deviation of the noise in x_t                   eq. 4
        return (1.0 - self.alphas_cumprod).sqrt()

    @cached_property
    def snr(self) -> Table:
        # SNR(t) = abar_t / (1 - abar_t)                                                 arXiv 2107.00630, eq. 2
        return self.alphas_cumprod / (1.0 - self.alphas_cumprod)

    @cached_property
    def log_snr(self) -> Table:
        # log SNR(t) = log abar_t - log(1 - abar_t), minus infinity where no signal is left
        return self.alphas_cumprod.log() - torch.log1p(-self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef_x0(self) -> Table:
        # sqrt(abar_{t-1}) beta_t / (1 - abar_t), the weight of x_0 in mu~_t             eq. 7
        return self.alphas_cumprod_prev.sqrt() * self.betas / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef_xt(self) -> Table:
        # sqrt(alpha_t) (1 - abar_{t-1}) / (1 - abar_t), the weight of x_t in mu~_t      eq. 7
        return self.alphas.sqrt() * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_variance(self) -> Table:
        # beta~_t = (1 - abar_{t-1}) / (1 - abar_t) beta_t; 0 at the first step          eq. 7
        return (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod) * self.betas

    @cached_property
    def posterior_log_variance(self) -> Table:
        # log beta~_t; beta~_1 = 0 has no logarithm and takes beta~_2, as the paper's code does (beta_1 if T = 1)
        first = self.posterior_variance[1:2] if self.steps > 1 else self.betas
        return torch.cat([first, self.posterior_variance[1:]]).log()

    @cached_property
    def has_signal_left(self) -> bool:
        """False for a zero terminal SNR, where x_T is pure noise."""
        return bool(self.alphas_cumprod[-1] > 0)


# ---- the named schedules


def linear(T: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """beta_t rises linearly from beta_start to beta_end. Source: section 4, with T = 1000."""
    return Schedule(float64_linspace(beta_start, beta_end, T))


def scaled_linear(T: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """sqrt(beta_t) rises linearly. Stable Diffusion v1 has beta_start 0.00085, beta_end 0.012, T 1000.

    The annotated diffusion model calls it "quadratic" and uses the ends of `linear`: linspace(sqrt, sqrt) ** 2.
    Source: Rombach et al. 2022, arXiv 2112.10752, the released code (there it is called "linear").
    """
    if beta_start <= 0 or beta_end <= 0:
        raise InputError(f"beta_start {beta_start:g} and beta_end {beta_end:g}", allowed="0 < beta < 1")
    # beta_t = (sqrt(beta_start) + (t - 1) / (T - 1) (sqrt(beta_end) - sqrt(beta_start)))^2
    return Schedule(float64_linspace(math.sqrt(beta_start), math.sqrt(beta_end), T) ** 2)


def sigmoid(T: int, beta_start: float = 1e-4, beta_end: float = 0.02, span: float = 6.0) -> Schedule:
    """beta_t follows a logistic curve over [-span, span]. Source: GeoDiff, arXiv 2203.02923, the released code."""
    # beta_t = beta_start + (beta_end - beta_start) / (1 + exp(-u)), u evenly spaced in [-span, span]
    return Schedule(torch.sigmoid(float64_linspace(-span, span, T)) * (beta_end - beta_start) + beta_start)


def cosine(T: int, s: float = 0.008, min_beta: float = 1e-4, max_beta: float = 0.9999) -> Schedule:
    """abar_t follows a squared cosine; betas are clipped to [min_beta, max_beta], as in the annotated diffusion model.

    At T = 1000 it differs from `cosine_capped` at 14 steps: the first 13, where min_beta applies, and the last.
    """
    return Schedule(cosine_betas(T, s).clamp(min_beta, max_beta))


def cosine_capped(T: int, s: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """abar_t follows a squared cosine; betas are capped at max_beta to avoid a singularity at T.

    Known as squaredcos_cap_v2. Source: Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17 and the text under it.
    """
    return Schedule(cosine_betas(T, s).clamp(max=max_beta))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "quadratic": scaled_linear,  # another name for it
    "sigmoid": sigmoid,
    "cosine": cosine,
    "cosine_capped": cosine_capped,
}

# beta_schedule in a diffusers scheduler_config.json
DIFFUSERS_SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "sigmoid": sigmoid,
    "squaredcos_cap_v2": cosine_capped,
}


def make_schedule(name: str, T: int, **options: float) -> Schedule:
    """The schedule `name` of SCHEDULES with T steps; InputError with a suggestion for an unknown name or option."""
    build = SCHEDULES[check_choice(name, SCHEDULES, what="noise schedule")]
    allowed = [option for option in inspect.signature(build).parameters if option != "T"]
    for option in options:
        check_choice(option, allowed, what=f"option of noise schedule {name!r}:")
    return build(T, **options)


def from_diffusers(config: Mapping[str, Any], *, where: object = None) -> Schedule:
    """The schedule that a diffusers scheduler_config.json describes; its defaults where a key is missing.

    where: the file, for error messages. InputError for a beta_schedule that is not known here.
    """
    try:
        if config.get("trained_betas") is not None:
            schedule = Schedule(torch.tensor([float(beta) for beta in config["trained_betas"]], dtype=torch.float64))
        else:
            kind = check_choice(config.get("beta_schedule", "linear"), DIFFUSERS_SCHEDULES, what="beta_schedule")
            ends = {key: float(config[key]) for key in ("beta_start", "beta_end") if key in config}
            build, T = DIFFUSERS_SCHEDULES[kind], config.get("num_train_timesteps", 1000)
            schedule = build(T) if build is cosine_capped else build(T, **ends)  # the cosine has no such ends
        return zero_terminal_snr(schedule) if config.get("rescale_betas_zero_snr") else schedule
    except InputError as error:
        raise InputError(error.what, where=where, allowed=error.allowed, fix=error.fix) from error
    except (TypeError, ValueError) as error:  # text where a number belongs
        raise InputError(f"the scheduler's settings cannot be read ({error})", where=where) from error


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """The schedule rescaled so that x_T holds no trace of x_0: abar_T = 0 exactly, abar_1 unchanged.

    Noise prediction cannot be trained on it (see diffusion.check_signal).
    Source: Lin et al. 2023, arXiv 2305.08891, algorithm 1.
    """
    if schedule.steps < 2:
        raise InputError("a zero terminal SNR needs a noise schedule of two steps or more", allowed="T >= 2")
    # sqrt(abar_t) <- (sqrt(abar_t) - sqrt(abar_T)) sqrt(abar_1) / (sqrt(abar_1) - sqrt(abar_T))
    roots = schedule.sqrt_alphas_cumprod
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    # alpha_t = abar_t / abar_{t-1}; beta_1 stays the same to the bit
    alphas = (roots[1:] / roots[:-1]) ** 2
    return Schedule(torch.cat([schedule.betas[:1], 1.0 - alphas]))


def float64_linspace(start: float, end: float, T: int) -> Table:
    """T evenly spaced numbers from start to end, both included. Raises InputError unless T is a positive integer."""
    if isinstance(T, bool) or not isinstance(T, int) or T < 1:
        raise InputError(f"a noise schedule of {T!r} steps", allowed="a whole number of 1 or more")
    return torch.linspace(start, end, T, dtype=torch.float64)


def cosine_betas(T: int, s: float) -> Table:
    """beta_t = 1 - abar_t / abar_{t-1} for abar_t = f(t) / f(0), before clipping. Source: arXiv 2102.09672, eq. 17."""
    t = float64_linspace(0.0, 1.0, T + 1)
    # f(t) = cos^2((t / T + s) / (1 + s) pi / 2)
    f = torch.cos((t + s) / (1.0 + s) * math.pi / 2.0) ** 2
    return 1.0 - f[1:] / f[:-1]
