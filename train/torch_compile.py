"""torch.compile: fixed shapes, a way round a fault of its, and a proof before step 1 that it computes the same."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional

from data.errors import InputError

GRAPHS_PER_BUCKET = 8  # graphs of one bucket: trained and looked at, with room for what else dynamo may tell apart
GRADIENT_TOLERANCE = {"no": 0.02}  # relative error of a gradient; float32 may be TF32
HALF_TOLERANCE = 0.2  # the same in 16 bits
NEGLIGIBLE = 1e-3  # of the largest tensor's gradient: smaller ones are held to that


def compile_network(network: nn.Module, buckets: int) -> Any:
    """The network behind torch.compile, for fixed shapes: each bucket's own. Its weights stay where they are, and
    State.plain_unet() finds them by their plain names.

    dynamo gives up on a function it has compiled `recompile_limit` times, and goes on uncompiled without a word: there
    must be room for every bucket.
    """
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, GRAPHS_PER_BUCKET * buckets)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 32 * GRAPHS_PER_BUCKET * buckets)
    for module in network.modules():
        if isinstance(module, Upsample2D) and module.interpolate and not module.use_conv_transpose:
            module.interpolate = False
            module.register_forward_pre_hook(upsample_hook, with_kwargs=True)
    return torch.compile(network, dynamic=False)


def upsample_hook(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What Upsample2D did itself: (B, C, h, w) -> (B, C, 2h, 2w), each number four times.

    torch 2.13's compiler turns the backward pass of `interpolate` into an addition to a buffer of zeros, and may put
    it after the operations that read the buffer: in full fine-tuning every layer below the last upsampler then gets a
    gradient of exactly 0, without a word (measured 2026-11-21, CPU). The backward pass of this is a sum.
    """
    small, *rest = args
    size = rest[0] if rest else kwargs.get("output_size")
    return (double_size(small) if size is None else functional.interpolate(small, size), *rest), kwargs


def double_size(small: Tensor) -> Tensor:
    b, c, h, w = small.shape
    large = small[:, :, :, None, :, None].expand(b, c, h, 2, w, 2).reshape(b, c, 2 * h, 2 * w)
    return large.contiguous(memory_format=torch.channels_last)


def check_gradients(network: nn.Module, loss_of: Callable[[nn.Module], Tensor], precision: str) -> None:
    """Compare the gradients of a compiled network with those of the network as it is. Raises InputError.

    loss_of: the mean loss of the coming micro-batch; what is compiled here is needed for the first step anyway.
    """
    expected = gradients(network, loss_of(getattr(network, "_orig_mod", network)))
    found = gradients(network, loss_of(network))
    tolerance = GRADIENT_TOLERANCE.get(precision, HALF_TOLERANCE)
    errors = relative_errors(found, expected)
    worst = max(range(len(errors)), key=errors.__getitem__)
    if not errors[worst] <= tolerance:  # also if it is not a number
        wrong = sum(not error <= tolerance for error in errors)
        what = (
            f"torch {torch.__version__}'s compiler computes other gradients for {wrong} of {len(errors)} tensors, the "
            f"worst {100 * errors[worst]:.0f} % off"
        )
        raise InputError(what, where="--compile", fix="Train without it.")


def gradients(network: nn.Module, loss: Tensor) -> list[Tensor]:
    """Of the trained weights, on the CPU; nothing is left behind in them."""
    loss.backward()
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    found = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    return [gradient.cpu() for gradient in found]


def relative_errors(found: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """Norm of the difference over the norm, for each tensor."""
    norms = [float(tensor.norm()) for tensor in expected]
    floor = NEGLIGIBLE * max(norms)
    pairs = zip(found, expected, norms, strict=True)
    return [float((one - other).norm()) / max(norm, floor, 1e-30) for one, other, norm in pairs]
