"""Everything that a fine-tuning run can be told, with its defaults. Machine facts are in accelerate_config.yaml."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from data.captions import TEMPLATE
from data.options import Options
from train.adapters.kinds import AnyAdapter
from train.adapters.lora import Lora
from train.objectives import AnyObjective, Epsilon
from train.optim import OptimConfig

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
    wandb: bool = False
    """also log to Weights & Biases, if it is installed; WANDB_MODE=offline keeps it on this machine"""
    wandb_project: str = "atelier"
    """the project that its runs appear in"""


class Config(Options):
    """A fine-tuning run."""

    config: Path = CONFIGS / "pocket.yaml"
    """preset to start from: a YAML file with the differences from the defaults"""
    data: str = "pocket"
    """captioned folder (pictures with metadata.jsonl, or a .txt beside each); pocket: the sample creatures"""
    model: str = "pocket"
    """base model: pocket, a hub id on this machine, a diffusers folder, or a .safetensors file"""
    tokenizer: str | None = None
    """folder of a CLIP tokenizer, for a single-file model"""
    adapter: AnyAdapter = Lora()
    objective: AnyObjective = Epsilon()
    optim: OptimConfig = OptimConfig()
    pictures: Pictures = Pictures()
    validation: Validation = Validation()
    previews: Previews = Previews()
    checkpoints: Checkpoints = Checkpoints()
    logging: Logging = Logging()
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
    strict: bool = False
    """refuse to start if a picture has to be left out or a caption is cut"""


# May change when the same run is continued: where things lie, how long it goes on, what is written down.
AT_WILL = {"config", "max_steps", "threads", "runs", "run_name", "new", "dry_run", "logging", "checkpoints", "data"}
AT_WILL |= {"model", "tokenizer", "validation", "previews"}  # the model counts by its content
SCHEDULES_WITHOUT_END = {"constant"}


def identity(config: Config, data_fingerprint: str, model_fingerprint: str) -> str:
    """A hash of what makes two runs the same: settings, the data's content and the base model's, not names and paths.

    The number of steps counts only where the learning rate depends on it.
    """
    settings: dict[str, Any] = config.model_dump(mode="json", exclude=AT_WILL)
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
