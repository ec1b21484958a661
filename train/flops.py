"""Floating-point operations of a training step, counted exactly; and what the hardware could do at most.

A multiplication with its addition counts as two. Model operations are counted, not recomputed ones: gradient
checkpointing makes a step slower, not more useful. Source of the convention: Chowdhery et al. 2022, arXiv 2204.02311,
appendix B (model FLOPs utilisation).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from train.denoiser import Denoiser
from train.skeleton import Question, autoencoder, remembered, skeleton

TERA = 1e12

# Dense peaks by the makers' data sheets, TFLOP/s: (fp16 and bf16 on tensor cores, tf32 on tensor cores, fp32).
# The longest name that is a part of the device's name counts. NVIDIA halves GeForce cards with fp32 accumulation.
PEAKS: Mapping[str, tuple[float, float | None, float]] = {
    "T4": (65, None, 8.1),
    "V100": (125, None, 15.7),
    "A10": (125, 62.5, 31.2),
    "A40": (149.7, 74.8, 37.4),
    "A100": (312, 156, 19.5),
    "L4": (121, 60, 30.3),
    "L40": (181, 90.5, 90.5),
    "L40S": (362, 183, 91.6),
    "RTX A6000": (154.8, 77.4, 38.7),
    "RTX 3090": (71, 35.6, 35.6),
    "RTX 4090": (165.2, 82.6, 82.6),
    "H100": (989, 494.5, 67),
    "H100 PCIe": (756, 378, 51),
    "H200": (989, 494.5, 67),
}


@dataclass(frozen=True)
class Flops:
    """Operations for one sample: a forward pass, and a training step (forward, backward, no recomputation)."""

    forward: float
    step: float


def step_flops(network: nn.Module, question: Question, *, checkpointing: bool = False) -> int:
    """Operations of forward and backward for question.batch samples through a U-Net, frozen weights considered.

    checkpointing: count what gradient checkpointing computes again (what the hardware does, not what the model needs).
    """
    return both_flops(network, question, checkpointing)[1]


def both_flops(network: nn.Module, question: Question, checkpointing: bool = False) -> list[int]:
    """(forward alone, forward and backward)"""
    return remembered(network, ("flops", question, checkpointing), lambda: count(network, question, checkpointing))


def count(network: nn.Module, question: Question, checkpointing: bool) -> list[int]:
    """Run a network's code on shapes alone and count. On the meta device attention is two matrix products."""
    bones = skeleton(network).train()
    switch_checkpointing(bones, checkpointing)
    with FlopCounterMode(display=False) as counter:
        predicted = Denoiser(bones)(*question.tensors(bones))
        forward = int(counter.get_total_flops())
        predicted.square().mean().backward()
    return [forward, int(counter.get_total_flops())]


@torch.no_grad()
def decode_flops(vae_config: Mapping[str, Any], height: int, width: int) -> int:
    """Operations of decoding one picture. height, width: of its latents."""
    network = autoencoder(vae_config)

    def counted() -> list[int]:
        with FlopCounterMode(display=False) as counter:
            network.decode(torch.empty(1, vae_config["latent_channels"], height, width, device="meta"))
        return [int(counter.get_total_flops())]

    return remembered(network, ("decode flops", height, width), counted)[0]


def switch_checkpointing(bones: Any, on: bool) -> None:
    """Gradient checkpointing on or off, for networks that know it."""
    if on:
        bones.enable_gradient_checkpointing()
    elif getattr(bones, "is_gradient_checkpointing", False):
        bones.disable_gradient_checkpointing()


def by_area(network: nn.Module, sizes: Iterable[tuple[int, int]], tokens: int) -> dict[tuple[int, int], Flops]:
    """The operations for one sample of each latent size (height, width).

    Layers cost in proportion to the area and self-attention to its square, so three areas tell all others exactly
    (sides are multiples of what the U-Net halves, so no layer rounds).
    """
    wanted = list(sizes)
    shapes = {height * width: (height, width) for height, width in wanted}
    asked = dict(sorted(shapes.items())[:3])
    counts = {area: both_flops(network, Question(1, *size, tokens)) for area, size in asked.items()}
    forwards, steps = ({area: pair[which] for area, pair in counts.items()} for which in (0, 1))
    return {(h, w): Flops(through(forwards, h * w), through(steps, h * w)) for h, w in wanted}


def through(points: Mapping[int, int], x: int) -> float:
    """Lagrange's polynomial through whole-number points, exact, at x."""
    total = Fraction(0)
    for a, value in points.items():
        term = Fraction(value)
        for b in points:
            term *= Fraction(x - b, a - b) if b != a else 1
        total += term
    return float(total)


def mean_flops(costs: Mapping[tuple[int, int], Flops], counts: Mapping[tuple[int, int], int]) -> Flops:
    """The mean over an epoch: buckets take turns in proportion to their pictures."""
    total = sum(counts.values())
    forward = sum(costs[size].forward * number for size, number in counts.items()) / total
    return Flops(forward, sum(costs[size].step * number for size, number in counts.items()) / total)


def peak_flops(device: torch.device, precision: str = "no") -> float | None:
    """FLOP/s that the device could do at most in this precision, or None for one that is not in the table.

    precision: accelerate's word: no (float32, or TF32 if torch may use it), fp16 or bf16.
    """
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), precision, bool(torch.backends.cuda.matmul.allow_tf32))


def peak_of(name: str, precision: str, tf32: bool) -> float | None:
    """FLOP/s by a device's name, e.g. NVIDIA A100-SXM4-80GB."""
    words = set(name.replace("-", " ").split())
    known = [key for key in PEAKS if set(key.split()) <= words]
    if not known:
        return None
    half, tensor32, plain = PEAKS[max(known, key=len)]
    if precision in ("fp16", "bf16"):
        return half * TERA
    return (tensor32 if tf32 and tensor32 else plain) * TERA
