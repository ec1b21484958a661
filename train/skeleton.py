"""A network without memory: its modules, shapes, strides and types on torch's meta device.

What costs are exact functions of shapes (operations, bytes kept for the backward pass) is counted on it in a second or
two, whatever the size and the device. Counts are remembered on disk by the hash of all that they are a function of.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from data.files import cache_root, write_atomic
from train.adapters import dropout

VERSION = 1  # raise it when the same question would get another answer


@dataclass(frozen=True)
class Question:
    """What a network is asked in one micro-batch: (batch, C, height, width) latents, (batch, tokens, D) states."""

    batch: int
    height: int  # of the latents
    width: int
    tokens: int = 77

    def tensors(self, network: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, timesteps and text states for a U-Net, on the meta device; dropout is told of them."""
        config = network.config
        dropout.set_sample_keys(torch.empty(self.batch, dtype=torch.float64, device="meta"))
        latents = torch.empty(self.batch, config["in_channels"], self.height, self.width, device="meta")
        states = torch.empty(self.batch, self.tokens, config["cross_attention_dim"], device="meta")
        return latents, torch.empty(self.batch, dtype=torch.int64, device="meta"), states


def skeleton(network: nn.Module) -> Any:
    """A copy of a network on the meta device: same code, adapter, frozen weights, types and checkpointing."""
    places = {id(tensor): hollow(tensor) for tensor in (*network.parameters(), *network.buffers())}
    bones: Any = copy.deepcopy(network, places)
    for module in bones.modules():
        # accelerate puts its precision around `forward`, and compiled code belongs to real weights
        vars(module).pop("forward", None)
        module._compiled_call_impl = None
    if hasattr(bones, "set_attn_processor"):
        from diffusers.models.attention_processor import AttnProcessor2_0

        bones.set_attn_processor(AttnProcessor2_0())  # others have kernels that know no meta tensors
    return bones


def autoencoder(config: Mapping[str, Any]) -> Any:
    """The autoencoder of this config on the meta device, in evaluation mode."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        network: Any = AutoencoderKL.from_config(dict(config))
    return network.eval()


def hollow(tensor: Tensor) -> Tensor:
    """A meta tensor of the same shape, strides and type."""
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def remembered(network: nn.Module, question: Any, count: Callable[[], list[int]]) -> list[int]:
    """`count()`, or what it gave for a network of this build and this question before."""
    memo = cache_root() / "counts" / f"{key_of(network, question)}.json"
    try:
        return [int(number) for number in json.loads(memo.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        found = count()
        write_atomic(memo, json.dumps(found))
        return found


def key_of(network: nn.Module, question: Any) -> str:
    """A hash over all that a count depends on; weights' values are not among it."""
    weights = [
        (name, tuple(weight.shape), weight.stride(), str(weight.dtype), weight.requires_grad)
        for name, weight in network.named_parameters()
    ]
    switches = [bool(getattr(module, "gradient_checkpointing", False)) for module in network.modules()]
    modules = [type(module).__name__ for module in network.modules()]
    config = dict(getattr(network, "config", {}))
    facts = [VERSION, torch.__version__, repr(question), weights, switches, modules, repr(sorted(config.items()))]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
