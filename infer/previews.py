"""The previews that the trainer asks for: drawn by generate.py's own code, with the network that is being trained.

train/finetune.py hands `draw` down to the trainer, which knows nothing of this folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data import kept
from train.previews import STRIP, Asked

if TYPE_CHECKING:
    from infer.outputs import Finished
    from train.base_model import BaseModel

VERSION = 3  # raise it when the same question would get another picture
SCHEDULER = "dpmpp_2m"  # second order: a dozen steps show what the model's own PNDM shows in thirty


def draw(asked: Asked) -> list[str]:
    """Write a PNG with its recipe for each question and a strip of all; returns what a person should know of them.

    The base's pictures are the same for every run that asks for them: they are drawn once and kept.
    """
    if asked.weights:
        return draw_now(asked)
    return kept.files("previews", key(asked), asked.folder, lambda folder: draw_now(replace(asked, folder=folder)))


def key(asked: Asked) -> str:
    """Everything that the base's pictures, and what is written in them, follow from."""
    from infer import pipeline, recipes

    model = asked.model
    drawn = (SCHEDULER, asked.steps, asked.guidance, asked.size, pipeline.micro_batch_for(asked.device))
    machine = (recipes.device_name(asked.device), torch.get_num_threads(), *recipes.versions().items())
    used = (recipes.model_used(model), model.scheduler_config, precision(asked))
    return kept.digest("previews", VERSION, *used, *drawn, *machine, *asked.questions)


def precision(asked: Asked) -> str:
    return asked.precision if asked.unet is not None else "fp32"


def draw_now(asked: Asked) -> list[str]:
    """As draw().

    The autoencoder and the text encoder are loaded for this call only; the U-Net is the one that was handed over, in
    its own precision (its forward is autocast as in training), and no weight of it is copied or cast.
    Raises InputError when the device's memory does not do.
    """
    from infer import encoder, metadata, pipeline, prompts, recipes
    from infer.outputs import Finished

    model = with_network(asked.model, asked.unet)
    pipe = pipeline.build(model, SCHEDULER, asked.device)
    wanted = pipeline.Settings(asked.steps, asked.guidance, asked.size, asked.size)
    settings = replace(wanted, micro_batch=pipeline.micro_batch_for(asked.device))
    pictures = [prompts.Picture(index, q.prompt, q.seed) for index, q in enumerate(asked.questions)]
    tokens = encoder.measure([*(picture.prompt for picture in pictures), ""], model.tokenizer)
    shared = recipes.shared(pipe, model, [], SCHEDULER) | whose(asked, model)
    finished: list[Finished] = []
    for drawn in pipeline.draw(pipe, pictures, settings):
        recipe = recipes.of(shared, drawn, tokens)
        path = asked.folder / drawn.picture.file_name
        metadata.write(path, drawn.image, recipe)
        finished.append(Finished(path, drawn.picture, recipe, 0.0))
    lay_out(asked.folder / STRIP, finished, asked.beside)
    cut = encoder.cut_prompts(tokens) if asked.beside is None else []  # said once, with the base's pictures
    return [*(f"the prompt {error.what}" for error in cut), *remarks(finished)]


def with_network(model: BaseModel, unet: Any) -> BaseModel:
    """The same model with this U-Net, and with parts of its own that go when it goes."""
    own = replace(model)
    if unet is not None:
        vars(own)["unet"] = unet  # where cached_property keeps it
    vars(own)["tokenizer"] = model.tokenizer
    return own


def whose(asked: Asked, model: BaseModel) -> dict[str, Any]:
    """The weights and the precision in a recipe: those of a step of a run are no model that anyone has by name."""
    from infer import recipes

    used = recipes.model_used(model)
    if asked.weights:
        mark = hashlib.sha256(f"{used.fingerprint} {asked.weights}".encode()).hexdigest()
        step = asked.weights.rpartition(" at ")[2]
        used = used.model_copy(update={"name": f"{used.name}, {step}", "fingerprint": mark, "file_hash": ""})
    return {"model": used, "dtype": precision(asked)}


def lay_out(strip: Path, finished: Sequence[Finished], beside: Path | None) -> None:
    """strip.png: a row for each question, the base's picture on the left."""
    from infer import outputs

    base = [] if beside is None else [of_base(done, beside / done.path.name) for done in finished]
    sheet = outputs.comparison({"base": base, "tuned": finished}) if base else outputs.grid(finished)
    sheet.save(strip, "PNG")


def of_base(tuned: Finished, path: Path) -> Finished:
    """The base's picture of the same question, drawn before."""
    from infer import metadata

    return replace(tuned, path=path, recipe=metadata.read(path))


def remarks(finished: Sequence[Finished]) -> list[str]:
    """How many came out as no picture."""
    broken = sum(done.recipe.verdict == "nan" for done in finished)
    return [f"{broken} of {len(finished)} are no pictures, the numbers broke down (NaN)"] if broken else []
