"""What the network is asked to predict, and how errors are weighted.

To add one: a frozen model below that states what it predicts, and its name in the union at the foot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Protocol

from pydantic import Field

from data.errors import InputError
from data.options import Options

if TYPE_CHECKING:  # the flags are read before torch is loaded
    from data.shapes import Latents, PerSample, Timesteps
    from train.ddpm.schedule import Schedule


class Objective(Protocol):
    """Chosen once, before the loop begins."""

    predicts: ClassVar[str]  # diffusers' prediction_type

    def timesteps(self, uniforms: PerSample, schedule: Schedule) -> Timesteps: ...

    def target(self, schedule: Schedule, x0: Latents, eps: Latents, t: Timesteps) -> Latents: ...

    def losses(self, predicted: Latents, target: Latents) -> PerSample: ...


class Epsilon(Options):
    """Predict the noise; mean squared error. L_simple. Source: Ho et al. 2020, arXiv 2006.11239, eq. 14."""

    kind: Literal["epsilon"] = "epsilon"
    """what the network predicts"""
    predicts: ClassVar[str] = "epsilon"

    def timesteps(self, uniforms: PerSample, schedule: Schedule) -> Timesteps:
        return evenly_spread(uniforms, schedule)

    def target(self, schedule: Schedule, x0: Latents, eps: Latents, t: Timesteps) -> Latents:
        return eps

    def losses(self, predicted: Latents, target: Latents) -> PerSample:
        from train.ddpm import losses

        return losses.mse(predicted, target)


class Velocity(Options):
    """Predict v = sqrt(abar) eps - sqrt(1 - abar) x_0; mean squared error.

    Source: Salimans & Ho 2022, arXiv 2202.00512, appendix D.
    """

    kind: Literal["velocity"] = "velocity"
    """what the network predicts"""
    predicts: ClassVar[str] = "v_prediction"

    def timesteps(self, uniforms: PerSample, schedule: Schedule) -> Timesteps:
        return evenly_spread(uniforms, schedule)

    def target(self, schedule: Schedule, x0: Latents, eps: Latents, t: Timesteps) -> Latents:
        from train.ddpm import process

        return process.velocity(schedule, x0, eps, t)

    def losses(self, predicted: Latents, target: Latents) -> PerSample:
        from train.ddpm import losses

        return losses.mse(predicted, target)


def evenly_spread(uniforms: PerSample, schedule: Schedule) -> Timesteps:
    """(B,) int64 in [0, T) for numbers in [0, 1)."""
    return (uniforms * schedule.steps).long().clamp(max=schedule.steps - 1)


def check(objective: Objective, prediction_type: str) -> None:
    """A base model goes on predicting what it learnt to predict. Raises InputError otherwise."""
    if objective.predicts != prediction_type:
        right = {Epsilon.predicts: "epsilon", Velocity.predicts: "velocity"}.get(prediction_type)
        what = f"the base model predicts {prediction_type!r}, this objective {objective.predicts!r}"
        fix = None if right else "No objective suits this model: choose another --model."
        raise InputError(what, where="--objective.kind", allowed=right, fix=fix)


AnyObjective = Annotated[Epsilon | Velocity, Field(discriminator="kind")]
