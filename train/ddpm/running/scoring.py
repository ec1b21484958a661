"""What score.py measures: bits per dimension with every term, distances in named features, a classifier's accuracy."""

from __future__ import annotations

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

from data import seeds
from data.errors import InputError
from data.features import Extractor, features, make
from data.files import write_atomic
from data.metrics.frechet import frechet, refuse_few
from data.metrics.kernel import KernelDistance, kernel_distance
from data.metrics.manifold import Manifold, manifold
from data.page import Page, Series
from data.sets.load import load
from data.sets.pictures import Pictures, levels, unit
from train.ddpm import bound, decoders, noise, variance
from train.ddpm.running import classifier, drawing
from train.ddpm.running.classifier import Accuracy, ClassifierFeatures, SmallNet
from train.ddpm.running.flags import about
from train.ddpm.running.model import Model
from train.ddpm.running.score_options import ScoreOptions
from train.ddpm.running.using import config_of, open_model, sampler_of
from train.ddpm.variance import Variance
from train.validation import Interval, Losses, paired_difference

LECTURE = Path(__file__).parents[3] / "data" / "metrics" / "lecture.csv"
NOT_INCEPTION = """Distances are in the features that are named: not Inception's, so they cannot be compared with the
published FIDs below, only with the real rows and with other runs in the same features and as many pictures. The real
rows are what two sets of real pictures are apart: the floor. Fewer pictures (n) make a Frechet distance larger."""


@dataclass(frozen=True)
class Row:
    """One set of pictures against real ones of the training side."""

    name: str
    pictures: int
    frechet: float
    spatial: float | None
    kernel: KernelDistance
    manifold: Manifold


@dataclass(frozen=True)
class Score:
    """All that was measured; None where it could not be, and `why` says why."""

    run: str
    features: str
    rows: list[Row]
    bits: dict[str, Interval]
    curve: bound.Curve | None
    learnt: dict[str, Accuracy]
    why: list[str]


def run(options: ScoreOptions) -> int:
    """Draw, measure, write score.html and score.json; returns the exit code."""
    folder, model = open_model(options)
    sampler, sigma = sampler_of(options, model), sigma_of(options, model)
    config = config_of(folder)
    pictures = load(config.data, seed=config.seed)
    real, unseen = pictures.split(config.data.held_out, config.seed)
    why = [] if len(unseen) else ["the run held no pictures out: bits and the floor are of training pictures"]
    unseen = unseen if len(unseen) else real
    judge = classifier.trained_on(real, seed=config.seed) if usable_classes(real) else None
    extractors = extractors_of(options, judge, real)
    refuse_too_few(options.count, extractors, real)
    labels = model.labels_of([], options.count, "--count")
    drawn = levels(
        drawing.draw(
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
    rows = compare(options, extractors, real, unseen, drawn, config.seed)
    bits, curve = measure_bits(options, model, unseen, sigma) if options.bits else ({}, None)
    learnt = accuracies(judge, model, real, unseen, drawn, labels, config.seed, why)
    name = f"{extractors[0].name} {extractors[0].version}"
    score = Score(folder.name, name, rows, bits, curve, learnt, why)
    out = options.out or folder / "score"
    write(score, out, drawn)
    print("\n".join(lines(score)))
    print(f"report:    {out / 'score.html'}")
    return 0


def usable_classes(pictures: Pictures) -> bool:
    """Whether every picture has a class, and there are two."""
    return pictures.labels is not None and len(pictures.classes) > 1 and not bool((pictures.labels < 0).any())


def extractors_of(options: ScoreOptions, judge: SmallNet | None, real: Pictures) -> list[Extractor]:
    """The features asked for; those of the classifier come with its spatial ones. Raises InputError."""
    wanted = options.features
    if wanted == "auto":
        wanted = "classifier" if judge is not None else "descriptors"
    if wanted != "classifier":
        return [make(wanted, options.features_folder)]
    if judge is None:
        what = "the pictures have no classes to make a classifier of"
        raise InputError(what, where="--features", allowed="pixels, descriptors, clip, dinov2")
    plain = [ClassifierFeatures(judge, real.channels, spatial=spatial) for spatial in (False, True)]
    return [extractor.scaled_to(real) for extractor in plain]


def refuse_too_few(count: int, extractors: Sequence[Extractor], real: Pictures) -> None:
    """Raise InputError for a --count that the features' distance cannot be taken of, before anything is drawn."""
    for extractor in extractors:
        width = encoded(extractor, real.pixels[:1]).shape[1]
        with about("--count"):
            refuse_few(np.empty((count, width)))


# ---- distances


def compare(
    options: ScoreOptions,
    extractors: Sequence[Extractor],
    real: Pictures,
    unseen: Pictures,
    drawn: Tensor,
    seed: int,
) -> list[Row]:
    """The drawn pictures against real ones; and against the same other real ones, as many where there are as many.

    Raises InputError where there are too few drawn ones for the features.
    """
    order = seeds.permutation(len(real), seed, "score")
    base_rows, others = order[: options.count], order[options.count : 2 * options.count]
    base = [encoded(extractor, real.pixels[base_rows]) for extractor in extractors]
    found = [row(options, "drawn", base, [encoded(extractor, drawn) for extractor in extractors])]
    for name, pixels in (("real, others", real.pixels[others]), ("real, held out", unseen.pixels)):
        try:
            found.append(row(options, name, base, [encoded(extractor, pixels) for extractor in extractors]))
        except InputError as error:  # a small set: the drawn pictures are measured all the same
            print(f"note:      no floor: {error.what}")
    return found


def encoded(extractor: Extractor, pixels: Tensor) -> np.ndarray:
    """(n, d) features of uint8 pictures; (0, 0) of none."""
    return features(extractor, [drawing.to_image(picture) for picture in pixels], cache=False)


def row(options: ScoreOptions, name: str, base: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> Row:
    try:
        if not len(found[0]):
            raise InputError("no pictures", allowed="1 or more")
        return Row(
            name,
            len(found[0]),
            frechet(base[0], found[0]),
            frechet(base[1], found[1]) if len(base) > 1 else None,
            kernel_distance(base[0], found[0]),
            manifold(base[0], found[0], k=options.k),
        )
    except InputError as error:
        fix = "Raise --count, or take --features of fewer dimensions."
        raise InputError(f"{name}: {error.what}", where="--count", allowed=error.allowed, fix=fix) from None


# ---- bits


def sigma_of(options: ScoreOptions, model: Model) -> Variance:
    """The variance of the bound's reverse steps. Raises InputError for one that the network did not learn."""
    with about("--variance"):
        found = variance.named(options.variance or model.objective.variance)
        if found.high is not None and model.objective.variance != "learned-range":
            raise InputError("the network learned no variance", allowed=", ".join(variance.FIXED))
        return found


def measure_bits(
    options: ScoreOptions, model: Model, unseen: Pictures, sigma: Variance
) -> tuple[dict[str, Interval], bound.Curve]:
    """Every term of the bound in bits per dimension, with intervals over pictures, and the rate/distortion curve."""
    some = unseen.taken(sorted(range(len(unseen)), key=unseen.hashes.__getitem__)[: options.bits])
    labels = some.labels.to(model.device) if some.labels is not None and model.classes else None
    x0 = unit(some.pixels).to(model.device)
    own = noise.seeded(0, len(x0), model.shape, model.device)
    looks = bound.each_step(
        model.predict(labels, clip=options.clip),
        model.schedule,
        x0,
        own,
        sigma=sigma,
        decoder=decoders.discretised,
    )
    columns = zip(*tqdm(looks, "bits per dimension", model.schedule.steps, unit="step", leave=False), strict=True)
    steps, x0_mse, eps_mse = (torch.stack(column, dim=1).cpu().double() for column in columns)
    terms = bound.Terms(bound.prior_term(model.schedule, x0).cpu().double(), steps, x0_mse, eps_mse)
    parts = {
        "whole bound": terms.total,
        "rate, L_1 + ... + L_T": terms.rate,
        "distortion, L_0": terms.decoder,
        "L_T": terms.prior,
    }
    return {name: interval(values.numpy()) for name, values in parts.items()}, bound.rate_distortion(terms)


def interval(values: np.ndarray) -> Interval:
    """The mean over pictures with its 95 % interval (Student's t)."""
    return paired_difference(Losses(values[:, None]), Losses(np.zeros((len(values), 1))))


# ---- a classifier


def accuracies(
    judge: SmallNet | None,
    model: Model,
    real: Pictures,
    unseen: Pictures,
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
    x, y = unit(unseen.pixels), unseen.labels
    same = real.at_most(len(drawn), seed)
    assert same.labels is not None
    pupil = classifier.train(unit(drawn), labels.cpu(), len(model.classes), seed=seed)
    peer = classifier.train(unit(same.pixels), same.labels, len(model.classes), seed=seed)
    return {
        f"{len(drawn)} drawn pictures": classifier.accuracy(pupil, x, y),
        f"{len(same)} real pictures": classifier.accuracy(peer, x, y),
        f"all {len(real)} real pictures": classifier.accuracy(judge, x, y),
    }


# ---- what was found


HEAD = ("pictures", "n", "FD", "sFD", "KID", "precision", "recall", "density", "coverage")


def table(score: Score) -> list[tuple[Any, ...]]:
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


def lines(score: Score) -> list[str]:
    """The numbers as text."""
    shown = [HEAD, *table(score)]
    widths = [max(len(str(line[column])) for line in shown) for column in range(len(HEAD))]
    found = ["", f"features:  {score.features}"]
    found += ["  ".join(str(cell).ljust(width) for cell, width in zip(line, widths, strict=True)) for line in shown]
    found += [f"{name}: {each.mean:.4f} bits/dim ({each.bounds})" for name, each in score.bits.items()]
    found += [f"classifier that learnt from {name}: {each}" for name, each in score.learnt.items()]
    return found + [f"note: {reason}" for reason in score.why]


def lecture() -> tuple[list[str], list[list[str | None]]]:
    """Head and rows of the published table. Source: Dhariwal & Nichol 2021, arXiv 2105.05233, table 5."""
    head, *rows = csv.reader(LECTURE.read_text(encoding="utf-8").splitlines())
    return head, [[cell or None for cell in line] for line in rows]


def write(score: Score, out: Path, drawn: Tensor) -> None:
    """score.json and score.html."""
    facts = asdict(score)
    if score.curve is not None:
        facts["curve"] = {"rate": score.curve.rate.tolist(), "rmse": score.curve.rmse.tolist()}
    write_atomic(out / "score.json", json.dumps(facts, indent=1) + "\n")
    page = Page(f"Score of {score.run}", f"features: {score.features}")
    page.section("Distances").text(NOT_INCEPTION).table(HEAD, table(score))
    page.strip([(drawing.grid(drawn[:60], 12).convert("RGB"), "the first drawn pictures")], columns=1, width=600)
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
    head, published = lecture()
    page.section("Published").text("In Inception features, 50,000 drawn pictures. Dhariwal & Nichol 2021, table 5.")
    page.table(head, published)
    page.write(out / "score.html")
