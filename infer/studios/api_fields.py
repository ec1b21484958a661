"""The fields of AUTOMATIC1111's HTTP interface, in and out."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from data.errors import InputError
from infer import metadata, schedulers
from infer.config import HIGHEST_SEED
from infer.metadata import Recipe
from infer.studios import asking
from infer.studios.desk import Order
from infer.studios.weights import Shelf

SAMPLER = "sampler_name"  # what A1111 answers 404 to if it does not know it
SCHEDULES = ("Automatic", "Karras")
MOST_BASE64 = 48 << 20  # letters of an uploaded picture
DIFFERENT = {"enable_hr": "upscaling", "script_name": "scripts", "alwayson_scripts": "scripts",
             "subseed_strength": "variation seeds", "refiner_checkpoint": "refiners", "tiling": "tiling",
             "restore_faces": "restored faces"}  # fmt: skip


class Asked(BaseModel):
    model_config = ConfigDict(extra="allow")  # clients send everything that A1111 has a field for


class Overrides(Asked):
    sd_model_checkpoint: str | None = None
    CLIP_stop_at_last_layers: int = Field(default=1, ge=1, le=1)


class TextToImage(Asked):
    """What txt2img takes. Sizes that are not given are the model's own; n_iter x batch_size pictures are drawn."""

    prompt: str = Field(default="", max_length=asking.MOST_LETTERS)
    negative_prompt: str = Field(default="", max_length=asking.MOST_LETTERS)
    styles: list[str] = []
    seed: int = Field(default=-1, ge=-1, le=HIGHEST_SEED - asking.MOST_PICTURES)
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    batch_size: int = Field(default=1, ge=1, le=asking.MOST_PICTURES)
    n_iter: int = Field(default=1, ge=1, le=asking.MOST_PICTURES)
    steps: int = Field(default=50, ge=1, le=asking.MOST_STEPS)
    cfg_scale: float = Field(default=7.0, ge=0.0, le=asking.HIGHEST_GUIDANCE, allow_inf_nan=False)
    width: int | None = Field(default=None, ge=1, le=4096)
    height: int | None = Field(default=None, ge=1, le=4096)
    override_settings: Overrides = Overrides()
    send_images: bool = True

    @model_validator(mode="after")
    def nothing_that_would_be_ignored(self) -> TextToImage:
        """What would be another picture is refused; what only A1111 needs to know is let be."""
        for field, what in DIFFERENT.items():
            if (self.model_extra or {}).get(field):
                raise ValueError(f"{field}: this studio has no {what}")
        if not self.prompt.strip():
            raise ValueError("prompt: say what to draw")
        if self.batch_size * self.n_iter > asking.MOST_PICTURES:
            raise ValueError(f"batch_size x n_iter is more than {asking.MOST_PICTURES} pictures")
        if len(self.styles) > 1:
            raise ValueError("styles: one at a time")
        return self


class Switches(Asked):
    sd_model_checkpoint: str | None = None


class Uploaded(Asked):
    image: str = Field(max_length=MOST_BASE64)


def values(asked: TextToImage, shelf: Shelf) -> dict[str, Any]:
    """As fields of GenerateOptions. Raises InputError for a sampler or model that there is not."""
    return {
        "prompt": asked.prompt, "negative_prompt": asked.negative_prompt, "seed": asked.seed, "steps": asked.steps,
        "guidance_scale": asked.cfg_scale, "width": asked.width, "height": asked.height,
        "num_images": asked.batch_size * asked.n_iter, "style": asked.styles[0] if asked.styles else None,
        "scheduler": sampler(asked), "model": asked.override_settings.sd_model_checkpoint,
    }  # fmt: skip


def sampler(asked: TextToImage) -> str | None:
    """A sampler and its schedule as one name; None, the model's own, if the client does not care."""
    name = asked.sampler_name or asked.sampler_index
    if not name or name == "Automatic":
        return None
    karras = (asked.scheduler or "").lower() == "karras" and not name.endswith("Karras")
    try:
        return schedulers.canonical(f"{name} Karras" if karras else name)
    except InputError as error:
        raise InputError(f"unknown sampler {name!r}", where=SAMPLER, allowed=error.allowed) from None


# ---- out


def answer(asked: TextToImage, order: Order) -> dict[str, Any]:
    """What txt2img answers: the files as they lie in outputs/, and how they were made."""
    done = [each for each in order.done if not each.base]
    recipes = [metadata.read(each.path) for each in done]
    pictures = [base64.b64encode(each.path.read_bytes()).decode() for each in done] if asked.send_images else []
    return {"images": pictures, "parameters": asked.model_dump(), "info": json.dumps(info(recipes, order))}


def info(recipes: list[Recipe], order: Order) -> dict[str, Any]:
    """A1111's account of a job; of a stopped one, of the pictures that were finished."""
    if not recipes:
        return {"all_prompts": [], "all_seeds": [], "infotexts": [], "state": order.state}
    first = recipes[0]
    return {
        "prompt": first.prompt, "all_prompts": [recipe.prompt for recipe in recipes],
        "negative_prompt": first.negative_prompt,
        "all_negative_prompts": [recipe.negative_prompt for recipe in recipes],
        "seed": first.seed, "all_seeds": [recipe.seed for recipe in recipes],
        "subseed": first.seed, "all_subseeds": [recipe.seed for recipe in recipes], "subseed_strength": 0,
        "width": first.width, "height": first.height, "sampler_name": first.sampler, "steps": first.steps,
        "cfg_scale": first.guidance_scale, "batch_size": len(recipes), "restore_faces": False,
        "face_restoration_model": None, "sd_model_name": first.model.name,
        "sd_model_hash": (first.model.file_hash or first.model.fingerprint)[: metadata.MODEL_HASH_LENGTH],
        "sd_vae_name": None, "sd_vae_hash": None, "seed_resize_from_w": -1, "seed_resize_from_h": -1,
        "denoising_strength": 0, "extra_generation_params": {}, "index_of_first_image": 0, "clip_skip": 1,
        "infotexts": [metadata.parameters(recipe) for recipe in recipes],
        "styles": [first.style] if first.style else [], "job_timestamp": "",
        "is_using_inpainting_conditioning": False, "version": first.versions.get("atelier", ""),
        "state": order.state, "files": [each.path.as_posix() for each in order.done if not each.base],
    }  # fmt: skip


def progress(order: Order | None, waiting: int, skip_image: bool) -> dict[str, Any]:
    """How far the order is that is being drawn; zeros when nobody wants anything."""
    share, left = (order.share, order.left) if order else (0.0, 0.0)
    steps = order.options.steps if order else 0
    state = {
        "skipped": False, "interrupted": bool(order and order.stop.is_set()), "stopping_generation": False,
        "job": f"order {order.number}" if order else "", "job_count": (order is not None) + waiting,
        "job_timestamp": "0", "job_no": 0, "sampling_step": round(share * steps), "sampling_steps": steps,
    }  # fmt: skip
    seen = None if order is None or skip_image else newest(order)
    return {"progress": round(share, 4), "eta_relative": round(left, 2), "state": state, "current_image": seen,
            "textinfo": None, "current_task": None}  # fmt: skip


def newest(order: Order) -> str | None:
    """The preview that is furthest along, as a PNG in base64."""
    looks = list(order.looks.values())
    if not looks:
        return None
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(looks[-1])) as picture:
        picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def model(name: str, path: str) -> dict[str, Any]:
    """A line of sd-models."""
    return {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": path, "config": None}
