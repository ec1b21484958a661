"""Adapters: a LoRA starts as the base, is what was asked, and its export does elsewhere what it does here."""

import json
import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import safe_open
from torch import Tensor, nn

from data import rng
from data.atomic_io import file_sha256
from data.cli import Options
from data.errors import InputError
from train import adapters, model
from train.adapters import (
    PositionedDropout,
    adapted_layers,
    dora_magnitudes,
    load_trainable_state,
    set_sample_keys,
    trainable_parameters,
    trainable_state,
)
from train.config import TARGETS, AdapterOptions, FullOptions, LoraOptions
from train.exporters import full_model, lora_files, run_export
from train.exporters.verify import ExportRequest, probe_output
from train.model import BaseModel


@pytest.fixture
def base(tiny_model: Path) -> BaseModel:
    return model.load_model(str(tiny_model))


def lora(**given: object) -> LoraOptions:
    return LoraOptions.model_validate(given)


def train(unet: nn.Module, strength: float = 0.3) -> None:
    """Stands for training: every trainable weight moves a little, each its own way."""
    with torch.no_grad():
        for name, parameter in trainable_parameters(unet).items():
            parameter += strength * rng.normal(tuple(parameter.shape), "moved", name)


def test_a_lora_starts_as_the_base_bit_for_bit(base: BaseModel) -> None:
    before = probe_output(base.unet, base)
    adapters.inject(base.unet, lora(), 1)
    assert torch.equal(probe_output(base.unet, base), before)
    train(base.unet)
    assert (probe_output(base.unet, base) - before).abs().max() > 1e-3


def test_its_weights_are_a_function_of_the_seed(tiny_model: Path) -> None:
    def attached(seed: int) -> dict[str, Tensor]:
        unet = model.load_model(str(tiny_model)).unet
        adapters.inject(unet, lora(rank=4, targets=["attention", "convolutions"]), seed)
        return trainable_state(unet)

    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = attached(7)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"
    torch.manual_seed(99)
    same, other = attached(7), attached(8)
    for name, tensor in one.items():
        assert torch.equal(tensor, same[name])
        if "lora_B" in name:
            assert not tensor.any()
        else:
            bound = 1 / math.sqrt(tensor[0].numel())
            assert 0.8 * bound < tensor.abs().max() <= bound
            assert not torch.equal(tensor, other[name])
    drawn = [tensor for name, tensor in one.items() if "lora_A" in name and tensor.numel() == 128]
    assert not torch.equal(drawn[0], drawn[1]), "every layer has draws of its own"


def test_it_is_float32_on_a_half_precision_base(tiny_model: Path) -> None:
    base = model.load_model(str(tiny_model), dtype=torch.bfloat16)
    before = probe_output(base.unet, base)
    adapters.inject(base.unet, lora(rank=2), 1)
    assert {parameter.dtype for parameter in trainable_parameters(base.unet).values()} == {torch.float32}
    frozen = {parameter.dtype for parameter in base.unet.parameters() if not parameter.requires_grad}
    assert frozen == {torch.bfloat16}
    assert torch.equal(probe_output(base.unet, base), before)


def test_only_the_adapter_is_trained(base: BaseModel) -> None:
    adapters.inject(base.unet, lora(), 1)
    base.unet.train()
    noisy, states = rng.normal((1, 4, 8, 8), "noisy"), rng.normal((1, 5, 32), "states")
    (answer,) = base.unet(noisy, torch.tensor([5]), encoder_hidden_states=states, return_dict=False)
    answer.square().mean().backward()
    with_gradient = {name for name, parameter in base.unet.named_parameters() if parameter.grad is not None}
    assert with_gradient == set(trainable_parameters(base.unet))
    assert all(".lora_A." in name or ".lora_B." in name for name in with_gradient)


@pytest.mark.parametrize(
    "targets", [["attention"], ["feed-forward"], ["convolutions"], ["to_q", "mid_block.resnets.0.conv1"]]
)
def test_rank_and_targets_are_what_was_asked(targets: list[str], base: BaseModel) -> None:
    ends = tuple(f".{end}" for target in targets for end in TARGETS.get(target, [target]))
    chosen = {
        name: module
        for name, module in base.unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and f".{name}".endswith(ends)
    }
    assert chosen
    want = sum(3 * (module.weight[0].numel() + module.weight.shape[0]) for module in chosen.values())
    adapter = lora(rank=3, targets=targets)
    adapters.inject(base.unet, adapter, 1)
    found = trainable_parameters(base.unet)
    assert {name.partition(".lora_")[0] for name in found} == chosen.keys()
    assert sum(parameter.numel() for parameter in found.values()) == want


def test_every_family_of_layers_is_in_the_unet(base: BaseModel) -> None:
    """TARGETS by name: a renamed layer in the library would silently not be trained."""
    names = [name for name, module in base.unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for end in (end for ends in TARGETS.values() for end in ends):
        assert any(name.endswith(f".{end}") for name in names), end


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (8.0, 2.0), (1.0, 0.25)])
def test_alpha_over_rank_scales_the_update(alpha: float | None, scale: float, base: BaseModel) -> None:
    adapter = lora(rank=4, alpha=alpha, targets=["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"])
    layer = base.unet.get_submodule(adapter.targets[0])
    assert isinstance(layer, nn.Linear)
    x = rng.normal((2, layer.in_features), "x")
    before = layer(x)
    adapters.inject(base.unet, adapter, 1)
    train(base.unet)
    down, up = trainable_parameters(base.unet).values()
    with torch.no_grad():
        changed = base.unet.get_submodule(adapter.targets[0])(x)
        assert (changed - before - scale * x @ down.T @ up.T).abs().max() < 1e-6
        assert (changed - before).abs().max() > 1e-3


@pytest.mark.parametrize(("target", "near"), [("atention", "'attention'"), ("to_qq", "'to_q'"), ("o_q", "'to_q'")])
def test_unknown_targets_are_refused(target: str, near: str, base: BaseModel) -> None:
    """By the end of the layer's name, not of the string."""
    with pytest.raises(InputError) as error:
        adapters.inject(base.unet, lora(targets=["to_k", target]), 1)
    assert error.value.where == "--adapter.targets" and near in error.value.what and error.value.allowed
    assert not any("lora" in name for name, _ in base.unet.named_parameters())
    with pytest.raises(InputError) as error:
        lora(targets=[])
    assert error.value.where == "--adapter.targets" and error.value.allowed


@pytest.mark.parametrize(
    ("targets", "alpha"), [(["attention"], 2.0), (["attention", "feed-forward", "convolutions"], 9.0)]
)
def test_diffusers_own_pipeline_does_what_the_trained_network_does(
    targets: list[str], alpha: float, tiny_model: Path, base: BaseModel, tmp_path: Path
) -> None:
    adapter = lora(rank=4, alpha=alpha, targets=targets)
    adapters.inject(base.unet, adapter, 1)
    base.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the trainer has it
    train(base.unet)
    trained = probe_output(base.unet, base)
    names = ["lora.safetensors", "lora-kohya.safetensors"]
    assert run_export.export(base.unet, base, tmp_path / "export", adapter) == [
        tmp_path / "export" / name for name in names
    ]
    fresh = StableDiffusionPipeline.from_pretrained(tiny_model, local_files_only=True)
    before = probe_output(fresh.unet, base)
    fresh.load_lora_weights(str(tmp_path / "export"), weight_name="lora.safetensors")
    assert (probe_output(fresh.unet, base) - trained).abs().max() < 1e-5
    assert (before - trained).abs().max() > 1e-2


def test_an_export_says_rank_and_alpha_and_leaves_the_network_as_it_was(base: BaseModel, tmp_path: Path) -> None:
    adapter = lora(rank=4, alpha=2.0)
    adapters.inject(base.unet, adapter, 1)
    base.unet.train()
    train(base.unet)
    trained = probe_output(base.unet, base)
    file, other = run_export.export(base.unet, base, tmp_path, adapter)
    assert set(tmp_path.iterdir()) == {file, other}
    with safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["lora_adapter_metadata"])
        assert {opened.get_tensor(key).dtype for key in opened.keys()} == {torch.float32}  # noqa: SIM118
    assert (header["unet.r"], header["unet.lora_alpha"]) == (4, 2.0)
    assert torch.equal(probe_output(base.unet, base), trained)
    assert base.unet.training


def test_a_lora_of_zeros_is_refused(base: BaseModel, tmp_path: Path) -> None:
    adapters.inject(base.unet, lora(), 1)
    (tmp_path / "lora.safetensors").write_bytes(b"the last good one")
    with pytest.raises(
        InputError, match=r"lora.safetensors: the adapter changes nothing: all of its updates are zero\. Train"
    ):
        run_export.export(base.unet, base, tmp_path, lora())
    assert [path.name for path in tmp_path.iterdir()] == ["lora.safetensors"]
    assert (tmp_path / "lora.safetensors").read_bytes() == b"the last good one"


def test_a_file_that_does_something_else_is_refused(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters.inject(base.unet, lora(alpha=2.0), 1)
    train(base.unet)
    write = lora_files.write_diffusers

    def without_alpha(unet: UNet2DConditionModel, file: Path, request: ExportRequest) -> None:
        unet.peft_config["default"].lora_alpha = 16
        write(unet, file, request)

    monkeypatch.setattr(lora_files, "write_diffusers", without_alpha)
    with pytest.raises(InputError, match="the exported file does not reproduce the trained network"):
        run_export.export(base.unet, base, tmp_path, lora(alpha=2.0))
    assert not list(tmp_path.iterdir())


def test_full_exports_a_whole_model(tiny_model: Path, base: BaseModel, tmp_path: Path) -> None:
    adapters.inject(base.unet, FullOptions(), 1)
    base.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train(base.unet, 0.01)
    assert run_export.export(base.unet, base, tmp_path, FullOptions()) == [tmp_path / "model"]
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "model", subfolder="unet", use_safetensors=True)
    assert all(torch.equal(tensor, base.unet.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert loaded.state_dict().keys() == base.unet.state_dict().keys()
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        theirs = {path.name: file_sha256(path) for path in (tiny_model / part).iterdir()}
        assert {path.name: file_sha256(path) for path in (tmp_path / "model" / part).iterdir()} == theirs
    again = model.load_model(str(tmp_path / "model"))
    assert again.fingerprints["unet"] != base.fingerprints["unet"]
    assert again.fingerprints["vae"] == base.fingerprints["vae"]
    StableDiffusionPipeline.from_pretrained(tmp_path / "model", local_files_only=True)


def test_a_full_export_that_differs_is_refused(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters.inject(base.unet, FullOptions(), 1)
    save = full_model.save_file

    def spoiled(tensors: dict[str, Tensor], *rest: object) -> None:
        save({name: tensor + 1e-6 for name, tensor in tensors.items()}, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(full_model, "save_file", spoiled)
    with pytest.raises(InputError, match=r"the exported U-Net differs from the trained one in \d+ tensors"):
        run_export.export(base.unet, base, tmp_path, FullOptions())
    assert not list(tmp_path.iterdir())


class Layers(nn.Module):
    """Ten numbers, of which two layers are trained."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.frozen = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False), nn.Linear(1, 1)
        self.frozen.requires_grad_(False)


def test_a_state_is_a_copy_and_is_put_back() -> None:
    module = Layers()
    saved = trainable_state(module)
    assert list(saved) == ["one.weight", "two.weight"]
    train(module)
    assert not torch.equal(module.one.weight, saved["one.weight"])
    load_trainable_state(module, saved, "here")
    assert torch.equal(module.one.weight, saved["one.weight"])
    assert module.one.weight.requires_grad


@pytest.mark.parametrize(
    ("change", "count", "first"),
    [
        ({"three.weight": torch.zeros(1)}, 1, "three.weight"),
        ({"frozen.bias": torch.zeros(1)}, 1, "frozen.bias"),
        ({"one.weight": None}, 1, "one.weight"),
        ({"one.weight": torch.zeros(2, 1)}, 1, "one.weight"),
        ({"one.weight": torch.zeros(()), "two.weight": None}, 2, "two.weight"),
    ],
)
def test_other_names_and_shapes_are_refused(change: dict[str, Tensor | None], count: int, first: str) -> None:
    module = Layers()
    saved = {name: tensor for name, tensor in {**trainable_state(module), **change}.items() if tensor is not None}
    before = trainable_state(module)
    with pytest.raises(InputError) as error:
        load_trainable_state(module, saved, "checkpoints/000004")
    assert error.value.where == "checkpoints/000004"
    assert error.value.what.startswith(f"{count} weights") and error.value.what.endswith(first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainable_state(module).items())


class Biases(Options):
    """A kind that this test adds: train the biases alone. Source: Ben Zaken et al. 2022, arXiv 2106.10199."""

    kind: Literal["biases"] = "biases"
    label: ClassVar[str] = "biases"
    trains_base: ClassVar[bool] = True


def train_biases(unet: Any, options: Biases, seed: int) -> None:
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(name.endswith(".bias"))


def test_another_kind_needs_only_options_and_functions(
    tiny_model: Path, base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(adapters.INJECT, "biases", train_biases)
    monkeypatch.setitem(run_export.EXPORT, "biases", run_export.export_full)
    kinds = TypeAdapter(Annotated[AdapterOptions | Biases, Field(discriminator="kind")])
    adapter: Any = kinds.validate_python({"kind": "biases"})
    assert isinstance(adapter, Biases)
    adapters.inject(base.unet, adapter, 1)
    train(base.unet)
    trained, saved = probe_output(base.unet, base), trainable_state(base.unet)
    assert saved.keys() == {name for name, _ in base.unet.named_parameters() if name.endswith(".bias")}
    fresh = model.load_model(str(tiny_model))
    adapters.inject(fresh.unet, adapter, 1)
    load_trainable_state(fresh.unet, saved, "here")
    assert torch.equal(probe_output(fresh.unet, fresh), trained)
    (exported,) = run_export.export(base.unet, base, tmp_path, adapter)
    loaded = model.load_model(str(exported))
    assert torch.equal(probe_output(loaded.unet, loaded), trained)


def test_every_kind_has_options_and_functions() -> None:
    union, _ = get_args(AdapterOptions)
    kinds = {kind.model_fields["kind"].default for kind in get_args(union)}
    assert kinds == adapters.INJECT.keys() == run_export.EXPORT.keys()


EVERYTHING = ["attention", "feed-forward", "convolutions"]


def lora_of_everything(**given: Any) -> LoraOptions:
    return LoraOptions.model_validate({"rank": 4, "targets": EVERYTHING, **given})


def train_all(unet: nn.Module) -> None:
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
    train_all(half.unet)
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
    ("name", "near"),
    [("up_block.1", "'up_blocks.1'"), ("last_layers", "'last-layers'"), ("up_blocks.7", "'up_blocks.")],
)
def test_unknown_blocks_are_refused(name: str, near: str, base: BaseModel) -> None:
    with pytest.raises(InputError) as error:
        adapters.inject(base.unet, FullOptions(blocks=["conv_out", name]), 1)
    assert error.value.where == "--adapter.blocks" and near in error.value.what and error.value.allowed


def test_labels_name_folders() -> None:
    labels = [
        FullOptions().label,
        FullOptions(blocks=["mid_block", "conv_out"]).label,
        FullOptions(blocks=list("abcd")).label,
    ]
    assert labels == ["full", "full-mid_block-conv_out", "full-4-blocks"]
    assert (lora_of_everything().label, lora_of_everything(use_dora=True).label) == ("lora-r4", "dora-r4")
    with pytest.raises(InputError, match=r"--adapter\.blocks: no blocks are chosen; allowed: all, last-layers"):
        FullOptions(blocks=[])


# ---- ranks and scales


def layers(base: BaseModel) -> dict[str, Any]:
    return dict(adapted_layers(base.unet))


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_the_smallest_block_that_fits_sets_the_rank_and_scales_stay_equal(alpha: float | None, base: BaseModel) -> None:
    adapters.inject(
        base.unet, lora_of_everything(alpha=alpha, ranks=["up_blocks=8", "up_blocks.1.attentions=2", "mid_block=3"]), 1
    )
    for name, layer in layers(base).items():
        expected = 8 if name.startswith("up_blocks") else 3 if name.startswith("mid_block") else 4
        expected = 2 if name.startswith("up_blocks.1.attentions") else expected
        assert layer.r["default"] == expected, name
        assert layer.lora_A["default"].weight.shape[0] == expected
        assert layer.scaling["default"] == (1.0 if alpha is None else 0.5)


def test_rslora_divides_by_the_root(base: BaseModel) -> None:
    adapters.inject(base.unet, lora_of_everything(alpha=6.0, use_rslora=True), 1)
    assert {layer.scaling["default"] for layer in layers(base).values()} == {6.0 / math.sqrt(4)}


def test_a_preset_may_write_ranks_as_a_mapping() -> None:
    assert lora_of_everything(ranks={"up_blocks.1": 8}).ranks == ["up_blocks.1=8"]


@pytest.mark.parametrize("text", ["up_blocks", "=4", "mid_block=0", "mid_block=x", "mid_block=2048"])
def test_ranks_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises((InputError, ValidationError), match=r"not a block's rank"):
        lora_of_everything(ranks=[text])


@pytest.mark.parametrize("block", ["mid_blok", "conv_in"])
def test_ranks_of_blocks_that_are_not_adapted_are_refused(block: str, base: BaseModel) -> None:
    with pytest.raises(InputError) as error:
        adapters.inject(base.unet, lora_of_everything(ranks=[f"{block}=4"]), 1)
    assert error.value.where == "--adapter.ranks" and block in error.value.what


# ---- DoRA


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dora_starts_as_the_base_and_is_float32(dtype: torch.dtype, tiny_model: Path) -> None:
    base = model.load_model(str(tiny_model), dtype=dtype)
    before = probe_output(base.unet, base)
    adapters.inject(base.unet, lora_of_everything(use_dora=True), 1)
    assert {parameter.dtype for parameter in trainable_parameters(base.unet).values()} == {torch.float32}
    assert torch.equal(probe_output(base.unet, base), before)
    assert any("lora_magnitude_vector" in name for name in trainable_parameters(base.unet))


def test_dora_is_the_papers_formula(base: BaseModel) -> None:
    """Equation 5, on a linear layer and on a convolution, with channels-last weights as the trainer has them."""
    names = ["mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1"]
    weights = {name: base.unet.get_submodule(name).weight.detach().clone() for name in names}  # type: ignore[union-attr]
    adapters.inject(base.unet, lora_of_everything(use_dora=True, targets=names, alpha=2.0), 1)
    base.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train_all(base.unet)
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
    adapters.inject(base.unet, lora_of_everything(dropout=0.3, use_dora=use_dora), 1)
    train_all(base.unet)
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


def test_samples_that_were_not_placed_are_our_own_mistake() -> None:
    set_sample_keys(uniforms(0, 1))
    with pytest.raises(AssertionError, match="set_sample_keys"):
        PositionedDropout(0.5, "x")(torch.ones(3, 2))
