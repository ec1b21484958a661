"""Exported weights: written, loaded back by the loader that others will use, and compared before they count."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data import seeds
from data.errors import InputError
from data.files import disk_error, flush
from train import rescaled
from train.base_model import BaseModel
from train.denoiser import Denoiser
from train.run_folder import to_json

FROZEN = ("vae", "text_encoder", "tokenizer", "scheduler")
NOTHING_LEARNT = "the adapter changes nothing: all of its updates are zero"


def export_lora(unet: UNet2DConditionModel, base: BaseModel, target: Path) -> None:
    """Write, load back and compare; only a file that passed gets its name. Raises InputError."""
    with written(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as beside:
            file = Path(beside) / target.name
            write_lora(unet, file)
            check_lora(file, unet, base, where=target)
            flush(file)
            os.replace(file, target)
        flush(target.parent)


@contextmanager
def written(target: Path) -> Iterator[None]:
    """A full disk as one line, whether the system or the library says so."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise disk_error(error if isinstance(error, OSError) else OSError(str(error)), target) from error


def write_lora(unet: UNet2DConditionModel, file: Path) -> None:
    """diffusers' own layout and header (peft's config with rank and alpha), float32."""
    metadata = {key: plain(value) for key, value in unet.peft_config["default"].to_dict().items()}
    layers: dict[str, Any] = {
        name: tensor.float().cpu().contiguous() for name, tensor in get_peft_model_state_dict(unet).items()
    }
    StableDiffusionPipeline.save_lora_weights(
        file.parent, unet_lora_layers=layers, unet_lora_adapter_metadata=metadata, weight_name=file.name
    )


def plain(value: Any) -> Any:
    """A peft config entry as JSON has it."""
    if isinstance(value, set | tuple):
        return sorted(value)
    return value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)


def check_lora(file: Path, unet: UNet2DConditionModel, base: BaseModel, where: Path) -> None:
    """Take the trained adapter off, load the file in its place, and compare noise predictions; both must differ from
    the base's. Raises InputError if the file does not do what the trained network does.
    """
    trained = probe(unet, base)
    unet.delete_adapters("default")
    untrained = probe(unet, base)
    # diffusers reads the header, where alpha is, only if it was told that the file is safetensors
    unet.load_lora_adapter(file, prefix="unet", adapter_name="default", use_safetensors=True)
    loaded = probe(unet, base)
    tolerance = 1e-5 if next(iter(unet.parameters())).dtype == torch.float32 else 1e-2
    scale = float(untrained.abs().max())
    if bool((trained == untrained).all()):
        raise InputError(NOTHING_LEARNT, where=where, fix="Train for more steps or with a higher --learning-rate.")
    if float((loaded - trained).abs().max()) > tolerance * max(1.0, scale):
        raise InputError("the exported file does not reproduce the trained network", where=where)


@torch.no_grad()
def probe(unet: UNet2DConditionModel, base: BaseModel) -> Tensor:
    """The network's answer to a small fixed question."""
    weight = next(unet.parameters())
    side = 2 ** (len(unet.config["block_out_channels"]) - 1)
    width = unet.config["cross_attention_dim"]
    noisy = seeds.normal((2, base.latent_channels, side, side), "probe", "latents").to(weight.device)
    states = seeds.normal((2, 8, width), "probe", "states").to(weight.device)
    t = torch.tensor([100, 700], device=weight.device)
    was_training = unet.training
    unet.eval()
    answer = Denoiser(unet)(noisy, t, states)
    unet.train(was_training)
    return answer


def copy_frozen_parts(base: BaseModel, folder: Path) -> None:
    """Everything but the U-Net, the files themselves where there are files, so that they stay equal bit for bit."""
    if base.weights is None:
        for part in FROZEN:
            shutil.copytree(base.layout / part, folder / part)
    else:
        base.vae.save_pretrained(folder / "vae")
        base.text_encoder.save_pretrained(folder / "text_encoder")
        shutil.copytree(base.tokenizer_source, folder / "tokenizer")
        shutil.copytree(base.layout / "scheduler", folder / "scheduler")
    shutil.copy(base.layout / "model_index.json", folder / "model_index.json")
    if base.zero_terminal_snr:
        write_rescaled(base, folder)


def write_rescaled(base: BaseModel, folder: Path) -> None:
    """Name the scheduler, and the settings, that a model trained at zero terminal SNR must be drawn with."""
    config = base.scheduler_config
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    (folder / "model_index.json").write_text(to_json(rescaled.model_index(index, config)), encoding="utf-8")
    (folder / "scheduler" / "scheduler_config.json").write_text(to_json(config), encoding="utf-8")


def check_unet(folder: Path, unet: UNet2DConditionModel) -> None:
    """Read the exported U-Net back: every tensor is there and equal bit for bit. Raises InputError."""
    state: Mapping[str, Tensor] = unet.state_dict()
    (file,) = (folder / "unet").glob("*.safetensors")
    with safe_open(file, framework="pt") as saved:
        names = set(saved.keys())
        wrong = [n for n in state if n not in names or not torch.equal(saved.get_tensor(n), state[n].cpu())]
    if wrong or names - state.keys():
        raise InputError(f"the exported U-Net differs from the trained one in {len(wrong)} tensors", where=file)
