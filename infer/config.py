"""The options of generate, compare, evaluate, studio, gallery and synthesize: every flag is a field."""

from __future__ import annotations

import ipaddress
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from data import cli
from data.errors import InputError
from infer import schedulers

DEFAULT_PROMPTS = ("a water type fridge", "a fire type fridge", "a grass type fridge", "an electric type fridge")
OUTPUTS, RUNS, LORAS = Path("outputs"), Path("runs"), Path("loras")
POCKET_SCORER = Path(__file__).parents[1] / "data" / "pocket" / "scorer"
LOOPBACK = "127.0.0.1"
MAX_SEED = 2**63 - 1  # torch.Generator.manual_seed takes a signed 64-bit number
RANDOM_SEED = -1
MAX_WEIGHT = 100.0  # of a LoRA; more is a typo
MAX_ASPECT = 8.0
SLOT_NAME = re.compile(r"[A-Za-z][\w-]*")  # of --grid
FAST_FLAGS = "--steps 20 --scheduler dpmpp_2m_karras --guidance-stop 0.8"  # what --fast stood for
SPELLINGS = {  # of other programs
    "--prompt": "-p", "--negative-prompt": "-n --n", "--height": "-H", "--width": "-W",
    "--guidance-scale": "--scale --cfg --cfg-scale", "--scheduler": "--sampler --sampler-name",
    "--steps": "--ddim-steps --num-inference-steps", "--strength": "--denoising-strength", "--init-image": "--init-img",
    "--num-images": "--n-samples --images-per-prompt --num-images-per-prompt", "--model": "--ckpt",
    "--from-file": "--prompts", "--outdir": "--output-dir", "--dtype": "--precision",
}  # fmt: skip
ALIASES = {alias: flag for flag, aliases in SPELLINGS.items() for alias in aliases.split()}
AXES = ("x", "y", "z")
COMPARE_ALIASES = ALIASES | {f"{dashes}{axis}": f"--{axis}-axis" for axis in AXES for dashes in ("-", "--")}


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file and its weight (1: as trained)."""

    path: Path
    weight: float = 1.0


# ---- what several commands have in common


class MachineOptions(cli.Options):
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    """precision; default: fp32 on the CPU, fp16 on a GPU"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; default: a GPU if there is one"""


class ModelOptions(MachineOptions):
    model: str | None = None
    """pocket, a hub id, a folder, a .safetensors file or a run; default: the newest finished run, else pocket"""
    tokenizer: str | None = None
    """folder of the tokenizer; default: the one of the model, for a single file that of CLIP"""


class ImageOptions(ModelOptions):
    prompt: tuple[str, ...] = DEFAULT_PROMPTS
    """what to generate; may be repeated"""
    negative_prompt: str = ""
    """what the image should not show"""
    wildcards: Path = Path("wildcards")
    """folder with a text file for each __name__ in a prompt"""
    lora: tuple[str, ...] = ()
    """a LoRA as FILE or FILE:WEIGHT; may be repeated. <lora:NAME:WEIGHT> in a prompt is for that prompt alone"""
    steps: int | None = Field(default=None, ge=1)
    """denoising steps; default: as suits the model, 50 for Stable Diffusion and pocket"""
    guidance_scale: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    """how strongly the image follows the prompt; 1 or less: no guidance; default: as suits the model, 7.5 for
    Stable Diffusion, 4 for pocket"""
    scheduler: str | None = Field(
        default=None, description=f"{', '.join(schedulers.SCHEDULERS)}; default: the model's own"
    )
    height: int | None = Field(default=None, ge=1)
    """pixels; default: the model's own size"""
    width: int | None = Field(default=None, ge=1)
    """pixels; default: the model's own size"""
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
    def check_lora(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            if not abs(parse_lora(text).weight) <= MAX_WEIGHT:
                raise ValueError(f"the weight of {text!r} is not between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}")
        return texts

    @property
    def loras(self) -> tuple[LoraFile, ...]:
        return tuple(parse_lora(text) for text in self.lora)


# ---- a class for each command


class GenerateOptions(ImageOptions):
    from_file: Path | None = None
    """prompts from a .txt, .csv or .jsonl file, optionally each with its own settings"""
    params_from: Path | None = None
    """an image whose settings are used: ours, or made with A1111, InvokeAI, Fooocus, ComfyUI, NovelAI or kohya's
    scripts; command-line flags take precedence"""
    grid: str = ""
    """every combination of these values, filled in for {type} and {object}: "type=water,fire;object=fridge,car\""""
    weighting: Literal["a1111", "compel", "none"] = "a1111"
    """prompt syntax: a1111 (word:1.3) ((word)) [word] BREAK; compel word++ (words)1.3 .blend(); none: plain text,
    cut at 75 tokens. The first two accept prompts of any length"""
    style: str | None = None
    """a style preset by its name (infer/styles.yaml, or --styles FILE); --style list shows them"""
    styles: Path | None = None
    """a YAML file of your own style presets"""
    base: str | None = None
    """the model under a LoRA or a run, if it is elsewhere than the run says; for a whole model: what it is compared
    with"""
    seed: int = Field(default=42, ge=RANDOM_SEED, le=MAX_SEED)
    """seed of the first image of each prompt, the next one has seed + 1; -1 picks a random one and prints it"""
    seeds: str = ""
    """a list of seeds for each prompt: 1,2,3"""
    num_images: int = Field(default=1, ge=1)
    """images per prompt"""
    batch_size: int | None = Field(default=None, ge=1, le=256)
    """images generated at once: faster, results differ by rounding (recorded); default: 1 on a CPU, 4 on a GPU"""
    guidance_rescale: float = Field(default=0.0, ge=0.0, le=1.0)
    """how much of the conditional prediction's spread is restored (Lin et al. 2023); 0.7 for zero-SNR models"""
    guidance_stop: float = Field(default=1.0, gt=0.0, le=1.0)
    """share of the steps, from the first on, that use guidance; less is faster and gives a different image"""
    aspect: str = ""
    """aspect ratio, as 3:2, at about the model's own number of pixels"""
    init_image: Path | None = None
    """initial image for img2img, see --strength"""
    strength: float = Field(default=0.75, gt=0.0, le=1.0)
    """img2img strength, the share of the steps that are made; 1 ignores the initial image"""
    mask: Path | None = None
    """inpainting mask: white where --init-image is replaced; the rest stays as it is, pixel for pixel"""
    scribble: Path | None = None
    """a line drawing as initial image; with --controlnet it guides every step"""
    polarity: Literal["auto", "dark-on-light", "light-on-dark"] = "auto"
    """whether --scribble is dark on light or light on dark"""
    controlnet: Path | None = None
    """a ControlNet for scribbles, a folder in diffusers' layout"""
    control_scale: float = Field(default=1.0, ge=0.0, le=2.0)
    """how strongly the ControlNet guides"""
    outdir: Path | None = None
    """new, empty, or begun by the same command, which then resumes; default: the next number in outputs/"""
    resume: bool = False
    """resume the newest folder in outputs/ that this same command began and did not finish"""
    safety_checker: Path | None = None
    """a folder with a Stable Diffusion safety checker; default: none, which the metadata says"""
    hide_flagged: bool = False
    """replace images that the safety checker flags by a grey tile"""
    compile: bool = False
    """use torch.compile (with CUDA graphs on a GPU): minutes at first use, then cached by torch"""
    compare_base: bool = False
    """also generate with the base model, and put both side by side on compare.png"""

    @field_validator("grid")
    @classmethod
    def check_grid(cls, text: str) -> str:
        try:
            parse_grid(text)
        except InputError as error:
            raise ValueError(str(error)) from None
        return text

    @field_validator("aspect")
    @classmethod
    def check_aspect(cls, text: str) -> str:
        if text and parse_aspect(text) is None:
            raise ValueError(f"invalid aspect ratio {text!r} (max {MAX_ASPECT:g}:1), expected for example 3:2")
        return text

    @field_validator("seeds")
    @classmethod
    def check_seeds(cls, text: str) -> str:
        numbers = parse_seeds(text)
        if numbers is None or len(set(numbers)) < len(numbers):
            raise ValueError(f"{text!r} is not a list of different seeds from 0 to {MAX_SEED}, such as 1,2,3")
        return text

    @model_validator(mode="after")
    def check_combinations(self) -> GenerateOptions:
        if self.aspect and (self.width or self.height):
            raise ValueError("--aspect sets both sides: leave out --width and --height")
        if self.seeds and self.model_fields_set & {"seed", "num_images"}:
            raise ValueError("--seeds names every image's seed: leave out --seed and --num-images")
        if self.mask and not self.init_image:
            raise ValueError("--mask needs an initial image: add --init-image")
        if self.controlnet and not self.scribble:
            raise ValueError("--controlnet needs a line drawing: add --scribble")
        if self.scribble and self.init_image and not self.controlnet:
            raise ValueError("--scribble and --init-image are both initial images: give one, or add --controlnet")
        if self.hide_flagged and not self.safety_checker:
            raise ValueError("--hide-flagged needs --safety-checker")
        if self.seed > MAX_SEED - self.num_images:
            raise ValueError(f"seed {self.seed} + {self.num_images} images exceeds the highest seed {MAX_SEED}")
        return self


class CompareOptions(ImageOptions):
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
    lora: tuple[str, ...] = ()
    """a LoRA as FILE or FILE:WEIGHT, applied to every model but `base`; may be repeated"""
    trigger: str = ""
    """trigger word of the axis and the study `trigger`; default: creature for pocket, else Pokémon"""
    seed: int = Field(default=42, ge=0, le=MAX_SEED)
    """seed of every image, unless an axis changes it; in a study the first one"""
    seeds: int | None = Field(default=None, ge=2, le=1000)
    """number of seeds of a study, for each prompt; default: 4, for the trigger 8"""
    scorer: Path | None = None
    """folder of the CLIP model that judges a study's images; default: the embedded one, data/pocket/scorer"""
    max_cells: int = Field(default=400, ge=1)
    """maximum number of images"""
    runs: Path = RUNS
    """folder of the runs"""
    outdir: Path | None = None
    """output folder, new or of an earlier comparison, which is updated; default: the next in outputs/"""
    cells: Path | None = None
    """where generated images are cached; default: ~/.cache/atelier/cells (ATELIER_CACHE)"""


class EvaluateOptions(MachineOptions):
    run: Path | None = cli.positional(None)
    """the run's folder, e.g. runs/0001-lora-r16; default: the newest finished run"""
    quick: bool = False
    """few images with few steps: minutes instead of hours on a CPU; the page says what so few cannot show"""
    seed: int = Field(default=42, ge=0, le=MAX_SEED)
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
    runs: Path = RUNS
    """folder of the runs"""
    outdir: Path | None = None
    """output folder; default: evaluation (or evaluation-quick) in the run's folder; an earlier report is replaced"""
    cells: Path | None = None
    """where generated images are cached; default: ~/.cache/atelier/cells (ATELIER_CACHE)"""


class StudioOptions(ModelOptions):
    host: str = LOOPBACK
    """address to listen on; any address other than this machine's own requires a password"""
    port: int = Field(default=7860, ge=0, le=65535)
    """port to listen on; 0 picks a free one and prints it"""
    password: str = ""
    """password for browsers and API clients, with any user name; other users of this machine can see it in the process
    list, so --password-file is safer"""
    password_file: Path | None = None
    """file with the password in its first line; only its owner may be able to read it"""
    judge: Path | None = None
    """folder of the CLIP model that searches the gallery; default: the embedded scorer"""
    open: bool = False
    """open the page in the browser"""

    @model_validator(mode="after")
    def one_password(self) -> StudioOptions:
        if self.password and self.password_file:
            raise ValueError("--password and --password-file cannot be combined")
        return self

    @property
    def is_private(self) -> bool:
        """Whether only programs on this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class GalleryOptions(cli.Options):
    folder: Path = OUTPUTS
    """folder of the images, searched with everything below it"""
    search: str = ""
    """words say what the image shows; field:value filters by prompt: negative: model: lora: sampler: seed: steps: cfg:
    width: height: date: star: file:, numbers with > and <, -field:value excludes"""
    star: tuple[Path, ...] = ()
    """mark these images as favourites"""
    unstar: tuple[Path, ...] = ()
    """remove the mark"""
    most: int = Field(default=20, ge=1)
    """maximum number of images listed"""
    page: Path | None = None
    """write the results to one HTML file"""
    judge: Path | None = None
    """folder of a CLIP model that compares words and images; default: the embedded scorer"""
    index: Path | None = None
    """the index file; default: one for each folder, in the cache"""


SYNTHESIS_MODELS = {  # short names: the thesis' four, and SD v1.4
    "sd14": "CompVis/stable-diffusion-v1-4",
    "sd21": "stabilityai/stable-diffusion-2-1",
    "realistic-vision-14": "SG161222/Realistic_Vision_V1.4",
    "openjourney-v4": "prompthero/openjourney-v4",
    "kandinsky-22": "kandinsky-community/kandinsky-2-2-decoder",
}


class SynthesizeOptions(MachineOptions):
    theme: str = "creatures"
    """creatures, animals, fruits, or a YAML file with classes, templates and slots"""
    classes: tuple[str, ...] = ()
    """only these classes, or others than the theme's"""
    model: tuple[str, ...] = ()
    """sd14, sd21, realistic-vision-14, openjourney-v4, kandinsky-22, pocket, a run, a folder or a hub id; a set for
    each; default: the newest finished run, else pocket"""
    count: int = Field(default=80, ge=1)
    """images of each model, distributed evenly over the classes"""
    seed: int = Field(default=0, ge=0, lt=2**48)
    """seed of prompts and images"""
    steps: int = Field(default=25, ge=1)
    """denoising steps"""
    guidance_scale: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    """how strongly the image follows the prompt; default: as suits the model, Stable Diffusion 7.5, pocket 4"""
    scheduler: str | None = None
    """euler, dpmpp_2m ...; default: the model's own, for sd21 DPM-Solver++ as in the thesis"""
    redraws: int = Field(default=5, ge=0)
    """how often an image that comes out black, flagged or broken is tried again before it is left out and reported"""
    outdir: Path = OUTPUTS / "synthetic"
    """output folder with a folder for each model; the same command resumes"""


# ---- values in texts


def parse_grid(text: str) -> dict[str, tuple[str, ...]]:
    """`type=water,fire;object=fridge,car` as name -> values; `||` instead of commas where values contain commas."""
    axes: dict[str, tuple[str, ...]] = {}
    for axis in filter(str.strip, text.split(";")):
        name, equals, values = axis.partition("=")
        name = name.strip()
        given = tuple(value.strip() for value in values.split("||" if "||" in values else ","))
        if not equals or not SLOT_NAME.fullmatch(name) or not all(given):
            fix = 'Write it as --grid "type=water,fire;object=fridge,car".'
            raise InputError(f"{axis.strip()!r} is not a name with its values", where="--grid", fix=fix)
        if name in axes or len(set(given)) < len(given):
            raise InputError(f"{axis.strip()!r} is given twice", where="--grid")
        axes[name] = given
    return axes


def parse_aspect(text: str) -> float | None:
    """`3:2`, `3x2`, `3/2` or `1.5` -> 1.5; None if it is none of them."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:\s*[:x/]\s*(\d+(?:\.\d+)?))?", text.strip())
    sides = [float(side or 1) for side in match.groups()] if match else [0.0]
    return sides[0] / sides[1] if min(sides) > 0 and max(sides) <= MAX_ASPECT * min(sides) else None


def parse_seeds(text: str) -> tuple[int, ...] | None:
    """`1,2,3` -> (1, 2, 3); () for nothing, None if it is not a list of seeds."""
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
    """The command line of generate.py. Raises InputError."""
    if "--fast" in (sys.argv[1:] if argv is None else argv):
        raise InputError("was removed: it stood for other flags", where="--fast", fix=f"Use {FAST_FLAGS} instead.")
    description = "Generate images from prompts. The same seed gives the same image, alone or among many."
    return cli.parse(GenerateOptions, argv, prog="generate.py", description=description, aliases=ALIASES)
