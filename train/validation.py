"""Validation: the denoising loss at fixed noise on held-out and training images, early stopping, and a diagnosis.

Noise and timesteps are functions of the image alone, so two measurements differ only by the network: the difference
from the base is paired, and its interval is far narrower than that of either loss.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    def words(self) -> str:
        return f"{self.mean:+.4f}, {self.bounds}"


def paired_difference(now: Losses, base: Losses, confidence: float = 0.95) -> Interval:
    """now - base over the same images, with Student's t interval; images are the independent units."""
    differences = now.per_picture - base.per_picture
    mean = float(differences.mean())
    if len(differences) < 2:
        return Interval(mean, float("-inf"), float("inf"))
    error = float(differences.std(ddof=1) / np.sqrt(len(differences)))
    half = float(stdtrit(len(differences) - 1, 0.5 + confidence / 2)) * error
    return Interval(mean, mean - half, mean + half)


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
                if entries:
                    found[split] = Losses(np.stack([self.image_losses(denoiser, device, entry) for entry in entries]))
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


# ---- early stopping

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

    def change(self, before: ValidationResult, side: str) -> Interval:
        """The paired difference of one split."""
        return paired_difference(self.losses(side), before.losses(side))

    @property
    def judged_by(self) -> str:
        """The split that decides: held-out, if anything was held out."""
        return HELD_OUT if HELD_OUT in self.per_picture else next(iter(self.per_picture))

    def is_better(self, best: ValidationResult | None) -> bool:
        """Whether the mean loss is finite and lower."""
        mean = self.mean(self.judged_by)
        return bool(np.isfinite(mean)) and (best is None or mean < best.mean(self.judged_by))

    def is_significantly_better(self, reference: ValidationResult | None) -> bool:
        """Whether the 95 % interval of the paired difference lies below 0.

        Against the last significant improvement, not the previous validation: slow but steady progress adds up.
        """
        if reference is None:
            return True
        change = self.change(reference, self.judged_by)
        few = len(self.per_picture[self.judged_by]) < MIN_FOR_T_TEST
        return change.mean < 0 if few else change.high < 0


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

    def after(self, result: ValidationResult, *, on_grid: bool) -> EarlyStopping:
        """The state after one more validation."""
        if result.step == 0:
            return replace(self, base=result, reference=result)
        if not on_grid:
            return replace(self, final=result)
        best = result if result.is_better(self.best) else self.best
        if result.is_significantly_better(self.reference):
            return replace(self, best=best, final=None, reference=result, waited=0)
        return replace(self, best=best, final=None, waited=self.waited + 1)

    def continued(self) -> EarlyStopping:
        """For a run that continues past what was its last step."""
        return replace(self, final=None)

    def out_of_patience(self, patience: int) -> bool:
        """Whether `patience` validations in a row brought no significant improvement on held-out images."""
        held_out = self.reference is not None and self.reference.judged_by == HELD_OUT
        return held_out and 0 < patience <= self.waited

    def explain(self, patience: int, step: int) -> str:
        """Why the run ended early at a step, in words."""
        assert self.reference is not None
        since = f"step {self.reference.step}" if self.reference.step else "the base"
        count = "1 validation" if patience == 1 else f"{patience} validations"
        return (
            f"stopped early at step {step}: no significant improvement of the held-out loss over {since} in {count}"
            f" (--validation.patience {patience})"
        )

    @property
    def chosen(self) -> ValidationResult | None:
        """The best validation, the final one included; the earlier of equals."""
        return self.final if self.final is not None and self.final.is_better(self.best) else self.best

    def since_base(self, result: ValidationResult) -> dict[str, Interval]:
        """The change of every split since the base."""
        base = self.base
        return {} if base is None else {side: result.change(base, side) for side in result.per_picture}

    def since_best(self, result: ValidationResult) -> Interval | None:
        """The change of the deciding split since its best step; None if this is the best."""
        return result.change(self.best, result.judged_by) if self.best and self.best.step < result.step else None

    @staticmethod
    def from_json(facts: Mapping[str, Any] | None) -> EarlyStopping:
        """The inverse of asdict, bit for bit; a new one for checkpoints that have none."""
        if facts is None:
            return EarlyStopping()
        names = ("base", "best", "final", "reference")
        return EarlyStopping(**{**facts, **{n: facts[n] and ValidationResult(**facts[n]) for n in names}})


# ---- diagnosis


@dataclass(frozen=True)
class Diagnosis:
    """A verdict in a word, and the numbers that support it."""

    word: Literal["learns", "memorises", "gets worse", "cannot tell yet"]
    because: str

    def __str__(self) -> str:
        return f"{self.word}: {self.because}"


def generalization_gap(result: ValidationResult, base: ValidationResult | None) -> Interval | None:
    """Held-out change minus training change since the base: how much of the improvement does not generalise.

    Each change is paired with the base; the two groups of images are independent (Welch's interval).
    """
    if base is None or base.step == result.step or not {HELD_OUT, TRAIN} <= result.per_picture.keys():
        return None
    held_out, train = (result.losses(side).per_picture - base.losses(side).per_picture for side in (HELD_OUT, TRAIN))
    return welch_difference(held_out, train)


def diagnose(result: ValidationResult, progress: EarlyStopping) -> Diagnosis:
    """Whether a trained network learns or memorises. Each claim needs a 95 % interval that excludes 0."""
    change, gap, best = progress.since_base(result), generalization_gap(result, progress.base), progress.best
    if HELD_OUT not in change or gap is None:
        reason = "this is the base itself" if progress.base == result else "the base model's loss is not known"
        if HELD_OUT not in result.per_picture:
            reason = "no images are held out, so memorising would look the same"
        return Diagnosis("cannot tell yet", reason)
    held_out, train, since_best = change[HELD_OUT], change[TRAIN], progress.since_best(result)
    if held_out.low > 0 and train.low > 0:
        what = f"even the training loss has risen ({train.words} against the base); try a lower --learning-rate"
        return Diagnosis("gets worse", what)
    lost = best is not None and since_best is not None and since_best.low > 0
    by_heart = f"; the training loss fell {gap.mean:.4f} more than the held-out loss ({gap.bounds})"
    if gap.low > 0 and (lost or held_out.low > 0):
        since, risen = (f"step {best.step}", since_best) if lost else ("the base", held_out)
        return Diagnosis("memorises", f"the held-out loss has risen since {since} ({risen.words}){by_heart}")
    against = f"{held_out.words} against the base"
    if held_out.high < 0:
        return Diagnosis("learns", f"the held-out loss has fallen: {against}{by_heart if gap.low > 0 else ''}")
    return Diagnosis("cannot tell yet", f"the held-out change is not significant yet: {against}")


def diagnosis_metrics(result: ValidationResult, progress: EarlyStopping) -> Mapping[str, object]:
    """Changes, gap and verdict of a validation for metrics.jsonl, as far as they are known."""
    if result.step == 0:
        return {"change": {}}
    gap = generalization_gap(result, progress.base)
    return {
        "change": {side: vars(interval) for side, interval in progress.since_base(result).items()},
        **({"gap": vars(gap)} if gap else {}),
        "verdict": vars(diagnose(result, progress)),
    }


# ---- the base model's losses

BASE_LOSSES_VERSION = 3  # to be raised when the same validation would give other losses


def measure_cached(
    validator: Validator, network: Sequence[object], denoiser: Denoiser, device: torch.device
) -> dict[str, Losses]:
    """The base model's losses, measured once for all runs that start from the same base on the same data.

    Before the first step the network is the base, whatever adapter it carries. network: everything besides the images
    and the machine (whose processor, threads and library rounding depends on) that the losses follow from.
    """
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    machine = device.type, kind, torch.get_num_threads(), torch.__version__
    key = disk_cache.cache_key("look", BASE_LOSSES_VERSION, *network, *machine, questions_hash(validator))
    values = disk_cache.cached_value(
        "looks",
        key,
        lambda: {split: found.values.tolist() for split, found in validator.measure(denoiser, device).items()},
    )
    return {split: Losses(np.array(rows, np.float64)) for split, rows in values.items()}


def questions_hash(validator: Validator) -> str:
    """A hash of the very numbers that the network is given."""
    digest = hashlib.sha256(validator.questions.encode())
    digest.update(f"{validator.objective!r} {validator.scaling_factor!r} {validator.timesteps}".encode())
    entries = [entry for entries in validator.sides.values() for entry in entries]
    given = [tensor for entry in entries for tensor in (entry.moments[0], entry.text_states[0])]
    for tensor in (validator.schedule.betas, *given):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
