"""AdamW of a small network on a CPU: weights, gradients and moments lie side by side, each kind in one tensor.

What is done to each of hundreds of small weights, clipping and the update, is then done once. Layers, files and
checkpoints see the weights and moments that they know: parts of these tensors, in their own shapes and orders. A step
of the embedded network, all weights trained, takes 0.96 to 0.98 of the time (bf16, two threads, AMD, 2026-11-22).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.adamw import AdamW, adamw

from train import optim, workers

ALIGNED_TO = 32  # numbers: a line of the cache, 64 bytes, also in half precision
SUMMED = 1 << 16  # numbers whose squares torch adds up in float32 before rounding shows: 10 million are 4e-4 off


class JoinedAdamW(AdamW):
    """torch's AdamW, computed for all weights at once. Its state is torch's, in parts of two tensors.

    Weights that have no gradient in a step are left out of it, as torch has it; from then on all are updated one by
    one.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], **settings: Any) -> None:
        """settings: torch's. Raises ValueError if a weight is not in float32, or not without gaps, on a CPU."""
        super().__init__(parameters, **settings, fused=True)
        (group,) = self.param_groups
        self.weights: list[nn.Parameter] = group["params"]
        for weight in self.weights:
            if weight.dtype != torch.float32 or weight.device.type != "cpu" or extent(weight) != weight.numel():
                raise ValueError(f"a weight of {tuple(weight.shape)} in {weight.dtype} cannot be joined with others")
        self.everything, self.gradients = self.zeros(), self.zeros()
        self.gradient_views = self.views(self.gradients)
        filled = self.zeros()
        for view in self.views(filled):
            view.fill_(1.0)
        self.gaps = filled.eq(0).nonzero().flatten()
        self.pieces = [nn.Parameter(piece) for piece in self.everything.split(SUMMED)]
        for piece, gradient in zip(self.pieces, self.gradients.split(SUMMED), strict=True):
            piece.grad = gradient
        for weight, view in zip(self.weights, self.views(self.everything), strict=True):
            view.copy_(weight.detach())
            weight.data = view
        self.addresses = [weight.data_ptr() for weight in self.weights]
        self.moments: tuple[Tensor, Tensor] | None = None  # means, squares; None while they are not joined
        self.register_state_dict_post_hook(with_own_steps)
        self.register_load_state_dict_post_hook(optim.align_state)
        self.register_load_state_dict_post_hook(join_loaded)

    # ---- gradients

    @torch.no_grad()
    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add to the gradients of all weights; None adds nothing. They may be in half precision."""
        found = zip(self.weights, self.gradient_views, gradients, strict=True)
        given = [(weight, view, new) for weight, view, new in found if new is not None]
        first = [(view, new) for weight, view, new in given if weight.grad is None]
        later = [(weight.grad, new) for weight, _, new in given if weight.grad is not None]
        if first:
            torch._foreach_copy_([view for view, _ in first], [new for _, new in first])
        if later:
            torch._foreach_add_([old for old, _ in later], [new for _, new in later])
        for weight, view, _ in given:
            weight.grad = view if weight.grad is None else weight.grad

    @torch.no_grad()
    def gather(self) -> bool:
        """Bring the gradients together that do not lie there yet. False if a weight has none.

        Raises RuntimeError if a weight lies elsewhere now: what lies here would be updated, and nobody would see it.
        """
        if [weight.data_ptr() for weight in self.weights] != self.addresses:
            raise RuntimeError("weights were moved in memory since training began")
        pairs = [(weight.grad, view) for weight, view in zip(self.weights, self.gradient_views, strict=True)]
        elsewhere = [(gradient, view) for gradient, view in pairs if gradient is not None and gradient is not view]
        if elsewhere:
            torch._foreach_copy_([view for _, view in elsewhere], [gradient for gradient, _ in elsewhere])
            for weight, view in zip(self.weights, self.gradient_views, strict=True):
                weight.grad = None if weight.grad is None else view
        return all(gradient is not None for gradient, _ in pairs)

    def clippable(self) -> list[nn.Parameter]:
        """What has the gradients of all weights, for clipping: all of them at once, in as many pieces as their norm
        needs to be exact, or the weights, if one of them has none.
        """
        if not self.gather():
            return self.weights
        self.gradients.index_fill_(0, self.gaps, 0.0)  # an infinite norm makes NaN of them too, and nobody else writes
        return self.pieces

    # ---- the step

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """closure: for what torch expects of an optimiser; there is none, gradients come from the loop."""
        assert closure is None
        if self.gather() and self.has_moments():
            self.joined_step()
        else:
            self.separate()
            super().step()

    def joined_step(self) -> None:
        """torch's own update, of one long tensor."""
        assert self.moments is not None
        (group,), (means, squares) = self.param_groups, self.moments
        adamw(
            [self.everything],
            [self.gradients],
            [means],
            [squares],
            [],
            [self.state[self.weights[0]]["step"]],
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            grad_scale=getattr(self, "grad_scale", None),  # where a gradient scaler leaves them for fused optimisers
            found_inf=getattr(self, "found_inf", None),
        )

    def has_moments(self) -> bool:
        """Whether the moments are joined. At the first step they are made."""
        if not self.state:
            self.join_moments(torch.zeros((), device=self.everything.device))
        return self.moments is not None

    def join_moments(self, steps: Tensor) -> None:
        """Let each weight's state be its part of new moments, after so many steps, which all count together."""
        self.moments = means, squares = self.zeros(), self.zeros()
        for weight, mean, square in zip(self.weights, self.views(means), self.views(squares), strict=True):
            self.state[weight] = {"step": steps, "exp_avg": mean, "exp_avg_sq": square}

    def separate(self) -> None:
        """From now on each weight counts its own steps."""
        if self.moments is not None:
            self.moments = None
            for slot in self.state.values():
                slot["step"] = slot["step"].clone()

    # ---- where things lie

    def zeros(self) -> Tensor:
        """Room for one number of each weight, with gaps between the weights."""
        return torch.zeros(sum(map(room, self.weights)), device=self.weights[0].device)

    def views(self, together: Tensor) -> list[Tensor]:
        """The part of such a tensor that belongs to each weight, in its shape and order."""
        found, start = list[Tensor](), 0
        for weight in self.weights:
            found.append(together.as_strided(weight.shape, weight.stride(), start))
            start += room(weight)
        return found


def with_own_steps(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """In what is saved, each weight has a count of its own: an optimiser that counts one by one may load it."""
    slots = {index: slot | {"step": slot["step"].clone()} for index, slot in state_dict["state"].items()}
    return state_dict | {"state": slots}


def join_loaded(optimizer: torch.optim.Optimizer) -> None:
    """Join the moments that were loaded, if every weight has some, of equally many steps."""
    assert isinstance(optimizer, JoinedAdamW)
    optimizer.moments = None
    slots = [optimizer.state.get(weight, {}) for weight in optimizer.weights]
    if not all(slots) or len({float(slot["step"]) for slot in slots}) > 1:
        return
    optimizer.join_moments(slots[0]["step"].clone())
    for weight, loaded in zip(optimizer.weights, slots, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            optimizer.state[weight][name].copy_(loaded[name])


def room(weight: Tensor) -> int:
    """Numbers from the beginning of a weight to that of the next."""
    return -(-weight.numel() // ALIGNED_TO) * ALIGNED_TO


def extent(weight: Tensor) -> int:
    """Numbers from a tensor's first to its last in memory; more than it has if there are gaps."""
    return 1 + sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True))


def suited(network: nn.Module, accelerator: Accelerator, *, compiled: bool) -> bool:
    """Whether a network's weights are to be joined, once they are where they are to stay."""
    return workers.is_small_on_cpu(network, accelerator) and not compiled
