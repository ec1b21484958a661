"""Every option of a fine-tuning run, with its default: plain data. Machine settings are in accelerate_config.yaml.

To add an adapter or objective: a class below, its name in the union, and its functions in train/adapters.py or
train/losses.py.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from data.atomic_io import cache_root
from data.cli import Options, positional
from data.config import ImageOptions
from data.errors import InputError, suggest

POCKET = "pocket"  # stands for the sample set and for the embedded base model
POCKET_FOLDER = Path(__file__).parent.parent / "data" / "pocket" / "base"
CONFIGS = Path(__file__).parent / "configs"


# ---- datasets


@dataclass(frozen=True, repr=False)
class Folder:
    """A captioned folder, and how often each of its images is used relative to those of a folder of weight 1."""

    path: str
    weight: float = 1.0

    @property
    def place(self) -> Path:
        """The absolute path; for the sample set a stand-in, as its folder depends on the image size."""
        return cache_root() / POCKET if self.path == POCKET else Path(self.path).expanduser().resolve()

    def __str__(self) -> str:
        return self.path if self.weight == 1 else f"{self.path}={self.weight:g}"

    __repr__ = __str__


def parse_folders(given: Any) -> list[Folder]:
    """One folder or a list of them: `FOLDER`, `FOLDER=2` or `{path: FOLDER, weight: 2}`. Raises ValueError."""
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
    """One folder; `lr=2` is taken as a path if a folder of that name exists. Raises ValueError."""
    if isinstance(item, Folder):
        return item
    if isinstance(item, str):
        head, equals, number = item.rpartition("=")
        weighted = equals and to_number(number) is not None and not Path(item).expanduser().is_dir()
        path, weight = (head, number) if weighted else (item, 1)
    elif not isinstance(item, Mapping):
        raise ValueError(f"{item!r} is not a folder: write a path, or path: and weight:")
    else:
        for key in item.keys() - {"path", "weight"}:
            raise ValueError(f"unknown key {key!r}{suggest(str(key), ('path', 'weight'))}; allowed: path, weight")
        path, weight = item.get("path"), item.get("weight", 1)
    if not isinstance(path, str) or not path:
        raise ValueError(f"{item if isinstance(item, str) else dict(item)!r} names no folder: it needs path:")
    number = to_number(weight)
    if number is None or not 0 < number < math.inf:
        raise ValueError(f"{path} has weight {weight}; allowed: a number above 0 (leave the folder out instead of 0)")
    return Folder(path, number)


def to_number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


Folders = Annotated[list[Folder], BeforeValidator(parse_folders)]


# ---- what is trained


BLOCKS = "all, last-layers (the last up block and the output layers), or names such as up_blocks.3, mid_block, conv_out"
MAX_RANK = 1024
TARGETS = {  # names for groups of layers -> the ends of module names in diffusers' U-Net
    "attention": ["to_q", "to_k", "to_v", "to_out.0"],
    "feed-forward": ["ff.net.0.proj", "ff.net.2"],
    "convolutions": [
        *("conv1", "conv2", "conv_shortcut", "proj_in", "proj_out"),
        *("downsamplers.0.conv", "upsamplers.0.conv"),
    ],
}


class FullOptions(Options):
    """Train the U-Net itself. Fits most and forgets most; exports a whole model."""

    kind: Literal["full"] = "full"
    """what is trained: a low-rank adapter (lora) or the U-Net itself (full)"""
    blocks: list[str] = Field(default=["all"])
    """blocks to train: all, last-layers, or names such as up_blocks.3, mid_block, conv_out; may be repeated"""
    trains_base: ClassVar[bool] = True  # so the base model's weights are kept in float32

    @field_validator("blocks")
    @classmethod
    def not_empty(cls, names: list[str]) -> list[str]:
        if not names:
            raise InputError("no blocks are chosen", where="--adapter.blocks", allowed=BLOCKS)
        return names

    @property
    def label(self) -> str:
        """A short name for the run's folder."""
        if "all" in self.blocks:
            return "full"
        return "full-" + ("-".join(self.blocks) if len(self.blocks) <= 3 else f"{len(self.blocks)}-blocks")


class LoraOptions(Options):
    """Train a low-rank adapter; the base stays as it is, and the file is small."""

    kind: Literal["lora"] = "lora"
    """what is trained: a low-rank adapter (lora) or the U-Net itself (full)"""
    rank: int = Field(default=16, ge=1, le=MAX_RANK)
    """LoRA rank; higher ranks fit more and forget more"""
    alpha: float | None = Field(default=None, gt=0)
    """the update is scaled by alpha / rank; default: alpha = rank, a scale of 1 as in diffusers' scripts"""
    ranks: list[str] = Field(default=[])
    """ranks of single blocks as NAME=RANK, e.g. up_blocks.3=32; the smallest block that contains a layer decides, and
    alpha / rank is the same in all of them; may be repeated"""
    targets: list[str] = Field(default=["attention"])
    """layers to adapt: attention, feed-forward, convolutions, or the end of a module's name; may be repeated"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """dropout probability of the LoRA input"""
    use_dora: bool = False
    """DoRA: train the magnitude of each row of the weights separately; slower, often better at low ranks"""
    use_rslora: bool = False
    """rsLoRA: scale by alpha / sqrt(rank), so that large ranks learn as fast; with alpha = rank that is sqrt(rank)"""
    trains_base: ClassVar[bool] = False

    @field_validator("targets")
    @classmethod
    def not_empty(cls, targets: list[str]) -> list[str]:
        if not targets:
            raise InputError("no layers are chosen", where="--adapter.targets", allowed=", ".join(TARGETS))
        return targets

    @field_validator("ranks", mode="before")
    @classmethod
    def as_list(cls, ranks: Any) -> Any:
        """A preset may write them as a mapping."""
        return [f"{name}={rank}" for name, rank in ranks.items()] if isinstance(ranks, dict) else ranks

    @field_validator("ranks")
    @classmethod
    def check_ranks(cls, ranks: list[str]) -> list[str]:
        for text in ranks:
            name, _, rank = text.partition("=")
            if not (name and rank.isdecimal() and 1 <= int(rank) <= MAX_RANK):
                allowed = f"NAME=RANK with a rank from 1 to {MAX_RANK}, e.g. up_blocks.3=32"
                raise InputError(f"{text!r} is not a block's rank", where="--adapter.ranks", allowed=allowed)
        return ranks

    @property
    def label(self) -> str:
        """A short name for the run's folder."""
        return f"{'dora' if self.use_dora else 'lora'}-r{self.rank}"


AdapterOptions = Annotated[FullOptions | LoraOptions, Field(discriminator="kind")]


# ---- the objective


class Objective(Options):
    """How errors become a loss, whatever is predicted."""

    predicts: ClassVar[str]  # diffusers' prediction_type
    why_not_zero_snr: ClassVar[str | None] = None  # the reason to refuse zero_terminal_snr, if there is one

    loss: Literal["mse", "huber", "smooth-l1"] = "mse"
    """mse; huber: pseudo-Huber, less sensitive to outliers; smooth-l1: pseudo-Huber divided by its threshold"""
    huber_c: float | None = Field(default=None, gt=0, le=1)
    """Huber threshold delta at the noisiest timestep, for huber and smooth-l1; default: 0.1"""
    huber_schedule: Literal["constant", "exponential", "snr"] | None = None
    """how the threshold falls from 1 at the clean end to huber-c at the noisy one; constant: always huber-c;
    default: snr"""
    weighting: Literal["none", "min-snr", "soft-min-snr"] = "none"
    """timestep weighting of the loss: none, or min-SNR capped at gamma"""
    gamma: float | None = Field(default=None, gt=0)
    """signal-to-noise ratio above which min-snr and soft-min-snr reduce the weight; default: 5 and 4"""
    noise_offset: float = Field(default=0.0, ge=0, le=1)
    """size of a constant added to each channel's noise, for darker and brighter images; usually 0.05 to 0.1"""
    input_perturbation: float = Field(default=0.0, ge=0, le=1)
    """size of extra noise in the network's input only, against errors that add up while sampling; usually 0.1"""
    zero_terminal_snr: bool = False
    """rescale the noise schedule to zero terminal SNR; for v prediction only"""

    @model_validator(mode="after")
    def check_combination(self) -> Self:
        huber = {"--objective.huber-c": self.huber_c, "--objective.huber-schedule": self.huber_schedule}
        unused = [flag for flag, value in huber.items() if value is not None and self.loss == "mse"]
        if unused:
            fix = "Add --objective.loss huber, or leave it out."
            raise InputError("has no effect with --objective.loss mse", where=unused[0], fix=fix)
        if self.weighting == "none" and self.gamma is not None:
            fix = "Add --objective.weighting min-snr, or leave it out."
            raise InputError("has no effect with --objective.weighting none", where="--objective.gamma", fix=fix)
        if self.zero_terminal_snr and self.why_not_zero_snr:
            allowed = "--objective.kind velocity"
            raise InputError(self.why_not_zero_snr, where="--objective.zero-terminal-snr", allowed=allowed)
        return self


class Epsilon(Objective):
    """Predict the noise. With mean squares, L_simple. Source: Ho et al. 2020, arXiv 2006.11239, eq. 14."""

    kind: Literal["epsilon"] = "epsilon"
    """what the network predicts, as its base model does: the noise (epsilon), the velocity, or the image (sample)"""
    predicts: ClassVar[str] = "epsilon"
    why_not_zero_snr: ClassVar[str | None] = (
        "at zero SNR the network's input is the noise itself: predicting it teaches nothing about images, and no image "
        "follows from it when sampling (Lin et al. 2023, arXiv 2305.08891)"
    )


class Velocity(Objective):
    """Predict v = sqrt(abar) eps - sqrt(1 - abar) x_0. Source: Salimans & Ho 2022, arXiv 2202.00512, appendix D."""

    kind: Literal["velocity"] = "velocity"
    """what the network predicts, as its base model does: the noise (epsilon), the velocity, or the image (sample)"""
    predicts: ClassVar[str] = "v_prediction"


class Sample(Objective):
    """Predict x_0, the image itself. Source: Salimans & Ho 2022, arXiv 2202.00512, section 4."""

    kind: Literal["sample"] = "sample"
    """what the network predicts, as its base model does: the noise (epsilon), the velocity, or the image (sample)"""
    predicts: ClassVar[str] = "sample"
    why_not_zero_snr: ClassVar[str | None] = (
        "rescaling a base to zero SNR is known to work for v prediction only (Lin et al. 2023, arXiv 2305.08891)"
    )


AnyKind = Epsilon | Velocity | Sample
AnyObjective = Annotated[AnyKind, Field(discriminator="kind")]


# ---- the optimiser


ENDLESS_SCHEDULES = {"constant"}  # those that do not depend on --max-steps


class OptimOptions(Options):
    """How weights are updated."""

    kind: Literal["adamw", "adamw-8bit", "adafactor", "prodigy", "schedule-free"] = "adamw"
    """adamw; adamw-8bit (bitsandbytes, a quarter of the state); adafactor (little state); prodigy (finds its own
    step size: use --learning-rate 1); schedule-free (AdamW that averages its own weights, constant schedule)"""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """decay of the mean of gradients"""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """decay of the mean of squared gradients"""
    epsilon: float = Field(default=1e-8, gt=0)
    """added to the root of the second moment"""
    weight_decay: float = Field(default=1e-2, ge=0)
    """decoupled weight decay"""
    clip_norm: float = Field(default=1.0, gt=0)
    """maximum global norm of the gradients; larger ones are scaled down"""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """learning rate after the warm-up: constant, or decaying to 0 at --max-steps"""
    warmup: int = Field(default=0, ge=0)
    """optimiser steps over which the learning rate rises from 0"""

    @model_validator(mode="after")
    def check_kind(self) -> Self:
        """Refuse what the chosen optimiser would ignore or cannot do. Raises InputError."""
        if self.kind == "schedule-free" and self.schedule != "constant":
            what = f"schedule-free replaces a learning-rate schedule, but {self.schedule} was given"
            raise InputError(what, where="--optim.schedule", allowed="constant", fix="Add --optim.schedule constant.")
        if self.kind == "schedule-free" and self.beta1 == 0:
            what = "schedule-free divides by it: it interpolates between the averaged and the newest weights"
            raise InputError(what, where="--optim.beta1", allowed="more than 0", fix="Leave it out.")
        for name in ("beta1", "beta2", "epsilon") if self.kind == "adafactor" else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                what = "adafactor has no such setting: it keeps no mean of gradients, and its decay follows the step"
                raise InputError(what, where=f"--optim.{name}", fix="Leave it out.")
        return self


class EmaOptions(Options):
    """An exponential moving average of the trained weights; if enabled, it is validated, previewed and exported."""

    decay: float = Field(default=0.0, ge=0, lt=1)
    """EMA decay, e.g. 0.999; 0: no EMA"""
    warmup: bool = True
    """EMA warm-up: a smaller decay at first, (1 + n) / (10 + n) at update n"""
    device: Literal["same", "cpu"] = "same"
    """where the average is kept: beside the weights, or in main memory, which costs a copy of them at each step"""


# ---- everything else


class PreservationOptions(Options):
    """Prior preservation: learn the style and keep the meaning of other words (train/losses.py)."""

    share: float = Field(default=0.0, ge=0, lt=1)
    """share of samples that get one of the prompts below instead of their caption, and learn to answer it as the base
    does, in the new style; 0.3 to 0.5 when a small set makes the network forget. Each asks a frozen copy of the base
    twice, which costs its memory and up to half more time"""
    strength: float = Field(default=1.0, gt=0, le=2)
    """how much of what a prompt adds to the base's prediction is kept: guidance multiplies it, and what suits the
    base's style may be too much for the new one; 0.5 is as if the base had been guided half as strongly"""
    prompts: Path | None = None
    """text file of prompts to preserve, one a line; default: everyday things"""


class MemoryOptions(Options):
    """Memory and time of a step; the mathematics is the same."""

    gradient_checkpointing: bool = False
    """recompute activations in the backward pass instead of keeping them: far less memory, a quarter more time"""
    attention: Literal["sdpa", "xformers"] = "sdpa"
    """torch's fused attention, or xformers' (if it is installed, on a GPU)"""
    tf32: bool = True
    """multiply float32 matrices with 10 bits of mantissa on GPUs that can, several times faster; fp16 has as many"""


class ValidationOptions(Options):
    """The denoising loss at fixed noise, on held-out images and as many training images."""

    every: int = Field(default=200, gt=0)
    """optimiser steps between validations; the first comes before step 1 and measures the base model"""
    pictures: int = Field(default=64, gt=0)
    """maximum number of images per split (train, held-out)"""
    timesteps: int = Field(default=8, gt=0)
    """evenly spread timesteps per image"""
    patience: int = Field(default=0, ge=0)
    """early stopping: stop after this many validations without a significant improvement of the held-out loss; 0:
    never"""


class PreviewOptions(Options):
    """Images generated during training, always of the same prompts and seeds: the base's beside the tuned network's."""

    every: int | None = Field(default=None, ge=0)
    """optimiser steps between previews; 0: none; default: at each validation"""
    prompts: list[str] = Field(default=[])
    """prompts to generate; may be repeated; default: captions of held-out images"""
    count: int = Field(default=1, gt=0)
    """images per prompt"""
    seed: int = Field(default=42, ge=0, lt=2**62)
    """seed of the first image of each prompt; the next one has seed + 1"""
    steps: int = Field(default=12, gt=0)
    """sampling steps (DPM++ 2M, which needs few)"""
    guidance: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """guidance scale; 1 or less: no guidance; default: as suits the model, 7.5 for Stable Diffusion, 4 for pocket"""

    @field_validator("prompts")
    @classmethod
    def check_prompts(cls, prompts: list[str]) -> list[str]:
        if not all(prompt.strip() for prompt in prompts):
            raise ValueError("a preview's prompt is empty; --previews.every 0 switches previews off")
        return prompts


class CheckpointOptions(Options):
    """What is kept so that a killed run can be resumed."""

    every: int = Field(default=200, gt=0)
    """optimiser steps between checkpoints"""
    keep: int = Field(default=2, gt=0)
    """how many checkpoints to keep, besides the best one"""
    export: Literal["best", "last"] = "best"
    """export the best checkpoint (lowest held-out loss) or the last one, which is also used if nothing is held out"""


class LoggingOptions(Options):
    """What is logged during training."""

    every: int = Field(default=10, gt=0)
    """optimiser steps between lines of metrics.jsonl"""
    tensorboard: bool = True
    """also write TensorBoard files"""
    sample_ids: bool = False
    """also log which images each step used"""
    wandb: bool = False
    """also log to Weights & Biases, if it is installed; WANDB_MODE=offline keeps it on this machine"""
    wandb_project: str = "atelier"
    """Weights & Biases project"""


class ExportOptions(Options):
    """What a finished run exports beside its default files (LoRA: two LoRA files; full: a diffusers folder)."""

    merge: bool = False
    """LoRA: also export a whole model in diffusers layout, export/model, with the LoRA merged into its weights"""
    single_file: bool = False
    """also export the whole (for a LoRA: the merged) model as one file, export/model.safetensors, as A1111 reads it"""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """of the exported weights; fp32 leaves frozen parts as they are in the base's files, whatever their precision"""


class ReexportOptions(ExportOptions):
    """Options of train/export.py."""

    run: Path = positional()
    """the run's folder, e.g. runs/0001-lora-r16"""
    checkpoint: str | None = None
    """the optimiser step to export, or best; default: the one that the run exported"""
    output: Path | None = None
    """folder for the files; default: the run's export, in a folder of their own if step or precision differ"""
    model: str | None = None
    """where the base model is now; default: where the run's config.yaml says"""


class Config(Options):
    """A fine-tuning run."""

    config: Path | None = None
    """preset to start from, a YAML file; default: chosen by --model: pocket.yaml for the embedded base and models of
    its size, sd14-lora.yaml or sd14-full.yaml for Stable Diffusion v1"""
    data: Folders = Field(default=[Folder(POCKET)])
    """captioned folder (images with metadata.jsonl, or a .txt beside each), a .zip or .tar of one, WebDataset shards, a
    saved Hugging Face dataset or its parquet files; pocket: the sample creatures. Several may be given; FOLDER=2: each
    of its images is used twice as often as one of a folder without a number (any number above
    0). A regularisation set, against forgetting, is such a folder with a small number"""
    model: str = POCKET
    """base model: pocket, a hub id on this machine, a diffusers folder, or a .safetensors file"""
    tokenizer: str | None = None
    """folder of a CLIP tokenizer; default: the one of the model, for a single file that of CLIP"""
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
    """images per device and micro-batch"""
    accumulate: int = Field(default=1, gt=0)
    """micro-batches whose gradients are averaged before a step"""
    max_steps: int = Field(default=1000, gt=0)
    """optimiser steps; a larger number extends a finished run of constant schedule, otherwise it is another run"""
    seed: int = 0
    """random seed"""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads of each process; default: the cores divided by the processes"""
    runs: Path = Path("runs")
    """folder of the run folders"""
    run_name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """name of the run's folder after its number; default: the adapter's"""
    new: bool = False
    """start another run even if one with these settings exists"""
    resume: Path | None = None
    """resume this run although data or settings changed since; the run's history says so"""
    dry_run: bool = False
    """print the plan and stop"""
    price_per_hour: float | None = Field(default=None, ge=0)
    """price of an hour on this machine, in any currency: the plan then estimates the price of the run"""
    probe: bool = True
    """time up to three steps before the start, for the plan; they change nothing"""
    sweep: str | None = None
    """try values of a setting, compare them on held-out images: learning-rate=1e-5..1e-3, or adapter.rank=4,16,64"""
    sweep_candidates: int = Field(default=8, ge=2, le=64)
    """how many values of a range a sweep tries, evenly spread in their logarithm"""
    sweep_steps: int | None = Field(default=None, gt=0)
    """steps of a sweep's first round; the better half continues to twice as many, and so on; default: a run in all"""
    strict: bool = False
    """refuse to start if an image has to be left out or a caption is truncated"""

    @model_validator(mode="after")
    def check_learning_rate(self) -> Self:
        """Prodigy's learning rate is a factor on the step size it finds. Raises InputError for one meant for AdamW."""
        if self.optim.kind == "prodigy" and not 0.1 <= self.learning_rate <= 10:
            what = f"{self.learning_rate:g} with prodigy, which finds the step size itself: the rate is a factor on it"
            raise InputError(what, where="--learning-rate", allowed="0.1 to 10", fix="Add --learning-rate 1.")
        return self


ALIASES = {  # of diffusers' scripts, where they mean the same; train/other_tools.yaml says what to do about the others
    "--pretrained-model-name-or-path": "--model",
    "--train-data-dir": "--data",
    "--train-batch-size": "--batch-size",
    "--gradient-accumulation-steps": "--accumulate",
    "--max-train-steps": "--max-steps",
    "--lr": "--learning-rate",
    "--rank": "--adapter.rank",
    "--resolution": "--pictures.size",
    "--random-flip": "--pictures.flip",
    "--caption-column": "--pictures.caption-column",
    "--captions-per-line": "--pictures.captions-per-line",
    "--instance-prompt": "--pictures.prompt",
    "--gradient-checkpointing": "--memory.gradient-checkpointing",
    "--allow-tf32": "--memory.tf32",
    "--lr-scheduler": "--optim.schedule",
    "--lr-warmup-steps": "--optim.warmup",
    "--adam-beta1": "--optim.beta1",
    "--adam-beta2": "--optim.beta2",
    "--adam-weight-decay": "--optim.weight-decay",
    "--adam-epsilon": "--optim.epsilon",
    "--max-grad-norm": "--optim.clip-norm",
    "--noise-offset": "--objective.noise-offset",
    "--input-perturbation": "--objective.input-perturbation",
    "--checkpointing-steps": "--checkpoints.every",
    "--checkpoints-total-limit": "--checkpoints.keep",
    "--validation-prompt": "--previews.prompts",
    "--validation-prompts": "--previews.prompts",
}
OTHER_TOOLS = Path(__file__).with_name("other_tools.yaml")


def choose_preset(typed: Mapping[str, Any]) -> Path:
    """The preset for a model: flags as they were typed, by field name -> a YAML file."""
    if is_small_model(str(typed.get("model", POCKET))):
        return CONFIGS / "pocket.yaml"
    return CONFIGS / ("sd14-full.yaml" if typed.get("adapter.kind") == "full" else "sd14-lora.yaml")


def name_preset(config: Config) -> Config:
    """The config with the preset that was chosen for it, for the run's folder and its first lines."""
    typed = {"model": config.model, "adapter.kind": config.adapter.kind}
    return config if config.config else config.model_copy(update={"config": choose_preset(typed)})


def is_small_model(model: str) -> bool:
    """Whether a model is the embedded base or of its size; hub ids and single files are Stable Diffusion v1."""
    file = (POCKET_FOLDER if model == POCKET else Path(model).expanduser()) / "unet" / "config.json"
    try:
        return max(json.loads(file.read_text(encoding="utf-8"))["block_out_channels"]) < 320
    except (OSError, ValueError, KeyError, TypeError):
        return model == POCKET
