"""The machine: accelerate's settings as they really are in force, CPU threads, and what to call them."""

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from data.dataset import Batch, BatchLayout
from data.errors import InputError, check_choice
from train import signals
from train.config import Config, MemoryOptions

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
PRECISIONS = {"no": "fp32", "fp16": "fp16 with float32 trained weights", "bf16": "bf16 with float32 trained weights"}


def start_accelerator(config: Config) -> Accelerator:
    """The machine for a fine-tuning run. Raises InputError if it does not support what the config asks for."""
    accelerator = create_accelerator(config.threads)
    check_memory_options(config.memory, accelerator.device)
    set_tf32(config.memory.tf32)
    return accelerator


def create_accelerator(threads: int | None) -> Accelerator:
    """accelerate's Accelerator, by the launcher's settings as far as this machine supports them. Raises InputError."""
    check_launcher_settings()
    signals.check_process_count()
    os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", None)  # --accumulate says it; both would divide twice
    here, everywhere = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    # The launcher sets OMP_NUM_THREADS=1 when nothing was said, which would leave all cores but one idle.
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // here))
    # without being told so, accelerate takes two processes on a machine without a GPU for two runs of one process each
    accelerator = Accelerator(cpu=True) if everywhere > 1 and not torch.cuda.is_available() else Accelerator()
    if accelerator.num_processes != everywhere:
        what = f"{everywhere} processes were started, but accelerate sees {accelerator.num_processes}"
        fix = "Start them with: torchrun --nproc-per-node N train/finetune.py ..."
        raise InputError(what, where="the launcher", fix=fix)
    return accelerator


def check_launcher_settings() -> None:
    """Raises InputError under FSDP and DeepSpeed (each process would hold, save and average a part of the weights), if
    accelerate is to compile (train/torch_compile.py does, and verifies it), and for an unknown precision.
    """
    where, environment = "the launcher's config file", os.environ
    for name, variable in (("FSDP", "ACCELERATE_USE_FSDP"), ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED")):
        if environment.get(variable, "").lower() in ("1", "true", "yes"):
            what = f"{name} spreads one network over several GPUs, which a network of this size does not need"
            fix = (
                "Use train/configs/accelerate/gpus.yaml; if memory is short: --optim.kind adamw-8bit, "
                "--memory.gradient-checkpointing true, or --batch-size 1 with more --accumulate."
            )
            raise InputError(what, where=where, allowed="distributed_type NO or MULTI_GPU", fix=fix)
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        what = f"dynamo_backend {backend} would compile the network without a proof that its gradients are right"
        raise InputError(what, where=where, allowed="'no'", fix="Use --compile instead.")
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    flag = "--mixed_precision of the launcher, or ACCELERATE_MIXED_PRECISION"
    check_choice(precision, PRECISIONS, what="precision", where=flag)
    if precision == "fp16" and not torch.cuda.is_available():
        precision = "no"
        print("no GPU here: fp16 is for GPUs, training in fp32 on the CPU", flush=True)
    if "ACCELERATE_MIXED_PRECISION" in environment:
        environment["ACCELERATE_MIXED_PRECISION"] = precision  # of BF16 accelerate takes the name and computes in fp32


def launch_command() -> str:
    """The command that trains in this process' precision, with a flag if the launcher's config file has another."""
    usual = "fp16" if torch.cuda.is_available() else "no"
    here = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    flag = "" if here == usual else f" --mixed_precision {here}"
    return f"accelerate launch --quiet --config_file accelerate_config.yaml{flag} train/finetune.py"


def check_memory_options(memory: MemoryOptions, device: torch.device) -> None:
    """Raises InputError if this machine does not support the attention that was chosen."""
    if memory.attention == "xformers" and find_spec("xformers") is None:
        fix = "Get it with: pip install xformers, or leave it out: sdpa is as fast on most GPUs."
        raise InputError("xformers is not installed", where="--memory.attention", fix=fix)
    if memory.attention == "xformers" and device.type != "cuda":
        what = f"xformers is for GPUs, this is a {device_name(device)}"
        raise InputError(what, where="--memory.attention", allowed="sdpa", fix="Leave it out.")


def set_tf32(on: bool) -> None:
    """For matrix products and convolutions of float32 on a GPU; nothing else changes.

    On by default: it has the mantissa of fp16, in which most runs train, the range of float32, and float32 sums.
    """
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on


def configure_unet(unet: Any, memory: MemoryOptions) -> None:
    """Set gradient checkpointing and the attention. diffusers' own default is torch's fused attention."""
    if memory.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if memory.attention == "xformers":
        unet.enable_xformers_memory_efficient_attention()


def describe_memory_options(config: Config, device: torch.device) -> str:
    """What is in force, for the plan."""
    memory = config.memory
    words = [f"{memory.attention} attention", "channels-last"]
    words += ["TF32"] if memory.tf32 and device.type == "cuda" else []
    words += ["gradient checkpointing"] if memory.gradient_checkpointing else []
    return ", ".join(words + (["compiled"] if config.compile else []))


def describe_precision(accelerator: Accelerator) -> str:
    return PRECISIONS.get(accelerator.mixed_precision, accelerator.mixed_precision)


def run_conditions(accelerator: Accelerator) -> dict[str, Any]:
    """What a run's weights follow from besides its settings, for its folder."""
    return {"processes": accelerator.num_processes, "precision": describe_precision(accelerator)}


def check_run_conditions(before: Mapping[str, Any], accelerator: Accelerator, folder: Path) -> None:
    """Another number of processes sees other images a step, another precision gives other weights. Raises InputError.

    before: run_conditions of the run to resume, among other facts; nothing is refused where they were not written.
    """
    if change := changed_conditions(before, accelerator):
        was, now = change
        fix = f"Start it as it was started{launch_hint(before)}, or start another run with --new."
        raise InputError(f"began with {was}, this would go on with {now}", where=folder, fix=fix)


def changed_conditions(before: Mapping[str, Any], accelerator: Accelerator) -> tuple[str, str] | None:
    """How a run was computed and how this process would, in words, if they differ; `before` as above."""
    now = run_conditions(accelerator)
    if "processes" not in before or all(before.get(name) == value for name, value in now.items()):
        return None
    was, would = (f"{c['processes']} process{'es' * (c['processes'] > 1)} in {c['precision']}" for c in (before, now))
    return was, would


def launch_hint(conditions: Mapping[str, Any]) -> str:
    """The launcher's words for it."""
    precision = next((name for name, words in PRECISIONS.items() if words == conditions["precision"]), "no")
    if precision == "fp16" and not torch.cuda.is_available():
        return ", on a GPU"
    if conditions["processes"] == 1:
        return f" (accelerate launch --mixed_precision {precision} ...)"
    return f" (ACCELERATE_MIXED_PRECISION={precision} torchrun --nproc-per-node {conditions['processes']} ...)"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def release_memory() -> None:
    """Return freed main memory to the system. glibc keeps it, in pieces that seldom fit what comes next, so that each
    phase of a run would come on top of those before: 8.5 in place of 6.4 GiB for LoRA at 512 pixels on a CPU.
    """
    gc.collect()
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def batch_layout(config: Config, accelerator: Accelerator) -> BatchLayout:
    return BatchLayout(config.batch_size, config.accumulate, accelerator.num_processes, accelerator.process_index)


# ---- out of memory: micro-batches are split, and the gradients of the parts add up to the same sum

TOO_LARGE = "a single image does not fit into the device's memory"
OUT_OF_MEMORY_HINT = "Use gradient checkpointing, an 8-bit optimiser, smaller images or a LoRA of lower rank."


def split_batch(batch: Batch, count: int) -> list[Batch]:
    """The batch in at most `count` parts of nearly equal size, in order: rows of every entry with a batch axis."""
    size, step = len(batch.sample_ids), -(-len(batch.sample_ids) // count)
    if count == 1:
        return [batch]
    entries = {entry.name: getattr(batch, entry.name) for entry in fields(batch)}

    def rows(start: int) -> Batch:
        cut = {n: v[start : start + step] if isinstance(v, Tensor | list) else v for n, v in entries.items()}
        return Batch(**cut)

    return [rows(start) for start in range(0, size, step)]


def split_further(count: int, layout: BatchLayout) -> int:
    """Twice as many parts, after memory ran out.

    Raises InputError for single samples, and with several processes: one that repeats a batch would leave the others
    waiting for its gradients.
    """
    if layout.processes > 1:
        fix = f"Use --batch-size {max(1, layout.batch_size // 2)} --accumulate {2 * layout.accumulate}: the same batch."
        raise InputError("a micro-batch does not fit into the device's memory", where="training", fix=fix)
    if count >= layout.batch_size:
        raise InputError(TOO_LARGE, where="training", fix=OUT_OF_MEMORY_HINT)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    parts = f"parts of {-(-layout.batch_size // (2 * count))}; the gradient is the same"
    print(f"\nout of memory: continuing with micro-batches split into {parts}", flush=True)
    return 2 * count


@torch.no_grad()
def predict_in_chunks(predict: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """predict(*inputs) for all rows at once or, where memory runs out, in chunks. Raises InputError if one row is too
    much.
    """
    rows = size = len(inputs[0])
    while (found := try_chunks(predict, inputs, size)) is None:
        if size == 1:
            raise InputError(TOO_LARGE, where="validation", fix="Use smaller images.")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size = -(-size // 2)
    assert len(found) == rows
    return found


def try_chunks(predict: Callable[..., Tensor], inputs: Sequence[Tensor], size: int) -> Tensor | None:
    """None if memory ran out; what was allocated is free again only after this function has returned."""
    try:
        return torch.cat([predict(*rows) for rows in zip(*(each.split(size) for each in inputs), strict=True)])
    except torch.OutOfMemoryError:
        return None


@contextmanager
def optimizer_memory_guard() -> Iterator[None]:
    """The optimiser's moments are allocated at the first step, when the gradients already exist."""
    try:
        yield
    except torch.OutOfMemoryError:
        what = "the optimiser's state does not fit into the device's memory"
        raise InputError(what, where="training", fix=OUT_OF_MEMORY_HINT) from None
