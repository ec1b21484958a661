"""What may be concluded from paired errors: bootstrap intervals over seeds and pictures, and what they allow to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
import numpy as np
from numpy.typing import NDArray
from data import rng
from train.validation import Interval
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
import numpy as np
import torch
from torch import Tensor
from data.errors import InputError
from data.atomic_io import write_atomic
from data.reports.page import Page
from data.reports.charts import Series
from train.ddpm.image_sets import load_image_set
from train.ddpm.image_sets import ImageSet
from train.ddpm.image_sets import to_uint8
from data.shapes import Images
from train.config import EmaOptions
from train.ddpm import prediction
from train.ddpm import samplers
from train.ddpm import elbo
from train.ddpm.unets.config import AnyNetwork
from train.ddpm.unets.config import BasicUNetOptions
from train.ddpm.unets.config import PlainUNetOptions
from train.ddpm.unets.config import UNet2DOptions
from train.ddpm.runs import grids
from train.ddpm.runs import validation
from train.ddpm.runs import trainer
from train.ddpm.runs import objective
from train.ddpm.runs import model as models
from train.ddpm.runs.config import CompareOptions
from train.ddpm.runs.config import PreviewOptions
from train.ddpm.runs.config import FitConfig
from train.ddpm.runs.config import CheckpointOptions
from train.ddpm.runs.config import ValidationOptions
from train.ddpm.runs.config import ObjectiveOptions
from train.ddpm.runs.validation import X0Errors
from train.ddpm.runs.validation import ValidationSet
from train.ddpm.runs.model import blame_flag
from train.ddpm.runs.model import Model
from train.ddpm.runs.report import centred_mean
from train.optim import OptimOptions
from train.metrics import read_metrics
from train.report import without_missing
from train.run_folder import Run
from train.validation import Losses

Grid = NDArray[np.float64]  # (seeds, pictures): the error of one network


@dataclass(frozen=True)
class Verdict:
    """A claim, whether the interval allows it, and the interval of the difference; below 0 speaks for the claim."""

    claim: str
    difference: Interval

    @property
    def word(self) -> str:
        if self.difference.high < 0:
            return "yes"
        return "no" if self.difference.low > 0 else "cannot tell"

    def __str__(self) -> str:
        return f"{self.claim} {self.word} ({self.difference.words})"


def bootstrap(statistic: Callable[[NDArray[np.intp], NDArray[np.intp]], float], shape: tuple[int, int], *,
              resamples: int, seed: int) -> Interval:  # fmt: skip
    """95 % percentile interval of statistic(rows, columns) over seeds and pictures, both drawn anew with repetition.

    The same seeds and pictures are taken for every network, so differences are paired. One seed alone is kept as it is:
    the interval is then about pictures only. Source: Efron 1979; both axes: Owen 2007, arXiv 0712.1111.
    """
    everything = np.arange(shape[0]), np.arange(shape[1])
    found = [statistic(rows, columns) for rows, columns in resampled(shape, resamples, seed)]
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(statistic(*everything), float(low), float(high))


def resampled(shape: tuple[int, int], resamples: int, seed: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Seeds and pictures, drawn with repetition, `resamples` times; the same for all who ask with one seed."""
    random = np.random.default_rng(rng.seed_for(seed, "bootstrap"))
    for _ in range(resamples):
        rows, columns = (random.integers(0, size, size) for size in shape)
        yield rows, columns


def interval_band(values: NDArray[np.float64], *, resamples: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ends of bootstrap()'s intervals for the means of k curves' points: (seeds, pictures, k) -> (k,) and (k,)."""
    shape = values.shape[0], values.shape[1]
    found = [values[np.ix_(rows, columns)].mean(axis=(0, 1)) for rows, columns in resampled(shape, resamples, seed)]
    low, high = np.percentile(found, [2.5, 97.5], axis=0)
    return low, high


def compare_smaller(claim: str, one: Grid, other: Grid, *, resamples: int, seed: int) -> Verdict:
    """Whether the numbers of one network are smaller than another's, over the same seeds and pictures."""
    assert one.shape == other.shape
    gap = one - other

    def mean(rows: NDArray[np.intp], columns: NDArray[np.intp]) -> float:
        return float(gap[np.ix_(rows, columns)].mean())

    return Verdict(claim, bootstrap(mean, (len(gap), len(gap[0])), resamples=resamples, seed=seed))


def course_verdicts(errors: dict[str, Grid], *, resamples: int, seed: int) -> list[Verdict]:
    """The course's two conclusions. errors: unet2d, basic and plain, over the same seeds and pictures."""
    unet2d, basic, plain = errors["unet2d"], errors["basic"], errors["plain"]
    assert unet2d.shape == basic.shape == plain.shape

    def mean(grid: Grid, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> float:
        return float(grid[np.ix_(rows, columns)].mean())

    def better(rows: NDArray[np.intp], columns: NDArray[np.intp]) -> float:
        return mean(unet2d, rows, columns) - mean(basic, rows, columns)

    def skips(rows: NDArray[np.intp], columns: NDArray[np.intp]) -> float:
        return mean(basic, rows, columns) - mean(plain, rows, columns)

    def less(rows: NDArray[np.intp], columns: NDArray[np.intp]) -> float:
        return abs(skips(rows, columns)) - abs(better(rows, columns))

    shape = (len(unet2d), len(unet2d[0]))
    claims = {
        "UNet2DModel's errors of x_0 are smaller than BasicUNet's:": better,
        "Skip connections make BasicUNet's errors smaller:": skips,
        "Skips matter less than the choice between BasicUNet and UNet2DModel:": less,
    }
    return [
        Verdict(claim, bootstrap(statistic, shape, resamples=resamples, seed=seed))
        for claim, statistic in claims.items()
    ]


NAMES = {"unet2d": "UNet2DModel", "basic": "BasicUNet", "plain": "BasicUNet without skips"}
AMOUNTS = 8  # of noise in a strip
STRIP = 4  # pictures of it
MEASURED = "compared.json"  # in a run's folder
STEPS = {"unet2d": 100, "basic": 40, "plain": 40}  # of its sampler
LOSSES_EXPLAINED = """Not one scale: UNet2DModel's loss is the error of the noise at all timesteps, BasicUNet's that of
the picture at evenly rising amounts of noise. They do not say which network is better."""
SCALE_EXPLAINED = """Mean squared error of the predicted picture, kept within [-1, 1], for the same held-out pictures,
noise and timesteps. The bands are 95 % over seeds and pictures together."""


@dataclass(frozen=True)
class Trained:
    """One network, trained from one seed."""

    name: str
    seed: int
    run: Run
    model: Model
    errors: X0Errors
    bits: Tensor | None  # (n,) the whole bound of each picture, bits per dimension


def compare(options: CompareOptions) -> int:
    """Train, measure, write compare.html and compare.json; returns the exit code."""
    with blame_flag("--schedule.zero-terminal-snr"):
        prediction.eps.check(models.build_schedule(options.schedule))  # UNet2DModel predicts noise
    pictures = load_image_set(options.data, seed=options.seed)
    _, unseen = pictures.split(options.data.held_out, options.seed)
    if len(unseen) < 2:
        raise InputError(f"{len(unseen)} held-out pictures", where="--data.held-out", allowed="a share that leaves 2")
    trained = [train_one(options, name, seed, unseen) for seed in range(options.seeds) for name in NAMES]
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    verdicts = build_verdicts(options, trained)
    page = comparison_page(options, pictures, unseen, trained, verdicts)
    page.write(options.out / "compare.html")
    facts = {
        "settings": options.model_dump(mode="json"),
        "table": [dict(zip(COLUMNS, row, strict=True)) for row in comparison_table(trained)],
        "names": NAMES,
        "curves": {
            "errors": [asdict(series) for series in common_scale(options, trained)],
            "losses": [asdict(series) for series in loss_curves(trained)],
        },
        "verdicts": [{"claim": v.claim, "word": v.word, "difference": asdict(v.difference)} for v in verdicts],
    }
    write_atomic(options.out / "compare.json", json.dumps(facts, indent=1) + "\n")
    print("\n".join([*map(str, verdicts), f"report:    {options.out / 'compare.html'}"]))
    return 0


# ---- training


def course_config(options: CompareOptions, name: str, seed: int) -> FitConfig:
    """The course's settings of one network: UNet2DModel learns the noise, the others the picture out of the mix."""
    networks: dict[str, AnyNetwork] = {"unet2d": UNet2DOptions(widths=options.widths), "basic": BasicUNetOptions(), "plain": PlainUNetOptions()}
    course = ObjectiveOptions(predicts="x0", corruption="mix", noise=options.noise)
    return FitConfig(
        data=options.data,
        network=networks[name],
        schedule=options.schedule,
        objective=ObjectiveOptions() if name == "unet2d" else course,
        optim=OptimOptions(weight_decay=0.0),
        ema=EmaOptions(decay=0.98),
        looks=ValidationOptions(every=max(1, options.steps // 2), pictures=32, timesteps=4),
        drawings=PreviewOptions(every=0),
        checkpoints=CheckpointOptions(every=options.steps, keep=1),
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        max_steps=options.steps,
        seed=options.seed + seed,
        threads=options.threads,
        runs=options.runs,
        run_name=f"ddpm-compare-{name}-{seed}",
    )


def train_one(options: CompareOptions, name: str, seed: int, unseen: ImageSet) -> Trained:
    """Train one network, or find it trained, and measure it on pictures that no seed's training has seen."""
    config = course_config(options, name, seed)
    print(f"---------- {NAMES[name]}, seed {seed}", flush=True)
    code, found = trainer.fit_or_resume(config, held_out_by=options.seed)
    if code:
        raise KeyboardInterrupt  # it was asked to stop; what is trained is found again
    model = models.load_model(found.path)
    measured, bits = stored_measurement(found, measurement_key(options, found, unseen)) or measure_model(options, model, unseen)
    store_measurement(found, measurement_key(options, found, unseen), measured, bits)
    return Trained(name, seed, found, model, measured, bits)


def measure_model(options: CompareOptions, model: Model, unseen: ImageSet) -> tuple[X0Errors, Tensor | None]:
    """Errors at fixed noise, and bits per dimension."""
    side = validation.validation_set(unseen, options.pictures, model)
    timesteps = validation.spread_timesteps(model.schedule.steps, options.timesteps)
    return validation.measure_errors(model, side, timesteps), measure_bits(model, side, options.bits)


def measurement_key(options: CompareOptions, found: Run, unseen: ImageSet) -> list[Any]:
    """What a measurement depends on."""
    weights = json.loads((found.export / models.FACTS).read_text(encoding="utf-8"))["sha256"]
    return [weights, unseen.fingerprint, options.pictures, options.timesteps, options.bits]


def store_measurement(found: Run, key: list[Any], measured: X0Errors, bits: Tensor | None) -> None:
    """Write a measurement into the run's folder: a comparison that was stopped does not make it again."""
    facts = {
        "key": key,
        "timesteps": measured.timesteps,
        "x0": measured.x0.values.tolist(),
        "eps": measured.eps.values.tolist(),
        "bits": None if bits is None else bits.tolist(),
    }
    write_atomic(found.path / MEASURED, json.dumps(facts) + "\n")


def stored_measurement(found: Run, key: list[Any]) -> tuple[X0Errors, Tensor | None] | None:
    """The measurement that lies there, if it is of the same weights and pictures."""
    if not (found.path / MEASURED).is_file():
        return None
    facts = json.loads((found.path / MEASURED).read_text(encoding="utf-8"))
    if facts["key"] != key:
        return None
    x0, eps = (Losses(np.array(facts[name], np.float64)) for name in ("x0", "eps"))
    bits = None if facts["bits"] is None else torch.tensor(facts["bits"], dtype=torch.float64)
    return X0Errors(tuple(facts["timesteps"]), x0, eps), bits


def measure_bits(model: Model, side: ValidationSet, count: int) -> Tensor | None:
    """(n,) the whole bound of `count` pictures at every timestep, with a picture kept within [-1, 1]."""
    if not count:
        return None
    x0 = side.x0[:count]
    own = samplers.seeded_noise(0, len(x0), model.shape, model.device)
    sigma = prediction.get_variance(model.objective.variance)
    return elbo.total_bits(model.predict(clip=True), model.schedule, x0, own, sigma=sigma)


def build_verdicts(options: CompareOptions, trained: Sequence[Trained]) -> list[Verdict]:
    """The course's claims on the error of x_0 over all timesteps; by thirds of them; and on bits per dimension."""
    everywhere = {name: error_grid(trained, name, slice(None)) for name in NAMES}
    found = course_verdicts(everywhere, resamples=options.resamples, seed=options.seed)
    third = -(-len(trained[0].errors.timesteps) // 3)
    parts = {"little noise": slice(third), "half": slice(third, 2 * third), "much noise": slice(2 * third, None)}
    pairs = {
        f"UNet2DModel's errors are smaller than BasicUNet's at {words}:": [
            error_grid(trained, name, part) for name in ("unet2d", "basic")
        ]
        for words, part in parts.items()
        if trained[0].errors.timesteps[part]
    }
    if options.bits > 1:
        bits = [bits_grid(trained, name) for name in ("unet2d", "basic", "plain")]
        pairs["UNet2DModel needs fewer bits per dimension than BasicUNet:"] = bits[:2]
        pairs["Skip connections save BasicUNet bits per dimension:"] = bits[1:]
    return found + [
        compare_smaller(claim, one, other, resamples=options.resamples, seed=options.seed)
        for claim, (one, other) in pairs.items()
    ]


def error_grid(trained: Sequence[Trained], name: str, timesteps: slice) -> np.ndarray:
    """(seeds, pictures) the error of x_0 of one network, over some of the timesteps."""
    return np.stack([each.errors.x0.values[:, timesteps].mean(axis=1) for each in trained if each.name == name])


def bits_grid(trained: Sequence[Trained], name: str) -> np.ndarray:
    """(seeds, pictures) the whole bound of one network."""
    return np.stack([each.bits.numpy() for each in trained if each.name == name and each.bits is not None])


# ---- the page

COLUMNS = ("network", "parameters", "error of x_0", "little noise", "half", "much noise", "bits/dim", "pictures/s")


def comparison_table(trained: Sequence[Trained]) -> list[tuple[Any, ...]]:
    """One row a network: means over seeds and pictures."""
    rows = []
    for name, words in NAMES.items():
        mine = [each for each in trained if each.name == name]
        by_time = np.mean([each.errors.x0.values.mean(axis=0) for each in mine], axis=0)
        third = -(-len(by_time) // 3)  # as in verdicts_of
        thirds = [float(by_time[start : start + third].mean()) for start in range(0, 3 * third, third)]
        bits = [float(each.bits.mean()) for each in mine if each.bits is not None]
        size = sum(weight.numel() for weight in mine[0].model.network.parameters())
        speeds = [line["images_per_second"] for each in mine for line in read_metrics(each.run.metrics)
                  if line.get("images_per_second")]  # fmt: skip
        rows.append(
            (
                words,
                size,
                float(by_time.mean()),
                *thirds,
                float(np.mean(bits)) if bits else None,
                float(np.median(speeds)) if speeds else None,
            )
        )
    return rows


def comparison_page(
    options: CompareOptions,
    pictures: ImageSet,
    unseen: ImageSet,
    trained: Sequence[Trained],
    verdicts: Sequence[Verdict],
) -> Page:
    """Verdicts, table, curves, strips and samples."""
    many = f"{options.seeds} seeds" if options.seeds > 1 else "one seed"
    page = Page("Three networks compared", f"{pictures.name}, {options.steps} steps of {options.batch_size}, {many}")
    for verdict in verdicts:
        page.note(str(verdict))
    if options.seeds < 5:
        page.text("With few seeds the intervals are about pictures, not about trainings: --seeds 5 says more.")
    page.table(COLUMNS, comparison_table(trained))
    page.section("On a common scale").text(SCALE_EXPLAINED)
    page.curve(*common_scale(options, trained), x="timestep", y="error of x_0", title="Error by timestep", log_y=True)
    page.section("Losses").text(LOSSES_EXPLAINED)
    page.curve(*loss_curves(trained), x="step", y="loss", title="Training loss of the first seed", log_y=True)
    page.section("Predictions at rising noise").text(f"{STRIP} held-out pictures: clean, corrupted, predicted.")
    first = [each for each in trained if each.seed == 0]
    for each in first:
        strip = prediction_strip(each.model, unseen)
        grids.write_png(strip, options.out / f"predictions-{each.name}.png")
        page.strip([(strip.convert("RGB"), "rows: corrupted, predicted")], title=NAMES[each.name], columns=1, width=640)
    page.section("Drawn from noise").text(
        "UNet2DModel by DDIM; the others by the course's steps towards the prediction."
    )
    for each in first:
        sheet = sample_sheet(each.model, each.name, options.drawn)
        grids.write_png(sheet, options.out / f"samples-{each.name}.png")
        page.strip([(sheet.convert("RGB"), "")], title=NAMES[each.name], columns=1, width=640)
    return page


def common_scale(options: CompareOptions, trained: Sequence[Trained]) -> list[Series]:
    """Error of x_0 by timestep, with the spread over seeds and pictures."""
    series = []
    for name, words in NAMES.items():
        mine = [each for each in trained if each.name == name]
        values = np.stack([each.errors.x0.values for each in mine])  # (seeds, pictures, timesteps)
        low, high = interval_band(values, resamples=options.resamples, seed=options.seed)
        times, mean = list(mine[0].errors.timesteps), values.mean(axis=(0, 1))
        series.append(Series(words, times, mean.tolist(), low.tolist(), high.tolist()))
    return series


def loss_curves(trained: Sequence[Trained]) -> list[Series]:
    """Running means of the training losses."""
    series = []
    for each in trained:
        lines = [line for line in read_metrics(each.run.metrics) if "loss" in line]
        if each.seed == 0 and lines:
            losses = [without_missing(line["loss"]) for line in lines]
            series.append(Series(NAMES[each.name], [line["step"] for line in lines], centred_mean(losses)))
    return series


@torch.no_grad()
def prediction_strip(model: Model, unseen: ImageSet) -> Any:
    """Held-out pictures at rising noise, and under each what the network takes it to be."""
    clean = validation.validation_set(unseen, STRIP, model).x0
    steps = validation.spread_timesteps(model.schedule.steps, AMOUNTS)
    schedule = model.schedule.to(model.device)
    corrupt = objective.build_corruption(model.objective)
    predict = model.predict_mix() if model.objective.corruption == "mix" else model.predict(clip=True)
    own = samplers.seeded_noise(0, len(clean), model.shape, model.device)
    corrupted, predicted = [clean], [clean]
    for step in steps:
        t = torch.full((len(clean),), step, device=model.device)
        eps = own("strip")
        xt = corrupt(schedule, clean, eps, t)
        corrupted.append(xt)
        predicted.append(predict(xt, t).x0)
    rows: list[Images] = []
    for place in range(len(clean)):
        rows += [torch.stack([column[place] for column in side]) for side in (corrupted, predicted)]
    return grids.image_grid(to_uint8(torch.cat(rows)), len(steps) + 1)


def sample_sheet(model: Model, name: str, count: int) -> Any:
    """Pictures drawn from noise: the naive sampler for the course's mix, DDIM else."""
    kind = "naive" if model.objective.corruption == "mix" else "ddim"
    sampler = samplers.make_sampler(kind, count=min(STEPS[name], model.schedule.steps))
    return grids.image_grid(to_uint8(grids.generate_images(model, sampler, count, seed=0, clip=kind == "ddim")), 12)
