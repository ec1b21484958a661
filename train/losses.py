"""The training loss: noise the latents, predict, and compare with the target; and prior preservation.

To add an objective: its options as a class in train/config.py, and its functions in OBJECTIVES.

Prior preservation: learn the style of the images and keep what other words mean. In a small set every image has the
same style, so a network learns it as the meaning of the captions' words ("creature"), or learns it everywhere and
forgets what other words mean. Here a share of the samples is trained with a prompt c of a list instead of its caption.
Such an image x_0 does not show c; the target for x_t is

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
from typing import Any, NamedTuple, get_args

import torch
from accelerate import Accelerator
from torch import Tensor

from data.dataset import Batch
from data.errors import InputError
from data.shapes import Latents, PerSample, TextStates, Timesteps
from train import adapters
from train.config import CONFIGS, AnyKind, Objective, PreservationOptions
from train.ddpm import diffusion
from train.ddpm import losses as distances
from train.ddpm.losses import Criterion
from train.ddpm.schedule import Schedule
from train.model import Denoiser

Target = Callable[[Schedule, Latents, Latents, Timesteps], Latents]  # schedule, x_0, eps, t -> (B, C, h, w)
TimestepLaw = Callable[[PerSample, Schedule], Timesteps]  # (B,) uniform numbers in [0, 1) -> (B,) int64 in [0, T)

DISTANCES = {"huber": distances.pseudo_huber, "smooth-l1": distances.pseudo_smooth_l1}  # beside mse
DEFAULT_HUBER_C, DEFAULT_HUBER_SCHEDULE = 0.1, "snr"  # the defaults of kohya-ss/sd-scripts
TEACHER_PASSES = 2  # forward passes of the base for each preserved sample


def uniform_timesteps(uniforms: PerSample, schedule: Schedule) -> Timesteps:
    """All timesteps are equally likely."""
    return (uniforms * schedule.steps).long().clamp(max=schedule.steps - 1)


class ObjectiveFunctions(NamedTuple):
    """What the network should predict for x_t made of x_0 and eps, and how timesteps are drawn for training."""

    target: Target
    timesteps: TimestepLaw = uniform_timesteps


OBJECTIVES: dict[str, ObjectiveFunctions] = {
    "epsilon": ObjectiveFunctions(lambda schedule, x0, eps, t: eps),
    "velocity": ObjectiveFunctions(diffusion.velocity),
    "sample": ObjectiveFunctions(lambda schedule, x0, eps, t: x0),
}


@dataclass(frozen=True)
class DenoisingLoss:
    """The loss of one run, with the tables of its final schedule, on the device."""

    schedule: Schedule
    functions: ObjectiveFunctions
    criterion: Criterion

    def timesteps(self, uniforms: PerSample) -> Timesteps:
        return self.functions.timesteps(uniforms, self.schedule)

    def __call__(self, denoiser: Denoiser, batch: Batch, teacher: PriorTeacher | None = None) -> Tensor:
        """(B,) the loss of each sample."""
        t = self.timesteps(batch.timestep_uniforms)
        noisy = diffusion.add_noise(self.schedule, batch.latents, batch.input_noise, t)  # x_t ~ q(x_t | x_0)
        adapters.set_sample_keys(batch.timestep_uniforms)  # the masks of LoRA dropout follow from the sample's position
        target = self.functions.target(self.schedule, batch.latents, batch.noise, t)
        if teacher is not None:
            target = teacher.shift_target(target, noisy, t, batch)
        return self.criterion(denoiser(noisy, t, batch.text_states), target, t)


def build_loss(objective: AnyKind, schedule: Schedule) -> DenoisingLoss:
    return DenoisingLoss(schedule, OBJECTIVES[objective.kind], build_criterion(objective, schedule))


def build_criterion(objective: Objective, schedule: Schedule) -> Criterion:
    """How the difference from the target is measured and weighted."""
    criterion: Criterion = distances.Plain(distances.mse)
    if objective.loss != "mse":
        name, c = objective.huber_schedule or DEFAULT_HUBER_SCHEDULE, objective.huber_c or DEFAULT_HUBER_C
        criterion = distances.Scheduled(DISTANCES[objective.loss], distances.huber_deltas(name, schedule, c))
    if objective.weighting != "none":
        gamma = objective.gamma or distances.DEFAULT_GAMMA[objective.weighting]
        weights = distances.timestep_weights(objective.weighting, schedule, gamma, objective.predicts)
        criterion = distances.Weighted(criterion, weights)
    return criterion


def check_prediction_type(objective: Objective, prediction_type: str) -> None:
    """A base model must be trained to predict what it already predicts. Raises InputError otherwise."""
    if objective.predicts == prediction_type:
        return
    kinds = [kind.model_fields["kind"].default for kind in get_args(AnyKind) if kind.predicts == prediction_type]
    what = f"the base model predicts {prediction_type!r}, this objective {objective.predicts!r}"
    fix = None if kinds else "No objective supports this model: choose another --model."
    raise InputError(what, where="--objective.kind", allowed=", ".join(kinds) or None, fix=fix)


def objective_warnings(objective: Objective) -> list[str]:
    if not objective.zero_terminal_snr or objective.weighting == "none":
        return []
    what = "gives the last timestep the weight 0, so pure noise, which zero-terminal-snr is for, is not trained on"
    return [f"--objective.weighting {objective.weighting} {what}"]


# ---- prior preservation


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
    path = (config.prompts or CONFIGS / "nouns.txt").expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problem = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise InputError(f"{path}: {problem}", where="--preserve.prompts", allowed=PROMPT_FILE) from None
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.startswith("#")))
    if not prompts:
        raise InputError(f"{path}: contains no prompt", where="--preserve.prompts", allowed=PROMPT_FILE)
    return prompts


PROMPT_FILE = "a text file with one prompt a line"
