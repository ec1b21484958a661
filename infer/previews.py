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

from data import disk_cache
from train.samples import STRIP_FILE, PreviewRequest

if TYPE_CHECKING:
    from infer.output import SavedImage
    from train.model import BaseModel

VERSION = 3  # raise it when the same question would get another picture
PREVIEW_SCHEDULER = "dpmpp_2m"  # second order: a dozen steps show what the model's own PNDM shows in thirty


def generate_previews(asked: PreviewRequest) -> list[str]:
    """Write a PNG with its recipe for each question and a strip of all; returns what a person should know of them.

    The base's pictures are the same for every run that asks for them: they are drawn once and kept.
    """
    if asked.weights:
        return generate_now(asked)
    return disk_cache.cached_files(
        "previews", preview_cache_key(asked), asked.folder, lambda folder: generate_now(replace(asked, folder=folder))
    )


def preview_cache_key(asked: PreviewRequest) -> str:
    """Everything that the base's pictures, and what is written in them, follow from."""
    from infer import output, pipeline

    model = asked.model
    drawn = (PREVIEW_SCHEDULER, asked.steps, asked.guidance, asked.size, pipeline.micro_batch_for(asked.device))
    machine = (output.device_name(asked.device), torch.get_num_threads(), *output.package_versions().items())
    used = (output.model_used(model), model.scheduler_config, precision(asked))
    return disk_cache.cache_key("previews", VERSION, *used, *drawn, *machine, *asked.questions)


def precision(asked: PreviewRequest) -> str:
    return asked.precision if asked.unet is not None else "fp32"


def generate_now(asked: PreviewRequest) -> list[str]:
    """As draw().

    The autoencoder and the text encoder are loaded for this call only; the U-Net is the one that was handed over, in
    its own precision (its forward is autocast as in training), and no weight of it is copied or cast.
    Raises InputError when the device's memory does not do.
    """
    from infer import metadata, output, pipeline, prompts, text_encoding
    from infer.output import SavedImage

    model = with_unet(asked.model, asked.unet)
    pipe = pipeline.build_pipeline(model, PREVIEW_SCHEDULER, asked.device)
    wanted = pipeline.SamplingSettings(asked.steps, asked.guidance, asked.size, asked.size)
    settings = replace(wanted, micro_batch=pipeline.micro_batch_for(asked.device))
    pictures = [prompts.ImageRequest(index, q.prompt, q.seed) for index, q in enumerate(asked.questions)]
    tokens = text_encoding.measure_prompts([*(picture.prompt for picture in pictures), ""], model.tokenizer)
    shared = output.shared_metadata(pipe, model, [], PREVIEW_SCHEDULER) | weights_and_precision(asked, model)
    finished: list[SavedImage] = []
    for drawn in pipeline.generate_images(pipe, pictures, settings):
        recipe = output.build_metadata(shared, drawn, tokens)
        path = asked.folder / drawn.picture.file_name
        metadata.write_png(path, drawn.image, recipe)
        finished.append(SavedImage(path, drawn.picture, recipe, 0.0))
    write_strip(asked.folder / STRIP_FILE, finished, asked.beside)
    cut = text_encoding.truncated_prompts(tokens) if asked.beside is None else []  # said once, with the base's pictures
    return [*(f"the prompt {error.what}" for error in cut), *failure_notes(finished)]


def with_unet(model: BaseModel, unet: Any) -> BaseModel:
    """The same model with this U-Net, and with parts of its own that go when it goes."""
    own = replace(model)
    if unet is not None:
        vars(own)["unet"] = unet  # where cached_property keeps it
    vars(own)["tokenizer"] = model.tokenizer
    return own


def weights_and_precision(asked: PreviewRequest, model: BaseModel) -> dict[str, Any]:
    """The weights and the precision in a recipe: those of a step of a run are no model that anyone has by name."""
    from infer import output

    used = output.model_used(model)
    if asked.weights:
        mark = hashlib.sha256(f"{used.fingerprint} {asked.weights}".encode()).hexdigest()
        step = asked.weights.rpartition(" at ")[2]
        used = used.model_copy(update={"name": f"{used.name}, {step}", "fingerprint": mark, "file_hash": ""})
    return {"model": used, "dtype": precision(asked)}


def write_strip(strip: Path, finished: Sequence[SavedImage], beside: Path | None) -> None:
    """strip.png: a row for each question, the base's picture on the left."""
    from infer import output

    base = [] if beside is None else [base_image(done, beside / done.path.name) for done in finished]
    sheet = output.comparison_sheet({"base": base, "tuned": finished}) if base else output.grid_sheet(finished)
    sheet.save(strip, "PNG")


def base_image(tuned: SavedImage, path: Path) -> SavedImage:
    """The base's picture of the same question, drawn before."""
    from infer import metadata

    return replace(tuned, path=path, recipe=metadata.read_metadata(path))


def failure_notes(finished: Sequence[SavedImage]) -> list[str]:
    """How many came out as no picture."""
    broken = sum(done.recipe.verdict == "nan" for done in finished)
    return [f"{broken} of {len(finished)} are no pictures, the numbers broke down (NaN)"] if broken else []
