"""Memory of training, before it is spent: activations counted on the meta device, optimiser state by formula."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint as recompute
from transformers import CLIPTextConfig, CLIPTextModel

from train.flops import UnetInput, cached_count, meta_autoencoder, meta_copy, set_checkpointing
from train.model import Denoiser

# The layers of a U-Net that autocast computes in half precision, and in float32, from torch's lists (docs "Autocast
# Op Reference"). The CPU's lists leave the norms in the precision of their input.
HALVED = {F.linear, F.conv2d, F.scaled_dot_product_attention, torch.matmul, torch.bmm, torch.baddbmm}
KEPT_WHOLE = {"cuda": {F.layer_norm, F.group_norm, F.softmax}}


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
    if len(shape) < 2:
        return 4 * math.prod(shape)
    *outer, rows, columns = shape
    return 4 * math.prod(outer) * (rows + columns)


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

    def __init__(self, known: Iterator[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.note(tensor.untyped_storage())
        return out

    def note(self, storage: Any) -> None:
        """Count a storage that was allocated just now, until it is freed."""
        name = storage._cdata
        if name in self.sizes:
            return
        self.sizes[name] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.freed, name)

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


@contextmanager
def count_allocations(network: nn.Module, setting: Setting) -> Iterator[tuple[LiveBytes, DeviceRules]]:
    """Count the bytes that are allocated inside."""
    tensors = (*network.parameters(), *network.buffers())
    with DeviceRules(setting) as rules, LiveBytes(iter(tensors)) as live:
        yield live, rules


def step_bytes(unet: nn.Module, shape: UnetInput, setting: Setting, *, checkpointing: bool | None = None) -> int:
    """The peak of a step's forward and backward pass, gradients included, weights and optimiser state not.

    checkpointing: None as the network has it. Exact for the tensors; the kernels' own workspaces come on top.
    """

    def count() -> list[int]:
        copied = meta_copy(unet).train()
        if checkpointing is not None:
            set_checkpointing(copied, checkpointing)
        with count_allocations(copied, setting) as (live, rules):
            recompute_with_rules(copied, rules)
            if setting.accumulate:
                for weight in copied.parameters():
                    weight.grad = torch.empty_like(weight) if weight.requires_grad else None
            predicted = Denoiser(copied)(*shape.meta_tensors(copied))
            rules.casts.clear()
            predicted.square().mean().backward()
            return [live.peak]

    return cached_count(unet, ("step", shape, setting, checkpointing), count)[0]


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

    def count() -> list[int]:
        copied = meta_copy(unet).eval()
        with count_allocations(copied, setting) as (live, _):
            Denoiser(copied)(*shape.meta_tensors(copied))
            return [live.peak]

    return cached_count(unet, ("look", shape, setting), count)[0]


@torch.no_grad()
def autoencoder_bytes(vae_config: Mapping[str, Any], method: str, height: int, width: int) -> int:
    """The peak of `encode` or `decode` for one image in float32, the weights included.

    height, width: of the image in pixels for `encode`, of its latents for `decode`.
    """
    vae = meta_autoencoder(vae_config)
    channels = vae_config["in_channels" if method == "encode" else "latent_channels"]

    def count() -> list[int]:
        with count_allocations(vae, Setting()) as (live, _):
            getattr(vae, method)(torch.empty(1, channels, height, width, device="meta"), return_dict=False)
            return [live.peak]

    return sum(weight.nbytes for weight in vae.parameters()) + cached_count(vae, (method, height, width), count)[0]


def text_encoder_bytes(config: Mapping[str, Any]) -> int:
    """The text encoder's weights in float32."""
    with torch.device("meta"):
        encoder = CLIPTextModel(CLIPTextConfig.from_dict(dict(config)))
    return sum(4 * weight.numel() for weight in encoder.parameters())


def free_bytes(device: torch.device) -> int | None:
    """Free memory of the device, and what this process already holds of it; None if the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    available = proc_bytes(Path("/proc/meminfo"), "MemAvailable")
    return None if available is None else available + resident_bytes()


def resident_bytes() -> int:
    """The memory that this process holds; 0 where the system does not say."""
    return proc_bytes(Path("/proc/self/status"), "VmRSS") or 0


def proc_bytes(file: Path, name: str) -> int | None:
    """A number of bytes from a Linux /proc file; None on other systems."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
