"""What a run will take, before it starts: memory by parts, FLOPs, time from a short probe, disk space.

Memory and FLOPs are counted on the meta device, so `--dry-run` also answers for what is not loaded yet; seconds come
from up to three real steps, or from the metrics of an earlier session of the same run.
"""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from data import latent_cache, rng
from data.cli import find_flags
from data.dataset import Batch, BatchLayout
from train import adapters, lora, optim
from train.config import Config
from train.device import DTYPES, batch_layout, device_name
from train.encode import all_prompts, encode_image, encode_text, image_frames, text_key
from train.flops import Flops, UnetInput, decode_flops, flops_by_size, mean_flops
from train.memory import (
    Setting,
    autoencoder_bytes,
    forward_bytes,
    free_bytes,
    optimizer_bytes,
    resident_bytes,
    step_bytes,
    text_encoder_bytes,
)
from train.metrics import read_metrics
from train.model import BaseModel, Denoiser
from train.prior_preservation import TEACHER_PASSES
from train.run_folder import Run
from train.samples import preview_interval
from train.training_set import TrainingSet

PREVIEW_BATCH = 4  # images at a time on a GPU: infer/pipeline.py's micro-batch
WORKSPACE = 0.25  # of the activations, on top: kernels' scratch and fragmentation; measured in LOG.md
CUDA_CONTEXT = 2**29  # bytes that CUDA and its libraries take
DISK_SPEED = 200e6  # bytes/s at which a checkpoint is written, hashed and flushed: an assumption, on the low side
PROBE_STEPS = 3  # the first one warms up and does not count
PROBE_SECONDS = 15.0  # no further probe step starts after this; if the first takes longer it counts alone


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the training device by purpose; the peak is that of the largest phase."""

    parts: Mapping[str, int]  # of the training phase; they add up to its peak
    phases: Mapping[str, int]  # peak of each phase: encoding, training, validation, drawing (previews), saving
    free: int | None  # what the device has for us, None if not known

    @property
    def peak(self) -> int:
        return max(self.phases.values())

    @property
    def largest_phase(self) -> str:
        return max(self.phases, key=lambda phase: self.phases[phase])


@dataclass(frozen=True)
class Fits:
    """Whether the memory suffices. helps: flags with which it would, those that cost least first."""

    needed: int
    free: int | None
    helps: list[str]


@dataclass(frozen=True)
class Duration:
    """Seconds of what is left to do, by part; `step`: of one optimiser step, known as `how` says."""

    step: float
    how: str
    images_per_second: float
    training: float
    validation: float
    checkpoints: float
    encoding: float  # images that are not in the cache yet
    previews: float

    @property
    def parts(self) -> dict[str, float]:
        names = ("encoding", "training", "validation", "previews", "checkpoints")
        return {name: getattr(self, name) for name in names}

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Disk:
    """Bytes that the run folder will hold. free: for all of it; spare: kept checkpoints that could be dropped."""

    checkpoint: int
    kept: int
    export: int
    free: int
    spare: int

    @property
    def total(self) -> int:
        """One more checkpoint than are kept: the oldest is deleted only when a new one is whole."""
        return self.checkpoint * (self.kept + 1) + self.export


@dataclass(frozen=True)
class Timing:
    """Seconds of a micro-batch's forward and backward pass, of the optimiser's step, and how many were run."""

    micro: float
    update: float
    steps: int


@dataclass(frozen=True)
class RunEstimate:
    """The estimate of one run; costly numbers are computed once, when they are first asked for.

    network: the U-Net as accelerate prepared it. earlier: the run folder whose steps tell how long one takes.
    """

    config: Config
    accelerator: Accelerator
    model: BaseModel
    dataset: TrainingSet
    network: Any
    teacher_bytes: int = 0
    previews: int = 0  # images each time
    earlier: Run | None = None

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def layout(self) -> BatchLayout:
        return batch_layout(self.config, self.accelerator)

    @cached_property
    def unet(self) -> Any:
        return self.accelerator.unwrap_model(self.network, keep_torch_compile=False)

    @cached_property
    def shapes(self) -> list[torch.Size]:
        """Of the trained weights."""
        return [weight.shape for weight in adapters.trainable_parameters(self.unet).values()]

    @property
    def trained(self) -> int:
        return sum(shape.numel() for shape in self.shapes)

    @property
    def optimizer(self) -> int:
        """Bytes of the optimiser's state."""
        return optimizer_bytes(self.config.optim.kind, self.shapes)

    @property
    def ema(self) -> int:
        """Bytes of the moving average, wherever it lies."""
        return 4 * self.trained if self.config.ema.decay else 0

    @property
    def tokens(self) -> int:
        return self.model.tokenizer.model_max_length

    @cached_property
    def sizes(self) -> dict[tuple[int, int], int]:
        """Latent sizes (height, width) of the buckets and how many images each has."""
        factor = self.model.factor
        return {(b.height // factor, b.width // factor): len(held) for b, held in self.dataset.buckets.items()}

    @property
    def preview_size(self) -> tuple[int, int]:
        """Of the latents."""
        side = self.dataset.square.width // self.model.factor
        return side, side

    def unet_input(self, batch: int, size: tuple[int, int]) -> UnetInput:
        return UnetInput(batch, *size, self.tokens)

    @property
    def largest_size(self) -> tuple[int, int]:
        return max(self.sizes, key=lambda size: size[0] * size[1])

    @cached_property
    def costs(self) -> dict[tuple[int, int], Flops]:
        return flops_by_size(self.unet, self.sizes, self.tokens)

    @cached_property
    def flops(self) -> Flops:
        """Operations of one image, mean over an epoch."""
        return mean_flops(self.costs, self.sizes)

    @property
    def work(self) -> float:
        """Mean operations of a step for one image, the teacher of preserved prompts included."""
        return self.flops.step + self.config.preserve.share * TEACHER_PASSES * self.flops.forward

    # ---- memory

    @property
    def setting(self) -> Setting:
        half = DTYPES.get(self.accelerator.mixed_precision)
        return Setting(self.device.type, half, self.config.accumulate > 1)

    def activations(self, batch: int, checkpointing: bool | None = None) -> int:
        """Bytes at the peak of a step beyond weights, gradients and optimiser state."""
        shape = self.unet_input(batch, self.largest_size)
        return step_bytes(self.unet, shape, self.setting, checkpointing=checkpointing) - 4 * self.trained

    @cached_property
    def memory(self) -> MemoryEstimate:
        weights = sum(weight.nbytes for weight in self.unet.parameters())
        activations = self.activations(self.config.batch_size)
        on_cpu = self.device.type == "cpu"
        parts = {
            "weights": weights,
            "base": self.teacher_bytes,
            "gradients": 4 * self.trained,
            "optimiser": self.optimizer,
            "average": self.ema if self.config.ema.device == "same" else 0,
            "activations": activations,
            "kernels": int(WORKSPACE * activations),
            "pictures": self.encoded_bytes(),
            "exchange": 4 * self.trained if self.layout.processes > 1 else 0,  # DDP's buckets
            # the interpreter and its libraries, or CUDA's context
            "process": max(0, resident_bytes() - weights) if on_cpu else CUDA_CONTEXT,
        }
        held = sum(bytes_ for part, bytes_ in parts.items() if part not in ("gradients", "activations", "kernels"))
        validation = self.unet_input(self.config.validation.timesteps, self.largest_size)
        phases = {
            "training": sum(parts.values()),
            "validation": held + with_workspace(forward_bytes(self.unet, validation, self.setting)),
        }
        if on_cpu:  # a checkpoint is written from copies in main memory
            phases["saving"] = held + self.checkpoint_bytes
        if self.previews:
            phases["drawing"] = held + self.preview_bytes()
        if self.missing:
            bucket = max(self.dataset.buckets, key=lambda b: b.width * b.height)
            peak = autoencoder_bytes(self.model.config("vae"), "encode", bucket.height, bucket.width)
            phases["encoding"] = weights + parts["process"] + with_workspace(peak)
        return MemoryEstimate(parts, phases, free_bytes(self.device))

    def encoded_bytes(self) -> int:
        """The encoded dataset: latent moments and text states in float32."""
        sides = 2 if self.config.pictures.flip else 1
        area = max(height * width for height, width in self.sizes)
        prompts = len({prompt for prompts in self.dataset.prompts.values() for prompt in prompts}) + 1
        states = prompts * self.tokens * self.unet.config["cross_attention_dim"]
        images = (len(self.dataset.train) + len(self.dataset.held_out)) * sides * 2 * self.model.latent_channels * area
        return 4 * (states + images)

    def preview_bytes(self) -> int:
        """Both encoders are loaded beside the U-Net, which predicts with the prompt and without."""
        rows = 2 if self.device.type == "cpu" else 2 * PREVIEW_BATCH
        unet = forward_bytes(self.unet, self.unet_input(rows, self.preview_size), self.setting)
        decode = autoencoder_bytes(self.model.config("vae"), "decode", *self.preview_size)
        return text_encoder_bytes(self.model.config("text_encoder")) + with_workspace(max(unet, decode))

    @cached_property
    def missing(self) -> int:
        """Images that are not in the cache yet."""
        vae = self.model.fingerprints["vae"]
        return sum(not latent_cache.has_latents(frame, vae) for _, frame in image_frames(self.dataset, self.config))

    def fits(self) -> Fits:
        """Whether there is enough memory, and if not, what would help."""
        needed, free = self.memory.peak, self.memory.free
        if free is None or needed <= free:
            return Fits(needed, free, [])
        others = max(bytes_ for phase, bytes_ in self.memory.phases.items() if phase != "training")
        return Fits(needed, free, [flags for flags, bytes_ in self.savings() if max(bytes_, others) <= free])

    def savings(self) -> Iterator[tuple[str, int]]:
        """(flags, peak of training with them), those that cost least first. Only flags that exist."""
        config, now, flags = self.config, self.memory.phases["training"], find_flags(Config)
        saved = self.optimizer - optimizer_bytes("adamw-8bit", self.shapes)
        activations = self.memory.parts["activations"]
        less = with_workspace(activations - self.activations(config.batch_size, checkpointing=True))
        eight, checkpointing = "--optim.kind adamw-8bit", "--memory.gradient-checkpointing"
        if saved > 0:
            yield eight, now - saved
        if less > 0 and "memory.gradient_checkpointing" in flags:
            yield checkpointing, now - less
            yield f"{eight} {checkpointing}", now - less - saved
        batch = config.batch_size
        while (batch := batch // 2) >= 1:
            fewer = with_workspace(activations - self.activations(batch))
            yield f"--batch-size {batch} --accumulate {config.accumulate * (config.batch_size // batch)}", now - fewer

    # ---- time

    @cached_property
    def timing(self) -> tuple[float, str] | None:
        """Seconds of an optimiser step, mean over the buckets, and how that is known; None without a probe."""
        if (seconds := self.seconds_before()) is not None:
            return seconds, "as in the steps before"
        if not self.config.probe:
            return None
        common = max(self.sizes, key=lambda size: self.sizes[size])
        shape = self.unet_input(self.config.batch_size, common)
        try:
            probe = probe_steps(self.network, shape, self.accelerator, self.config)
        except torch.OutOfMemoryError:
            return None
        micro = probe.micro * self.work / self.costs[common].step  # the mean image relative to the commonest bucket's
        return micro * self.config.accumulate + probe.update, f"after a {probe.steps}-step probe"

    def seconds_before(self) -> float | None:
        """From the metrics of an earlier session of this run on the same kind of device."""
        if self.earlier is None or self.earlier.facts("plan.json").get("device") != device_name(self.device):
            return None
        speeds = [line.get("images_per_second") for line in read_metrics(self.earlier.metrics)]
        speeds = [speed for speed in speeds if speed]
        return self.layout.global_batch / statistics.median(speeds) if speeds else None

    def duration(self, done: int) -> Duration | None:
        """Seconds of what is left after `done` steps."""
        if self.timing is None:
            return None
        config, layout = self.config, self.layout
        seconds, how = self.timing
        operation = seconds / (layout.batch_size * layout.accumulate * self.work)  # of the U-Net, on one device
        validations = count_due(done, config.max_steps, config.validation.every) + (done == 0)
        images = sum(min(len(side), config.validation.pictures) for side in (self.dataset.train, self.dataset.held_out))
        validation = images * config.validation.timesteps * self.flops.forward
        saves = count_due(done, config.max_steps, config.checkpoints.every)
        return Duration(
            step=seconds,
            how=how,
            images_per_second=layout.global_batch / seconds,
            training=seconds * max(0, config.max_steps - done),
            validation=validations * validation * operation,
            checkpoints=saves * self.checkpoint_bytes / DISK_SPEED,
            encoding=self.encoding_seconds(),
            previews=self.preview_flops(done) * operation,
        )

    def preview_flops(self, done: int) -> float:
        """Operations of the previews that are still to be generated, the base's included."""
        if not self.previews:
            return 0.0
        options = self.config.previews
        forward = flops_by_size(self.unet, [self.preview_size], self.tokens)[self.preview_size].forward
        rows = 2 if options.guidance is None or options.guidance > 1 else 1
        image = options.steps * rows * forward + decode_flops(self.model.config("vae"), *self.preview_size)
        times = count_due(done, self.config.max_steps, preview_interval(self.config)) + (done == 0)
        return times * self.previews * image

    def encoding_seconds(self) -> float:
        """Of the images and captions that are not in the cache yet, by timing one of each."""
        model, device, key = self.model, self.device, text_key(self.model)
        captions = sum(not latent_cache.has_text_states(text, key) for text in all_prompts(self.dataset))
        seconds = captions * min(timed(lambda: encode_text(model, "", device), device)) if captions else 0.0
        if not self.missing:
            return seconds
        bucket = max(self.dataset.buckets, key=lambda b: len(self.dataset.buckets[b]))
        grey = torch.zeros(1, 3, bucket.height, bucket.width)
        return seconds + self.missing * min(timed(lambda: encode_image(model, grey, device), device))

    # ---- disk

    @property
    def checkpoint_bytes(self) -> int:
        return 4 * self.trained + self.optimizer + self.ema

    def disk(self) -> Disk:
        """The best step's checkpoint is kept beside the newest ones."""
        keep = self.config.checkpoints.keep
        kept = keep + (self.config.checkpoints.export == "best")
        place = Path(self.earlier.path if self.earlier else self.config.runs).absolute()
        existing = next(folder for folder in (place, *place.parents) if folder.exists())
        held = sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) if self.earlier else 0
        free = shutil.disk_usage(existing).free + held
        return Disk(self.checkpoint_bytes, kept, self.export_bytes(), free, spare=keep - 1)

    def export_bytes(self) -> int:
        """Both LoRA files, and as many whole models as are asked for, in their precision."""
        options, full = self.config.export, self.config.adapter.trains_base
        each = 4 if options.precision == "fp32" else 2
        whole = each * sum(weight.numel() for weight in self.unet.parameters()) + self.frozen_bytes()
        return (0 if full else 2 * each * self.trained) + whole * ((full or options.merge) + options.single_file)

    def frozen_bytes(self) -> int:
        """The files of the parts that a whole model has beside the U-Net."""
        if self.model.weights is not None:
            return self.model.weights.stat().st_size
        folders = [self.model.layout / part for part in ("vae", "text_encoder", "tokenizer")]
        return sum(file.stat().st_size for folder in folders for file in folder.glob("*") if file.is_file())


def with_workspace(activations: int) -> int:
    return int((1 + WORKSPACE) * activations)


def count_due(done: int, stop: int, every: int) -> int:
    """How often something is due in the steps (done, stop], the last one included."""
    return stop // every - done // every + (stop % every != 0) if stop > done else 0


# ---- the probe


def probe_steps(unet: nn.Module, shape: UnetInput, accelerator: Accelerator, config: Config) -> Timing:
    """Time up to three steps. unet: as accelerate prepared it, without gradients; it is left unchanged."""
    weights = list(adapters.trainable_parameters(unet).values())
    assert all(weight.grad is None for weight in weights), "the probe runs between two steps"
    device, batch = accelerator.device, random_batch(shape, accelerator.unwrap_model(unet).config, accelerator.device)

    def forward_backward() -> None:
        for weight in weights:
            weight.grad = None
        lora.set_sample_keys(batch.timestep_uniforms)
        t = torch.full((shape.batch,), 500, device=device)
        error = Denoiser(unet)(batch.latents, t, batch.text_states) - batch.noise
        accelerator.backward(error.square().mean())

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # dropout uses the global generator
        try:
            # every process has to take as many steps as the others, which wait for its gradients
            micros = timed(forward_backward, device, PROBE_SECONDS if accelerator.num_processes == 1 else math.inf)
            updates = timed(optimizer_step(weights, config), device)
        finally:
            for weight in weights:
                weight.grad = None
    return Timing(min(micros[1:] or micros), min(updates[1:] or updates), len(micros))


def random_batch(shape: UnetInput, unet_config: Mapping[str, Any], device: torch.device) -> Batch:
    """Noise in place of latents and captions: the time does not depend on values."""
    size = (shape.batch, unet_config["in_channels"], shape.height, shape.width)
    latents = rng.normal(size, "probe", "latents").to(device)
    states = rng.normal((shape.batch, shape.tokens, unet_config["cross_attention_dim"]), "probe", "states").to(device)
    uniforms = torch.linspace(0, 1, shape.batch, dtype=torch.float64, device=device)
    return Batch(latents, states, latents, latents, uniforms, [""] * shape.batch, [False] * shape.batch)


def optimizer_step(weights: list[nn.Parameter], config: Config) -> Callable[[], None]:
    """Clipping and a step of the optimiser, on copies of the weights."""
    copies = [nn.Parameter(weight.detach().clone()) for weight in weights]
    for copied, weight in zip(copies, weights, strict=True):
        copied.grad = weight.grad
    optimizer = optim.build_optimizer(copies, config.optim)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(optim.optimized_weights(optimizer), 1.0)
        optimizer.step()

    return update


def timed(work: Callable[[], Any], device: torch.device, limit: float = PROBE_SECONDS) -> list[float]:
    """Seconds of each of PROBE_STEPS calls, of fewer if they take more than `limit` together."""
    seconds: list[float] = []
    while len(seconds) < PROBE_STEPS and sum(seconds) < limit:
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
