"""Norms in float32 under autocast on a CPU: near the exact ones, and as they were everywhere else."""

import copy
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.small_runs import seeded_unet
from train import norms, workers


def machine(kind: str = "cpu", precision: str = "bf16") -> Accelerator:
    return cast(Accelerator, SimpleNamespace(device=torch.device(kind), mixed_precision=precision))


def first(unet: Any, kind: type[nn.Module]) -> Any:
    return next(layer for layer in unet.modules() if isinstance(layer, kind))


def numbers(layer: Any) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    shape = (2, layer.num_channels, 8, 8) if isinstance(layer, nn.GroupNorm) else (2, 8, *layer.normalized_shape)
    return torch.randn(shape, generator=draw).bfloat16()


@pytest.mark.parametrize("kind", [nn.GroupNorm, nn.LayerNorm])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_under_autocast_they_are_exact(weights: torch.dtype, kind: type[nn.Module]) -> None:
    """Also with weights that were made half; the answer to bfloat16 numbers is that of float32 ones, to the bit."""
    unet = seeded_unet().to(weights)
    exact = copy.deepcopy(first(unet, kind)).float()
    norms.widen(unet, machine(), compiled=False)
    layer = first(unet, kind)
    x = numbers(layer)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.float32 and torch.equal(found, exact(x.float()))


@pytest.mark.parametrize("kind", [nn.GroupNorm, nn.LayerNorm])
def test_elsewhere_a_number_keeps_its_type(kind: type[nn.Module]) -> None:
    """A network in half precision that nobody runs under autocast: its next layer takes no float32."""
    unet = seeded_unet().to(torch.bfloat16)
    norms.widen(unet, machine(), compiled=False)
    layer = first(unet, kind)
    assert layer(numbers(layer)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("accelerator", "compiled", "small"),
    [
        (machine(precision="no"), False, True),
        (machine(precision="fp16"), False, True),
        (machine("cuda"), False, True),
        (machine(), True, True),
        (machine(), False, False),
    ],
)
def test_where_they_are_left_alone(
    accelerator: Accelerator, compiled: bool, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = seeded_unet()
    if not small:
        monkeypatch.setattr(workers, "SMALL", sum(weight.numel() for weight in unet.parameters()) - 1)
    norms.widen(unet, accelerator, compiled=compiled)
    assert not any(layer._forward_pre_hooks for layer in unet.modules())
