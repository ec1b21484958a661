"""A small classifier: its accuracy tells what drawn pictures are worth to learn from, its features tell sets apart.

Features have the name of what they are, with a hash of the weights: a distance in them can be compared only with
distances in the same ones. They are this project's own, so no number here is an FID that others have published.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from data import rng
from data.features import Features
from train.ddpm.image_sets import ImageSet
from train.ddpm.image_sets import from_images
from train.ddpm.image_sets import to_float
from data.shapes import Images
import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from data import rng
from data.errors import InputError
from data.features import Extractor
from data.features import extract_features
from data.features import make_extractor
from data.atomic_io import write_atomic
from data.metrics.distances import frechet_distance
from data.metrics.distances import check_enough_rows
from data.metrics.distances import KernelDistance
from data.metrics.distances import kernel_distance
from data.metrics.coverage import PrecisionRecall
from data.metrics.coverage import precision_recall
from data.reports.page import Page
from data.reports.charts import Series
from train.ddpm.image_sets import load_image_set
from train.ddpm.image_sets import ImageSet
from train.ddpm.image_sets import to_uint8
from train.ddpm.image_sets import to_float
from train.ddpm import elbo
from train.ddpm import prediction
from train.ddpm import samplers
from train.ddpm.runs import grids
from train.ddpm.runs.model import blame_flag
from train.ddpm.runs.model import Model
from train.ddpm.runs.config import ScoreOptions
from train.ddpm.runs.sampling import read_run_config
from train.ddpm.runs.sampling import open_model
from train.ddpm.runs.sampling import build_sampler
from train.ddpm.prediction import Variance
from train.validation import Interval
from train.validation import Losses
from train.validation import paired_difference

WIDTH = 32  # features
SPATIAL = 7  # channels of the middle layer that the spatial features keep, at 4 x 4 places
EPOCHS, BATCH, RATE = 12, 64, 2e-3


class SmallNet(nn.Module):
    """Three convolutions, the mean over places, one layer: (B, C, S, S) -> (B, classes)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 16, 3, padding=1), nn.Conv2d(16, WIDTH, 3, padding=1)
        self.third = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.out = nn.Linear(4 * WIDTH, classes)

    def middle(self, x: Images) -> Tensor:
        """(B, WIDTH, S / 2, S / 2)."""
        x = functional.relu(self.first(x))
        return functional.relu(self.second(functional.max_pool2d(x, 2)))

    def features(self, x: Images) -> Tensor:
        """(B, 4 WIDTH): the means of the last layer over each quarter of the picture."""
        x = functional.relu(self.third(self.middle(x)))
        return functional.adaptive_avg_pool2d(x, 2).flatten(1)

    def forward(self, x: Images) -> Tensor:
        return self.out(self.features(x))


def train_classifier(x: Images, labels: Tensor, classes: int, *, seed: int) -> SmallNet:
    """A classifier of pictures x (n, C, S, S) in [-1, 1] with labels (n,): the same whenever it is trained again."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.seed_for(seed, "classifier"))
        network = SmallNet(x.shape[1], classes)
    network.train()
    steps = EPOCHS * math.ceil(len(x) / BATCH)
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    for epoch in range(EPOCHS):
        order = torch.tensor(rng.permutation(len(x), seed, "classifier", epoch))
        for rows in order.split(BATCH):
            loss = functional.cross_entropy(network(x[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
    return network.eval()


@dataclass(frozen=True)
class Accuracy:
    """right of count pictures, and the interval that the share lies in."""

    right: int
    count: int

    @property
    def share(self) -> float:
        return self.right / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """95 %. Source: Wilson 1927, JASA 22, 209-212."""
        z, n, p = 1.959964, self.count, self.share
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return centre - half, centre + half

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {self.count}"


@torch.no_grad()
def measure_accuracy(network: SmallNet, x: Images, labels: Tensor) -> Accuracy:
    return Accuracy(int((network(x).argmax(1) == labels).sum()), len(x))


def train_on(pictures: ImageSet, *, seed: int) -> SmallNet:
    assert pictures.labels is not None
    return train_classifier(to_float(pictures.pixels), pictures.labels, len(pictures.classes), seed=seed)


@dataclass(frozen=True, eq=False)
class ClassifierFeatures:
    """An extractor of data/features.py: what the classifier sees before it decides, 128 numbers a picture.

    scale: they are multiplied by it, so that those of the pictures it learnt from have a mean square of 1: the kernel
    distance is not free of scale. spatial: what it sees half way, 7 channels at 4 x 4 places, as sFID takes them of
    Inception (Nash et al. 2021, arXiv 2103.03841).
    """

    network: SmallNet
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
    def encode(self, pictures: Sequence[Image.Image]) -> Features:
        mode = "L" if self.channels == 1 else "RGB"
        x = to_float(from_images([picture.convert(mode) for picture in pictures]))
        found = self.spatially(x) if self.spatial else self.network.features(x)
        return (self.scale * found).numpy().astype(np.float32)

    def scaled_to(self, pictures: ImageSet) -> ClassifierFeatures:
        """The same features with a mean square of 1 over these pictures."""
        found = self.encode(pictures.images())
        return replace(self, scale=self.scale / float(np.sqrt((found.astype(np.float64) ** 2).mean())))

    def spatially(self, x: Images) -> Tensor:
        return functional.adaptive_avg_pool2d(self.network.middle(x)[:, :SPATIAL], 4).flatten(1)


PUBLISHED = Path(__file__).parents[3] / "data" / "metrics" / "lecture.csv"
NOT_INCEPTION = """Distances are in the features that are named: not Inception's, so they cannot be compared with the
published FIDs below, only with the real rows and with other runs in the same features and as many pictures. The real
rows are what two sets of real pictures are apart: the floor. Fewer pictures (n) make a Frechet distance larger."""


@dataclass(frozen=True)
class DistanceRow:
    """One set of pictures against real ones of the training side."""

    name: str
    pictures: int
    frechet: float
    spatial: float | None
    kernel: KernelDistance
    manifold: PrecisionRecall


@dataclass(frozen=True)
class Score:
    """All that was measured; None where it could not be, and `why` says why."""

    run: str
    features: str
    rows: list[DistanceRow]
    bits: dict[str, Interval]
    curve: elbo.RateDistortion | None
    learnt: dict[str, Accuracy]
    why: list[str]


def score(options: ScoreOptions) -> int:
    """Draw, measure, write score.html and score.json; returns the exit code."""
    folder, model = open_model(options)
    sampler, sigma = build_sampler(options, model), reverse_variance(options, model)
    config = read_run_config(folder)
    pictures = load_image_set(config.data, seed=config.seed)
    real, unseen = pictures.split(config.data.held_out, config.seed)
    why = [] if len(unseen) else ["the run held no pictures out: bits and the floor are of training pictures"]
    unseen = unseen if len(unseen) else real
    judge = train_on(real, seed=config.seed) if usable_classes(real) else None
    extractors = extractors_of(options, judge, real)
    refuse_too_few(options.count, extractors, real)
    labels = model.labels_of([], options.count, "--count")
    drawn = to_uint8(
        grids.generate_images(
            model,
            sampler,
            options.count,
            seed=options.seed,
            labels=labels,
            scale=options.guidance,
            clip=options.clip,
            batch=options.batch_size,
        )
    )
    rows = measure_distances(options, extractors, real, unseen, drawn, config.seed)
    bits, curve = measure_bits(options, model, unseen, sigma) if options.bits else ({}, None)
    learnt = accuracies(judge, model, real, unseen, drawn, labels, config.seed, why)
    name = f"{extractors[0].name} {extractors[0].version}"
    score = Score(folder.name, name, rows, bits, curve, learnt, why)
    out = options.out or folder / "score"
    write_score(score, out, drawn)
    print("\n".join(format_score(score)))
    print(f"report:    {out / 'score.html'}")
    return 0


def usable_classes(pictures: ImageSet) -> bool:
    """Whether every picture has a class, and there are two."""
    return pictures.labels is not None and len(pictures.classes) > 1 and not bool((pictures.labels < 0).any())


def extractors_of(options: ScoreOptions, judge: SmallNet | None, real: ImageSet) -> list[Extractor]:
    """The features asked for; those of the classifier come with its spatial ones. Raises InputError."""
    wanted = options.features
    if wanted == "auto":
        wanted = "classifier" if judge is not None else "descriptors"
    if wanted != "classifier":
        return [make_extractor(wanted, options.features_folder)]
    if judge is None:
        what = "the pictures have no classes to make a classifier of"
        raise InputError(what, where="--features", allowed="pixels, descriptors, clip, dinov2")
    plain = [ClassifierFeatures(judge, real.channels, spatial=spatial) for spatial in (False, True)]
    return [extractor.scaled_to(real) for extractor in plain]


def refuse_too_few(count: int, extractors: Sequence[Extractor], real: ImageSet) -> None:
    """Raise InputError for a --count that the features' distance cannot be taken of, before anything is drawn."""
    for extractor in extractors:
        width = encode_pixels(extractor, real.pixels[:1]).shape[1]
        with blame_flag("--count"):
            check_enough_rows(np.empty((count, width)))


# ---- distances


def measure_distances(
    options: ScoreOptions,
    extractors: Sequence[Extractor],
    real: ImageSet,
    unseen: ImageSet,
    drawn: Tensor,
    seed: int,
) -> list[DistanceRow]:
    """The drawn pictures against real ones; and against the same other real ones, as many where there are as many.

    Raises InputError where there are too few drawn ones for the features.
    """
    order = rng.permutation(len(real), seed, "score")
    base_rows, others = order[: options.count], order[options.count : 2 * options.count]
    base = [encode_pixels(extractor, real.pixels[base_rows]) for extractor in extractors]
    found = [distance_row(options, "drawn", base, [encode_pixels(extractor, drawn) for extractor in extractors])]
    for name, pixels in (("real, others", real.pixels[others]), ("real, held out", unseen.pixels)):
        try:
            found.append(distance_row(options, name, base, [encode_pixels(extractor, pixels) for extractor in extractors]))
        except InputError as error:  # a small set: the drawn pictures are measured all the same
            print(f"note:      no floor: {error.what}")
    return found


def encode_pixels(extractor: Extractor, pixels: Tensor) -> np.ndarray:
    """(n, d) features of uint8 pictures; (0, 0) of none."""
    return extract_features(extractor, [grids.to_image(picture) for picture in pixels], cache=False)


def distance_row(options: ScoreOptions, name: str, base: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> DistanceRow:
    try:
        if not len(found[0]):
            raise InputError("no pictures", allowed="1 or more")
        return DistanceRow(
            name,
            len(found[0]),
            frechet_distance(base[0], found[0]),
            frechet_distance(base[1], found[1]) if len(base) > 1 else None,
            kernel_distance(base[0], found[0]),
            precision_recall(base[0], found[0], k=options.k),
        )
    except InputError as error:
        fix = "Raise --count, or take --features of fewer dimensions."
        raise InputError(f"{name}: {error.what}", where="--count", allowed=error.allowed, fix=fix) from None


# ---- bits


def reverse_variance(options: ScoreOptions, model: Model) -> Variance:
    """The variance of the bound's reverse steps. Raises InputError for one that the network did not learn."""
    with blame_flag("--variance"):
        found = prediction.get_variance(options.variance or model.objective.variance)
        if found.high is not None and model.objective.variance != "learned-range":
            raise InputError("the network learned no variance", allowed=", ".join(prediction.FIXED_VARIANCES))
        return found


def measure_bits(
    options: ScoreOptions, model: Model, unseen: ImageSet, sigma: Variance
) -> tuple[dict[str, Interval], elbo.RateDistortion]:
    """Every term of the bound in bits per dimension, with intervals over pictures, and the rate/distortion curve."""
    some = unseen.taken(sorted(range(len(unseen)), key=unseen.hashes.__getitem__)[: options.bits])
    labels = some.labels.to(model.device) if some.labels is not None and model.classes else None
    x0 = to_float(some.pixels).to(model.device)
    own = samplers.seeded_noise(0, len(x0), model.shape, model.device)
    looks = elbo.iterate_terms(
        model.predict(labels, clip=options.clip),
        model.schedule,
        x0,
        own,
        sigma=sigma,
        decoder=elbo.discretised,
    )
    columns = zip(*tqdm(looks, "bits per dimension", model.schedule.steps, unit="step", leave=False), strict=True)
    steps, x0_mse, eps_mse = (torch.stack(column, dim=1).cpu().double() for column in columns)
    terms = elbo.ElboTerms(elbo.prior_term(model.schedule, x0).cpu().double(), steps, x0_mse, eps_mse)
    parts = {
        "whole bound": terms.total,
        "rate, L_1 + ... + L_T": terms.rate,
        "distortion, L_0": terms.decoder,
        "L_T": terms.prior,
    }
    return {name: mean_interval(values.numpy()) for name, values in parts.items()}, elbo.rate_distortion(terms)


def mean_interval(values: np.ndarray) -> Interval:
    """The mean over pictures with its 95 % interval (Student's t)."""
    return paired_difference(Losses(values[:, None]), Losses(np.zeros((len(values), 1))))


# ---- a classifier


def accuracies(
    judge: SmallNet | None,
    model: Model,
    real: ImageSet,
    unseen: ImageSet,
    drawn: Tensor,
    labels: Tensor | None,
    seed: int,
    why: list[str],
) -> dict[str, Accuracy]:
    """What a classifier knows of held-out real pictures after learning from drawn ones alone, or from real ones."""
    if judge is None or labels is None:
        missing = "the set has no classes" if judge is None else "the network was told no classes"
        why.append(f"no classifier was trained on drawn pictures: {missing}")
        return {}
    assert unseen.labels is not None and real.labels is not None
    x, y = to_float(unseen.pixels), unseen.labels
    same = real.at_most(len(drawn), seed)
    assert same.labels is not None
    pupil = train_classifier(to_float(drawn), labels.cpu(), len(model.classes), seed=seed)
    peer = train_classifier(to_float(same.pixels), same.labels, len(model.classes), seed=seed)
    return {
        f"{len(drawn)} drawn pictures": measure_accuracy(pupil, x, y),
        f"{len(same)} real pictures": measure_accuracy(peer, x, y),
        f"all {len(real)} real pictures": measure_accuracy(judge, x, y),
    }


# ---- what was found


COLUMNS = ("pictures", "n", "FD", "sFD", "KID", "precision", "recall", "density", "coverage")


def distance_table(score: Score) -> list[tuple[Any, ...]]:
    return [
        (
            each.name,
            each.pictures,
            round(each.frechet, 3),
            None if each.spatial is None else round(each.spatial, 3),
            str(each.kernel),
            *(round(value, 3) for value in asdict(each.manifold).values()),
        )
        for each in score.rows
    ]


def format_score(score: Score) -> list[str]:
    """The numbers as text."""
    shown = [COLUMNS, *distance_table(score)]
    widths = [max(len(str(line[column])) for line in shown) for column in range(len(COLUMNS))]
    found = ["", f"features:  {score.features}"]
    found += ["  ".join(str(cell).ljust(width) for cell, width in zip(line, widths, strict=True)) for line in shown]
    found += [f"{name}: {each.mean:.4f} bits/dim ({each.bounds})" for name, each in score.bits.items()]
    found += [f"classifier that learnt from {name}: {each}" for name, each in score.learnt.items()]
    return found + [f"note: {reason}" for reason in score.why]


def published_table() -> tuple[list[str], list[list[str | None]]]:
    """Head and rows of the published table. Source: Dhariwal & Nichol 2021, arXiv 2105.05233, table 5."""
    head, *rows = csv.reader(PUBLISHED.read_text(encoding="utf-8").splitlines())
    return head, [[cell or None for cell in line] for line in rows]


def write_score(score: Score, out: Path, drawn: Tensor) -> None:
    """score.json and score.html."""
    facts = asdict(score)
    if score.curve is not None:
        facts["curve"] = {"rate": score.curve.rate.tolist(), "rmse": score.curve.rmse.tolist()}
    write_atomic(out / "score.json", json.dumps(facts, indent=1) + "\n")
    page = Page(f"Score of {score.run}", f"features: {score.features}")
    page.section("Distances").text(NOT_INCEPTION).table(COLUMNS, distance_table(score))
    page.strip([(grids.image_grid(drawn[:60], 12).convert("RGB"), "the first drawn pictures")], columns=1, width=600)
    if score.bits:
        page.section("Bits per dimension")
        rows = [(name, each.mean, each.bounds) for name, each in score.bits.items()]
        page.table(("part of the bound", "bits/dim", "95 % interval over pictures"), rows)
    if score.curve is not None:
        rate, rmse = score.curve.rate.tolist(), score.curve.rmse.tolist()
        page.curve(Series("held out", rate, rmse), x="bits/dim sent", y="RMSE of 255", title="Rate and distortion")
    if score.learnt:
        page.section("A classifier that never saw a real picture")
        shares = [(name, str(each)) for name, each in score.learnt.items()]
        page.table(("learnt from", "accuracy on held-out real pictures"), shares)
    for reason in score.why:
        page.note(reason)
    head, published = published_table()
    page.section("Published").text("In Inception features, 50,000 drawn pictures. Dhariwal & Nichol 2021, table 5.")
    page.table(head, published)
    page.write(out / "score.html")
