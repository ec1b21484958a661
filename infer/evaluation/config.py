"""Options of evaluate.py, and how many images each question gets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from data.cli import Options, field_of, positional
from infer import config

DESCRIPTION = """Style, prompts, memorization: one page about a finished run, with intervals, floors and ceilings. Base
and tuned generate from the same seeds; images are cached, so a killed command resumes."""


class EvaluateOptions(Options):
    """Options of evaluate.py."""

    run: Path | None = positional(None)
    """the run's folder, e.g. runs/0001-lora-r16; default: the newest finished run"""
    quick: bool = False
    """few images with few steps: minutes instead of hours on a CPU; the page says what so few cannot show"""
    seed: int = Field(default=42, ge=0, le=config.MAX_SEED)
    """random seed"""
    steps: int | None = Field(default=None, ge=1)
    """denoising steps; default: 50, with --quick 10"""
    guidance_scale: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    """guidance scale; default: the model's, 7.5 for SD v1, 4 for pocket"""
    captions: int | None = Field(default=None, ge=10)
    """number of training captions; default: all, with --quick 24"""
    prompts: int | None = Field(default=None, ge=4, le=100)
    """number of prompts without style; default: 100, with --quick 12"""
    scorer: Path | None = None
    """folder of the CLIP model that judges images and prompts; default: the embedded one, which only knows the embedded
    model's world. For SD v1 use another one than the CLIP L/14 that conditions it"""
    encoder: Path | None = None
    """folder of a DINOv2 model for diversity and copies; default: the scorer's image features"""
    trigger: str = ""
    """trigger word whose effect is measured; default: creature for the embedded base, else Pokémon"""
    runs: Path = Path("runs")
    """folder of the runs"""
    outdir: Path | None = None
    """output folder; default: evaluation (or evaluation-quick) in the run's folder; an earlier report is replaced"""
    cells: Path | None = None
    """where generated images are cached; default: ~/.cache/atelier/cells (ATELIER_CACHE)"""
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    """precision; default: fp32 on the CPU, fp16 on a GPU"""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps; default: a GPU if there is one"""


ALIASES = {name: flag for name, flag in config.ALIASES.items() if field_of(flag) in EvaluateOptions.model_fields}


@dataclass(frozen=True)
class Counts:
    """How many images each question gets. captions: 0 is one for every training image."""

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


def counts_of(options: EvaluateOptions) -> Counts:
    given = {name: value for name in ("steps", "captions", "prompts") if (value := getattr(options, name)) is not None}
    return replace(QUICK if options.quick else FULL, **given)
