"""The full Stable Diffusion v1.4 architecture with random weights, in diffusers layout: 1.07 billion weights, 2 GB."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from data.atomic_io import atomic_folder
from tests.tiny import tiny_tokenizer
from train.model import SD_V1_CONFIGS

VOCABULARY = 49408
PARAMETERS = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}  # as published for SD v1
FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def full_size_model() -> Path:
    """The model's folder; built on the first call (about a minute) and kept in the system's temporary folder."""
    folder = Path(tempfile.gettempdir()) / "atelier-full-size-1"
    if not folder.is_dir():
        with atomic_folder(folder) as beside:
            build(beside)
    return folder


def build(folder: Path) -> None:
    """Write every part with half-precision weights whose sizes keep activations near one through the whole network."""
    for part in (*FILES, "scheduler"):
        shutil.copytree(SD_V1_CONFIGS / part, folder / part)
    shutil.copy(SD_V1_CONFIGS / "model_index.json", folder)
    smallest = len(tiny_tokenizer(folder / "tokenizer"))
    assert len(tiny_tokenizer(folder / "tokenizer", fillers=VOCABULARY - smallest)) == VOCABULARY
    for part, file in FILES.items():
        state = random_state(skeleton(part))
        # Published checkpoints name the text tower `text_model`, a level that transformers 5 dropped.
        prefix = "text_model." if part == "text_encoder" else ""
        save_file({f"{prefix}{name}": tensor for name, tensor in state.items()}, folder / part / file, {"format": "pt"})


def skeleton(part: str) -> torch.nn.Module:
    """A part without memory for its weights, only their names and shapes."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        if part == "text_encoder":
            return CLIPTextModel(CLIPTextConfig.from_pretrained(SD_V1_CONFIGS / part))
        kind: Any = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part]
        return kind.from_config(kind.load_config(SD_V1_CONFIGS / part))


def random_state(module: torch.nn.Module) -> dict[str, Tensor]:
    """Half-precision weights: norms 1, biases 0, the rest normal with variance 1 / inputs."""
    draw = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for name, weight in module.named_parameters():
        if weight.ndim < 2:
            state[name] = torch.full(weight.shape, float(name.endswith("weight")), dtype=torch.float16)
        else:
            values = torch.randn(weight.shape, generator=draw)
            state[name] = (values * weight[0].numel() ** -0.5).half()
    return state
