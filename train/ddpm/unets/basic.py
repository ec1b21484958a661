"""The course's BasicUNet: three convolutions down, three up, and its twin without skip connections.

Source: Hugging Face diffusion-models-class, unit 1: 309,057 parameters for one channel, 312,259 for three.

There every convolution is followed by SiLU, the last one too. SiLU is never below -0.2785, so it cannot generate black.
Here there is none after the last convolution; `final_activation` restores it. It has no parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from data.shapes import Timesteps
from train.ddpm.schedule import Schedule
from train.ddpm.unets.layers import upsample_nearest

WIDTHS = (32, 64, 64)


class BasicUNet(nn.Module):
    """Predicts from x_t alone, without t: good enough for x_0, as the amount of noise is visible in x_t. C' = C."""

    def __init__(self, channels: int, *, skips: bool = True, final_activation: bool = False) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.skips = skips
        self.down = nn.ModuleList([conv5x5(channels, first), conv5x5(first, second), conv5x5(second, third)])
        self.up = nn.ModuleList([conv5x5(third, second), conv5x5(second, first), conv5x5(first, channels)])
        self.last = nn.SiLU() if final_activation else nn.Identity()

    def forward(self, xt: Tensor, t: Timesteps, labels: Tensor | None = None) -> Tensor:
        assert labels is None, "this network has no classes"
        full = functional.silu(self.down[0](xt))
        half = functional.silu(self.down[1](functional.max_pool2d(full, 2)))
        quarter = functional.silu(self.down[2](functional.max_pool2d(half, 2)))
        x = functional.silu(self.up[0](quarter))
        x = functional.silu(self.up[1](self.upsample_and_skip(x, half)))
        return self.last(self.up[2](self.upsample_and_skip(x, full)))

    def upsample_and_skip(self, x: Tensor, skip: Tensor) -> Tensor:
        larger = upsample_nearest(x)
        return larger + skip if self.skips else larger


class MixInput(nn.Module):
    """Converts x_t to the course's mix (1 - a) x_0 + a eps, for a network trained on it.

    For the amount a with a / (1 - a) = sqrt(1 - abar_t) / sqrt(abar_t) both are the same image at two scales:
    mix = x_t / (sqrt(abar_t) + sqrt(1 - abar_t)). Source: diffusion-models-class, unit 1, `corrupt`.
    """

    def __init__(self, network: nn.Module, schedule: Schedule) -> None:
        super().__init__()
        self.network = network
        signal, noise = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
        self.scale: Tensor
        self.register_buffer("scale", (1.0 / (signal + noise)).float(), persistent=False)
        # the timestep of the course's schedule a = (t + 1) / T at which the mix has that amount
        places = (noise / (signal + noise) * schedule.steps).round().long() - 1
        self.places: Tensor
        self.register_buffer("places", places.clamp(0, schedule.steps - 1), persistent=False)

    def forward(self, xt: Tensor, t: Timesteps, labels: Tensor | None = None) -> Tensor:
        scale = torch.gather(self.scale, 0, t).reshape(-1, 1, 1, 1)
        return self.network(scale.to(xt.dtype) * xt, torch.gather(self.places, 0, t), labels)


def conv5x5(inside: int, outside: int) -> nn.Conv2d:
    """A 5 x 5 convolution that keeps the size."""
    return nn.Conv2d(inside, outside, 5, padding=2)
