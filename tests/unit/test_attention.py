"""Attention in fewer products: answers and gradients of diffusers' own, and theirs wherever something is unusual."""

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
from train.attention import JoinedAttention

SIDE = 12  # pixels: 144 queries in the first block, more than attention.MANY, and 36 and 9 below


def network(adapter: Full | Lora) -> Any:
    """With an adapter that has learnt something."""
    unet = seeded_unet()
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


def test_half_precision_is_left_to_diffusers(theirs: list[Any]) -> None:
    unet = network(Full())
    unet.set_attn_processor(JoinedAttention())
    with torch.autocast("cpu", torch.bfloat16):
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
        ("cpu", "no", False, True),
        ("cuda", "no", False, False),
        ("cpu", "bf16", False, False),
        ("cpu", "no", True, False),
    ],
)
def test_where_it_is_used(kind: str, precision: str, compiled: bool, ours: bool) -> None:
    unet = seeded_unet()
    accelerator = cast(Accelerator, SimpleNamespace(device=torch.device(kind), mixed_precision=precision))
    attention.join(unet, accelerator, compiled=compiled)
    assert all(isinstance(found, JoinedAttention) == ours for found in unet.attn_processors.values())


def test_a_large_network_keeps_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = seeded_unet()
    accelerator = cast(Accelerator, SimpleNamespace(device=torch.device("cpu"), mixed_precision="no"))
    monkeypatch.setattr(workers, "SMALL", sum(weight.numel() for weight in unet.parameters()) - 1)
    attention.join(unet, accelerator, compiled=False)
    assert not any(isinstance(found, JoinedAttention) for found in unet.attn_processors.values())
