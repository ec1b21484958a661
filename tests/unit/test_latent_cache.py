"""Caches are keyed by content: the same inputs are read back bit for bit, any changed input is a miss."""

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image

from data import latent_cache
from data.atomic_io import file_sha256
from data.errors import InputError
from data.latent_cache import ImageCrop, cache_latents, cache_text_states


class Encoder:
    """Counts its calls; the latent is the picture's mean colour."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return pixels.mean(dim=(2, 3), keepdim=True).repeat(1, 2, 2, 2)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def frame(tmp_path: Path) -> ImageCrop:
    path = tmp_path / "red left.png"
    picture = Image.new("RGB", (32, 16), "white")
    picture.paste("red", (0, 0, 16, 16))
    picture.save(path)
    return ImageCrop(path, file_sha256(path), 32, 16)


def test_the_second_time_nothing_is_encoded(frame: ImageCrop) -> None:
    encoder = Encoder()
    first = cache_latents([frame], encoder, "vae-1")
    kept = latent_cache.load_entry(first.places[0])
    second = cache_latents([frame], encoder, "vae-1")
    assert encoder.calls == 1
    assert first == second and not first.damaged
    assert torch.equal(kept, encoder(frame.pixels())[0])


def test_any_other_input_is_a_miss(frame: ImageCrop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder()
    cache_latents([frame], encoder, "vae-1")
    other = tmp_path / "other.png"
    Image.open(frame.path).save(other)
    other.write_bytes(other.read_bytes() + b"\0")  # one byte more, the same pixels
    changed = [
        dataclasses.replace(frame, path=other, sha256=file_sha256(other)),
        dataclasses.replace(frame, width=16),
        dataclasses.replace(frame, flip=True),
    ]
    cache_latents(changed, encoder, "vae-1")
    assert encoder.calls == 4
    cache_latents([frame], encoder, "vae-2")
    assert encoder.calls == 5
    monkeypatch.setattr(latent_cache, "VERSION", latent_cache.VERSION + 1)
    cache_latents([frame], encoder, "vae-1")
    assert encoder.calls == 6


def test_a_renamed_picture_is_a_hit(frame: ImageCrop) -> None:
    encoder = Encoder()
    cache_latents([frame], encoder, "vae-1")
    renamed = dataclasses.replace(frame, path=frame.path.rename(frame.path.with_name("new name.png")))
    cache_latents([renamed], encoder, "vae-1")
    assert encoder.calls == 1


def test_the_mirror_image_is_mirrored(frame: ImageCrop) -> None:
    plain, mirrored = frame.pixels(), dataclasses.replace(frame, flip=True).pixels()
    assert torch.equal(plain.flip(-1), mirrored)
    assert not torch.equal(plain, mirrored)


def test_a_torn_entry_is_encoded_again(frame: ImageCrop) -> None:
    encoder = Encoder()
    cache_latents([frame], encoder, "vae-1")
    (entry,) = latent_cache.cache_root().rglob("*.safetensors")
    entry.write_bytes(entry.read_bytes()[:-3])
    cache_latents([frame], encoder, "vae-1")
    assert encoder.calls == 2


def test_nan_names_the_picture(frame: ImageCrop) -> None:
    with pytest.raises(InputError, match=r"red left.png: the autoencoder gives NaN"):
        cache_latents([frame], lambda pixels: pixels * float("nan"), "vae-1")
    assert not list(latent_cache.cache_root().rglob("*.safetensors"))


def test_text_states() -> None:
    asked: list[str] = []

    def encode(text: str) -> torch.Tensor:
        asked.append(text)
        return torch.full((3, 2), float(len(text)))

    first = cache_text_states(["", "a", "a"], encode, "clip-1")
    second = cache_text_states(["a", "bb"], encode, "clip-1")
    assert asked == ["", "a", "bb"]
    assert first.places[1] == first.places[2] == second.places[0]
    assert torch.equal(latent_cache.load_entry(second.places[1]), encode("bb"))
    asked.pop()
    cache_text_states(["a"], encode, "clip-2")
    assert asked == ["", "a", "bb", "a"]
