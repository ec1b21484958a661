"""Bytes that training keeps beside the weights: what an optimiser remembers of them, and an average of them."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint as recompute
from torch.utils.flop_counter import FlopCounterMode

from data import latent_cache, rng
from data.atomic_io import cache_root, write_atomic
from data.cli import find_flags
from data.dataset import Batch, BatchLayout
from train import adapters, device, lora, model, optim
from train.config import Config, EmaOptions
from train.device import DTYPES, batch_layout, device_name
from train.encode import all_prompts, encode_image, encode_text, image_frames, text_key
from train.losses import objective_warnings
from train.metrics import read_metrics
from train.model import BaseModel, Denoiser
from train.optim import learning_rate
from train.prior_preservation import TEACHER_PASSES
from train.run_folder import Run
from train.samples import preview_interval
from train.training_set import FolderShare, TrainingSet


@dataclass(frozen=True)
class AverageBytes:
    """What an average of the weights takes, on the training device and wherever it lies."""

    device: int
    anywhere: int


def ema_bytes(average: EmaOptions, trained: int) -> AverageBytes:
    """A float32 number a trained weight, if there is an average."""
    total = 4 * trained if average.decay else 0
    return AverageBytes(total if average.device == "same" else 0, total)


def optimizer_bytes(kind: str, shapes: Iterable[Sequence[int]]) -> int:
    """Bytes of optimiser state for weights of these shapes; a few for the steps it counts are left out."""
    return sum(STATE[kind](shape) for shape in shapes)


def two_moments(shape: Sequence[int]) -> int:
    return 8 * math.prod(shape)


def two_bytes(shape: Sequence[int]) -> int:
    """Two 8-bit moments, a float32 scale of each for every 256 numbers, and a table; small ones stay in float32."""
    numbers = math.prod(shape)
    return two_moments(shape) if numbers < 4096 else 2 * numbers + 2 * 4 * math.ceil(numbers / 256) + 2 * 4 * 256


def rows_and_columns(shape: Sequence[int]) -> int:
    """A number for each row and each column of the last two dimensions: little for a matrix, not for a convolution."""
    if len(shape) < 2:
        return 4 * math.prod(shape)
    *outer, rows, columns = shape
    return 4 * math.prod(outer) * (rows + columns)


def four_numbers(shape: Sequence[int]) -> int:
    """Two moments, the starting point and a running sum of gradients; at most: zeros to start from take one number."""
    return 16 * math.prod(shape)


STATE = {
    "adamw": two_moments,
    "adamw-8bit": two_bytes,
    "adafactor": rows_and_columns,
    "prodigy": four_numbers,
    "schedule-free": two_moments,
}


COUNTS_VERSION = 1  # raise it when the same question would get another answer


@dataclass(frozen=True)
class UnetInput:
    """What a network is asked in one micro-batch: (batch, C, height, width) latents, (batch, tokens, D) states."""

    batch: int
    height: int  # of the latents
    width: int
    tokens: int = 77

    def tensors(self, network: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, timesteps and text states for a U-Net, on the meta device; dropout is told of them."""
        config = network.config
        lora.set_sample_keys(torch.empty(self.batch, dtype=torch.float64, device="meta"))
        latents = torch.empty(self.batch, config["in_channels"], self.height, self.width, device="meta")
        states = torch.empty(self.batch, self.tokens, config["cross_attention_dim"], device="meta")
        return latents, torch.empty(self.batch, dtype=torch.int64, device="meta"), states


def meta_copy(network: nn.Module) -> Any:
    """A copy of a network on the meta device: same code, adapter, frozen weights, types and checkpointing."""
    places = {id(tensor): meta_tensor(tensor) for tensor in (*network.parameters(), *network.buffers())}
    bones: Any = copy.deepcopy(network, places)
    for module in bones.modules():
        # accelerate puts its precision around `forward`, and compiled code belongs to real weights
        vars(module).pop("forward", None)
        module._compiled_call_impl = None
    if hasattr(bones, "set_attn_processor"):
        from diffusers.models.attention_processor import AttnProcessor2_0

        bones.set_attn_processor(AttnProcessor2_0())  # others have kernels that know no meta tensors
    return bones


def meta_autoencoder(config: Mapping[str, Any]) -> Any:
    """The autoencoder of this config on the meta device, in evaluation mode."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        network: Any = AutoencoderKL.from_config(dict(config))
    return network.eval()


def meta_tensor(tensor: Tensor) -> Tensor:
    """A meta tensor of the same shape, strides and type."""
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def cached_count(network: nn.Module, question: Any, count: Callable[[], list[int]]) -> list[int]:
    """`count()`, or what it gave for a network of this build and this question before."""
    memo = cache_root() / "counts" / f"{key_of(network, question)}.json"
    try:
        return [int(number) for number in json.loads(memo.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        found = count()
        write_atomic(memo, json.dumps(found))
        return found


def key_of(network: nn.Module, question: Any) -> str:
    """A hash over all that a count depends on; weights' values are not among it."""
    weights = [
        (name, tuple(weight.shape), weight.stride(), str(weight.dtype), weight.requires_grad)
        for name, weight in network.named_parameters()
    ]
    switches = [bool(getattr(module, "gradient_checkpointing", False)) for module in network.modules()]
    modules = [type(module).__name__ for module in network.modules()]
    config = dict(getattr(network, "config", {}))
    facts = [
        COUNTS_VERSION,
        torch.__version__,
        repr(question),
        weights,
        switches,
        modules,
        repr(sorted(config.items())),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


TERA = 1e12

# Dense peaks by the makers' data sheets, TFLOP/s: (fp16 and bf16 on tensor cores, tf32 on tensor cores, fp32).
# The longest name that is a part of the device's name counts. NVIDIA halves GeForce cards with fp32 accumulation.
PEAKS: Mapping[str, tuple[float, float | None, float]] = {
    "T4": (65, None, 8.1),
    "V100": (125, None, 15.7),
    "A10": (125, 62.5, 31.2),
    "A40": (149.7, 74.8, 37.4),
    "A100": (312, 156, 19.5),
    "L4": (121, 60, 30.3),
    "L40": (181, 90.5, 90.5),
    "L40S": (362, 183, 91.6),
    "RTX A6000": (154.8, 77.4, 38.7),
    "RTX 3090": (71, 35.6, 35.6),
    "RTX 4090": (165.2, 82.6, 82.6),
    "H100": (989, 494.5, 67),
    "H100 PCIe": (756, 378, 51),
    "H200": (989, 494.5, 67),
}


@dataclass(frozen=True)
class Flops:
    """Operations for one sample: a forward pass, and a training step (forward, backward, no recomputation)."""

    forward: float
    step: float


def step_flops(network: nn.Module, question: UnetInput, *, checkpointing: bool = False) -> int:
    """Operations of forward and backward for question.batch samples through a U-Net, frozen weights considered.

    checkpointing: count what gradient checkpointing computes again (what the hardware does, not what the model needs).
    """
    return forward_and_step_flops(network, question, checkpointing)[1]


def forward_and_step_flops(network: nn.Module, question: UnetInput, checkpointing: bool = False) -> list[int]:
    """(forward alone, forward and backward)"""
    return cached_count(
        network, ("flops", question, checkpointing), lambda: count_flops(network, question, checkpointing)
    )


def count_flops(network: nn.Module, question: UnetInput, checkpointing: bool) -> list[int]:
    """Run a network's code on shapes alone and count. On the meta device attention is two matrix products."""
    bones = meta_copy(network).train()
    switch_checkpointing(bones, checkpointing)
    with FlopCounterMode(display=False) as counter:
        predicted = Denoiser(bones)(*question.tensors(bones))
        forward = int(counter.get_total_flops())
        predicted.square().mean().backward()
    return [forward, int(counter.get_total_flops())]


@torch.no_grad()
def decode_flops(vae_config: Mapping[str, Any], height: int, width: int) -> int:
    """Operations of decoding one picture. height, width: of its latents."""
    network = meta_autoencoder(vae_config)

    def counted() -> list[int]:
        with FlopCounterMode(display=False) as counter:
            network.decode(torch.empty(1, vae_config["latent_channels"], height, width, device="meta"))
        return [int(counter.get_total_flops())]

    return cached_count(network, ("decode flops", height, width), counted)[0]


def switch_checkpointing(bones: Any, on: bool) -> None:
    """Gradient checkpointing on or off, for networks that know it."""
    if on:
        bones.enable_gradient_checkpointing()
    elif getattr(bones, "is_gradient_checkpointing", False):
        bones.disable_gradient_checkpointing()


def by_area(network: nn.Module, sizes: Iterable[tuple[int, int]], tokens: int) -> dict[tuple[int, int], Flops]:
    """The operations for one sample of each latent size (height, width).

    Layers cost in proportion to the area and self-attention to its square, so three areas tell all others exactly
    (sides are multiples of what the U-Net halves, so no layer rounds).
    """
    wanted = list(sizes)
    shapes = {height * width: (height, width) for height, width in wanted}
    asked = dict(sorted(shapes.items())[:3])
    counts = {area: forward_and_step_flops(network, UnetInput(1, *size, tokens)) for area, size in asked.items()}
    forwards, steps = ({area: pair[which] for area, pair in counts.items()} for which in (0, 1))
    return {(h, w): Flops(interpolate(forwards, h * w), interpolate(steps, h * w)) for h, w in wanted}


def interpolate(points: Mapping[int, int], x: int) -> float:
    """Lagrange's polynomial through whole-number points, exact, at x."""
    total = Fraction(0)
    for a, value in points.items():
        term = Fraction(value)
        for b in points:
            term *= Fraction(x - b, a - b) if b != a else 1
        total += term
    return float(total)


def mean_flops(costs: Mapping[tuple[int, int], Flops], counts: Mapping[tuple[int, int], int]) -> Flops:
    """The mean over an epoch: buckets take turns in proportion to their pictures."""
    total = sum(counts.values())
    forward = sum(costs[size].forward * number for size, number in counts.items()) / total
    return Flops(forward, sum(costs[size].step * number for size, number in counts.items()) / total)


def peak_flops(device: torch.device, precision: str = "no") -> float | None:
    """FLOP/s that the device could do at most in this precision, or None for one that is not in the table.

    precision: accelerate's word: no (float32, or TF32 if torch may use it), fp16 or bf16.
    """
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), precision, bool(torch.backends.cuda.matmul.allow_tf32))


def peak_of(name: str, precision: str, tf32: bool) -> float | None:
    """FLOP/s by a device's name, e.g. NVIDIA A100-SXM4-80GB."""
    words = set(name.replace("-", " ").split())
    known = [key for key in PEAKS if set(key.split()) <= words]
    if not known:
        return None
    half, tensor32, plain = PEAKS[max(known, key=len)]
    if precision in ("fp16", "bf16"):
        return half * TERA
    return (tensor32 if tf32 and tensor32 else plain) * TERA


GIB = 2**30
# What autocast computes in half precision, and what in float32: the layers that a U-Net has, of torch's lists
# (docs "Autocast Op Reference"). The CPU's lists leave the norms as they come.
HALVED = {F.linear, F.conv2d, F.scaled_dot_product_attention, torch.matmul, torch.bmm, torch.baddbmm}
KEPT_WHOLE = {"cuda": {F.layer_norm, F.group_norm, F.softmax}}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the training device, by what they are for; the peak is that of the hungriest phase."""

    parts: Mapping[str, int]  # of the training phase; they add up to its peak
    phases: Mapping[str, int]  # peak of each phase: encoding, training, validation, drawing, saving
    free: int | None  # what the device has for us, None if not known

    @property
    def peak(self) -> int:
        return max(self.phases.values())

    @property
    def hungriest(self) -> str:
        return max(self.phases, key=lambda phase: self.phases[phase])


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that are alive, and their peak; `known` were there before and do not count."""

    def __init__(self, known: Iterator[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.note(tensor)
        return out

    def note(self, tensor: Tensor) -> None:
        """A storage that was not seen before was allocated just now; it tells when it goes."""
        storage = tensor.untyped_storage()
        name = storage._cdata
        if name in self.sizes:
            return
        self.sizes[name] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.gone, name)

    def gone(self, name: int) -> None:
        self.now -= self.sizes.pop(name)


class DeviceRules(TorchFunctionMode):
    """What the device does and the meta device does not: attention that keeps no attention matrix, and autocast."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.half, self.setting = setting.half, setting
        self.whole = KEPT_WHOLE.get(setting.device, set())
        self.casts: dict[int, Tensor] = {}  # autocast casts a weight once a forward pass

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.half is not None and func in HALVED:
            args, kwargs = tree_map_only(Tensor, self.halved, (args, kwargs))
        elif self.half is not None and func in self.whole:
            args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.float(), (args, kwargs))
        if func is F.scaled_dot_product_attention:
            return self.attention(*args, **kwargs)
        return func(*args, **kwargs)

    def halved(self, tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.float32:
            return tensor
        if not isinstance(tensor, nn.Parameter):
            return tensor.to(self.half)
        if id(tensor) not in self.casts:
            self.casts[id(tensor)] = tensor.to(self.half)
        return self.casts[id(tensor)]

    def attention(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        """Fused attention keeps its inputs, its output and one number a row, on every device (arXiv 2205.14135)."""
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]


@dataclass(frozen=True)
class Setting:
    """What the memory of a step depends on beside the network and the question."""

    device: str = "cpu"
    half: torch.dtype | None = None  # autocast's type
    accumulate: bool = False  # gradients of earlier micro-batches are there while the next one is computed


def step_bytes(network: nn.Module, question: UnetInput, setting: Setting, *, checkpointing: bool | None = None) -> int:
    """The peak of a step's forward and backward pass, gradients included, weights and optimiser not.

    checkpointing: None as the network has it. Exact for the tensors; kernels' own workspaces come on top.
    """
    asked = ("step", question, setting, checkpointing)
    return cached_count(network, asked, lambda: [count_step_bytes(network, question, setting, checkpointing)])[0]


def count_step_bytes(network: nn.Module, question: UnetInput, setting: Setting, checkpointing: bool | None) -> int:
    bones = meta_copy(network).train()
    if checkpointing is not None:
        switch_checkpointing(bones, checkpointing)
    with count_allocations(bones, setting) as (live, precision):
        recompute_likewise(bones, precision)
        if setting.accumulate:
            for weight in bones.parameters():
                weight.grad = torch.empty_like(weight) if weight.requires_grad else None
        predicted = Denoiser(bones)(*question.tensors(bones))
        precision.casts.clear()
        predicted.square().mean().backward()
        return live.peak


def recompute_likewise(bones: nn.Module, precision: DeviceRules) -> None:
    """The backward pass leaves function modes; what checkpointing computes again must meet ours, as autocast's."""

    def checkpoint(module: nn.Module, *args: Any) -> Any:
        contexts = (nullcontext(), DeviceRules(precision.setting))
        return recompute(module.__call__, *args, use_reentrant=False, context_fn=lambda: contexts)

    for module in bones.modules():
        if getattr(module, "gradient_checkpointing", False):
            module._gradient_checkpointing_func = checkpoint  # type: ignore[assignment]


def forward_bytes(network: nn.Module, question: UnetInput, setting: Setting) -> int:
    """The peak of a forward pass that keeps nothing, as validation does it."""
    return cached_count(
        network, ("look", question, setting), lambda: [count_forward_bytes(network, question, setting)]
    )[0]


@torch.no_grad()
def count_forward_bytes(network: nn.Module, question: UnetInput, setting: Setting) -> int:
    bones = meta_copy(network).eval()
    with count_allocations(bones, setting) as (live, _):
        Denoiser(bones)(*question.tensors(bones))
        return live.peak


@torch.no_grad()
def encode_bytes(vae_config: Mapping[str, Any], height: int, width: int) -> int:
    """The peak of encoding one picture in float32, the autoencoder's weights included. height, width: pixels."""
    return autoencoder_bytes(vae_config, "encode", (1, vae_config["in_channels"], height, width))


@torch.no_grad()
def decode_bytes(vae_config: Mapping[str, Any], height: int, width: int) -> int:
    """The peak of decoding one picture in float32, the weights included. height, width: of its latents."""
    return autoencoder_bytes(vae_config, "decode", (1, vae_config["latent_channels"], height, width))


def autoencoder_bytes(vae_config: Mapping[str, Any], way: str, shape: tuple[int, ...]) -> int:
    """The peak of one way through it (encode or decode) for an input of this shape."""
    network = meta_autoencoder(vae_config)
    weights = sum(weight.nbytes for weight in network.parameters())

    def done() -> list[int]:
        with count_allocations(network, Setting()) as (live, _):
            getattr(network, way)(torch.empty(shape, device="meta"), return_dict=False)
            return [live.peak]

    return weights + cached_count(network, (way, *shape[2:]), done)[0]


def text_encoder_bytes(config: Mapping[str, Any]) -> int:
    """The text encoder's weights in float32."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        network = CLIPTextModel(CLIPTextConfig.from_dict(dict(config)))
    return sum(4 * weight.numel() for weight in network.parameters())


@contextmanager
def count_allocations(bones: nn.Module, setting: Setting) -> Iterator[tuple[LiveBytes, DeviceRules]]:
    """Count what happens inside."""
    tensors = (*bones.parameters(), *bones.buffers())
    with DeviceRules(setting) as precision, LiveBytes(iter(tensors)) as live:
        yield live, precision


def free_bytes(device: torch.device) -> int | None:
    """What the device has left, and what we hold of it already."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    available = proc_bytes(Path("/proc/meminfo"), "MemAvailable")
    return None if available is None else available + resident_bytes()


def resident_bytes() -> int:
    """The memory that this process holds; 0 where the system does not tell."""
    return proc_bytes(Path("/proc/self/status"), "VmRSS") or 0


def proc_bytes(file: Path, name: str) -> int | None:
    """A number of bytes that Linux tells; None on other systems."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


PROBE_STEPS = 3  # the first one warms up and does not count
PROBE_SECONDS = (
    15.0  # seconds in all, beyond which the start is not held up: a first step of more is the only one, and counts
)

OptimizerOf = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Timing:
    """Seconds of a micro-batch's forward and backward pass, of the optimiser's step, and how many were run."""

    micro: float
    update: float
    steps: int


def probe_steps(unet: nn.Module, question: UnetInput, accelerator: Accelerator, optimizer_of: OptimizerOf) -> Timing:
    """Time the steps. unet: as accelerate prepared it, without gradients, and left as it was."""
    weights = list(adapters.trainable_parameters(unet).values())
    assert all(weight.grad is None for weight in weights), "the probe comes between two steps"
    batch = batch_of(question, unet_config(accelerator, unet), accelerator.device)
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # layers that drop draw from the global generator
        try:
            # every process has to take as many steps as the others, which wait for its gradients
            limit = PROBE_SECONDS if accelerator.num_processes == 1 else math.inf
            micros = timed(
                lambda: forward_backward(Denoiser(unet), weights, batch, accelerator), accelerator.device, limit
            )
            updates = timed(optimizer_updater(weights, optimizer_of), accelerator.device)
        finally:
            drop_gradients(weights)
    return Timing(min(micros[1:] or micros), min(updates[1:] or updates), len(micros))


def unet_config(accelerator: Accelerator, unet: nn.Module) -> tuple[int, int]:
    """(latent channels, width of a text state)"""
    config = accelerator.unwrap_model(unet).config
    return config["in_channels"], config["cross_attention_dim"]


def batch_of(question: UnetInput, widths: tuple[int, int], device: torch.device) -> Batch:
    """Noise in place of latents and captions: the time does not depend on values."""
    channels, depth = widths
    latents = rng.normal((question.batch, channels, question.height, question.width), "probe", "latents").to(device)
    states = rng.normal((question.batch, question.tokens, depth), "probe", "states").to(device)
    uniforms = torch.linspace(0, 1, question.batch, dtype=torch.float64, device=device)
    return Batch(latents, states, latents, latents, uniforms, [""] * question.batch, [False] * question.batch)


def timed(work: Callable[[], None], device: torch.device, limit: float = PROBE_SECONDS) -> list[float]:
    """Seconds of each of STEPS calls, of fewer if they take more than `limit` together."""
    seconds: list[float] = []
    while len(seconds) < PROBE_STEPS and sum(seconds) < limit:
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds


def synchronize(device: torch.device) -> None:
    """Wait for the device: it works behind the program's back."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forward_backward(denoiser: Denoiser, weights: list[nn.Parameter], batch: Batch, accelerator: Accelerator) -> None:
    """Forward and backward, which leaves gradients."""
    drop_gradients(weights)
    accelerator.backward(probe_losses(denoiser, batch).mean())


def probe_losses(denoiser: Denoiser, batch: Batch) -> Tensor:
    """(B,) Not the run's own: what is compared costs nothing beside the network."""
    lora.set_sample_keys(batch.timestep_uniforms)
    t = torch.full((len(batch.sample_ids),), 500, device=batch.latents.device)
    return (denoiser(batch.latents, t, batch.text_states) - batch.noise).square().flatten(1).mean(1)


def drop_gradients(weights: list[nn.Parameter]) -> None:
    for weight in weights:
        weight.grad = None


def optimizer_updater(weights: list[nn.Parameter], optimizer_of: OptimizerOf) -> Callable[[], None]:
    """Clipping and a step of an optimiser, on copies of the weights."""
    copies = [nn.Parameter(weight.detach().clone()) for weight in weights]
    for copied, weight in zip(copies, weights, strict=True):
        copied.grad = weight.grad
    optimizer = optimizer_of(copies)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(optim.optimized_weights(optimizer), 1.0)
        optimizer.step()

    return update


@dataclass(frozen=True)
class BucketUse:
    """One bucket. Shares are of a picture's area, in [0, 1)."""

    pictures: int
    steps: float  # of the run, whose global batch comes from this bucket
    mean_cropped: float
    worst_cropped: float
    enlarged: int  # pictures that are smaller than the bucket
    batches: float  # global batches that all its pictures, each once, make


@dataclass(frozen=True)
class FolderUse:
    """One of several folders. times: how often each of its training pictures is seen in the run."""

    folder: str
    weight: float
    training: int
    held_out: int
    times: float


def bucket_uses(collection: TrainingSet, global_batch: int, steps: int) -> dict[str, BucketUse]:
    """By size, as "512x512"."""
    drawn = {
        bucket: sum(collection.weights[sample.annotation.file_name] for sample in samples)
        for bucket, samples in collection.buckets.items()
    }
    total = sum(drawn.values())
    return {
        str(use.bucket): BucketUse(
            pictures=use.count,
            steps=steps * drawn[use.bucket] / total,
            mean_cropped=use.mean_cropped,
            worst_cropped=use.worst_cropped,
            enlarged=use.enlarged,
            batches=use.count / global_batch,
        )
        for use in collection.uses()
    }


def folder_uses(shares: Sequence[FolderShare], global_batch: int, steps: int) -> list[FolderUse]:
    """Empty for a single folder, about which the plan has nothing to add."""
    total = sum(share.weight * share.training for share in shares)
    if len(shares) < 2:
        return []
    return [FolderUse(**vars(share), times=steps * global_batch * share.weight / total) for share in shares]


def use_lines(buckets: Mapping[str, BucketUse], folders: Sequence[FolderUse], global_batch: int) -> list[str]:
    """For the plan: a line a folder if there are several, a line a bucket, and the buckets that no batch fills."""
    lines = [
        f"{'folder':<10} {use.folder}: {use.training} to train on, {use.held_out} held out; weight {use.weight:g},"
        f" each picture seen {use.times:.1f} times"
        for use in folders
    ]
    lines += [f"{'bucket':<10} {size}: {describe_bucket(use)}" for size, use in buckets.items()]
    small = [f"{size} ({use.pictures})" for size, use in buckets.items() if use.pictures < global_batch]
    if small:
        what = f"buckets with fewer pictures than the {global_batch} of a step repeat them within it"
        lines.append(f"{'beware':<10} {what}: {', '.join(small)}")
    return lines


def describe_bucket(use: BucketUse) -> str:
    """A bucket in a line: the truth about what is cut away and what is blown up."""
    many = "1 picture" if use.pictures == 1 else f"{use.pictures} pictures"
    cropped = f"{100 * use.mean_cropped:.1f} % of a picture cut away, {100 * use.worst_cropped:.1f} % at most"
    return (
        f"{many}, {use.batches:.1f} batches a time through, {use.steps:.0f} steps; {cropped}; {use.enlarged} enlarged"
    )


GIBIBYTE = 2**30
PHASE_WORDS = {
    "encoding": "pictures are encoded",
    "validation": "it looks at held-out pictures",
    "drawing": "previews are drawn",
    "saving": "a checkpoint is written",
}
SHOWN = 5  # examples of what was left out or cut


@dataclass(frozen=True)
class Duration:
    """Seconds of what is left to do, by what they go to; `step`: of one optimiser step, known in the way `how` says."""

    step: float
    how: str
    images_per_second: float
    training: float
    validation: float
    checkpoints: float
    encoding: float  # pictures that are not in the cache yet
    previews: float

    @property
    def parts(self) -> dict[str, float]:
        names = ("encoding", "training", "validation", "previews", "checkpoints")
        return {name: getattr(self, name) for name in names}

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = [f"{name} {format_seconds(seconds)}" for name, seconds in self.parts.items() if seconds >= 1]
        return f"about {format_seconds(self.total)}" + (f": {', '.join(parts)}" if parts else "")


@dataclass(frozen=True)
class Disk:
    """Bytes that the run folder will hold. free: for all of it; spare: kept checkpoints that it could do without."""

    checkpoint: int
    kept: int
    export: int
    free: int
    spare: int

    @property
    def total(self) -> int:
        """One more checkpoint than are kept: the oldest goes only when a new one is whole."""
        return self.checkpoint * (self.kept + 1) + self.export

    def warning(self) -> list[str]:
        if self.total <= self.free:
            return []
        fewer = self.spare > 0 and self.total - self.spare * self.checkpoint <= self.free
        helps = "--checkpoints.keep 1, or with " if fewer else ""
        much = f"{format_bytes(self.total)} may be too much for {format_bytes(self.free)} of free disk"
        return [f"beware     {much}; would fit with {helps}--runs on a larger one"]

    def __str__(self) -> str:
        return (
            f"up to {format_bytes(self.total)}: checkpoints of {format_bytes(self.checkpoint)}, {self.kept} kept and one being written,"
            f" exports {format_bytes(self.export)}"
        )


@dataclass(frozen=True)
class Fits:
    """Whether the memory will do. helps: flags with which it would, those that cost least first."""

    needed: int
    free: int | None
    helps: list[str]

    def warning(self) -> list[str]:
        if self.free is None or self.needed <= self.free:
            return []
        helps = f"; would fit with {' or with '.join(self.helps)}" if self.helps else ""
        return [
            f"beware     {format_bytes(self.needed)} are probably too much for {format_bytes(self.free)} of free memory{helps}"
        ]


def format_bytes(bytes_: float) -> str:
    """Bytes as people read them."""
    return f"{bytes_ / GIBIBYTE:.2f} GiB" if bytes_ >= 0.1 * GIBIBYTE else f"{bytes_ / 2**20:.1f} MiB"


def format_flops(count: float) -> str:
    """1.23 T, 45.6 G"""
    return f"{count / 1e12:.3g} T" if count >= 1e11 else f"{count / 1e9:.3g} G"


def format_seconds(seconds: float) -> str:
    """A duration as people read it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Plan:
    """The numbers of the first screen, and of plan.json."""

    config: str  # the preset in force
    model: str
    data: str
    adapter: str
    pictures: int
    training: int
    held_out: int
    left_out: list[str]
    warnings: list[str]
    near_duplicates: int
    buckets: Mapping[str, BucketUse]
    folders: Sequence[FolderUse]  # if there are several
    captions_cut: list[str]
    tokens: str
    batch_size: int
    accumulate: int
    processes: int
    steps: int
    done: int
    trainable: int
    parameters: int
    precision: str
    device: str
    threads: int
    optimizer: str
    switches: str
    memory: MemoryEstimate
    fits: Fits
    disk: Disk
    flops: Flops  # of one picture
    duration: Duration | None  # None if no step could be timed
    price_per_hour: float | None = None
    sampling: str = ""  # what must be known to draw with the result, if there is anything

    @property
    def cost(self) -> float | None:
        """Of what is left to do, in the price's currency."""
        if self.price_per_hour is None or self.duration is None:
            return None
        return self.price_per_hour * self.duration.total / 3600

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.accumulate * self.processes

    @property
    def epochs(self) -> float:
        return self.steps * self.global_batch / max(1, self.training)

    def facts(self) -> dict[str, Any]:
        derived: dict[str, Any] = {"global_batch": self.global_batch, "epochs": round(self.epochs, 2)}
        derived |= {"peak_gib": self.memory.peak / GIBIBYTE, "disk_gib": self.disk.total / GIBIBYTE, "cost": self.cost}
        derived |= {"seconds": self.duration.total if self.duration else None}
        return asdict(self) | derived

    def lines(self) -> list[str]:
        """One fact a line, for a person."""
        b = f"{self.batch_size} x {self.accumulate} accumulated x {self.processes} process{'es' * (self.processes > 1)}"
        share = 100 * self.trainable / self.parameters
        threads = f"{self.threads} CPU thread{'s' * (self.threads > 1)}"
        lines = [
            f"config     {self.config}",
            f"model      {self.model}",
            f"adapter    {self.adapter}: {self.trainable:,} of {self.parameters:,} weights are trained ({share:.1f} %)",
            f"pictures   {self.data}: {self.training} to train on, {self.held_out} held out"
            f" ({self.near_duplicates} near-duplicates stay on one side)",
            *use_lines(self.buckets, self.folders, self.global_batch),
            f"captions   {self.tokens}",
            f"batch      {b} = {self.global_batch} pictures a step",
            f"length     {self.steps} steps = {self.epochs:.1f} times through the pictures"
            + (f", {self.done} done" if self.done else ""),
            f"optimiser  {self.optimizer}",
            f"machine    {self.device}, {self.precision}, {threads}, {self.switches}",
            *self.memory_lines(),
            *self.time_lines(),
            f"disk       {self.disk}",
            *self.disk.warning(),
        ]
        for label, items in (("left out", self.left_out), ("cut", self.captions_cut), ("beware", self.warnings)):
            lines += list_items(f"{label:<10}", items)
        return lines

    def memory_lines(self) -> list[str]:
        """The peak by its parts, and a warning if it is more than there is."""
        parts = [f"{part} {format_bytes(bytes_)}" for part, bytes_ in self.memory.parts.items() if bytes_]
        elsewhere = "" if self.memory.hungriest == "training" else f", while {PHASE_WORDS[self.memory.hungriest]}"
        free = "" if self.fits.free is None else f" of {format_bytes(self.fits.free)} free"
        lines = [
            f"memory     about {format_bytes(self.memory.peak)}{free}{elsewhere}",
            f"             training: {', '.join(parts)}",
        ]
        return lines + self.fits.warning()

    def time_lines(self) -> list[str]:
        """Speed, time and money."""
        work = f"{format_flops(self.flops.step)}FLOP a picture"
        if self.duration is None:
            return [f"time       not measured; {work}"]
        speed = self.duration.images_per_second
        rate = f"{format_flops(speed * self.flops.step / self.processes)}FLOP/s"
        lines = [
            f"speed      {self.duration.step:.3g} s a step {self.duration.how}: {speed:.3g} pictures/s, {work}, {rate}",
            f"time       {self.duration}",
        ]
        if self.cost is not None:
            lines.append(f"money      {self.cost:.2f} at {self.price_per_hour:g} an hour")
        return lines


def list_items(label: str, items: list[str]) -> list[str]:
    """What is not used, named; the rest is counted."""
    if not items:
        return []
    more = f"             ... and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return [f"{label} {len(items)}:"] + [f"             {item}" for item in items[:SHOWN]] + ([more] if more else [])


def optimizer_line(config: Config) -> str:
    """How weights are updated, at what rate, and which weights come out of it."""
    optim, average = config.optim, config.ema
    rate = f"learning rate {config.learning_rate:g}"
    if optim.kind == "prodigy":
        rate += " (a factor on the step size it finds)"
    warmup = f" after {optim.warmup} steps of warm-up" if optim.warmup else ""
    own = "its own average" if optim.kind == "schedule-free" else ""
    used = f"the moving average (EMA {average.decay:g})" if average.decay else own
    exported = f"; validated and exported: {used} of the weights" if used else ""
    return f"{optim.kind}, {rate}, {optim.schedule}{warmup}{exported}"


DRAWN_AT_ONCE = 4  # pictures, on a GPU: infer/pipeline.py's micro-batch
WORKSPACE = 0.25  # of the activations, on top: kernels' scratch and fragmentation; measured in LOG.md
CONTEXT = 2**29  # bytes that CUDA and its libraries take for themselves
DISK_SPEED = 200e6  # bytes/s at which a checkpoint is written, hashed and flushed: an assumption, on the low side


@dataclass(frozen=True)
class RunEstimate:
    """The forecast of one job; what is costly is worked out when it is asked for, once."""

    config: Config
    accelerator: Accelerator
    model: BaseModel
    dataset: TrainingSet
    network: Any  # the U-Net as accelerate prepared it
    teacher_bytes: int = 0
    previews: int = 0  # images at a time
    earlier: Run | None = None  # whose steps tell how long one takes

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
    def average(self) -> AverageBytes:
        return ema_bytes(self.config.ema, self.trained)

    @property
    def tokens(self) -> int:
        return self.model.tokenizer.model_max_length

    @cached_property
    def sizes(self) -> dict[tuple[int, int], int]:
        """Latent sizes (height, width) of the buckets and how many pictures each has."""
        factor = self.model.factor
        return {(b.height // factor, b.width // factor): len(held) for b, held in self.dataset.buckets.items()}

    @property
    def square(self) -> tuple[int, int]:
        """The latent size of previews."""
        side = self.dataset.square.width // self.model.factor
        return side, side

    def question(self, batch: int, size: tuple[int, int]) -> UnetInput:
        return UnetInput(batch, *size, self.tokens)

    @property
    def widest(self) -> tuple[int, int]:
        """The size with the most to keep."""
        return max(self.sizes, key=lambda size: size[0] * size[1])

    @cached_property
    def costs(self) -> dict[tuple[int, int], Flops]:
        return by_area(self.unet, self.sizes, self.tokens)

    @cached_property
    def flops(self) -> Flops:
        """Operations of one picture, mean over an epoch."""
        return mean_flops(self.costs, self.sizes)

    @property
    def anchoring(self) -> float:
        """Operations a picture, in the mean, of asking the base about preserved prompts."""
        return self.config.preserve.share * TEACHER_PASSES * self.flops.forward

    @property
    def work(self) -> float:
        """Operations of a step for one picture, in the mean."""
        return self.flops.step + self.anchoring

    # ---- memory

    @property
    def setting(self) -> Setting:
        half = DTYPES.get(self.accelerator.mixed_precision)
        return Setting(self.device.type, half, self.config.accumulate > 1)

    def activations(self, batch: int, checkpointing: bool | None = None) -> int:
        """Bytes at the peak of a step beyond weights, gradients and optimiser."""
        question = self.question(batch, self.widest)
        return step_bytes(self.unet, question, self.setting, checkpointing=checkpointing) - 4 * self.trained

    @cached_property
    def memory(self) -> MemoryEstimate:
        weights = sum(weight.nbytes for weight in self.unet.parameters())
        kept = self.activations(self.config.batch_size)
        parts = {
            "weights": weights,
            "base": self.teacher_bytes,
            "gradients": 4 * self.trained,
            "optimiser": self.optimizer,
            "average": self.average.device,
            "activations": kept,
            "kernels": int(WORKSPACE * kept),
            "pictures": self.encoded_bytes(),
            "exchange": 4 * self.trained if self.layout.processes > 1 else 0,  # DDP's buckets
            "process": self.process_bytes(weights),
        }
        held = sum(bytes_ for part, bytes_ in parts.items() if part not in ("gradients", "activations", "kernels"))
        looked = forward_bytes(self.unet, self.question(self.config.validation.timesteps, self.widest), self.setting)
        phases = {"training": sum(parts.values()), "validation": held + int((1 + WORKSPACE) * looked)}
        if self.device.type == "cpu":  # a checkpoint is written from copies in main memory
            phases["saving"] = held + self.checkpoint_bytes
        if self.previews:
            phases["drawing"] = held + self.drawing_bytes()
        if self.missing:
            phases["encoding"] = weights + parts["process"] + self.encoding_bytes()
        return MemoryEstimate(parts, phases, free_bytes(self.device))

    def encoded_bytes(self) -> int:
        """The encoded set: latent moments and text states in float32."""
        model, collection = self.model, self.dataset
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
        return max(0, resident_bytes() - weights)

    def encoding_bytes(self) -> int:
        bucket = max(self.dataset.buckets, key=lambda b: b.width * b.height)
        peak = encode_bytes(self.model.config("vae"), bucket.height, bucket.width)
        return int((1 + WORKSPACE) * peak)

    def drawing_bytes(self) -> int:
        """Of previews: both encoders are loaded beside the network, which is asked with the prompt and without."""
        model = self.model
        rows = 2 if self.device.type == "cpu" else 2 * DRAWN_AT_ONCE
        asked = forward_bytes(self.unet, self.question(rows, self.square), self.setting)
        busiest = max(asked, decode_bytes(model.config("vae"), *self.square))
        return text_encoder_bytes(model.config("text_encoder")) + int((1 + WORKSPACE) * busiest)

    @cached_property
    def missing(self) -> int:
        """Pictures that are not in the cache yet."""
        encoder = self.model.fingerprints["vae"]
        frames = image_frames(self.dataset, self.config)
        return sum(not latent_cache.has_latents(frame, encoder) for _, frame in frames)

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
        now, known = self.memory.phases["training"], find_flags(Config)
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
        build = partial(optim.build_optimizer, config=self.config.optim)
        question = self.question(self.config.batch_size, common)
        found = probe_steps(self.network, question, self.accelerator, build)
        return found, self.flops.step / self.costs[common].step

    def seconds_before(self) -> float | None:
        """From the metrics of an earlier session of this run, on the same kind of device."""
        if self.earlier is None or self.earlier.facts("plan.json").get("device") != device_name(self.device):
            return None
        speeds = [
            line["images_per_second"] for line in read_metrics(self.earlier.metrics) if "images_per_second" in line
        ]
        speeds = [speed for speed in speeds if speed]
        return self.layout.global_batch / statistics.median(speeds) if speeds else None

    def duration(self, done: int) -> Duration | None:
        """Seconds of what is left after `done` steps, by what they go to."""
        if self.timing is None:
            return None
        config, layout = self.config, self.layout
        seconds, how = self.timing
        operation = seconds / (layout.batch_size * layout.accumulate * self.work)  # of the U-Net, on one device
        looks = count_due(done, config.max_steps, config.validation.every) + (done == 0)
        held = [self.dataset.train, self.dataset.held_out]
        pictures = sum(min(len(side), config.validation.pictures) for side in held)
        look = pictures * config.validation.timesteps * self.flops.forward
        saves = count_due(done, config.max_steps, config.checkpoints.every)
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
        if not self.previews:
            return 0.0
        options, every = self.config.previews, preview_interval(self.config)
        asked = by_area(self.unet, [self.square], self.tokens)[self.square].forward
        rows = 2 if options.guidance > 1 else 1
        picture = options.steps * rows * asked + decode_flops(self.model.config("vae"), *self.square)
        return (count_due(done, self.config.max_steps, every) + (done == 0)) * self.previews * picture

    def encoding(self) -> float:
        """Seconds for the pictures and captions that are not in the cache yet, by trying one of each."""
        model, device, key = self.model, self.device, text_key(self.model)
        unread = sum(not latent_cache.has_text_states(text, key) for text in all_prompts(self.dataset))

        def read_one() -> None:
            encode_text(model, "", device)

        texts = unread * min(timed(read_one, device)) if unread else 0.0
        return texts + (self.missing * self.seconds_to_encode() if self.missing else 0.0)

    def seconds_to_encode(self) -> float:
        """Of one picture: the autoencoder is tried on a grey one."""
        bucket = max(self.dataset.buckets, key=lambda b: len(self.dataset.buckets[b]))
        grey = torch.zeros(1, 3, bucket.height, bucket.width)

        def encode() -> None:
            encode_image(self.model, grey, self.device)

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
        model = self.model
        if model.weights is not None:
            return model.weights.stat().st_size
        folders = [model.layout / part for part in ("vae", "text_encoder", "tokenizer")]
        return sum(file.stat().st_size for folder in folders for file in folder.glob("*") if file.is_file())


def count_due(done: int, stop: int, every: int) -> int:
    """How often something is due in the steps (done, stop], the last one included."""
    return stop // every - done // every + (stop % every != 0) if stop > done else 0


def make_plan(forecast: RunEstimate, done: int) -> Plan:
    """What will be done, in numbers."""
    config, collection, accelerator = forecast.config, forecast.dataset, forecast.accelerator
    return Plan(
        config=f"{config.config} (another: --config FILE)" if config.config else "defaults",
        model=config.model,
        data=", ".join(map(str, config.data)),
        adapter=config.adapter.label,
        pictures=collection.found,
        training=len(collection.train),
        held_out=len(collection.held_out),
        left_out=collection.left_out,
        warnings=[
            *collection.warnings,
            *objective_warnings(config.objective),
            *plan_warnings(config, collection, done),
        ],
        near_duplicates=collection.near_duplicates,
        buckets=bucket_uses(collection, forecast.layout.global_batch, config.max_steps),
        folders=folder_uses(collection.shares, forecast.layout.global_batch, config.max_steps),
        captions_cut=collection.captions_cut,
        tokens=collection.tokens,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        processes=forecast.layout.processes,
        steps=config.max_steps,
        done=done,
        trainable=forecast.trained,
        parameters=sum(weight.numel() for weight in forecast.unet.parameters()),
        precision=device.describe_precision(accelerator),
        device=device.device_name(accelerator.device),
        threads=torch.get_num_threads(),
        optimizer=optimizer_line(config),
        switches=device.describe_memory_options(config, accelerator.device),
        memory=forecast.memory,
        fits=forecast.fits(),
        disk=forecast.disk(),
        flops=forecast.flops,
        duration=forecast.duration(done),
        price_per_hour=config.price_per_hour,
        sampling=model.ZERO_SNR_ADVICE if forecast.model.zero_terminal_snr else "",
    )


def plan_warnings(config: Config, collection: TrainingSet, done: int) -> list[str]:
    """What was asked for and does not go together."""
    warmup, steps, found = config.optim.warmup, config.max_steps, held_out_warnings(config, collection)
    if warmup > steps:
        reached = learning_rate(steps - 1, config.optim, config.learning_rate, steps)
        what = f"the warm-up of {warmup} steps is longer than the run of {steps}"
        found.append(f"{what}: the learning rate reaches {reached:.3g}, not {config.learning_rate:g}")
    if done > steps:
        found.append(f"--max-steps {steps}: {done} are done, and none is taken back (train/export.py --checkpoint)")
    return found


def held_out_warnings(config: Config, collection: TrainingSet) -> list[str]:
    """What was asked for and needs held-out pictures, which there are none of."""
    if collection.held_out or not config.validation.patience:
        return []
    return ["no picture is held out: --validation.patience has no effect, and the last weights are exported"]
