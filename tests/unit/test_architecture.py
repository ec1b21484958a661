"""A model is recognised from its configs and tensor names, and whatever else is given is named as what it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from data.errors import InputError
from tests.tiny import tiny_pipeline
from train import architecture
from train.architecture import recognize_file, recognize_folder

UNET = architecture.UNET
SD1 = {
    f"{UNET}input_blocks.0.0.weight": (8, 4, 3, 3),
    architecture.CROSS_ATTENTION: (8, 768),
    "first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3),
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (4, 8),
}
SD2 = SD1 | {
    architecture.CROSS_ATTENTION: (8, 1024),
    "cond_stage_model.model.token_embedding.weight": (4, 8),
    architecture.V_BIAS: (1000,),
}


def write(file: Path, shapes: dict[str, tuple[int, ...]], **metadata: str) -> Path:
    torch.manual_seed(0)
    save_file({name: 0.05 * torch.randn(shape) for name, shape in shapes.items()}, file, metadata or None)
    return file


def without(shapes: dict[str, tuple[int, ...]], *starts: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in shapes.items() if not name.startswith(starts)}


def test_stable_diffusion_1_and_2_are_told_apart(tmp_path: Path) -> None:
    one = recognize_file(write(tmp_path / "1.safetensors", SD1), "--model")
    two = recognize_file(write(tmp_path / "2.safetensors", SD2), "--model")
    assert (one.family, two.family) == ("sd1", "sd2")
    assert one.parts == {"unet", "vae", "text_encoder"}
    assert one.prediction_type is None
    assert two.prediction_type == "epsilon"


def test_a_wide_bias_marks_the_v_prediction_model_of_stable_diffusion_2(tmp_path: Path) -> None:
    file = tmp_path / "v.safetensors"
    save_file({name: torch.randn(shape) for name, shape in SD2.items()}, file)
    assert recognize_file(file, "--model").prediction_type == "v_prediction"


@pytest.mark.parametrize(("markers", "zero_snr"), [(("v_pred",), False), (("v_pred", "ztsnr"), True)])
def test_marker_tensors_tell_v_prediction_and_zero_snr(
    tmp_path: Path, markers: tuple[str, ...], zero_snr: bool
) -> None:
    found = recognize_file(write(tmp_path / "a.safetensors", SD1 | dict.fromkeys(markers, (1,))), "--model")
    assert (found.prediction_type, found.zero_terminal_snr) == ("v_prediction", zero_snr)


def test_metadata_tell_the_prediction_type(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", SD1, **{"modelspec.prediction_type": "v"})
    assert recognize_file(file, "--model").prediction_type == "v_prediction"


def test_a_missing_vae_and_averaged_weights_are_noticed(tmp_path: Path) -> None:
    shapes = without(SD1, "first_stage_model.") | {"model_ema.diffusion_modelinput_blocks00weight": (1,)}
    found = recognize_file(write(tmp_path / "a.safetensors", shapes), "--model")
    assert found.has_ema
    assert "vae" not in found.parts


OTHERS = {
    "inpainting": SD1 | {f"{UNET}input_blocks.0.0.weight": (8, 9, 3, 3)},
    "InstructPix2Pix": SD1 | {f"{UNET}input_blocks.0.0.weight": (8, 8, 3, 3)},
    "Diffusion XL": without(SD1, architecture.CROSS_ATTENTION) | {"conditioner.embedders.0.x": (1,)},
    "Diffusion 3": {f"{UNET}joint_blocks.0.x": (1,)},
    "Flux": {"double_blocks.0.img_attn.norm.key_norm.scale": (1,)},
    "LoRA": {"lora_unet_down_blocks_0_attentions_0.lora_down.weight": (4, 4)},
    "ControlNet": {"control_model.input_blocks.0.0.weight": (1,)},
    "VAE alone": {"first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3)},
    "U-Net alone": {"down_blocks.0.attentions.0.norm.weight": (1,)},
    "text encoder": without(SD1, "cond_stage_model."),
    "embedding": {"emb_params": (2, 768)},
    "not a Stable": {"a.b.c": (2, 3, 4)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_named(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "a.safetensors", OTHERS[name])
    with pytest.raises(InputError) as error:
        recognize_file(file, "--model a.safetensors")
    assert name in str(error.value)
    assert error.value.where == "--model a.safetensors"


@pytest.mark.parametrize("content", [b"", b"\x05", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{}rest"])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        recognize_file(file, "--model")
    assert error.value.where == file


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", SD1)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError):
        recognize_file(file, "--model")


@pytest.mark.parametrize("name", ["a.ckpt", "a.bin", "a.gguf", "a"])
def test_other_formats(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError):
        recognize_file(tmp_path / name, "--model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("tiny") / "model")


def copied(folder: Path, target: Path, part: str = "unet", **changes: Any) -> Path:
    """The configs of a model, with some values of one part changed; None deletes one."""
    for file in folder.rglob("*.json"):
        config = json.loads(file.read_text())
        if file.relative_to(folder).parts == (part, "config.json"):
            config = {key: value for key, value in {**config, **changes}.items() if value is not None}
        (target / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        (target / file.relative_to(folder)).write_text(json.dumps(config))
    return target


def test_a_folder_passes(folder: Path) -> None:
    assert recognize_folder(folder, "--model") == "sd1"


@pytest.mark.parametrize(
    ("part", "changes", "word"),
    [
        ("unet", {"in_channels": 9}, "inpainting"),
        ("unet", {"in_channels": 8}, "InstructPix2Pix"),
        ("unet", {"in_channels": 5}, "5 channels"),
        ("unet", {"addition_embed_type": "text_time"}, "XL"),
        ("unet", {"class_embed_type": "projection"}, "conditioning"),
        ("unet", {"cross_attention_dim": 768}, "width 768"),
        ("unet", {"cross_attention_dim": None}, "cross_attention_dim"),
        ("vae", {"shift_factor": 0.1}, "VAE"),
        ("text_encoder", {"hidden_size": 16}, "16"),
    ],
)
def test_parts_that_do_not_fit(folder: Path, tmp_path: Path, part: str, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word) as error:
        recognize_folder(copied(folder, tmp_path, part, **changes), "--model x")
    assert error.value.where == "--model x"


def test_the_model_index_names_other_families(folder: Path, tmp_path: Path) -> None:
    copied(folder, tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    with pytest.raises(InputError, match="XL"):
        recognize_folder(tmp_path, "--model")


def test_other_folders_are_named(folder: Path, tmp_path: Path) -> None:
    for name in ("run", "lora", "pickles", "file", "nothing"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "config.yaml").write_text("model: pocket")
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "lora" / "pytorch_lora_weights.safetensors").write_bytes(b"")
    (tmp_path / "pickles" / "model.ckpt").write_bytes(b"")
    (tmp_path / "file" / "model.safetensors").write_bytes(b"")
    places = {"run": "run", "lora": "LoRA", "pickles": "pickled", "file": "safetensors", "nothing": "model_index"}
    for name, word in places.items():
        with pytest.raises(InputError, match=word):
            recognize_folder(tmp_path / name, "--model")
    with pytest.raises(InputError, match="UNet2DConditionModel") as error:
        recognize_folder(folder / "unet", "--model")
    assert str(folder) in str(error.value.fix)
