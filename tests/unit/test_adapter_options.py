"""Blocks, ranks, DoRA, rsLoRA and dropout: what is trained is what was asked, and masks follow from positions alone."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from data import rng
from data.errors import InputError
from train import adapters, model
from train.adapters import PositionedDropout, adapted_layers, dora_magnitudes, set_sample_keys, trainable_parameters
from train.config import FullOptions, LoraOptions
from train.exporters.verify import probe_output
from train.model import BaseModel

EVERYTHING = ["attention", "feed-forward", "convolutions"]


@pytest.fixture
def base(tiny_model: Path) -> BaseModel:
    return model.load_model(str(tiny_model))


def lora(**given: Any) -> LoraOptions:
    return LoraOptions.model_validate({"rank": 4, "targets": EVERYTHING, **given})


def move(unet: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in trainable_parameters(unet).items():
            parameter += 0.3 * rng.normal(tuple(parameter.shape), "moved", name)


def uniforms(*slots: int, step: int = 3) -> Tensor:
    return torch.tensor([rng.uniform("timestep", 0, step, slot) for slot in slots], dtype=torch.float64)


def ask(base: BaseModel, *slots: int, step: int = 3) -> Tensor:
    """The network's answers in training, about samples that are functions of their slots."""
    noisy = torch.stack([rng.normal((4, 8, 8), "noisy", slot) for slot in slots])
    states = torch.stack([rng.normal((5, 32), "states", slot) for slot in slots])
    set_sample_keys(uniforms(*slots, step=step))
    return base.unet(noisy, torch.full((len(slots),), 500), states, return_dict=False)[0]


# ---- blocks


@pytest.mark.parametrize(
    ("names", "prefixes"),
    [
        (["last-layers"], ("up_blocks.1.", "conv_norm_out.", "conv_out.")),
        (["mid_block", "up_blocks.0"], ("mid_block.", "up_blocks.0.")),
        (["up_blocks.1.attentions.1", "conv_in"], ("up_blocks.1.attentions.1.", "conv_in.")),
        (["all"], ("",)),
    ],
)
def test_the_chosen_blocks_are_trained_in_float32_on_a_half_base(
    names: list[str], prefixes: tuple[str, ...], tiny_model: Path
) -> None:
    half = model.load_model(str(tiny_model), dtype=torch.float16)
    before = {name: tensor.clone() for name, tensor in half.unet.state_dict().items()}
    adapters.inject(half.unet, FullOptions(blocks=names), 1)
    half.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    half.unet.train()
    assert {parameter.dtype for parameter in half.unet.parameters()} == {torch.float32}
    assert set(trainable_parameters(half.unet)) == {name for name in before if name.startswith(prefixes)}
    ask(half, 0, 1).square().mean().backward()  # used to crash at a frozen block's edge, see train_norms_safely
    assert {name for name, p in half.unet.named_parameters() if p.grad is not None} == set(
        trainable_parameters(half.unet)
    )
    move(half.unet)
    for name, tensor in half.unet.state_dict().items():
        assert torch.equal(tensor.half(), before[name]) == (not name.startswith(prefixes)), name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_at_a_frozen_edge_are_those_of_training_everything(checkpointing: bool, tiny_model: Path) -> None:
    found: list[dict[str, torch.Tensor]] = []
    for names in (["last-layers"], ["all"]):
        base = model.load_model(str(tiny_model))
        adapters.inject(base.unet, FullOptions(blocks=names), 1)
        base.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        base.unet.train()
        if checkpointing:
            base.unet.enable_gradient_checkpointing()
        weights, loss = trainable_parameters(base.unet), ask(base, 0, 1).square().mean()
        loss.backward()
        gradients = [weight.grad for weight in weights.values() if weight.grad is not None]
        found.append(dict(zip(weights, gradients, strict=True)))
    assert len(found[0]) < len(found[1])
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "up_block.1",
            "--adapter.blocks: this U-Net has no block 'up_block.1', did you mean 'up_blocks.1'?; allowed: all",
        ),
        ("last_layers", "no block 'last_layers', did you mean 'last-layers'?"),
        ("up_blocks.7", "no block 'up_blocks.7', did you mean 'up_blocks."),
    ],
)
def test_unknown_blocks_are_refused(name: str, message: str, base: BaseModel) -> None:
    with pytest.raises(InputError) as caught:
        adapters.inject(base.unet, FullOptions(blocks=["conv_out", name]), 1)
    assert message in str(caught.value)


def test_labels_name_folders() -> None:
    labels = [
        FullOptions().label,
        FullOptions(blocks=["mid_block", "conv_out"]).label,
        FullOptions(blocks=list("abcd")).label,
    ]
    assert labels == ["full", "full-mid_block-conv_out", "full-4-blocks"]
    assert (lora().label, lora(use_dora=True).label) == ("lora-r4", "dora-r4")
    with pytest.raises(InputError, match=r"--adapter\.blocks: no blocks are chosen; allowed: all, last-layers"):
        FullOptions(blocks=[])


# ---- ranks and scales


def layers(base: BaseModel) -> dict[str, Any]:
    return dict(adapted_layers(base.unet))


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_the_smallest_block_that_fits_sets_the_rank_and_scales_stay_equal(alpha: float | None, base: BaseModel) -> None:
    adapters.inject(base.unet, lora(alpha=alpha, ranks=["up_blocks=8", "up_blocks.1.attentions=2", "mid_block=3"]), 1)
    for name, layer in layers(base).items():
        expected = 8 if name.startswith("up_blocks") else 3 if name.startswith("mid_block") else 4
        expected = 2 if name.startswith("up_blocks.1.attentions") else expected
        assert layer.r["default"] == expected, name
        assert layer.lora_A["default"].weight.shape[0] == expected
        assert layer.scaling["default"] == (1.0 if alpha is None else 0.5)


def test_rslora_divides_by_the_root(base: BaseModel) -> None:
    adapters.inject(base.unet, lora(alpha=6.0, use_rslora=True), 1)
    assert {layer.scaling["default"] for layer in layers(base).values()} == {6.0 / math.sqrt(4)}


def test_a_preset_may_write_ranks_as_a_mapping() -> None:
    assert lora(ranks={"up_blocks.1": 8}).ranks == ["up_blocks.1=8"]


@pytest.mark.parametrize("text", ["up_blocks", "=4", "mid_block=0", "mid_block=x", "mid_block=2048"])
def test_ranks_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises((InputError, ValidationError), match=r"not a block's rank"):
        lora(ranks=[text])


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (["mid_blok=4"], "--adapter.ranks: this U-Net has no block 'mid_blok', did you mean 'mid_block'?"),
        (["conv_in=4"], "--adapter.ranks: block 'conv_in' contains no adapted layer."),
    ],
)
def test_ranks_of_blocks_that_are_not_adapted_are_refused(ranks: list[str], message: str, base: BaseModel) -> None:
    with pytest.raises(InputError) as caught:
        adapters.inject(base.unet, lora(ranks=ranks), 1)
    assert message in str(caught.value)


# ---- DoRA


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dora_starts_as_the_base_and_is_float32(dtype: torch.dtype, tiny_model: Path) -> None:
    base = model.load_model(str(tiny_model), dtype=dtype)
    before = probe_output(base.unet, base)
    adapters.inject(base.unet, lora(use_dora=True), 1)
    assert {parameter.dtype for parameter in trainable_parameters(base.unet).values()} == {torch.float32}
    assert torch.equal(probe_output(base.unet, base), before)
    assert any("lora_magnitude_vector" in name for name in trainable_parameters(base.unet))


def test_dora_is_the_papers_formula(base: BaseModel) -> None:
    """Equation 5, on a linear layer and on a convolution, with channels-last weights as the trainer has them."""
    names = ["mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1"]
    weights = {name: base.unet.get_submodule(name).weight.detach().clone() for name in names}  # type: ignore[union-attr]
    adapters.inject(base.unet, lora(use_dora=True, targets=names, alpha=2.0), 1)
    base.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    move(base.unet)
    for name, layer in layers(base).items():
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        weight = weights[name]
        assert isinstance(weight, Tensor) and isinstance(down, Tensor) and isinstance(up, Tensor)
        changed = weight + 0.5 * (up.flatten(1) @ down.flatten(1)).view(weight.shape)
        magnitude = dora_magnitudes(layer)
        assert magnitude is not None
        rows = (magnitude / changed.flatten(1).norm(dim=1)).view(-1, *[1] * (weight.ndim - 1))
        inner = layer.get_base_layer()
        x = rng.normal((2, weight.shape[1], *[6] * (weight.ndim - 2)), "x", name)
        expected = (
            nn.functional.conv2d(x, rows * changed, inner.bias, padding=1)  # type: ignore[arg-type]
            if weight.ndim == 4
            else nn.functional.linear(x, rows * changed)
        )
        assert isinstance(layer, nn.Module)
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


# ---- dropout


def test_counted_is_splitmix64() -> None:
    """Against the published algorithm in Python's whole numbers."""
    mask = 2**64 - 1

    def mixed(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    keys, salt = [5, -7, 2**62 + 11], rng.seed_for("salt")
    found = rng.counter_bits(torch.tensor(keys), salt, 4)
    for row, key in enumerate(keys):
        start = mixed(mixed(key & mask) ^ salt)
        expected = [mixed((start + n * 0x9E3779B97F4A7C15) & mask) >> 40 for n in range(1, 5)]
        assert found[row].tolist() == expected
    assert mixed(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # SplitMix64's first number for seed 0


def test_a_share_is_dropped_and_the_rest_scaled() -> None:
    layer = PositionedDropout(0.25, "a layer")
    x = torch.ones(4, 50, 50)
    set_sample_keys(uniforms(0, 1, 2, 3))
    dropped = (layer(x) == 0).double().mean((1, 2))
    assert (dropped - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / 2500)
    assert set(layer(x).unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    masks = (layer(x) == 0).flatten(1).double()
    together = (masks[0] * masks[1]).mean()
    assert abs(together - 0.25**2) < 5 * math.sqrt(0.06 / 2500), "masks of two samples are independent"
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("use_dora", [False, True])
def test_masks_follow_from_positions_and_leave_the_global_generator_alone(use_dora: bool, base: BaseModel) -> None:
    adapters.inject(base.unet, lora(dropout=0.3, use_dora=use_dora), 1)
    move(base.unet)
    base.unet.train()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    whole = ask(base, 0, 1, 2, 3)
    assert torch.equal(ask(base, 0, 1, 2, 3), whole), "the same position is the same mask, bit for bit"
    halves = torch.cat([ask(base, 0, 1), ask(base, 2, 3)])
    torch.testing.assert_close(halves, whole, rtol=1e-4, atol=1e-5)
    assert (ask(base, 0, 1, 2, 3, step=4) - whole).abs().max() > 1e-3
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(isinstance(module, nn.Dropout) and module.p > 0 for module in base.unet.modules())
    base.unet.eval()
    assert torch.equal(ask(base, 0, 1, step=4), ask(base, 0, 1))


def test_without_dropout_peft_is_left_as_it_is(base: BaseModel) -> None:
    adapters.inject(base.unet, lora(), 1)
    assert not any(isinstance(module, PositionedDropout) for module in base.unet.modules())


def test_samples_that_were_not_placed_are_our_own_mistake() -> None:
    set_sample_keys(uniforms(0, 1))
    with pytest.raises(AssertionError, match="set_sample_keys"):
        PositionedDropout(0.5, "x")(torch.ones(3, 2))
