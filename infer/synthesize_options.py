"""The options of synthesize.py."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from data.options import Options

MODELS = {  # short names: the thesis' four, and SD v1.4
    "sd14": "CompVis/stable-diffusion-v1-4",
    "sd21": "stabilityai/stable-diffusion-2-1",
    "realistic-vision-14": "SG161222/Realistic_Vision_V1.4",
    "openjourney-v4": "prompthero/openjourney-v4",
    "kandinsky-22": "kandinsky-community/kandinsky-2-2-decoder",
}


class SynthesizeOptions(Options):
    """What synthesize.py can be told."""

    theme: str = "creatures"
    """creatures, animals, fruits, or a YAML file with classes, templates and slots"""
    classes: tuple[str, ...] = ()
    """only these classes, or others than the theme's"""
    model: tuple[str, ...] = ()
    """sd14, sd21, realistic-vision-14, openjourney-v4, kandinsky-22, pocket, a run, a folder or a hub id; a set for
    each; default: the newest finished run, else pocket"""
    count: int = Field(default=80, ge=1)
    """pictures of each model, shared out evenly among the classes"""
    seed: int = Field(default=0, ge=0, lt=2**48)
    """of prompts and pictures"""
    steps: int = Field(default=25, ge=1)
    """denoising steps"""
    guidance_scale: float = Field(default=4.0, ge=0.0, allow_inf_nan=False)
    """how strongly the prompt steers; SD's own default is 7.5"""
    scheduler: str | None = None
    """euler, dpmpp_2m ...; default: the model's own, for sd21 DPM-Solver++ as in the thesis"""
    redraws: int = Field(default=5, ge=0)
    """times a picture is drawn anew that came out black, flagged or broken; then it is left out, and said"""
    outdir: Path = Path("outputs") / "synthetic"
    """a folder for each model in it; the same command goes on where it was stopped"""
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    """default: fp32 on the CPU, fp16 on a GPU"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; default: a GPU if there is one"""
