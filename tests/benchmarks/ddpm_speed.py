"""How much faster a step of fit.py is than the tutorial's own loop. Ratios in one run.

python -m tests.benchmarks.ddpm_speed [--batch-size 32] [--rounds 3] [--threads 2] [--compile]

The tutorial's loop: its U-Net as published, float32 with contiguous memory, a DataLoader of Pillow transforms, tables
read by `extract` on the CPU, Adam that is not fused, and the loss read at every step. Ours adds clipping and the
average of the weights. Same images, batch, width, threads and device; the loops take turns. Seconds of the process' own
CPU time are printed as well: on a busy machine they are what can be compared.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from data.cli import parse
from tests import annotated_unet
from train import device
from train.ddpm.image_sets import ImageSet
from train.ddpm.runs import trainer
from train.ddpm.runs.config import CONFIGS, FitConfig

Step = Callable[[], None]
TUTORIAL = "the tutorial's loop"


class Transformed(Dataset[Tensor]):
    """What the tutorial's transforms do to an image: maybe mirror it, to a tensor, to [-1, 1]."""

    def __init__(self, images: list[Image.Image]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = self.images[index].convert("L")
        image = ImageOps.mirror(image) if torch.rand(1).item() < 0.5 else image
        return torch.from_numpy(np.array(image, np.uint8))[None].float().div(255) * 2 - 1


def endless_batches(images: ImageSet, size: int) -> Iterator[Tensor]:
    loader = DataLoader(Transformed(images.images()), size, shuffle=True, drop_last=True)
    return (batch for _ in itertools.count() for batch in loader)


def tutorial_step(images: ImageSet, size: int, width: int) -> Step:
    """One step of the tutorial's loop."""
    network = annotated_unet.Unet(width, (1, 2, 4), channels=1)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    batches, abar = endless_batches(images, size), torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), dim=0)

    def extract(table: Tensor, t: Tensor) -> Tensor:
        return table.gather(-1, t.cpu()).reshape(len(t), 1, 1, 1).to(t.device)

    def step() -> None:
        optimizer.zero_grad()
        x0 = next(batches)
        t, noise = torch.randint(0, 1000, (size,)), torch.randn_like(x0)
        xt = extract(abar.sqrt(), t) * x0 + extract((1 - abar).sqrt(), t) * noise
        loss = functional.smooth_l1_loss(noise, network(xt, t))
        loss.backward()
        optimizer.step()
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
    parser.add_argument("--steps", type=int, default=2, help="of each loop in a round")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--compile", action="store_true", help="add our loop compiled, minutes at the start")
    options = parser.parse_args()
    flags = ["--batch-size", str(options.batch_size), "--network.width", str(options.width), "--data.flip"]
    flags += ["--threads", str(options.threads)] if options.threads else []
    flags += ["--no-network.full-skip"]  # the very network of the tutorial
    flavours = {"ours": flags} | ({"ours, compiled": [*flags, "--compile"]} if options.compile else {})
    preset = CONFIGS / "tutorial-digits.yaml"
    built = {name: our_step(parse(FitConfig, given, prog="", preset=preset)) for name, given in flavours.items()}
    images = built["ours"][1]
    steps = {TUTORIAL: tutorial_step(images, options.batch_size, options.width)}
    steps |= {name: step for name, (step, _) in built.items()}
    for step in steps.values():
        seconds_of(step, 1)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            found[name].append(seconds_of(step, options.steps))
    print(f"batches of {options.batch_size} at {images.size} x {images.size}, {torch.get_num_threads()} threads")
    print(f"{'':20s} {'images/s':>10s} {'ratio':>7s} {'CPU s/step':>11s} {'ratio':>7s}")
    for name, rounds in found.items():
        wall, worked = (statistics.median(each[kind] for each in rounds) for kind in range(2))
        pairs = list(zip(found[TUTORIAL], rounds, strict=True))  # ratios within each round
        ratios = [statistics.median(plain[kind] / own[kind] for plain, own in pairs) for kind in range(2)]
        print(f"{name:20s} {options.batch_size / wall:10.2f} {ratios[0]:6.2f}x {worked:11.3f} {ratios[1]:6.2f}x")


if __name__ == "__main__":
    main()
