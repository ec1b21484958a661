"""The settings of a picture that was drawn before, as the page's fields have them: the same picture comes out again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import InputError, raise_all, show
from infer import config, foreign, metadata, schedulers, sizes, templates
from infer.metadata import Recipe
from infer.studios import asking
from infer.studios.controls import SHAPES
from infer.studios.weights import Shelf
from train import base_model

FIELDS = {"negative_prompt", "seed", "steps", "guidance_scale", "scheduler", "width", "height"}


def settings(path: Path, shelf: Shelf) -> dict[str, Any]:
    """Of our own pictures everything, of other programs' what this one has too. Raises InputError."""
    texts = foreign.texts_of(path)
    if metadata.KEY in texts:
        found = of_recipe(metadata.parse(texts[metadata.KEY], show(path)), shelf)
    else:
        theirs = foreign.read(texts, show(path))
        if theirs is None:
            raise InputError("this picture does not tell how it was made")
        found = of_values(theirs.values)
    raise_all(asking.too_much(found))
    return found | {"shape": shape(found, shelf)}


def of_recipe(recipe: Recipe, shelf: Shelf) -> dict[str, Any]:
    """Of one of our pictures. Raises InputError if it was drawn with something that is not here any more."""
    if recipe.inputs:
        raise InputError("it began with a drawing or picture", fix="generate.py --params-from repeats those.")
    known, files = shelf.models(), shelf.files()
    runs = [Path(lora.name).stem for lora in recipe.loras if Path(lora.name).stem in known]
    name = runs[0] if runs else recipe.model.name
    if name not in known:
        raise InputError(f"it was drawn with {name!r}, which is not here", fix="Start the studio with --model.")
    others = [lora for lora in recipe.loras if Path(lora.name).stem not in runs]
    lost = [lora.name for lora in others if Path(lora.name).stem not in files]
    if lost:
        raise InputError(f"it was drawn with the LoRA {lost[0]!r}, which is not here", fix="Put it into loras/.")
    tags = "".join(f" <lora:{Path(lora.name).stem}:{lora.weight!r}>" for lora in others[1:])
    first = {"lora": Path(others[0].name).stem, "weight": others[0].weight} if others else {}
    return {
        "prompt": templates.literal(recipe.prompt) + tags, "negative_prompt": recipe.negative_prompt,
        "seed": recipe.seed, "steps": recipe.steps, "guidance_scale": recipe.guidance_scale,
        "scheduler": own_sampler(recipe), "width": recipe.width, "height": recipe.height, "model": name, **first,
    }  # fmt: skip


def own_sampler(recipe: Recipe) -> str | None:
    """The sampler's name in the picker; none for one of a kind that the picker does not have."""
    try:
        return schedulers.canonical(recipe.sampler)
    except InputError:
        return None


def of_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of another program's picture."""
    found = {name: value for name, value in values.items() if name in FIELDS and value is not None}
    return {"prompt": templates.literal(str(values.get("prompt", ""))), **found}


def shape(found: Mapping[str, Any], shelf: Shelf) -> str:
    """The ratio that gives this very size with this model; empty if none does."""
    if "width" not in found or "height" not in found:
        return "1:1"
    name = shelf.model(str(found.get("model", "")))
    chosen = config.GenerateOptions(model=name)
    from infer import source

    model = base_model.load(source.choose(chosen, shelf.runs).model)
    size = (found["width"], found["height"])
    area = model.sample_size**2
    ratios = {text: config.ratio(text) or 1.0 for text in SHAPES.values()}
    return next((text for text, value in ratios.items() if sizes.of_ratio(value, area, model.step) == size), "")
