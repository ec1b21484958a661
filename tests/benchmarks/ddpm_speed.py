"""How much faster a step of fit.py is than the tutorial's own loop, and by what. Ratios in one run.

python -m tests.benchmarks.ddpm_speed [--batch-size 32] [--rounds 3] [--threads 2] [--compile]

The plain loop is the annotated-diffusion tutorial's: its U-Net as published, float32 with contiguous memory, a
DataLoader of Pillow transforms, tables read by `extract` on the CPU, Adam that is not fused, and the loss read at every
step. Each line takes one thing away, and `gain` is what that brought; the last is ours, with clipping and the average
of the weights that the tutorial has not. Same pictures, batch, width, threads and device; the lines take turns. Seconds
of the process' own CPU time are printed as well: on a busy machine they are what can be compared.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from data.cli import parse
from tests import annotated_unet
from train import device
from train.ddpm.image_sets import ImageSet, to_float
from train.ddpm.runs import trainer
from train.ddpm.runs.config import CONFIGS, FitConfig
from train.ddpm.unets.convnext import AnnotatedUNet

Step = Callable[[], None]


@dataclass(frozen=True)
class Habits:
    """Which of the tutorial's habits a loop has."""

    name: str
    published_network: bool = True
    pillow: bool = True  # pictures go through Pillow one by one
    extract: bool = True  # tables are read on the CPU at every step
    contiguous: bool = True
    fused: bool = False
    reads_loss: bool = True


PLAIN = Habits("the tutorial's loop")
RESIDENT = replace(PLAIN, name="+ pictures resident as uint8", pillow=False)
TABLES = replace(RESIDENT, name="+ tables on the device", extract=False)
NETWORK = replace(TABLES, name="+ our U-Net, same width", published_network=False)
LAST = replace(NETWORK, name="+ channels-last", contiguous=False)
FUSED = replace(LAST, name="+ fused Adam", fused=True)
UNREAD = replace(FUSED, name="+ loss not read", reads_loss=False)
LINES = (PLAIN, RESIDENT, TABLES, NETWORK, LAST, FUSED, UNREAD)


class Transformed(Dataset[Tensor]):
    """What the tutorial's transforms do to a picture: maybe mirror it, to a tensor, to [-1, 1]."""

    def __init__(self, pictures: list[Image.Image]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Tensor:
        picture = self.pictures[index].convert("L")
        if torch.rand(1).item() < 0.5:
            picture = ImageOps.mirror(picture)
        values = torch.from_numpy(np.array(picture, np.uint8))[None].float().div(255)
        return values * 2 - 1


def pillow_batches(pictures: ImageSet, size: int) -> Iterator[Tensor]:
    loader = DataLoader(Transformed(pictures.images()), size, shuffle=True, drop_last=True)
    return (batch for _ in itertools.count() for batch in loader)


def resident_batches(pictures: ImageSet, size: int) -> Iterator[Tensor]:
    while True:
        yield to_float(pictures.pixels[torch.randint(0, len(pictures), (size,))])


def extract(table: Tensor, t: Tensor, shape: torch.Size) -> Tensor:
    found = table.gather(-1, t.cpu())
    return found.reshape(len(t), *((1,) * (len(shape) - 1))).to(t.device)


def network_of(habits: Habits, width: int) -> nn.Module:
    if habits.published_network:
        return annotated_unet.Unet(width, (1, 2, 4), channels=1)
    layout = torch.contiguous_format if habits.contiguous else torch.channels_last
    return AnnotatedUNet(1, width=width, full_skip=False).to(memory_format=layout)  # type: ignore[call-overload]


def plain_step(pictures: ImageSet, habits: Habits, size: int, width: int) -> Step:
    """One step of the tutorial's loop, with some of its habits."""
    network = network_of(habits, width)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=habits.fused)
    batches = pillow_batches(pictures, size) if habits.pillow else resident_batches(pictures, size)
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), dim=0)
    signal, noise_share = abar.sqrt(), (1 - abar).sqrt()

    def shares(t: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        if habits.extract:
            return extract(signal, t, shape), extract(noise_share, t, shape)
        return signal[t][:, None, None, None], noise_share[t][:, None, None, None]

    def loss_of(x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        keep, add = shares(t, x0.shape)
        return functional.smooth_l1_loss(noise, network(keep * x0 + add * noise, t), reduction="sum")

    def step() -> None:
        optimizer.zero_grad()
        x0 = next(batches)
        x0 = x0 if habits.contiguous else x0.contiguous(memory_format=torch.channels_last)
        t = torch.randint(0, 1000, (size,))
        noise = torch.randn_like(x0)
        loss = loss_of(x0, t, noise) / x0.numel()
        loss.backward()
        optimizer.step()
        if habits.reads_loss:
            loss.item()

    return step


def our_step(config: FitConfig) -> tuple[Step, ImageSet]:
    """One step of train/ddpm/runs/trainer.py as fit.py would build it, and the images that it trains on."""
    accelerator = device.create_accelerator(config.threads)
    images, held_out = trainer.load_images(config, accelerator, config.seed)
    ours = trainer.Trainer(config, accelerator, images, held_out)
    ours.build()

    def step() -> None:
        ours.train_step()
        if ours.step % config.log_every == 0:
            ours.log()

    return step, images


def seconds_of(step: Step, count: int) -> tuple[float, float]:
    """Mean wall-clock seconds of a step, and seconds of CPU time."""
    start, worked = time.perf_counter(), time.process_time()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count, (time.process_time() - worked) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--width", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="of each line in a round")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--compile", action="store_true", help="add our loop compiled, minutes at the start")
    options = parser.parse_args()
    flags = ["--batch-size", str(options.batch_size), "--network.width", str(options.width), "--data.flip"]
    flags += ["--threads", str(options.threads)] if options.threads else []
    flags += ["--no-network.full-skip"]  # the very network of the tutorial
    configs = {"ours": flags} | ({"ours, compiled": [*flags, "--compile"]} if options.compile else {})
    preset = CONFIGS / "tutorial-digits.yaml"
    built = {
        name: our_step(parse(FitConfig, given, prog="ddpm_speed", preset=preset)) for name, given in configs.items()
    }
    pictures = next(iter(built.values()))[1]
    lines = {habits.name: plain_step(pictures, habits, options.batch_size, options.width) for habits in LINES}
    lines |= {name: step for name, (step, _) in built.items()}
    for step in lines.values():
        seconds_of(step, 1)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in lines}
    for _ in range(options.rounds):
        for name, step in lines.items():
            found[name].append(seconds_of(step, options.steps))
    print(f"batches of {options.batch_size} at {pictures.size} x {pictures.size}, {torch.get_num_threads()} threads")
    show(found, options.batch_size)


def show(found: dict[str, list[tuple[float, float]]], size: int) -> None:
    """Medians; ratios to the plain loop and gains over the line above, within each round."""
    before = plain = found[PLAIN.name]
    print(f"{'':31s} {'pictures/s':>10s} {'ratio':>7s} {'gain':>7s} {'CPU s/step':>11s} {'ratio':>7s} {'gain':>7s}")
    for name, rounds in found.items():
        wall, worked = (statistics.median(each[kind] for each in rounds) for kind in range(2))
        times = [f"{ratio(base, rounds, kind):6.2f}x" for kind in range(2) for base in (plain, before)]
        print(f"{name:31s} {size / wall:10.2f} {times[0]} {times[1]} {worked:11.3f} {times[2]} {times[3]}")
        before = rounds


def ratio(base: list[tuple[float, float]], own: list[tuple[float, float]], kind: int) -> float:
    """How many times as long the base took; kind: 0 by the clock, 1 of CPU time."""
    return statistics.median(one[kind] / other[kind] for one, other in zip(base, own, strict=True))


if __name__ == "__main__":
    main()
