"""Adapters: a LoRA starts as the base, is what it was asked to be, and its export does elsewhere what it does here."""

import json
import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from pydantic import Field, TypeAdapter
from safetensors import safe_open
from torch import Tensor, nn

from data import rng
from data.atomic_io import file_sha256
from data.cli import Options
from data.errors import InputError
from train import adapters, model
from train.adapters import load_trainable_state, trainable_parameters, trainable_state
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
    one = attached(7)
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


def test_the_global_generator_is_not_touched(base: BaseModel) -> None:
    unet = base.unet
    before = torch.get_rng_state()
    adapters.inject(unet, lora(), 1)
    assert torch.equal(torch.get_rng_state(), before)


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


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "atention",
            "--adapter.targets: no layer is called 'atention', did you mean 'attention'?; allowed: attention, ",
        ),
        (
            "to_qq",
            "no layer is called 'to_qq', did you mean 'to_q'?; allowed: attention, feed-forward, convolutions, or ",
        ),
        ("o_q", "no layer is called 'o_q', did you mean 'to_q'?"),  # the end of the name, not of the string
    ],
)
def test_unknown_targets_are_refused(target: str, message: str, base: BaseModel) -> None:
    with pytest.raises(InputError) as caught:
        adapters.inject(base.unet, lora(targets=["to_k", target]), 1)
    assert message in str(caught.value)
    assert not any("lora" in name for name, _ in base.unet.named_parameters())


def test_no_targets_are_refused() -> None:
    with pytest.raises(InputError, match=r"--adapter\.targets: no layers are chosen; allowed: attention, feed-forward"):
        lora(targets=[])


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


def test_full_trains_everything_in_float32(tiny_model: Path) -> None:
    base = model.load_model(str(tiny_model), dtype=torch.bfloat16)
    adapters.inject(base.unet, FullOptions(), 1)
    assert trainable_parameters(base.unet).keys() == dict(base.unet.named_parameters()).keys()
    assert {parameter.dtype for parameter in base.unet.parameters()} == {torch.float32}
    assert (FullOptions().trains_base, lora().trains_base) == (True, False)


def test_full_exports_a_whole_model(tiny_model: Path, base: BaseModel, tmp_path: Path) -> None:
    adapters.inject(base.unet, FullOptions(), 1)
    base.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train(base.unet, 0.01)
    assert run_export.export(base.unet, base, tmp_path, FullOptions()) == [tmp_path / "model"]
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "model", subfolder="unet", use_safetensors=True)
    assert all(torch.equal(tensor, base.unet.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert loaded.state_dict().keys() == base.unet.state_dict().keys()
    for part in full_model.FROZEN_PARTS:
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
    ("change", "message"),
    [
        ({"three.weight": torch.zeros(1)}, "checkpoints/000004: 1 weights do not fit this adapter, e.g. three.weight"),
        ({"frozen.bias": torch.zeros(1)}, "1 weights do not fit this adapter, e.g. frozen.bias"),
        ({"one.weight": None}, "1 weights do not fit this adapter, e.g. one.weight"),
        ({"one.weight": torch.zeros(2, 1)}, "1 weights do not fit this adapter, e.g. one.weight"),
        ({"one.weight": torch.zeros(()), "two.weight": None}, "2 weights do not fit this adapter, e.g. two.weight"),
    ],
)
def test_other_names_and_shapes_are_refused(change: dict[str, Tensor | None], message: str) -> None:
    module = Layers()
    saved = {name: tensor for name, tensor in {**trainable_state(module), **change}.items() if tensor is not None}
    before = trainable_state(module)
    with pytest.raises(InputError) as caught:
        load_trainable_state(module, saved, "checkpoints/000004")
    assert message in str(caught.value)
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
