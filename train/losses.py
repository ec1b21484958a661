"""The training loss: noise the latents, predict, and compare with the target.

To add an objective: its options as a class in train/config.py, and its functions in OBJECTIVES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from data.dataset import Batch
from data.errors import InputError
from data.shapes import Latents, PerSample, Timesteps
from train import lora
from train.config import AnyKind, Objective
from train.ddpm import diffusion
from train.ddpm import losses as distances
from train.ddpm.losses import Criterion
from train.ddpm.schedule import Schedule
from train.model import Denoiser
from train.prior_preservation import PriorTeacher

Target = Callable[[Schedule, Latents, Latents, Timesteps], Latents]  # schedule, x_0, eps, t -> (B, C, h, w)
TimestepLaw = Callable[[PerSample, Schedule], Timesteps]  # (B,) uniform numbers in [0, 1) -> (B,) int64 in [0, T)

DEFAULT_GAMMA = {"min-snr": 5.0, "soft-min-snr": 4.0}  # as in their papers, see train/ddpm/losses.py
DEFAULT_HUBER_C, DEFAULT_HUBER_SCHEDULE = 0.1, "snr"  # the defaults of kohya-ss/sd-scripts


def uniform_timesteps(uniforms: PerSample, schedule: Schedule) -> Timesteps:
    """All timesteps are equally likely."""
    return (uniforms * schedule.steps).long().clamp(max=schedule.steps - 1)


@dataclass(frozen=True)
class ObjectiveFunctions:
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
        lora.set_sample_keys(batch.timestep_uniforms)  # the masks of LoRA dropout follow from the sample's position
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
        distance = {"huber": distances.pseudo_huber, "smooth-l1": distances.pseudo_smooth_l1}[objective.loss]
        name, c = objective.huber_schedule or DEFAULT_HUBER_SCHEDULE, objective.huber_c or DEFAULT_HUBER_C
        criterion = distances.Scheduled(distance, distances.huber_deltas(name, schedule, c))
    if objective.weighting != "none":
        gamma = objective.gamma or DEFAULT_GAMMA[objective.weighting]
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
