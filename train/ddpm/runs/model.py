"""A trained network with what is needed to use it: schedule, objective, image size, classes; saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.atomic_io import atomic_folder, file_sha256
from data.cli import Options
from data.errors import InputError, check_choice
from data.shapes import Images, PerSample, Timesteps
from train import run_folder
from train.ddpm import diffusion, elbo, guidance, losses, prediction, samplers, schedule
from train.ddpm.config import AnyNetwork, ObjectiveOptions, ScheduleOptions
from train.ddpm.prediction import Denoiser, Parametrization
from train.ddpm.samplers import SAMPLERS, Sampler, SeededNoise
from train.ddpm.schedule import Schedule
from train.ddpm.unets.build import NetworkShape, build_network

Corruption = Callable[[Schedule, Images, Images, Timesteps], Images]  # schedule, x_0, eps, t -> x_t
Loss = Callable[[Tensor, Images, Images, Images, Timesteps], PerSample]  # output, x_0, eps, x_t, t -> (B,)

WEIGHTS_FILE, INFO_FILE = "network.safetensors", "model.json"
KIND = "ddpm"  # in data.json: the command that a run belongs to
PREDICTION_TYPES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}  # our names and diffusers'


# ---- from options to functions of the training step, built once


@contextmanager
def blame_flag(flag: str) -> Iterator[None]:
    """Make `flag` the place of an InputError raised inside, unless it has one."""
    try:
        yield
    except InputError as error:
        raise InputError(error.what, where=error.where or flag, allowed=error.allowed, fix=error.fix) from None


def build_schedule(options: ScheduleOptions) -> Schedule:
    """Raises InputError for an unknown name."""
    with blame_flag("--schedule.name"):
        made = schedule.make_schedule(options.name, options.steps)
    return schedule.zero_terminal_snr(made) if options.zero_terminal_snr else made


def build_parametrization(options: ObjectiveOptions) -> Parametrization:
    return prediction.get_parametrization(options.predicts, learned_range=options.variance == "learned-range")


def build_corruption(options: ObjectiveOptions) -> Corruption:
    """q(x_t | x_0) of the Gaussian process, or the course's mix."""
    if options.corruption == "gaussian":
        return diffusion.add_noise

    def mix(schedule: Schedule, x0: Images, eps: Images, t: Timesteps) -> Images:
        noise = diffusion.mix_noise(eps, uniform=options.noise == "uniform")
        return diffusion.linear_mix(x0, noise, diffusion.mix_amount(t, schedule.steps))

    return mix


def build_loss(options: ObjectiveOptions, schedule: Schedule) -> Loss:
    """The training loss. schedule: the run's, on its device. Raises InputError for noise prediction at zero SNR."""
    meaning, sigma = build_parametrization(options), prediction.get_variance(options.variance)
    meaning.check(schedule)
    criterion: losses.Criterion = losses.Plain(losses.get_loss(options.loss))
    if options.weighting != "none":
        gamma = options.gamma or losses.DEFAULT_GAMMA[options.weighting]
        kind = PREDICTION_TYPES[options.predicts]
        criterion = losses.Weighted(criterion, losses.timestep_weights(options.weighting, schedule, gamma, kind))

    def simple(output: Tensor, x0: Images, eps: Images, xt: Images, t: Timesteps) -> PerSample:
        """The distance from the target. Source: arXiv 2006.11239, eq. 14, for the noise and squares."""
        target = meaning.target(schedule, x0, eps, t)
        # a learned variance has the second half of the channels
        return criterion(output[:, : target.shape[1]], target, t)

    def hybrid(output: Tensor, x0: Images, eps: Images, xt: Images, t: Timesteps) -> PerSample:
        """L_simple, and a little of the bound for the variance alone. Source: arXiv 2102.09672, eq. 16."""
        predicted = meaning.predict(schedule, xt, output, t)
        return elbo.hybrid_loss(simple(output, x0, eps, xt, t), predicted, x0, sigma)

    def bound(output: Tensor, x0: Images, eps: Images, xt: Images, t: Timesteps) -> PerSample:
        """The bound without L_T, estimated at one timestep, in bits per dimension. Source: arXiv 2006.11239, eq. 5."""
        return schedule.steps * elbo.variational_term(meaning.predict(schedule, xt, output, t), x0, sigma)

    return {"no": simple, "hybrid": hybrid, "only": bound, "importance": bound}[options.bound]


# ---- the model


class ModelInfo(Options):
    """model.json: how the network was built and trained.

    frame: its input and output. classes: names of its labels, empty if it is unconditional. source: the image set.
    """

    network: AnyNetwork
    frame: NetworkShape
    schedule: ScheduleOptions
    objective: ObjectiveOptions
    classes: tuple[str, ...]
    source: str


@dataclass(frozen=True, eq=False)
class Model:
    """network: (x_t, t, labels) -> output, on `device`."""

    network: nn.Module
    info: ModelInfo
    device: torch.device

    @cached_property
    def schedule(self) -> Schedule:
        """The noise schedule, on the CPU."""
        return build_schedule(self.info.schedule)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, S, S)."""
        return self.info.frame.channels, self.info.frame.size, self.info.frame.size

    def denoiser(
        self, labels: Tensor | None = None, scale: float = 1.0, *, clip: bool = False, corruption: str = "gaussian"
    ) -> Denoiser:
        """The denoiser for a process. labels: (B,) of each batch that it will get. scale: guidance.

        A network trained on the course's mix also serves the Gaussian process: the same image at another scale.
        Raises InputError for the mix with a network that was not trained on it.
        """
        objective, network = self.info.objective, self.network
        on_device = self.schedule.to(self.device)
        if corruption == "mix" != objective.corruption:
            what = "the naive sampler is for networks trained on the course's mix"
            gaussian = [name for name, sampler in SAMPLERS.items() if sampler.corruption == "gaussian"]
            raise InputError(what, where="--sampler naive", allowed=", ".join(gaussian))
        if corruption == "gaussian" != objective.corruption:
            network = diffusion.adapt_mix_network(network, on_device)
        guided = guidance.guide(network, labels, len(self.info.classes), scale)
        predict = build_parametrization(objective)(guided, on_device)
        return prediction.clipped(predict) if clip and corruption == "gaussian" else predict

    def start(self, sampler: Sampler, noise: SeededNoise) -> Images:
        """(B, C, S, S) the noise that sampling starts from."""
        uniform = sampler.corruption == "mix" and self.info.objective.noise == "uniform"
        return diffusion.mix_noise(noise.start(), uniform=uniform)

    def generate(
        self,
        sampler: Sampler,
        count: int,
        *,
        seed: int,
        labels: Tensor | None = None,
        scale: float = 1.0,
        clip: bool = False,
        batch: int = 128,
    ) -> Images:
        """(count, C, S, S) on the CPU; image i is a function of seed + i, whatever the batches are."""
        images: list[Images] = []
        for start in range(0, count, batch):
            size = min(batch, count - start)
            some = None if labels is None else labels[start : start + size]
            predict = self.denoiser(some, scale, clip=clip, corruption=sampler.corruption)
            noise = samplers.seeded_noise(seed + start, size, self.image_shape, self.device)
            images.append(samplers.generate(sampler, predict, self.schedule, self.start(sampler, noise), noise).cpu())
        return torch.cat(images)

    def labels_of(self, names: list[str], count: int, where: str) -> Tensor | None:
        """(count,) labels of the classes by name, in turn; without names all of them; None if it is unconditional."""
        classes = self.info.classes
        if not classes:
            if names:
                raise InputError("the network is unconditional", where=where, fix="Train it with --conditional.")
            return None
        chosen = [check_choice(name, classes, what="class", where=where) for name in names] or list(classes)
        return torch.tensor([classes.index(chosen[i % len(chosen)]) for i in range(count)], device=self.device)


def save_model(model: Model, folder: Path) -> Path:
    """Write `folder` atomically, load it back, and compare."""
    weights = {name: weight.detach().float().cpu().contiguous() for name, weight in model.network.state_dict().items()}
    with atomic_folder(folder) as beside:
        save_file(weights, beside / WEIGHTS_FILE)
        facts = model.info.model_dump(mode="json") | {"sha256": file_sha256(beside / WEIGHTS_FILE)}
        (beside / INFO_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    loaded = load_model(folder).network.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items()), "the export differs when loaded"
    return folder


def load_model(folder: Path, device: torch.device | str = "cpu") -> Model:
    """A saved model in eval mode, from its folder or from a run's. Raises InputError."""
    place = folder / "export" if (folder / "export" / INFO_FILE).is_file() else folder
    try:
        facts: dict[str, Any] = json.loads((place / INFO_FILE).read_text(encoding="utf-8"))
        sha256 = facts.pop("sha256")
        info = ModelInfo.model_validate(facts)
        if file_sha256(place / WEIGHTS_FILE) != sha256:
            raise InputError("changed since it was written", where=place / WEIGHTS_FILE)
        weights = load_file(place / WEIGHTS_FILE)
    except OSError as error:
        fix = "Give a finished run folder of train/ddpm/fit.py."
        raise InputError(f"not a trained network ({error.strerror})", where=folder, fix=fix) from None
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError, SafetensorError):
        raise InputError("cannot be read as a trained network", where=place) from None
    network = build_network(info.network, info.frame)
    network.load_state_dict(weights)
    network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
    return Model(network, info, torch.device(device))


def newest_finished_run(runs: Path) -> Path | None:
    """The folder of the newest finished run of fit.py."""
    finished = [run for run in run_folder.all_runs(runs) if run.done is not None and run.kind == KIND]
    return finished[-1].path if finished else None
