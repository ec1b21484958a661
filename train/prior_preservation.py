"""Prior preservation: learn the style of the images and keep what other words mean.

In a small set every image has the same style, so a network learns it as the meaning of the captions' words
("creature"), or learns it everywhere and forgets what other words mean. Here a share of the samples is trained with a
prompt c of a list instead of its caption. Such an image x_0 does not show c; the target for x_t is

    y + w (d - m(d)),   d = b(x_t, c) - b(x_t, "")

y is the objective's target, which pulls towards the look, b the base network before training, w a strength, and m(d)
the median of d over the image, one number a channel. So what c adds to the empty prompt stays what it was, in
proportion, but for the tone of what fills most of the image, its paper: that belongs to the look. The base knows its
own paper only; d says at every step that the new one is wrong, and guidance multiplies that: it draws with
e("") + s (e(c) - e("")) (Ho & Salimans 2022, arXiv 2207.12598, eq. 6), whose first part becomes the look and whose
second remains the base's, times s w. A prior set of the base's own images (Ruiz et al. 2022, arXiv 2208.12242, eq. 2)
keeps words as well, but with them the base's look.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from data.dataset import Batch
from data.errors import InputError
from data.shapes import Latents, TextStates, Timesteps
from train.config import PreservationOptions
from train.model import Denoiser

DEFAULT_PROMPTS = Path(__file__).parent / "configs" / "nouns.txt"
TEACHER_PASSES = 2  # forward passes of the base for each preserved sample


@dataclass(frozen=True)
class PriorTeacher:
    """A frozen copy of the base network."""

    base: Denoiser
    empty: TextStates  # (L, D): of the empty prompt, on the device
    strength: float = 1.0
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext  # as the trained network's

    @property
    def nbytes(self) -> int:
        """Memory that it takes on the device."""
        return sum(weight.nbytes for weight in self.base.unet.parameters())

    @torch.no_grad()
    def shift_target(self, target: Latents, noisy: Latents, t: Timesteps, batch: Batch) -> Latents:
        """The targets, (B, C, h, w), with those of preserved prompts shifted by what the prompt adds to the base's
        prediction.
        """
        rows = [row for row, preserved in enumerate(batch.preserved) if preserved]
        if not rows:
            return target
        index = torch.tensor(rows, device=target.device)
        prompts = batch.text_states[index]
        empty = self.empty.to(prompts).expand_as(prompts)
        with self.autocast():
            both = self.base(noisy[index].repeat(2, 1, 1, 1), t[index].repeat(2), torch.cat([prompts, empty]))
        conditional, unconditional = both.chunk(2)
        added = remove_median(conditional - unconditional)
        return target.index_add(0, index, (self.strength * added).to(target.dtype))


def remove_median(added: Latents) -> Latents:
    """(B, C, h, w) without the median of each channel, the lower of two, over the image."""
    return added - added.flatten(2).median(-1).values[..., None, None]


def freeze_teacher(unet: Any, empty: TextStates, accelerator: Accelerator, strength: float = 1.0) -> PriorTeacher:
    """Copy the network before it is adapted. empty: text states of the empty prompt. strength: w above."""
    device = accelerator.device
    base = copy.deepcopy(unet).requires_grad_(False).eval().to(device, memory_format=torch.channels_last)
    return PriorTeacher(Denoiser(base), empty.to(device), strength, lambda: accelerator.autocast())


def read_preserved_prompts(config: PreservationOptions) -> list[str]:
    """The prompts to preserve; none without a share. Raises InputError for a file without prompts."""
    if not config.share:
        return []
    path = (config.prompts or DEFAULT_PROMPTS).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        problem = "contains no prompt"
    except OSError as error:
        lines, problem = [], str(error.strerror)
    except UnicodeDecodeError:
        lines, problem = [], "is not UTF-8"
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.startswith("#")))
    if not prompts:
        allowed = "a text file with one prompt a line"
        raise InputError(f"{path}: {problem}", where="--preserve.prompts", allowed=allowed)
    return prompts
