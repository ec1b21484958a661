"""What every export shares: a full disk as one line, a small question to a network, how near two answers must be."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from data import seeds
from data.errors import InputError
from data.files import disk_error, flush, follow_umask
from train.base_model import BaseModel
from train.denoiser import Denoiser

# Largest difference between two answers, by the coarsest precision on the way, in shares of the larger of 1 and the
# largest number of the answer: rounding once costs 2^-11 in fp16 and 2^-8 in bf16, and errors add up over the layers.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}


@contextmanager
def written(target: Path) -> Iterator[None]:
    """A full disk as one line, whether the system or the library says so."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise disk_error(error if isinstance(error, OSError) else OSError(str(error)), target) from error


@contextmanager
def proven(target: Path) -> Iterator[Path]:
    """A file beside `target`, of its name (by which libraries know the format); it takes its place if all goes well."""
    with written(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as beside:
            file = Path(beside) / target.name
            yield file
            follow_umask(file)
            flush(file)
            os.replace(file, target)
        flush(target.parent)


@torch.no_grad()
def probe(unet: Any, base: BaseModel) -> Tensor:
    """The network's answer to a small fixed question, as it would be while drawing."""
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


def coarsest(*dtypes: torch.dtype) -> torch.dtype:
    """The one with the largest tolerance."""
    return max(dtypes, key=lambda dtype: TOLERANCE[dtype])


def refuse_difference(found: Tensor, wanted: Tensor, dtype: torch.dtype, where: Path) -> None:
    """Raise InputError unless an export answers as the trained network does; dtype: the coarsest on the way."""
    off = float((found.cpu() - wanted.cpu()).abs().max())
    allowed = TOLERANCE[dtype] * max(1.0, float(wanted.abs().max()))
    if not off <= allowed:  # not a number is no answer either
        what = f"the exported file does not reproduce the trained network (off by {off:.2g}, {allowed:.2g} allowed)"
        raise InputError(what, where=where)


def in_precision(tensors: dict[str, Tensor], dtype: torch.dtype, where: Path) -> dict[str, Tensor]:
    """Floating-point tensors in another precision, on the CPU and contiguous; nothing is copied that fits as it is.

    Raises InputError if a number is too large for it.
    """
    cast = {name: plain(tensor, dtype) for name, tensor in tensors.items()}
    lost = [name for name, tensor in cast.items() if tensor.dtype == torch.float16 and not tensor.isfinite().all()]
    if lost:
        fix = "Take --export.precision bf16 or fp32."
        raise InputError(f"{len(lost)} tensors have numbers beyond fp16, such as {lost[0]}", where=where, fix=fix)
    return cast


def plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """On the CPU, contiguous, without history; other than floating-point tensors keep their type."""
    tensor = tensor.detach()
    return tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
