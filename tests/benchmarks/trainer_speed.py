"""How much faster a step is than that of a plain loop, and by what. Ratios in one run; nothing else should be running.

python -m tests.benchmarks.trainer_speed [--adapter full] [--batch-size 8] [--model FOLDER] [--rounds 5]
                                          [--precision no]

The plain loop is written as diffusers' text-to-image example does it: the picture is read, the autoencoder and the text
encoder run at every step, weights are contiguous, AdamW is not fused, and the loss is read at every step. Each line
takes one thing away; the last is the trainer's own step. Same adapter, batch, precision, threads and device; each line
has a process, and they take turns in every round. `gain`: over the line before, medians over the rounds.
"""

from __future__ import annotations

import argparse
import io
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from accelerate import Accelerator
from torch import Tensor

from data import images
from data.schema import Sample
from train import adapters, device, model, trainer
from train.config import Config
from train.device import describe_precision, device_name
from train.model import BaseModel, load_model
from train.trainer import MetricBuffer, TrainContext
from train.training_set import TrainingSet, encode_training_set, load_training_set
from train.validation import Validator

Step = Callable[[], None]


@dataclass(frozen=True)
class Plain:
    """Which of the example's habits a loop has."""

    name: str
    autoencoder: bool = True  # at every step
    text_encoder: bool = True  # at every step
    contiguous: bool = True
    reads_loss: bool = True
    fused: bool = False


AS_THE_EXAMPLE = Plain("as diffusers' example")
CACHED_LATENTS = replace(AS_THE_EXAMPLE, name="+ latents cached", autoencoder=False)
CACHED = replace(CACHED_LATENTS, name="+ text states cached", text_encoder=False)
CHANNELS_LAST = replace(CACHED, name="+ channels-last", contiguous=False)
UNREAD = replace(CHANNELS_LAST, name="+ loss not read", reads_loss=False)
FUSED = replace(UNREAD, name="+ fused AdamW", fused=True)
OURS = "ours"
LINES = (AS_THE_EXAMPLE, CACHED_LATENTS, CACHED, CHANNELS_LAST, UNREAD, FUSED)


@dataclass(frozen=True)
class Bench:
    """What all lines share."""

    config: Config
    model: BaseModel
    accelerator: Accelerator
    collection: TrainingSet

    def network(self, *, contiguous: bool) -> Any:
        """The U-Net with its adapter, a new one each time."""
        unet: Any = load_model(self.config.model).unet
        adapters.inject(unet, self.config.adapter, self.config.seed)
        layout = torch.contiguous_format if contiguous else torch.channels_last
        return unet.to(self.accelerator.device, memory_format=layout).train()


def plain_step(bench: Bench, habits: Plain) -> Step:
    """One step of the example's loop, with some of its habits."""
    device, size = bench.accelerator.device, bench.config.batch_size
    unet = bench.network(contiguous=habits.contiguous)
    trained = list(adapters.trainable_parameters(unet).values())
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=habits.fused)
    unet, optimizer = bench.accelerator.prepare(unet, optimizer)
    rates = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    noises = diffusers.DDPMScheduler.from_config(bench.model.scheduler_config)
    pixels, states = shown(bench, device), said(bench, device)
    kept = {sample.sha256: latents_of(bench, pixels(sample)) for sample in bench.collection.train[: 4 * size]}
    samples: Iterator[Sample] = itertools.cycle(bench.collection.train[: 4 * size])

    def step() -> None:
        batch = [next(samples) for _ in range(size)]
        if habits.autoencoder:
            latents = latents_of(bench, torch.cat([pixels(sample) for sample in batch]))
        else:
            latents = torch.cat([kept[sample.sha256] for sample in batch])
        prompts = [bench.collection.prompts[sample.annotation.file_name][0] for sample in batch]
        text = states(prompts, habits.text_encoder)
        noise = torch.randn_like(latents)
        t = torch.randint(0, 1000, (size,), device=device)
        predicted = unet(noises.add_noise(latents, noise, t), t, text, return_dict=False)[0]  # type: ignore[arg-type]
        loss = torch.nn.functional.mse_loss(predicted.float(), noise)
        bench.accelerator.backward(loss)
        bench.accelerator.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        if habits.reads_loss:
            loss.item()

    return step


def shown(bench: Bench, device: torch.device) -> Callable[[Sample], Tensor]:
    """Pictures read from the disk, as a data loader without workers does."""
    side = bench.collection.square.width

    def pixels(sample: Sample) -> Tensor:
        picture = images.decode(images.read_bytes(sample.path), sample.path)[0]
        return images.image_to_tensor(images.resize_and_crop(picture, side, side))[None].to(device)

    return pixels


@torch.no_grad()
def latents_of(bench: Bench, pixels: Tensor) -> Tensor:
    vae: Any = bench.model.vae
    vae.to(pixels.device)
    return vae.encode(pixels).latent_dist.sample() * bench.model.scaling_factor


def said(bench: Bench, device: torch.device) -> Callable[[list[str], bool], Tensor]:
    """Text states, computed or remembered."""
    remembered: dict[str, Tensor] = {}
    encoder: Any = bench.model.text_encoder
    encoder.to(device)
    tokenizer = bench.model.tokenizer

    @torch.no_grad()
    def encoded(prompts: list[str]) -> Tensor:
        longest = tokenizer.model_max_length
        found = tokenizer(prompts, padding="max_length", truncation=True, max_length=longest, return_tensors="pt")
        return encoder(found.input_ids.to(device))[0]

    def states(prompts: list[str], afresh: bool) -> Tensor:
        if afresh:
            return encoded(prompts)
        for prompt in prompts:
            if prompt not in remembered:
                remembered[prompt] = encoded([prompt])
        return torch.cat([remembered[prompt] for prompt in prompts])

    return states


def our_step(bench: Bench, steps: int) -> tuple[Step, MetricBuffer]:
    """One step of train/trainer.py on the job that the trainer would build."""
    parts = trainer.Job(
        bench.config, bench.accelerator, model.load_model(bench.config.model), bench.collection, "bench"
    )
    state = trainer.build_state(parts)
    encoded = encode_training_set(parts.model, parts.collection, bench.config, bench.accelerator)
    objective, schedule = bench.config.objective, bench.model.schedule.to(bench.accelerator.device)
    batches = trainer.micro_batches(parts, encoded, 0, steps)
    validator = Validator({}, objective, schedule, bench.model.scaling_factor, 1)
    task = TrainContext(bench.config, parts.layout, objective, schedule, lambda *_: batches, validator, Path(), "bench")
    window = MetricBuffer()
    return lambda: trainer.train_step(state, task, batches, window), window


def step_of(bench: Bench, name: str, steps: int) -> tuple[Step, MetricBuffer | None]:
    """Of a line: one step, and its window if it is ours."""
    plain = {habits.name: habits for habits in LINES}.get(name)
    if plain is not None:
        return plain_step(bench, plain), None
    return our_step(bench, steps)


def seconds_of(step: Step, count: int) -> float:
    """Mean seconds of a step, with what the device still has to do."""
    start = time.perf_counter()
    for _ in range(count):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


@dataclass(frozen=True)
class Options:
    """The command's."""

    adapter: Literal["lora", "full"]
    batch_size: int
    model: str
    rounds: int
    steps: int
    precision: str

    def bench(self) -> Bench:
        os.environ["ACCELERATE_MIXED_PRECISION"] = self.precision
        adapter = {"kind": self.adapter}
        config = Config.model_validate({"model": self.model, "batch_size": self.batch_size, "adapter": adapter})
        accelerator = device.start_accelerator(config)
        model = load_model(config.model)
        return Bench(config, model, accelerator, load_training_set(config, model))


def serve(pipe: Connection, options: Options, name: str) -> None:
    """One line in a process of its own, for the trainer's settings of the C library must not help the others: says
    what it runs on, then the seconds of a step in each round asked for, then its share of waiting for data.
    """
    with redirect_stdout(io.StringIO()):  # what the trainer says when it starts
        bench = options.bench()
        step, window = step_of(bench, name, (options.rounds + 1) * options.steps)
    seconds_of(step, options.steps)
    if window is not None:
        window.clear()
    device, precision = device_name(bench.accelerator.device), describe_precision(bench.accelerator)
    pipe.send(f"{device}, {precision}, {torch.get_num_threads()} threads")
    spent = 0.0
    while pipe.recv():
        seconds = seconds_of(step, options.steps)
        spent += options.steps * seconds
        pipe.send(seconds)
    pipe.send(sum(window.waits) / spent if window is not None else 0.0)


def measure(options: Options) -> tuple[str, dict[str, list[float]], float]:
    """What it ran on; seconds a step of every line in every round, after one that does not count; our share of waiting
    for data.
    """
    pipes, words = dict[str, Connection](), ""
    context = multiprocessing.get_context("spawn")
    for name in [*(habits.name for habits in LINES), OURS]:
        pipes[name], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, options, name), daemon=True).start()
        theirs.close()
        words = pipes[name].recv()
    found: dict[str, list[float]] = {name: [] for name in pipes}
    for _ in range(options.rounds):
        for name, pipe in pipes.items():
            pipe.send(True)
            found[name].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    waiting = [pipe.recv() for pipe in pipes.values()]
    return words, found, max(waiting)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", choices=("lora", "full"), default="lora")
    parser.add_argument("--batch-size", type=int, default=16, help="as train/configs/pocket.yaml has it")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each line in a round")
    about = "accelerate's; default: as accelerate_config.yaml has it (without a GPU: fp32)"
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="fp16", help=about)
    options = Options(**vars(parser.parse_args()))
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("ATELIER_CACHE", folder)
        words, found, waiting = measure(options)
    print(f"{options.adapter}, batches of {options.batch_size}, {words}")
    before = slowest = found[AS_THE_EXAMPLE.name]
    for name, seconds in found.items():
        rate = options.batch_size / statistics.median(seconds)
        print(
            f"{name:24s} {rate:8.2f} pictures/s  {ratio(slowest, seconds):5.2f} x  gain {ratio(before, seconds):5.2f} x"
        )
        before = seconds
    print(f"ours waits for data {100 * waiting:.2f} % of the time")


def ratio(before: list[float], after: list[float]) -> float:
    """How many times as fast; the rounds are compared one by one, for the machine may be slower in some."""
    return statistics.median(one / other for one, other in zip(before, after, strict=True))


if __name__ == "__main__":
    main()
