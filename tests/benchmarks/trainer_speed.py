"""How much faster a step is than that of a plain loop, and by what. Ratios in one run; nothing else should be running.

python -m tests.benchmarks.trainer_speed [--adapter full] [--batch-size 8] [--model FOLDER] [--rounds 5]
                                          [--precision no]

The plain loop is written as diffusers' text-to-image example does it: the image is read, the autoencoder and the text
encoder run at every step, weights are contiguous, AdamW is not fused, and the loss is read at every step. Each line
takes one thing away; the last is the trainer's own step. Same adapter, batch, precision, threads and device; the lines
take turns in every round. `gain`: over the line before, medians over the rounds.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from data import images
from train import adapters, device, losses, trainer
from train.config import Config
from train.metrics import MetricBuffer
from train.model import load_model
from train.trainer import Setup, TrainContext
from train.training_set import encode_text, encode_training_set, load_training_set, micro_batches
from train.validation import Validator

Step = Callable[[], None]
HABITS = {  # of the example's loop, and the line that takes each away
    "autoencoder": "+ latents cached",
    "text_encoder": "+ text states cached",
    "contiguous": "+ channels-last",
    "reads_loss": "+ loss not read",
    "plain_adamw": "+ fused AdamW",
}


@dataclass(frozen=True)
class Bench:
    """What all lines share."""

    setup: Setup

    @torch.no_grad()
    def latents(self, sample: Any) -> Tensor:
        """Read from the disk and encoded, as a data loader without workers does."""
        side, model = self.setup.dataset.square.width, self.setup.model
        vae: Any = model.vae
        vae.to(self.setup.accelerator.device)
        image = images.decode(images.read_bytes(sample.path), sample.path)[0]
        pixels = images.image_to_tensor(images.resize_and_crop(image, side, side))[None].to(vae.device)
        return vae.encode(pixels).latent_dist.sample() * model.scaling_factor

    def text_states(self, sample: Any) -> Tensor:
        prompt = self.setup.dataset.prompts[sample.annotation.file_name][0]
        return encode_text(self.setup.model, prompt, self.setup.accelerator.device)[None]

    def plain_step(self, habits: set[str]) -> Step:
        """One step of the example's loop, with some of its habits."""
        config, accelerator = self.setup.config, self.setup.accelerator
        unet: Any = load_model(config.model).unet
        adapters.inject(unet, config.adapter, config.seed)
        layout = torch.contiguous_format if "contiguous" in habits else torch.channels_last
        unet.to(accelerator.device, memory_format=layout).train()
        trained = list(adapters.trainable_parameters(unet).values())
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused="plain_adamw" not in habits)
        unet, optimizer = accelerator.prepare(unet, optimizer)
        noises = diffusers.DDPMScheduler.from_config(self.setup.model.scheduler_config)
        samples = self.setup.dataset.train[: 4 * config.batch_size]
        cached = [(self.latents(sample), self.text_states(sample)) for sample in samples]
        turns = itertools.cycle(range(len(samples)))

        def step() -> None:
            rows = [next(turns) for _ in range(config.batch_size)]
            latents = torch.cat([self.latents(samples[r]) if "autoencoder" in habits else cached[r][0] for r in rows])
            text = torch.cat([self.text_states(samples[r]) if "text_encoder" in habits else cached[r][1] for r in rows])
            noise = torch.randn_like(latents)
            t = torch.randint(0, 1000, (len(rows),), device=latents.device)
            predicted = unet(noises.add_noise(latents, noise, t), t, text, return_dict=False)[0]  # type: ignore[arg-type]
            loss = torch.nn.functional.mse_loss(predicted.float(), noise)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if "reads_loss" in habits:
                loss.item()

        return step

    def our_step(self, steps: int) -> tuple[Step, MetricBuffer]:
        """One step of train/trainer.py, and its metrics."""
        setup = self.setup
        config, on, scale = setup.config, setup.accelerator.device, setup.model.scaling_factor
        state, _ = trainer.build_state(setup)
        encoded = encode_training_set(setup.model, setup.dataset, config, setup.accelerator)
        loss = losses.build_loss(config.objective, setup.model.schedule.to(on))
        batches = partial(micro_batches, encoded, config, setup.layout, scale, on)
        validator = Validator({}, config.objective, loss.schedule, scale, 1)
        context = TrainContext(config, setup.layout, loss, batches, validator, Path(), "bench")
        buffer, stream = MetricBuffer(), batches(0, steps)
        return lambda: trainer.train_step(state, context, stream, buffer), buffer


def seconds_of(step: Step, count: int) -> float:
    """Mean seconds of a step, with what the device still has to do."""
    start = time.perf_counter()
    for _ in range(count):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


def ratio(before: list[float], after: list[float]) -> float:
    """How many times as fast; the rounds are compared one by one, for the machine may be slower in some."""
    return statistics.median(one / other for one, other in zip(before, after, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", choices=("lora", "full"), default="lora")
    parser.add_argument("--batch-size", type=int, default=16, help="as train/configs/pocket.yaml has it")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each line in a round")
    about = "accelerate's; default: as accelerate_config.yaml has it (without a GPU: fp32)"
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="fp16", help=about)
    asked = parser.parse_args()
    os.environ["ACCELERATE_MIXED_PRECISION"] = asked.precision
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("ATELIER_CACHE", folder)
        settings = {"model": asked.model, "batch_size": asked.batch_size, "adapter": {"kind": asked.adapter}}
        config = Config.model_validate(settings)
        model, accelerator = load_model(config.model), device.start_accelerator(config)
        bench = Bench(Setup(config, accelerator, model, load_training_set(config, model), "bench"))
        names, habits = list(HABITS), {"as diffusers' example": set(HABITS)}
        habits |= {line: set(names[place + 1 :]) for place, line in enumerate(HABITS.values())}
        steps = {line: bench.plain_step(some) for line, some in habits.items()}
        steps["ours"], buffer = bench.our_step((asked.rounds + 1) * asked.steps)
        found: dict[str, list[float]] = {line: [] for line in steps}
        for number in range(asked.rounds + 1):  # the first does not count
            for line, step in steps.items():
                seconds = seconds_of(step, asked.steps)
                found[line] += [seconds] if number else []
    threads = f"{torch.get_num_threads()} threads"
    print(f"{asked.adapter}, batches of {asked.batch_size}, {device.describe_precision(accelerator)}, {threads}")
    before = slowest = found["as diffusers' example"]
    for line, each in found.items():
        rate = asked.batch_size / statistics.median(each)
        print(f"{line:24s} {rate:8.2f} images/s  {ratio(slowest, each):5.2f} x  gain {ratio(before, each):5.2f} x")
        before = each
    waiting = statistics.mean(buffer.waits) / statistics.mean(found["ours"])
    print(f"ours waits for data {100 * waiting:.2f} % of the time")


if __name__ == "__main__":
    main()
