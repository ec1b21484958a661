"""Attention in fewer products: answers and gradients of diffusers' own, and theirs wherever something is unusual."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from tests.small_runs import seeded_unet
from tests.tiny import TEXT_WIDTH
from train import attention, workers
from train.adapters import base as adapters
from train.adapters.full import Full
from train.adapters.lora import Lora
from train.attention import HalfAttention, JoinedAttention

SIDE = 12  # pixels: 144 queries in the first block, more than attention.MANY, and 36 and 9 below


def network(adapter: Full | Lora, frozen: torch.dtype = torch.float32) -> Any:
    """With an adapter that has learnt something, on a base in this precision."""
    unet = seeded_unet().to(frozen)
    adapter.attach(unet, 0)
    draw = torch.Generator().manual_seed(1)
    for name, weight in adapters.trainable(unet).items():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=draw)
    return unet.train()


def asked(unet: Any, tokens: int = 77) -> tuple[Tensor, dict[str, Tensor]]:
    """The answer and the gradients for noise."""
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(2, 4, SIDE, SIDE, generator=draw)
    states = torch.randn(2, tokens, TEXT_WIDTH, generator=draw)
    (answer,) = unet(x, torch.tensor([10, 900]), encoder_hidden_states=states, return_dict=False)
    weights = adapters.trainable(unet)
    gradients = torch.autograd.grad(answer.square().mean(), list(weights.values()), allow_unused=True)
    known = {name: found for name, found in zip(weights, gradients, strict=True) if found is not None}
    return answer.detach(), known


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys() and expected
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    return max(float((found[name] - gradient).abs().max()) for name, gradient in expected.items()) / largest


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The layers that were left to diffusers' processor, when it is asked through ours."""
    calls: list[Any] = []
    call = AttnProcessor2_0.__call__

    def noted(self: Any, attn: Any, *args: Any, **others: Any) -> Tensor:
        if isinstance(self, JoinedAttention):
            calls.append(attn)
        return call(self, attn, *args, **others)

    monkeypatch.setattr(AttnProcessor2_0, "__call__", noted)
    return calls


@pytest.mark.parametrize("tokens", [5, 77, 80])
@pytest.mark.parametrize("adapter", [Full(), Lora(rank=4), Lora(rank=4, alpha=9.0, use_rslora=True)], ids=str)
def test_answers_and_gradients_are_diffusers(adapter: Full | Lora, tokens: int, theirs: list[Any]) -> None:
    unet = network(adapter)
    expected = asked(unet, tokens)
    unet.set_attn_processor(JoinedAttention())
    found = asked(unet, tokens)
    assert not theirs
    assert torch.allclose(found[0], expected[0], rtol=1e-4, atol=1e-5)
    assert furthest(found[1], expected[1]) < 1e-5


def test_a_lora_is_heard(theirs: list[Any]) -> None:
    """The comparison above is worth nothing if the update changes nothing."""
    unet = network(Lora(rank=4))
    unet.set_attn_processor(JoinedAttention())
    changed, _ = asked(unet)
    for name, weight in adapters.trainable(unet).items():
        if "lora_B" in name:
            torch.nn.init.zeros_(weight)
    assert not torch.allclose(changed, asked(unet)[0], atol=1e-3)


def disabled(unet: Any) -> None:
    unet.disable_adapters()
    unet.requires_grad_(True)


def merged(unet: Any) -> None:
    unet.fuse_lora()
    unet.requires_grad_(True)


def two_at_once(unet: Any) -> None:
    unet.add_adapter(Lora(rank=2).peft_config(seeded_unet()), "another")
    unet.set_adapters(["default", "another"], [0.5, 0.5])


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
@pytest.mark.parametrize(
    ("adapter", "change"),
    [
        (Lora(rank=4, use_dora=True), lambda unet: None),
        (Lora(rank=4, dropout=0.5), lambda unet: unet.eval()),
        (Lora(rank=4), disabled),
        (Lora(rank=4), merged),
        (Lora(rank=4), two_at_once),
    ],
    ids=["dora", "dropout", "disabled", "merged", "two"],
)
def test_what_is_unusual_is_left_to_diffusers(adapter: Lora, change: Callable[[Any], Any], theirs: list[Any]) -> None:
    unet = network(adapter)
    change(unet)
    expected = asked(unet)
    unet.set_attn_processor(JoinedAttention())
    found = asked(unet)
    assert theirs
    assert torch.equal(found[0], expected[0]) and furthest(found[1], expected[1]) == 0.0


def in_half(unet: Any, tokens: int = 77) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.autocast("cpu", torch.bfloat16):
        return asked(unet, tokens)


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Of two gradients, in parts of the length of the second."""
    assert found.keys() == expected.keys() and expected
    off = sum(float((found[name].double() - expected[name]).square().sum()) for name in expected)
    return (off / sum(float(whole.double().square().sum()) for whole in expected.values())) ** 0.5


def without_keys(unet: Any) -> None:
    """One of the layers of a product has no LoRA."""
    for layer in unet.modules():
        if hasattr(layer, "to_k"):
            layer.to_k = layer.to_k.base_layer


@pytest.mark.parametrize("tokens", [5, 77, 96, 160])
@pytest.mark.parametrize(
    ("adapter", "frozen", "change"),
    [
        (Full(), torch.float32, lambda unet: None),
        (Lora(rank=4), torch.bfloat16, lambda unet: None),
        (Lora(rank=4), torch.float32, lambda unet: None),
        (Lora(rank=4, alpha=9.0, use_rslora=True), torch.bfloat16, lambda unet: None),
        (Lora(rank=4), torch.bfloat16, without_keys),
    ],
    ids=["full", "lora", "float32 base", "rslora", "no keys"],
)
def test_in_half_precision_it_is_as_near_to_float32_as_diffusers(
    adapter: Full | Lora, frozen: torch.dtype, change: Callable[[Any], Any], tokens: int, theirs: list[Any]
) -> None:
    """From 128 tokens on, heads are filled up; of 96 and 160 the softmax is computed without a copy. How far both are
    off is chance; on the average of these cases it is the same.
    """
    unet = network(adapter, frozen)
    change(unet)
    exact = asked(copy.deepcopy(unet).float(), tokens)
    expected = in_half(unet, tokens)
    unet.set_attn_processor(HalfAttention())
    found = in_half(unet, tokens)
    assert not theirs
    assert 0 < (found[0] - exact[0]).abs().mean() < 1.5 * (expected[0] - exact[0]).abs().mean()
    assert 0 < distance(found[1], exact[1]) < 1.5 * distance(expected[1], exact[1])


def test_an_update_below_the_last_bit_of_its_weight_is_heard_in_half_precision() -> None:
    """bfloat16 has 8 bits: added to the weight before the product, it would be rounded away."""
    draw = torch.Generator().manual_seed(3)
    weight, x = torch.ones(8, 16), torch.randn(1, 9, 16, generator=draw).bfloat16().float()
    down, up = 0.02 * torch.randn(4, 16, generator=draw), 0.01 * torch.randn(8, 4, generator=draw)
    assert torch.equal((weight + up @ down).bfloat16(), weight.bfloat16())
    signs = torch.tensor([1.0, -1.0]).repeat(8)
    x = x.repeat_interleave(2, 2)[..., :16] * signs  # the weight alone makes nothing of it
    with torch.autocast("cpu", torch.bfloat16):
        (made,) = HalfAttention().joined(x, [attention.Product(weight, None, down, up)])
    expected = x @ (weight + up @ down).T
    assert float((made - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize(
    ("kind", "enabled", "dtype"),
    [
        (HalfAttention, False, torch.bfloat16),
        (HalfAttention, True, torch.float16),
        (JoinedAttention, True, torch.bfloat16),
    ],
)
def test_another_precision_is_left_to_diffusers(
    kind: type[JoinedAttention], enabled: bool, dtype: torch.dtype, theirs: list[Any]
) -> None:
    unet = network(Full())
    unet.set_attn_processor(kind())
    with torch.autocast("cpu", dtype, enabled=enabled):
        asked(unet)
    assert theirs


def test_a_weight_of_the_adapter_is_heard() -> None:
    """--lora FILE=0.5 while previews are drawn."""
    unet = network(Lora(rank=4))
    unet.set_adapters(["default"], [0.5])
    expected, _ = asked(unet)
    unet.set_attn_processor(JoinedAttention())
    assert torch.allclose(asked(unet)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "precision", "compiled", "ours"),
    [
        ("cpu", "no", False, JoinedAttention),
        ("cpu", "bf16", False, HalfAttention),
        ("cpu", "fp16", False, AttnProcessor2_0),
        ("cuda", "no", False, AttnProcessor2_0),
        ("cuda", "bf16", False, AttnProcessor2_0),
        ("cpu", "no", True, AttnProcessor2_0),
        ("cpu", "bf16", True, AttnProcessor2_0),
    ],
)
def test_where_it_is_used(kind: str, precision: str, compiled: bool, ours: type[AttnProcessor2_0]) -> None:
    unet = seeded_unet()
    accelerator = cast(Accelerator, SimpleNamespace(device=torch.device(kind), mixed_precision=precision))
    attention.join(unet, accelerator, compiled=compiled)
    assert {type(found) for found in unet.attn_processors.values()} == {ours}


def test_a_large_network_keeps_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = seeded_unet()
    accelerator = cast(Accelerator, SimpleNamespace(device=torch.device("cpu"), mixed_precision="no"))
    monkeypatch.setattr(workers, "SMALL", sum(weight.numel() for weight in unet.parameters()) - 1)
    attention.join(unet, accelerator, compiled=False)
    assert not any(isinstance(found, JoinedAttention) for found in unet.attn_processors.values())
