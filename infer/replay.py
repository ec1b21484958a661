"""--params-from picture.png: the options that a picture was drawn with, under the flags that were typed.

Our own pictures are repeated bit for bit; a model or LoRA that is no longer the same is an error or is said. Of other
programs' pictures the settings are taken over; what cannot be repeated is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pydantic import ValidationError

from data.errors import InputError, show
from data.files import sha256
from infer import foreign, metadata, schedulers, templates
from infer.config import GenerateOptions
from infer.metadata import LoraUsed, Recipe
from infer.pipeline import GPU_MICRO_BATCH, MICRO_BATCH

if TYPE_CHECKING:
    from infer.outputs import Finished

FLAG_OF = {"init": "init_image", "mask": "mask", "scribble": "scribble"}
DECIDES_NOTHING = {"format", "template", "verdict", "style", "unstyled"}
RUNS, LORAS = Path("runs"), Path("loras")
TOGETHER = {  # a flag that was typed also answers for these
    "from_file": ("prompt",),
    "aspect": ("width", "height"),
    "seeds": ("seed",),
}


@dataclass(frozen=True)
class Found:
    """program: that drew it. values: fields of GenerateOptions. said: what is not repeated. recipe: if it is ours."""

    program: str
    values: Mapping[str, Any]
    said: tuple[str, ...] = ()
    recipe: Recipe | None = None


def over(options: GenerateOptions) -> tuple[GenerateOptions, Found]:
    """The picture's settings with the typed flags over them. Raises InputError, naming the flag that would answer."""
    assert options.params_from is not None
    where = f"--params-from {options.params_from}"
    typed = options.model_fields_set
    found = read(options.params_from, typed)
    answered = typed | {other for name in typed for other in TOGETHER.get(name, ())}
    values = {name: value for name, value in found.values.items() if name not in answered}
    if "scheduler" in values:
        values["scheduler"] = known_scheduler(values["scheduler"], found.program, where)
    merged = {**values, **{name: getattr(options, name) for name in typed}}
    try:
        return GenerateOptions.model_validate(merged), found
    except ValidationError as error:
        detail = error.errors()[0]
        name = ".".join(map(str, detail["loc"])) or "its settings"
        raise InputError(f"{name} is not allowed here: {detail['msg']}", where=where) from None


def read(path: Path, typed: set[str]) -> Found:
    """The settings of a picture, ours first. typed: fields that the person answers for. Raises InputError."""
    where = f"--params-from {path}"
    texts = foreign.texts_of(path)
    if metadata.KEY in texts:
        recipe = metadata.parse(texts[metadata.KEY], where)
        return Found("this toolkit", ours(recipe, typed, where), tuple(unlike(recipe)), recipe)
    found = foreign.read(texts, where)
    if found is None:
        programs = "this toolkit, A1111, InvokeAI, Fooocus or kohya's gen_img"
        raise InputError("holds no settings", where=where, allowed=f"a picture by {programs}")
    values = dict(found.values)
    values["prompt"] = (templates.literal(values["prompt"]),)
    return Found(found.program, values, found.said)


def ours(recipe: Recipe, typed: set[str], where: str) -> dict[str, Any]:
    """One of our recipes as options. Raises InputError for weights that are not here."""
    values = {
        # a style that is typed is laid around the words that were typed then
        "prompt": (templates.literal(recipe.unstyled if recipe.unstyled and "style" in typed else recipe.prompt),),
        "negative_prompt": recipe.negative_prompt,
        "seed": recipe.seed,
        "steps": recipe.steps,
        "guidance_scale": recipe.guidance_scale,
        "scheduler": recipe.sampler,
        "width": recipe.width,
        "height": recipe.height,
        "dtype": recipe.dtype,
        "weighting": recipe.weighting,
        "guidance_rescale": recipe.guidance_rescale,
        "guidance_stop": recipe.guidance_stop,
        "compile": recipe.compiled,
        "batch_size": batch_size(recipe),
        **inputs(recipe, typed, where),
    }
    if not {"model", "lora"} & typed:
        return values | weights(recipe, where)
    return values


def batch_size(recipe: Recipe) -> int | None:
    """Pictures at a time, where it was not what is usual on the kind of device that drew it."""
    usual = MICRO_BATCH.get(recipe.device.partition(" ")[0], GPU_MICRO_BATCH)
    return None if recipe.micro_batch == usual else recipe.micro_batch


def inputs(recipe: Recipe, typed: set[str], where: str) -> dict[str, Any]:
    """The pictures that went in, by name and content, and how they were used. Raises InputError."""
    if not recipe.inputs:
        return {}
    flags = {used.role: FLAG_OF[used.role] for used in recipe.inputs}
    found: dict[str, Any] = {"strength": recipe.strength, "control_scale": recipe.control_scale}
    found |= {"polarity": recipe.polarity} if recipe.polarity else {}
    for used in recipe.inputs:
        same = Path(used.name).is_file() and sha256(Path(used.name)) == used.sha256
        if not same and flags[used.role] not in typed:
            flag = f"--{flags[used.role].replace('_', '-')}"
            what = f"was drawn with {show(used.name)} ({used.role}, sha256 {used.sha256[:10]}), which is not here"
            raise InputError(what, where=where, fix=f"Name it with {flag}.")
        found[flags[used.role]] = Path(used.name)
    if recipe.controlnet and "controlnet" not in typed:
        raise InputError("was drawn along a ControlNet", where=where, fix="Name its folder with --controlnet.")
    return found


def weights(recipe: Recipe, where: str) -> dict[str, Any]:
    """The model and LoRAs of a recipe, by the names that they have on this machine. Raises InputError."""
    files = [lora_file(lora, where) for lora in recipe.loras]
    found: dict[str, Any] = {"lora": tuple(f"{file}:{lora.weight!r}" for file, lora in files)}
    if not any(is_of_a_run(file) for file, _ in files):  # its base follows from the run
        found["model"] = model_name(recipe.model.name, where)
    return found


def model_name(name: str, where: str) -> str:
    """A model by the name in a recipe: as it is, or a run's. Raises InputError if it is neither here nor on a hub."""
    if (RUNS / name / "config.yaml").is_file():
        return str(RUNS / name)
    if name == "pocket" or "/" in name or Path(name).exists():
        return name
    raise InputError(f"was drawn with the model {name!r}, which is not here", where=where, fix="Name it with --model.")


def lora_file(lora: LoraUsed, where: str) -> tuple[Path, LoraUsed]:
    """The file of a LoRA by its name and content. Raises InputError."""
    places = [RUNS / Path(lora.name).stem / "export" / "lora.safetensors", Path(lora.name), LORAS / lora.name]
    there = [path for path in places if path.is_file()]
    same = [path for path in there if sha256(path) == lora.sha256]
    if same:
        return same[0], lora
    what = (
        f"{show(there[0])} has changed since" if there else f"was drawn with the LoRA {lora.name!r}, which is not here"
    )
    raise InputError(what, where=where, fix=f"Name it with --lora FILE:{lora.weight:g}.")


def is_of_a_run(file: Path) -> bool:
    return file.parent.name == "export" and (file.parent.parent / "config.yaml").is_file()


def known_scheduler(name: str, program: str, where: str) -> str | None:
    """A sampler's name as --scheduler takes it; None, the model's own, for one of ours that has no such name."""
    try:
        return schedulers.canonical(name)
    except InputError as error:
        if program == "this toolkit":
            return None
        what = f"was drawn with the sampler {name!r}, which is not known here"
        raise InputError(what, where=where, allowed=error.allowed, fix="Choose one with --scheduler.") from None


def unlike(recipe: Recipe) -> Iterator[str]:
    """What of this machine is not as it was; pixels may differ in the last bits for it."""
    from importlib.metadata import version

    for name in ("torch", "diffusers"):
        if name in recipe.versions and recipe.versions[name] != version(name):
            yield f"it was drawn with {name} {recipe.versions[name]}, this is {version(name)}"


def compared(done: Finished, was: Recipe, options: GenerateOptions) -> str:
    """Whether the picture came out as it was, in a line: equal bit for bit, or by how much not and why."""
    assert options.params_from is not None
    before, after = pixels(options.params_from), pixels(done.path)
    if before.shape != after.shape:
        return f"the picture is {done.recipe.width} x {done.recipe.height} now, it was {was.width} x {was.height}"
    if np.array_equal(before, after):
        return "the same picture, bit for bit"
    reasons = ", ".join(changed(done.recipe, was)) or "nothing that was written down"
    return f"another picture: {psnr(before, after):.1f} dB from the one it was; changed since: {reasons}"


def changed(now: Recipe, was: Recipe) -> Iterator[str]:
    """The names of the fields that decide pixels and are no longer the same."""
    for name in type(now).model_fields:
        if name not in DECIDES_NOTHING and getattr(now, name) != getattr(was, name):
            yield name.replace("_", " ")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.float64)


def psnr(one: np.ndarray, two: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two pictures of values 0 to 255."""
    error = float(np.mean((one - two) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf
