"""The walk from noise to a picture that every sampler takes, one step at a time.

p_theta(x_0..x_T) is the product of p(x_T) = N(0, 1) and every p_theta(x_{t-1} | x_t). Source: Ho et al. 2020, arXiv
2006.11239, eq. 1.
A sampler is a frozen object with a `step`. Its generator `steps` yields what is there before each step and, last, the
picture: so whoever draws can show every state, stop early, or only keep the end with `run`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from data.shapes import Images
from train.ddpm import respacing
from train.ddpm.noise import Noise
from train.ddpm.prediction import Denoiser, Prediction
from train.ddpm.respacing import Chain
from train.ddpm.schedule import Schedule

FINISHED = -1  # the timestep of a finished picture: one before the first


@dataclass(frozen=True, eq=False)
class State:
    """Where a walk stands: x_t, and what the network takes the finished picture to be.

    t: the network's timestep of xt, falling to FINISHED. xt, x0: (B, C, H, W); both are the picture at FINISHED.
    The x0 of all states are the progressive prediction of Ho et al. 2020, arXiv 2006.11239, figure 6.
    """

    t: int
    xt: Images
    x0: Images


@dataclass(frozen=True, eq=False)
class Walk:
    """What every step of one walk needs."""

    chain: Chain
    predict: Denoiser
    noise: Noise

    def look(self, i: int, xt: Images) -> Prediction:
        """What the network says about xt at step i of the chain."""
        return self.predict(xt, self.chain.t(i, xt))


@dataclass(frozen=True)
class Sampler(ABC):
    """Parent of every sampler. count: how many steps, all of the schedule's if None. spacing: which, see respacing."""

    corruption: ClassVar[str] = "gaussian"  # the process whose noise it removes: this, or "mix"

    count: int | None = field(default=None, kw_only=True)
    spacing: str = field(default="linspace", kw_only=True)

    @abstractmethod
    def step(self, walk: Walk, i: int, now: Prediction, before: Prediction | None) -> Images:
        """x at step i - 1 of the chain (at i = 0: the picture), from what is seen at step i and was seen at i + 1.

        Noise of this step is walk.noise(i).
        """

    def chain(self, schedule: Schedule) -> Chain:
        """The steps that this sampler takes; InputError for a count or spacing that cannot be."""
        return respacing.chain(schedule, self.count, self.spacing)

    def steps(self, predict: Denoiser, schedule: Schedule, x_T: Images, noise: Noise) -> Iterator[State]:
        """Every state from x_T (B, C, H, W) down to the picture: n + 1 of them for n steps.

        schedule: the one that the network was trained on. noise(i): the noise of step i of the chain, (B, C, H, W).
        """
        return self.walk(Walk(self.chain(schedule), predict, noise), x_T)

    @torch.no_grad()
    def walk(self, walk: Walk, xt: Images, start: int | None = None) -> Iterator[State]:
        """The states of a walk down from step `start` of the chain, where xt is; from the last step if None."""
        before = None
        for i in reversed(range(len(walk.chain) if start is None else start + 1)):
            now = walk.look(i, xt)
            yield State(walk.chain.timesteps[i], xt, now.x0)
            xt, before = self.step(walk, i, now, before), now
        yield State(FINISHED, xt, xt)


def run(sampler: Sampler, predict: Denoiser, schedule: Schedule, x_T: Images, noise: Noise) -> Images:
    """The pictures at the end of a walk, (B, C, H, W) as x_T."""
    return last(sampler.steps(predict, schedule, x_T, noise))


def last(states: Iterable[State]) -> Images:
    """The pictures that a walk ends with."""
    (state,) = deque(states, maxlen=1)  # keeps one in memory
    return state.xt
