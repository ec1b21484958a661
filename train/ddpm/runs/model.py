"""The flag behind a mistake that was found deeper in, where flags are not known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from data.errors import InputError
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from data.errors import InputError
from data.errors import check_choice
from data.atomic_io import atomic_folder
from data.atomic_io import file_sha256
from data.shapes import Images
from train import run_folder
from train.ddpm import guidance
from train.ddpm import diffusion
from train.ddpm import samplers
from train.ddpm import schedule as schedules
from train.ddpm.unets.config import AnyNetwork
from train.ddpm.unets.config import NetworkShape
from train.ddpm.samplers import SeededNoise
from train.ddpm.prediction import Denoiser
from train.ddpm.prediction import clipped
from train.ddpm.runs.config import ObjectiveOptions
from train.ddpm.runs.config import ScheduleOptions
from train.ddpm.runs.objective import get_output_meaning
from train.ddpm.schedule import Schedule
from train.ddpm.samplers import Sampler

@contextmanager
def blame_flag(flag: str) -> Iterator[None]:
    """What is raised inside is a mistake in this flag, unless it says where it is."""
    try:
        yield
    except InputError as error:
        where = flag if error.where is None else error.where
        raise InputError(error.what, where=where, allowed=error.allowed, fix=error.fix) from None


WEIGHTS, FACTS = "network.safetensors", "model.json"
KIND = "ddpm"  # in data.json: which command a run is of


@dataclass(frozen=True, eq=False)
class Model:
    """network: (x_t, t, labels) -> answer, in eval mode on `device`. schedule: on the CPU.

    classes: names of the labels that it was told in training, empty if it was told none. source: the set it learnt.
    """

    network: nn.Module
    options: AnyNetwork
    frame: NetworkShape
    schedule: Schedule
    schedule_options: ScheduleOptions
    objective: ObjectiveOptions
    classes: tuple[str, ...]
    source: str
    device: torch.device

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, S, S) of a picture."""
        return self.frame.channels, self.frame.size, self.frame.size

    def predict(self, labels: Tensor | None = None, scale: float = 1.0, *, clip: bool = False) -> Denoiser:
        """The denoiser of the Gaussian process. labels: (B,) of each batch that it will see; scale: guidance.

        A network that learnt from the course's mix is asked about that mix: the same picture at another scale.
        """
        from train.ddpm.unets.basic import MixInput

        network = MixInput(self.network, self.schedule) if self.objective.corruption == "mix" else self.network
        return self.denoiser(network.to(self.device), labels, scale, clip)

    def predict_mix(self, labels: Tensor | None = None, scale: float = 1.0) -> Denoiser:
        """The denoiser of the course's mix, for the naive sampler. Raises InputError for another corruption."""
        if self.objective.corruption != "mix":
            what = "the naive sampler is for networks that learnt from the course's mix"
            gaussian = [name for name, sampler in samplers.SAMPLERS.items() if sampler.corruption == "gaussian"]
            raise InputError(what, where="--sampler naive", allowed=", ".join(gaussian))
        return self.denoiser(self.network, labels, scale, clip=False)

    def denoiser(self, network: nn.Module, labels: Tensor | None, scale: float, clip: bool) -> Denoiser:
        if labels is None or scale == 1.0:
            told: Callable[..., Tensor] = guidance.condition(network, labels)  # type: ignore[arg-type]
        else:
            told = guidance.guide(network, labels, len(self.classes), scale)
        predict = get_output_meaning(self.objective)(told, self.schedule.to(self.device))
        return clipped(predict) if clip else predict

    def for_sampler(self, sampler: Sampler, labels: Tensor | None, scale: float, *, clip: bool) -> Denoiser:
        """The denoiser whose process a sampler undoes."""
        if sampler.corruption == "mix":
            return self.predict_mix(labels, scale)
        return self.predict(labels, scale, clip=clip)

    def start(self, sampler: Sampler, own: SeededNoise) -> Images:
        """(B, C, S, S) where a walk of the sampler begins: noise alone, of the process that it undoes."""
        drawn = own.start()
        return diffusion.get_mix_noise(self.objective.noise)(drawn) if sampler.corruption == "mix" else drawn

    def labels_of(self, names: list[str], count: int, where: str) -> Tensor | None:
        """(count,) the classes by their names, in turn; with no names all of them in turn, None if it knows none."""
        if not self.classes:
            if names:
                raise InputError("the network was told no classes", where=where, fix="Train it with --conditional.")
            return None
        chosen = [check_choice(name, self.classes, what="class", where=where) for name in names] or list(self.classes)
        numbers = [self.classes.index(chosen[place % len(chosen)]) for place in range(count)]
        return torch.tensor(numbers, device=self.device)

    def with_network(self, network: nn.Module) -> Model:
        return replace(self, network=network)


def build_schedule(options: ScheduleOptions) -> Schedule:
    """Raises InputError for an unknown name."""
    with blame_flag("--schedule.name"):
        made = schedules.make_schedule(options.name, options.steps)
    return schedules.zero_terminal_snr(made) if options.zero_terminal_snr else made


def save_model(model: Model, weights: dict[str, Tensor], folder: Path) -> Path:
    """Write `folder` whole, load it back, and compare. weights: the network's state_dict."""
    facts = {
        "network": model.options.model_dump(mode="json"),
        "frame": vars(model.frame),
        "schedule": model.schedule_options.model_dump(mode="json"),
        "objective": model.objective.model_dump(mode="json"),
        "classes": list(model.classes),
        "source": model.source,
    }
    plain = {name: weight.detach().float().cpu().contiguous() for name, weight in weights.items()}
    with atomic_folder(folder) as beside:
        save_file(plain, beside / WEIGHTS)
        facts["sha256"] = file_sha256(beside / WEIGHTS)
        (beside / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    back = load_model(folder).network.state_dict()
    assert all(torch.equal(back[name], weight) for name, weight in plain.items()), "an export is loaded back the same"
    return folder


def load_model(folder: Path, device: torch.device | str = "cpu") -> Model:
    """A saved model, from its folder or from a run's. Raises InputError, one line, for what is none."""
    place = folder / "export" if (folder / "export" / FACTS).is_file() else folder
    try:
        facts: dict[str, Any] = json.loads((place / FACTS).read_text(encoding="utf-8"))
        options: AnyNetwork = TypeAdapter(AnyNetwork).validate_python(facts["network"])
        frame = NetworkShape(**facts["frame"])
        objective = ObjectiveOptions(**facts["objective"])
        schedule_options = ScheduleOptions(**facts["schedule"])
        if file_sha256(place / WEIGHTS) != facts["sha256"]:
            raise InputError("changed since it was written", where=place / WEIGHTS)
        weights = load_file(place / WEIGHTS)
    except OSError as error:
        fix = "Give a run folder of train/ddpm/fit.py that is finished."
        raise InputError(f"is no trained network ({error.strerror})", where=folder, fix=fix) from None
    except (ValueError, KeyError, TypeError, ValidationError, SafetensorError):
        raise InputError("cannot be read as a trained network", where=place) from None
    schedule = build_schedule(schedule_options)
    network = options.build(frame)
    network.load_state_dict(weights)
    network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
    return Model(
        network,
        options,
        frame,
        schedule,
        schedule_options,
        objective,
        tuple(facts["classes"]),
        facts["source"],
        torch.device(device),
    )


def newest_finished_run(runs: Path) -> Path | None:
    """The folder of the newest finished run of fit.py."""
    finished = [run for run in run_folder.all_runs(runs) if run.done is not None and run.kind == KIND]
    return finished[-1].path if finished else None
