"""What the network is asked to predict, and how errors are measured and weighted.

To add one: a frozen model below that states what it predicts, and its name in the union at the foot.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from data.cli import Options
from data.errors import InputError

if TYPE_CHECKING:  # the flags are read before torch is loaded
    from data.shapes import Latents, PerSample, Timesteps
    from train.ddpm.losses import Criterion
    from train.ddpm.schedule import Schedule

DEFAULT_GAMMA = {"min-snr": 5.0, "soft-min-snr": 4.0}  # as in their papers, see train/ddpm/losses.py
DEFAULT_HUBER_C, DEFAULT_HUBER_SCHEDULE = 0.1, "snr"  # the defaults of kohya-ss/sd-scripts


class Objective(Options):
    """Parent of every objective: how errors become a loss, whatever is predicted."""

    predicts: ClassVar[str]  # diffusers' prediction_type
    why_not_zero_snr: ClassVar[str | None] = None  # the reason to refuse zero_terminal_snr, if there is one

    loss: Literal["mse", "huber", "smooth-l1"] = "mse"
    """distance: mean square; pseudo-Huber, which large errors (bad pictures) pull at less; or that divided by its c"""
    huber_c: float | None = Field(default=None, gt=0, le=1)
    """for huber and smooth-l1, the error from which they are no longer squares, at the noisy end; default 0.1"""
    huber_schedule: Literal["constant", "exponential", "snr"] | None = None
    """how the width falls from 1 at the clean end to huber-c at the noisy one; default snr; constant: always huber-c"""
    weighting: Literal["none", "min-snr", "soft-min-snr"] = "none"
    """what each timestep counts: all the same (none), or no more than gamma allows where there is little noise"""
    gamma: float | None = Field(default=None, gt=0)
    """signal-to-noise ratio above which min-snr and soft-min-snr hold timesteps back; default 5 and 4"""
    noise_offset: float = Field(default=0.0, ge=0, le=1)
    """size of a constant added to each channel's noise, for darker and brighter pictures; usually 0.05 to 0.1"""
    input_perturbation: float = Field(default=0.0, ge=0, le=1)
    """size of extra noise in the network's input only, against errors that build up while drawing; usually 0.1"""
    zero_terminal_snr: bool = False
    """rescale the noise schedule so that its last step is noise and nothing else; for v prediction only"""

    @model_validator(mode="after")
    def settings_fit_together(self) -> Self:
        huber = {"--objective.huber-c": self.huber_c, "--objective.huber-schedule": self.huber_schedule}
        idle = [flag for flag, value in huber.items() if value is not None and self.loss == "mse"]
        if idle:
            raise InputError("means nothing with --objective.loss mse", where=idle[0], fix=NEEDS_HUBER)
        if self.weighting == "none" and self.gamma is not None:
            raise InputError(
                "means nothing with --objective.weighting none", where="--objective.gamma", fix=NEEDS_WEIGHTING
            )
        if self.zero_terminal_snr and self.why_not_zero_snr:
            raise InputError(self.why_not_zero_snr, where=ZERO_SNR, allowed="--objective.kind velocity")
        return self

    def timesteps(self, uniforms: PerSample, schedule: Schedule) -> Timesteps:
        return uniform_timesteps(uniforms, schedule)

    @abstractmethod
    def target(self, schedule: Schedule, x0: Latents, eps: Latents, t: Timesteps) -> Latents:
        """(B, C, h, w) what the network should answer for x_t made of x_0 and eps."""

    def criterion(self, schedule: Schedule) -> Criterion:
        """The training loss, put together once for the run's final schedule, on its device."""
        from train.ddpm import losses

        criterion: Criterion = losses.Plain(losses.mse)
        if self.loss != "mse":
            distance = {"huber": losses.pseudo_huber, "smooth-l1": losses.pseudo_smooth_l1}[self.loss]
            widths = losses.huber_deltas(
                self.huber_schedule or DEFAULT_HUBER_SCHEDULE, schedule, self.huber_c or DEFAULT_HUBER_C
            )
            criterion = losses.Scheduled(distance, widths)
        if self.weighting != "none":
            gamma = self.gamma or DEFAULT_GAMMA[self.weighting]
            weights = losses.timestep_weights(self.weighting, schedule, gamma, self.predicts)
            criterion = losses.Weighted(criterion, weights)
        return criterion

    def warnings(self) -> list[str]:
        """What the one who chose these settings may not have thought of."""
        blind = self.zero_terminal_snr and self.weighting != "none"
        return [IGNORES_NOISE.format(weighting=self.weighting)] if blind else []


NEEDS_HUBER = "Add --objective.loss huber, or leave it out."
NEEDS_WEIGHTING = "Add --objective.weighting min-snr, or leave it out."
ZERO_SNR = "--objective.zero-terminal-snr"
IGNORES_NOISE = (
    "{weighting} gives the last timestep the weight 0, so what zero-terminal-snr is for, pure noise, is not learnt"
)


class Epsilon(Objective):
    """Predict the noise. With mean squares, L_simple. Source: Ho et al. 2020, arXiv 2006.11239, eq. 14."""

    kind: Literal["epsilon"] = "epsilon"
    """what the network predicts: the noise (epsilon), the velocity, or the picture (sample); as its base learnt to"""
    predicts: ClassVar[str] = "epsilon"
    why_not_zero_snr: ClassVar[str | None] = (
        "at zero SNR the network's input is the noise itself: predicting that noise teaches nothing about pictures, "
        "and no picture follows from it when drawing (Lin et al. 2023, arXiv 2305.08891)"
    )

    def target(self, schedule: Schedule, x0: Latents, eps: Latents, t: Timesteps) -> Latents:
        return eps


class Velocity(Objective):
    """Predict v = sqrt(abar) eps - sqrt(1 - abar) x_0. Source: Salimans & Ho 2022, arXiv 2202.00512, appendix D."""

    kind: Literal["velocity"] = "velocity"
    """what the network predicts: the noise (epsilon), the velocity, or the picture (sample); as its base learnt to"""
    predicts: ClassVar[str] = "v_prediction"

    def target(self, schedule: Schedule, x0: Latents, eps: Latents, t: Timesteps) -> Latents:
        from train.ddpm import diffusion

        return diffusion.velocity(schedule, x0, eps, t)


class Sample(Objective):
    """Predict x_0, the picture itself. Source: Salimans & Ho 2022, arXiv 2202.00512, section 4."""

    kind: Literal["sample"] = "sample"
    """what the network predicts: the noise (epsilon), the velocity, or the picture (sample); as its base learnt to"""
    predicts: ClassVar[str] = "sample"
    why_not_zero_snr: ClassVar[str | None] = (
        "rescaling a base to zero SNR is known to work for v prediction only (Lin et al. 2023, arXiv 2305.08891)"
    )

    def target(self, schedule: Schedule, x0: Latents, eps: Latents, t: Timesteps) -> Latents:
        return x0


def uniform_timesteps(uniforms: PerSample, schedule: Schedule) -> Timesteps:
    """(B,) int64 in [0, T) for numbers in [0, 1)."""
    return (uniforms * schedule.steps).long().clamp(max=schedule.steps - 1)


def check_prediction_type(objective: Objective, prediction_type: str) -> None:
    """A base model goes on predicting what it learnt to predict. Raises InputError otherwise."""
    if objective.predicts != prediction_type:
        kinds = {kind.predicts: kind.model_fields["kind"].default for kind in get_args(AnyKind)}
        right = kinds.get(prediction_type)
        what = f"the base model predicts {prediction_type!r}, this objective {objective.predicts!r}"
        fix = None if right else "No objective suits this model: choose another --model."
        raise InputError(what, where="--objective.kind", allowed=right, fix=fix)


AnyKind = Epsilon | Velocity | Sample
AnyObjective = Annotated[AnyKind, Field(discriminator="kind")]
