"""The options of compare.py. Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from data import options
from data.errors import InputError
from infer import config, schedulers
from infer.config import BUILT_IN, HIGHEST_SEED

AXES = ("x", "y", "z")
DESCRIPTION = """Pictures side by side: base against tuned, checkpoints, LoRA weights, seeds, steps and whatever else
an axis names, on labelled sheets and one page. A picture that was drawn before is not drawn again."""


class CompareOptions(options.Options):
    """What compare.py can be told."""

    x_axis: str = ""
    """(also --x) what changes from column to column, e.g. "steps=10,20,50"; default: base and tuned, or seeds"""
    y_axis: str = ""
    """(also --y) what changes from row to row, e.g. "seed=1..3"; default: the prompts"""
    z_axis: str = ""
    """(also --z) what changes from sheet to sheet, e.g. "model=base,runs/0003"; an axis is one of model, lora,
    lora-weight, checkpoint, seed, steps, guidance-scale, scheduler, prompt, negative-prompt, replace, trigger, or a
    {word} of the prompt"""
    study: Literal["steps", "guidance", "trigger"] | None = None
    """measure instead of only show: what more steps, more guidance or a trigger word change, with intervals"""
    strip: bool = False
    """how a picture comes out of noise, base and tuned in lockstep, as a labelled strip"""
    gif: bool = False
    """the same as a moving picture"""
    figures: Literal["thesis"] | None = None
    """all panels of the source thesis as labelled sheets: figures 3.1 to 3.8"""
    wording: Literal["auto", "literal", "twin"] = "auto"
    """of --figures: the thesis' own prompts, or their twins in the sample creatures' names; auto: twins for pocket"""
    prompt: tuple[str, ...] = BUILT_IN
    """what to draw; may be repeated; <lora:NAME:WEIGHT> in it is a LoRA over every model but `base`"""
    negative_prompt: str = ""
    """what to steer away from"""
    trigger: str = ""
    """the word that the axis `trigger` and the study put into prompts; default: creature for pocket, else Pokémon"""
    model: str | None = None
    """pocket, a hub id, a folder, a .safetensors file or a run; default: the newest finished run, else pocket"""
    tokenizer: str | None = None
    """hub id or folder of the tokenizer, for a single file that brings none"""
    lora: tuple[str, ...] = ()
    """a LoRA as FILE or FILE:WEIGHT, laid over every model but `base`; may be repeated"""
    seed: int = Field(default=42, ge=0, le=HIGHEST_SEED)
    """seed of every picture that no axis gives another; of studies the first one"""
    seeds: int | None = Field(default=None, ge=2, le=1000)
    """how many seeds a study draws, each prompt with each; default: 4, for the trigger 8"""
    steps: int = Field(default=50, ge=1)
    """denoising steps"""
    guidance_scale: float = Field(default=7.5, ge=0.0, allow_inf_nan=False)
    """how strongly the prompt steers; 1 or less: not at all"""
    scheduler: str | None = None
    """pndm, ddim, euler, euler_a, dpmpp_2m_karras, unipc ...; default: the model's own"""
    height: int | None = Field(default=None, ge=1)
    """pixels; default: the model's own size"""
    width: int | None = Field(default=None, ge=1)
    """pixels; default: the model's own size"""
    scorer: Path | None = None
    """folder of a CLIP model that judges the studies' pictures; default: the embedded one, data/pocket/scorer"""
    max_cells: int = Field(default=400, ge=1)
    """more pictures than this are a slip, and refused"""
    wildcards: Path = Path("wildcards")
    """folder with a text file for each __name__ in a prompt"""
    runs: Path = Path("runs")
    """where runs lie"""
    outdir: Path | None = None
    """a new folder or one of an earlier comparison, which is brought up to date; default: the next in outputs/"""
    cells: Path | None = None
    """where drawn pictures are kept, by content; default: the cache (ATELIER_CACHE, else ~/.cache/atelier)"""
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    """default: fp32 on the CPU, fp16 on a GPU"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; default: a GPU if there is one"""
    strict: bool = False
    """a prompt that is too long, or an unused LoRA key, is an error"""

    @field_validator("prompt")
    @classmethod
    def some_prompt(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if not prompts or not all(prompt.strip() for prompt in prompts):
            raise ValueError('the prompt is empty. Say what to draw: --prompt "a water type fridge"')
        return prompts

    @field_validator("scheduler")
    @classmethod
    def known_scheduler(cls, name: str | None) -> str | None:
        try:
            return None if name is None else schedulers.canonical(name)
        except InputError as error:
            raise ValueError(str(error)) from None

    @field_validator("lora")
    @classmethod
    def sensible_weights(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            if not abs(config.split_weight(text).weight) <= config.HIGHEST_WEIGHT:
                raise ValueError(f"the weight of {text!r} is not between -100 and 100")
        return texts


def aliases() -> dict[str, str]:
    """generate.py's other spellings of the flags that are here too, and the axes' short names."""
    here = {name: flag for name, flag in config.ALIASES.items() if options.name_of(flag) in CompareOptions.model_fields}
    return here | {f"{dashes}{axis}": f"--{axis}-axis" for axis in AXES for dashes in ("-", "--")}


def read(argv: list[str] | None = None) -> CompareOptions:
    """The command line of compare.py as options. Raises InputError."""
    return options.parse(CompareOptions, argv, prog="compare.py", description=DESCRIPTION, aliases=aliases())
