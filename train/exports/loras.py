"""LoRA files: diffusers' own layout and kohya's, each taken in the trained adapter's place and compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import peft
from torch import Tensor

from data.errors import InputError
from train.adapters import files
from train.base_model import BaseModel
from train.exports import kohya
from train.exports.request import Request

NOTHING_LEARNT = "the adapter changes nothing: all of its updates are zero"
LOADED = "loaded"  # the name of the adapter that a file becomes for the comparison

Write = Callable[[Any, Path, Request], None]
Load = Callable[[Any, Path], None]


def export(unet: Any, base: BaseModel, folder: Path, request: Request) -> list[Path]:
    """`lora.safetensors` and `lora-kohya.safetensors`. Raises InputError; only a file that passed gets its name."""
    trained = files.probe(unet, base)
    refuse_nothing(unet, base, trained, folder / "lora.safetensors")
    formats: dict[str, tuple[Write, Load]] = {
        "lora.safetensors": (write_diffusers, load_diffusers),
        "lora-kohya.safetensors": (kohya.write, kohya.load),
    }
    return [export_one(unet, base, folder / name, trained, request, *both) for name, both in formats.items()]


def export_one(
    unet: Any, base: BaseModel, target: Path, trained: Tensor, request: Request, write: Write, load: Load
) -> Path:
    """Write beside, load back, compare, and only then rename."""
    with files.proven(target) as file:
        write(unet, file, request)
        check(unet, base, file, trained, request, load, where=target)
    return target


def refuse_nothing(unet: Any, base: BaseModel, trained: Tensor, where: Path) -> None:
    """Raises InputError if the network with the adapter answers as the base does."""
    unet.disable_adapters()
    untrained = files.probe(unet, base)
    unet.enable_adapters()
    if bool((trained == untrained).all()):
        raise InputError(NOTHING_LEARNT, where=where, fix="Train for more steps or with a higher --learning-rate.")


def check(unet: Any, base: BaseModel, file: Path, trained: Tensor, request: Request, load: Load, where: Path) -> None:
    """Raises InputError if the file does not do what the trained adapter does."""
    with in_its_place(unet, file, load):
        found = files.probe(unet, base)
    dtype = files.coarsest(next(unet.parameters()).dtype, request.dtype)
    files.refuse_difference(found, trained, dtype, where)


@contextmanager
def in_its_place(unet: Any, file: Path, load: Load) -> Iterator[None]:
    """The network with a file's adapter instead of the trained one, which is put back."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        load(unet, file)
    unet.set_adapter(LOADED)
    try:
        yield
    finally:
        unet.set_adapter("default")
        unet.delete_adapters(LOADED)


def write_diffusers(unet: Any, file: Path, request: Request) -> None:
    """diffusers' own layout and header (peft's config with ranks and alphas)."""
    metadata = {key: plain(value) for key, value in unet.peft_config["default"].to_dict().items()}
    layers: dict[str, Any] = files.in_precision(state(unet), request.dtype, file)
    diffusers.StableDiffusionPipeline.save_lora_weights(
        file.parent, unet_lora_layers=layers, unet_lora_adapter_metadata=metadata, weight_name=file.name
    )


def load_diffusers(unet: Any, file: Path) -> None:
    """By diffusers' loader, which reads the header, where alpha is, only if told that the file is safetensors."""
    unet.load_lora_adapter(file, prefix="unet", adapter_name=LOADED, use_safetensors=True)


def state(unet: Any) -> dict[str, Tensor]:
    """The trained adapter's tensors in peft's names: `<layer>.lora_A.weight`, `<layer>.lora_magnitude_vector`."""
    return peft.get_peft_model_state_dict(unet, adapter_name="default")


def plain(value: Any) -> Any:
    """A peft config entry as JSON has it."""
    if isinstance(value, set | tuple):
        return sorted(value)
    return value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)
