"""Attention on a CPU in fewer and larger products: the same sums in another order.

A product of a few hundred rows takes less time than what surrounds it, so layers that read the same numbers are
computed as one: queries, keys and values; and a weight with its low-rank update, (W + s B A) x in place of
W x + s B (A x). A step of LoRA on the embedded network takes 0.91 of the time, one of all weights 0.99
(tests/benchmarks/trainer_speed.py's network, one thread, 2026-11-22).
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from train import workers
from train.libraries import AttnProcessor2_0, LoraLinear

FILLED_TO = 16  # keys: a multiple fills the widest vector registers; 77 take torch's attention longer than 80
MANY = 128  # queries: for fewer, a mask takes as long as it saves


def join(unet: Any, accelerator: Accelerator, *, compiled: bool) -> None:
    """Let a small network compute it like this, on a CPU in float32. Names, weights and files stay what they are.

    In a large one the joined weights, which the backward pass needs again, would take memory that is worth more.
    """
    plain = accelerator.device.type == "cpu" and accelerator.mixed_precision == "no" and not compiled
    if plain and workers.is_small(unet):
        unet.set_attn_processor(JoinedAttention())


class JoinedAttention(AttnProcessor2_0):
    """diffusers' attention with queries, keys and values in one product; what it does not know is left to theirs."""

    def __call__(  # type: ignore[override]
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **others: Any,
    ) -> Tensor:
        layers = [attn.to_q, attn.to_k, attn.to_v, attn.to_out[0]]
        if attention_mask is not None or not (is_plain(attn) and all(map(is_known, layers))):
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **others)
        mask = None
        if encoder_hidden_states is None:
            queries, keys, values = joined(hidden_states, layers[:3])
        else:
            (queries,) = joined(hidden_states, layers[:1])
            states, mask = filled_up(encoder_hidden_states, queries.shape[1])
            keys, values = joined(states, layers[1:3])
        parts = [part.unflatten(2, (attn.heads, -1)).transpose(1, 2) for part in (queries, keys, values)]
        seen = functional.scaled_dot_product_attention(*parts, attn_mask=mask).transpose(1, 2).flatten(2)
        (out,) = joined(seen, layers[3:])
        return attn.to_out[1](out)


def is_plain(attn: Any) -> bool:
    """A transformer block's attention: no norms or scales of its own, no residual."""
    norms = attn.spatial_norm, attn.group_norm, attn.norm_q, attn.norm_k, attn.norm_cross
    return not any(norms) and not attn.residual_connection and attn.rescale_output_factor == 1


def is_known(layer: nn.Module) -> bool:
    """A linear layer, perhaps with one LoRA that nothing is dropped from, in float32 on a CPU."""
    if type(layer) is nn.Linear:
        return is_here(layer.weight)
    if type(layer) is not LoraLinear or layer.merged or layer.disable_adapters or len(layer.active_adapters) != 1:
        return False
    (name,), base = layer.active_adapters, layer.base_layer
    special = name in layer.lora_variant or layer.lora_bias.get(name) or layer.fan_in_fan_out
    plain = not special and type(layer.lora_dropout[name]) is nn.Identity if name in layer.lora_A else False
    return plain and type(base) is nn.Linear and is_here(base.weight)


def is_here(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def joined(x: Tensor, layers: list[Any]) -> tuple[Tensor, ...]:
    """(B, N, C) -> what each layer makes of it, (B, N, D) each, in one product."""
    weights, biases = zip(*map(weight_and_bias, layers), strict=True)
    if len(layers) == 1:
        return (functional.linear(x, weights[0], biases[0]),)
    made = functional.linear(x, torch.cat(weights)).split([len(weight) for weight in weights], dim=2)
    return tuple(part if bias is None else part + bias for part, bias in zip(made, biases, strict=True))


def weight_and_bias(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Of a layer that is known: W + s B A."""
    if type(layer) is nn.Linear:
        return layer.weight, layer.bias
    (name,), base = layer.active_adapters, layer.base_layer
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    return torch.addmm(base.weight, up, down, alpha=layer.scaling[name]), base.bias


def filled_up(states: Tensor, queries: int) -> tuple[Tensor, Tensor | None]:
    """(B, L, C) with as many more rows as registers want, and a mask that hides them, if that saves time."""
    length = states.shape[1]
    more = -length % FILLED_TO
    if not more or queries < MANY:
        return states, None
    mask = states.new_zeros(1, 1, 1, length + more)
    mask[..., length:] = -torch.inf
    return functional.pad(states, (0, 0, 0, more)), mask
