"""How long a step takes here: a few real ones on the real network, batch and device, whose effects are undone.

Forward and backward passes run on the run's own network, so what a first step warms up (kernels, autotuning, compiled
code) stays warm; they change nothing but gradients, which are dropped. The
optimiser's step is timed on copies of the weights, with an optimiser of their own. So nothing has to be put back:
weights, optimiser and step were never touched, and random numbers are drawn from generators that are not the run's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data import seeds
from data.schema import Batch
from train import optim
from train.adapters import base as adapters
from train.adapters import dropout
from train.denoiser import Denoiser
from train.skeleton import Question

STEPS = 3  # the first one warms up and does not count
LONG = 15.0  # seconds in all, beyond which the start is not held up: a first step of more is the only one, and counts

OptimizerOf = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Timing:
    """Seconds of a micro-batch's forward and backward pass, of the optimiser's step, and how many were run."""

    micro: float
    update: float
    steps: int


def probe(unet: nn.Module, question: Question, accelerator: Accelerator, optimizer_of: OptimizerOf) -> Timing:
    """Time the steps. unet: as accelerate prepared it, without gradients, and left as it was."""
    weights = list(adapters.trainable(unet).values())
    assert all(weight.grad is None for weight in weights), "the probe comes between two steps"
    batch = batch_of(question, unet_config(accelerator, unet), accelerator.device)
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # layers that drop draw from the global generator
        try:
            # every process has to take as many steps as the others, which wait for its gradients
            limit = LONG if accelerator.num_processes == 1 else math.inf
            micros = timed(lambda: passes(Denoiser(unet), weights, batch, accelerator), accelerator.device, limit)
            updates = timed(updater(weights, optimizer_of), accelerator.device)
        finally:
            drop_gradients(weights)
    return Timing(min(micros[1:] or micros), min(updates[1:] or updates), len(micros))


def unet_config(accelerator: Accelerator, unet: nn.Module) -> tuple[int, int]:
    """(latent channels, width of a text state)"""
    config = accelerator.unwrap_model(unet).config
    return config["in_channels"], config["cross_attention_dim"]


def batch_of(question: Question, widths: tuple[int, int], device: torch.device) -> Batch:
    """Noise in place of latents and captions: the time does not depend on values."""
    channels, depth = widths
    latents = seeds.normal((question.batch, channels, question.height, question.width), "probe", "latents").to(device)
    states = seeds.normal((question.batch, question.tokens, depth), "probe", "states").to(device)
    uniforms = torch.linspace(0, 1, question.batch, dtype=torch.float64, device=device)
    return Batch(latents, states, latents, latents, uniforms, [""] * question.batch, [False] * question.batch)


def timed(work: Callable[[], None], device: torch.device, limit: float = LONG) -> list[float]:
    """Seconds of each of STEPS calls, of fewer if they take more than `limit` together."""
    seconds: list[float] = []
    while len(seconds) < STEPS and sum(seconds) < limit:
        settle(device)
        start = time.perf_counter()
        work()
        settle(device)
        seconds.append(time.perf_counter() - start)
    return seconds


def settle(device: torch.device) -> None:
    """Wait for the device: it works behind the program's back."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def passes(denoiser: Denoiser, weights: list[nn.Parameter], batch: Batch, accelerator: Accelerator) -> None:
    """Forward and backward, which leaves gradients."""
    drop_gradients(weights)
    accelerator.backward(losses(denoiser, batch).mean())


def losses(denoiser: Denoiser, batch: Batch) -> Tensor:
    """(B,) Not the run's own: what is compared costs nothing beside the network."""
    dropout.set_sample_keys(batch.timestep_uniforms)
    t = torch.full((len(batch.sample_ids),), 500, device=batch.latents.device)
    return (denoiser(batch.latents, t, batch.text_states) - batch.noise).square().flatten(1).mean(1)


def drop_gradients(weights: list[nn.Parameter]) -> None:
    for weight in weights:
        weight.grad = None


def updater(weights: list[nn.Parameter], optimizer_of: OptimizerOf) -> Callable[[], None]:
    """Clipping and a step of an optimiser, on copies of the weights."""
    copies = [nn.Parameter(weight.detach().clone()) for weight in weights]
    for copied, weight in zip(copies, weights, strict=True):
        copied.grad = weight.grad
    optimizer = optimizer_of(copies)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(optim.weights(optimizer), 1.0)
        optimizer.step()

    return update
