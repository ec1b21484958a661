"""The pool as the U-Net sees it: latents of every picture and states of every caption, kept in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from data.atomic_io import atomic_file, file_sha256
from tools.pocket.pool import Pool, load_pool
from tools.pocket.text import text_states
from tools.pocket.training import state_folder

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

WEIGHTS = "diffusion_pytorch_model.safetensors"
CHUNK = 64  # pictures or captions encoded at a time


@dataclass(frozen=True)
class Latents:
    """Scaled latents' means and deviations (count, 4, 16, 16) fp16; states (captions + 1, tokens, width) fp16, of which
    the first is the empty caption's; `caption` (count) the row of each picture's caption in `states`."""

    means: torch.Tensor
    deviations: torch.Tensor
    states: torch.Tensor
    caption: torch.Tensor


@cache
def load_autoencoder() -> AutoencoderKL:
    """The finished autoencoder of this build."""
    import torch
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(state_folder() / "vae" / "model").eval()
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def in_chunks(count: int, encode: Callable[[Sequence[int]], torch.Tensor], title: str) -> torch.Tensor:
    """`encode` over range(count), CHUNK at a time, kept as fp16."""
    import torch

    steps = tqdm(range(0, count, CHUNK), desc=title, mininterval=5)
    return torch.cat([encode(range(start, min(count, start + CHUNK))).half() for start in steps])


def encode_pool(pool: Pool) -> dict[str, torch.Tensor]:
    """Encode all pictures and all distinct captions."""
    import torch

    autoencoder = load_autoencoder()
    lines = ["", *sorted(set(pool.captions))]
    row = {line: index for index, line in enumerate(lines)}

    def moments(indices: Sequence[int]) -> torch.Tensor:
        with torch.no_grad():
            posterior = autoencoder.encode(pool.tensor(list(indices))).latent_dist  # pyright: ignore
        return torch.cat([posterior.mean, posterior.std], 1) * autoencoder.config["scaling_factor"]

    means, deviations = in_chunks(len(pool.captions), moments, "encoding pictures").chunk(2, 1)
    states = in_chunks(len(lines), lambda rows: text_states([lines[index] for index in rows]), "encoding captions")
    caption = torch.tensor([row[line] for line in pool.captions])
    return {"means": means.contiguous(), "deviations": deviations.contiguous(), "states": states, "caption": caption}


def made_of() -> str:
    """A hash of the pool, the autoencoder and the text encoder: other ones give other latents."""
    kept = ("pool/words.json", "pool/pixels.npy", f"vae/model/{WEIGHTS}", "text/model/model.safetensors")
    hashes = "".join(file_sha256(state_folder() / name) for name in kept)
    return hashlib.sha256(hashes.encode()).hexdigest()


def load_latents() -> Latents:
    """The encoded pool, computed at the first call and whenever something it is made of has changed."""
    from safetensors.torch import load_file, save_file

    pool, path = load_pool(), state_folder() / "latents" / "pool.safetensors"
    if origin(path) != made_of():
        with atomic_file(path) as beside:
            save_file(encode_pool(pool), beside, metadata={"made of": made_of()})
    return Latents(**load_file(path))


def origin(path: Path) -> str | None:
    """What the latents of this file were made of; None if there is no file, or it does not say."""
    from safetensors import safe_open

    if not path.exists():
        return None
    with safe_open(path, "pt") as opened:
        return (opened.metadata() or {}).get("made of")
