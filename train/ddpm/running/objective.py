"""From the options to what each step computes: how pictures are corrupted, what an answer costs. Put together once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from data.shapes import Images, PerSample, Timesteps
from train.ddpm import bound, criteria, losses, mix, prediction, process, variance, weighting
from train.ddpm.criteria import Criterion
from train.ddpm.prediction import Parametrization
from train.ddpm.running.config import ObjectiveOptions
from train.ddpm.schedule import Schedule
from train.ddpm.variance import Variance

Corrupt = Callable[[Schedule, Images, Images, Timesteps], Images]  # schedule, x_0, eps, t -> x_t
GAMMA = {"min-snr": 5.0, "soft-min-snr": 4.0}  # as in their papers, see train/ddpm/weighting.py
FORMS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}  # our words and diffusers'


@dataclass(frozen=True)
class Mixed:
    """The course's mix, with the amount that belongs to a timestep. noise: made of standard normal noise."""

    noise: Callable[[Tensor], Tensor]

    def __call__(self, schedule: Schedule, x0: Images, eps: Images, t: Timesteps) -> Images:
        return mix.corrupt(x0, self.noise(eps), mix.amount(t, schedule.steps))


def corruption_of(options: ObjectiveOptions) -> Corrupt:
    """How pictures are corrupted in training."""
    return Mixed(mix.noise(options.noise)) if options.corruption == "mix" else process.add_noise


@dataclass(frozen=True)
class Question:
    """What the network was asked and should have known: x_t was made of x0 and eps."""

    x0: Images
    eps: Images
    xt: Images
    t: Timesteps


@dataclass(frozen=True)
class Simple:
    """The distance from the right answer. Source: arXiv 2006.11239, eq. 14, for the noise and squares."""

    meaning: Parametrization
    schedule: Schedule
    criterion: Criterion

    def __call__(self, asked: Question, output: Tensor) -> PerSample:
        target = self.meaning.target(self.schedule, asked.x0, asked.eps, asked.t)
        # a learned variance has the second half of the channels
        return self.criterion(output[:, : target.shape[1]], target, asked.t)


@dataclass(frozen=True)
class Hybrid:
    """L_simple, and a little of the bound for the variance alone. Source: arXiv 2102.09672, eq. 16."""

    simple: Simple
    sigma: Variance

    def __call__(self, asked: Question, output: Tensor) -> PerSample:
        seen = self.simple.meaning.predict(self.simple.schedule, asked.xt, output, asked.t)
        return bound.hybrid(self.simple(asked, output), seen, asked.x0, self.sigma)


@dataclass(frozen=True)
class Bound:
    """The variational bound but for L_T, estimated at one timestep, in bits per dimension. Source: eq. 5."""

    meaning: Parametrization
    schedule: Schedule
    sigma: Variance

    def __call__(self, asked: Question, output: Tensor) -> PerSample:
        seen = self.meaning.predict(self.schedule, asked.xt, output, asked.t)
        return self.schedule.steps * bound.variational(seen, asked.x0, self.sigma)


Loss = Simple | Hybrid | Bound


def meaning_of(options: ObjectiveOptions) -> Parametrization:
    """What the network's output means."""
    return prediction.named(options.predicts, learned_range=options.variance == "learned-range")


def loss_of(options: ObjectiveOptions, schedule: Schedule) -> Loss:
    """The training loss. schedule: the run's, on its device. Raises InputError for noise prediction at zero SNR."""
    meaning = meaning_of(options)
    meaning.check(schedule)
    simple = Simple(meaning, schedule, criterion_of(options, schedule))
    sigma = variance.named(options.variance)
    chosen: dict[str, Loss] = {
        "no": simple,
        "hybrid": Hybrid(simple, sigma),
        "only": Bound(meaning, schedule, sigma),
        "importance": Bound(meaning, schedule, sigma),  # the timesteps differ, see running/timesteps.py
    }
    return chosen[options.bound]


def criterion_of(options: ObjectiveOptions, schedule: Schedule) -> Criterion:
    """The distance, weighted by timestep if asked for."""
    plain = criteria.Plain(losses.named(options.loss))
    if options.weighting == "none":
        return plain
    gamma = options.gamma or GAMMA[options.weighting]
    return criteria.Weighted(plain, weighting.table(options.weighting, schedule, gamma, FORMS[options.predicts]))
