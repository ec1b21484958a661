"""The optimiser, a learning rate that is a pure function of the optimiser step, and the EMA of the weights."""

import importlib.util
import io
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.errors import InputError
from train.config import EmaOptions, OptimOptions
from train.model import copy_tensors

Parameters = Iterable[nn.Parameter]


def build_optimizer(parameters: Parameters, config: OptimOptions) -> torch.optim.Optimizer:
    """The optimiser in training mode; its learning rate is set before each step. Raises InputError.

    Restored moments are laid out in memory as their weights are: the fused kernel walks both without looking at
    strides. A convolution's weight is channels-last, a moment read from a file is not: a resumed run would silently
    differ.
    """
    check_installed(config)
    optimizer = BUILDERS[config.kind](parameters, config)
    optimizer.register_load_state_dict_post_hook(align_state)
    return optimizer


def check_installed(config: OptimOptions) -> None:
    """Raises InputError if the library of the chosen optimiser is not installed; imports nothing."""
    library = LIBRARIES.get(config.kind)
    if library is not None and importlib.util.find_spec(library) is None:
        what = f"{config.kind} needs the library {library}, which is not installed"
        raise InputError(what, where="--optim.kind", fix=f"Get it with: pip install {library}")


LIBRARIES = {"adamw-8bit": "bitsandbytes", "prodigy": "prodigyopt", "schedule-free": "schedulefree"}


# ---- one builder a kind


def adamw(parameters: Parameters, config: OptimOptions) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, **adamw_arguments(config), fused=True)


def adamw_8bit(parameters: Parameters, config: OptimOptions) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    contiguous = list(parameters)
    for weight in contiguous:
        # It makes them contiguous at its first step; done before, its state lies in memory as its shape says.
        weight.data = weight.data.contiguous()
    return AdamW8bit(contiguous, **adamw_arguments(config))


def adafactor(parameters: Parameters, config: OptimOptions) -> torch.optim.Optimizer:
    """transformers', not torch's: torch's always scales a step by its weight's size, with a floor of 1/1000 where the
    weight is 0, as LoRA's B is at first, and by 1/sqrt(step). Here the learning rate is ours, as given.

    Source: Shazeer & Stern 2018, arXiv 1804.04235, algorithms 4 and 5, without relative steps (section 8).
    """
    from transformers import Adafactor

    fixed: dict[str, Any] = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    return Adafactor(parameters, lr=0.0, weight_decay=config.weight_decay, **fixed)


def prodigy(parameters: Parameters, config: OptimOptions) -> torch.optim.Optimizer:
    """With Adam's bias correction and a safe warm-up, as its authors advise for diffusion models.

    Source: Mishchenko & Defazio 2023, arXiv 2306.06101, algorithm 4.
    """
    from prodigyopt import Prodigy

    # no limit to the growth of the step size, written as a number that JSON has
    ours: dict[str, Any] = {"growth_rate": sys.float_info.max, "use_bias_correction": True, "safeguard_warmup": True}
    with redirect_stdout(io.StringIO()):  # it says which weight decay it uses, on the terminal
        return Prodigy(parameters, **adamw_arguments(config) | {"lr": 1.0}, **ours)


def schedule_free(parameters: Parameters, config: OptimOptions) -> torch.optim.Optimizer:
    """Its warm-up is off: ours sets the same rates, and it weighs its average by the highest rate so far either way.

    Source: Defazio et al. 2024, arXiv 2405.15682, algorithm 1.
    """
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(parameters, **adamw_arguments(config), warmup_steps=0)
    optimizer.train()
    return optimizer


def adamw_arguments(config: OptimOptions) -> dict[str, Any]:
    """Arguments that every AdamW takes. The learning rate is set before each step."""
    betas = (config.beta1, config.beta2)
    return {"lr": 0.0, "betas": betas, "eps": config.epsilon, "weight_decay": config.weight_decay}


def align_state(optimizer: torch.optim.Optimizer) -> None:
    for weight, slots in optimizer.state.items():
        for name, value in slots.items():
            if torch.is_tensor(value) and value.shape == weight.shape and value.stride() != weight.stride():
                slots[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


BUILDERS: dict[str, Callable[[Parameters, OptimOptions], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "adamw-8bit": adamw_8bit,
    "adafactor": adafactor,
    "prodigy": prodigy,
    "schedule-free": schedule_free,
}


def optimized_weights(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Every weight that it updates; a list, for an iterator would be empty the second time."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def clip_gradients(accelerator: Accelerator, optimizer: Any, limit: float) -> Tensor:
    """Unscale all gradients and scale them down to a global norm of at most `limit`; returns the norm before, ()."""
    accelerator.unscale_gradients()
    return nn.utils.clip_grad_norm_(optimized_weights(optimizer), limit)


@contextmanager
def averaged_weights(optimizer: Any) -> Iterator[None]:
    """Inside, the weights are those that an optimiser with an average of its own means to be used; others stay.

    Schedule-free takes gradients at y and is to be used at x, the average. Its own way back from x to y rounds, so y is
    kept: after the block every weight is what it was, bit for bit.
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper has these modes for every optimiser
    if not hasattr(inner, "eval"):
        yield
        return
    updated: list[Tensor] = [*optimized_weights(inner)]
    kept = [weight.detach().clone() for weight in updated]
    try:
        inner.eval()
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(updated, kept)
        for group in inner.param_groups:
            group["train_mode"] = True


# ---- the learning rate


def learning_rate(step: int, config: OptimOptions, peak: float, max_steps: int) -> float:
    """The learning rate of optimiser step 0, 1, ... whatever the number of processes or accumulation.

    It rises linearly to `peak` over config.warmup steps, then is constant or falls (half a cosine, or a line) so that
    it would be 0 at step max_steps.
    """
    if step < config.warmup:
        return peak * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, max_steps - config.warmup)
    return peak * DECAYS[config.schedule](min(1.0, done))


DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "linear": lambda done: 1.0 - done,
}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


# ---- the moving average of the weights


class Ema:
    """Float32 averages of named weights, on their device or on the CPU; nothing at all if the decay is 0.

        average <- average + (1 - d_n) (weights - average),   d_n = min(decay, (1 + n) / (10 + n)) with warm-up

    n counts the updates before this one, as a tensor on that device too: a step that the fp16 scaler skips is skipped
    here without waiting for the device. Source: Polyak & Juditsky 1992; the warm-up is TensorFlow's.
    """

    COUNT = "updates"  # its name among the saved tensors; no weight has a name without a dot
    CHUNK = 16  # tensors per update: the differences of all of them would take as much memory as the weights

    def __init__(self, weights: Mapping[str, nn.Parameter], config: EmaOptions) -> None:
        self.weights, self.config = dict(weights) if config.decay else {}, config
        self.averages = {name: self.copy_of(weight).clone() for name, weight in self.weights.items()}
        device = next(iter(self.averages.values())).device if self.averages else None
        self.updates = torch.zeros((), dtype=torch.int64, device=device)

    def copy_of(self, weight: Tensor) -> Tensor:
        """A weight in float32 where its average is; itself if it is that already."""
        return weight.detach().to("cpu" if self.config.device == "cpu" else weight.device, torch.float32)

    @torch.no_grad()
    def update(self, norm: Tensor) -> None:
        """After an optimiser step. norm: () of its gradients; if it is not finite, the step was skipped.

        Subtract, multiply, add: each is rounded once, alike on every device, so --ema.device can change within a run.
        """
        if not self.averages:
            return
        moved, n = torch.isfinite(norm).to(self.updates.device), self.updates.double()
        decay = torch.full_like(n, self.config.decay)
        decay = torch.minimum(decay, (1 + n) / (10 + n)) if self.config.warmup else decay
        share = torch.where(moved, 1 - decay, 0.0).float()
        pairs = [(average, self.weights[name]) for name, average in self.averages.items()]
        for start in range(0, len(pairs), self.CHUNK):
            averages, weights = zip(*pairs[start : start + self.CHUNK], strict=True)
            differences = torch._foreach_sub([self.copy_of(weight) for weight in weights], averages)
            torch._foreach_mul_(differences, share)
            torch._foreach_add_(averages, differences)
        self.updates += moved

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the network has the averaged weights; afterwards its own again, bit for bit."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        for name, weight in self.weights.items():  # one at a time: no second copy of the network
            own = weight.detach().clone()
            weight.copy_(self.averages[name])
            self.averages[name].copy_(own)

    def state(self) -> dict[str, Tensor] | None:
        """A copy on the CPU for the checkpoint; None if nothing is averaged."""
        saved = {name: average.cpu().clone() for name, average in self.averages.items()}
        return saved | {self.COUNT: self.updates.cpu().clone()} if saved else None

    def load_state(self, saved: Mapping[str, Tensor] | None, where: object) -> None:
        """Restore a saved state. Raises InputError if it does not fit."""
        if (saved is None) != (not self.averages):
            has = "no average" if saved is None else "an average"
            raise InputError(f"the checkpoint holds {has} of the weights, unlike this run (--ema.decay)", where=where)
        if saved is not None:
            copy_tensors(saved, self.averages | {self.COUNT: self.updates}, "averages", where)
