"""5. Memorization: nearest training images, calibrated by held-out ones; loss gaps; near-duplicates by alignment."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from data import rng
from data.atomic_io import file_sha256
from data.buckets import assign_bucket
from data.dataset import EncodedImage
from data.disk_cache import cache_key, cached_value
from data.latent_cache import EntryPaths, MemoryEntries
from data.metrics import memorization as metrics
from data.metrics import statistics as stats
from data.metrics.memorization import QUANTILE, CopyReport, nearest_neighbours
from data.schema import Sample
from infer.comparison.image_cache import ImageCache
from infer.comparison.weights import Weights
from infer.evaluation.evidence import DenoisingLosses, Evidence
from infer.evaluation.prompts import Counts
from infer.evaluation.section import Alarm, Number, Section, from_interval
from infer.evaluation.target_run import TargetRun
from train import training_set as encode
from train.model import Denoiser
from train.validation import HELD_OUT, TRAIN, Validator

RARE = 0.002  # p of an alarm: this section tests four times for copies
MIN_SCORE = -3.0  # C_T, in standard deviations
MAX_AUC = 0.6  # of telling training from held-out images by their loss
Sides = Mapping[str, Sequence[Sample]]
TITLE, ASKED = "Memorisation", "Does the model reproduce training images?"


def section(evidence: Evidence, seed: int = 0) -> Section:
    """Of training captions (the worst case) and of prompts without style (novel ones)."""
    train, held_out, pairs = evidence.train.content, evidence.held_out.content, evidence.captions.pairs
    numbers: list[Number] = []
    reports = []
    for name, each in (("training captions", pairs), ("novel prompts", evidence.plain.pairs)):
        tuned, base = (metrics.find_copies(train, held_out, side.content) for side in (each.tuned, each.base))
        numbers += copy_numbers(name, tuned, base)
        reports.append(tuned)
    score, before = (metrics.data_copying_score(train, held_out, side.content) for side in (pairs.tuned, pairs.base))
    chance = exceedance_p(evidence)
    numbers += [
        Number("p of so many captions' pictures above every held-out one", chance, p=chance,
               said="copies" if chance <= RARE else "not more than chance allows"),
        Number("likeness of training pictures to the nearest other, 95 %",
               float(np.quantile(nearest_other(train), 0.95))),
        Number("C_T, training captions", score, base=before, floor=0.0,
               said="closer than held-out images" if score < MIN_SCORE else "no closer than chance"),
        Number("authentic, %", metrics.authenticity(train, pairs.tuned.content),
               base=metrics.authenticity(train, pairs.base.content), floor=metrics.authenticity(train, held_out),
               said="floor: of held-out images"),
        Number("aligned copies among the drawn", float(len(evidence.copies.generated)), floor=0.0),
        Number("aligned copies between training and held-out", float(len(evidence.copies.held_out)), floor=0.0),
        *(loss_numbers(evidence.losses) if evidence.losses else ()),
    ]  # fmt: skip
    cannot = [
        "No number proves or rules out copying: look at the most similar pairs below.",
        f"The share above {metrics.ALARM} means what Somepalli et al. 2023 say in SSCD's features only.",
    ]
    if len(held_out) < 100:
        cannot.append(f"With {len(held_out)} held-out images a threshold of 1 % is their highest value or nearly so.")
    return Section(
        TITLE, ASKED, tuple(numbers), tuple(alarms(evidence, reports[0], score, chance)),
        notes=(f"Likeness: cosine to the nearest training image. Threshold: {QUANTILE:.0%} of held-out images are "
               "below it. C_T (Meehan et al. 2020): in standard deviations; well below 0 is copying.",),
        cannot=tuple(cannot),
    )  # fmt: skip


def copy_numbers(name: str, now: CopyReport, before: CopyReport) -> list[Number]:
    """Shares and percentiles of the similarity to training images."""
    above = stats.wilson_interval(round(now.above * len(now.likeness)), len(now.likeness))
    return [
        from_interval(f"share above the threshold, {name}", above, base=before.above, floor=1 - QUANTILE,
                      said="more than held-out images" if above.low > 1 - QUANTILE else "not more, or not known"),
        *(Number(f"likeness, {percent} %, {name}", now.quantiles[place], base=before.quantiles[place],
                 ceiling=now.threshold) for place, percent in enumerate((75, 90, 95))),
        Number(f"share above {metrics.ALARM}, {name}", now.alarm, base=before.alarm),
    ]  # fmt: skip


def exceedance_p(evidence: Evidence) -> float:
    """The p-value of so many images above every held-out one, if both had one source; one image per caption.

    Of n generated and m held-out images in random order, the k most similar are all generated with probability
    n! (n + m - k)! / ((n - k)! (n + m)!).
    """
    pairs, train = evidence.captions.pairs, evidence.train.content
    generated = nearest_neighbours(pairs.tuned.content[pairs.first], train)[0]
    held_out = nearest_neighbours(evidence.held_out.content, train)[0]
    n, m, k = len(generated), len(held_out), int((generated > held_out.max()).sum())
    return float(np.prod([(n - place) / (n + m - place) for place in range(k)]))


def nearest_other(train: np.ndarray) -> np.ndarray:
    """The similarity of each training image to the nearest other one."""
    rows = np.arange(len(train))
    return np.array([nearest_neighbours(train[[row]], train[rows != row])[0][0] for row in rows])


def loss_numbers(losses: DenoisingLosses) -> list[Number]:
    """Whether the denoising loss identifies training images; the base has seen neither side."""
    now = metrics.membership_inference(losses.train, losses.held_out)
    before = metrics.membership_inference(losses.base_train, losses.base_held_out)
    p = auc_p(now.auc, len(losses.train), len(losses.held_out))
    numbers = [
        Number("AUC of training against held-out pictures by their loss", now.auc, base=before.auc, floor=0.5, p=p,
               said="training images can be identified" if p <= 0.05 else "no better than chance"),
        Number("loss gap, held-out minus training", now.gap, base=before.gap, floor=0.0),
    ]  # fmt: skip
    if len(losses.held_out) >= 100:
        numbers.append(Number("training pictures told at 1 % false alarms", now.found, base=before.found, floor=0.01))
    return numbers


def auc_p(auc: float, n: int, m: int) -> float:
    """One-sided, of Mann-Whitney's U under "the two sides are alike"."""
    z = (auc - 0.5) * n * m / math.sqrt(n * m * (n + m + 1) / 12)
    return 0.5 * math.erfc(z / math.sqrt(2))


def alarms(evidence: Evidence, captions: CopyReport, score: float, chance: float) -> Sequence[Alarm]:
    """A leak between training and held-out images makes every other number of this section worthless."""
    found = []
    if evidence.copies.held_out:
        held_out, train = evidence.copies.held_out[0]
        found.append(Alarm("leak", f"{len(evidence.copies.held_out)} held-out images are copies of training images "
                           f"({held_out}, {train}): validation and this section measure memorization."))  # fmt: skip
    if chance <= RARE or score < MIN_SCORE:
        found.append(Alarm("copies", f"{captions.above:.0%} of the images of training captions are more similar to a "
                           f"training image than 99 % of held-out images are; C_T {score:.1f}."))  # fmt: skip
    if evidence.copies.generated:
        prompt, train = evidence.copies.generated[0]
        found.append(Alarm("copies", f"{len(evidence.copies.generated)} generated images are training images except "
                           f"for cropping and light (the first: {prompt!r} is {train})."))  # fmt: skip
    losses = evidence.losses
    if losses:
        auc = metrics.membership_inference(losses.train, losses.held_out).auc
        if auc > MAX_AUC and auc_p(auc, len(losses.train), len(losses.held_out)) <= RARE:
            found.append(Alarm("told-by-loss", "Training images can be told from held-out ones by their loss: AUC "
                               f"{auc:.2f}."))  # fmt: skip
    return found


# ---- denoising losses, at the same noise for base and tuned


def measure_losses(target: TargetRun, cache: ImageCache, counts: Counts, seed: int) -> DenoisingLosses:
    """Of at most counts.losses images a side, at counts.timesteps timesteps each."""

    def choose(samples: Sequence[Sample], most: int) -> list[Sample]:
        return sorted(samples, key=lambda sample: rng.seed_for(seed, "evaluate", "losses", sample.sha256))[:most]

    train, held_out = target.images.train, target.images.held_out
    sides = {TRAIN: choose(train, min(counts.losses, len(held_out))), HELD_OUT: choose(held_out, counts.losses)}
    tuned, base = (losses_of(target, cache, weights, sides, counts) for weights in (target.tuned, target.base))
    return DenoisingLosses(tuned[TRAIN], tuned[HELD_OUT], base[TRAIN], base[HELD_OUT])


def losses_of(
    target: TargetRun, cache: ImageCache, weights: Weights, sides: Sides, counts: Counts
) -> dict[str, np.ndarray]:
    """The mean loss of each image over timesteps, by side; cached by weights and images."""
    hashes = {side: [sample.sha256 for sample in samples] for side, samples in sides.items()}
    model = cache.model(weights)
    key = cache_key("evaluate losses 1", model.fingerprint, cache.machine.facts, hashes, counts.timesteps,
                    target.config.pictures.caption, target.config.objective,
                    [(lora.weight, file_sha256(lora.path)) for lora in weights.loras])  # fmt: skip

    def measure() -> dict[str, list[float]]:
        entries = {side: encode_samples(target, cache, samples) for side, samples in sides.items()}
        validator = Validator(entries, target.config.objective, model.schedule.to(cache.machine.device),
                              model.scaling_factor, counts.timesteps)  # fmt: skip
        with cache.pipe(weights) as (pipe, _):
            found = validator.measure(Denoiser(pipe.unet), cache.machine.device)
        return {side: each.per_picture.tolist() for side, each in found.items()}

    return {side: np.array(values) for side, values in cached_value("evaluate", key, measure).items()}


def encode_samples(target: TargetRun, cache: ImageCache, samples: Sequence[Sample]) -> Sequence[EncodedImage]:
    """As for training, from the cache if they are still there."""
    images, model, device = target.images, cache.model(target.base), cache.machine.device
    by_bucket: dict = {bucket: [] for bucket in images.buckets}
    for sample in samples:
        by_bucket[assign_bucket(sample.width, sample.height, list(images.buckets))].append(sample)
    names = [sample.annotation.file_name for sample in samples]
    chosen = replace(images, buckets=by_bucket, held_out=[], prompts={name: images.prompts[name] for name in names})
    states, _ = encode.encode_captions(model, chosen, device)
    moments, _ = encode.encode_images(model, chosen, target.config, device)
    paths = [EntryPaths(name, moments[name], tuple(states[text] for text in chosen.prompts[name])) for name in names]
    return MemoryEntries(device).entries(paths)
