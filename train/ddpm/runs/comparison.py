"""compare.py: trains the course's three networks and compares them on a common scale.

Their losses are not on one scale: one is an error of eps, two are errors of x_0 at evenly spaced amounts of noise.
Compared are the error of x_0 for the same images, noise and timesteps, and bits per dimension.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data import rng
from data.atomic_io import write_atomic
from data.errors import InputError
from data.reports.charts import Series
from data.reports.page import Page
from train.config import EmaOptions, OptimOptions
from train.ddpm import elbo, prediction, samplers
from train.ddpm.config import AnyNetwork, BasicUNetOptions, ObjectiveOptions, PlainUNetOptions, UNet2DOptions
from train.ddpm.image_sets import ImageSet, load_image_set, to_uint8
from train.ddpm.runs import report, trainer
from train.ddpm.runs.batches import measure_errors, spread_timesteps, validation_set
from train.ddpm.runs.config import CheckpointOptions, CompareOptions, FitConfig, PreviewOptions, ValidationOptions
from train.ddpm.runs.model import INFO_FILE, Model, blame_flag, build_corruption, build_schedule, load_model
from train.metrics import read_metrics
from train.run_folder import Run
from train.validation import Interval

NAMES = {"unet2d": "UNet2DModel", "basic": "BasicUNet", "plain": "BasicUNet without skips"}
NOISE_LEVELS, STRIP_IMAGES = 8, 4  # columns and images of a strip of predictions
SAMPLER_STEPS = {"unet2d": 100, "basic": 40, "plain": 40}
MEASUREMENT_FILE = "compared.json"  # in a run's folder
PARTS = ("little noise", "half", "much noise")  # thirds of the timesteps
COLUMNS = ("network", "parameters", "error of x_0", *PARTS, "bits/dim", "pictures/s")
LOSSES_EXPLAINED = """Not one scale: UNet2DModel's loss is the error of the noise at all timesteps, BasicUNet's that of
the image at evenly spaced amounts of noise. They do not say which network is better."""
SCALE_EXPLAINED = """Mean squared error of the predicted image, clipped to [-1, 1], for the same held-out images, noise
and timesteps. The bands are 95 % over seeds and images together."""

Grid = NDArray[np.float64]  # (seeds, images): the error of one network
Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Trained:
    """One network, trained from one seed. errors: (n, k) of x_0. bits: (n,) the whole bound, bits per dimension."""

    name: str
    seed: int
    run: Run
    model: Model
    errors: NDArray[np.float64]
    bits: NDArray[np.float64] | None


def compare(options: CompareOptions) -> int:
    """Train, measure, write compare.html and compare.json; returns the exit code."""
    with blame_flag("--schedule.zero-terminal-snr"):
        prediction.eps.check(build_schedule(options.schedule))  # UNet2DModel predicts noise
    images = load_image_set(options.data, seed=options.seed)
    _, unseen = images.split(options.data.held_out, options.seed)
    if len(unseen) < 2:
        raise InputError(f"{len(unseen)} held-out images", where="--data.held-out", allowed="a share that leaves 2")
    trained = [train_one(options, name, seed, unseen) for seed in range(options.seeds) for name in NAMES]
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    verdicts = list(build_verdicts(options, trained))
    curves = {"errors": error_curves(options, trained), "losses": loss_curves(trained)}
    table = comparison_table(trained)
    write_page(options, images.name, unseen, trained, verdicts, curves, table)
    facts = {
        "settings": options.model_dump(mode="json"),
        "table": [dict(zip(COLUMNS, row, strict=True)) for row in table],
        "names": NAMES,
        "curves": {name: [asdict(series) for series in some] for name, some in curves.items()},
        "verdicts": [{"claim": v.claim, "word": v.word, "difference": asdict(v.difference)} for v in verdicts],
    }
    write_atomic(options.out / "compare.json", json.dumps(facts, indent=1) + "\n")
    print("\n".join([*map(str, verdicts), f"report:    {options.out / 'compare.html'}"]))
    return 0


# ---- training and measuring


def course_config(options: CompareOptions, name: str, seed: int) -> FitConfig:
    """The course's settings of one network: UNet2DModel predicts the noise, the others the image from the mix."""
    networks: dict[str, AnyNetwork] = {
        "unet2d": UNet2DOptions(widths=options.widths),
        "basic": BasicUNetOptions(),
        "plain": PlainUNetOptions(),
    }
    mix = ObjectiveOptions(predicts="x0", corruption="mix", noise=options.noise)
    shared = {field: getattr(options, field) for field in ("data", "schedule", "learning_rate", "batch_size")}
    return FitConfig(
        network=networks[name],
        objective=ObjectiveOptions() if name == "unet2d" else mix,
        optim=OptimOptions(weight_decay=0.0),
        ema=EmaOptions(decay=0.98),
        looks=ValidationOptions(every=max(1, options.steps // 2), pictures=32, timesteps=4),
        drawings=PreviewOptions(every=0),
        checkpoints=CheckpointOptions(every=options.steps, keep=1),
        max_steps=options.steps,
        seed=options.seed + seed,
        threads=options.threads,
        runs=options.runs,
        run_name=f"ddpm-compare-{name}-{seed}",
        **shared,
    )


def train_one(options: CompareOptions, name: str, seed: int, unseen: ImageSet) -> Trained:
    """Train one network, or reuse a finished run, and measure it on images that no seed's training has seen."""
    print(f"---------- {NAMES[name]}, seed {seed}", flush=True)
    code, run = trainer.fit(course_config(options, name, seed), split_seed=options.seed)
    if code:
        raise KeyboardInterrupt  # training was stopped; finished runs are reused
    model = load_model(run.path)
    return Trained(name, seed, run, model, *measure_model(options, model, unseen, run))


def measure_model(options: CompareOptions, model: Model, unseen: ImageSet, run: Run) -> tuple[Grid, Grid | None]:
    """Errors at fixed noise and bits per dimension, stored in the run folder, so that they are measured once."""
    weights = json.loads((run.export / INFO_FILE).read_text(encoding="utf-8"))["sha256"]
    key = [weights, unseen.fingerprint, options.pictures, options.timesteps, options.bits]
    file = run.path / MEASUREMENT_FILE
    facts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if facts.get("key") != key:
        x0, labels = validation_set(unseen, options.pictures, model)
        timesteps = spread_timesteps(model.schedule.steps, options.timesteps)
        errors, bits = measure_errors(model, x0, labels, timesteps).values, None
        if options.bits:
            x0, sigma = x0[: options.bits], prediction.get_variance(model.info.objective.variance)
            noise, predict = (
                samplers.seeded_noise(0, len(x0), model.image_shape, model.device),
                model.denoiser(clip=True),
            )
            bits = elbo.bits_per_dim(predict, model.schedule, x0, noise, sigma=sigma, together=16).total.tolist()
        facts = {"key": key, "timesteps": timesteps, "x0": errors.tolist(), "bits": bits}
        write_atomic(file, json.dumps(facts) + "\n")
    return np.array(facts["x0"]), None if facts["bits"] is None else np.array(facts["bits"])


def errors_of(trained: Sequence[Trained], name: str) -> NDArray[np.float64]:
    """(seeds, images, timesteps) of one network."""
    return np.stack([each.errors for each in trained if each.name == name])


def thirds(trained: Sequence[Trained]) -> dict[str, slice]:
    """Thirds of the timesteps, those that are not empty."""
    count = trained[0].errors.shape[1]
    size = -(-count // 3)
    return {part: slice(n * size, (n + 1) * size) for n, part in enumerate(PARTS) if n * size < count}


# ---- verdicts: what may be concluded from paired errors


@dataclass(frozen=True)
class Verdict:
    """A claim and the interval of its difference; an interval below 0 supports the claim."""

    claim: str
    difference: Interval

    @property
    def word(self) -> str:
        if self.difference.high < 0:
            return "yes"
        return "no" if self.difference.low > 0 else "cannot tell"

    def __str__(self) -> str:
        return f"{self.claim} {self.word} ({self.difference.words})"


def bootstrap(
    statistic: Callable[[Rows, Rows], Any], shape: tuple[int, ...], *, resamples: int, seed: int
) -> tuple[Any, Any]:
    """Ends of the 95 % percentile interval of statistic(seeds, images), both resampled with replacement.

    The same seeds and images are used for every network, so differences are paired. A single seed stays as it is: the
    interval is then about images only. Source: Efron 1979; both axes: Owen 2007, arXiv 0712.1111.
    """
    random = np.random.default_rng(rng.seed_for(seed, "bootstrap"))
    samples = []
    for _ in range(resamples):
        rows, columns = (random.integers(0, size, size) for size in shape[:2])
        samples.append(statistic(rows, columns))
    low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    return low, high


def verdict(claim: str, statistic: Callable[[Rows, Rows], float], shape: tuple[int, ...], **options: int) -> Verdict:
    low, high = bootstrap(statistic, shape, **options)
    value = statistic(*(np.arange(size) for size in shape[:2]))
    return Verdict(claim, Interval(value, float(low), float(high)))


def compare_smaller(claim: str, one: Grid, other: Grid, **options: int) -> Verdict:
    """Whether the numbers of one network are smaller than another's, over the same seeds and images."""
    assert one.shape == other.shape
    gap = one - other
    return verdict(claim, lambda rows, columns: float(gap[np.ix_(rows, columns)].mean()), gap.shape, **options)


def course_verdicts(errors: dict[str, Grid], **options: int) -> Iterator[Verdict]:
    """The course's conclusions. errors: unet2d, basic and plain, over the same seeds and images."""
    unet2d, basic, plain = errors["unet2d"], errors["basic"], errors["plain"]
    assert unet2d.shape == basic.shape == plain.shape

    def skips_matter_less(rows: Rows, columns: Rows) -> float:
        means = {name: grid[np.ix_(rows, columns)].mean() for name, grid in errors.items()}
        return float(abs(means["basic"] - means["plain"]) - abs(means["unet2d"] - means["basic"]))

    yield compare_smaller("UNet2DModel's errors of x_0 are smaller than BasicUNet's:", unet2d, basic, **options)
    yield compare_smaller("Skip connections make BasicUNet's errors smaller:", basic, plain, **options)
    claim = "Skips matter less than the choice between BasicUNet and UNet2DModel:"
    yield verdict(claim, skips_matter_less, basic.shape, **options)


def build_verdicts(options: CompareOptions, trained: Sequence[Trained]) -> Iterator[Verdict]:
    """The course's claims on the error of x_0 over all timesteps; by thirds of them; and on bits per dimension."""
    chosen = {"resamples": options.resamples, "seed": options.seed}
    errors = {name: errors_of(trained, name) for name in NAMES}
    yield from course_verdicts({name: each.mean(axis=2) for name, each in errors.items()}, **chosen)
    for part, timesteps in thirds(trained).items():
        unet2d, basic = (errors[name][:, :, timesteps].mean(axis=2) for name in ("unet2d", "basic"))
        claim = f"UNet2DModel's errors are smaller than BasicUNet's at {part}:"
        yield compare_smaller(claim, unet2d, basic, **chosen)
    if options.bits > 1:
        measured = [each for each in trained if each.bits is not None]
        bits = {name: np.stack([np.asarray(each.bits) for each in measured if each.name == name]) for name in NAMES}
        claim = "UNet2DModel needs fewer bits per dimension than BasicUNet:"
        yield compare_smaller(claim, bits["unet2d"], bits["basic"], **chosen)
        yield compare_smaller(
            "Skip connections save BasicUNet bits per dimension:", bits["basic"], bits["plain"], **chosen
        )


# ---- the page


def comparison_table(trained: Sequence[Trained]) -> list[tuple[Any, ...]]:
    """One row a network: means over seeds and images."""
    rows = []
    for name, label in NAMES.items():
        mine, errors, parts = [each for each in trained if each.name == name], errors_of(trained, name), thirds(trained)
        bits = [each.bits.mean() for each in mine if each.bits is not None]
        metrics = [line for each in mine for line in read_metrics(each.run.metrics)]
        speeds = [line["images_per_second"] for line in metrics if line.get("images_per_second")]
        rows.append(
            (
                label,
                sum(weight.numel() for weight in mine[0].model.network.parameters()),
                float(errors.mean()),
                *(float(errors[:, :, parts[part]].mean()) if part in parts else None for part in PARTS),
                float(np.mean(bits)) if bits else None,
                float(np.median(speeds)) if speeds else None,
            )
        )
    return rows


def write_page(
    options: CompareOptions,
    source: str,
    unseen: ImageSet,
    trained: Sequence[Trained],
    verdicts: Sequence[Verdict],
    curves: dict[str, list[Series]],
    table: Sequence[tuple[Any, ...]],
) -> None:
    """Verdicts, table, curves, strips and samples."""
    many = f"{options.seeds} seeds" if options.seeds > 1 else "one seed"
    page = Page("Three networks compared", f"{source}, {options.steps} steps of {options.batch_size}, {many}")
    for each in verdicts:
        page.note(str(each))
    if options.seeds < 5:
        page.text("With few seeds the intervals are about images, not about trainings: use --seeds 5.")
    page.table(COLUMNS, table)
    page.section("On a common scale").text(SCALE_EXPLAINED)
    page.curve(*curves["errors"], x="timestep", y="error of x_0", title="Error by timestep", log_y=True)
    page.section("Losses").text(LOSSES_EXPLAINED)
    page.curve(*curves["losses"], x="step", y="loss", title="Training loss of the first seed", log_y=True)
    first = [each for each in trained if each.seed == 0]
    page.section("Predictions at rising noise").text(f"{STRIP_IMAGES} held-out images: clean, corrupted, predicted.")
    for each in first:
        add_sheet(page, options, f"predictions-{each.name}", prediction_strip(each.model, unseen))
    page.section("Generated from noise").text("UNet2DModel by DDIM; the others by the course's naive sampler.")
    for each in first:
        name = "naive" if each.model.info.objective.corruption == "mix" else "ddim"
        sampler = samplers.make_sampler(name, count=min(SAMPLER_STEPS[each.name], each.model.schedule.steps))
        images = each.model.generate(sampler, options.drawn, seed=0, clip=True)
        add_sheet(page, options, f"samples-{each.name}", report.image_grid(to_uint8(images), 12))
    page.write(options.out / "compare.html")


def add_sheet(page: Page, options: CompareOptions, name: str, sheet: Image.Image) -> None:
    report.write_png(sheet, options.out / f"{name}.png")
    page.strip([(sheet.convert("RGB"), "")], title=NAMES[name.rpartition("-")[2]], columns=1, width=640)


def error_curves(options: CompareOptions, trained: Sequence[Trained]) -> list[Series]:
    """Error of x_0 by timestep, with the spread over seeds and images."""
    x, series = spread_timesteps(options.schedule.steps, options.timesteps), []
    for name, label in NAMES.items():
        values = errors_of(trained, name)

        def by_timestep(rows: Rows, columns: Rows, values: NDArray[np.float64] = values) -> NDArray[np.float64]:
            return values[np.ix_(rows, columns)].mean(axis=(0, 1))

        low, high = bootstrap(by_timestep, values.shape, resamples=options.resamples, seed=options.seed)
        series.append(Series(label, x, values.mean(axis=(0, 1)).tolist(), low.tolist(), high.tolist()))
    return series


def loss_curves(trained: Sequence[Trained]) -> list[Series]:
    """Running means of the training losses of the first seed."""
    losses = {each.name: report.column("loss", read_metrics(each.run.metrics)) for each in trained if each.seed == 0}
    return [Series(NAMES[name], each.x, report.centred_mean(each.y)) for name, each in losses.items() if each.y]


@torch.no_grad()
def prediction_strip(model: Model, unseen: ImageSet) -> Image.Image:
    """Held-out images at rising noise, and under each the prediction."""
    clean, _ = validation_set(unseen, STRIP_IMAGES, model)
    steps, schedule = spread_timesteps(model.schedule.steps, NOISE_LEVELS), model.schedule.to(model.device)
    objective = model.info.objective
    corrupt, predict = build_corruption(objective), model.denoiser(clip=True, corruption=objective.corruption)
    eps = samplers.seeded_noise(0, len(clean), model.image_shape, model.device)("strip")
    corrupted, predicted = [clean], [clean]
    for step in steps:
        t = torch.full((len(clean),), step, device=model.device)
        corrupted.append(corrupt(schedule, clean, eps, t))
        predicted.append(predict(corrupted[-1], t).x0)
    # (images, 2, columns, C, S, S): a row of corrupted and a row of predicted images for each
    rows = torch.stack([torch.stack(corrupted, dim=1), torch.stack(predicted, dim=1)], dim=1)
    return report.image_grid(to_uint8(rows.flatten(0, 2)), len(steps) + 1)
