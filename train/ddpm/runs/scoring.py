"""score.py: bits per dimension with every term, distances in named features, a classifier's accuracy.

Features are named after what they are, with a hash of the weights: distances are comparable only in the same features.
The classifier's are this project's own, so no number here is a published FID.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from data import metrics, rng
from data.atomic_io import write_atomic
from data.errors import InputError
from data.features import Extractor, Features, extract_features, make_extractor
from data.metrics.distances import (
    KernelDistance,
    check_enough_rows,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from data.metrics.statistics import wilson_interval
from data.progress import ProgressBar
from data.reports.charts import Series
from data.reports.page import Page
from data.shapes import Images
from train.ddpm import elbo
from train.ddpm.image_sets import ImageSet, from_images, to_float, to_image
from train.ddpm.prediction import FIXED_VARIANCES, Variance, get_variance
from train.ddpm.runs.batches import validation_set
from train.ddpm.runs.config import ScoreOptions
from train.ddpm.runs.model import Model, blame_flag
from train.ddpm.runs.report import image_grid
from train.ddpm.runs.sampling import build_sampler, generate_images, load_run_images, open_model
from train.ddpm.samplers import seeded_noise
from train.validation import Interval, Losses, paired_difference

PUBLISHED = Path(metrics.__file__).parent / "lecture.csv"  # Dhariwal & Nichol 2021, arXiv 2105.05233, table 5
NOT_INCEPTION = """Distances are in the named features, not Inception's: they can be compared with the real rows and
with other runs in the same features and with as many images, not with the published FIDs below. The real rows are
distances between two sets of real images: the floor. Fewer images (n) make a Frechet distance larger."""
COLUMNS = ("pictures", "n", "FD", "sFD", "KID", "precision", "recall", "density", "coverage")


def score(options: ScoreOptions) -> int:
    """Generate, measure, write score.html and score.json; returns the exit code."""
    folder, model = open_model(options)
    sampler, sigma = build_sampler(options, model), reverse_variance(options, model)
    config, real, unseen = load_run_images(folder)
    why = [] if len(unseen) else ["the run held no images out: bits and the floor are of training images"]
    unseen = unseen if len(unseen) else real
    classifier = train_on(real, config.seed) if has_classes(real) else None
    extractors = choose_extractors(options, classifier, real)
    for extractor in extractors:  # before anything is generated
        with blame_flag("--count"):
            check_enough_rows(np.empty((options.count, encode_pixels(extractor, real.pixels[:1]).shape[1])))
    labels = model.labels_of([], options.count, "--count")
    generated = generate_images(options, model, sampler, options.count, labels)
    rows = measure_distances(options, extractors, real, unseen, generated, config.seed)
    bits, curve = measure_bits(options, model, unseen, sigma) if options.bits else ({}, None)
    learnt: dict[str, Accuracy] = {}
    if classifier is None or labels is None:
        missing = "the set has no classes" if classifier is None else "the network is unconditional"
        why.append(f"no classifier was trained on generated images: {missing}")
    else:
        learnt = compare_classifiers(classifier, real, unseen, generated, labels.cpu(), config.seed)
    facts = {
        "run": folder.name,
        "features": f"{extractors[0].name} {extractors[0].version}",
        "rows": rows,
        "bits": {name: asdict(each) for name, each in bits.items()},
        "curve": curve,
        "learnt": {name: asdict(each) for name, each in learnt.items()},
        "why": why,
    }
    out = options.out or folder / "score"
    write_atomic(out / "score.json", json.dumps(facts, indent=1) + "\n")
    write_page(facts, bits, learnt, generated, out / "score.html")
    print("\n".join(["", f"features:  {facts['features']}", *format_table([COLUMNS, *distance_table(rows)])]))
    print("\n".join(f"{name}: {each.mean:.4f} bits/dim ({each.bounds})" for name, each in bits.items()))
    print("\n".join(f"classifier trained on {name}: {each}" for name, each in learnt.items()))
    print("\n".join([*(f"note: {reason}" for reason in why), f"report:    {out / 'score.html'}"]))
    return 0


# ---- a small classifier: its accuracy tells how useful generated images are, its features tell sets apart


class SmallClassifier(nn.Module):
    """Three convolutions, the mean over quarters, one layer: (B, C, S, S) -> (B, classes)."""

    WIDTH = 32
    SPATIAL = 7  # channels of the middle layer that the spatial features use, at 4 x 4 places

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 16, 3, padding=1), nn.Conv2d(16, self.WIDTH, 3, padding=1)
        self.third = nn.Conv2d(self.WIDTH, self.WIDTH, 3, padding=1)
        self.out = nn.Linear(4 * self.WIDTH, classes)

    def middle(self, x: Images) -> Tensor:
        """(B, WIDTH, S / 2, S / 2)."""
        x = functional.relu(self.first(x))
        return functional.relu(self.second(functional.max_pool2d(x, 2)))

    def features(self, x: Images) -> Tensor:
        """(B, 4 WIDTH): the means of the last layer over each quarter of the image."""
        return functional.adaptive_avg_pool2d(functional.relu(self.third(self.middle(x))), 2).flatten(1)

    def spatial_features(self, x: Images) -> Tensor:
        """(B, 16 SPATIAL): the middle layer at 4 x 4 places, as sFID uses Inception's (arXiv 2103.03841)."""
        return functional.adaptive_avg_pool2d(self.middle(x)[:, : self.SPATIAL], 4).flatten(1)

    def forward(self, x: Images) -> Tensor:
        return self.out(self.features(x))


def train_classifier(
    x: Images, labels: Tensor, classes: int, *, seed: int, epochs: int = 12, batch: int = 64, rate: float = 2e-3
) -> SmallClassifier:
    """A classifier of images x (n, C, S, S) in [-1, 1] with labels (n,), a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.seed_for(seed, "classifier"))
        network = SmallClassifier(x.shape[1], classes).train()
    steps = epochs * math.ceil(len(x) / batch)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    cosine = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    for epoch in range(epochs):
        order = torch.tensor(rng.permutation(len(x), seed, "classifier", epoch))
        for rows in order.split(batch):
            loss = functional.cross_entropy(network(x[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cosine.step()
    return network.eval()


def train_on(images: ImageSet, seed: int) -> SmallClassifier:
    assert images.labels is not None
    return train_classifier(to_float(images.pixels), images.labels, len(images.classes), seed=seed)


def has_classes(images: ImageSet) -> bool:
    """Whether every image has a class, and there are at least two."""
    return images.labels is not None and len(images.classes) > 1 and not bool((images.labels < 0).any())


@dataclass(frozen=True)
class Accuracy:
    """`right` of `count` images are classified correctly."""

    right: int
    count: int

    def __str__(self) -> str:
        share = wilson_interval(self.right, self.count)
        return f"{100 * share.value:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}] of {self.count}"


def compare_classifiers(
    classifier: SmallClassifier, real: ImageSet, unseen: ImageSet, generated: Tensor, labels: Tensor, seed: int
) -> dict[str, Accuracy]:
    """Accuracy on held-out real images after training on generated ones alone, on as many real ones, or on all."""
    same = real.at_most(len(generated), seed)
    on_generated = train_classifier(to_float(generated), labels, len(real.classes), seed=seed)
    trained = {
        f"{len(generated)} drawn pictures": on_generated,
        f"{len(same)} real pictures": train_on(same, seed),
        f"all {len(real)} real pictures": classifier,
    }
    with torch.no_grad():
        right = {name: network(to_float(unseen.pixels)).argmax(1) == unseen.labels for name, network in trained.items()}
    return {name: Accuracy(int(correct.sum()), len(correct)) for name, correct in right.items()}


@dataclass(frozen=True, eq=False)
class ClassifierFeatures:
    """An extractor of data/features.py: the classifier's last hidden features, 128 numbers an image.

    scale: multiplies them so that the training images have a mean square of 1: the kernel distance depends on it.
    spatial: the spatial features instead.
    """

    network: SmallClassifier
    channels: int
    scale: float = 1.0
    spatial: bool = False

    @property
    def name(self) -> str:
        return "classifier-spatial" if self.spatial else "classifier"

    @property
    def version(self) -> str:
        digest = hashlib.sha256()
        for weight in self.network.state_dict().values():
            digest.update(weight.numpy().tobytes())
        digest.update(repr(self.scale).encode())
        return f"1-{digest.hexdigest()[:12]}"

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image]) -> Features:
        mode = "L" if self.channels == 1 else "RGB"
        x = to_float(from_images([image.convert(mode) for image in images]))
        features = self.network.spatial_features(x) if self.spatial else self.network.features(x)
        return (self.scale * features).numpy().astype(np.float32)

    def scaled_to(self, images: ImageSet) -> ClassifierFeatures:
        """The same features with a mean square of 1 over these images."""
        features = self.encode(images.images()).astype(np.float64)
        return replace(self, scale=self.scale / float(np.sqrt((features**2).mean())))


# ---- distances


def choose_extractors(options: ScoreOptions, classifier: SmallClassifier | None, real: ImageSet) -> list[Extractor]:
    """The requested features; those of the classifier come with its spatial ones. Raises InputError."""
    name = options.features
    if name == "auto":
        name = "classifier" if classifier is not None else "descriptors"
    if name != "classifier":
        return [make_extractor(name, options.features_folder)]
    if classifier is None:
        what = "the images have no classes to train a classifier on"
        raise InputError(what, where="--features", allowed="pixels, descriptors, clip, dinov2")
    plain = [ClassifierFeatures(classifier, real.channels, spatial=spatial) for spatial in (False, True)]
    return [extractor.scaled_to(real) for extractor in plain]


def measure_distances(
    options: ScoreOptions,
    extractors: Sequence[Extractor],
    real: ImageSet,
    unseen: ImageSet,
    generated: Tensor,
    seed: int,
) -> list[dict[str, Any]]:
    """Generated images against real ones; and other real ones against the same, as many where there are as many.

    Raises InputError if there are too few generated ones for the features.
    """
    order = rng.permutation(len(real), seed, "score")
    base_rows, others = order[: options.count], order[options.count : 2 * options.count]
    base = [encode_pixels(extractor, real.pixels[base_rows]) for extractor in extractors]
    rows = [distance_row(options, "drawn", base, [encode_pixels(extractor, generated) for extractor in extractors])]
    for name, pixels in (("real, others", real.pixels[others]), ("real, held out", unseen.pixels)):
        try:
            encoded = [encode_pixels(extractor, pixels) for extractor in extractors]
            rows.append(distance_row(options, name, base, encoded))
        except InputError as error:  # a small set: the generated images are measured all the same
            print(f"note:      no floor: {error.what}")
    return rows


def encode_pixels(extractor: Extractor, pixels: Tensor) -> np.ndarray:
    """(n, d) features of uint8 images; (0, 0) of none."""
    return extract_features(extractor, [to_image(image) for image in pixels], cache=False)


def distance_row(
    options: ScoreOptions, name: str, base: Sequence[np.ndarray], encoded: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Distances of one set of images from real ones of the training split, as in score.json."""
    try:
        if not len(encoded[0]):
            raise InputError("no images", allowed="1 or more")
        return {
            "name": name,
            "pictures": len(encoded[0]),
            "frechet": frechet_distance(base[0], encoded[0]),
            "spatial": frechet_distance(base[1], encoded[1]) if len(base) > 1 else None,
            "kernel": asdict(kernel_distance(base[0], encoded[0])),
            "manifold": asdict(precision_recall(base[0], encoded[0], k=options.k)),
        }
    except InputError as error:
        fix = "Raise --count, or choose --features of fewer dimensions."
        raise InputError(f"{name}: {error.what}", where="--count", allowed=error.allowed, fix=fix) from None


# ---- bits per dimension


def reverse_variance(options: ScoreOptions, model: Model) -> Variance:
    """The variance of the bound's reverse steps. Raises InputError for one that the network has not learned."""
    trained = model.info.objective.variance
    with blame_flag("--variance"):
        sigma = get_variance(options.variance or trained)
        if sigma.high is not None and trained != "learned-range":
            raise InputError("the network has no learned variance", allowed=", ".join(FIXED_VARIANCES))
        return sigma


def measure_bits(
    options: ScoreOptions, model: Model, unseen: ImageSet, sigma: Variance
) -> tuple[dict[str, Interval], dict[str, list[float]]]:
    """Every term of the bound in bits per dimension, with intervals over images, and the rate/distortion curve."""
    x0, labels = validation_set(unseen, options.bits, model)
    terms = elbo.bits_per_dim(
        model.denoiser(labels, clip=options.clip),
        model.schedule,
        x0,
        seeded_noise(0, len(x0), model.image_shape, model.device),
        sigma=sigma,
        progress=lambda steps: ProgressBar(steps, "bits per dimension", model.schedule.steps, unit="step"),
    )
    parts = {
        "whole bound": terms.total,
        "rate, L_1 + ... + L_T": terms.rate,
        "distortion, L_0": terms.decoder,
        "L_T": terms.prior,
    }
    zero = Losses(np.zeros((len(x0), 1)))
    bits = {name: paired_difference(Losses(part.numpy()[:, None]), zero) for name, part in parts.items()}
    rate, rmse = elbo.rate_distortion(terms)
    return bits, {"rate": rate.tolist(), "rmse": rmse.tolist()}


# ---- the report


def distance_table(rows: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """The cells of COLUMNS."""
    return [
        (
            row["name"],
            row["pictures"],
            round(row["frechet"], 3),
            None if row["spatial"] is None else round(row["spatial"], 3),
            str(KernelDistance(**row["kernel"])),
            *(round(value, 3) for value in row["manifold"].values()),
        )
        for row in rows
    ]


def format_table(table: Sequence[Sequence[Any]]) -> list[str]:
    widths = [max(len(str(row[column])) for row in table) for column in range(len(table[0]))]
    return ["  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]


def published_table() -> tuple[list[str], list[list[str | None]]]:
    """Columns and rows of the published table. Source: Dhariwal & Nichol 2021, arXiv 2105.05233, table 5."""
    head, *rows = csv.reader(PUBLISHED.read_text(encoding="utf-8").splitlines())
    return head, [[cell or None for cell in line] for line in rows]


def write_page(
    facts: dict[str, Any], bits: dict[str, Interval], learnt: dict[str, Accuracy], generated: Tensor, path: Path
) -> None:
    page = Page(f"Score of {facts['run']}", f"features: {facts['features']}")
    page.section("Distances").text(NOT_INCEPTION).table(COLUMNS, distance_table(facts["rows"]))
    page.strip([(image_grid(generated[:60], 12).convert("RGB"), "the first generated images")], columns=1, width=600)
    if bits:
        rows = [(name, each.mean, each.bounds) for name, each in bits.items()]
        page.section("Bits per dimension")
        page.table(("part of the bound", "bits/dim", "95 % interval over images"), rows)
        series = Series("held out", facts["curve"]["rate"], facts["curve"]["rmse"])
        page.curve(series, x="bits/dim sent", y="RMSE of 255", title="Rate and distortion")
    if learnt:
        page.section("A classifier trained without real images")
        shares = [(name, str(each)) for name, each in learnt.items()]
        page.table(("trained on", "accuracy on held-out real images"), shares)
    for reason in facts["why"]:
        page.note(reason)
    head, published = published_table()
    page.section("Published").text("In Inception features, 50,000 samples. Dhariwal & Nichol 2021, table 5.")
    page.table(head, published)
    page.write(path)
