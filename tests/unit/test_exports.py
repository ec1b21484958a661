"""Exports: every file does elsewhere what the trained network does here, whichever way it is read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn

from data import seeds
from infer import loras as infer_loras
from infer import pipeline
from infer.config import LoraFile
from tests.original_layout import merge_kohya, original_layout
from tests.original_unet import OriginalUNet
from train import base_model
from train.adapters.base import trainable
from train.adapters.files import probe
from train.adapters.lora import Lora
from train.base_model import BaseModel
from train.exports.options import Export
from train.exports.request import Request

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
    return base_model.load(str(tiny_model))


def train(unet: nn.Module, strength: float = 0.3) -> None:
    """Stands for training: every trainable weight moves a little, each its own way."""
    with torch.no_grad():
        for name, parameter in trainable(unet).items():
            parameter += strength * seeds.normal(tuple(parameter.shape), "moved", name)


def trained(base: BaseModel, **given: Any) -> tuple[Lora, Tensor]:
    adapter = Lora.model_validate({"rank": 4, "targets": EVERYTHING, **given})
    adapter.attach(base.unet, seed=1)
    base.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the trainer has it
    base.unet.train()
    train(base.unet)
    return adapter, probe(base.unet, base)


def asked(**given: Any) -> Request:
    return Request(Export.model_validate(given), {"modelspec.title": "a run", "ss_steps": "4"})


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_of_a_lora_gives_the_same_prediction(
    kind: str, tiny_model: Path, base: BaseModel, tmp_path: Path
) -> None:
    adapter, answer = trained(base, **KINDS[kind])
    written = adapter.export(base.unet, base, tmp_path, asked(merge=True, single_file=True))
    assert [path.name for path in written] == [
        "lora.safetensors",
        "lora-kohya.safetensors",
        "model",
        "model.safetensors",
    ]
    assert torch.equal(probe(base.unet, base), answer), "the export changed the network"

    theirs = StableDiffusionPipeline.from_pretrained(tiny_model, local_files_only=True)
    untouched = probe(theirs.unet, base)
    assert (untouched - answer).abs().max() > 1e-2
    readable = [path for path in written[:2] if path.name == "lora.safetensors" or kind in PLAIN]
    for file in readable:  # diffusers' own pipeline leaves dora_scale out of kohya's files
        theirs.load_lora_weights(str(tmp_path), weight_name=file.name)
        assert (probe(theirs.unet, base) - answer).abs().max() < 1e-5, file.name
        theirs.unload_lora_weights()
    for file in written[:2]:
        pipe = pipeline.build(base_model.load(str(tiny_model)), None, torch.device("cpu"))
        (proof,) = infer_loras.attach(pipe, [LoraFile(file)])
        assert proof.unused == ()
        assert (probe(pipe.unet, base) - answer).abs().max() < 1e-5, file.name
    merged = UNet2DConditionModel.from_pretrained(written[2], subfolder="unet", use_safetensors=True)
    assert (probe(merged, base) - answer).abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_an_independent_reader_of_the_original_layout_agrees(
    kind: str, tiny_model: Path, base: BaseModel, tmp_path: Path
) -> None:
    """kohya's file merged by hand into the original layout, in a U-Net written from the original's structure."""
    adapter, answer = trained(base, **KINDS[kind])
    adapter.export(base.unet, base, tmp_path, asked(single_file=True))
    untouched = original_layout(tiny_model)
    network = OriginalUNet(base.config("unet"))
    network.load(merge_kohya(tiny_model, load_file(tmp_path / "lora-kohya.safetensors")))
    assert (probe(network, base) - answer).abs().max() < 2e-5
    network.load(load_file(tmp_path / "model.safetensors"))
    assert (probe(network, base) - answer).abs().max() < 2e-5
    network.load(untouched)
    assert (probe(network, base) - answer).abs().max() > 1e-2
