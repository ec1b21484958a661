"""The base model: from a folder or a single file, part by part, fingerprinted by content; and all it can lack."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data import rng
from data.errors import InputError
from tests.original_layout import original_layout, weights_of
from train import model
from train.exporters.verify import probe_output
from train.model import BaseModel, load_model


@pytest.fixture
def copied(tiny_model: Path, tmp_path: Path) -> Path:
    """A tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture(autouse=True)
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache of the test's own, so that no result depends on what was downloaded on this machine."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def refusal(model: object, tokenizer: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        load_model(str(model), tokenizer=tokenizer)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_facts_come_from_the_model(tiny_model: Path) -> None:
    model = load_model(str(tiny_model))
    assert (model.factor, model.step, model.sample_size) == (4, 8, 64)
    assert (model.latent_channels, model.scaling_factor, model.prediction_type) == (4, 0.18215, "epsilon")
    assert model.schedule.steps == 1000
    assert float(model.schedule.betas[0]) == pytest.approx(0.00085)
    assert not {"unet", "vae", "text_encoder"} & vars(model).keys(), "facts need no weights"


def test_parts_load_when_they_are_used_and_can_be_forgotten(tiny_model: Path) -> None:
    model = load_model(str(tiny_model))
    unet = model.unet
    assert model.unet is unet
    assert {"vae", "text_encoder", "tokenizer"} & vars(model).keys() == set()
    model.vae.encode(torch.zeros(1, 3, 16, 16))
    model.forget("vae", "text_encoder")  # one that was never loaded, too
    assert "vae" not in vars(model)
    assert model.unet is unet
    assert model.vae.training is False


def test_parts_are_frozen_and_of_the_precision_asked_for(tiny_model: Path) -> None:
    model = load_model(str(tiny_model), dtype=torch.float16)
    for part in (model.unet, model.vae, model.text_encoder):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())
        assert {parameter.dtype for parameter in part.parameters()} == {torch.float16}


def test_loading_draws_nothing(tiny_model: Path) -> None:
    before = torch.get_rng_state()
    model = load_model(str(tiny_model))
    _ = model.unet, model.vae, model.text_encoder, model.tokenizer
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "scheduler", "model_index.json"])
def test_a_missing_part_is_named(part: str, copied: Path) -> None:
    gone = copied / part
    gone.unlink() if gone.is_file() else shutil.rmtree(gone)
    text = refusal(copied)
    assert text.startswith(f"--model {copied}: ")
    assert text.endswith(f"lacks {part}")


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert refusal(tmp_path / "images").endswith("lacks model_index.json")


def test_pickled_weights_are_not_read(copied: Path) -> None:
    weights_of(copied, "vae").rename(copied / "vae" / "diffusion_pytorch_model.bin")
    text = refusal(copied)
    assert text.startswith(f"--model {copied}: no .safetensors weights in vae. ")
    assert "save_pretrained" in text


def test_a_checkpoint_that_can_run_code(tmp_path: Path) -> None:
    (tmp_path / "sd.ckpt").write_bytes(b"pickle")
    text = refusal(tmp_path / "sd.ckpt")
    assert "sd.ckpt: " in text
    assert "can run code" in text


@pytest.mark.parametrize("name", ["no/such/folder", "./nothing", "~/nothing", "sd/v1.safetensors", "sd14", "/tmp/none"])
def test_a_wrong_path(name: str) -> None:
    assert refusal(name) == f"--model {name}: no such file or folder; allowed: {model.ALLOWED_MODELS}"


def test_a_slip_of_the_finger() -> None:
    assert "no such file or folder, did you mean 'pocket'?; allowed: pocket, a folder" in refusal("poket")


def test_a_hub_model_that_is_not_here() -> None:
    text = refusal("CompVis/stable-diffusion-v1-4")
    assert "--model CompVis/stable-diffusion-v1-4: Stable Diffusion v1.4 is not on this machine. Get it with: " in text
    assert "hf download CompVis/stable-diffusion-v1-4 --include 'model_index.json' '*/*.json' '*/*.txt' 'unet/*" in text
    assert "someone/else is not on this machine. Get it with: hf download someone/else" in refusal("someone/else")


def put_in_hub(hub: Path, model: Path, name: str = "someone/tiny") -> Path:
    """As `hf download` leaves it: a snapshot folder and a reference to it."""
    entry = hub / f"models--{name.replace('/', '--')}"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("0123abcd")
    return Path(shutil.copytree(model, entry / "snapshots" / "0123abcd"))


def test_a_hub_model_that_is_here(empty_hub: Path, tiny_model: Path) -> None:
    put_in_hub(empty_hub, tiny_model)
    model = load_model("someone/tiny")
    assert model.name == "someone/tiny"
    assert torch.equal(probe_output(model.unet, model), probe_output(load_model(str(tiny_model)).unet, model))


def test_half_a_hub_model_says_how_to_get_the_rest(empty_hub: Path, tiny_model: Path) -> None:
    shutil.rmtree(put_in_hub(empty_hub, tiny_model) / "unet")
    assert "lacks unet. Get it with: hf download someone/tiny --include" in refusal("someone/tiny")


def test_a_folder_without_a_tokenizer(copied: Path, tiny_model: Path) -> None:
    shutil.rmtree(copied / "tokenizer")
    assert refusal(copied).startswith(f"--model {copied}: holds no tokenizer. Name one with --tokenizer FOLDER")
    for named in (tiny_model, tiny_model / "tokenizer"):
        found = load_model(str(copied), tokenizer=str(named)).tokenizer
        assert found("a water type").input_ids == load_model(str(tiny_model)).tokenizer("a water type").input_ids


def test_a_tokenizer_folder_without_one(tiny_model: Path, tmp_path: Path) -> None:
    text = refusal(tiny_model, tokenizer=str(tmp_path))
    assert text == f"--tokenizer {tmp_path}: no tokenizer there (vocab.json or tokenizer.json)"


def part_refusal(model: BaseModel, part: str) -> str:
    with pytest.raises(InputError) as caught:
        getattr(model, part)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without_one(tensors: dict[str, Tensor]) -> None:
    del tensors[min(tensors)]


def of_another_shape(tensors: dict[str, Tensor]) -> None:
    name = min(tensors)
    tensors[name] = torch.zeros(*tensors[name].shape, 2)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("spoil", [without_one, of_another_shape, None])
def test_weights_that_do_not_fit_are_not_made_up(part: str, spoil: Any, copied: Path) -> None:
    """The libraries put random numbers in the place of what is missing and only mention it. None: cut short."""
    file = weights_of(copied, part)
    if spoil is None:
        file.write_bytes(file.read_bytes()[:-1000])
    else:
        tensors = load_file(file)
        spoil(tensors)
        save_file(tensors, file, {"format": "pt"})
    text = part_refusal(load_model(str(copied)), part)
    assert f"the {part} could not be loaded (" in text
    assert spoil is not without_one or "1 weights are missing, such as " in text


CHANGES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "tokenizer": "tokenizer/merges.txt",
}


@pytest.mark.parametrize("part", CHANGES)
def test_one_byte_changes_the_fingerprint_of_its_part_alone(part: str, copied: Path) -> None:
    before = load_model(str(copied))
    assert before.fingerprints.keys() == CHANGES.keys()
    assert len(set(before.fingerprints.values())) == 4
    with (copied / CHANGES[part]).open("r+b") as file:  # at once and in place: same size, same inode
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    after = load_model(str(copied))
    assert [name for name in CHANGES if after.fingerprints[name] != before.fingerprints[name]] == [part]
    assert after.fingerprint != before.fingerprint


def test_the_fingerprint_is_of_the_content(copied: Path, tiny_model: Path) -> None:
    assert load_model(str(copied)).fingerprint == load_model(str(tiny_model)).fingerprint


def test_large_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))
    hashed: list[Path] = []
    real = model.file_sha256
    monkeypatch.setattr(model, "file_sha256", lambda file: hashed.append(file) or real(file))
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"one")
    first = model.file_hash(file)
    assert model.file_hash(file) == first
    assert len(hashed) == 2, "a file written a moment ago may still change"
    minute_ago = time.time() - 60
    os.utime(file, (minute_ago, minute_ago))
    assert [model.file_hash(file) for _ in range(3)] == [first] * 3
    assert len(hashed) == 3
    (tmp_path / "cache" / "hashes.json").write_text('{"torn')
    assert model.file_hash(file) == first
    assert len(hashed) == 4


# ---- a single file in the original layout


@pytest.fixture
def single_file(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write the tiny model as a single file, changed by `change`; it is read with the tiny architecture."""
    layout = tmp_path / "sd-v1"
    for config in tiny_model.rglob("*.json"):
        target = layout / config.relative_to(tiny_model)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(config, target)
    monkeypatch.setattr(model, "ARCHITECTURES", tmp_path)

    def write(change: Callable[[dict[str, Tensor]], object] = len, dtype: torch.dtype = torch.float32) -> Path:
        tensors = original_layout(tiny_model)
        change(tensors)
        tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "sd.safetensors")
        return tmp_path / "sd.safetensors"

    return write


def test_a_single_file_is_the_same_model(single_file: Callable[..., Path], tiny_model: Path) -> None:
    folder, single = load_model(str(tiny_model)), load_model(str(single_file()), tokenizer=str(tiny_model))
    assert (probe_output(single.unet, single) - probe_output(folder.unet, folder)).abs().max() < 1e-5
    pixels = rng.normal((1, 3, 32, 32), "pixels")
    latents = rng.normal((1, 4, 8, 8), "latents")
    tokens = folder.tokenizer("a water type", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        moments = [model.vae.encode(pixels, return_dict=False)[0].parameters for model in (single, folder)]
        pictures = [model.vae.decode(latents, return_dict=False)[0] for model in (single, folder)]  # type: ignore[arg-type]
        states = [model.text_encoder(tokens)[0] for model in (single, folder)]
    for one, two in (moments, pictures, states):
        assert (one - two).abs().max() < 1e-5
        assert two.abs().max() > 0.1
    for part in (single.unet, single.vae, single.text_encoder):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())
    assert (single.factor, single.step) == (4, 8)


def test_every_tensor_of_a_single_file_has_its_place(single_file: Callable[..., Path], tiny_model: Path) -> None:
    """Equal predictions could hide a weight that the small question does not reach."""
    folder, single = load_model(str(tiny_model)), load_model(str(single_file()), tokenizer=str(tiny_model))
    for part in ("unet", "vae", "text_encoder"):
        mine, theirs = getattr(single, part).state_dict(), getattr(folder, part).state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_half_precision_file_is_read_in_the_precision_asked_for(
    single_file: Callable[..., Path], tiny_model: Path
) -> None:
    file = single_file(dtype=torch.float16)
    for dtype in (torch.float32, torch.bfloat16):
        model = load_model(str(file), tokenizer=str(tiny_model), dtype=dtype)
        for part in (model.unet, model.vae, model.text_encoder):
            assert {parameter.dtype for parameter in part.parameters()} == {dtype}


def test_a_single_file_needs_no_tokenizer(single_file: Callable[..., Path]) -> None:
    """CLIP's own vocabulary, with the numbers that every Stable Diffusion 1.x was trained on."""
    tokenizer = load_model(str(single_file())).tokenizer
    ids = tokenizer("a photo of a cat", padding="max_length", max_length=9).input_ids
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407, 49407, 49407]
    assert len(tokenizer) == 49408
    assert tokenizer.model_max_length == 77


def test_towers_that_other_tools_wrote(single_file: Callable[..., Path], tiny_model: Path) -> None:
    """Some leave the level `text_model.` out, some add CLIP's projection, which Stable Diffusion makes no use of."""
    prefix = "cond_stage_model.transformer."

    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(f"{prefix}text_model.")]:
            tensors[name.replace("text_model.", "")] = tensors.pop(name)
        tensors[f"{prefix}text_projection.weight"] = torch.zeros(32, 32)

    found = load_model(str(single_file(change)), tokenizer=str(tiny_model)).text_encoder.state_dict()
    want = load_model(str(tiny_model)).text_encoder.state_dict()
    assert all(torch.equal(found[name], want[name]) for name in want)


def drop(prefix: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        names = [name for name in tensors if name.startswith(prefix)]
        assert names
        for name in names:
            del tensors[name]

    return change


def widen(name: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name] = torch.cat([tensors[name]] * 2)

    return change


def add(name: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name] = torch.zeros(2)

    return change


TEXT = "cond_stage_model.transformer.text_model."
SPOILED = [
    ("unet", drop("model.diffusion_model.input_blocks.0.0.bias"), "some of its weights are missing"),
    ("unet", widen("model.diffusion_model.out.2.bias"), ""),
    ("vae", drop("first_stage_model.encoder.conv_in.bias"), "some of its weights are missing"),
    ("vae", drop("first_stage_model."), ""),
    ("text_encoder", drop(f"{TEXT}final_layer_norm.bias"), "1 of its weights are missing, 0 are unknown"),
    ("text_encoder", add(f"{TEXT}extra"), "0 of its weights are missing, 1 are unknown"),
    ("text_encoder", widen(f"{TEXT}final_layer_norm.bias"), "size mismatch"),
]


@pytest.mark.parametrize(("part", "change", "reason"), SPOILED)
def test_a_single_file_of_another_architecture(
    part: str, change: object, reason: str, single_file: Callable[..., Path], tiny_model: Path
) -> None:
    file = single_file(change)
    text = part_refusal(load_model(str(file), tokenizer=str(tiny_model)), part)
    assert text.startswith(f"{file}: the {part} could not be loaded (")
    assert reason in text


def test_a_single_file_cut_short(single_file: Callable[..., Path]) -> None:
    file = single_file()
    file.write_bytes(file.read_bytes()[:-1000])
    assert refusal(file).startswith(f"{file}: ")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_not_numbers_are_named(part: str, copied: Path) -> None:
    file = weights_of(copied, part)
    tensors = load_file(file)
    name = sorted(tensors)[3]
    tensors[name].flatten()[0] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    text = part_refusal(load_model(str(copied)), part)
    assert "not finite" in text
    assert part in text


def test_a_folder_with_half_precision_files_alone(copied: Path, tiny_model: Path) -> None:
    for part in ("unet", "vae", "text_encoder"):
        file = weights_of(copied, part)
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    one, other = load_model(str(copied)), load_model(str(tiny_model))
    assert torch.equal(probe_output(one.unet, one), probe_output(other.unet, other))
    one.vae, one.text_encoder  # noqa: B018


def test_files_that_are_not_loaded_do_not_change_the_fingerprint(copied: Path, tiny_model: Path) -> None:
    for part in ("unet", "vae", "text_encoder"):
        file = weights_of(copied, part)
        shutil.copy(file, file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
        shutil.copy(file, file.with_name("other.safetensors"))
    assert load_model(str(copied)).fingerprint == load_model(str(tiny_model)).fingerprint


def test_one_byte_of_a_single_file_changes_all_its_parts(single_file: Callable[..., Path], tiny_model: Path) -> None:
    file = single_file()
    before = load_model(str(file), tokenizer=str(tiny_model)).fingerprints
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    after = load_model(str(file), tokenizer=str(tiny_model)).fingerprints
    assert [name for name in before if before[name] != after[name]] == ["unet", "vae", "text_encoder"]


def test_the_shipped_architecture_is_stable_diffusion_v1() -> None:
    """Number for number what the published configs say; the weights' total is checked in the slow tier."""
    configs = {part: json.loads((model.SD_V1_CONFIGS / part / "config.json").read_text()) for part in model.PARTS}
    assert configs["unet"]["block_out_channels"] == [320, 640, 1280, 1280]
    assert (configs["unet"]["cross_attention_dim"], configs["unet"]["attention_head_dim"]) == (768, 8)
    assert configs["vae"]["block_out_channels"] == [128, 256, 512, 512]
    assert configs["vae"]["scaling_factor"] == 0.18215
    assert configs["text_encoder"]["hidden_act"] == "quick_gelu"
    assert (configs["text_encoder"]["num_hidden_layers"], configs["text_encoder"]["vocab_size"]) == (12, 49408)
