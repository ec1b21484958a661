"""What is trained: the whole U-Net, some of its blocks, or a low-rank adapter: LoRA, DoRA, rsLoRA.

To add a kind: its options in train/config.py, its functions in INJECT and in EXPORT of train/exporters/run_export.py.
Trainable means `requires_grad`: saving, loading and counting go by that, never by matching names.

LoRA is a low-rank update beside each chosen layer, W + s B A with s = alpha / rank. Source: Hu et al. 2021, arXiv
2106.09685, section 4.1; the layers are peft's. DoRA: Liu et al. 2024, arXiv 2402.09353, W' = m (W + s B A) /
||W + s B A|| with one magnitude m for each row (eq. 5; the norm is a constant for the gradient, section 4.3). rsLoRA,
s = alpha / sqrt(rank): Kalajdzievski 2023, arXiv 2312.03732, section 3.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.dora import DoraConv2dLayer
from torch import Tensor, nn

from data import rng
from data.errors import InputError, suggest
from train.config import BLOCKS, TARGETS, AdapterOptions, FullOptions, LoraOptions
from train.model import copy_tensors


def inject(unet: Any, options: AdapterOptions, seed: int) -> None:
    """Make a frozen U-Net trainable; new weights are float32 and a function of the seed."""
    INJECT[options.kind](unet, options, seed)


def trainable_parameters(unet: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name, in the network's order."""
    return {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}


def trainable_state(unet: nn.Module) -> dict[str, Tensor]:
    """A copy of the trainable parameters on the CPU."""
    return {name: parameter.detach().cpu().clone() for name, parameter in trainable_parameters(unet).items()}


def load_trainable_state(unet: nn.Module, saved: Mapping[str, Tensor], where: object) -> None:
    """Restore a saved state; every name and shape must match. Raises InputError."""
    copy_tensors(saved, trainable_parameters(unet), "weights", where)


# ---- the U-Net itself


def unfreeze(unet: Any, options: FullOptions, seed: int) -> None:
    """Train the chosen blocks. All weights become float32, which keeps each number of a half-precision base."""
    chosen = resolve_blocks(unet, options.blocks, "--adapter.blocks")
    unet.float()
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(is_inside(name, chosen))
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm) and module.weight.requires_grad:
            module.register_forward_pre_hook(require_input_gradient)


def require_input_gradient(norm: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Let the input of a trained group norm need a gradient too, as torch 2.13 on a CPU (2026-11-21) crashes otherwise:
    with channels-last input from a frozen block, its backward pass writes to a null pointer.
    """
    (x,) = inputs
    crashes = norm.training and x.device.type == "cpu" and not x.requires_grad
    return (x.detach().requires_grad_(),) if crashes else inputs


# ---- LoRA


def inject_lora(unet: Any, options: LoraOptions, seed: int) -> None:
    """Add the layers. A is uniform as in the paper's code, B is zero, so that training starts from the base."""
    config = peft_config(unet, options)
    unet.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
        unet.add_adapter(config)
    for name, parameter in unet.named_parameters():
        if not parameter.requires_grad:
            continue
        parameter.data = parameter.data.float()  # whatever precision the base is in
        if "lora_B" in name:
            nn.init.zeros_(parameter)
        elif "lora_A" in name:
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=rng.generator(seed, "lora", name))
    if options.use_dora:
        init_dora(unet)
    for name, layer in adapted_layers(unet) if options.dropout else ():
        # in place of torch's, which draws from the global generator
        layer.lora_dropout["default"] = PositionedDropout(options.dropout, name)


def peft_config(unet: Any, options: LoraOptions) -> LoraConfig:
    """The options in peft's terms. Raises InputError for a layer or block that this U-Net does not have."""
    modules = [module for target in options.targets for module in TARGETS.get(target, [target])]
    check_targets(unet, modules)
    ranks = block_ranks(unet, options, modules)
    alpha = float(options.rank if options.alpha is None else options.alpha)
    return LoraConfig(
        r=options.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=modules,
        bias="none",
        lora_dropout=options.dropout,
        use_dora=options.use_dora,
        use_rslora=options.use_rslora,
        # whole names: a pattern's order is lost in the exported header
        rank_pattern={f"^{name}": rank for name, rank in ranks.items()},
        alpha_pattern={f"^{name}": alpha * rank / options.rank for name, rank in ranks.items()},
    )


def check_targets(unet: Any, modules: list[str]) -> None:
    """Each name must be the end of at least one module's name. Raises InputError."""
    layers = [name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    ends = {".".join(layer.split(".")[start:]) for layer in layers for start in range(layer.count(".") + 1)}
    for module in modules:
        if module not in ends:
            what = f"no layer is called {module!r}{suggest(module, [*TARGETS, *sorted(ends, key=len)])}"
            allowed = f"{', '.join(TARGETS)}, or the end of a layer's name such as {layers[-1]}"
            raise InputError(what, where="--adapter.targets", allowed=allowed)


def block_ranks(unet: Any, options: LoraOptions, modules: list[str]) -> dict[str, int]:
    """The rank of each layer that has one of its own. Raises InputError for a block that contains no adapted layer."""
    ranks = {name: int(rank) for name, _, rank in (text.partition("=") for text in options.ranks)}
    resolve_blocks(unet, list(ranks), "--adapter.ranks")
    layers = [name for name, _ in unet.named_modules() if f".{name}".endswith(tuple(f".{end}" for end in modules))]
    for block in ranks:
        if not any(is_inside(layer, [block]) for layer in layers):
            fix = "Add its layers with --adapter.targets."
            raise InputError(f"block {block!r} contains no adapted layer", where="--adapter.ranks", fix=fix)
    own: dict[str, int] = {}
    for layer in layers:
        innermost = max((block for block in ranks if is_inside(layer, [block])), key=len, default=None)
        if innermost is not None and ranks[innermost] != options.rank:
            own[layer] = ranks[innermost]
    return own


# ---- blocks of the U-Net by name: `up_blocks.3`, `mid_block`, `conv_out`, and presets of them

BLOCK_PRESETS = ("all", "last-layers")


def resolve_blocks(unet: Any, names: Sequence[str], where: str) -> list[str]:
    """Module names for names and presets. Raises InputError for a name that no part of this U-Net has."""
    known = [name for name, module in unet.named_modules() if name and next(module.parameters(), None) is not None]
    found: list[str] = []
    for name in names:
        if name not in BLOCK_PRESETS and name not in known:
            near = suggest(name, [*BLOCK_PRESETS, *sorted(known, key=len)])
            raise InputError(f"this U-Net has no block {name!r}{near}", where=where, allowed=BLOCKS)
        found += expand_preset(unet, name) if name in BLOCK_PRESETS else [name]
    return list(dict.fromkeys(found))


def expand_preset(unet: Any, name: str) -> list[str]:
    """all: every part. last-layers: the last up block, the output norm and the output convolution."""
    if name == "all":
        own = [weight for weight, _ in unet.named_parameters(recurse=False)]
        return [*(child for child, _ in unet.named_children()), *own]
    return [f"up_blocks.{len(unet.up_blocks) - 1}", "conv_norm_out", "conv_out"]


def is_inside(name: str, blocks: Sequence[str]) -> bool:
    """Whether a module or parameter lies in one of the blocks."""
    return any(name == block or name.startswith(f"{block}.") for block in blocks)


# ---- DoRA


class ConvMagnitude(DoraConv2dLayer):
    """peft's for a convolution. Its own cannot read channels-last weights, and takes norms in half precision."""

    def get_lora_weight(self, lora_A: nn.Module, lora_B: nn.Module, adapter_name: str | None = None) -> Tensor:
        """(out, in * k * k): B A, whatever the order in memory."""
        down, up = lora_A.weight, lora_B.weight
        assert isinstance(down, Tensor) and isinstance(up, Tensor)
        return up.flatten(1) @ down.flatten(1)

    def get_weight_norm(
        self, weight: Tensor, lora_weight: Tensor, scaling: float, adapter_name: str | None = None
    ) -> Tensor:
        """(1, out, 1, 1) float32: the norm of each output's weights."""
        changed = weight.float() + scaling * lora_weight.float()
        return changed.flatten(1).norm(dim=1).view(1, -1, *[1] * (weight.ndim - 2))


def adapted_layers(unet: nn.Module, adapter: str = "default") -> Iterator[tuple[str, Any]]:
    """The layers that carry an adapter, by name."""
    for name, module in unet.named_modules():
        if isinstance(module, LoraLayer) and adapter in module.lora_A:
            yield name, module


@torch.no_grad()
def init_dora(unet: nn.Module, adapter: str = "default") -> None:
    """Magnitudes in float32, equal to the norms that the forward pass takes: then B = 0 is the base, bit for bit."""
    for _, layer in adapted_layers(unet, adapter):
        weight = layer.get_base_layer().weight
        if weight.ndim > 2:
            layer.lora_magnitude_vector[adapter] = ConvMagnitude(fan_in_fan_out=False)
        magnitude = layer.lora_magnitude_vector[adapter]
        norm = magnitude.get_weight_norm(weight.float(), torch.zeros_like(weight, dtype=torch.float32), 1.0)
        magnitude.weight = nn.Parameter(norm)


def dora_magnitudes(layer: Any, adapter: str = "default") -> Tensor | None:
    """(out,) DoRA's magnitudes of a layer, or None where there are none."""
    vectors = layer.lora_magnitude_vector
    return vectors[adapter].weight.detach().flatten() if vectors is not None and adapter in vectors else None


# ---- dropout whose masks are a function of (seed, optimiser step, slot), never of a generator's state: a resumed run,
# another number of processes or more accumulation drop the same numbers of the same samples. Each sample's timestep
# uniform, 53 bits drawn from (seed, step, slot), identifies its position, also when a micro-batch is split.

sample_keys: list[Tensor] = []  # (B,) int64: of the samples in the network; one network trains in a process


def set_sample_keys(uniforms: Tensor) -> None:
    """Say which samples the next forward pass (and its backward pass) is about: (B,) float64, one of each position."""
    sample_keys[:] = [uniforms.double().view(torch.int64)]


class PositionedDropout(nn.Module):
    """Zeroes a share of each sample's inputs and scales the others by 1 / (1 - share); the identity in evaluation.

    (B, ...) -> (B, ...). name: of the layer, so that each has masks of its own. Source: Srivastava et al. 2014,
    JMLR 15, section 4.
    """

    def __init__(self, share: float, name: str) -> None:
        super().__init__()
        self.share = share
        self.salt = rng.seed_for("lora dropout", name)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        (keys,) = sample_keys
        assert len(keys) == len(x), "set_sample_keys() comes before each forward pass"
        dropped = rng.counter_bits(keys.to(x.device), self.salt, x[0].numel()) < round(self.share * 2**rng.COUNTER_BITS)
        return x.masked_fill(dropped.view(x.shape), 0.0) / (1.0 - self.share)


INJECT: dict[str, Callable[[Any, Any, int], None]] = {"lora": inject_lora, "full": unfreeze}
