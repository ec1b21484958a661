"""Attention of a small network on a CPU in fewer and larger products: the same sums in another order.

A product of a few hundred rows takes less time than what surrounds it, so layers that read the same numbers are
computed as one: queries, keys and values. In float32 so are a weight and its low-rank update, (W + s B A) x in place of
W x + s B (A x); in half precision a small update would be lost in the rounding of its weight. There, attention is two
products and a softmax, for the backward pass of torch's fused one takes four times as long.

A step of the embedded network in float32 takes 0.91 of the time (LoRA) and 0.99 (all weights); in bfloat16, with what
train/norms.py and memory.keep_freed() save, 0.55 and 0.60 (batches of 16, two threads, AMD, 2026-11-22).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from train import workers
from train.libraries import AttnProcessor2_0, LoraLinear

FILLED_TO = 16  # keys: a multiple fills the widest vector registers; 77 take torch's attention longer than 80
MANY = 128  # queries: for fewer, filling up takes as long as it saves
EVEN = 32  # keys: of so many bfloat16 numbers at a time torch's softmax is fast, what is left over is slow
MOST = 2**17  # scores of a head that are written out: 1024 x 77 are, 1024 x 1024 take memory that is worth more
HEADS_TO = 8  # numbers of a head: oneDNN's bfloat16 products are slow for what is no multiple


class Product(NamedTuple):
    """What makes a layer's answer, (W + B A) x + b or, where small updates must not be rounded, W x + B (A x) + b."""

    weight: Tensor  # (D, C)
    bias: Tensor | None  # (D,)
    down: Tensor  # A, (r, C); r is 0 without a LoRA
    up: Tensor  # B times its scale, (D, r)


def join(unet: Any, accelerator: Accelerator, *, compiled: bool) -> None:
    """Let a small network compute it like this, on a CPU. Names, weights and files stay what they are.

    In a large one joined weights, which the backward pass needs, would take memory that is worth more.
    """
    kind = {"no": JoinedAttention, "bf16": HalfAttention}.get(accelerator.mixed_precision)
    if kind and workers.is_small_on_cpu(unet, accelerator) and not compiled:
        unet.set_attn_processor(kind())


class JoinedAttention(AttnProcessor2_0):
    """diffusers' attention with queries, keys and values in one product, in float32; what it does not know is left to
    theirs.
    """

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
        known = attention_mask is None and is_plain(attn) and all(map(is_known, layers))
        if not (known and self.is_for(layers)):
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **others)
        products = list(map(product_of, layers))
        if encoder_hidden_states is None:
            parts = self.joined(hidden_states, products[:3])
        else:
            parts = self.joined(hidden_states, products[:1]) + self.joined(encoder_hidden_states, products[1:3])
        heads = [part.unflatten(2, (attn.heads, -1)).transpose(1, 2) for part in parts]
        (out,) = self.joined(self.attended(*heads).transpose(1, 2).flatten(2), products[3:])
        return attn.to_out[1](out)

    def is_for(self, layers: list[Any]) -> bool:
        """Float32 on a CPU."""
        return not torch.is_autocast_enabled("cpu") and all(is_here(layer, torch.float32) for layer in layers)

    def joined(self, x: Tensor, products: list[Product]) -> tuple[Tensor, ...]:
        """(B, N, C) -> what each layer makes of it, (B, N, D) each."""
        weights = [torch.addmm(each.weight, each.up, each.down) if len(each.down) else each.weight for each in products]
        return split(functional.linear(x, stacked(weights)), products)

    def attended(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(B, heads, N, D), (B, heads, L, D) twice -> (B, heads, N, D)."""
        length = keys.shape[2]
        more = -length % FILLED_TO
        mask = None
        if more and queries.shape[2] >= MANY:
            mask = keys.new_zeros(1, 1, 1, length + more)
            mask[..., length:] = -torch.inf
            keys, values = (functional.pad(part, (0, 0, 0, more)) for part in (keys, values))
        return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)


class HalfAttention(JoinedAttention):
    """The same under autocast to bfloat16. Scores are rounded to it before the softmax, which is computed in float32;
    torch's fused attention rounds what comes out of the softmax only.
    """

    def is_for(self, layers: list[Any]) -> bool:
        """Autocast to bfloat16 on a CPU."""
        half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        return half and all(is_here(layer, torch.float32, torch.bfloat16) for layer in layers)

    def joined(self, x: Tensor, products: list[Product]) -> tuple[Tensor, ...]:
        made = functional.linear(x, stacked([each.weight for each in products]))
        if any(len(each.down) for each in products):
            low = functional.linear(x, stacked([each.down for each in products]))
            made = made + functional.linear(low, torch.block_diag(*(each.up for each in products)))
        return split(made, products)

    def attended(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return half_attended(queries, keys, values)


def half_attended(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of bfloat16 numbers, written out where its scores take little memory. Shapes as in `attended`."""
    size = queries.shape[3]
    if queries.shape[2] * keys.shape[2] > MOST:
        return functional.scaled_dot_product_attention(queries, keys, values)
    queries = queries * size**-0.5
    more = -size % HEADS_TO
    if more and min(queries.shape[2], keys.shape[2]) >= MANY:
        queries, keys, values = (functional.pad(part, (0, more)) for part in (queries, keys, values))
    scores = torch.matmul(queries, keys.transpose(2, 3))
    # torch computes it in float32 either way
    shares = scores.softmax(-1) if keys.shape[2] % EVEN == 0 else scores.softmax(-1, dtype=torch.float32)
    return torch.matmul(shares.to(values.dtype), values)[..., :size]


def is_plain(attn: Any) -> bool:
    """A transformer block's attention: no norms or scales of its own, no residual."""
    norms = attn.spatial_norm, attn.group_norm, attn.norm_q, attn.norm_k, attn.norm_cross
    return not any(norms) and not attn.residual_connection and attn.rescale_output_factor == 1


def is_known(layer: nn.Module) -> bool:
    """A linear layer, perhaps with one LoRA that nothing is dropped from."""
    if type(layer) is nn.Linear:
        return True
    if type(layer) is not LoraLinear or layer.merged or layer.disable_adapters or len(layer.active_adapters) != 1:
        return False
    (name,) = layer.active_adapters
    special = name in layer.lora_variant or layer.lora_bias.get(name) or layer.fan_in_fan_out
    plain = not special and type(layer.lora_dropout[name]) is nn.Identity if name in layer.lora_A else False
    return plain and type(layer.base_layer) is nn.Linear


def is_here(layer: Any, *dtypes: torch.dtype) -> bool:
    """Whether the weight of a layer that is known is on a CPU, in one of these types."""
    weight = getattr(layer, "base_layer", layer).weight
    return weight.device.type == "cpu" and weight.dtype in dtypes


def product_of(layer: Any) -> Product:
    """Of a layer that is known."""
    if type(layer) is nn.Linear:
        weight = layer.weight
        return Product(weight, layer.bias, weight.new_zeros(0, weight.shape[1]), weight.new_zeros(weight.shape[0], 0))
    (name,), base = layer.active_adapters, layer.base_layer
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    return Product(base.weight, base.bias, down, layer.scaling[name] * up)


def stacked(weights: list[Tensor]) -> Tensor:
    return weights[0] if len(weights) == 1 else torch.cat(weights)


def split(made: Tensor, products: list[Product]) -> tuple[Tensor, ...]:
    """(B, N, D + ...) -> (B, N, D) each, with its bias."""
    parts = made.split([len(each.weight) for each in products], dim=2)
    return tuple(
        part if each.bias is None else part + each.bias.to(part.dtype)
        for part, each in zip(parts, products, strict=True)
    )
