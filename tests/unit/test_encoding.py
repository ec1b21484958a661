"""From pictures to what the loop draws from: distributed as if encoded afresh, and a cache that is never stale."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file, save_file

from data import latent_cache
from data.dataset import BatchLayout, EncodedDataset, Position, StepSampler
from data.errors import InputError
from train import training_set
from train.config import Config
from train.model import load_model
from train.training_set import Encoded, exact_float32, load_training_set

ROOT = Path(__file__).parents[2]
Encode = Callable[..., Encoded]


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """Four creatures and a wide picture with three captions."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [json.loads(line) for line in (tiny_data / "metadata.jsonl").read_text().splitlines()[:4]]
    for row in rows:
        shutil.copy(tiny_data / row["file_name"], folder)
    Image.effect_noise((96, 48), 90).convert("RGB").save(folder / "wide.png")
    rows.append({"file_name": "wide.png", "text": "noise", "texts": ["grey noise", "a wide noise"]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def model_folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def encode_all(data: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Encode:
    """As train/trainer.py does it, with a cache of this test's own."""
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))

    def run(folder: Path = data, **pictures: Any) -> Encoded:
        settings = {"size": 32, "held_out": 0, **pictures}
        config = Config.model_validate({"data": str(folder), "model": str(model_folder), "pictures": settings})
        model = load_model(str(model_folder))
        return training_set.encode_training_set(model, load_training_set(config, model), config, Accelerator(cpu=True))

    return run


def entries() -> dict[str, set[str]]:
    """What lies in the cache: kind -> keys."""
    return {
        kind: {path.stem for path in (latent_cache.cache_root() / kind).rglob("*.safetensors")}
        for kind in ("latents", "texts")
    }


def new(before: dict[str, set[str]]) -> tuple[int, int]:
    """(latents, texts) that were added; nothing is ever changed or removed."""
    now = entries()
    assert all(before[kind] <= now[kind] for kind in before)
    return len(now["latents"] - before["latents"]), len(now["texts"] - before["texts"])


def change_weights(folder: Path) -> None:
    """One weight of the part, by a little."""
    file = next(folder.glob("*.safetensors"))
    weights = load_file(file)
    first = next(iter(weights))
    weights[first].view(-1)[0] += 1e-3
    save_file(weights, file, {"format": "pt"})


def change_byte(path: Path) -> None:
    """A byte after a PNG's end changes the file and not the picture."""
    path.write_bytes(path.read_bytes() + b"\0")


def rename_all(data: Path) -> None:
    rows = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        (data / row["file_name"]).rename(data / f"renamed {number}.png")
        row["file_name"] = f"renamed {number}.png"
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_what_changes_is_a_miss_and_nothing_else(encode_all: Encode, data: Path, model_folder: Path) -> None:
    encode_all()
    before = entries()
    assert (len(before["latents"]), len(before["texts"])) == (5, 8)  # the empty prompt, four captions, three captions
    encode_all()
    assert new(before) == (0, 0), "the second time nothing is encoded"

    def added(**pictures: Any) -> tuple[int, int]:
        earlier = entries()
        encode_all(**pictures)
        return new(earlier)

    rename_all(data)
    assert added() == (0, 0), "renamed pictures"
    change_byte(data / "renamed 0.png")
    assert added() == (1, 0), "one byte of a picture"
    assert added(buckets=False) == (1, 0), "the wide picture's crop"
    assert added(size=64) == (5, 0), "the size"
    assert added(flip=True) == (5, 0), "mirrored pictures"
    assert added(caption="a drawing of {text}") == (0, 7), "the captions, and not the empty prompt"
    table = data / "metadata.jsonl"
    table.write_text(table.read_text().replace("grey noise", "gray noise"))
    assert added() == (0, 1), "one caption"
    change_weights(model_folder / "vae")
    assert added() == (5, 0), "the autoencoder"
    change_weights(model_folder / "text_encoder")
    assert added() == (0, 8), "the text encoder"
    settings = model_folder / "tokenizer" / "tokenizer_config.json"
    settings.write_text(settings.read_text() + "\n")
    assert added() == (0, 8), "the tokenizer"


def test_a_moved_folder_is_a_hit(encode_all: Encode, data: Path) -> None:
    encode_all()
    before = entries()
    encode_all(data.rename(data.with_name("moved")))
    assert new(before) == (0, 0)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-3], lambda b: b[:-8] + bytes(8), lambda b: b"", lambda b: bytes(len(b))]
)
def test_a_damaged_entry_is_made_again_and_said(
    encode_all: Encode, capsys: pytest.CaptureFixture[str], damage: Callable[[bytes], bytes]
) -> None:
    """Cut short, overwritten at the end, empty, all zeros: what a power cut leaves."""
    first = encode_all()
    places = [next((latent_cache.cache_root() / kind).rglob("*.safetensors")) for kind in ("latents", "texts")]
    whole = [path.read_bytes() for path in places]
    for path in places:
        path.write_bytes(damage(path.read_bytes()))
    capsys.readouterr()
    again = encode_all()
    out = capsys.readouterr().out
    assert all(f"damaged, encoded again: {path}" in out for path in places)
    assert [path.read_bytes() for path in places] == whole
    for one, other in zip(first.buckets, again.buckets, strict=True):
        assert all(torch.equal(a.moments[0], b.moments[0]) for a, b in zip(one, other, strict=True))
    capsys.readouterr()
    encode_all()
    assert "damaged" not in capsys.readouterr().out


TOO_LARGE = 3e38  # finite, as loading checks, and without a sum in float32


def test_nan_names_the_image_and_keeps_nothing(encode_all: Encode, data: Path, model_folder: Path) -> None:
    file = next((model_folder / "vae").glob("*.safetensors"))
    weights = load_file(file)
    weights["quant_conv.weight"].fill_(TOO_LARGE)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(InputError, match=rf"{data}/.*png: .*NaN"):
        encode_all()
    assert not entries()["latents"]


def test_nan_in_the_text_encoder_names_the_caption(encode_all: Encode, model_folder: Path) -> None:
    file = next((model_folder / "text_encoder").glob("*.safetensors"))
    weights = load_file(file)
    next(weight for name, weight in weights.items() if "final_layer_norm.weight" in name).fill_(TOO_LARGE)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"NaN.*''"):
        encode_all()
    assert not entries()["texts"]


def test_an_interrupted_encoding_goes_on(encode_all: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = training_set.encode_image, Counter[str]()

    def counted(*arguments: Any) -> torch.Tensor:
        calls["all"] += 1
        if calls["all"] == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(training_set, "encode_image", counted)
    with pytest.raises(KeyboardInterrupt):
        encode_all()
    assert len(entries()["latents"]) == 2
    encode_all()
    assert calls["all"] == 3 + 3, "two were kept, three are left"
    assert not list(latent_cache.cache_root().rglob("*.part"))


def test_a_picture_that_changes_while_it_is_read_is_not_kept(
    encode_all: Encode, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = training_set.encode_captions

    def then_change(*arguments: Any) -> Any:
        change_byte(data / "wide.png")
        return original(*arguments)

    monkeypatch.setattr(training_set, "encode_captions", then_change)
    with pytest.raises(InputError, match=r"wide\.png: changed while it was being read"):
        encode_all()


SCRIPT = """
import sys, torch
from pathlib import Path
from data import latent_cache
from data.atomic_io import file_sha256
from data.latent_cache import ImageCrop
paths = sorted(Path(sys.argv[1]).glob("*.png"))
frames = [ImageCrop(path, file_sha256(path), 32, 32) for path in paths for _ in range(2)]
frames += [ImageCrop(frame.path, frame.sha256, size, size) for frame in frames for size in range(16, 60, 2)]
print("ready", flush=True)
sys.stdin.readline()
def encode_all(pixels):
    return pixels.mean((2, 3), keepdim=True).repeat(1, 2, 64, 64) * pixels.shape[-1]
filled = latent_cache.cache_latents(frames, encode_all, "vae")
for frame, path in zip(frames, filled.places):
    assert torch.equal(latent_cache.load_entry(path), encode_all(frame.pixels())[0]), path
print(len(set(filled.places)), len(filled.damaged), flush=True)
"""


def test_two_processes_at_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both encode the same pictures into the same cache at the same time: every entry is whole."""
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))
    command = [sys.executable, "-c", SCRIPT, str(data)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]
    assert [process.stdout.readline() for process in both if process.stdout] == ["ready\n"] * 2
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=120) for process in both]
    assert [out for out, _ in ends] == ["110 0\n"] * 2, [error for _, error in ends]
    assert len(entries()["latents"]) == 110
    assert not list(latent_cache.cache_root().rglob("*.part"))


def pictures_of(encoded: Encoded, dropout: float = 0.0, scaling: float = 1.0) -> EncodedDataset:
    return EncodedDataset(encoded.buckets, encoded.empty, seed=5, scaling_factor=scaling, dropout=dropout)


def test_latents_are_distributed_as_if_encoded_afresh(encode_all: Encode, data: Path, model_folder: Path) -> None:
    """Mean and variance of what the loop sees, position by position, against diffusers' own posterior drawn afresh."""
    encoded = encode_all(buckets=False)
    model = load_model(str(model_folder))
    count, draws = 1500, torch.Generator().manual_seed(0)
    names = [entry.sample_id for entry in encoded.buckets[0]]
    index = names.index("wide.png")
    found = torch.stack([pictures_of(encoded, scaling=0.18215)[Position(s, 0, 0, index)].latents for s in range(count)])
    frame = latent_cache.ImageCrop(
        data / "wide.png", latent_cache.hashlib.sha256((data / "wide.png").read_bytes()).hexdigest(), 32, 32
    )
    with torch.no_grad():
        posterior = model.vae.encode(frame.pixels()).latent_dist  # type: ignore[union-attr]
        fresh = torch.cat([posterior.sample(draws) for _ in range(count)]) * model.scaling_factor
    assert found.shape == fresh.shape
    deviation = fresh.std(0)
    assert float(deviation.min()) > 0
    means = (found.mean(0) - fresh.mean(0)) / (deviation * (2 / count) ** 0.5)  # standard normal, each
    ratios = (found.var(0) / fresh.var(0)).log() / (4 / count) ** 0.5  # likewise, for many draws
    for scores in (means, ratios):
        assert float(scores.abs().max()) < 5
        assert abs(float(scores.mean())) < 5 / scores.numel() ** 0.5
        assert abs(float(scores.pow(2).mean()) - 1) < 5 * (2 / scores.numel()) ** 0.5


def test_mirrored_pictures_are_encoded_and_not_mirrored_latents(encode_all: Encode) -> None:
    encoded = encode_all(flip=True)
    for entry in (entry for bucket in encoded.buckets for entry in bucket):
        plain, mirrored = entry.moments
        assert plain.shape == mirrored.shape
        assert not torch.allclose(plain.flip(-1), mirrored, atol=1e-4), "a convolution is not symmetric"


def test_several_captions_are_used_equally_often(encode_all: Encode) -> None:
    encoded = encode_all()
    where = next(
        (b, i) for b, held in enumerate(encoded.buckets) for i, e in enumerate(held) if e.sample_id == "wide.png"
    )
    entry, pictures, count = encoded.buckets[where[0]][where[1]], pictures_of(encoded, dropout=0.25), 4000
    sums = Counter(pictures.states(entry, False, 5, step, 0).double().sum().item() for step in range(count))
    expected = {states.double().sum().item() for states in (*entry.text_states, encoded.empty)}
    assert sums.keys() == expected and len(expected) == 4
    assert all(abs(uses / count - 0.25) < 4.5 * (0.25 * 0.75 / count) ** 0.5 for uses in sums.values())


def test_memory_and_disk_from_the_same_cache(encode_all: Encode, capsys: pytest.CaptureFixture[str]) -> None:
    found = {keep: encode_all(keep=keep, flip=True) for keep in ("auto", "device", "memory", "disk")}
    out = capsys.readouterr().out
    assert [out.count(f"kept {where}") for where in ("in main memory", "on the disk, read again for every batch")] == [
        3,
        1,
    ]
    sizes = [len(bucket) for bucket in found["memory"].buckets]
    for positions in StepSampler(sizes, BatchLayout(3), seed=5, start=0, stop=8, weights=found["disk"].weights):
        for position in positions:
            one, other = (pictures_of(found[keep], dropout=0.3)[position] for keep in ("memory", "disk"))
            assert one.sample_id == other.sample_id
            assert torch.equal(one.latents, other.latents) and torch.equal(one.text_states, other.text_states)


def test_tf32_is_off_while_encoding_and_as_before_after_it() -> None:
    def state() -> tuple[Any, Any]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = state()
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with exact_float32():
            assert state() == (False, False)
        assert state() == (True, before[1])
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before[0]
