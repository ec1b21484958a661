"""Extractors, the numbers of each, and the cache of their rows: keyed by content, name and version."""

import json
import math
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
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

from data import sample_set
from data.atomic_io import cache_root
from data.errors import InputError
from data.features import (
    DESCRIPTOR_NAMES,
    EXTRACTORS,
    HUES,
    Clip,
    Dinov2,
    Features,
    PixelFeatures,
    StyleDescriptors,
    content_key,
    extract_features,
    make_extractor,
)
from data.schema import Annotation, Sample
from tests.tiny import tiny_tokenizer


@dataclass
class Counting:
    """Mean colours, and a note of how many images each call was given."""

    name: str = "mean"
    version: str = "1"
    calls: list[int] = field(default_factory=list)

    def encode(self, images: Sequence[Image.Image]) -> Features:
        self.calls.append(len(images))
        return np.stack([np.asarray(image, np.float32).mean(axis=(0, 1)) for image in images])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Forty images of forty greys, and a cache of their own."""
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))
    paths = [tmp_path / f"{grey}.png" for grey in range(40)]
    for grey, path in enumerate(paths):
        Image.new("RGB", (20, 20), (grey, grey, grey)).save(path)
    return paths


def test_rows_come_in_the_order_of_the_images_and_once(files: list[Path]) -> None:
    extractor = Counting()
    asked = [*files[::-1], files[3]]
    rows = extract_features(extractor, asked)
    assert rows[:, 0].tolist() == [*range(39, -1, -1), 3]
    assert extractor.calls == [32, 8]
    assert np.array_equal(extract_features(extractor, asked), rows)
    assert extractor.calls == [32, 8]


def test_a_changed_byte_is_a_miss_and_a_moved_file_is_not(files: list[Path]) -> None:
    extractor = Counting()
    extract_features(extractor, files[:1])
    Image.new("RGB", (20, 20), (200, 0, 0)).save(files[0])
    assert extract_features(extractor, files[:1])[0].tolist() == [200, 0, 0]
    files[0].rename(files[0].with_name("moved.png"))
    extract_features(extractor, [files[0].with_name("moved.png")])
    assert extractor.calls == [1, 1]


def test_another_version_or_name_is_a_miss(files: list[Path]) -> None:
    for name, version in (("mean", "1"), ("mean", "2"), ("average", "1")):
        extractor = Counting(name, version)
        extract_features(extractor, files[:2])
        assert extractor.calls == [2], (name, version)


def test_without_a_cache_nothing_is_written(files: list[Path]) -> None:
    extractor = Counting()
    for _ in range(2):
        extract_features(extractor, files[:2], cache=False)
    assert extractor.calls == [2, 2]
    assert not cache_root().exists()


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"not an array"])
def test_a_damaged_row_is_a_miss(damage: bytes, files: list[Path]) -> None:
    extractor = Counting()
    extract_features(extractor, files[:1])
    (row,) = (path for path in cache_root().rglob("*") if path.is_file())
    row.write_bytes(damage)
    assert extract_features(extractor, files[:1])[0].tolist() == [0, 0, 0]
    assert extractor.calls == [1, 1]


def test_a_row_that_needs_pickle_is_never_loaded(files: list[Path]) -> None:
    extractor = Counting()
    extract_features(extractor, files[:1])
    (row,) = (path for path in cache_root().rglob("*") if path.is_file())
    np.save(row, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert extract_features(extractor, files[:1])[0].tolist() == [0, 0, 0]


def test_many_writers_at_once_leave_whole_rows(files: list[Path]) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: extract_features(Counting(), files), range(16)))
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    assert len([path for path in cache_root().rglob("*") if path.is_file()]) == len(files)  # and no temporary file


def test_images_in_memory_are_keyed_by_size_and_pixels(files: list[Path]) -> None:
    wide, tall = Image.new("RGB", (4, 2), "red"), Image.new("RGB", (2, 4), "red")
    assert len({content_key(wide), content_key(tall), content_key(wide.convert("L"))}) == 3
    assert content_key(wide) == content_key(wide.copy())
    assert extract_features(Counting(), [wide, wide.convert("L")])[:, 1].tolist() == [0, 76]


def test_a_file_that_changed_since_its_sample_was_read_is_refused(files: list[Path]) -> None:
    annotation = Annotation.model_validate({"file_name": files[0].name})
    sample = Sample(files[0], annotation, "", content_key(files[0]), 8, 8)
    Image.new("RGB", (20, 20), "red").save(files[0])
    with pytest.raises(InputError, match=r"0\.png: changed while it was being read"):
        extract_features(Counting(), [sample])


def test_pixels_are_means_of_squares() -> None:
    image = Image.fromarray(np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3) * 2)
    (row,) = PixelFeatures(2).encode([image])
    expected = np.asarray(image, np.float32).reshape(2, 2, 2, 2, 3).mean(axis=(1, 3)) / 255
    assert np.allclose(row.reshape(2, 2, 3), expected, atol=0.5 / 255)
    assert PixelFeatures(2).version != PixelFeatures(4).version


# ---- style descriptors


def of(image: Image.Image) -> dict[str, float]:
    (row,) = StyleDescriptors().encode([image])
    return dict(zip(DESCRIPTOR_NAMES, row.tolist(), strict=True))


def halves(left: str, right: str) -> Image.Image:
    image = Image.new("RGB", (128, 128), left)
    image.paste(right, (64, 0, 128, 128))
    return image


def noise(size: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def test_one_colour() -> None:
    red = of(Image.new("RGB", (50, 50), (255, 0, 0)))
    assert red["hue 0 degrees"] == red["saturation 8/8"] == red["flat"] == red["mirror symmetry"] == 1
    assert red["palette entropy"] == red["colours of 90%"] == red["border white"] == red["edges"] == 0
    white = of(Image.new("RGB", (50, 50), "white"))
    assert white["border white"] == white["white"] == white["lightness 8/8"] == white["saturation 1/8"] == 1
    assert all(white[name] == 0 for name in DESCRIPTOR_NAMES if name.startswith("hue"))


@pytest.mark.parametrize("index", range(HUES))
def test_hues_are_those_of_the_colour_wheel(index: int) -> None:
    degrees = 360 * index // HUES
    assert of(Image.new("RGB", (20, 20), f"hsv({degrees}, 80%, 90%)"))[f"hue {degrees} degrees"] == 1


def test_two_halves() -> None:
    both = of(halves("black", "red"))
    assert both["palette entropy"] == pytest.approx(math.log(2) / math.log(512), rel=0.15)  # bicubic rims add a little
    assert both["colours of half"] == 0
    assert both["colours of 90%"] == pytest.approx(math.log(2) / math.log(512))
    assert both["ink"] == pytest.approx(0.5, abs=0.02)
    assert both["mirror symmetry"] == pytest.approx(-1, abs=0.05)
    assert both["edges"] == pytest.approx(2 / 128)
    assert both["edge direction 90 degrees"] == pytest.approx(1)  # the line between them stands upright
    assert of(halves("black", "red").rotate(90))["edge direction 0 degrees"] == pytest.approx(1)


def test_diagonals_are_told_apart() -> None:
    image = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(image).polygon([(0, 0), (128, 128), (0, 128)], fill="black")  # its rim falls to the right
    falling, rising = of(image), of(image.rotate(90))
    assert falling["edge direction 45 degrees"] > 0.9 or falling["edge direction 135 degrees"] > 0.9
    assert rising["edge direction 45 degrees"] == pytest.approx(falling["edge direction 135 degrees"], abs=0.02)


def test_border_is_apart_from_the_middle() -> None:
    image = Image.new("RGB", (160, 160), "white")
    image.paste("blue", (20, 20, 140, 140))
    assert of(image)["border white"] == 1
    assert of(image)["border unevenness"] == 0
    assert of(image)["white"] == pytest.approx(1 - (120 / 160) ** 2, abs=0.02)


def test_colourfulness_is_hasler_and_suesstrunks() -> None:
    image = noise(128)  # already of the size it is measured at
    red, green, blue = np.moveaxis(np.asarray(image, np.float64), 2, 0) / 255
    first, second = red - green, (red + green) / 2 - blue
    expected = math.hypot(first.std(), second.std()) + 0.3 * math.hypot(first.mean(), second.mean())
    assert of(image)["colourfulness"] == pytest.approx(expected, rel=1e-4)


def test_drawings_differ_from_noise_and_little_from_themselves_at_another_size() -> None:
    large = sample_set.sample_image(0, 256)
    small, row, grain = of(large.resize((140, 140), Image.Resampling.LANCZOS)), of(large), of(noise(256))
    assert max(abs(row[name] - small[name]) for name in DESCRIPTOR_NAMES) < 0.1
    assert row["flat"] > 0.4 > 0.1 > grain["flat"]
    assert row["palette entropy"] < 0.5 < 0.6 < grain["palette entropy"]
    assert row["border white"] > 0.9


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (16, 700)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_odd_images_give_finite_numbers(size: tuple[int, int], mode: str) -> None:
    row = StyleDescriptors().encode([Image.new(mode, size)])
    assert row.shape == (1, len(DESCRIPTOR_NAMES))
    assert row.dtype == np.float32
    assert np.isfinite(row).all()


# ---- CLIP and DINOv2: transformers' own classes with small random weights, loaded from a folder


SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (50, 70, 3), dtype=np.uint8)) for seed in range(3)
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 32 pixels and texts of 12 tokens into 8 numbers."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = tiny_tokenizer(folder)
    last = len(tokenizer) - 1
    ends: dict[str, Any] = {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}
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
    rows = Clip(clip).encode(IMAGES)
    assert rows.shape == (3, 8)
    assert rows.dtype == np.float32
    model = CLIPModel.from_pretrained(clip).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(clip)(IMAGES, return_tensors="pt")["pixel_values"]
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
    rows = Dinov2(dinov2).encode(IMAGES)
    pixels = BitImageProcessorPil.from_pretrained(dinov2)(IMAGES, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = Dinov2Model.from_pretrained(dinov2).eval()(pixel_values=pixels).last_hidden_state[:, 0]
    assert np.allclose(rows, expected.numpy(), atol=1e-6)


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
    before = extract_features(Clip(clip), IMAGES)
    copy = Path(shutil.copytree(clip, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    weights["visual_projection.weight"] *= -1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert np.allclose(extract_features(Clip(copy), IMAGES), -before, atol=1e-6)
    assert np.array_equal(extract_features(Clip(clip), IMAGES), before)


@pytest.mark.parametrize("kind", [Clip, Dinov2])
def test_a_missing_folder_is_never_downloaded(kind: type[Clip | Dinov2], tmp_path: Path) -> None:
    for use in (
        lambda: kind(Path("openai/clip-vit-base-patch32")).version,
        lambda: kind(tmp_path / "x").encode(IMAGES),
    ):
        with pytest.raises(InputError, match="is not a folder on this machine; models are not downloaded here"):
            use()


def test_a_folder_that_is_not_whole_says_what_it_lacks(clip: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(clip, tmp_path / "copy"))
    (copy / "preprocessor_config.json").unlink()
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")  # a pickle is no replacement
    with pytest.raises(InputError, match=r"copy: holds no preprocessor_config\.json and no \*\.safetensors"):
        Clip(copy).encode(IMAGES)


def test_a_model_of_another_kind_is_refused(clip: Path, dinov2: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json: holds a model of type 'dinov2'; allowed: clip"):
        Clip(dinov2).encode(IMAGES)
    copy = Path(shutil.copytree(clip, tmp_path / "copy"))
    for damage in ("{", "[]"):
        (copy / "config.json").write_text(damage)
        with pytest.raises(InputError, match=r"config\.json: is not a model configuration"):
            Clip(copy).encode(IMAGES)


def test_damaged_weights_are_one_line(clip: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(clip, tmp_path / "copy"))
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="copy: cannot be loaded") as caught:
        Clip(copy).encode(IMAGES)
    assert "\n" not in str(caught.value)


def test_every_extractor_is_made_by_its_name(clip: Path, dinov2: Path) -> None:
    for name in EXTRACTORS:
        extractor = make_extractor(name, {"clip": clip, "dinov2": dinov2}.get(name))
        assert extractor.name == name
        assert extractor.encode(IMAGES).shape[0] == 3
    with pytest.raises(InputError, match="unknown extractor 'clap', did you mean 'clip'"):
        make_extractor("clap")
    with pytest.raises(InputError, match="extractor 'clip' needs a model"):
        make_extractor("clip")


def test_the_settings_of_the_model_are_followed(clip: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(clip, tmp_path / "copy"))
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.0, 0.0, 0.0]}))
    assert not np.allclose(Clip(copy).encode(IMAGES), Clip(clip).encode(IMAGES), atol=1e-3)
