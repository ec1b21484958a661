"""CLIP and DINOv2 as extractors: transformers' own classes with small random weights, loaded from a folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
)

from data.errors import InputError
from data.features import EXTRACTORS, Clip, Dinov2, extract_features, make_extractor
from tests.tiny import tiny_tokenizer

SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
PICTURES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (50, 70, 3), dtype=np.uint8)) for seed in range(3)
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 32 pixels and texts of 12 tokens into 8 numbers."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = tiny_tokenizer(folder)
    ends: dict[str, Any] = {
        "bos_token_id": len(tokenizer) - 2,
        "eos_token_id": len(tokenizer) - 1,
        "pad_token_id": len(tokenizer) - 1,
    }
    text = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=12, intermediate_size=32, **SMALL, **ends)
    vision = CLIPVisionConfig(image_size=32, patch_size=8, intermediate_size=32, **SMALL)
    both: dict[str, Any] = {"text_config": text.to_dict(), "vision_config": vision.to_dict(), "projection_dim": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(**both)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer.model_max_length = 12
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **SMALL)).save_pretrained(folder)
    BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def test_clip_is_the_projected_embedding_at_unit_length(clip: Path) -> None:
    rows = Clip(clip).encode(PICTURES)
    assert rows.shape == (3, 8)
    assert rows.dtype == np.float32
    model = CLIPModel.from_pretrained(clip).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(clip)(PICTURES, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        projected = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    assert np.allclose(rows, torch.nn.functional.normalize(projected).numpy(), atol=1e-6)
    assert not np.allclose(rows[0], rows[1], atol=1e-3)


def test_clip_reads_texts_into_the_same_space(clip: Path) -> None:
    rows = Clip(clip).encode_text(["water type", "fire", "water type " * 30])
    assert rows.shape == (3, 8)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1)
    assert np.allclose(rows[0], Clip(clip).encode_text(["water type"])[0], atol=1e-6)  # padding has no say
    assert not np.allclose(rows[0], rows[1], atol=1e-3)


def test_dinov2_is_the_class_token_as_it_comes(dinov2: Path) -> None:
    rows = Dinov2(dinov2).encode(PICTURES)
    pixels = BitImageProcessorPil.from_pretrained(dinov2)(PICTURES, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = Dinov2Model.from_pretrained(dinov2).eval()(pixel_values=pixels).last_hidden_state[:, 0]
    assert np.allclose(rows, expected.numpy(), atol=1e-6)


def test_a_row_does_not_depend_on_its_company(clip: Path) -> None:
    assert np.allclose(Clip(clip).encode(PICTURES)[2], Clip(clip).encode(PICTURES[2:])[0], atol=1e-6)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_a_changed_weight_or_setting_is_another_version(file: str, clip: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(clip, tmp_path / "copy"))
    assert Clip(copy).version == Clip(clip).version  # where it lies does not matter
    if file.endswith(".json"):
        (copy / file).write_text((copy / file).read_text() + "\n")
    else:
        weights = load_file(copy / file)
        weights["visual_projection.weight"][0, 0] += 1
        save_file(weights, copy / file, metadata={"format": "pt"})
    assert Clip(copy).version != Clip(clip).version


def test_other_weights_never_answer_from_the_cache(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))
    before = extract_features(Clip(clip), PICTURES)
    copy = Path(shutil.copytree(clip, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    weights["visual_projection.weight"] *= -1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert np.allclose(extract_features(Clip(copy), PICTURES), -before, atol=1e-6)
    assert np.array_equal(extract_features(Clip(clip), PICTURES), before)


@pytest.mark.parametrize("kind", [Clip, Dinov2])
def test_a_missing_folder_is_never_downloaded(kind: type[Clip | Dinov2], tmp_path: Path) -> None:
    for use in (
        lambda: kind(Path("openai/clip-vit-base-patch32")).version,
        lambda: kind(tmp_path / "x").encode(PICTURES),
    ):
        with pytest.raises(InputError, match="is not a folder on this machine; models are not downloaded here"):
            use()


def test_a_folder_that_is_not_whole_says_what_it_lacks(clip: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(clip, tmp_path / "copy"))
    (copy / "preprocessor_config.json").unlink()
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")  # a pickle is no replacement
    with pytest.raises(InputError, match=r"copy: holds no preprocessor_config\.json and no \*\.safetensors"):
        Clip(copy).encode(PICTURES)


def test_a_model_of_another_kind_is_refused(clip: Path, dinov2: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json: holds a model of type 'dinov2'; allowed: clip"):
        Clip(dinov2).encode(PICTURES)
    copy = Path(shutil.copytree(clip, tmp_path / "copy"))
    for damage in ("{", "[]"):
        (copy / "config.json").write_text(damage)
        with pytest.raises(InputError, match=r"config\.json: is not a model configuration"):
            Clip(copy).encode(PICTURES)


def test_damaged_weights_are_one_line(clip: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(clip, tmp_path / "copy"))
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="copy: cannot be loaded") as caught:
        Clip(copy).encode(PICTURES)
    assert "\n" not in str(caught.value)


def test_every_extractor_is_made_by_its_name(clip: Path, dinov2: Path) -> None:
    for name in EXTRACTORS:
        extractor = make_extractor(name, {"clip": clip, "dinov2": dinov2}.get(name))
        assert extractor.name == name
        assert extractor.encode(PICTURES).shape[0] == 3
    with pytest.raises(InputError, match="unknown extractor 'clap', did you mean 'clip'"):
        make_extractor("clap")
    with pytest.raises(InputError, match="extractor 'clip' needs a model"):
        make_extractor("clip")


def test_the_settings_of_the_model_are_followed(clip: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(clip, tmp_path / "copy"))
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.0, 0.0, 0.0]}))
    assert not np.allclose(Clip(copy).encode(PICTURES), Clip(clip).encode(PICTURES), atol=1e-3)
