"""The folders of a run as they are typed: `--data FOLDER`, `--data FOLDER=2`, or `{path: FOLDER, weight: 2}`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from data.atomic_io import cache_root
from data.captions import TEMPLATE
from data.cli import Options, positional
from data.errors import suggest
from train.adapters import AdapterOptions
from train.lora import LoraOptions
from train.losses import AnyObjective, Epsilon
from train.optim import OptimOptions, check_learning_rate

POCKET = "pocket"  # stands for the sample creatures
FOLDER_KEYS = ("path", "weight")


@dataclass(frozen=True, repr=False)
class Folder:
    """A captioned folder, and how often each of its pictures comes relative to those of weight 1."""

    path: str
    weight: float = 1.0

    @property
    def place(self) -> Path:
        """Where it is; the sample set's stands for a folder that depends on the picture size."""
        return cache_root() / POCKET if self.path == POCKET else Path(self.path).expanduser().resolve()

    def __str__(self) -> str:
        return self.path if self.weight == 1 else f"{self.path}={self.weight:g}"

    __repr__ = __str__  # what --help shows as the default


def parse_folders(given: Any) -> list[Folder]:
    """One folder or a list, each a word or a mapping. Raises ValueError, in a sentence, for what makes no sense."""
    items = given if isinstance(given, list | tuple) else [given]
    if not items:
        raise ValueError("no folder is given")
    folders = [parse_folder(item) for item in items]
    seen: dict[Path, Folder] = {}
    for folder in folders:
        if (first := seen.setdefault(folder.place, folder)) is not folder:
            raise ValueError(f"{folder} is the same folder as {first}; name it once, with a weight: {folder.path}=2")
    return folders


def parse_folder(item: Any) -> Folder:
    """A folder as it is typed, or as YAML has it."""
    if isinstance(item, Folder):
        return Folder(item.path, parse_weight(item.weight, item.path))
    if isinstance(item, str):
        return Folder(*split_weight(item))
    if not isinstance(item, Mapping):
        raise ValueError(f"{item!r} is no folder: write a path, or path: and weight:")
    for key in item:
        if key not in FOLDER_KEYS:
            raise ValueError(f"unknown key {key!r}{suggest(str(key), FOLDER_KEYS)}; allowed: {', '.join(FOLDER_KEYS)}")
    if not isinstance(item.get("path"), str) or not item["path"]:
        raise ValueError(f"{dict(item)!r} names no folder: it needs path:")
    return Folder(item["path"], parse_weight(item.get("weight", 1), item["path"]))


def split_weight(text: str) -> tuple[str, float]:
    """`FOLDER=2` -> FOLDER, 2. A folder that is really called `lr=2` is taken as it is."""
    path, equals, number = text.rpartition("=")
    if not equals or Path(text).expanduser().is_dir() or not is_number(number):
        path, number = text, "1"
    if not path:
        raise ValueError(f"{text!r} names no folder")
    return path, parse_weight(number, path)


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def parse_weight(given: Any, path: str) -> float:
    """A weight: above zero and finite. Raises ValueError naming the folder."""
    weight = float(given) if isinstance(given, str | int | float) and is_number(str(given)) else math.nan
    if not (0 < weight < math.inf):
        raise ValueError(f"{path} has weight {given}; allowed: a number above 0 (leave the folder out instead of 0)")
    return weight


def folder_labels(folders: list[Folder]) -> list[str]:
    """A short name for each, all different: as many parts from the end of the path as it takes. [""] for one alone."""
    if len(folders) == 1:
        return [""]
    parts = [folder.place.parts for folder in folders]
    length = next(n for n in range(1, max(map(len, parts)) + 1) if len({part[-n:] for part in parts}) == len(parts))
    return ["/".join(part[-length:]) for part in parts]


Folders = Annotated[list[Folder], BeforeValidator(parse_folders)]


class ExportOptions(Options):
    """What a finished run leaves beside its default files (LoRA: two LoRA files; full: a diffusers folder)."""

    merge: bool = False
    """LoRA: also leave a whole model in diffusers layout, export/model, with the LoRA merged into its weights"""
    single_file: bool = False
    """also leave the whole (for a LoRA: the merged) model as one file, export/model.safetensors, as A1111 reads it"""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """of the exported weights; fp32 leaves frozen parts as they are in the base's files, whatever their precision"""


class ReexportOptions(ExportOptions):
    """What train/export.py is told."""

    run: Path = positional()
    """the run's folder, e.g. runs/0001-lora-r16"""
    checkpoint: str | None = None
    """the weights of this optimiser step, or of the best one (best); default: those that the run exported"""
    output: Path | None = None
    """folder for the files; default: the run's export, in a folder of their own if step or precision are others"""
    model: str | None = None
    """where the base model lies now, if not where the run's config.yaml says"""


CONFIGS = Path(__file__).parent / "configs"


class ImageOptions(Options):
    """How a captioned folder becomes training samples."""

    size: int | None = Field(default=None, gt=0)
    """pixels of the square bucket's side; default: the size the base model was trained at"""
    buckets: bool = True
    """sort pictures of other shapes into wide and tall buckets of the same area instead of cutting squares"""
    flip: bool = False
    """also train on mirrored pictures (not if left and right matter, or there is writing)"""
    caption: str = TEMPLATE
    """the prompt of a picture: a template with {text}, {type}, {name} or any other key of its metadata"""
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    """share of samples whose caption is replaced by the empty prompt, which guidance needs"""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    """share of pictures kept out of training to see whether it learns or memorises"""
    keep: Literal["auto", "device", "memory", "disk"] = "auto"
    """where the encoded pictures are while it trains: on the GPU, in main memory (copied to the GPU ahead of use), or
    on the disk, for sets larger than both; auto: the first that has room. The batches are the same"""


class PreservationOptions(Options):
    """Learn the look of the pictures and keep what other words mean (train/prior_preservation.py)."""

    share: float = Field(default=0.0, ge=0, lt=1)
    """share of samples that get one of the prompts below instead of their caption, and learn to answer it as the base
    does, in the new look; 0.3 to 0.5 when a small set makes the network forget. Each asks a frozen copy of the base
    twice, which costs its memory and up to half more time"""
    strength: float = Field(default=1.0, gt=0, le=2)
    """how much of what a prompt adds to the base's answer is kept: guidance multiplies it, and what suits the base's
    look may be too much for the new one; 0.5 is as if the base had been guided half as strongly"""
    prompts: Path | None = None
    """text file of what to keep, one prompt a line; default: everyday things"""


class EmaOptions(Options):
    """An exponential moving average of the trained weights; if there is one, it is validated, drawn and exported."""

    decay: float = Field(default=0.0, ge=0, lt=1)
    """share of the average that is kept at each step, e.g. 0.999; 0: no average"""
    warmup: bool = True
    """a smaller decay at first, (1 + n) / (10 + n) at update n, so that the start is soon forgotten"""
    device: Literal["same", "cpu"] = "same"
    """where it lies: beside the weights, or in the CPU's memory, which costs a copy of them at each step"""


class MemoryOptions(Options):
    """What a step costs in memory and time; the mathematics is the same."""

    gradient_checkpointing: bool = False
    """compute activations again in the backward pass instead of keeping them: far less memory, a quarter more time"""
    attention: Literal["sdpa", "xformers"] = "sdpa"
    """torch's own fused attention, or xformers' (if it is installed, on a GPU)"""
    tf32: bool = True
    """multiply float32 matrices with 10 bits of mantissa on GPUs that can, several times faster; fp16 keeps as many"""


class ValidationOptions(Options):
    """The denoising loss at fixed noise, on held-out pictures and as many training pictures."""

    every: int = Field(default=200, gt=0)
    """optimiser steps from one validation to the next; the first is before step 1, so it is the base model's"""
    pictures: int = Field(default=64, gt=0)
    """pictures looked at, at most, of each side"""
    timesteps: int = Field(default=8, gt=0)
    """evenly spread timesteps at which each is looked at"""
    patience: int = Field(default=0, ge=0)
    """stop after this many validations in a row in which the held-out loss did not surely fall; 0: never stop early"""


class PreviewOptions(Options):
    """Pictures drawn while it trains, always of the same prompts and seeds: the base's beside the tuned network's."""

    every: int | None = Field(default=None, ge=0)
    """optimiser steps from one to the next; default: at each validation; 0: none"""
    prompts: list[str] = Field(default=[])
    """what to draw; may be repeated; default: captions of held-out pictures"""
    count: int = Field(default=1, gt=0)
    """pictures of each prompt"""
    seed: int = Field(default=42, ge=0, lt=2**62)
    """seed of the first picture of each prompt; the next one has seed + 1"""
    steps: int = Field(default=12, gt=0)
    """denoising steps (DPM++ 2M, which needs few)"""
    guidance: float = Field(default=5.0, ge=0, allow_inf_nan=False)
    """how strongly the prompt steers; 1 or less: not at all"""

    def interval(self, validated_every: int) -> int:
        """Steps from one to the next; 0: none."""
        return validated_every if self.every is None else self.every

    @field_validator("prompts")
    @classmethod
    def say_something(cls, prompts: list[str]) -> list[str]:
        if not all(prompt.strip() for prompt in prompts):
            raise ValueError("a preview's prompt is empty")
        return prompts


class CheckpointOptions(Options):
    """What is kept so that a killed run goes on."""

    every: int = Field(default=200, gt=0)
    """optimiser steps from one checkpoint to the next"""
    keep: int = Field(default=2, gt=0)
    """how many are kept, and the best one besides"""
    export: Literal["best", "last"] = "best"
    """whose weights are exported: those of the lowest held-out loss, or the last ones (also if nothing is held out)"""


class LoggingOptions(Options):
    """What is written down while it trains."""

    every: int = Field(default=10, gt=0)
    """optimiser steps from one line of metrics.jsonl to the next"""
    tensorboard: bool = True
    """also write TensorBoard files"""
    sample_ids: bool = False
    """also write which pictures each step saw"""
    wandb: bool = False
    """also log to Weights & Biases, if it is installed; WANDB_MODE=offline keeps it on this machine"""
    wandb_project: str = "atelier"
    """the project that its runs appear in"""


class Config(Options):
    """A fine-tuning run."""

    config: Path = CONFIGS / "pocket.yaml"
    """preset to start from: a YAML file with the differences from the defaults"""
    data: Folders = Field(default=[Folder(POCKET)])
    """captioned folder (pictures with metadata.jsonl, or a .txt beside each); pocket: the sample creatures. Several
    may be given; FOLDER=2: each of its pictures comes twice as often as one of a folder without a number (any number
    above 0; "repeats" elsewhere). A regularisation set, against forgetting, is such a folder with a small number"""
    model: str = "pocket"
    """base model: pocket, a hub id on this machine, a diffusers folder, or a .safetensors file"""
    tokenizer: str | None = None
    """folder of a CLIP tokenizer, for a single-file model"""
    adapter: AdapterOptions = LoraOptions()
    objective: AnyObjective = Epsilon()
    optim: OptimOptions = OptimOptions()
    ema: EmaOptions = EmaOptions()
    memory: MemoryOptions = MemoryOptions()
    compile: bool = False
    """compile the network with torch.compile, once for each bucket's shape: minutes at the start, faster steps"""
    pictures: ImageOptions = ImageOptions()
    preserve: PreservationOptions = PreservationOptions()
    validation: ValidationOptions = ValidationOptions()
    previews: PreviewOptions = PreviewOptions()
    checkpoints: CheckpointOptions = CheckpointOptions()
    logging: LoggingOptions = LoggingOptions()
    export: ExportOptions = ExportOptions()
    learning_rate: float = Field(default=1e-4, gt=0)
    """peak learning rate"""
    batch_size: int = Field(default=4, gt=0)
    """pictures in one process' micro-batch"""
    accumulate: int = Field(default=1, gt=0)
    """micro-batches whose gradients are averaged before a step"""
    max_steps: int = Field(default=1000, gt=0)
    """optimiser steps; a larger number extends a finished run of constant schedule, else it is another run"""
    seed: int = 0
    """everything random follows from it"""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads of each process; default: the cores divided by the processes"""
    runs: Path = Path("runs")
    """folder of the run folders"""
    run_name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """name of the run's folder after its number; default: the adapter's"""
    new: bool = False
    """start another run even if one with these settings is there"""
    dry_run: bool = False
    """print the plan and stop"""
    price_per_hour: float | None = Field(default=None, ge=0)
    """what an hour on this machine costs, in any currency: the plan then says what the run will cost"""
    probe: bool = True
    """time up to three steps before the start, for the plan; they change nothing"""
    sweep: str | None = None
    """try values of a setting, compare them on held-out pictures: learning-rate=1e-5..1e-3, or adapter.rank=4,16,64"""
    sweep_candidates: int = Field(default=8, ge=2, le=64)
    """how many values of a range a sweep tries, evenly spread in their logarithm"""
    sweep_steps: int | None = Field(default=None, gt=0)
    """steps of a sweep's first round; the better half goes on to twice as many, and so on; default: a run in all"""
    strict: bool = False
    """refuse to start if a picture has to be left out or a caption is cut"""

    @model_validator(mode="after")
    def rate_fits_the_optimiser(self) -> Self:
        check_learning_rate(self.learning_rate, self.optim)
        return self


# May change when the same run is continued: where things lie, how long it goes on, what is written down.
NOT_IN_IDENTITY = {
    "config",
    "max_steps",
    "threads",
    "runs",
    "run_name",
    "new",
    "dry_run",
    "logging",
    "checkpoints",
    "data",
}
NOT_IN_IDENTITY |= {"export"}  # a finished run can be exported again, train/export.py
NOT_IN_IDENTITY |= {"price_per_hour", "probe", "strict", "sweep", "sweep_candidates", "sweep_steps"}
NOT_IN_IDENTITY |= {"model", "tokenizer", "validation", "previews"}  # the model counts by its content
# ... and what gives the same bits: gradient checkpointing repeats the same operations, an average on the CPU is updated
# by the same roundings. Not compile, attention or tf32: they change the mathematics by no more than rounding, but a
# resumed run promises the bits of one that was never stopped. Preserved prompts count by their words.
BIT_EXACT_OPTIONS = {
    "pictures": {"keep"},
    "preserve": {"prompts"},
    "memory": {"gradient_checkpointing"},
    "ema": {"device"},
}
ENDLESS_SCHEDULES = {"constant"}


def run_identity(config: Config, data_fingerprint: str, model_fingerprint: str) -> str:
    """A hash of what makes two runs the same: settings, the data's content and the base model's, not names and paths.

    The number of steps counts only where the learning rate depends on it.
    """
    left_out: Any = dict.fromkeys(NOT_IN_IDENTITY, True) | BIT_EXACT_OPTIONS
    settings: dict[str, Any] = config.model_dump(mode="json", exclude=left_out)
    if config.optim.schedule not in ENDLESS_SCHEDULES:
        settings["max_steps"] = config.max_steps
    text = json.dumps([settings, data_fingerprint, model_fingerprint], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


ALIASES = {
    "--pretrained-model-name-or-path": "--model",
    "--train-data-dir": "--data",
    "--train-batch-size": "--batch-size",
    "--gradient-accumulation-steps": "--accumulate",
    "--max-train-steps": "--max-steps",
    "--lr": "--learning-rate",
    "--rank": "--adapter.rank",
}
