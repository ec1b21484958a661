"""Everything that a fine-tuning run can be told, with its defaults. Machine facts are in accelerate_config.yaml."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from data.captions import TEMPLATE
from data.options import Options
from train.adapters.kinds import AnyAdapter
from train.adapters.lora import Lora
from train.exports.options import Export
from train.folders import POCKET, Folder, Folders
from train.objectives import AnyObjective, Epsilon
from train.optim import OptimConfig, check_learning_rate

CONFIGS = Path(__file__).parent / "configs"


class Pictures(Options):
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


class Preservation(Options):
    """Learn the look of the pictures and keep what other words mean (train/preservation.py)."""

    share: float = Field(default=0.0, ge=0, lt=1)
    """share of samples that get one of the prompts below instead of their caption, and learn to answer it as the base
    does, in the new look; 0.3 to 0.5 when a small set makes the network forget. Each asks a frozen copy of the base
    twice, which costs its memory and up to half more time"""
    strength: float = Field(default=1.0, gt=0, le=2)
    """how much of what a prompt adds to the base's answer is kept: guidance multiplies it, and what suits the base's
    look may be too much for the new one; 0.5 is as if the base had been guided half as strongly"""
    prompts: Path | None = None
    """text file of what to keep, one prompt a line; default: everyday things"""


class Averaging(Options):
    """An exponential moving average of the trained weights; if there is one, it is validated, drawn and exported."""

    decay: float = Field(default=0.0, ge=0, lt=1)
    """share of the average that is kept at each step, e.g. 0.999; 0: no average"""
    warmup: bool = True
    """a smaller decay at first, (1 + n) / (10 + n) at update n, so that the start is soon forgotten"""
    device: Literal["same", "cpu"] = "same"
    """where it lies: beside the weights, or in the CPU's memory, which costs a copy of them at each step"""


class Memory(Options):
    """What a step costs in memory and time; the mathematics is the same."""

    gradient_checkpointing: bool = False
    """compute activations again in the backward pass instead of keeping them: far less memory, a quarter more time"""
    attention: Literal["sdpa", "xformers"] = "sdpa"
    """torch's own fused attention, or xformers' (if it is installed, on a GPU)"""
    tf32: bool = True
    """multiply float32 matrices with 10 bits of mantissa on GPUs that can, several times faster; fp16 keeps as many"""


class Validation(Options):
    """The denoising loss at fixed noise, on held-out pictures and as many training pictures."""

    every: int = Field(default=200, gt=0)
    """optimiser steps from one validation to the next; the first is before step 1, so it is the base model's"""
    pictures: int = Field(default=64, gt=0)
    """pictures looked at, at most, of each side"""
    timesteps: int = Field(default=8, gt=0)
    """evenly spread timesteps at which each is looked at"""
    patience: int = Field(default=0, ge=0)
    """stop after this many validations in a row in which the held-out loss did not surely fall; 0: never stop early"""


class Previews(Options):
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


class Checkpoints(Options):
    """What is kept so that a killed run goes on."""

    every: int = Field(default=200, gt=0)
    """optimiser steps from one checkpoint to the next"""
    keep: int = Field(default=2, gt=0)
    """how many are kept, and the best one besides"""
    export: Literal["best", "last"] = "best"
    """whose weights are exported: those of the lowest held-out loss, or the last ones (also if nothing is held out)"""


class Logging(Options):
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
    adapter: AnyAdapter = Lora()
    objective: AnyObjective = Epsilon()
    optim: OptimConfig = OptimConfig()
    ema: Averaging = Averaging()
    memory: Memory = Memory()
    compile: bool = False
    """compile the network with torch.compile, once for each bucket's shape: minutes at the start, faster steps"""
    pictures: Pictures = Pictures()
    preserve: Preservation = Preservation()
    validation: Validation = Validation()
    previews: Previews = Previews()
    checkpoints: Checkpoints = Checkpoints()
    logging: Logging = Logging()
    export: Export = Export()
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
AT_WILL = {"config", "max_steps", "threads", "runs", "run_name", "new", "dry_run", "logging", "checkpoints", "data"}
AT_WILL |= {"export"}  # a finished run can be exported again, train/export.py
AT_WILL |= {"price_per_hour", "probe", "strict", "sweep", "sweep_candidates", "sweep_steps"}
AT_WILL |= {"model", "tokenizer", "validation", "previews"}  # the model counts by its content
# ... and what gives the same bits: gradient checkpointing repeats the same operations, an average on the CPU is updated
# by the same roundings. Not compile, attention or tf32: they change the mathematics by no more than rounding, but a
# resumed run promises the bits of one that was never stopped. Preserved prompts count by their words.
SAME_BITS = {"pictures": {"keep"}, "preserve": {"prompts"}, "memory": {"gradient_checkpointing"}, "ema": {"device"}}
SCHEDULES_WITHOUT_END = {"constant"}


def identity(config: Config, data_fingerprint: str, model_fingerprint: str) -> str:
    """A hash of what makes two runs the same: settings, the data's content and the base model's, not names and paths.

    The number of steps counts only where the learning rate depends on it.
    """
    left_out: Any = dict.fromkeys(AT_WILL, True) | SAME_BITS
    settings: dict[str, Any] = config.model_dump(mode="json", exclude=left_out)
    if config.optim.schedule not in SCHEDULES_WITHOUT_END:
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
