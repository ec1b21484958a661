"""How much memory a run will take, by its parts, before it starts.

The step's own code runs on a skeleton of the network while every allocation and release is counted: activations kept
for the backward pass, temporaries, gradients as they come, autocast's copies of weights, what checkpointing frees.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
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

from train.denoiser import Denoiser
from train.flops import switch_checkpointing
from train.skeleton import Question, autoencoder, remembered, skeleton

GIB = 2**30
# What autocast computes in half precision, and what in float32: the layers that a U-Net has, of torch's lists
# (docs "Autocast Op Reference"). The CPU's lists leave the norms as they come.
HALVED = {F.linear, F.conv2d, F.scaled_dot_product_attention, torch.matmul, torch.bmm, torch.baddbmm}
KEPT_WHOLE = {"cuda": {F.layer_norm, F.group_norm, F.softmax}}


@dataclass(frozen=True)
class Memory:
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


class Live(TorchDispatchMode):
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


class OnDevice(TorchFunctionMode):
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


def step_bytes(network: nn.Module, question: Question, setting: Setting, *, checkpointing: bool | None = None) -> int:
    """The peak of a step's forward and backward pass, gradients included, weights and optimiser not.

    checkpointing: None as the network has it. Exact for the tensors; kernels' own workspaces come on top.
    """
    asked = ("step", question, setting, checkpointing)
    return remembered(network, asked, lambda: [trained(network, question, setting, checkpointing)])[0]


def trained(network: nn.Module, question: Question, setting: Setting, checkpointing: bool | None) -> int:
    bones = skeleton(network).train()
    if checkpointing is not None:
        switch_checkpointing(bones, checkpointing)
    with counted(bones, setting) as (live, precision):
        recompute_likewise(bones, precision)
        if setting.accumulate:
            for weight in bones.parameters():
                weight.grad = torch.empty_like(weight) if weight.requires_grad else None
        predicted = Denoiser(bones)(*question.tensors(bones))
        precision.casts.clear()
        predicted.square().mean().backward()
        return live.peak


def recompute_likewise(bones: nn.Module, precision: OnDevice) -> None:
    """The backward pass leaves function modes; what checkpointing computes again must meet ours, as autocast's."""

    def checkpoint(module: nn.Module, *args: Any) -> Any:
        contexts = (nullcontext(), OnDevice(precision.setting))
        return recompute(module.__call__, *args, use_reentrant=False, context_fn=lambda: contexts)

    for module in bones.modules():
        if getattr(module, "gradient_checkpointing", False):
            module._gradient_checkpointing_func = checkpoint  # type: ignore[assignment]


def look_bytes(network: nn.Module, question: Question, setting: Setting) -> int:
    """The peak of a forward pass that keeps nothing, as validation does it."""
    return remembered(network, ("look", question, setting), lambda: [looked(network, question, setting)])[0]


@torch.no_grad()
def looked(network: nn.Module, question: Question, setting: Setting) -> int:
    bones = skeleton(network).eval()
    with counted(bones, setting) as (live, _):
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
    network = autoencoder(vae_config)
    weights = sum(weight.nbytes for weight in network.parameters())

    def done() -> list[int]:
        with counted(network, Setting()) as (live, _):
            getattr(network, way)(torch.empty(shape, device="meta"), return_dict=False)
            return [live.peak]

    return weights + remembered(network, (way, *shape[2:]), done)[0]


def text_encoder_bytes(config: Mapping[str, Any]) -> int:
    """The text encoder's weights in float32."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        network = CLIPTextModel(CLIPTextConfig.from_dict(dict(config)))
    return sum(4 * weight.numel() for weight in network.parameters())


@contextmanager
def counted(bones: nn.Module, setting: Setting) -> Iterator[tuple[Live, OnDevice]]:
    """Count what happens inside."""
    tensors = (*bones.parameters(), *bones.buffers())
    with OnDevice(setting) as precision, Live(iter(tensors)) as live:
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
