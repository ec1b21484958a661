"""Runs of a few steps on networks of a few weights, built by the trainer itself (train/trainer.py), without files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data.dataset import Batch, BatchLayout, EncodedDataset, EncodedImage, StepSampler, collate
from tests.tiny import TEXT_WIDTH, tiny_unet
from train import adapters, trainer
from train.config import Config, Epsilon
from train.ddpm import schedule
from train.losses import build_loss
from train.trainer import MetricBuffer, TrainContext, TrainState
from train.validation import Validator

TABLES = schedule.scaled_linear(1000, 0.00085, 0.012)
Shape = tuple[int, int, int]


class Toy(nn.Module):
    """Two layers that hear of the timestep and the caption; the kernel has a memory format to get wrong."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.words = nn.Linear(TEXT_WIDTH, 4)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def set_attn_processor(self, processor: Any) -> None:
        """It has no attention."""

    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, return_dict: bool) -> tuple[Tensor]:
        said = self.words(encoder_hidden_states.mean(1))[:, :, None, None]
        return (self.conv(x) * (1 + t / 1000)[:, None, None, None] + said,)


def seeded_unet() -> Any:
    """The tiny Stable Diffusion v1-shaped U-Net, the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tiny_unet(8)


def entries(count: int, shape: Shape = (4, 8, 8)) -> list[EncodedImage]:
    """Pictures that are only latents: means and log-variances of noise."""
    draw = torch.Generator().manual_seed(1)
    channels, *sides = shape
    return [
        EncodedImage(
            f"{'x'.join(map(str, sides))} {index}.png",
            (torch.randn(2 * channels, *sides, generator=draw),),
            (torch.randn(5, TEXT_WIDTH, generator=draw),),
        )
        for index in range(count)
    ]


def config_of(**changes: Any) -> Config:
    plain = {"adapter": {"kind": "full"}, "learning_rate": 1e-2, "max_steps": 4, "batch_size": 2}
    rare = {"checkpoints": {"every": 2}, "validation": {"every": 2}, "logging": {"every": 2}}
    return Config.model_validate({**plain, **rare, **changes})


def small_run(
    folder: Path,
    network: nn.Module,
    *,
    accelerator: Accelerator | None = None,
    shapes: Sequence[Shape] = ((4, 8, 8),),
    processes: int = 1,
    **changes: Any,
) -> tuple[TrainState, TrainContext]:
    """A state from trainer.build_state() and its context. shapes: of the buckets' latents, seven pictures each."""
    config = config_of(**changes)
    layout = BatchLayout(config.batch_size, config.accumulate, processes)
    buckets = [entries(7, shape) for shape in shapes]
    pictures = EncodedDataset(buckets, torch.zeros(5, TEXT_WIDTH), seed=0, scaling_factor=0.5, dropout=0.1)

    def batches(start: int, stop: int) -> Iterator[Batch]:
        sampler = StepSampler([7] * len(buckets), layout, seed=config.seed, start=start, stop=stop)
        loader = DataLoader(pictures, batch_sampler=sampler, collate_fn=collate, generator=torch.Generator())
        return iter(loader)

    parts = SimpleNamespace(
        config=config,
        accelerator=accelerator or Accelerator(cpu=True),
        model=SimpleNamespace(unet=network),
        dataset=SimpleNamespace(buckets=dict(enumerate(buckets)), preserved=()),
    )
    validator = Validator({"held-out": [bucket[0] for bucket in buckets]}, Epsilon(), TABLES, 0.5, timesteps=2)
    loss = build_loss(Epsilon(), TABLES)
    task = TrainContext(config, layout, loss, batches, validator, folder / "checkpoints", "this run")
    return trainer.build_state(cast(Any, parts))[0], task


def unet_run(folder: Path, adapter: str, **changes: Any) -> tuple[TrainState, TrainContext]:
    """A run of the tiny U-Net on latents of 4 x 4."""
    plain: dict[str, Any] = {"shapes": [(4, 4, 4)], "learning_rate": 1e-3, "adapter": {"kind": adapter}}
    return small_run(folder, seeded_unet(), **{**plain, **changes})


def gradients(state: TrainState, task: TrainContext) -> dict[str, Tensor]:
    """Of the first micro-batch, by name."""
    batch = next(task.batches(0, 1))
    state.accelerator.backward(task.loss(state.denoiser, batch).sum())
    found = {name: weight.grad for name, weight in adapters.trainable_parameters(state.plain_unet()).items()}
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def advance(state: TrainState, task: TrainContext, steps: int) -> MetricBuffer:
    window, batches = MetricBuffer(), task.batches(state.step, state.step + steps)
    for _ in range(steps):
        trainer.train_step(state, task, batches, window)
    return window


def trained(state: TrainState) -> dict[str, Tensor]:
    """A copy of the trained weights."""
    return adapters.trainable_state(state.plain_unet())


def equal(one: Any, two: Any) -> bool:
    """Bit for bit, type for type, through nested dictionaries and lists."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(equal, one, two))
    if isinstance(one, Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    return one == two and type(one) is type(two)
