"""What a run will take, before it starts: memory by parts, FLOPs, time from a short probe, disk space.

Memory and FLOPs are counted on the meta device (train/profiler.py), so `--dry-run` also answers for what is not loaded
yet; seconds come from up to three real steps, or from the metrics of an earlier session of the same run.
"""

import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from data import latent_cache, rng
from train import adapters, optim, profiler
from train.config import Config
from train.device import DTYPES, batch_layout, device_name
from train.losses import TEACHER_PASSES
from train.metrics import read_metrics
from train.model import BaseModel, Denoiser
from train.profiler import Flops, Setting, UnetInput, autoencoder_bytes, forward_bytes, optimizer_bytes
from train.run_folder import Run
from train.samples import preview_interval
from train.training_set import TrainingSet, all_prompts, encode_image, encode_text, image_frames, text_key

PREVIEW_BATCH = 4  # images at a time on a GPU: infer/pipeline.py's micro-batch
WORKSPACE = 0.25  # of the activations, on top: kernels' scratch and fragmentation; measured in LOG.md
CUDA_CONTEXT = 2**29  # bytes that CUDA and its libraries take
DISK_SPEED = 200e6  # bytes/s at which a checkpoint is written, hashed and flushed: an assumption, on the low side
PROBE_STEPS = 3  # the first one warms up and does not count
PROBE_SECONDS = 15.0  # no further probe step starts after this; if the first takes longer it counts alone


@dataclass(frozen=True)
class RunEstimate:
    """The estimate of one run; costly numbers are computed once, when they are first asked for.

    network: the U-Net as accelerate prepared it. previews: images each time. earlier: the run folder whose steps tell
    how long one takes.
    """

    config: Config
    accelerator: Accelerator
    model: BaseModel
    dataset: TrainingSet
    network: Any
    teacher_bytes: int = 0
    previews: int = 0
    earlier: Run | None = None

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

    def unet_input(self, batch: int, size: tuple[int, int] | None = None) -> UnetInput:
        """size: of the latents; None: the largest bucket's."""
        largest = size or max(self.sizes, key=lambda size: size[0] * size[1])
        return UnetInput(batch, *largest, self.model.tokenizer.model_max_length)

    @cached_property
    def costs(self) -> dict[tuple[int, int], Flops]:
        return profiler.flops_by_size(self.unet, self.sizes, self.model.tokenizer.model_max_length)

    @cached_property
    def flops(self) -> Flops:
        """Operations of one image, mean over an epoch."""
        return profiler.mean_flops(self.costs, self.sizes)

    @property
    def work(self) -> float:
        """Mean operations of a step for one image, the teacher of preserved prompts included."""
        return self.flops.step + self.config.preserve.share * TEACHER_PASSES * self.flops.forward

    # ---- memory

    @property
    def setting(self) -> Setting:
        half = DTYPES.get(self.accelerator.mixed_precision)
        return Setting(self.accelerator.device.type, half, self.config.accumulate > 1)

    def activations(self, batch: int, checkpointing: bool | None = None) -> int:
        """Bytes at the peak of a step beyond weights, gradients and optimiser state."""
        found = profiler.step_bytes(self.unet, self.unet_input(batch), self.setting, checkpointing=checkpointing)
        return found - 4 * self.trained

    @cached_property
    def memory(self) -> dict[str, Any]:
        """Bytes on the training device: `parts` of the training phase; the peak of each of the `phases` encoding,
        training, validation, drawing (previews) and saving; and what is `free`.
        """
        weights = sum(weight.nbytes for weight in self.unet.parameters())
        activations = self.activations(self.config.batch_size)
        on_cpu = self.accelerator.device.type == "cpu"
        held = {
            "weights": weights,
            "base": self.teacher_bytes,
            "optimiser": self.optimizer,
            "average": self.ema if self.config.ema.device == "same" else 0,
            "pictures": self.encoded_bytes(),
            "exchange": 4 * self.trained if self.accelerator.num_processes > 1 else 0,  # DDP's buckets
            # the interpreter and its libraries, or CUDA's context
            "process": max(0, profiler.resident_bytes() - weights) if on_cpu else CUDA_CONTEXT,
        }
        step = {"gradients": 4 * self.trained, "activations": activations, "kernels": int(WORKSPACE * activations)}
        always = sum(held.values())
        validation = forward_bytes(self.unet, self.unet_input(self.config.validation.timesteps), self.setting)
        phases = {"training": always + sum(step.values()), "validation": always + with_workspace(validation)}
        if on_cpu:  # a checkpoint is written from copies in main memory
            phases["saving"] = always + self.checkpoint_bytes
        if self.previews:
            phases["drawing"] = always + self.preview_bytes()
        if self.missing:
            bucket = max(self.dataset.buckets, key=lambda b: b.width * b.height)
            peak = autoencoder_bytes(self.model.config("vae"), "encode", bucket.height, bucket.width)
            phases["encoding"] = weights + held["process"] + with_workspace(peak)
        return {"parts": held | step, "phases": phases, "free": profiler.free_bytes(self.accelerator.device)}

    def encoded_bytes(self) -> int:
        """The encoded dataset: latent moments and text states in float32."""
        sides = 2 if self.config.pictures.flip else 1
        area = max(height * width for height, width in self.sizes)
        prompts = len({prompt for prompts in self.dataset.prompts.values() for prompt in prompts}) + 1
        states = prompts * self.model.tokenizer.model_max_length * self.unet.config["cross_attention_dim"]
        images = (len(self.dataset.train) + len(self.dataset.held_out)) * sides * 2 * self.model.latent_channels * area
        return 4 * (states + images)

    def preview_bytes(self) -> int:
        """Both encoders are loaded beside the U-Net, which predicts with the prompt and without."""
        rows = 2 if self.accelerator.device.type == "cpu" else 2 * PREVIEW_BATCH
        unet = forward_bytes(self.unet, self.unet_input(rows, self.preview_size), self.setting)
        decode = autoencoder_bytes(self.model.config("vae"), "decode", *self.preview_size)
        return profiler.text_encoder_bytes(self.model.config("text_encoder")) + with_workspace(max(unet, decode))

    @cached_property
    def missing(self) -> int:
        """Images that are not in the cache yet."""
        vae = self.model.fingerprints["vae"]
        return sum(not latent_cache.has_latents(frame, vae) for _, frame in image_frames(self.dataset, self.config))

    def fits(self) -> dict[str, Any]:
        """The memory `needed` and `free`; `helps`: flags with which it would suffice, those that cost least first."""
        phases, free = self.memory["phases"], self.memory["free"]
        needed, helps = max(phases.values()), list[str]()
        if needed > free:
            others = max(bytes_ for phase, bytes_ in phases.items() if phase != "training")
            helps = [flags for flags, bytes_ in self.savings() if max(phases["training"] - bytes_, others) <= free]
        return {"needed": needed, "free": free, "helps": helps}

    def savings(self) -> Iterator[tuple[str, int]]:
        """(flags, bytes that they save in training), those that cost least first."""
        config, activations = self.config, self.memory["parts"]["activations"]
        saved = self.optimizer - optimizer_bytes("adamw-8bit", self.shapes)
        less = with_workspace(activations - self.activations(config.batch_size, checkpointing=True))
        eight, checkpointing = "--optim.kind adamw-8bit", "--memory.gradient-checkpointing"
        if saved > 0:
            yield eight, saved
        if less > 0:
            yield checkpointing, less
            yield f"{eight} {checkpointing}", less + saved
        batch = config.batch_size
        while (batch := batch // 2) >= 1:
            fewer = with_workspace(activations - self.activations(batch))
            yield f"--batch-size {batch} --accumulate {config.accumulate * (config.batch_size // batch)}", fewer

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
            micro, update, steps = probe_steps(self.network, shape, self.accelerator, self.config)
        except torch.OutOfMemoryError:
            return None
        micro *= self.work / self.costs[common].step  # the mean image relative to the commonest bucket's
        return micro * self.config.accumulate + update, f"after a {steps}-step probe"

    def seconds_before(self) -> float | None:
        """From the metrics of an earlier session of this run on the same kind of device."""
        device = device_name(self.accelerator.device)
        if self.earlier is None or self.earlier.facts("plan.json").get("device") != device:
            return None
        speeds = [line.get("images_per_second") for line in read_metrics(self.earlier.metrics)]
        speeds = [speed for speed in speeds if speed]
        layout = batch_layout(self.config, self.accelerator)
        return layout.global_batch / statistics.median(speeds) if speeds else None

    def duration(self, done: int) -> dict[str, Any] | None:
        """Seconds of what is left after `done` steps by part; `step`: of one optimiser step, known as `how` says."""
        if self.timing is None:
            return None
        config, layout = self.config, batch_layout(self.config, self.accelerator)
        seconds, how = self.timing
        operation = seconds / (layout.batch_size * layout.accumulate * self.work)  # of the U-Net, on one device
        validations = count_due(done, config.max_steps, config.validation.every) + (done == 0)
        images = sum(min(len(side), config.validation.pictures) for side in (self.dataset.train, self.dataset.held_out))
        validation = images * config.validation.timesteps * self.flops.forward
        saves = count_due(done, config.max_steps, config.checkpoints.every)
        return {
            "step": seconds,
            "how": how,
            "images_per_second": layout.global_batch / seconds,
            "encoding": self.encoding_seconds(),
            "training": seconds * max(0, config.max_steps - done),
            "validation": validations * validation * operation,
            "previews": self.preview_flops(done) * operation,
            "checkpoints": saves * self.checkpoint_bytes / DISK_SPEED,
        }

    def preview_flops(self, done: int) -> float:
        """Operations of the previews that are still to be generated, the base's included."""
        if not self.previews:
            return 0.0
        options, tokens = self.config.previews, self.model.tokenizer.model_max_length
        forward = profiler.flops_by_size(self.unet, [self.preview_size], tokens)[self.preview_size].forward
        rows = 2 if options.guidance is None or options.guidance > 1 else 1
        decode = profiler.decode_flops(self.model.config("vae"), *self.preview_size)
        times = count_due(done, self.config.max_steps, preview_interval(self.config)) + (done == 0)
        return times * self.previews * (options.steps * rows * forward + decode)

    def encoding_seconds(self) -> float:
        """Of the images and captions that are not in the cache yet, by timing one of each."""
        chunks = self.dataset.chunks
        model, device, key = self.model, self.accelerator.device, text_key(self.model, self.dataset.chunks)
        captions = sum(not latent_cache.has_text_states(text, key) for text in all_prompts(self.dataset))
        seconds = captions * min(timed(lambda: encode_text(model, "", device, chunks), device)) if captions else 0.0
        if not self.missing:
            return seconds
        bucket = max(self.dataset.buckets, key=lambda b: len(self.dataset.buckets[b]))
        grey = torch.zeros(1, 3, bucket.height, bucket.width)
        return seconds + self.missing * min(timed(lambda: encode_image(model, grey, device), device))

    # ---- disk

    @property
    def checkpoint_bytes(self) -> int:
        return 4 * self.trained + self.optimizer + self.ema

    def disk(self) -> dict[str, int]:
        """Bytes that the run folder will hold, in `total` with one more checkpoint than are kept: the oldest is deleted
        only when a new one is whole. free: for all of it. spare: kept checkpoints that could be dropped.
        """
        keep, checkpoint, export = self.config.checkpoints.keep, self.checkpoint_bytes, self.export_bytes()
        kept = keep + (self.config.checkpoints.export == "best")  # the best step's, beside the newest ones
        place = Path(self.earlier.path if self.earlier else self.config.runs).absolute()
        existing = next(folder for folder in (place, *place.parents) if folder.exists())
        held = sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) if self.earlier else 0
        free, total = shutil.disk_usage(existing).free + held, checkpoint * (kept + 1) + export
        return {
            "checkpoint": checkpoint,
            "kept": kept,
            "export": export,
            "total": total,
            "free": free,
            "spare": keep - 1,
        }

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


def probe_steps(
    unet: nn.Module, shape: UnetInput, accelerator: Accelerator, config: Config
) -> tuple[float, float, int]:
    """Seconds of a micro-batch's forward and backward pass and of the optimiser's step, and how many passes were timed.

    unet: as accelerate prepared it, without gradients; it is left unchanged.
    """
    weights = list(adapters.trainable_parameters(unet).values())
    assert all(weight.grad is None for weight in weights), "the probe runs between two steps"
    device, made = accelerator.device, accelerator.unwrap_model(unet).config
    noise = rng.normal((shape.batch, made["in_channels"], shape.height, shape.width), "probe").to(device)
    states = rng.normal((shape.batch, shape.tokens, made["cross_attention_dim"]), "probe").to(device)
    t = torch.full((shape.batch,), 500, device=device)

    def forward_backward() -> None:
        for weight in weights:
            weight.grad = None
        adapters.set_sample_keys(torch.linspace(0, 1, shape.batch, dtype=torch.float64, device=device))
        accelerator.backward((Denoiser(unet)(noise, t, states) - noise).square().mean())

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # dropout uses the global generator
        try:
            # every process has to take as many steps as the others, which wait for its gradients
            micros = timed(forward_backward, device, PROBE_SECONDS if accelerator.num_processes == 1 else math.inf)
            updates = timed(optimizer_step(weights, config), device)
        finally:
            for weight in weights:
                weight.grad = None
    return min(micros[1:] or micros), min(updates[1:] or updates), len(micros)


def optimizer_step(weights: list[nn.Parameter], config: Config) -> Callable[[], None]:
    """Clipping and a step of the optimiser, on copies of the weights."""
    copies = [nn.Parameter(weight.detach().clone()) for weight in weights]
    for copied, weight in zip(copies, weights, strict=True):
        copied.grad = weight.grad
    optimizer = optim.build_optimizer(copies, config.optim)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(copies, 1.0)
        optimizer.step()

    return update


def timed(work: Callable[[], Any], device: torch.device, limit: float = PROBE_SECONDS) -> list[float]:
    """Seconds of each of PROBE_STEPS calls, of fewer if they take more than `limit` together."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    seconds: list[float] = []
    while len(seconds) < PROBE_STEPS and sum(seconds) < limit:
        wait()
        start = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - start)
    return seconds
