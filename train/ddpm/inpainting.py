"""Inpainting by mask with a network that was not trained for it: the known part comes from the picture at every step.

Source: Lugmayr et al. 2022 (RePaint), arXiv 2201.09865, algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from data.errors import InputError
from data.shapes import Images
from train.ddpm.prediction import Prediction
from train.ddpm.respacing import Chain
from train.ddpm.samplers import shares
from train.ddpm.schedule import Schedule
from train.ddpm.walk import Sampler, Walk


@dataclass(frozen=True, eq=False)
class Inpainting(Sampler):
    """Another sampler's steps, held to a picture where it is known.

    sampler: its count and spacing hold. picture: (B, C, H, W) in [-1, 1]. mask: the same shape, or 1 along an axis;
    1 where the picture is known, 0 where it is to be drawn. repeats: how often each step is taken, noised again
    in between, so that the drawn part can follow the known one; the paper takes 10.
    """

    sampler: Sampler
    picture: Images
    mask: torch.Tensor
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.sampler.corruption != "gaussian":
            raise InputError("inpainting with a sampler of the linear mix", allowed="a sampler of the Gaussian process")
        if self.repeats < 1:
            raise InputError(f"{self.repeats} repeats of each inpainting step", allowed="1 or more")
        refuse_other_shape(self.mask, self.picture)

    def chain(self, schedule: Schedule) -> Chain:
        return self.sampler.chain(schedule)

    def step(self, walk: Walk, i: int, now: Prediction, before: Prediction | None) -> Images:
        x = self.joined(walk, i, self.sampler.step(walk, i, now, before))
        for repeat in range(1, self.repeats if i > 0 else 1):
            again = replace(walk, noise=lambda *place, repeat=repeat: walk.noise("repeat", repeat, *place))
            beta = walk.chain.schedule.betas[i].item()
            # x_t ~ N(sqrt(1 - beta_t) x_{t-1}, beta_t)                                                      line 10
            xt = math.sqrt(1 - beta) * x + math.sqrt(beta) * again.noise("up", i)
            x = self.joined(again, i, self.sampler.step(again, i, again.look(i, xt), None))
        return x

    def joined(self, walk: Walk, i: int, drawn: Images) -> Images:
        """The picture where it is known, noised to the step that `drawn` is at, and `drawn` elsewhere."""
        _, P = shares(walk.chain, i)
        # x_{t-1}^known = sqrt(abar_{t-1}) x_0 + sqrt(1 - abar_{t-1}) eps                                    line 5
        known = math.sqrt(P) * self.picture + (math.sqrt(1 - P) * walk.noise("known", i) if i else 0.0)
        # x_{t-1} = m x_{t-1}^known + (1 - m) x_{t-1}^unknown                                                line 8
        return torch.where(self.mask > 0.5, known, drawn)


def refuse_other_shape(mask: torch.Tensor, picture: Images) -> None:
    """Raise InputError unless the mask is the picture's size, or 1 along an axis that it shall hold for all of."""
    fits = mask.ndim == picture.ndim and all(m in (1, p) for m, p in zip(mask.shape, picture.shape, strict=True))
    if not fits:
        shapes = f"a mask of shape {tuple(mask.shape)} for pictures of {tuple(picture.shape)}"
        raise InputError(shapes, allowed="the pictures' own shape, or 1 along an axis where it is the same for all")
