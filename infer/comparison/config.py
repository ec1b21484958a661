"""Options of compare.py."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from data.cli import Options, field_of
from data.errors import InputError
from infer import config, schedulers
from infer.config import DEFAULT_PROMPTS, MAX_SEED, SAMPLERS

AXES = ("x", "y", "z")
DESCRIPTION = """Images side by side: base and tuned, checkpoints, LoRA weights, seeds, steps and whatever else an axis
names, on labeled sheets and one page. An image is generated only once."""


class CompareOptions(Options):
    """Options of compare.py."""

    x_axis: str = ""
    """(also --x) what changes from column to column, e.g. "steps=10,20,50"; default: base and tuned, or seeds"""
    y_axis: str = ""
    """(also --y) what changes from row to row, e.g. "seed=1..3"; default: the prompts"""
    z_axis: str = ""
    """(also --z) what changes from sheet to sheet, e.g. "model=base,runs/0003"; an axis is one of model, lora,
    lora-weight, checkpoint, seed, steps, guidance-scale, scheduler, prompt, negative-prompt, replace, trigger, or a
    {word} of the prompt"""
    study: Literal["steps", "guidance", "trigger"] | None = None
    """measure what more steps, more guidance or a trigger word change, with intervals"""
    strip: bool = False
    """show how an image emerges from noise, base and tuned side by side, as a labeled strip"""
    gif: bool = False
    """the same as an animation"""
    figures: Literal["thesis"] | None = None
    """all panels of the source thesis as labeled sheets: figures 3.1 to 3.8"""
    wording: Literal["auto", "literal", "twin"] = "auto"
    """prompts of --figures: the thesis's own, or their twins with names of the sample set; auto: twins for pocket"""
    prompt: tuple[str, ...] = DEFAULT_PROMPTS
    """prompt; may be repeated; <lora:NAME:WEIGHT> in it applies a LoRA to every model but `base`"""
    negative_prompt: str = ""
    """negative prompt"""
    trigger: str = ""
    """trigger word of the axis and the study `trigger`; default: creature for pocket, else Pokémon"""
    model: str | None = None
    """pocket, a hub id, a folder, a .safetensors file or a run; default: the newest finished run, else pocket"""
    tokenizer: str | None = None
    """hub id or folder of the tokenizer, for a single file that does not include one"""
    lora: tuple[str, ...] = ()
    """a LoRA as FILE or FILE:WEIGHT, applied to every model but `base`; may be repeated"""
    seed: int = Field(default=42, ge=0, le=MAX_SEED)
    """seed of every image, unless an axis changes it; in a study the first one"""
    seeds: int | None = Field(default=None, ge=2, le=1000)
    """number of seeds of a study, for each prompt; default: 4, for the trigger 8"""
    steps: int | None = Field(default=None, ge=1)
    """denoising steps; default: the model's, 50"""
    guidance_scale: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    """guidance scale, 1 or less for none; default: the model's, 7.5 for SD v1, 4 for pocket"""
    scheduler: str | None = Field(default=None, description=f"{SAMPLERS}; default: the model's own")
    height: int | None = Field(default=None, ge=1)
    """height in pixels; default: the model's own size"""
    width: int | None = Field(default=None, ge=1)
    """width in pixels; default: the model's own size"""
    scorer: Path | None = None
    """folder of the CLIP model that judges a study's images; default: the embedded one, data/pocket/scorer"""
    max_cells: int = Field(default=400, ge=1)
    """maximum number of images"""
    wildcards: Path = Path("wildcards")
    """folder with a text file for each __name__ in a prompt"""
    runs: Path = Path("runs")
    """folder of the runs"""
    outdir: Path | None = None
    """output folder, new or of an earlier comparison, which is updated; default: the next in outputs/"""
    cells: Path | None = None
    """where generated images are cached; default: ~/.cache/atelier/cells (ATELIER_CACHE)"""
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    """precision; default: fp32 on the CPU, fp16 on a GPU"""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps; default: a GPU if there is one"""
    strict: bool = False
    """treat truncated prompts and unmatched LoRA keys as errors"""

    @field_validator("prompt")
    @classmethod
    def check_prompt(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if not prompts or not all(prompt.strip() for prompt in prompts):
            raise ValueError('the prompt is empty. Example: --prompt "a water type fridge"')
        return prompts

    @field_validator("scheduler")
    @classmethod
    def check_scheduler(cls, name: str | None) -> str | None:
        try:
            return None if name is None else schedulers.canonical_name(name)
        except InputError as error:
            raise ValueError(str(error)) from None

    @field_validator("lora")
    @classmethod
    def check_weights(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            if not abs(config.parse_lora(text).weight) <= config.MAX_WEIGHT:
                raise ValueError(f"the weight of {text!r} is not between -100 and 100")
        return texts


# generate.py's other spellings of the flags that exist here too, and short names of the axes
ALIASES = {name: flag for name, flag in config.ALIASES.items() if field_of(flag) in CompareOptions.model_fields}
ALIASES |= {f"{dashes}{axis}": f"--{axis}-axis" for axis in AXES for dashes in ("-", "--")}
