"""The figures of docs/ddpm.md that need no trained network: closed forms against this library's results."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from data import rng, sample_set
from data.atomic_io import write_atomic
from data.errors import InputError
from tests import analytic, gaussian_data
from train.ddpm import diffusion, prediction, samplers
from train.ddpm import schedule as schedules
from train.ddpm.elbo import bits_per_dim, log_density, rate_distortion
from train.ddpm.image_sets import from_images, to_float
from train.ddpm.samplers import SeededNoise
from train.ddpm.schedule import Schedule

LIMIT = 200 << 10  # maximum bytes of a figure
INK, FAINT = "#222222", "#c8c8c8"
BLUE, ORANGE, GREEN, PINK, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#5e4fa2"  # colour-blind safe
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.titlepad": 10.0,
    "legend.frameon": False,
    "figure.dpi": 130,
    "mathtext.fontset": "dejavusans",
}
F64 = torch.float64


def save(figure: Figure, path: Path) -> None:
    """Write a figure atomically. Raises InputError if it exceeds LIMIT."""
    drawn = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(drawn, format="png", metadata={"Software": None})
    with Image.open(drawn) as image:
        content = encode(image.convert("RGB"), 256)
    check_limit(len(content), path)
    write_atomic(path, content)


def save_image(image: Image.Image, path: Path, width: int = 0) -> None:
    """Save at most `width` pixels wide, with as many colours as LIMIT allows. Raises InputError."""
    if 0 < width < image.width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    content = b""
    for colours in (256, 128, 64, 32, 16):
        content = encode(image, colours)
        if len(content) <= LIMIT:
            break
    check_limit(len(content), path)
    write_atomic(path, content)


def encode(image: Image.Image, colours: int) -> bytes:
    """A palette PNG."""
    content = io.BytesIO()
    few = image.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(content, "PNG", optimize=True)
    return content.getvalue()


def check_limit(size: int, where: Path) -> None:
    if size > LIMIT:
        raise InputError(f"{size} bytes", where=where, allowed=f"{LIMIT} bytes")


def canvas(width: float, height: float, columns: int = 1, rows: int = 1, **shares: Any) -> tuple[Figure, list[Axes]]:
    """An empty figure, size in inches, and its axes row by row. shares: width_ratios."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **shares)
    return figure, list(axes.flat)


styled = rc_context(STYLE)  # decorates plot functions: STYLE instead of the user's matplotlib settings


# ---- the ELBO identity: data ~ N(0, 1)


RUNS = {"linear": INK, "scaled_linear": BLUE, "sigmoid": GREEN, "cosine": ORANGE, "cosine_capped": PINK}
LENGTHS = {1: "D", 10: "s", 50: "^", 1000: "o"}  # T and its marker
ENTROPY = math.log2(2 * math.pi * math.e) / 2  # of N(0, 1), in bits


@styled
def elbo() -> Figure:
    """The bound of N(0, 1) data under the exact denoiser: all schedules and lengths follow one curve to one sum.

    Once x_t is known, L_T + ... + L_t bits were sent, which must equal the information I(x_0; x_t) = log2(1 + SNR) / 2.
    L_0 is the rest of the entropy.
    """
    figure, (left, right) = canvas(8.6, 3.9, columns=2, width_ratios=(5, 4))
    log_snr = torch.linspace(-10.5, 10.5, 200, dtype=F64)
    left.plot(log_snr, torch.log1p(log_snr.exp()) / math.log(4), color=FAINT, linewidth=5, solid_capstyle="round")
    left.axhline(ENTROPY, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    left.text(-11.6, ENTROPY + 0.1, "½ log₂(2πe), the entropy", fontsize=8)
    left.text(7.6, 3.6, "$L_0$", ha="right")
    left.text(1.2, 0.25, "½ log₂(1 + SNR)", color="#888888")
    for column, (name, colour) in enumerate(RUNS.items()):
        for row, (T, marker) in enumerate(LENGTHS.items()):
            schedule = schedules.make_schedule(name, T)
            rate, total = identity(schedule)
            kept = slice(None, None, max(1, T // 25))
            x, y = schedule.log_snr.flip(0), rate
            left.plot(
                x[kept], y[kept], marker, color=colour, markersize=3.6, markerfacecolor="white", markeredgewidth=1
            )
            left.plot([float(x[-1])] * 2, [float(y[-1]), ENTROPY], color=colour, linewidth=0.7)
            right.text(row, -column, f"{abs(total - ENTROPY):.0e}".replace("0e+00", "0"), ha="center", va="center")
    for T, marker in LENGTHS.items():
        left.plot([], [], marker, color=INK, markersize=4, markerfacecolor="white", label=f"T = {T}")
    left.legend(loc="upper left", bbox_to_anchor=(0.0, 0.95))
    left.set(xlabel=r"log SNR of $x_t$", ylabel="bits per dimension until $x_t$ is known")
    left.set(xlim=(-12, 11), ylim=(-0.25, 7.6))
    left.set_title("Every schedule walks one curve …")
    table_of_errors(right)
    return figure


def table_of_errors(axes: Axes) -> None:
    """Headers and frame of the table on the right of `elbo`."""
    for column, (name, colour) in enumerate(RUNS.items()):
        axes.text(-0.75, -column, name, ha="right", va="center", color=colour, fontweight="bold")
    for row, T in enumerate(LENGTHS):
        axes.text(row, 0.9, str(T) if row else "T = 1", ha="center", va="center")
    axes.axhline(0.5, xmin=0.02, xmax=0.98, color=FAINT, linewidth=0.8)
    axes.text(1.0, -5.3, "distance of $L_T + … + L_0$ from\n2.047095585181 bits", ha="center", va="center")
    axes.set(xlim=(-3.1, 3.6), ylim=(-6.2, 1.4))
    axes.set_axis_off()
    axes.set_title("… to one sum")


def identity(schedule: Schedule) -> tuple[Tensor, float]:
    """Bits until x_t is known, t = T ... 1, and the whole bound: elbo.py with the exact denoiser of N(0, 1).

    Expectations over x_0 and eps by two-point Gauss-Hermite quadrature, exact for terms of second degree.
    """
    predict, sigma = analytic.gaussian_denoiser(schedule), prediction.get_variance("beta")
    terms = bits_per_dim(
        predict, schedule, gaussian_data.DATA, gaussian_data.quadrature_noise, sigma=sigma, decoder=log_density
    )
    return rate_distortion(terms)[0], terms.total.mean().item()


# ---- the collapse of few-step sampling with the large variance

STEPS = (2, 3, 5, 7, 10, 14, 20, 30, 50, 70, 100, 140, 200, 300, 500, 700, 1000)
MEASURED = (3, 5, 10, 20, 50, 100, 300, 1000)
KINDS = {"fixed-large": ORANGE, "fixed-small": BLUE, "ddim": GREEN}
FID = {  # of one CIFAR-10 model. Source: Song et al. 2021, arXiv 2010.02502, table 1
    "fixed-large": ((10, 367.43), (20, 133.37), (50, 32.72), (100, 9.99), (1000, 3.17)),
    "fixed-small": ((10, 41.07), (20, 18.36), (50, 8.01), (100, 5.78), (1000, 4.73)),
    "ddim": ((10, 13.36), (20, 6.84), (50, 4.67), (100, 4.16), (1000, 4.04)),
}
STD = 0.1


@styled
def collapse() -> Figure:
    """Effect of few steps on the spread of samples, in closed form and measured, with published FIDs."""
    figure, (left, right) = canvas(8.6, 3.7, columns=2)
    schedule = schedules.linear(1000)
    for name, colour in KINDS.items():
        left.plot(STEPS, [closed_std(schedule, name, n) for n in STEPS], color=colour, linewidth=1.6, label=name)
        points = [measured_std(schedule, name, n) for n in MEASURED]
        left.plot(MEASURED, points, "o", color=colour, markersize=4.5, markerfacecolor="white", markeredgewidth=1.3)
        right.plot(*zip(*FID[name], strict=True), "o-", color=colour, linewidth=1.6, markersize=4.5)
    left.axhline(STD, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    left.text(2.1, STD * 1.05, "the data's", fontsize=8, va="bottom")
    left.plot([], [], "o", color=INK, markerfacecolor="white", markersize=4.5, label="measured")
    left.set(ylabel="standard deviation of samples", title="Exact denoiser of N(0, 0.1²), closed form")
    right.set(ylabel="FID", title="CIFAR-10, Song et al. 2021, table 1")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="steps")
        axes.set_xticks([2, 10, 100, 1000], labels=["2", "10", "100", "1000"])
        axes.grid(axis="y", color="#eeeeee")
    left.set_yticks([0.02, 0.05, 0.1, 0.2, 0.5], labels=["0.02", "0.05", "0.1", "0.2", "0.5"])
    right.set_yticks([3, 10, 30, 100, 300], labels=["3", "10", "30", "100", "300"])
    left.minorticks_off()
    right.minorticks_off()
    left.legend(loc="upper right")
    return figure


def closed_std(schedule: Schedule, name: str, count: int) -> float:
    """Closed-form standard deviation of samples of N(0, STD^2)."""
    chain = samplers.respace(schedule, count)
    if name == "ddim":
        return analytic.ddim_gain(chain, STD)
    return analytic.ancestral_std(chain, STD, prediction.get_variance(name))


def measured_std(schedule: Schedule, name: str, count: int, pixels: int = 20_000) -> float:
    """Measured standard deviation of `pixels` sampled values."""
    noise, predict = SeededNoise((0,), (1, 1, pixels), dtype=F64), analytic.gaussian_denoiser(schedule, std=STD)
    sampler = samplers.make_sampler(name, count=count)
    return samplers.generate(sampler, predict, schedule, noise.start(), noise).std().item()


# ---- order of convergence

SOLVERS = {
    "ddim": (GREEN, 1, 1),
    "heun": (PURPLE, 2, 2),
    "dpm++": (PINK, 2, 1),
}  # colour, order, network evaluations per step


@styled
def order() -> Figure:
    """Error of deterministic samplers against the probability flow, by number of network evaluations."""
    figure, (axes,) = canvas(6.2, 3.9)
    counts = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    for name, (colour, power, evaluations) in SOLVERS.items():
        errors = [flow_error(name, count) for count in counts]
        seen = [evaluations * count for count in counts]
        axes.plot(seen, errors, "o-", color=colour, markersize=3.5, linewidth=1.5)
        axes.text(seen[-1] * 1.1, errors[-1], f"{name}\norder {power}", color=colour, va="center", fontweight="bold")
        guide = [errors[-1] * (seen[-1] / n) ** power for n in seen]
        axes.plot(seen, guide, color=colour, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel="relative error of samples")
    axes.set_xticks([10, 30, 100, 300, 1000], labels=["10", "30", "100", "300", "1000"])
    axes.set_xlim(7, 3000)
    axes.minorticks_off()
    axes.grid(color="#eeeeee")
    axes.set_title("Twice the steps: half of DDIM's error, a quarter of the others'")
    return figure


def flow_error(name: str, count: int, std: float = 0.5) -> float:
    """Relative error of a sampler for N(0, std^2) against the probability flow, with even steps of log SNR."""
    schedule = analytic.even_in_log_snr(count, 16.0, -10.0)
    one = torch.ones(1, 1, 1, 1, dtype=F64)
    predict = analytic.gaussian_denoiser(schedule, std=std)
    # none of them uses noise
    gain = samplers.generate(samplers.make_sampler(name), predict, schedule, one, lambda *position: one)
    return abs(gain.item() / analytic.flow_gain(schedule, std) - 1)


# ---- schedules and the forward process


@styled
def schedule_curves() -> Figure:
    """Remaining signal and log signal-to-noise ratio of the named schedules."""
    figure, (left, right) = canvas(8.6, 3.3, columns=2)
    for name, colour in list(RUNS.items())[:4]:
        schedule = schedules.make_schedule(name, 1000)
        label = "scaled_linear = quadratic" if name == "scaled_linear" else name
        left.plot(schedule.alphas_cumprod, color=colour, linewidth=1.6, label=label)
        right.plot(schedule.log_snr, color=colour, linewidth=1.6)
    zero = schedules.zero_terminal_snr(schedules.make_schedule("scaled_linear", 1000))
    left.plot(zero.alphas_cumprod, color=BLUE, linewidth=1.1, linestyle=(0, (3, 2)), label="…at zero terminal SNR")
    right.plot(zero.log_snr[:-1], color=BLUE, linewidth=1.1, linestyle=(0, (3, 2)))
    left.set(xlabel="t", title=r"$\bar\alpha_t$, the share of the image in the variance of $x_t$")
    right.set(xlabel="t", ylim=(-14, 10), title=r"$\log\ \mathrm{SNR}(t)$")
    left.legend()
    return figure


STRIP = (0, 20, 60, 80, 100, 150, 250, 350, 500, 999)


@styled
def forward() -> Figure:
    """The forward process: one image at increasing t under two schedules."""
    rows = ("linear", "cosine")
    figure, axes = canvas(8.6, 1.95, columns=len(STRIP), rows=len(rows))
    image = to_float(from_images([sample_set.sample_image(404)]))[0]
    eps = rng.normal((3, 64, 64), "forward")
    for place, cell in enumerate(axes):
        row, column = divmod(place, len(STRIP))
        t = torch.tensor([STRIP[column]])
        xt = diffusion.add_noise(schedules.make_schedule(rows[row], 1000), image[None], eps[None], t)[0]
        cell.imshow(((xt.clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy(), interpolation="nearest")
        cell.set(xticks=[], yticks=[])
        cell.spines[:].set_visible(False)
        if row == 0:
            cell.set_title(f"t = {STRIP[column]}", loc="center", fontsize=8, pad=3)
        if column == 0:
            cell.set_ylabel(rows[row])
    return figure


# ---- with and without the added noise

ARROW = {"arrowstyle": "->", "color": INK, "linewidth": 0.8}
CENTRES = ((-0.8, 0.0), (0.6, 0.7), (0.5, -0.6))


@styled
def added_noise() -> Figure:
    """Points of a mixture: true, sampled by algorithm 2, the same without noise, and by DDIM."""
    figure, axes = canvas(8.6, 2.35, columns=4)
    centres = torch.tensor(CENTRES, dtype=F64).reshape(3, 2, 1, 1)
    mixture = analytic.Mixture(
        torch.tensor([0.5, 0.3, 0.2], dtype=F64), centres, torch.tensor([0.1, 0.2, 0.05], dtype=F64)
    )
    part = torch.multinomial(mixture.weights, 1500, replacement=True, generator=rng.generator("part"))
    true = centres[part] + mixture.stds[part].reshape(-1, 1, 1, 1) * rng.normal((1500, 2, 1, 1), "true").double()
    clouds = {"the data": true}
    clouds["algorithm 2"] = mixture_points(mixture, samplers.make_sampler("fixed-small", count=250))
    clouds["the same, z = 0 throughout"] = mixture_points(
        mixture, samplers.make_sampler("fixed-small", count=250, noise_scale=0.0)
    )
    clouds["DDIM, η = 0"] = mixture_points(mixture, samplers.make_sampler("ddim", count=250))
    for cell, (title, points), colour in zip(axes, clouds.items(), (INK, BLUE, ORANGE, GREEN), strict=True):
        cell.scatter(*points.reshape(-1, 2).T, s=3.0, color=colour, alpha=0.5, linewidths=0)
        if points.std(0).max() < 0.01:
            x, y = points.mean(0).flatten().tolist()
            cell.annotate(f"all {len(points)}", (x, y), (x, y - 0.5), ha="center", arrowprops=ARROW)
        cell.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), xticks=[], yticks=[], aspect="equal")
        cell.set_title(title, loc="center", fontsize=9, pad=4)
        cell.spines[:].set_visible(True)
        cell.spines[:].set_color(FAINT)
    return figure


def mixture_points(mixture: analytic.Mixture, sampler: samplers.Sampler, count: int = 1500) -> Tensor:
    """(count, 2, 1, 1) points that the sampler draws with the mixture's exact denoiser."""
    schedule, noise = schedules.linear(1000), SeededNoise((0,), (count, 2, 1, 1), dtype=F64)

    def each(*position: int | str) -> Tensor:
        return noise(*position)[0]

    return samplers.generate(sampler, mixture.denoiser(schedule), schedule, each("start"), each)


FIGURES: dict[str, Callable[[], Figure]] = {
    "elbo": elbo,
    "collapse": collapse,
    "order": order,
    "schedules": schedule_curves,
    "forward": forward,
    "noise": added_noise,
}
