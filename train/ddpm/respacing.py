"""Fewer steps: a short chain that passes through some timesteps of the long one.

q(x_t | x_0) at the kept timesteps is what the network learned; a schedule of their own makes every formula hold again.
Source: Nichol & Dhariwal 2021, arXiv 2102.09672, section 4; Song et al. 2021, arXiv 2010.02502, section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch

from data.errors import InputError, choose
from data.shapes import Images, Timesteps
from train.ddpm.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Chain:
    """A schedule of n steps and the timestep that the network knows each of them by.

    schedule: n steps, tables on the CPU; entry i belongs to step i of the chain.
    timesteps: n increasing indices into the long schedule; step i of the chain is the network's timesteps[i].
    """

    schedule: Schedule
    timesteps: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.timesteps)

    def t(self, i: int, like: Images) -> Timesteps:
        """(B,) the network's timestep of step i, for the batch `like`."""
        return torch.full((len(like),), self.timesteps[i], dtype=torch.int64, device=like.device)


def chain(schedule: Schedule, count: int | None = None, spacing: str = "linspace") -> Chain:
    """The chain through `count` timesteps of `schedule`, all of them if None; InputError for what cannot be.

    A schedule with zero terminal SNR must keep its last step, where drawing starts (arXiv 2305.08891, section 3.3).
    """
    T = schedule.steps
    kept = tuple(range(T)) if count is None else timesteps(T, count, spacing)
    if kept[-1] != T - 1 and not schedule.has_signal_left:
        raise InputError(
            f"{spacing} spacing of {count} of {T} steps leaves out the last one, where a schedule with zero terminal "
            "SNR starts",
            allowed="linspace or trailing",
        )
    return Chain(respaced(schedule, kept), kept)


def respaced(schedule: Schedule, kept: Sequence[int]) -> Schedule:
    """The schedule whose abar_i is abar at timestep kept[i]; on the CPU. Source: arXiv 2102.09672, section 4."""
    betas, abar = schedule.betas.cpu().double(), schedule.alphas_cumprod.cpu().double()
    if len(kept) == schedule.steps:
        return Schedule(betas)  # bit for bit, and not only to rounding
    abar = abar[list(kept)]
    before = torch.cat([torch.ones_like(abar[:1]), abar[:-1]])
    # beta'_i = 1 - abar_{tau_i} / abar_{tau_{i-1}}
    return Schedule(1.0 - abar / before)


def timesteps(T: int, count: int, spacing: str) -> tuple[int, ...]:
    """`count` increasing timesteps of [0, T), spaced as SPACINGS says; InputError for an unknown spacing or count."""
    place = SPACINGS[choose(spacing, SPACINGS, what="spacing")]
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= T:
        raise InputError(f"{count!r} sampling steps", allowed=f"a whole number from 1 to {T}")
    return place(T, count)


# ---- spacings, in fractions so that no rounding of floats decides (a half goes to the even number, as in numpy);
# names as in Lin et al. 2023, arXiv 2305.08891, section 3.3


def linspace(T: int, count: int) -> tuple[int, ...]:
    """From 0 to T - 1, both included (for a single step, T - 1), evenly to rounding."""
    if count == 1:
        return (T - 1,)
    # i (T - 1) / (n - 1)
    return tuple(round(Fraction(i * (T - 1), count - 1)) for i in range(count))


def leading(T: int, count: int) -> tuple[int, ...]:
    """0, k, 2k ... with k = floor(T / count): the last timesteps are never visited."""
    return tuple(i * (T // count) for i in range(count))


def trailing(T: int, count: int) -> tuple[int, ...]:
    """T - 1 and down from it by T / count, to rounding; the first kept one is about T / count - 1."""
    # i T / n - 1 for i = 1..n
    return tuple(round(Fraction(i * T, count)) - 1 for i in range(1, count + 1))


SPACINGS: dict[str, Callable[[int, int], tuple[int, ...]]] = {
    "linspace": linspace,
    "leading": leading,
    "trailing": trailing,
}
