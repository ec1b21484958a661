"""From ObjectiveOptions to functions of the training step, built once: timestep sampling, corruption and loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.shapes import Images, PerSample, Timesteps
from train.ddpm import diffusion, elbo
from train.ddpm.losses import Criterion, LossHistory, Plain, Weighted, empty_history, get_loss, timestep_weights
from train.ddpm.prediction import Parametrization, get_parametrization, get_variance
from train.ddpm.runs.config import ObjectiveOptions
from train.ddpm.schedule import Schedule

Corruption = Callable[[Schedule, Images, Images, Timesteps], Images]  # schedule, x_0, eps, t -> x_t
Loss = Callable[[Tensor, Images, Images, Images, Timesteps], PerSample]  # output, x_0, eps, x_t, t -> (B,)

DEFAULT_GAMMA = {"min-snr": 5.0, "soft-min-snr": 4.0}  # as in their papers, see losses.py
PREDICTION_TYPES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}  # our names and diffusers'


@dataclass
class TimestepSampler:
    """Uniform timesteps, or with a history in proportion to the last losses (arXiv 2102.09672, eq. 18).

    The history is on the CPU, and every step waits for its losses: the next step's timesteps depend on them. It is the
    same in every process, because each adds the losses of all, in the order of their ranks: `gather` concatenates the
    (B,) tensors of all processes. With separate histories, processes would weight one timestep differently, and the
    mean of their gradients would belong to no one distribution.
    """

    steps: int
    history: LossHistory | None = None
    gather: Callable[[Tensor], Tensor] = torch.clone

    def draw(self, uniforms: PerSample) -> tuple[Timesteps, PerSample]:
        """(B,) numbers in [0, 1) -> (B,) timesteps and the (B,) float32 weights of their losses, on the device."""
        if self.history is None:
            return (uniforms * self.steps).long().clamp(max=self.steps - 1), torch.ones_like(uniforms)
        t, weights = self.history.draw(uniforms.cpu())
        return t.to(uniforms.device), weights.to(uniforms.device)

    def update(self, t: Timesteps, losses: PerSample) -> None:
        """Record the (B,) unweighted losses of this process at its (B,) timesteps."""
        if self.history is not None:
            self.history = self.history.updated(self.gather(t).cpu(), self.gather(losses.float()).cpu())

    def state(self) -> dict[str, Any]:
        """JSON for the checkpoint."""
        history = self.history
        return {} if history is None else {"losses": history.losses.tolist(), "counts": history.counts.tolist()}

    def load_state(self, saved: dict[str, Any]) -> None:
        if self.history is not None:
            losses, counts = (torch.tensor(saved[name]) for name in ("losses", "counts"))
            self.history = LossHistory(losses.to(self.history.losses), counts.to(self.history.counts))


def build_timestep_sampler(
    options: ObjectiveOptions, steps: int, gather: Callable[[Tensor], Tensor]
) -> TimestepSampler:
    return TimestepSampler(steps, empty_history(steps) if options.bound == "importance" else None, gather)


def build_corruption(options: ObjectiveOptions) -> Corruption:
    """q(x_t | x_0) of the Gaussian process, or the course's mix."""
    if options.corruption == "gaussian":
        return diffusion.add_noise
    noise = diffusion.get_mix_noise(options.noise)
    return lambda schedule, x0, eps, t: diffusion.linear_mix(x0, noise(eps), diffusion.mix_amount(t, schedule.steps))


def get_output_meaning(options: ObjectiveOptions) -> Parametrization:
    return get_parametrization(options.predicts, learned_range=options.variance == "learned-range")


def build_loss(options: ObjectiveOptions, schedule: Schedule) -> Loss:
    """The training loss. schedule: the run's, on its device. Raises InputError for noise prediction at zero SNR."""
    meaning, sigma = get_output_meaning(options), get_variance(options.variance)
    meaning.check(schedule)
    criterion = build_criterion(options, schedule)

    def simple(output: Tensor, x0: Images, eps: Images, xt: Images, t: Timesteps) -> PerSample:
        """The distance from the target. Source: arXiv 2006.11239, eq. 14, for the noise and squares."""
        target = meaning.target(schedule, x0, eps, t)
        # a learned variance has the second half of the channels
        return criterion(output[:, : target.shape[1]], target, t)

    def hybrid(output: Tensor, x0: Images, eps: Images, xt: Images, t: Timesteps) -> PerSample:
        """L_simple, and a little of the bound for the variance alone. Source: arXiv 2102.09672, eq. 16."""
        prediction = meaning.predict(schedule, xt, output, t)
        return elbo.hybrid_loss(simple(output, x0, eps, xt, t), prediction, x0, sigma)

    def bound(output: Tensor, x0: Images, eps: Images, xt: Images, t: Timesteps) -> PerSample:
        """The bound without L_T, estimated at one timestep, in bits per dimension. Source: arXiv 2006.11239, eq. 5."""
        return schedule.steps * elbo.variational_term(meaning.predict(schedule, xt, output, t), x0, sigma)

    return {"no": simple, "hybrid": hybrid, "only": bound, "importance": bound}[options.bound]


def build_criterion(options: ObjectiveOptions, schedule: Schedule) -> Criterion:
    """The distance, weighted by timestep if --objective.weighting is given."""
    plain = Plain(get_loss(options.loss))
    if options.weighting == "none":
        return plain
    gamma = options.gamma or DEFAULT_GAMMA[options.weighting]
    return Weighted(plain, timestep_weights(options.weighting, schedule, gamma, PREDICTION_TYPES[options.predicts]))
