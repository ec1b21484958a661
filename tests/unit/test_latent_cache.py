"""The cache is keyed by content and read back bit for bit; wherever the encoded set lives, batches are the same."""

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image

from data import latent_cache
from data.atomic_io import file_sha256
from data.dataset import Batch, BatchLayout, EncodedDataset, StepSampler, collate, to_device
from data.errors import InputError
from data.latent_cache import DiskEntries, EntryPaths, ImageCrop, MemoryEntries, cache_latents, cache_text_states


class Encoder:
    """Counts its calls; the latent is the image's mean colour."""

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
    image = Image.new("RGB", (32, 16), "white")
    image.paste("red", (0, 0, 16, 16))
    image.save(path)
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


def test_a_renamed_image_is_a_hit(frame: ImageCrop) -> None:
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


def test_nan_names_the_image(frame: ImageCrop) -> None:
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


# ---- storage during training


CPU = torch.device("cpu")


@pytest.fixture
def records(tmp_path: Path) -> list[EntryPaths]:
    """Eight encoded images of two orientations; each has a caption of its own and one that all share."""
    draw = torch.Generator().manual_seed(0)

    def kept(name: str, *shape: int) -> Path:
        latent_cache.save_entry(tmp_path / name, torch.randn(shape, generator=draw))
        return tmp_path / name

    shared = kept("shared", 7, 5)
    return [
        EntryPaths(
            f"{i}.png", (kept(f"{i} plain", 8, 6, 4), kept(f"{i} mirrored", 8, 6, 4)), (kept(f"{i} text", 7, 5), shared)
        )
        for i in range(8)
    ]


def batches(home: str, records: list[EntryPaths], device: torch.device = CPU) -> list[Batch]:
    """As train/encode.py and train/trainer.py put the parts together."""
    memory = MemoryEntries(CPU)
    bucket = DiskEntries(records) if home == "disk" else memory.entries(records)
    empty = torch.zeros(7, 5, device=memory.device)
    images = EncodedDataset([bucket], empty, seed=2, scaling_factor=0.18215, dropout=0.3)
    sampler = StepSampler([len(bucket)], BatchLayout(4), seed=2, start=0, stop=10)
    return [to_device(collate([images[p] for p in positions]), device) for positions in sampler]


def assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.sample_ids == other.sample_ids
        for name in ("latents", "noise", "text_states", "timestep_uniforms"):
            assert torch.equal(getattr(one, name).cpu(), getattr(other, name).cpu()), name


def test_memory_and_disk_give_the_same_batches(records: list[EntryPaths]) -> None:
    in_memory = batches("memory", records)
    assert_equal(batches("disk", records), in_memory)
    assert len({ids for batch in in_memory for ids in batch.sample_ids}) == 8


@pytest.mark.gpu
def test_pinned_memory_and_disk_give_the_same_batches(records: list[EntryPaths]) -> None:
    cuda, expected = torch.device("cuda", 0), batches("memory", records)
    for home in ("memory", "disk"):
        found = batches(home, records, cuda)
        assert all(batch.latents.is_cuda and batch.text_states.is_cuda and batch.noise.is_cuda for batch in found)
        assert_equal(found, expected)


@pytest.mark.gpu
def test_a_batch_on_the_device_is_not_overwritten_while_it_is_used(records: list[EntryPaths]) -> None:
    """Pinned memory is not given out again before the device has read it."""
    cuda = torch.device("cuda", 0)
    images = EncodedDataset([DiskEntries(records)], torch.zeros(7, 5), seed=2, scaling_factor=1.0, dropout=0.3)
    sampler = StepSampler([len(records)], BatchLayout(4), seed=2, start=0, stop=50)
    sums = []
    for positions in sampler:
        batch = to_device(collate([images[p] for p in positions]), cuda)
        torch.cuda._sleep(2_000_000)
        sums.append(batch.latents.double().sum())
    expected = [collate([images[p] for p in positions]).latents.double().sum() for positions in sampler]
    torch.testing.assert_close(torch.stack(sums).cpu(), torch.stack(expected))


def test_captions_that_images_share_are_held_once(records: list[EntryPaths]) -> None:
    entries = MemoryEntries(CPU).entries(records)
    assert all(entry.text_states[1] is entries[0].text_states[1] for entry in entries)
    assert latent_cache.total_bytes(records) == sum(
        path.stat().st_size for path in records[0].moments[0].parent.iterdir()
    )


def test_an_entry_that_goes_while_training_is_named(records: list[EntryPaths]) -> None:
    shelf = DiskEntries(records)
    assert shelf[3].sample_id == "3.png"
    records[3].moments[1].unlink()
    with pytest.raises(InputError, match=r"3 mirrored: "):
        shelf[3]


@pytest.mark.parametrize(
    ("keep", "size", "expected"),
    [
        ("auto", 100, "memory"),
        ("auto", 101, "disk"),
        ("memory", 199, "memory"),
        ("device", 199, "memory"),
        ("disk", 10, "disk"),
    ],
)
def test_storage_follows_the_free_memory(monkeypatch: pytest.MonkeyPatch, keep: str, size: int, expected: str) -> None:
    monkeypatch.setattr(latent_cache, "free_memory", lambda: 200 * latent_cache.GIB)
    assert latent_cache.choose_storage(keep, size * latent_cache.GIB) == expected


@pytest.mark.parametrize("keep", ["device", "memory"])
def test_too_little_memory_is_an_error(monkeypatch: pytest.MonkeyPatch, keep: str) -> None:
    monkeypatch.setattr(latent_cache, "free_memory", lambda: latent_cache.GIB)
    with pytest.raises(InputError) as refused:
        latent_cache.choose_storage(keep, 2 * latent_cache.GIB)
    assert refused.value.where == f"--pictures.keep {keep}"
    assert "--pictures.keep disk" in (refused.value.fix or "")


def test_the_control_groups_limit_and_the_other_processes_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(latent_cache, "MEMORY_LIMITS", ((limit, used),))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    used.write_text("1000\n")
    for text, expected in (("5000\n", 2000), ("500\n", 0)):
        limit.write_text(text)
        assert latent_cache.free_memory() == expected
    limit.write_text("max\n")
    assert latent_cache.free_memory() > 2000
