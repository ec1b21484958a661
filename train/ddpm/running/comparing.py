"""What compare.py does: trains the course's three networks, and shows them beside one another on a common scale.

Their losses are not one scale: one is an error of eps, two are errors of x_0 at evenly spread amounts of noise. What is
compared is the error of x_0 for the same pictures, noise and timesteps, and bits per dimension.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.errors import InputError
from data.files import write_atomic
from data.page import Page, Series
from data.sets.load import load
from data.sets.pictures import Pictures, levels
from data.shapes import Images
from train.config import Averaging
from train.ddpm import bound, noise, prediction, samplers, variance
from train.ddpm.networks.kinds import AnyNetwork, Basic, Plain, Unet2d
from train.ddpm.running import drawing, errors, job, objective
from train.ddpm.running import model as models
from train.ddpm.running.compare_options import CompareOptions
from train.ddpm.running.config import Drawings, FitConfig, Keeping, Looks, ObjectiveOptions
from train.ddpm.running.errors import Errors, Side
from train.ddpm.running.flags import about
from train.ddpm.running.model import Model
from train.ddpm.running.smoothing import centred_mean
from train.ddpm.running.verdicts import Verdict, band, judge, smaller
from train.optim import OptimConfig
from train.report import read_metrics
from train.report_page import known
from train.run_folder import Run
from train.validation import Losses

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
    errors: Errors
    bits: Tensor | None  # (n,) the whole bound of each picture, bits per dimension


def run(options: CompareOptions) -> int:
    """Train, measure, write compare.html and compare.json; returns the exit code."""
    with about("--schedule.zero-terminal-snr"):
        prediction.eps.check(models.make_schedule(options.schedule))  # UNet2DModel predicts noise
    pictures = load(options.data, seed=options.seed)
    _, unseen = pictures.split(options.data.held_out, options.seed)
    if len(unseen) < 2:
        raise InputError(f"{len(unseen)} held-out pictures", where="--data.held-out", allowed="a share that leaves 2")
    trained = [one(options, name, seed, unseen) for seed in range(options.seeds) for name in NAMES]
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    verdicts = verdicts_of(options, trained)
    page = page_of(options, pictures, unseen, trained, verdicts)
    page.write(options.out / "compare.html")
    facts = {
        "settings": options.model_dump(mode="json"),
        "table": [dict(zip(HEAD, row, strict=True)) for row in table(trained)],
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


def config_of(options: CompareOptions, name: str, seed: int) -> FitConfig:
    """The course's settings of one network: UNet2DModel learns the noise, the others the picture out of the mix."""
    networks: dict[str, AnyNetwork] = {"unet2d": Unet2d(widths=options.widths), "basic": Basic(), "plain": Plain()}
    course = ObjectiveOptions(predicts="x0", corruption="mix", noise=options.noise)
    return FitConfig(
        data=options.data,
        network=networks[name],
        schedule=options.schedule,
        objective=ObjectiveOptions() if name == "unet2d" else course,
        optim=OptimConfig(weight_decay=0.0),
        ema=Averaging(decay=0.98),
        looks=Looks(every=max(1, options.steps // 2), pictures=32, timesteps=4),
        drawings=Drawings(every=0),
        checkpoints=Keeping(every=options.steps, keep=1),
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        max_steps=options.steps,
        seed=options.seed + seed,
        threads=options.threads,
        runs=options.runs,
        run_name=f"ddpm-compare-{name}-{seed}",
    )


def one(options: CompareOptions, name: str, seed: int, unseen: Pictures) -> Trained:
    """Train one network, or find it trained, and measure it on pictures that no seed's training has seen."""
    config = config_of(options, name, seed)
    print(f"---------- {NAMES[name]}, seed {seed}", flush=True)
    code, found = job.follow(config, held_out_by=options.seed)
    if code:
        raise KeyboardInterrupt  # it was asked to stop; what is trained is found again
    model = models.load(found.path)
    measured, bits = kept(found, key_of(options, found, unseen)) or measure(options, model, unseen)
    keep(found, key_of(options, found, unseen), measured, bits)
    return Trained(name, seed, found, model, measured, bits)


def measure(options: CompareOptions, model: Model, unseen: Pictures) -> tuple[Errors, Tensor | None]:
    """Errors at fixed noise, and bits per dimension."""
    side = errors.side_of(unseen, options.pictures, model)
    timesteps = errors.spread(model.schedule.steps, options.timesteps)
    return errors.measure(model, side, timesteps), bits_of(model, side, options.bits)


def key_of(options: CompareOptions, found: Run, unseen: Pictures) -> list[Any]:
    """What a measurement depends on."""
    weights = json.loads((found.export / models.FACTS).read_text(encoding="utf-8"))["sha256"]
    return [weights, unseen.fingerprint, options.pictures, options.timesteps, options.bits]


def keep(found: Run, key: list[Any], measured: Errors, bits: Tensor | None) -> None:
    """Write a measurement into the run's folder: a comparison that was stopped does not make it again."""
    facts = {
        "key": key,
        "timesteps": measured.timesteps,
        "x0": measured.x0.values.tolist(),
        "eps": measured.eps.values.tolist(),
        "bits": None if bits is None else bits.tolist(),
    }
    write_atomic(found.path / MEASURED, json.dumps(facts) + "\n")


def kept(found: Run, key: list[Any]) -> tuple[Errors, Tensor | None] | None:
    """The measurement that lies there, if it is of the same weights and pictures."""
    if not (found.path / MEASURED).is_file():
        return None
    facts = json.loads((found.path / MEASURED).read_text(encoding="utf-8"))
    if facts["key"] != key:
        return None
    x0, eps = (Losses(np.array(facts[name], np.float64)) for name in ("x0", "eps"))
    bits = None if facts["bits"] is None else torch.tensor(facts["bits"], dtype=torch.float64)
    return Errors(tuple(facts["timesteps"]), x0, eps), bits


def bits_of(model: Model, side: Side, count: int) -> Tensor | None:
    """(n,) the whole bound of `count` pictures at every timestep, with a picture kept within [-1, 1]."""
    if not count:
        return None
    x0 = side.x0[:count]
    own = noise.seeded(0, len(x0), model.shape, model.device)
    sigma = variance.named(model.objective.variance)
    return bound.total_bits(model.predict(clip=True), model.schedule, x0, own, sigma=sigma)


def verdicts_of(options: CompareOptions, trained: Sequence[Trained]) -> list[Verdict]:
    """The course's claims on the error of x_0 over all timesteps; by thirds of them; and on bits per dimension."""
    everywhere = {name: grid_of(trained, name, slice(None)) for name in NAMES}
    found = judge(everywhere, resamples=options.resamples, seed=options.seed)
    third = -(-len(trained[0].errors.timesteps) // 3)
    parts = {"little noise": slice(third), "half": slice(third, 2 * third), "much noise": slice(2 * third, None)}
    pairs = {
        f"UNet2DModel's errors are smaller than BasicUNet's at {words}:": [
            grid_of(trained, name, part) for name in ("unet2d", "basic")
        ]
        for words, part in parts.items()
        if trained[0].errors.timesteps[part]
    }
    if options.bits > 1:
        bits = [bits_grid(trained, name) for name in ("unet2d", "basic", "plain")]
        pairs["UNet2DModel needs fewer bits per dimension than BasicUNet:"] = bits[:2]
        pairs["Skip connections save BasicUNet bits per dimension:"] = bits[1:]
    return found + [
        smaller(claim, one, other, resamples=options.resamples, seed=options.seed)
        for claim, (one, other) in pairs.items()
    ]


def grid_of(trained: Sequence[Trained], name: str, timesteps: slice) -> np.ndarray:
    """(seeds, pictures) the error of x_0 of one network, over some of the timesteps."""
    return np.stack([each.errors.x0.values[:, timesteps].mean(axis=1) for each in trained if each.name == name])


def bits_grid(trained: Sequence[Trained], name: str) -> np.ndarray:
    """(seeds, pictures) the whole bound of one network."""
    return np.stack([each.bits.numpy() for each in trained if each.name == name and each.bits is not None])


# ---- the page

HEAD = ("network", "parameters", "error of x_0", "little noise", "half", "much noise", "bits/dim", "pictures/s")


def table(trained: Sequence[Trained]) -> list[tuple[Any, ...]]:
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


def page_of(
    options: CompareOptions,
    pictures: Pictures,
    unseen: Pictures,
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
    page.table(HEAD, table(trained))
    page.section("On a common scale").text(SCALE_EXPLAINED)
    page.curve(*common_scale(options, trained), x="timestep", y="error of x_0", title="Error by timestep", log_y=True)
    page.section("Losses").text(LOSSES_EXPLAINED)
    page.curve(*loss_curves(trained), x="step", y="loss", title="Training loss of the first seed", log_y=True)
    page.section("Predictions at rising noise").text(f"{STRIP} held-out pictures: clean, corrupted, predicted.")
    first = [each for each in trained if each.seed == 0]
    for each in first:
        strip = strip_of(each.model, unseen)
        drawing.png(strip, options.out / f"predictions-{each.name}.png")
        page.strip([(strip.convert("RGB"), "rows: corrupted, predicted")], title=NAMES[each.name], columns=1, width=640)
    page.section("Drawn from noise").text(
        "UNet2DModel by DDIM; the others by the course's steps towards the prediction."
    )
    for each in first:
        sheet = samples_of(each.model, each.name, options.drawn)
        drawing.png(sheet, options.out / f"samples-{each.name}.png")
        page.strip([(sheet.convert("RGB"), "")], title=NAMES[each.name], columns=1, width=640)
    return page


def common_scale(options: CompareOptions, trained: Sequence[Trained]) -> list[Series]:
    """Error of x_0 by timestep, with the spread over seeds and pictures."""
    series = []
    for name, words in NAMES.items():
        mine = [each for each in trained if each.name == name]
        values = np.stack([each.errors.x0.values for each in mine])  # (seeds, pictures, timesteps)
        low, high = band(values, resamples=options.resamples, seed=options.seed)
        times, mean = list(mine[0].errors.timesteps), values.mean(axis=(0, 1))
        series.append(Series(words, times, mean.tolist(), low.tolist(), high.tolist()))
    return series


def loss_curves(trained: Sequence[Trained]) -> list[Series]:
    """Running means of the training losses."""
    series = []
    for each in trained:
        lines = [line for line in read_metrics(each.run.metrics) if "loss" in line]
        if each.seed == 0 and lines:
            losses = [known(line["loss"]) for line in lines]
            series.append(Series(NAMES[each.name], [line["step"] for line in lines], centred_mean(losses)))
    return series


@torch.no_grad()
def strip_of(model: Model, unseen: Pictures) -> Any:
    """Held-out pictures at rising noise, and under each what the network takes it to be."""
    clean = errors.side_of(unseen, STRIP, model).x0
    steps = errors.spread(model.schedule.steps, AMOUNTS)
    schedule = model.schedule.to(model.device)
    corrupt = objective.corruption_of(model.objective)
    predict = model.predict_mix() if model.objective.corruption == "mix" else model.predict(clip=True)
    own = noise.seeded(0, len(clean), model.shape, model.device)
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
    return drawing.grid(levels(torch.cat(rows)), len(steps) + 1)


def samples_of(model: Model, name: str, count: int) -> Any:
    """Pictures drawn from noise: the naive sampler for the course's mix, DDIM else."""
    kind = "naive" if model.objective.corruption == "mix" else "ddim"
    sampler = samplers.make(kind, count=min(STEPS[name], model.schedule.steps))
    return drawing.grid(levels(drawing.draw(model, sampler, count, seed=0, clip=kind == "ddim")), 12)
