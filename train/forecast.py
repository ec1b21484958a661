"""What a run will take, in bytes, seconds and money: put together from exact counts and a few timed steps."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data import cache
from data.options import field_types
from train import flops, machine, memory, optim
from train.adapters import base as adapters
from train.config import Config
from train.encoding import encode_picture, encode_text, frames_of, prompts_of, text_key
from train.flops import Flops
from train.memory import Memory, Setting
from train.plan import Disk, Duration, Fits
from train.preservation import COST
from train.previews import questions_of
from train.probe import Timing, probe, timed
from train.report import read_metrics
from train.run_folder import Run
from train.skeleton import Question
from train.state_bytes import AverageBytes, ema_bytes, optimizer_bytes
from train.subjects import preview_prompts

if TYPE_CHECKING:
    from train.job import Job
    from train.loop import State

DRAWN_AT_ONCE = 4  # pictures, on a GPU: infer/pipeline.py's micro-batch
WORKSPACE = 0.25  # of the activations, on top: kernels' scratch and fragmentation; measured in LOG.md
CONTEXT = 2**29  # bytes that CUDA and its libraries take for themselves
DISK_SPEED = 200e6  # bytes/s at which a checkpoint is written, hashed and flushed: an assumption, on the low side


@dataclass(frozen=True)
class Forecast:
    """The forecast of one job; what is costly is worked out when it is asked for, once."""

    job: Job
    state: State
    earlier: Run | None = None  # whose steps tell how long one takes

    @property
    def config(self) -> Config:
        return self.job.config

    @property
    def device(self) -> torch.device:
        return self.job.accelerator.device

    @cached_property
    def unet(self) -> Any:
        return self.state.plain_unet()

    @cached_property
    def shapes(self) -> list[torch.Size]:
        """Of the trained weights."""
        return [weight.shape for weight in adapters.trainable(self.unet).values()]

    @property
    def trained(self) -> int:
        return sum(shape.numel() for shape in self.shapes)

    @property
    def optimizer(self) -> int:
        """Bytes of the optimiser's state."""
        return optimizer_bytes(self.config.optim.kind, self.shapes)

    @property
    def average(self) -> AverageBytes:
        return ema_bytes(self.config.ema, self.trained)

    @property
    def tokens(self) -> int:
        return self.job.model.tokenizer.model_max_length

    @cached_property
    def sizes(self) -> dict[tuple[int, int], int]:
        """Latent sizes (height, width) of the buckets and how many pictures each has."""
        factor = self.job.model.factor
        return {(b.height // factor, b.width // factor): len(held) for b, held in self.job.collection.buckets.items()}

    @property
    def square(self) -> tuple[int, int]:
        """The latent size of previews."""
        side = self.job.collection.square.width // self.job.model.factor
        return side, side

    def question(self, batch: int, size: tuple[int, int]) -> Question:
        return Question(batch, *size, self.tokens)

    @property
    def widest(self) -> tuple[int, int]:
        """The size with the most to keep."""
        return max(self.sizes, key=lambda size: size[0] * size[1])

    @cached_property
    def costs(self) -> dict[tuple[int, int], Flops]:
        return flops.by_area(self.unet, self.sizes, self.tokens)

    @cached_property
    def flops(self) -> Flops:
        """Operations of one picture, mean over an epoch."""
        return flops.mean_flops(self.costs, self.sizes)

    @property
    def anchoring(self) -> float:
        """Operations a picture, in the mean, of asking the base about preserved prompts."""
        return self.config.preserve.share * COST * self.flops.forward

    @property
    def work(self) -> float:
        """Operations of a step for one picture, in the mean."""
        return self.flops.step + self.anchoring

    # ---- memory

    @property
    def setting(self) -> Setting:
        half = machine.DTYPES.get(self.job.accelerator.mixed_precision)
        return Setting(self.device.type, half, self.config.accumulate > 1)

    def activations(self, batch: int, checkpointing: bool | None = None) -> int:
        """Bytes at the peak of a step beyond weights, gradients and optimiser."""
        question = self.question(batch, self.widest)
        return memory.step_bytes(self.unet, question, self.setting, checkpointing=checkpointing) - 4 * self.trained

    @cached_property
    def memory(self) -> Memory:
        weights = sum(weight.nbytes for weight in self.unet.parameters())
        kept = self.activations(self.config.batch_size)
        parts = {
            "weights": weights,
            "base": self.state.anchor.nbytes,
            "gradients": 4 * self.trained,
            "optimiser": self.optimizer,
            "average": self.average.device,
            "activations": kept,
            "kernels": int(WORKSPACE * kept),
            "pictures": self.encoded_bytes(),
            "exchange": 4 * self.trained if self.job.layout.processes > 1 else 0,  # DDP's buckets
            "process": self.process_bytes(weights),
        }
        held = sum(bytes_ for part, bytes_ in parts.items() if part not in ("gradients", "activations", "kernels"))
        looked = memory.look_bytes(
            self.unet, self.question(self.config.validation.timesteps, self.widest), self.setting
        )
        phases = {"training": sum(parts.values()), "validation": held + int((1 + WORKSPACE) * looked)}
        if self.device.type == "cpu":  # a checkpoint is written from copies in main memory
            phases["saving"] = held + self.checkpoint_bytes
        if self.job.draw is not None and self.config.previews.every != 0:
            phases["drawing"] = held + self.drawing_bytes()
        if self.missing:
            phases["encoding"] = weights + parts["process"] + self.encoding_bytes()
        return Memory(parts, phases, memory.free_bytes(self.device))

    def encoded_bytes(self) -> int:
        """The encoded set: latent moments and text states in float32."""
        model, collection = self.job.model, self.job.collection
        sides = 2 if self.config.pictures.flip else 1
        area = max(height * width for height, width in self.sizes)
        prompts = len({prompt for prompts in collection.prompts.values() for prompt in prompts}) + 1
        states = prompts * self.tokens * self.unet.config["cross_attention_dim"]
        pictures = (len(collection.train) + len(collection.held_out)) * sides * 2 * model.latent_channels * area
        return 4 * (states + pictures)

    def process_bytes(self, weights: int) -> int:
        """What the program takes beside the weights: CUDA's context; on the CPU the interpreter and its libraries."""
        if self.device.type == "cuda":
            return CONTEXT
        return max(0, memory.resident_bytes() - weights)

    def encoding_bytes(self) -> int:
        bucket = max(self.job.collection.buckets, key=lambda b: b.width * b.height)
        peak = memory.encode_bytes(self.job.model.config("vae"), bucket.height, bucket.width)
        return int((1 + WORKSPACE) * peak)

    def drawing_bytes(self) -> int:
        """Of previews: both encoders are loaded beside the network, which is asked with the prompt and without."""
        model = self.job.model
        rows = 2 if self.device.type == "cpu" else 2 * DRAWN_AT_ONCE
        asked = memory.look_bytes(self.unet, self.question(rows, self.square), self.setting)
        busiest = max(asked, memory.decode_bytes(model.config("vae"), *self.square))
        return memory.text_encoder_bytes(model.config("text_encoder")) + int((1 + WORKSPACE) * busiest)

    @cached_property
    def missing(self) -> int:
        """Pictures that are not in the cache yet."""
        encoder = self.job.model.fingerprints["vae"]
        frames = frames_of(self.job.collection, self.config)
        return sum(not cache.is_kept(frame, encoder) for _, frame in frames)

    def fits(self) -> Fits:
        """Whether there is memory enough, and if not, what would help."""
        needed, free = self.memory.peak, self.memory.free
        if free is None or needed <= free:
            return Fits(needed, free, [])
        others = max(bytes_ for phase, bytes_ in self.memory.phases.items() if phase != "training")
        return Fits(needed, free, [words for words, bytes_ in self.savings() if max(bytes_, others) <= free])

    def savings(self) -> Iterator[tuple[str, int]]:
        """(flags, peak of training with them), those that cost least first. Only flags that there are."""
        config, parts = self.config, self.memory.parts
        now, known = self.memory.phases["training"], dict(field_types(Config))
        saved = self.optimizer - optimizer_bytes("adamw-8bit", self.shapes)
        lean = self.activations(config.batch_size, checkpointing=True)
        less = int((1 + WORKSPACE) * (parts["activations"] - lean))
        eight, checkpointing = "--optim.kind adamw-8bit", "--memory.gradient-checkpointing"
        if saved > 0:
            yield eight, now - saved
        if less > 0 and "memory.gradient_checkpointing" in known:
            yield checkpointing, now - less
            yield f"{eight} {checkpointing}", now - less - saved
        batch = config.batch_size
        while (batch := batch // 2) >= 1:
            fewer = int((1 + WORKSPACE) * (parts["activations"] - self.activations(batch)))
            yield f"--batch-size {batch} --accumulate {config.accumulate * (config.batch_size // batch)}", now - fewer

    # ---- time

    @cached_property
    def timing(self) -> tuple[float, str] | None:
        """Seconds of an optimiser step, mean over the buckets, and how that is known; None if it may not be tried."""
        if (known := self.seconds_before()) is not None:
            return known, "as in the steps before"
        if not self.config.probe:
            return None
        try:
            found, share = self.probed()
        except torch.OutOfMemoryError:
            return None
        micro = found.micro * share * self.work / self.flops.step
        seconds = micro * self.config.accumulate + found.update
        return seconds, f"after a {found.steps}-step probe"

    def probed(self) -> tuple[Timing, float]:
        """The commonest bucket's timing, and the mean cost of a picture relative to that bucket's."""
        common = max(self.sizes, key=lambda size: self.sizes[size])
        build = partial(optim.build, config=self.config.optim)
        question = self.question(self.config.batch_size, common)
        state, accelerator = self.state, self.job.accelerator
        found = probe(state.unet, question, accelerator, build)
        return found, self.flops.step / self.costs[common].step

    def seconds_before(self) -> float | None:
        """From the metrics of an earlier session of this run, on the same kind of device."""
        if self.earlier is None or self.earlier.facts("plan.json").get("device") != machine.device_name(self.device):
            return None
        speeds = [
            line["images_per_second"] for line in read_metrics(self.earlier.metrics) if "images_per_second" in line
        ]
        speeds = [speed for speed in speeds if speed]
        return self.job.layout.global_batch / statistics.median(speeds) if speeds else None

    def duration(self, done: int) -> Duration | None:
        """Seconds of what is left after `done` steps, by what they go to."""
        if self.timing is None:
            return None
        config, layout = self.config, self.job.layout
        seconds, how = self.timing
        operation = seconds / (layout.batch_size * layout.accumulate * self.work)  # of the U-Net, on one device
        looks = times(done, config.max_steps, config.validation.every) + (done == 0)
        held = [self.job.collection.train, self.job.collection.held_out]
        pictures = sum(min(len(side), config.validation.pictures) for side in held)
        look = pictures * config.validation.timesteps * self.flops.forward
        saves = times(done, config.max_steps, config.checkpoints.every)
        return Duration(
            step=seconds,
            how=how,
            images_per_second=layout.global_batch / seconds,
            training=seconds * max(0, config.max_steps - done),
            validation=looks * look * operation,
            checkpoints=saves * self.checkpoint_bytes / DISK_SPEED,
            encoding=self.encoding(),
            previews=self.drawing(done) * operation,
        )

    def drawing(self, done: int) -> float:
        """Operations of the previews that are still to be drawn, the base's among them."""
        job, options = self.job, self.config.previews
        every = options.interval(self.config.validation.every)
        if job.draw is None or every == 0:
            return 0.0
        asked = flops.by_area(self.unet, [self.square], self.tokens)[self.square].forward
        rows = 2 if options.guidance > 1 else 1
        picture = options.steps * rows * asked + flops.decode_flops(job.model.config("vae"), *self.square)
        pictures = len(questions_of(preview_prompts(job), options))
        return (times(done, self.config.max_steps, every) + (done == 0)) * pictures * picture

    def encoding(self) -> float:
        """Seconds for the pictures and captions that are not in the cache yet, by trying one of each."""
        model, device, key = self.job.model, self.device, text_key(self.job.model)
        unread = sum(not cache.is_read(text, key) for text in prompts_of(self.job.collection))

        def read_one() -> None:
            encode_text(model, "", device)

        texts = unread * min(timed(read_one, device)) if unread else 0.0
        return texts + (self.missing * self.seconds_to_encode() if self.missing else 0.0)

    def seconds_to_encode(self) -> float:
        """Of one picture: the autoencoder is tried on a grey one."""
        bucket = max(self.job.collection.buckets, key=lambda b: len(self.job.collection.buckets[b]))
        grey = torch.zeros(1, 3, bucket.height, bucket.width)

        def encode() -> None:
            encode_picture(self.job.model, grey, self.device)

        return min(timed(encode, self.device))

    # ---- disk

    @property
    def checkpoint_bytes(self) -> int:
        return 4 * self.trained + self.optimizer + self.average.anywhere

    def disk(self) -> Disk:
        """The best step's checkpoint is kept beside the newest. Exports: see train/exports."""
        keep = self.config.checkpoints.keep
        kept = keep + (self.config.checkpoints.export == "best")
        return Disk(self.checkpoint_bytes, kept, self.export_bytes(), free=self.room(), spare=keep - 1)

    def room(self) -> int:
        """Bytes for the run folder: what is free where it is or will be, and what it holds already."""
        place = Path(self.earlier.path if self.earlier else self.config.runs).absolute()
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        held = sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) if self.earlier else 0
        return shutil.disk_usage(there).free + held

    def export_bytes(self) -> int:
        """Both LoRA files, and as many whole models as are asked for, in their precision."""
        options, full = self.config.export, self.config.adapter.trains_base
        each = 4 if options.precision == "fp32" else 2
        whole = each * sum(weight.numel() for weight in self.unet.parameters()) + self.frozen_bytes()
        return (0 if full else 2 * each * self.trained) + whole * ((full or options.merge) + options.single_file)

    def frozen_bytes(self) -> int:
        """The files of the parts that a whole model has beside the U-Net."""
        model = self.job.model
        if model.weights is not None:
            return model.weights.stat().st_size
        folders = [model.layout / part for part in ("vae", "text_encoder", "tokenizer")]
        return sum(file.stat().st_size for folder in folders for file in folder.glob("*") if file.is_file())


def times(done: int, stop: int, every: int) -> int:
    """How often something is due in the steps (done, stop], the last one included."""
    return stop // every - done // every + (stop % every != 0) if stop > done else 0
