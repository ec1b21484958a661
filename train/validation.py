"""Does it learn or memorise: the denoising loss at fixed noise, on held-out pictures and on as many training pictures.

Noise and timesteps are functions of the picture alone, so two measurements differ only by the network: the difference
from the base is paired, and its interval is far narrower than that of either loss.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import stdtrit  # Student's t quantile; all of scipy.stats takes 0.9 CPU seconds to load

from data import disk_cache, rng
from data.dataset import EncodedImage, mean_latents
from train import oom
from train.config import AnyKind
from train.ddpm import diffusion, losses
from train.ddpm.schedule import Schedule
from train.losses import OBJECTIVES, uniform_timesteps
from train.model import Denoiser

HELD_OUT, TRAIN = "held-out", "train"


@dataclass(frozen=True)
class Losses:
    """Loss of each picture at each timestep. values: (pictures, timesteps) float64."""

    values: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def per_picture(self) -> np.ndarray:
        """(pictures,)"""
        return self.values.mean(axis=1)

    @property
    def per_timestep(self) -> list[float]:
        return [float(value) for value in self.values.mean(axis=0)]


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    @property
    def bounds(self) -> str:
        """The interval in words; a single picture has none."""
        known = np.isfinite(self.low) and np.isfinite(self.high)
        return f"95 % interval {self.low:+.4f} to {self.high:+.4f}" if known else "on one picture only"

    @property
    def finite(self) -> dict[str, float | None]:
        """As JSON has it, which has no infinity."""
        return {name: float(value) if np.isfinite(value) else None for name, value in vars(self).items()}

    @property
    def words(self) -> str:
        return f"{self.mean:+.4f}, {self.bounds}"


def paired_difference(now: Losses, base: Losses, confidence: float = 0.95) -> Interval:
    """now - base over the same pictures, with Student's t interval; pictures are the independent units."""
    differences = now.per_picture - base.per_picture
    mean = float(differences.mean())
    if len(differences) < 2:
        return Interval(mean, float("-inf"), float("inf"))
    half = stdtrit(len(differences) - 1, 0.5 + confidence / 2) * standard_error(differences)
    return Interval(mean, mean - float(half), mean + float(half))


def standard_error(values: np.ndarray) -> float:
    """Of the mean of (n,) values."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def welch_difference(one: np.ndarray, other: np.ndarray, confidence: float = 0.95) -> Interval:
    """mean(one) - mean(other) of two independent groups, (n,) and (m,), whose spreads may differ.

    Source: Welch 1947, Biometrika 34, 28-35: Student's t with the Welch-Satterthwaite degrees of freedom.
    """
    mean = float(one.mean() - other.mean())
    if min(len(one), len(other)) < 2:
        return Interval(mean, float("-inf"), float("inf"))
    parts = [float(group.var(ddof=1)) / len(group) for group in (one, other)]
    if sum(parts) == 0:
        return Interval(mean, mean, mean)
    freedom = sum(parts) ** 2 / sum(p**2 / (len(g) - 1) for p, g in zip(parts, (one, other), strict=True))
    half = float(stdtrit(freedom, 0.5 + confidence / 2)) * sum(parts) ** 0.5
    return Interval(mean, mean - half, mean + half)


def entry_hash(entry: EncodedImage) -> str:
    """A hash of a picture as the network sees it: renaming it changes neither its noise nor what was asked."""
    return hashlib.sha256(entry.moments[0].detach().cpu().contiguous().numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class Validator:
    """Measures a network on fixed questions. sides: e.g. {"held-out": entries, "train": entries}."""

    sides: Mapping[str, Sequence[EncodedImage]]
    objective: AnyKind
    schedule: Schedule
    scaling_factor: float
    timesteps: int

    @property
    def questions(self) -> str:
        """A hash of what is asked: losses of the same questions can be compared."""
        contents = {side: [entry_hash(entry) for entry in entries] for side, entries in self.sides.items()}
        return hashlib.sha256(json.dumps([contents, self.timesteps]).encode()).hexdigest()[:16]

    @torch.no_grad()
    def measure(self, denoiser: Denoiser, device: torch.device) -> dict[str, Losses]:
        """The loss of every side. Leaves the network's mode and every generator as they were."""
        was_training = denoiser.unet.training
        denoiser.unet.eval()
        try:
            return {
                side: Losses(np.stack([self.one(denoiser, device, entry) for entry in entries]))
                for side, entries in self.sides.items()
                if entries
            }
        finally:
            denoiser.unet.train(was_training)

    def one(self, denoiser: Denoiser, device: torch.device, entry: EncodedImage) -> np.ndarray:
        """(timesteps,): one picture at evenly spread timesteps, as a batch: no picture depends on its neighbours."""
        count = self.timesteps
        latents = mean_latents(entry.moments[0], self.scaling_factor)
        noise = rng.normal((count, *latents.shape), "validation", entry_hash(entry))
        x0 = latents.to(device).expand(count, *latents.shape)
        eps = noise.to(device)
        uniforms = (torch.arange(count, dtype=torch.float64, device=device) + 0.5) / count
        t = uniform_timesteps(uniforms, self.schedule)  # whatever the training draws: runs can be compared
        states = entry.text_states[0].to(device).expand(count, *entry.text_states[0].shape)
        noisy = diffusion.add_noise(self.schedule, x0, eps, t)
        target = OBJECTIVES[self.objective.kind].target(self.schedule, x0, eps, t)
        answer = oom.predict_in_chunks(lambda rows: denoiser(noisy[rows], t[rows], states[rows]), count)
        return losses.mse(answer, target).double().cpu().numpy()


MIN_FOR_T_TEST = 6  # pictures; Student's t over fewer sees almost nothing, so the means alone are compared


@dataclass(frozen=True)
class ValidationResult:
    """One validation: the loss of every picture, by side."""

    step: int
    per_picture: Mapping[str, Sequence[float]]

    def losses(self, side: str) -> Losses:
        return Losses(np.array(self.per_picture[side], dtype=np.float64)[:, None])

    def mean(self, side: str) -> float:
        return self.losses(side).mean

    @property
    def judged_by(self) -> str:
        """The held-out side, if anything was held out."""
        return HELD_OUT if HELD_OUT in self.per_picture else next(iter(self.per_picture))


@dataclass(frozen=True)
class EarlyStopping:
    """What is remembered of the validations.

    questions: what was measured (pictures, timesteps); losses on other questions cannot be compared.
    base: the untrained network. best: the lowest held-out loss of a trained one, on the validations' grid of steps.
    final: the look after the last step, if that is off the grid: a longer run has none there, so it must not count.
    reference: the last look that was surely better than the reference before it. waited: looks since then.
    """

    questions: str = ""
    base: ValidationResult | None = None
    best: ValidationResult | None = None
    final: ValidationResult | None = None
    reference: ValidationResult | None = None
    waited: int = 0

    def about(self, questions: str) -> EarlyStopping:
        """This, if it is about these questions; else nothing is remembered."""
        return self if self.questions == questions else EarlyStopping(questions)

    def after(self, look: ValidationResult, *, on_grid: bool) -> EarlyStopping:
        """What is known after one more look."""
        if look.step == 0:
            return replace(self, base=look, reference=look)
        if not on_grid:
            return replace(self, final=look)
        best = look if is_better(look, self.best) else self.best
        if self.reference is None or is_significantly_better(look, self.reference):
            return replace(self, best=best, final=None, reference=look, waited=0)
        return replace(self, best=best, final=None, waited=self.waited + 1)

    def continued(self) -> EarlyStopping:
        """For a run that goes on past what was its last step."""
        return replace(self, final=None)

    def out_of_patience(self, patience: int) -> bool:
        """Whether `patience` looks in a row brought nothing. Pictures that are trained on say nothing of that."""
        held_out = self.reference is not None and self.reference.judged_by == HELD_OUT
        return held_out and 0 < patience <= self.waited

    @property
    def chosen(self) -> ValidationResult | None:
        """The trained network's best look, the final one included; the earlier of equals."""
        return self.final if self.final is not None and is_better(self.final, self.best) else self.best

    def since_base(self, look: ValidationResult) -> dict[str, Interval]:
        """The change of every side against the untrained network."""
        return {} if self.base is None else {side: paired_change(look, self.base, side) for side in look.per_picture}

    def since_best(self, look: ValidationResult) -> Interval | None:
        """The change of the held-out side since its best step; None if this is it."""
        return paired_change(look, self.best, look.judged_by) if self.best and self.best.step < look.step else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(facts: Mapping[str, Any] | None) -> EarlyStopping:
        """The inverse of to_json, bit for bit; an empty one for a checkpoint from before there was any."""
        if facts is None:
            return EarlyStopping()
        looks = {
            name: facts[name] and ValidationResult(**facts[name]) for name in ("base", "best", "final", "reference")
        }
        return EarlyStopping(questions=facts["questions"], waited=facts["waited"], **looks)


def paired_change(now: ValidationResult, before: ValidationResult, side: str) -> Interval:
    """The paired difference of one side."""
    return paired_difference(now.losses(side), before.losses(side))


def is_better(look: ValidationResult, best: ValidationResult | None) -> bool:
    """Whether the mean loss is finite and lower. The noise is fixed: what differs is the network alone."""
    mean = look.mean(look.judged_by)
    return bool(np.isfinite(mean)) and (best is None or mean < best.mean(look.judged_by))


def is_significantly_better(look: ValidationResult, reference: ValidationResult) -> bool:
    """Whether the loss fell by more than chance explains: the 95 % interval of the paired difference lies below 0.

    Against the reference, not the look before: slow but steady progress adds up until it shows.
    """
    change = paired_change(look, reference, look.judged_by)
    few = len(look.per_picture[look.judged_by]) < MIN_FOR_T_TEST
    return change.mean < 0 if few else change.high < 0


def explain_stop(progress: EarlyStopping, patience: int, step: int) -> str:
    """Why the run ended early, in words."""
    assert progress.reference is not None
    since = f"step {progress.reference.step}" if progress.reference.step else "the base"
    looks = "1 validation" if patience == 1 else f"{patience} validations"
    return (
        f"stopped at step {step}: in {looks} in a row the held-out loss did not fall below that of {since}"
        f" by more than chance explains (--validation.patience {patience})"
    )


Word = Literal["learns", "memorises", "gets worse", "cannot tell yet"]


@dataclass(frozen=True)
class Diagnosis:
    """One word for it, and the sentence with the numbers that it rests on."""

    word: Word
    because: str

    def __str__(self) -> str:
        return f"{self.word}: {self.because}"


def generalization_gap(look: ValidationResult, base: ValidationResult | None) -> Interval | None:
    """Held-out change minus training change since the base: how much of the gain does not carry over to new pictures.

    The changes of two groups of pictures: each is paired with the base, the groups are independent (Welch's interval).
    """
    if base is None or base.step == look.step or not {HELD_OUT, TRAIN} <= look.per_picture.keys():
        return None
    held_out, train = (look.losses(side).per_picture - base.losses(side).per_picture for side in (HELD_OUT, TRAIN))
    return welch_difference(held_out, train)


def diagnose(look: ValidationResult, progress: EarlyStopping) -> Diagnosis:
    """The verdict on a trained network. Each claim needs a 95 % interval that excludes chance."""
    change = progress.since_base(look)
    gap = generalization_gap(look, progress.base)
    if HELD_OUT not in change or gap is None:
        return Diagnosis("cannot tell yet", reason_unknown(look, progress))
    held_out, train = change[HELD_OUT], change[TRAIN]
    since_best = progress.since_best(look)
    lost = since_best is not None and since_best.low > 0
    if held_out.low > 0 and train.low > 0:
        what = f"even the training pictures lose ({against_base(train)}); a lower --learning-rate may do"
        return Diagnosis("gets worse", what)
    if gap.low > 0 and (held_out.low > 0 or lost):
        return Diagnosis("memorises", f"{describe_loss(progress, held_out, since_best)}; {describe_gap(gap)}")
    if held_out.high < 0:
        more = f"; {describe_gap(gap)}" if gap.low > 0 else ""
        return Diagnosis("learns", f"pictures it has never seen gain: {against_base(held_out)}{more}")
    return Diagnosis("cannot tell yet", f"the held-out change may be chance: {against_base(held_out)}")


def reason_unknown(look: ValidationResult, progress: EarlyStopping) -> str:
    if HELD_OUT not in look.per_picture:
        return "no pictures are held out, so memorising would look the same"
    return "this is the base itself" if progress.base == look else "the base model's losses are not known"


def describe_loss(progress: EarlyStopping, held_out: Interval, since_best: Interval | None) -> str:
    if since_best is not None and since_best.low > 0:
        assert progress.best is not None
        return f"held-out pictures have lost since step {progress.best.step} ({since_best.words})"
    return f"held-out pictures lose against the base ({held_out.words})"


def describe_gap(gap: Interval) -> str:
    return f"training pictures gained {gap.mean:.4f} more than held-out ones ({gap.bounds})"


def against_base(change: Interval) -> str:
    return f"{change.words} against the base"


def diagnosis_metrics(look: ValidationResult, progress: EarlyStopping) -> Mapping[str, object]:
    """What metrics.jsonl holds of a look: changes, gap and verdict, as far as they are known."""
    trained = look.step > 0
    gap = generalization_gap(look, progress.base) if trained else None
    return {
        "change": {side: vars(interval) for side, interval in progress.since_base(look).items()} if trained else {},
        **({"gap": vars(gap)} if gap else {}),
        **({"verdict": vars(diagnose(look, progress))} if trained else {}),
    }


BASE_LOSSES_VERSION = 3  # raise it when the same questions would get other answers


def measure_cached(
    validator: Validator, network: Sequence[object], denoiser: Denoiser, device: torch.device
) -> dict[str, Losses]:
    """The base model's losses, measured once for all runs that start from the same base on the same data.

    Before the first step the network is the base, whatever adapter it carries.
    network: everything besides the questions and the machine that the losses follow from.
    """
    key = disk_cache.cache_key("look", BASE_LOSSES_VERSION, *network, *machine_key(device), questions_hash(validator))

    def measure() -> dict[str, Any]:
        return {side: losses.values.tolist() for side, losses in validator.measure(denoiser, device).items()}

    found = disk_cache.cached_value("looks", key, measure)
    return {side: Losses(np.array(values, np.float64)) for side, values in found.items()}


def questions_hash(validator: Validator) -> str:
    """A hash of the questions: the very numbers that the network is given."""
    digest = hashlib.sha256(validator.questions.encode())
    digest.update(f"{validator.objective!r} {validator.scaling_factor!r} {validator.timesteps}".encode())
    entries = [entry for entries in validator.sides.values() for entry in entries]
    given = [tensor for entry in entries for tensor in (entry.moments[0], entry.text_states[0])]
    for tensor in (validator.schedule.betas, *given):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def machine_key(device: torch.device) -> tuple[object, ...]:
    """What sums are rounded by: the processor's kind, the threads, the library."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return device.type, kind, torch.get_num_threads(), torch.__version__
