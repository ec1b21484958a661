"""Validation: the denoising loss at fixed noise on held-out and training images, early stopping, and a diagnosis.

Noise and timesteps are functions of the image alone, so two measurements differ only by the network: the difference
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
from train import device as devices
from train.config import AnyKind
from train.ddpm import diffusion, losses
from train.ddpm.schedule import Schedule
from train.losses import OBJECTIVES, uniform_timesteps
from train.model import Denoiser

HELD_OUT, TRAIN = "held-out", "train"


@dataclass(frozen=True)
class Losses:
    """Loss of each image at each timestep. values: (images, timesteps) float64."""

    values: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def per_picture(self) -> np.ndarray:
        """(images,)"""
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
        """The interval in words; a single image has none."""
        known = np.isfinite(self.low) and np.isfinite(self.high)
        return f"95 % interval {self.low:+.4f} to {self.high:+.4f}" if known else "on one image only"

    @property
    def finite(self) -> dict[str, float | None]:
        """As JSON has it, which has no infinity."""
        return {name: float(value) if np.isfinite(value) else None for name, value in vars(self).items()}

    @property
    def words(self) -> str:
        return f"{self.mean:+.4f}, {self.bounds}"


def paired_difference(now: Losses, base: Losses, confidence: float = 0.95) -> Interval:
    """now - base over the same images, with Student's t interval; images are the independent units."""
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
    """A hash of an image as the network sees it, so renaming it does not change its noise."""
    return hashlib.sha256(entry.moments[0].detach().cpu().contiguous().numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class Validator:
    """Measures a network at fixed noise. sides: the images of each split, {"held-out": ..., "train": ...}."""

    sides: Mapping[str, Sequence[EncodedImage]]
    objective: AnyKind
    schedule: Schedule
    scaling_factor: float
    timesteps: int

    @property
    def questions(self) -> str:
        """A hash of images and timesteps: losses with the same hash can be compared."""
        contents = {side: [entry_hash(entry) for entry in entries] for side, entries in self.sides.items()}
        return hashlib.sha256(json.dumps([contents, self.timesteps]).encode()).hexdigest()[:16]

    @torch.no_grad()
    def measure(self, denoiser: Denoiser, device: torch.device) -> dict[str, Losses]:
        """The loss of every split. Leaves the network's mode and every generator as they were."""
        was_training, found = denoiser.unet.training, dict[str, Losses]()
        denoiser.unet.eval()
        try:
            for split, entries in self.sides.items():
                rows: list[np.ndarray] = []
                for entry in entries:
                    rows.append(self.image_losses(denoiser, device, entry))
                if rows:
                    found[split] = Losses(np.stack(rows))
        finally:
            denoiser.unet.train(was_training)
        return found

    def image_losses(self, denoiser: Denoiser, device: torch.device, entry: EncodedImage) -> np.ndarray:
        """(timesteps,): one image at evenly spread timesteps, as a batch, so it does not depend on other images."""
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
        predicted = devices.predict_in_chunks(denoiser, noisy, t, states)
        return losses.mse(predicted, target).double().cpu().numpy()


MIN_FOR_T_TEST = 6  # images; with fewer Student's t has almost no power, so the means alone are compared


@dataclass(frozen=True)
class ValidationResult:
    """One validation: the loss of every image, by split."""

    step: int
    per_picture: Mapping[str, Sequence[float]]

    def losses(self, side: str) -> Losses:
        return Losses(np.array(self.per_picture[side], dtype=np.float64)[:, None])

    def mean(self, side: str) -> float:
        return self.losses(side).mean

    @property
    def judged_by(self) -> str:
        """The split that decides: held-out, if anything was held out."""
        return HELD_OUT if HELD_OUT in self.per_picture else next(iter(self.per_picture))


@dataclass(frozen=True)
class EarlyStopping:
    """The validations so far, as far as decisions depend on them; part of every checkpoint.

    questions: Validator.questions; losses with another hash cannot be compared.
    base: the untrained network. best: the lowest held-out loss, on the grid of validation steps.
    final: the validation after the last step, if off the grid: a longer run has none there, so it must not count.
    reference: the last significant improvement. waited: validations since then.
    """

    questions: str = ""
    base: ValidationResult | None = None
    best: ValidationResult | None = None
    final: ValidationResult | None = None
    reference: ValidationResult | None = None
    waited: int = 0

    def about(self, questions: str) -> EarlyStopping:
        """This, if it used the same images and timesteps; otherwise a new start."""
        return self if self.questions == questions else EarlyStopping(questions)

    def after(self, look: ValidationResult, *, on_grid: bool) -> EarlyStopping:
        """The state after one more validation."""
        if look.step == 0:
            return replace(self, base=look, reference=look)
        if not on_grid:
            return replace(self, final=look)
        best = look if is_better(look, self.best) else self.best
        if self.reference is None or is_significantly_better(look, self.reference):
            return replace(self, best=best, final=None, reference=look, waited=0)
        return replace(self, best=best, final=None, waited=self.waited + 1)

    def continued(self) -> EarlyStopping:
        """For a run that continues past what was its last step."""
        return replace(self, final=None)

    def out_of_patience(self, patience: int) -> bool:
        """Whether `patience` validations in a row brought no significant improvement on held-out images."""
        held_out = self.reference is not None and self.reference.judged_by == HELD_OUT
        return held_out and 0 < patience <= self.waited

    @property
    def chosen(self) -> ValidationResult | None:
        """The best validation, the final one included; the earlier of equals."""
        return self.final if self.final is not None and is_better(self.final, self.best) else self.best

    def since_base(self, look: ValidationResult) -> dict[str, Interval]:
        """The change of every split since the base."""
        return {} if self.base is None else {side: paired_change(look, self.base, side) for side in look.per_picture}

    def since_best(self, look: ValidationResult) -> Interval | None:
        """The change of the deciding split since its best step; None if this is the best."""
        return paired_change(look, self.best, look.judged_by) if self.best and self.best.step < look.step else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(facts: Mapping[str, Any] | None) -> EarlyStopping:
        """The inverse of to_json, bit for bit; a new one for checkpoints that have none."""
        if facts is None:
            return EarlyStopping()
        looks = {
            name: facts[name] and ValidationResult(**facts[name]) for name in ("base", "best", "final", "reference")
        }
        return EarlyStopping(questions=facts["questions"], waited=facts["waited"], **looks)


def paired_change(now: ValidationResult, before: ValidationResult, side: str) -> Interval:
    """The paired difference of one split."""
    return paired_difference(now.losses(side), before.losses(side))


def is_better(look: ValidationResult, best: ValidationResult | None) -> bool:
    """Whether the mean loss is finite and lower."""
    mean = look.mean(look.judged_by)
    return bool(np.isfinite(mean)) and (best is None or mean < best.mean(look.judged_by))


def is_significantly_better(look: ValidationResult, reference: ValidationResult) -> bool:
    """Whether the 95 % interval of the paired difference lies below 0.

    Against the last significant improvement, not the previous validation: slow but steady progress adds up.
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
        f"stopped early at step {step}: no significant improvement of the held-out loss over {since} in {looks}"
        f" (--validation.patience {patience})"
    )


Word = Literal["learns", "memorises", "gets worse", "cannot tell yet"]


@dataclass(frozen=True)
class Diagnosis:
    """A verdict in a word, and the numbers that support it."""

    word: Word
    because: str

    def __str__(self) -> str:
        return f"{self.word}: {self.because}"


def generalization_gap(look: ValidationResult, base: ValidationResult | None) -> Interval | None:
    """Held-out change minus training change since the base: how much of the improvement does not generalise.

    Each change is paired with the base; the two groups of images are independent (Welch's interval).
    """
    if base is None or base.step == look.step or not {HELD_OUT, TRAIN} <= look.per_picture.keys():
        return None
    held_out, train = (look.losses(side).per_picture - base.losses(side).per_picture for side in (HELD_OUT, TRAIN))
    return welch_difference(held_out, train)


def diagnose(look: ValidationResult, progress: EarlyStopping) -> Diagnosis:
    """Whether a trained network learns or memorises. Each claim needs a 95 % interval that excludes 0."""
    change = progress.since_base(look)
    gap = generalization_gap(look, progress.base)
    if HELD_OUT not in change or gap is None:
        return Diagnosis("cannot tell yet", reason_unknown(look, progress))
    held_out, train = change[HELD_OUT], change[TRAIN]
    since_best = progress.since_best(look)
    lost = since_best is not None and since_best.low > 0
    if held_out.low > 0 and train.low > 0:
        what = f"even the training loss has risen ({against_base(train)}); try a lower --learning-rate"
        return Diagnosis("gets worse", what)
    if gap.low > 0 and (held_out.low > 0 or lost):
        return Diagnosis("memorises", f"{describe_loss(progress, held_out, since_best)}; {describe_gap(gap)}")
    if held_out.high < 0:
        more = f"; {describe_gap(gap)}" if gap.low > 0 else ""
        return Diagnosis("learns", f"the held-out loss has fallen: {against_base(held_out)}{more}")
    return Diagnosis("cannot tell yet", f"the held-out change is not significant yet: {against_base(held_out)}")


def reason_unknown(look: ValidationResult, progress: EarlyStopping) -> str:
    if HELD_OUT not in look.per_picture:
        return "no images are held out, so memorising would look the same"
    return "this is the base itself" if progress.base == look else "the base model's loss is not known"


def describe_loss(progress: EarlyStopping, held_out: Interval, since_best: Interval | None) -> str:
    if since_best is not None and since_best.low > 0:
        assert progress.best is not None
        return f"the held-out loss has risen since step {progress.best.step} ({since_best.words})"
    return f"the held-out loss has risen since the base ({held_out.words})"


def describe_gap(gap: Interval) -> str:
    return f"the training loss fell {gap.mean:.4f} more than the held-out loss ({gap.bounds})"


def against_base(change: Interval) -> str:
    return f"{change.words} against the base"


def diagnosis_metrics(look: ValidationResult, progress: EarlyStopping) -> Mapping[str, object]:
    """Changes, gap and verdict of a validation for metrics.jsonl, as far as they are known."""
    trained = look.step > 0
    gap = generalization_gap(look, progress.base) if trained else None
    return {
        "change": {side: vars(interval) for side, interval in progress.since_base(look).items()} if trained else {},
        **({"gap": vars(gap)} if gap else {}),
        **({"verdict": vars(diagnose(look, progress))} if trained else {}),
    }


BASE_LOSSES_VERSION = 3  # to be raised when the same validation would give other losses


def measure_cached(
    validator: Validator, network: Sequence[object], denoiser: Denoiser, device: torch.device
) -> dict[str, Losses]:
    """The base model's losses, measured once for all runs that start from the same base on the same data.

    Before the first step the network is the base, whatever adapter it carries.
    network: everything besides the images and the machine that the losses follow from.
    """
    key = disk_cache.cache_key("look", BASE_LOSSES_VERSION, *network, *machine_key(device), questions_hash(validator))

    measured = disk_cache.read_value("looks", key)
    if measured is None:
        found = validator.measure(denoiser, device)
        disk_cache.write_value("looks", key, {split: losses.values.tolist() for split, losses in found.items()})
        return found
    return {split: Losses(np.array(values, np.float64)) for split, values in measured.items()}


def questions_hash(validator: Validator) -> str:
    """A hash of the very numbers that the network is given."""
    digest = hashlib.sha256(validator.questions.encode())
    digest.update(f"{validator.objective!r} {validator.scaling_factor!r} {validator.timesteps}".encode())
    entries = [entry for entries in validator.sides.values() for entry in entries]
    given = [tensor for entry in entries for tensor in (entry.moments[0], entry.text_states[0])]
    for tensor in (validator.schedule.betas, *given):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def machine_key(device: torch.device) -> tuple[object, ...]:
    """What rounding depends on: the processor's kind, the threads, the library."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return device.type, kind, torch.get_num_threads(), torch.__version__
