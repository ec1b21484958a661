"""FLOPs and memory of a network, counted by running its code on the meta device; peaks of common GPUs."""

import copy
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint as recompute
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from data import disk_cache, latent_cache
from train import adapters
from train.model import Denoiser

COUNTS_VERSION = 1  # raise it when a count changes for the same input

# Dense peaks from the data sheets, TFLOP/s: (fp16 and bf16 on tensor cores, tf32 on tensor cores, fp32). The longest
# name that is part of the device's name is used. NVIDIA halves GeForce cards with fp32 accumulation.
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
# The layers of a U-Net that autocast computes in half precision, and in float32, from torch's lists (docs "Autocast
# Op Reference"). The CPU's lists leave the norms in the precision of their input.
HALVED = {F.linear, F.conv2d, F.scaled_dot_product_attention, torch.matmul, torch.bmm, torch.baddbmm}
KEPT_WHOLE = {"cuda": {F.layer_norm, F.group_norm, F.softmax}}


@dataclass(frozen=True)
class UnetInput:
    """The shape of one micro-batch: (batch, C, height, width) latents, (batch, tokens, D) text states."""

    batch: int
    height: int  # of the latents
    width: int
    tokens: int = 77

    def meta_tensors(self, unet: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, timesteps and text states on the meta device; also sets the keys of LoRA dropout."""
        adapters.set_sample_keys(torch.empty(self.batch, dtype=torch.float64, device="meta"))
        latents = torch.empty(self.batch, unet.config["in_channels"], self.height, self.width, device="meta")
        states = torch.empty(self.batch, self.tokens, unet.config["cross_attention_dim"], device="meta")
        return latents, torch.empty(self.batch, dtype=torch.int64, device="meta"), states


def meta_copy(network: nn.Module, checkpointing: bool | None = None) -> Any:
    """A copy on the meta device: same code, adapters, frozen weights, dtypes.

    checkpointing: whether it checkpoints gradients; None: as the network does.
    """
    places = {id(tensor): meta_tensor(tensor) for tensor in (*network.parameters(), *network.buffers())}
    copied: Any = copy.deepcopy(network, places)
    for module in copied.modules():
        # accelerate wraps `forward` for autocast, and compiled code belongs to the real weights
        vars(module).pop("forward", None)
        module._compiled_call_impl = None
    if hasattr(copied, "set_attn_processor"):
        copied.set_attn_processor(AttnProcessor2_0())  # other processors have kernels without meta implementations
    if checkpointing:
        copied.enable_gradient_checkpointing()
    elif checkpointing is False and getattr(copied, "is_gradient_checkpointing", False):
        copied.disable_gradient_checkpointing()
    return copied


def meta_tensor(tensor: Tensor) -> Tensor:
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def meta_autoencoder(config: Mapping[str, Any]) -> Any:
    """The autoencoder of this config on the meta device, in evaluation mode."""
    with torch.device("meta"):
        return AutoencoderKL.from_config(dict(config)).eval()  # type: ignore[union-attr]


def cached_count(network: nn.Module, question: object, count: Callable[[], Any]) -> Any:
    """`count()`, cached on disk by the network's build (not its weights' values) and the question."""
    weights = [(name, w.shape, w.stride(), w.dtype, w.requires_grad) for name, w in network.named_parameters()]
    modules = [(type(m).__name__, bool(getattr(m, "gradient_checkpointing", False))) for m in network.modules()]
    config = sorted(dict(getattr(network, "config", {})).items())
    key = disk_cache.cache_key(COUNTS_VERSION, torch.__version__, question, weights, modules, config)
    counted = disk_cache.read_value("counts", key)
    if counted is None:
        counted = count()
        disk_cache.write_value("counts", key, counted)
    return counted


# ---- operations


class Flops(NamedTuple):
    """Operations for one sample: a forward pass, and a training step (forward and backward, no recomputation)."""

    forward: float
    step: float


def forward_and_step_flops(unet: nn.Module, shape: UnetInput, checkpointing: bool = False) -> list[int]:
    """(forward alone, forward and backward) of shape.batch samples; on the meta device attention is two products.

    checkpointing: include what gradient checkpointing recomputes (what the hardware does, not what the model needs).
    """

    def count() -> list[int]:
        copied = meta_copy(unet, checkpointing).train()
        with FlopCounterMode(display=False) as counter:
            predicted = Denoiser(copied)(*shape.meta_tensors(copied))
            forward = int(counter.get_total_flops())
            predicted.square().mean().backward()
        return [forward, int(counter.get_total_flops())]

    return cached_count(unet, ("flops", shape, checkpointing), count)


@torch.no_grad()
def decode_flops(vae_config: Mapping[str, Any], height: int, width: int) -> int:
    """Operations of decoding one image. height, width: of its latents."""
    vae = meta_autoencoder(vae_config)

    def count() -> int:
        with FlopCounterMode(display=False) as counter:
            vae.decode(torch.empty(1, vae_config["latent_channels"], height, width, device="meta"))
        return int(counter.get_total_flops())

    return cached_count(vae, ("decode flops", height, width), count)


def flops_by_size(unet: nn.Module, sizes: Iterable[tuple[int, int]], tokens: int) -> dict[tuple[int, int], Flops]:
    """The operations for one sample of each latent size (height, width).

    Layers cost in proportion to the area and self-attention to its square, so three areas give all others exactly
    (sides are multiples of what the U-Net halves, so no layer rounds).
    """
    sizes = list(sizes)
    known = sorted({height * width: (height, width) for height, width in sizes}.items())[:3]
    counts = [forward_and_step_flops(unet, UnetInput(1, *size, tokens)) for _, size in known]
    areas = [area for area, _ in known]
    forward, step = (
        np.polynomial.Polynomial.fit(areas, values, len(areas) - 1) for values in zip(*counts, strict=True)
    )
    return {(h, w): Flops(float(np.rint(forward(h * w))), float(np.rint(step(h * w)))) for h, w in sizes}


def mean_flops(costs: Mapping[tuple[int, int], Flops], counts: Mapping[tuple[int, int], int]) -> Flops:
    """The mean over an epoch: buckets take turns in proportion to their images."""
    return Flops(*np.average([costs[size] for size in counts], axis=0, weights=list(counts.values())).tolist())


def peak_flops(device: torch.device, precision: str = "no") -> float | None:
    """Peak FLOP/s of the device in accelerate's precision (no, fp16, bf16); None if it is not in PEAKS."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), precision, bool(torch.backends.cuda.matmul.allow_tf32))


def peak_of(name: str, precision: str, tf32: bool) -> float | None:
    """Peak FLOP/s by the device's name, e.g. NVIDIA A100-SXM4-80GB."""
    words = set(name.replace("-", " ").split())
    known = [key for key in PEAKS if set(key.split()) <= words]
    if not known:
        return None
    half, tensor32, plain = PEAKS[max(known, key=len)]
    return 1e12 * (half if precision in ("fp16", "bf16") else tensor32 if tf32 and tensor32 else plain)


# ---- memory


def optimizer_bytes(kind: str, shapes: Iterable[Sequence[int]]) -> int:
    """Bytes of optimiser state for weights of these shapes; the few bytes of step counters are left out."""
    return sum(OPTIMIZER_STATE[kind](shape) for shape in shapes)


def two_moments(shape: Sequence[int]) -> int:
    return 8 * math.prod(shape)


def two_8bit_moments(shape: Sequence[int]) -> int:
    """Two 8-bit moments, a float32 scale of each for every 256 numbers, and a table; small ones stay in float32."""
    numbers = math.prod(shape)
    return two_moments(shape) if numbers < 4096 else 2 * numbers + 2 * 4 * math.ceil(numbers / 256) + 2 * 4 * 256


def rows_and_columns(shape: Sequence[int]) -> int:
    """A number for each row and each column of the last two dimensions: little for a matrix, not for a convolution."""
    return 4 * math.prod(shape) if len(shape) < 2 else 4 * math.prod(shape[:-2]) * sum(shape[-2:])


def prodigy_state(shape: Sequence[int]) -> int:
    """Two moments, the initial weight and a running sum of gradients (at most: an initial zero takes one number)."""
    return 16 * math.prod(shape)


OPTIMIZER_STATE: Mapping[str, Callable[[Sequence[int]], int]] = {
    "adamw": two_moments,
    "adamw-8bit": two_8bit_moments,
    "adafactor": rows_and_columns,
    "prodigy": prodigy_state,
    "schedule-free": two_moments,
}


@dataclass(frozen=True)
class Setting:
    """What the memory of a step depends on beside the network and the input's shape."""

    device: str = "cpu"
    half: torch.dtype | None = None  # autocast's dtype
    accumulate: bool = False  # gradients of earlier micro-batches exist while the next one is computed


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that are alive, and their peak; `known` existed before and do not count."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.sizes:
                storage = tensor.untyped_storage()
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.freed, storage._cdata)
        return out

    def freed(self, name: int) -> None:
        self.now -= self.sizes.pop(name)


class DeviceRules(TorchFunctionMode):
    """What the device does and the meta device does not: attention without an attention matrix, and autocast."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.half, self.setting = setting.half, setting
        self.whole = KEPT_WHOLE.get(setting.device, set())
        self.casts: dict[int, Tensor] = {}  # autocast casts a weight once per forward pass

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.half is not None and func in HALVED:
            args, kwargs = tree_map_only(Tensor, self.halved, (args, kwargs))
        elif self.half is not None and func in self.whole:
            args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.float(), (args, kwargs))
        if func is F.scaled_dot_product_attention:
            # on every device it keeps its inputs, its output and one number a row (arXiv 2205.14135)
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args[:3])[0]
        return func(*args, **kwargs)

    def halved(self, tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.float32:
            return tensor
        if not isinstance(tensor, nn.Parameter):
            return tensor.to(self.half)
        if id(tensor) not in self.casts:
            self.casts[id(tensor)] = tensor.to(self.half)
        return self.casts[id(tensor)]


@contextmanager
def count_allocations(network: nn.Module, setting: Setting) -> Iterator[tuple[LiveBytes, DeviceRules]]:
    """Count the bytes that are allocated inside."""
    live = LiveBytes((*network.parameters(), *network.buffers()))
    with DeviceRules(setting) as rules, live:
        yield live, rules


def step_bytes(unet: nn.Module, shape: UnetInput, setting: Setting, *, checkpointing: bool | None = None) -> int:
    """The peak of a step's forward and backward pass, gradients included, weights and optimiser state not.

    checkpointing: None as the network has it. Exact for the tensors; the kernels' own workspaces come on top.
    """

    def count() -> int:
        copied = meta_copy(unet, checkpointing).train()
        with count_allocations(copied, setting) as (live, rules):
            recompute_with_rules(copied, rules)
            if setting.accumulate:
                for weight in copied.parameters():
                    weight.grad = torch.empty_like(weight) if weight.requires_grad else None
            predicted = Denoiser(copied)(*shape.meta_tensors(copied))
            rules.casts.clear()
            predicted.square().mean().backward()
            return live.peak

    return cached_count(unet, ("step", shape, setting, checkpointing), count)


def recompute_with_rules(network: nn.Module, rules: DeviceRules) -> None:
    """The backward pass leaves function modes, so recomputation under checkpointing enters the rules again."""

    def checkpoint(module: nn.Module, *args: Any) -> Any:
        contexts = (nullcontext(), DeviceRules(rules.setting))
        return recompute(module.__call__, *args, use_reentrant=False, context_fn=lambda: contexts)

    for module in network.modules():
        if getattr(module, "gradient_checkpointing", False):
            module._gradient_checkpointing_func = checkpoint  # type: ignore[assignment]


@torch.no_grad()
def forward_bytes(unet: nn.Module, shape: UnetInput, setting: Setting) -> int:
    """The peak of a forward pass without gradients, as in validation."""

    def count() -> int:
        copied = meta_copy(unet).eval()
        with count_allocations(copied, setting) as (live, _):
            Denoiser(copied)(*shape.meta_tensors(copied))
            return live.peak

    return cached_count(unet, ("look", shape, setting), count)


@torch.no_grad()
def autoencoder_bytes(vae_config: Mapping[str, Any], method: str, height: int, width: int) -> int:
    """The peak of `encode` or `decode` for one image in float32, the weights included.

    height, width: of the image in pixels for `encode`, of its latents for `decode`.
    """
    vae = meta_autoencoder(vae_config)
    channels = vae_config["in_channels" if method == "encode" else "latent_channels"]

    def count() -> int:
        with count_allocations(vae, Setting()) as (live, _):
            getattr(vae, method)(torch.empty(1, channels, height, width, device="meta"), return_dict=False)
            return live.peak

    return sum(weight.nbytes for weight in vae.parameters()) + cached_count(vae, (method, height, width), count)


def text_encoder_bytes(config: Mapping[str, Any]) -> int:
    """The text encoder's weights in float32."""
    with torch.device("meta"):
        encoder = CLIPTextModel(CLIPTextConfig.from_dict(dict(config)))
    return sum(4 * weight.numel() for weight in encoder.parameters())


def free_bytes(device: torch.device) -> int:
    """Free memory of the device, and what this process already holds of it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return latent_cache.free_memory() + resident_bytes()


def resident_bytes() -> int:
    """The memory that this process holds."""
    return psutil.Process().memory_info().rss
