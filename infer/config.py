"""The options of generate.py: one frozen model; every flag is a field of it. Nothing heavy is imported here."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from data import cli
from data.cli import Options
from data.errors import InputError
from infer import schedulers, templates

DEFAULT_PROMPTS = ("a water type fridge", "a fire type fridge", "a grass type fridge", "an electric type fridge")
MAX_SEED = 2**63 - 1  # torch.Generator.manual_seed takes a signed 64-bit number
RANDOM_SEED = -1
MAX_WEIGHT = 100.0  # a slip of the decimal point, not a style
FAST_FLAGS = "--steps 20 --scheduler dpmpp_2m_karras --guidance-stop 0.8"
MAX_ASPECT = 8.0  # ratio of the sides; beyond it no model draws anything

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
    "--init-img": "--init-image",
    "--ddim-steps": "--steps",
    "--num-inference-steps": "--steps",
    "--n-samples": "--num-images",
    "--images-per-prompt": "--num-images",
    "--num-images-per-prompt": "--num-images",
    "--sampler-name": "--scheduler",
    "--precision": "--dtype",
    "--n": "--negative-prompt",
    "--denoising-strength": "--strength",
}


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as asked for: its file and how strongly it is applied (1 is as it was trained)."""

    path: Path
    weight: float = 1.0


class GenerateOptions(cli.Options):
    """What generate.py can be told."""

    prompt: tuple[str, ...] = DEFAULT_PROMPTS
    """what to draw; may be repeated"""
    from_file: Path | None = None
    """prompts from a .txt, .csv or .jsonl file, each with settings of its own if it has some"""
    params_from: Path | None = None
    """a picture whose settings are taken over, ours or A1111's, InvokeAI's, Fooocus', kohya's; flags typed go before"""
    grid: str = ""
    """every combination of these, filled in for {type} and {object}: "type=water,fire;object=fridge,car\""""
    wildcards: Path = Path("wildcards")
    """folder with a text file for each __name__ in a prompt"""
    negative_prompt: str = ""
    """what to steer away from"""
    weighting: Literal["a1111", "compel", "none"] = "a1111"
    """how prompts are read: a1111 (word:1.3) ((word)) [word] BREAK; compel word++ (words)1.3 .blend(); none: as text,
    cut at 75 tokens. The first two read prompts of any length"""
    style: str | None = None
    """a style preset by its name (infer/styles.yaml, or --styles FILE); --style list shows them"""
    styles: Path | None = None
    """a YAML file of style presets of your own"""
    model: str | None = None
    """pocket, a hub id, a folder, a .safetensors file or a run; default: the newest finished run, else pocket"""
    base: str | None = None
    """the model under a LoRA or a run, if it lies elsewhere than the run says; beside a whole model: what it is
    compared with"""
    tokenizer: str | None = None
    """hub id or folder of the tokenizer, for a single file that brings none"""
    lora: tuple[str, ...] = ()
    """a LoRA as FILE or FILE:WEIGHT; may be repeated. <lora:NAME:WEIGHT> in a prompt is one for that prompt"""
    seed: int = Field(default=42, ge=RANDOM_SEED, le=MAX_SEED)
    """seed of the first picture of each prompt, the next one has seed + 1; -1 draws one and prints it"""
    seeds: str = ""
    """the seeds themselves, for each prompt: 1,2,3"""
    num_images: int = Field(default=1, ge=1)
    """pictures per prompt"""
    batch_size: int | None = Field(default=None, ge=1, le=256)
    """pictures that the network draws at a time, for speed; default: 1 on a CPU, 4 on a GPU. Another number rounds
    otherwise: it is written down"""
    steps: int = Field(default=50, ge=1)
    """denoising steps"""
    guidance_scale: float = Field(default=7.5, ge=0.0, allow_inf_nan=False)
    """how strongly the prompt steers; 1 or less: not at all"""
    guidance_rescale: float = Field(default=0.0, ge=0.0, le=1.0)
    """how far the guided prediction is given the spread of the unguided one (Lin et al. 2023); 0.7 with zero SNR"""
    guidance_stop: float = Field(default=1.0, gt=0.0, le=1.0)
    """the share of the steps that are guided, from the first on; less is faster and gives another image"""
    scheduler: str | None = None
    """pndm, ddim, euler, euler_a, dpmpp_2m_karras, unipc ...; default: the model's own"""
    height: int | None = Field(default=None, ge=1)
    """pixels; default: the model's own size"""
    width: int | None = Field(default=None, ge=1)
    """pixels; default: the model's own size"""
    aspect: str = ""
    """the sides' ratio, as 3:2, at about the model's own number of pixels"""
    init_image: Path | None = None
    """a picture to begin from, see --strength"""
    strength: float = Field(default=0.75, gt=0.0, le=1.0)
    """how much of the picture given is drawn anew: the share of the steps that are made; 1 keeps nothing of it"""
    mask: Path | None = None
    """white where --init-image is drawn anew; the rest stays as it is, pixel for pixel"""
    scribble: Path | None = None
    """a drawing of lines to begin from; with --controlnet it leads every step"""
    polarity: Literal["auto", "dark-on-light", "light-on-dark"] = "auto"
    """of the lines of --scribble"""
    controlnet: Path | None = None
    """a ControlNet for lines, a folder as diffusers saves it"""
    control_scale: float = Field(default=1.0, ge=0.0, le=2.0)
    """how strongly the ControlNet leads"""
    outdir: Path | None = None
    """a folder, new or empty or begun by the same command, which goes on; default: the next free one in outputs/"""
    resume: bool = False
    """go on with the newest folder of outputs/ that this same command began and did not finish"""
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    """default: fp32 on the CPU, fp16 on a GPU"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; default: a GPU if there is one"""
    safety_checker: Path | None = None
    """a folder with a Stable Diffusion safety checker; without it nothing is checked, and the metadata says so"""
    hide_flagged: bool = False
    """write a grey tile in place of a picture that the safety checker flags"""
    compile: bool = False
    """generate with torch.compile (on a GPU: CUDA graphs too): minutes at first use, then kept by torch"""
    compare_base: bool = False
    """draw with the base model as well, and lay both side by side on compare.png"""
    strict: bool = False
    """words that are not read, or an unused LoRA key, are errors"""

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
            templates.parse_grid(text)
        except InputError as error:
            raise ValueError(str(error)) from None
        return text

    @field_validator("scheduler")
    @classmethod
    def known_scheduler(cls, name: str | None) -> str | None:
        try:
            return None if name is None else schedulers.canonical_name(name)
        except InputError as error:
            raise ValueError(str(error)) from None

    @field_validator("lora")
    @classmethod
    def sensible_weights(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            if not abs(parse_lora(text).weight) <= MAX_WEIGHT:
                raise ValueError(f"the weight of {text!r} is not between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}")
        return texts

    @field_validator("aspect")
    @classmethod
    def readable_aspect(cls, text: str) -> str:
        if text and parse_aspect(text) is None:
            raise ValueError(f"{text!r} is no ratio of two sides up to {MAX_ASPECT:g} : 1, such as 3:2")
        return text

    @field_validator("seeds")
    @classmethod
    def readable_seeds(cls, text: str) -> str:
        numbers = parse_seeds(text)
        if numbers is None or len(set(numbers)) < len(numbers):
            raise ValueError(f"{text!r} is no list of different seeds from 0 to {MAX_SEED}, such as 1,2,3")
        return text

    @model_validator(mode="after")
    def flags_belong_together(self) -> GenerateOptions:
        if self.aspect and (self.width or self.height):
            raise ValueError("--aspect already says both sides: leave out --width and --height")
        if self.seeds and self.model_fields_set & {"seed", "num_images"}:
            raise ValueError("--seeds already names every picture: leave out --seed and --num-images")
        if self.mask and not self.init_image:
            raise ValueError("--mask says what of a picture is drawn anew: give the picture with --init-image")
        if self.controlnet and not self.scribble:
            raise ValueError("--controlnet follows a drawing of lines: give it with --scribble")
        if self.scribble and self.init_image and not self.controlnet:
            raise ValueError("--scribble and --init-image both say where to begin: give one, or add --controlnet")
        if self.hide_flagged and not self.safety_checker:
            raise ValueError("--hide-flagged hides what --safety-checker finds: give its folder")
        return self

    @model_validator(mode="after")
    def seeds_fit(self) -> GenerateOptions:
        if self.seed > MAX_SEED - self.num_images:
            raise ValueError(f"seed {self.seed} + {self.num_images} pictures is past the highest seed {MAX_SEED}")
        return self

    @property
    def listed_seeds(self) -> tuple[int, ...]:
        return parse_seeds(self.seeds) or ()

    @property
    def ratio(self) -> float | None:
        """Width over height, if --aspect says it."""
        return parse_aspect(self.aspect)

    @property
    def loras(self) -> tuple[LoraFile, ...]:
        return tuple(parse_lora(text) for text in self.lora)


def parse_aspect(text: str) -> float | None:
    """`3:2`, `3x2`, `3/2` or `1.5` -> 1.5; None if it is none of them."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(?:\s*[:x/]\s*(\d+(?:\.\d+)?))?", text.strip())
    sides = [float(side or 1) for side in found.groups()] if found else [0.0]
    return sides[0] / sides[1] if min(sides) > 0 and max(sides) <= MAX_ASPECT * min(sides) else None


def parse_seeds(text: str) -> tuple[int, ...] | None:
    """`1,2,3` -> (1, 2, 3); () for nothing, None if it is no list of seeds."""
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    if not all(word.isdecimal() and int(word) <= MAX_SEED for word in words):
        return None
    return tuple(int(word) for word in words)


def parse_lora(text: str) -> LoraFile:
    """`style.safetensors:0.8` -> (style.safetensors, 0.8). Only a number after the last colon is a weight (C:\\a)."""
    path, colon, tail = text.rpartition(":")
    try:
        return LoraFile(Path(path), float(tail)) if colon and path else LoraFile(Path(text))
    except ValueError:
        return LoraFile(Path(text))


def read_options(argv: list[str] | None = None) -> GenerateOptions:
    """The command line of generate.py as options. Raises InputError."""
    if "--fast" in (sys.argv[1:] if argv is None else argv):
        fix = f"Use {FAST_FLAGS} instead."
        raise InputError("was removed: it only stood for other flags", where="--fast", fix=fix)
    description = "Draw pictures of what a prompt says. The same seed gives the same picture, alone or among many."
    return cli.parse(GenerateOptions, argv, prog="generate.py", description=description, aliases=ALIASES)


class GalleryOptions(Options):
    """What gallery.py can be told."""

    folder: Path = Path("outputs")
    """the pictures, in this folder and all below it"""
    search: str = ""
    """words are what the picture shows; field:value narrows: prompt: negative: model: lora: sampler: seed: steps: cfg:
    width: height: date: star: file:, numbers with > and <, -field:value for what it must not be"""
    star: tuple[Path, ...] = ()
    """mark these pictures as favourites"""
    unstar: tuple[Path, ...] = ()
    """and take the mark away again"""
    most: int = Field(default=20, ge=1)
    """pictures that are listed"""
    page: Path | None = None
    """write what was found as one HTML file"""
    judge: Path | None = None
    """folder of a CLIP model that compares words and pictures; default: the embedded scorer"""
    index: Path | None = None
    """the index; default: one for each folder, in the cache"""


SYNTHESIS_MODELS = {  # short names: the thesis' four, and SD v1.4
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
