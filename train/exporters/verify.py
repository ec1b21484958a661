"""An export: what is requested, the record of what was written, and the proof that a file does what was trained."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from data import rng
from data.atomic_io import apply_umask, disk_error, fsync_path, write_atomic
from data.errors import InputError
from train.config import ExportOptions
from train.model import BaseModel, Denoiser

EXPORT_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ExportRequest:
    """options: which files. facts: kohya's ss_* and Stability's modelspec.* keys that are known of the run."""

    options: ExportOptions = field(default_factory=ExportOptions)
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        return EXPORT_DTYPES[self.options.precision]


RECORD_FILE = "export.json"
SINGLE_FILE = "model.safetensors"


def write_record(folder: Path, step: int, options: ExportOptions, files: Sequence[Path]) -> None:
    facts = {"step": step, "precision": options.precision, "files": [file.name for file in files]}
    write_atomic(folder / RECORD_FILE, json.dumps(facts, indent=2) + "\n")


def read_record(folder: Path) -> dict:
    """The record, or nothing if there is none or it cannot be read."""
    try:
        return json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


# Largest difference between two answers, by the coarsest precision on the way, in shares of the larger of 1 and the
# largest number of the answer: rounding once costs 2^-11 in fp16 and 2^-8 in bf16, and errors add up over the layers.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """A full disk as one line, whether the system or the library says so."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise disk_error(error if isinstance(error, OSError) else OSError(str(error)), target) from error


@contextmanager
def verified_file(target: Path) -> Iterator[Path]:
    """A file beside `target`, of its name (by which libraries know the format); it takes its place if all goes well."""
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as beside:
            file = Path(beside) / target.name
            yield file
            apply_umask(file)
            fsync_path(file)
            os.replace(file, target)
        fsync_path(target.parent)


@torch.no_grad()
def probe_output(unet: Any, base: BaseModel) -> Tensor:
    """The network's answer to a small fixed question, as it would be while drawing."""
    weight = next(unet.parameters())
    side = 2 ** (len(unet.config["block_out_channels"]) - 1)
    width = unet.config["cross_attention_dim"]
    noisy = rng.normal((2, base.latent_channels, side, side), "probe", "latents").to(weight.device)
    states = rng.normal((2, 8, width), "probe", "states").to(weight.device)
    t = torch.tensor([100, 700], device=weight.device)
    was_training = unet.training
    unet.eval()
    answer = Denoiser(unet)(noisy, t, states)
    unet.train(was_training)
    return answer


def coarsest(*dtypes: torch.dtype) -> torch.dtype:
    """The one with the largest tolerance."""
    return max(dtypes, key=lambda dtype: TOLERANCE[dtype])


def check_same_output(found: Tensor, wanted: Tensor, dtype: torch.dtype, where: Path) -> None:
    """Raise InputError unless an export answers as the trained network does; dtype: the coarsest on the way."""
    off = float((found.cpu() - wanted.cpu()).abs().max())
    allowed = TOLERANCE[dtype] * max(1.0, float(wanted.abs().max()))
    if not off <= allowed:  # not a number is no answer either
        what = f"the exported file does not reproduce the trained network (off by {off:.2g}, {allowed:.2g} allowed)"
        raise InputError(what, where=where)


def cast_tensors(tensors: dict[str, Tensor], dtype: torch.dtype, where: Path) -> dict[str, Tensor]:
    """Floating-point tensors in another precision, on the CPU, contiguous; nothing is copied that fits as it is.

    Raises InputError if a number is too large for it.
    """
    kinds = {name: dtype if tensor.is_floating_point() else tensor.dtype for name, tensor in tensors.items()}
    cast = {name: tensor.detach().to("cpu", kinds[name]).contiguous() for name, tensor in tensors.items()}
    lost = [name for name, tensor in cast.items() if tensor.dtype == torch.float16 and not tensor.isfinite().all()]
    if lost:
        fix = "Take --export.precision bf16 or fp32."
        raise InputError(f"{len(lost)} tensors have numbers beyond fp16, such as {lost[0]}", where=where, fix=fix)
    return cast
