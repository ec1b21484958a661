"""The options of generate.py: one frozen model; every flag is a field of it. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from data import options
from data.errors import InputError
from infer import schedulers, templates
from infer.prompt_files import HIGHEST_SEED
from infer.prompts import BUILT_IN

RANDOM_SEED = -1
HIGHEST_WEIGHT = 100.0  # a slip of the decimal point, not a style

ALIASES = {
    "-n": "--negative-prompt",
    "-p": "--prompt",
    "-H": "--height",
    "-W": "--width",
    "--scale": "--guidance-scale",
    "--cfg": "--guidance-scale",
    "--cfg-scale": "--guidance-scale",
    "--sampler": "--scheduler",
    "--ckpt": "--model",
    "--prompts": "--from-file",
    "--output-dir": "--outdir",
}


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as asked for: its file and how strongly it is applied (1 is as it was trained)."""

    path: Path
    weight: float = 1.0


class GenerateOptions(options.Options):
    """What generate.py can be told."""

    prompt: tuple[str, ...] = BUILT_IN
    """what to draw; may be repeated"""
    from_file: Path | None = None
    """prompts from a .txt, .csv or .jsonl file, each with settings of its own if it has some"""
    grid: str = ""
    """every combination of these, filled in for {type} and {object}: "type=water,fire;object=fridge,car\""""
    wildcards: Path = Path("wildcards")
    """folder with a text file for each __name__ in a prompt"""
    negative_prompt: str = ""
    """what to steer away from"""
    model: str | None = None
    """pocket, a hub id, a folder, a .safetensors file or a run; default: the newest finished run, else pocket"""
    tokenizer: str | None = None
    """hub id or folder of the tokenizer, for a single file that brings none"""
    lora: tuple[str, ...] = ()
    """a LoRA as FILE or FILE:WEIGHT; may be repeated"""
    seed: int = Field(default=42, ge=RANDOM_SEED, le=HIGHEST_SEED)
    """seed of the first picture of each prompt, the next one has seed + 1; -1 draws one and prints it"""
    num_images: int = Field(default=1, ge=1)
    """pictures per prompt"""
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
    outdir: Path | None = None
    """a new or empty folder; default: the next free one in outputs/"""
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    """default: fp32 on the CPU, fp16 on a GPU"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; default: a GPU if there is one"""
    compare_base: bool = False
    """draw with the base model as well, and lay both side by side on compare.png"""
    strict: bool = False
    """a prompt that is too long, or an unused LoRA key, is an error"""

    @field_validator("prompt")
    @classmethod
    def some_prompt(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if not prompts or not all(prompt.strip() for prompt in prompts):
            raise ValueError('the prompt is empty. Say what to draw: --prompt "a water type fridge"')
        return prompts

    @field_validator("grid")
    @classmethod
    def readable_grid(cls, text: str) -> str:
        try:
            templates.grid(text)
        except InputError as error:
            raise ValueError(str(error)) from None
        return text

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
            if not abs(split_weight(text).weight) <= HIGHEST_WEIGHT:
                raise ValueError(f"the weight of {text!r} is not between -{HIGHEST_WEIGHT:g} and {HIGHEST_WEIGHT:g}")
        return texts

    @model_validator(mode="after")
    def seeds_fit(self) -> GenerateOptions:
        if self.seed > HIGHEST_SEED - self.num_images:
            raise ValueError(f"seed {self.seed} + {self.num_images} pictures is past the highest seed {HIGHEST_SEED}")
        return self

    @property
    def loras(self) -> tuple[LoraFile, ...]:
        return tuple(split_weight(text) for text in self.lora)


def split_weight(text: str) -> LoraFile:
    """`style.safetensors:0.8` -> (style.safetensors, 0.8). Only a number after the last colon is a weight (C:\\a)."""
    path, colon, tail = text.rpartition(":")
    try:
        return LoraFile(Path(path), float(tail)) if colon and path else LoraFile(Path(text))
    except ValueError:
        return LoraFile(Path(text))


def read(argv: list[str] | None = None) -> GenerateOptions:
    """The command line of generate.py as options. Raises InputError."""
    description = "Draw pictures of what a prompt says. The same seed gives the same picture, alone or among many."
    return options.parse(GenerateOptions, argv, prog="generate.py", description=description, aliases=ALIASES)
