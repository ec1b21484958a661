"""Floating-point operations of a U-Net, counted by running its code on the meta device; peaks of common GPUs."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from data.atomic_io import cache_root, write_atomic
from train import lora
from train.model import Denoiser

COUNTS_VERSION = 1  # raise it when a count changes for the same input
TERA = 1e12

# Dense peaks from the data sheets, TFLOP/s: (fp16 and bf16 on tensor cores, tf32 on tensor cores, fp32). The longest
# name that is part of the device's name is used. NVIDIA halves GeForce cards with fp32 accumulation.
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
    """Operations for one sample: a forward pass, and a training step (forward and backward, no recomputation)."""

    forward: float
    step: float


@dataclass(frozen=True)
class UnetInput:
    """The shape of one micro-batch: (batch, C, height, width) latents, (batch, tokens, D) text states."""

    batch: int
    height: int  # of the latents
    width: int
    tokens: int = 77

    def meta_tensors(self, unet: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, timesteps and text states on the meta device; also sets the keys of LoRA dropout."""
        lora.set_sample_keys(torch.empty(self.batch, dtype=torch.float64, device="meta"))
        latents = torch.empty(self.batch, unet.config["in_channels"], self.height, self.width, device="meta")
        states = torch.empty(self.batch, self.tokens, unet.config["cross_attention_dim"], device="meta")
        return latents, torch.empty(self.batch, dtype=torch.int64, device="meta"), states


def meta_copy(network: nn.Module) -> Any:
    """A copy on the meta device: same code, adapters, frozen weights, dtypes and gradient checkpointing."""
    places = {id(tensor): meta_tensor(tensor) for tensor in (*network.parameters(), *network.buffers())}
    copied: Any = copy.deepcopy(network, places)
    for module in copied.modules():
        # accelerate wraps `forward` for autocast, and compiled code belongs to the real weights
        vars(module).pop("forward", None)
        module._compiled_call_impl = None
    if hasattr(copied, "set_attn_processor"):
        copied.set_attn_processor(AttnProcessor2_0())  # other processors have kernels without meta implementations
    return copied


def meta_tensor(tensor: Tensor) -> Tensor:
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def meta_autoencoder(config: Mapping[str, Any]) -> Any:
    """The autoencoder of this config on the meta device, in evaluation mode."""
    with torch.device("meta"):
        return AutoencoderKL.from_config(dict(config)).eval()  # type: ignore[union-attr]


def set_checkpointing(network: Any, on: bool) -> None:
    """Gradient checkpointing on or off, for networks that support it."""
    if on:
        network.enable_gradient_checkpointing()
    elif getattr(network, "is_gradient_checkpointing", False):
        network.disable_gradient_checkpointing()


def cached_count(network: nn.Module, question: Any, count: Callable[[], list[int]]) -> list[int]:
    """`count()`, cached on disk by the network's build (not its weights' values) and the question."""
    memo = cache_root() / "counts" / f"{count_key(network, question)}.json"
    try:
        return [int(number) for number in json.loads(memo.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        counts = count()
        write_atomic(memo, json.dumps(counts))
        return counts


def count_key(network: nn.Module, question: Any) -> str:
    weights = [
        (name, tuple(weight.shape), weight.stride(), str(weight.dtype), weight.requires_grad)
        for name, weight in network.named_parameters()
    ]
    modules = [(type(m).__name__, bool(getattr(m, "gradient_checkpointing", False))) for m in network.modules()]
    config = repr(sorted(dict(getattr(network, "config", {})).items()))
    facts = [COUNTS_VERSION, torch.__version__, repr(question), weights, modules, config]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def step_flops(unet: nn.Module, shape: UnetInput, *, checkpointing: bool = False) -> int:
    """Operations of forward and backward for shape.batch samples, frozen weights considered.

    checkpointing: include what gradient checkpointing recomputes (what the hardware does, not what the model needs).
    """
    return forward_and_step_flops(unet, shape, checkpointing)[1]


def forward_and_step_flops(unet: nn.Module, shape: UnetInput, checkpointing: bool = False) -> list[int]:
    """(forward alone, forward and backward). On the meta device attention is two matrix products."""

    def count() -> list[int]:
        copied = meta_copy(unet).train()
        set_checkpointing(copied, checkpointing)
        with FlopCounterMode(display=False) as counter:
            predicted = Denoiser(copied)(*shape.meta_tensors(copied))
            forward = int(counter.get_total_flops())
            predicted.square().mean().backward()
        return [forward, int(counter.get_total_flops())]

    return cached_count(unet, ("flops", shape, checkpointing), count)


@torch.no_grad()
def decode_flops(vae_config: Mapping[str, Any], height: int, width: int) -> int:
    """Operations of decoding one image. height, width: of its latents."""
    vae = meta_autoencoder(vae_config)

    def count() -> list[int]:
        with FlopCounterMode(display=False) as counter:
            vae.decode(torch.empty(1, vae_config["latent_channels"], height, width, device="meta"))
        return [int(counter.get_total_flops())]

    return cached_count(vae, ("decode flops", height, width), count)[0]


def flops_by_size(unet: nn.Module, sizes: Iterable[tuple[int, int]], tokens: int) -> dict[tuple[int, int], Flops]:
    """The operations for one sample of each latent size (height, width).

    Layers cost in proportion to the area and self-attention to its square, so three areas give all others exactly
    (sides are multiples of what the U-Net halves, so no layer rounds).
    """
    sizes = list(sizes)
    by_area = {height * width: (height, width) for height, width in sizes}
    counts = {
        area: forward_and_step_flops(unet, UnetInput(1, *size, tokens)) for area, size in sorted(by_area.items())[:3]
    }
    forward, step = ({area: pair[which] for area, pair in counts.items()} for which in (0, 1))
    return {(h, w): Flops(interpolate(forward, h * w), interpolate(step, h * w)) for h, w in sizes}


def interpolate(points: Mapping[int, int], x: int) -> float:
    """Lagrange's polynomial through integer points, exact, at x."""
    total = Fraction(0)
    for a, value in points.items():
        term = Fraction(value)
        for b in points:
            term *= Fraction(x - b, a - b) if b != a else 1
        total += term
    return float(total)


def mean_flops(costs: Mapping[tuple[int, int], Flops], counts: Mapping[tuple[int, int], int]) -> Flops:
    """The mean over an epoch: buckets take turns in proportion to their images."""
    total = sum(counts.values())
    forward = sum(costs[size].forward * number for size, number in counts.items()) / total
    return Flops(forward, sum(costs[size].step * number for size, number in counts.items()) / total)


def peak_flops(device: torch.device, precision: str = "no") -> float | None:
    """Peak FLOP/s of the device in accelerate's precision (no, fp16, bf16); None if it is not in PEAKS."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), precision, bool(torch.backends.cuda.matmul.allow_tf32))


def peak_of(name: str, precision: str, tf32: bool) -> float | None:
    """Peak FLOP/s by the device's name, e.g. NVIDIA A100-SXM4-80GB."""
    words = set(name.replace("-", " ").split())
    known = [key for key in PEAKS if set(key.split()) <= words]
    if not known:
        return None
    half, tensor32, plain = PEAKS[max(known, key=len)]
    if precision in ("fp16", "bf16"):
        return half * TERA
    return (tensor32 if tf32 and tensor32 else plain) * TERA
