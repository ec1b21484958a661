"""The options of evaluate.py, and how many pictures each question gets. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from data import cli
from data.cli import Options, positional
from infer.config import ALIASES, MAX_SEED

DESCRIPTION = """Is it the style, is it the prompt, is it a copy: one page on a finished run, with intervals, floors and
ceilings. Pictures of base and tuned are drawn from the same seeds and kept by content: a killed command goes on."""


class EvaluateOptions(Options):
    """What evaluate.py can be told."""

    run: Path | None = positional(None)
    """the run's folder, e.g. runs/0001-lora-r16; default: the newest finished run"""
    quick: bool = False
    """few pictures of few steps: minutes instead of hours on a CPU; the page says what so few cannot show"""
    seed: int = Field(default=42, ge=0, le=MAX_SEED)
    """of everything that is drawn or chosen"""
    steps: int | None = Field(default=None, ge=1)
    """denoising steps; default: 50, with --quick 10"""
    guidance_scale: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    """how strongly the prompt steers; default: 4 for the embedded base, else 7.5"""
    captions: int | None = Field(default=None, ge=10)
    """training captions that are drawn; default: all, with --quick 24"""
    prompts: int | None = Field(default=None, ge=4, le=100)
    """prompts without style that are drawn; default: 100, with --quick 12"""
    scorer: Path | None = None
    """folder of a CLIP model that judges pictures and prompts; default: the embedded one, which knows the embedded
    model's world alone. For SD v1 take another one than the CLIP L/14 that conditions it"""
    encoder: Path | None = None
    """folder of a DINOv2 model for variety and copies; default: the scorer's view of pictures"""
    trigger: str = ""
    """the word whose effect is measured; default: creature for the embedded base, else Pokémon"""
    runs: Path = Path("runs")
    """where runs lie"""
    outdir: Path | None = None
    """default: evaluation (or evaluation-quick) in the run's folder; what an earlier report left there is replaced"""
    cells: Path | None = None
    """where drawn pictures are kept, by content; default: the cache (ATELIER_CACHE, else ~/.cache/atelier)"""
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    """default: fp32 on the CPU, fp16 on a GPU"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; default: a GPU if there is one"""


@dataclass(frozen=True)
class Counts:
    """How many pictures each question gets. captions: 0 is one for every training picture."""

    steps: int
    captions: int
    caption_seeds: int
    prompts: int
    prompt_seeds: int
    types: int
    objects: int
    grid_seeds: int
    variety: int
    variety_seeds: int
    triggers: int
    mixes: int
    losses: int
    timesteps: int


FULL = Counts(50, 0, 3, 100, 4, 18, 20, 4, 30, 16, 40, 20, 10_000, 8)
QUICK = Counts(10, 24, 1, 12, 2, 3, 4, 2, 4, 6, 8, 2, 32, 4)


def counts(asked: EvaluateOptions) -> Counts:
    """The counts that the options mean."""
    from dataclasses import replace

    own = {"steps": asked.steps, "captions": asked.captions, "prompts": asked.prompts}
    given = {name: value for name, value in own.items() if value is not None}
    return replace(QUICK if asked.quick else FULL, **given)


def read(argv: list[str] | None = None) -> EvaluateOptions:
    """The command line of evaluate.py as options. Raises InputError."""
    here = {name: flag for name, flag in ALIASES.items() if cli.field_of(flag) in EvaluateOptions.model_fields}
    return cli.parse(EvaluateOptions, argv, prog="evaluate.py", description=DESCRIPTION, aliases=here)
