"""Exports: every file does elsewhere what the trained network does here, whichever way it is read."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from data import rng
from data.errors import InputError
from infer import lora_loading as infer_loras
from infer import pipeline
from infer.config import LoraFile
from tests.original_layout import merge_kohya, original_layout
from tests.original_unet import OriginalUNet
from train import adapters, model
from train.adapters import trainable_parameters
from train.config import ExportOptions, FullOptions, LoraOptions
from train.exporters import full_model, lora_files, run_export
from train.exporters.verify import ExportRequest, check_same_output, probe_output
from train.model import POCKET_FOLDER, BaseModel

EVERYTHING = ["attention", "feed-forward", "convolutions"]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"alpha": 2.0},
    "rslora": {"alpha": 2.0, "use_rslora": True},
    "ranks": {"ranks": ["up_blocks=8", "up_blocks.1=2", "mid_block=1"]},
    "rslora with ranks": {"alpha": 3.0, "use_rslora": True, "ranks": ["down_blocks=6"]},
    "dora": {"use_dora": True, "alpha": 2.0},
    "dora with ranks": {"use_dora": True, "ranks": ["mid_block=7"]},
}
PLAIN = [name for name in KINDS if "dora" not in name]


@pytest.fixture
def base(tiny_model: Path) -> BaseModel:
    return model.load_model(str(tiny_model))


def train(unet: nn.Module, strength: float = 0.3) -> None:
    """Stands for training: every trainable weight moves a little, each its own way."""
    with torch.no_grad():
        for name, parameter in trainable_parameters(unet).items():
            parameter += strength * rng.normal(tuple(parameter.shape), "moved", name)


def trained(base: BaseModel, **given: Any) -> tuple[LoraOptions, Tensor]:
    adapter = LoraOptions.model_validate({"rank": 4, "targets": EVERYTHING, **given})
    adapters.inject(base.unet, adapter, 1)
    base.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the trainer has it
    base.unet.train()
    train(base.unet)
    return adapter, probe_output(base.unet, base)


def asked(**given: Any) -> ExportRequest:
    return ExportRequest(ExportOptions.model_validate(given), {"modelspec.title": "a run", "ss_steps": "4"})


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_of_a_lora_gives_the_same_prediction(
    kind: str, tiny_model: Path, base: BaseModel, tmp_path: Path
) -> None:
    adapter, answer = trained(base, **KINDS[kind])
    written = run_export.export(base.unet, base, tmp_path, adapter, asked(merge=True))
    assert [path.name for path in written] == ["lora.safetensors", "lora-kohya.safetensors", "model"]
    assert torch.equal(probe_output(base.unet, base), answer), "the export changed the network"

    theirs = StableDiffusionPipeline.from_pretrained(tiny_model, local_files_only=True)
    untouched = probe_output(theirs.unet, base)
    assert (untouched - answer).abs().max() > 1e-2
    readable = [path for path in written[:2] if path.name == "lora.safetensors" or kind in PLAIN]
    for file in readable:  # diffusers' own pipeline leaves dora_scale out of kohya's files
        theirs.load_lora_weights(str(tmp_path), weight_name=file.name)
        assert (probe_output(theirs.unet, base) - answer).abs().max() < 1e-5, file.name
        theirs.unload_lora_weights()
    for file in written[:2]:
        pipe = pipeline.build_pipeline(model.load_model(str(tiny_model)), None, torch.device("cpu"))
        (proof,) = infer_loras.load_loras(pipe, [LoraFile(file)])
        assert proof.unused == ()
        assert (probe_output(pipe.unet, base) - answer).abs().max() < 1e-5, file.name
    merged = UNet2DConditionModel.from_pretrained(written[2], subfolder="unet", use_safetensors=True)
    assert (probe_output(merged, base) - answer).abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_an_independent_reader_of_the_original_layout_agrees(
    kind: str, tiny_model: Path, base: BaseModel, tmp_path: Path
) -> None:
    """kohya's file merged by hand into the original layout, in a U-Net written from the original's structure."""
    adapter, answer = trained(base, **KINDS[kind])
    run_export.export(base.unet, base, tmp_path, adapter, asked(single_file=True))
    untouched = original_layout(tiny_model)
    network = OriginalUNet(base.config("unet"))
    network.load(merge_kohya(tiny_model, load_file(tmp_path / "lora-kohya.safetensors")))
    assert (probe_output(network, base) - answer).abs().max() < 2e-5
    network.load(load_file(tmp_path / "model.safetensors"))
    assert (probe_output(network, base) - answer).abs().max() < 2e-5
    network.load(untouched)
    assert (probe_output(network, base) - answer).abs().max() > 1e-2


# ---- what stands in the files


def test_the_single_file_has_the_published_names_and_the_bases_own_bits(
    tiny_model: Path, base: BaseModel, tmp_path: Path
) -> None:
    """Against tests/original_layout.py, which was written apart from the exporter."""
    _, answer = trained(base)
    full_model.export_model(base.unet, base, tmp_path, asked(single_file=True), folder_too=False)
    mine, wanted = load_file(tmp_path / "model.safetensors"), original_layout(tiny_model)
    schedule = {"betas", "model_ema.decay"}  # buffers of the original's trainer, which no reader asks for
    assert mine.keys() == wanted.keys() - schedule
    frozen = [name for name in mine if not name.startswith("model.diffusion_model.")]
    assert all(torch.equal(mine[name], wanted[name]) for name in frozen)
    untouched = [name for name in mine if name.startswith("model.diffusion_model.") and name.endswith(".bias")]
    assert untouched and all(torch.equal(mine[name], wanted[name]) for name in untouched)
    assert torch.equal(probe_output(base.unet, base), answer)


def test_the_old_names_of_sd14s_own_autoencoder_are_known() -> None:
    names = {"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out", "group_norm": "norm"}
    for mine, theirs in names.items():
        name = full_model.vae_name(f"encoder.mid_block.attentions.0.{mine}.weight", 4)
        assert name == f"encoder.mid.attn_1.{theirs}.weight"


def test_a_full_model_as_one_file_reads_back_everywhere(base: BaseModel, tmp_path: Path) -> None:
    adapters.inject(base.unet, FullOptions(), 1)
    train(base.unet, 0.01)
    answer = probe_output(base.unet, base)
    written = run_export.export(base.unet, base, tmp_path, FullOptions(), asked(single_file=True))
    assert [path.name for path in written] == ["model", "model.safetensors"]
    network = OriginalUNet(base.config("unet"))
    network.load(load_file(tmp_path / "model.safetensors"))
    assert (probe_output(network, base) - answer).abs().max() < 2e-5
    again = model.BaseModel("again", base.layout, tmp_path / "model.safetensors", base.tokenizer_source)
    assert (probe_output(again.unet, again) - answer).abs().max() < 1e-5
    base.unet.load_state_dict(again.unet.state_dict())  # to addresses where MKL adds in the same order
    assert torch.equal(probe_output(base.unet, base), answer)
    third = tmp_path / "third"
    adapters.inject(again.unet, FullOptions(), 1)
    # from a single file to a folder and a single file
    run_export.export(again.unet, again, third, FullOptions(), asked(single_file=True))
    mine, theirs = load_file(third / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert (probe_output(model.load_model(str(third / "model")).unet, base) - answer).abs().max() < 1e-5


def test_the_embedded_base_has_an_original_layout_too(tmp_path: Path) -> None:
    base = model.load_model(str(POCKET_FOLDER))
    adapters.inject(base.unet, FullOptions(blocks=["last-layers"]), 1)
    train(base.unet, 0.01)
    run_export.export(base.unet, base, tmp_path, FullOptions(), asked(single_file=True))
    network = OriginalUNet(base.config("unet"))
    network.load(load_file(tmp_path / "model.safetensors"))
    answer = probe_output(base.unet, base)
    assert (probe_output(network, base) - answer).abs().max() < 1e-4 * max(1.0, float(answer.abs().max()))
    for part in ("vae", "text_encoder"):
        for file in (POCKET_FOLDER / part).iterdir():
            assert (tmp_path / "model" / part / file.name).read_bytes() == file.read_bytes(), "frozen: the same bytes"


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision_is_in_every_tensor(precision: str, dtype: torch.dtype, base: BaseModel, tmp_path: Path) -> None:
    adapter, answer = trained(base, use_dora=True)
    written = run_export.export(
        base.unet, base, tmp_path, adapter, asked(merge=True, single_file=True, precision=precision)
    )
    found = list(tmp_path.rglob("*.safetensors"))
    assert len(found) == 6
    for file in found:
        exact = (".alpha", "position_ids")
        kinds = {tensor.dtype for name, tensor in load_file(file).items() if not name.endswith(exact)}
        assert kinds == {dtype}, file
    merged = UNet2DConditionModel.from_pretrained(written[2], subfolder="unet", use_safetensors=True)
    off = (probe_output(merged.float(), base) - answer).abs().max() / answer.abs().max().clamp(min=1)
    assert 0 < off < {torch.float16: 1e-2, torch.bfloat16: 1e-1}[dtype]


def test_a_lora_trained_on_a_half_base_merges_into_the_bases_own_numbers(tiny_model: Path, tmp_path: Path) -> None:
    """As on a GPU: the network in memory is rounded, the merged model must not be."""
    base = model.load_model(str(tiny_model))
    base.unet.half()
    adapter, _ = trained(base, targets=["attention"])
    written = run_export.export(base.unet, base, tmp_path, adapter, asked(merge=True))
    mine = load_file(written[2] / "unet" / "diffusion_pytorch_model.safetensors")
    before = load_file(tiny_model / "unet" / "diffusion_pytorch_model.safetensors")
    adapted = {f"{name}.weight": layer for name, layer in adapters.adapted_layers(base.unet)}
    assert adapted
    for name, tensor in before.items():
        if name not in adapted:
            assert torch.equal(mine[name], tensor), name
        else:
            layer = adapted[name]
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            torch.testing.assert_close(mine[name], tensor + layer.scaling["default"] * up @ down, rtol=1e-6, atol=1e-6)
    assert {tensor.dtype for tensor in load_file(written[0]).values()} == {torch.float32}


def test_kohyas_header_and_shapes(base: BaseModel, tmp_path: Path) -> None:
    adapter, _ = trained(base, alpha=2.0, use_rslora=True)
    _, file = run_export.export(base.unet, base, tmp_path, adapter, asked())
    tensors = load_file(file)
    layer = "lora_unet_mid_block_resnets_0_conv1"
    assert tensors[f"{layer}.lora_down.weight"].shape == (4, 64, 3, 3)
    assert tensors[f"{layer}.lora_up.weight"].shape == (64, 4, 1, 1)
    assert tensors[f"{layer}.alpha"].item() == 4.0, "alpha / rank is alpha / sqrt(rank) = 1"
    assert {name.rpartition(".lora_")[0] or name.partition(".")[0] for name in tensors} == {
        f"lora_unet_{name.replace('.', '_')}" for name, _ in adapters.adapted_layers(base.unet)
    }
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("4", "4.0")
    assert header["ss_network_module"] == "networks.lora"
    assert json.loads(header["ss_network_args"]) == {"conv_dim": 4, "conv_alpha": 4.0}
    content = file.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert header["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert header["modelspec.hash_sha256"] == f"0x{header['sshs_model_hash']}"
    assert len(header["sshs_legacy_hash"]) == 8


def test_with_ranks_of_its_own_every_layer_says_one_alpha(base: BaseModel, tmp_path: Path) -> None:
    """diffusers does not find an attention layer's own alpha: a file with several would be read wrongly there."""
    adapter, _ = trained(base, ranks=["up_blocks=8"], targets=["attention"])
    _, file = run_export.export(base.unet, base, tmp_path, adapter, asked())
    assert {tensor.item() for name, tensor in load_file(file).items() if name.endswith(".alpha")} == {8.0}


# ---- what is refused


def test_a_kohya_file_that_lost_its_alpha_is_refused(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, _ = trained(base, alpha=2.0)
    spell = lora_files.kohya_tensors

    def without_alpha(unet: Any) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in spell(unet).items() if not name.endswith(".alpha")}

    monkeypatch.setattr(lora_files, "kohya_tensors", without_alpha)
    with pytest.raises(InputError, match=r"lora-kohya\.safetensors: the exported file does not reproduce the trained"):
        run_export.export(base.unet, base, tmp_path, adapter)
    assert [path.name for path in tmp_path.iterdir()] == ["lora.safetensors"]


def test_numbers_that_fp16_does_not_have_are_refused(base: BaseModel, tmp_path: Path) -> None:
    adapters.inject(base.unet, FullOptions(blocks=["conv_out"]), 1)
    with torch.no_grad():
        base.unet.get_parameter("conv_out.bias")[0] = 1e5
    with pytest.raises(InputError, match=r"1 tensors have numbers beyond fp16, such as conv_out\.bias\. Take --export"):
        run_export.export(base.unet, base, tmp_path, FullOptions(), asked(precision="fp16"))
    assert not list(tmp_path.iterdir())


def test_an_answer_that_is_no_number_is_refused(tmp_path: Path) -> None:
    nothing = torch.full((2,), float("nan"))
    with pytest.raises(InputError, match="does not reproduce"):
        check_same_output(nothing, torch.zeros(2), torch.float32, tmp_path)


def test_a_single_file_whose_frozen_parts_differ_is_refused(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(base)
    own = full_model.frozen_tensors

    def spoiled(*given: Any) -> dict[str, Tensor]:
        tensors = own(*given)
        name = "first_stage_model.decoder.conv_in.bias"
        return tensors | {name: tensors[name] + 1e-6}

    monkeypatch.setattr(full_model, "frozen_tensors", spoiled)
    with pytest.raises(InputError, match=r"model\.safetensors: the vae differs from the base's in 1 tensors"):
        full_model.export_model(base.unet, base, tmp_path, asked(single_file=True), folder_too=False)
    assert not list(tmp_path.iterdir())
