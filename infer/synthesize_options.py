"""The options of synthesize.py, and the themes it can draw. Nothing heavy is imported here."""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from data import seeds
from data.errors import InputError, choose
from data.options import Options

THEMES = Path(__file__).with_name("themes.yaml")
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


@dataclass(frozen=True)
class Theme:
    """classes in their order; each template has {class} and may have slots."""

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    slots: dict[str, tuple[str, ...]]

    @property
    def distinct(self) -> int:
        """How many different prompts a class can have; the thesis' animals have 18, its fruits 8."""
        total = 0
        for template in self.templates:
            ways = 1
            for name in slots_of(template) - {"class"}:
                ways *= len(self.slots[name])
            total += ways
        return total

    def prompt(self, kind: str, number: int, seed: int) -> str:
        """The prompt of a class' picture: template and slots drawn by position."""
        template = self.templates[seeds.integer(len(self.templates), seed, "synthetic", "template", number)]
        filled = {name: values[seeds.integer(len(values), seed, "synthetic", name, number)]
                  for name, values in self.slots.items()}  # fmt: skip
        return template.format(**filled, **{"class": kind})


def slots_of(template: str) -> set[str]:
    """The names in braces."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def theme_of(options: SynthesizeOptions) -> Theme:
    """The theme asked for, with the classes asked for. Raises InputError for an unknown one or a wrong file."""
    shipped = yaml.safe_load(THEMES.read_text(encoding="utf-8"))
    file = Path(options.theme)
    if file.suffix in (".yaml", ".yml"):
        return checked(file.stem, read_yaml(file), file, options.classes)
    name = choose(options.theme, shipped, what="theme", where="--theme")
    return checked(name, shipped[name], THEMES, options.classes)


def read_yaml(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot be read ({str(error).splitlines()[0]})", where=f"--theme {file}") from None


def checked(name: str, given: Any, file: Path, classes: tuple[str, ...]) -> Theme:
    """A theme out of a mapping. Raises InputError naming what is missing."""
    wanted = ("classes", "templates")
    if not isinstance(given, dict) or any(not isinstance(given.get(key), list) or not given[key] for key in wanted):
        raise InputError("is no theme", where=file, allowed="classes: [...], templates: [...] and slots: {name: [...]}")
    slots = {str(key): tuple(map(str, values)) for key, values in (given.get("slots") or {}).items()}
    for template in given["templates"]:
        unknown = slots_of(template) - {"class", *slots}
        if unknown or "class" not in slots_of(template):
            what = f"{{{sorted(unknown)[0]}}} has no values" if unknown else "has no {class}"
            raise InputError(f"the template {template!r}: {what}", where=file, allowed=", ".join(["class", *slots]))
    kinds = classes or tuple(map(str, given["classes"]))
    if len(set(kinds)) < len(kinds) or any("/" in kind or kind.startswith(".") for kind in kinds):
        raise InputError(f"classes {', '.join(kinds)}", where="--classes", allowed="different names without slashes")
    return Theme(name, kinds, tuple(given["templates"]), slots)
