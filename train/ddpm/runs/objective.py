"""Which timesteps a batch is asked about: all as often, or more often where the bound is large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol
import torch
from torch import Tensor
from data.shapes import PerSample
from data.shapes import Timesteps
from train.ddpm import losses
from train.ddpm.losses import LossHistory
from collections.abc import Callable
from dataclasses import dataclass
from torch import Tensor
from data.shapes import Images
from data.shapes import PerSample
from data.shapes import Timesteps
from train.ddpm import diffusion
from train.ddpm import elbo
from train.ddpm import prediction
from train.ddpm import losses
from train.ddpm.losses import Criterion
from train.ddpm.prediction import Parametrization
from train.ddpm.runs.config import ObjectiveOptions
from train.ddpm.schedule import Schedule
from train.ddpm.prediction import Variance

class TimestepSampler(Protocol):
    def draw(self, uniforms: PerSample) -> tuple[Timesteps, PerSample]:
        """(B,) numbers in [0, 1) -> (B,) timesteps and the (B,) float32 weights of their losses, both on the device."""
        ...

    def seen(self, t: Timesteps, losses: PerSample) -> None:
        """The (B,) unweighted losses that this process found at its (B,) timesteps."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as lists of numbers."""
        ...

    def load_state(self, saved: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class UniformTimesteps:
    """Every one of `steps` timesteps as often as any other."""

    steps: int

    def draw(self, uniforms: PerSample) -> tuple[Timesteps, PerSample]:
        return (uniforms * self.steps).long().clamp(max=self.steps - 1), torch.ones_like(uniforms)

    def seen(self, t: Timesteps, losses: PerSample) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, saved: dict[str, Any]) -> None:
        pass


@dataclass
class ImportanceTimesteps:
    """In proportion to the size of the last losses. Source: Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 18.

    The history lies on the CPU, and every step waits for its losses: the next step's timesteps depend on them. It is
    the same in every process, because each adds what all of them found, in the order of their ranks: `gather` joins
    the (B,) tensors of all processes, as accelerate's does, and returns its argument where there is only one. With
    histories of their own, processes would weigh one timestep differently, and the mean of their gradients would be of
    no one distribution.
    """

    steps: int
    gather: Callable[[Tensor], Tensor]
    history: LossHistory = field(init=False)

    def __post_init__(self) -> None:
        self.history = losses.empty_history(self.steps)

    def draw(self, uniforms: PerSample) -> tuple[Timesteps, PerSample]:
        t, weights = self.history.draw(uniforms.cpu())
        return t.to(uniforms.device), weights.to(uniforms.device)

    def seen(self, t: Timesteps, losses: PerSample) -> None:
        self.history = self.history.seen(self.gather(t).cpu(), self.gather(losses.float()).cpu())

    def state(self) -> dict[str, Any]:
        return {"losses": self.history.losses.tolist(), "counts": self.history.counts.tolist()}

    def load_state(self, saved: dict[str, Any]) -> None:
        losses, counts = (torch.tensor(saved[name]) for name in ("losses", "counts"))
        self.history = LossHistory(losses.to(self.history.losses), counts.to(self.history.counts))


Corrupt = Callable[[Schedule, Images, Images, Timesteps], Images]  # schedule, x_0, eps, t -> x_t
GAMMA = {"min-snr": 5.0, "soft-min-snr": 4.0}  # as in their papers, see train/ddpm/losses.py
FORMS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}  # our words and diffusers'


@dataclass(frozen=True)
class MixCorruption:
    """The course's mix, with the amount that belongs to a timestep. noise: made of standard normal noise."""

    noise: Callable[[Tensor], Tensor]

    def __call__(self, schedule: Schedule, x0: Images, eps: Images, t: Timesteps) -> Images:
        return diffusion.linear_mix(x0, self.noise(eps), diffusion.mix_amount(t, schedule.steps))


def build_corruption(options: ObjectiveOptions) -> Corrupt:
    """How pictures are corrupted in training."""
    return MixCorruption(diffusion.get_mix_noise(options.noise)) if options.corruption == "mix" else diffusion.add_noise


@dataclass(frozen=True)
class NoisedBatch:
    """What the network was asked and should have known: x_t was made of x0 and eps."""

    x0: Images
    eps: Images
    xt: Images
    t: Timesteps


@dataclass(frozen=True)
class SimpleLoss:
    """The distance from the right answer. Source: arXiv 2006.11239, eq. 14, for the noise and squares."""

    meaning: Parametrization
    schedule: Schedule
    criterion: Criterion

    def __call__(self, asked: NoisedBatch, output: Tensor) -> PerSample:
        target = self.meaning.target(self.schedule, asked.x0, asked.eps, asked.t)
        # a learned variance has the second half of the channels
        return self.criterion(output[:, : target.shape[1]], target, asked.t)


@dataclass(frozen=True)
class HybridLoss:
    """L_simple, and a little of the bound for the variance alone. Source: arXiv 2102.09672, eq. 16."""

    simple: SimpleLoss
    sigma: Variance

    def __call__(self, asked: NoisedBatch, output: Tensor) -> PerSample:
        seen = self.simple.meaning.predict(self.simple.schedule, asked.xt, output, asked.t)
        return elbo.hybrid_loss(self.simple(asked, output), seen, asked.x0, self.sigma)


@dataclass(frozen=True)
class BoundLoss:
    """The variational bound but for L_T, estimated at one timestep, in bits per dimension. Source: eq. 5."""

    meaning: Parametrization
    schedule: Schedule
    sigma: Variance

    def __call__(self, asked: NoisedBatch, output: Tensor) -> PerSample:
        seen = self.meaning.predict(self.schedule, asked.xt, output, asked.t)
        return self.schedule.steps * elbo.variational_term(seen, asked.x0, self.sigma)


Loss = SimpleLoss | HybridLoss | BoundLoss


def get_output_meaning(options: ObjectiveOptions) -> Parametrization:
    """What the network's output means."""
    return prediction.get_parametrization(options.predicts, learned_range=options.variance == "learned-range")


def build_loss(options: ObjectiveOptions, schedule: Schedule) -> Loss:
    """The training loss. schedule: the run's, on its device. Raises InputError for noise prediction at zero SNR."""
    meaning = get_output_meaning(options)
    meaning.check(schedule)
    simple = SimpleLoss(meaning, schedule, build_criterion(options, schedule))
    sigma = prediction.get_variance(options.variance)
    chosen: dict[str, Loss] = {
        "no": simple,
        "hybrid": HybridLoss(simple, sigma),
        "only": BoundLoss(meaning, schedule, sigma),
        "importance": BoundLoss(meaning, schedule, sigma),  # the timesteps differ, see running/timesteps.py
    }
    return chosen[options.bound]


def build_criterion(options: ObjectiveOptions, schedule: Schedule) -> Criterion:
    """The distance, weighted by timestep if asked for."""
    plain = losses.Plain(losses.get_loss(options.loss))
    if options.weighting == "none":
        return plain
    gamma = options.gamma or GAMMA[options.weighting]
    return losses.Weighted(plain, losses.timestep_weights(options.weighting, schedule, gamma, FORMS[options.predicts]))
