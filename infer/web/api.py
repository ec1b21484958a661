"""AUTOMATIC1111's HTTP API for text-to-image, so that clients made for it work here.

Source of the fields: AUTOMATIC1111/stable-diffusion-webui, modules/api/api.py and modules/api/models.py.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.concurrency import run_in_threadpool

from data.errors import InputError
from infer import schedulers
from infer.config import MAX_SEED
from infer.web.queue import Job
from infer.web.service import MAX_GUIDANCE, MAX_IMAGES, MAX_PROMPT, MAX_STEPS, StudioService

SAMPLER = "sampler_name"  # A1111 answers 404 to an unknown one
SCHEDULES = ("Automatic", "Karras")
MAX_BASE64 = 48 << 20  # characters of an uploaded image
UNSUPPORTED = {"enable_hr": "upscaling", "script_name": "scripts", "alwayson_scripts": "scripts",
               "subseed_strength": "variation seeds", "refiner_checkpoint": "refiners", "tiling": "tiling",
               "restore_faces": "face restoration"}  # fmt: skip


class Body(BaseModel):
    model_config = ConfigDict(extra="allow")  # clients send every field that A1111 has


class Overrides(Body):
    sd_model_checkpoint: str | None = None
    CLIP_stop_at_last_layers: int = Field(default=1, ge=1, le=1)


class TextToImage(Body):
    """Body of txt2img. Steps, guidance and size default to the model's own; n_iter x batch_size images are made."""

    prompt: str = Field(default="", max_length=MAX_PROMPT)
    negative_prompt: str = Field(default="", max_length=MAX_PROMPT)
    styles: list[str] = []
    seed: int = Field(default=-1, ge=-1, le=MAX_SEED - MAX_IMAGES)
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    batch_size: int = Field(default=1, ge=1, le=MAX_IMAGES)
    n_iter: int = Field(default=1, ge=1, le=MAX_IMAGES)
    steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    cfg_scale: float | None = Field(default=None, ge=0.0, le=MAX_GUIDANCE, allow_inf_nan=False)
    width: int | None = Field(default=None, ge=1, le=4096)
    height: int | None = Field(default=None, ge=1, le=4096)
    override_settings: Overrides = Overrides()
    send_images: bool = True

    @model_validator(mode="after")
    def check(self) -> TextToImage:
        """Reject what would change the image and is not supported; ignore what only matters to A1111."""
        for field, feature in UNSUPPORTED.items():
            if (self.model_extra or {}).get(field):
                raise ValueError(f"{field}: {feature} is not supported")
        if not self.prompt.strip():
            raise ValueError("prompt: it is empty")
        if self.batch_size * self.n_iter > MAX_IMAGES:
            raise ValueError(f"batch_size x n_iter is more than {MAX_IMAGES} images")
        if len(self.styles) > 1:
            raise ValueError("styles: only one at a time")
        return self


class Settings(Body):
    sd_model_checkpoint: str | None = None


class ImageBody(Body):
    image: str = Field(max_length=MAX_BASE64)


def routes(service: StudioService) -> APIRouter:
    router = APIRouter()
    add_generation(router, service)
    add_lists(router, service)

    @router.post("/sdapi/v1/png-info")
    @router.post("/png-info")
    def png_info(body: ImageBody) -> dict[str, Any]:
        """How an uploaded PNG was made."""
        return service.backend().gallery.png_info(decode_image(body))

    return router


def add_generation(router: APIRouter, service: StudioService) -> None:
    @router.post("/sdapi/v1/txt2img")
    async def txt2img(body: TextToImage) -> dict[str, Any]:
        """Waits for the images. They are made even if the client disconnects."""
        job = await run_in_threadpool(lambda: service.submit(request_fields(body)))
        await job.wait()
        if job.state == "failed":
            raise InputError(job.error)
        return await run_in_threadpool(txt2img_response, body, job, service.backend().gallery)

    @router.get("/sdapi/v1/progress")
    def progress(skip_current_image: bool = False) -> dict[str, Any]:
        return progress_response(service.queue.current, len(service.queue.waiting), skip_current_image)

    @router.post("/sdapi/v1/interrupt")
    def interrupt() -> dict[str, Any]:
        """Stop the running job; waiting ones stay in the queue."""
        job = service.queue.current
        if job is not None:
            service.queue.stop(job)
        return {}


def add_lists(router: APIRouter, service: StudioService) -> None:
    """Models, LoRAs, samplers, styles, and the default model."""

    @router.get("/sdapi/v1/options")
    def get_options() -> dict[str, Any]:
        name = service.default_model or next(iter(service.models.models()))
        return {"sd_model_checkpoint": name, "samples_format": "png", "CLIP_stop_at_last_layers": 1}

    @router.post("/sdapi/v1/options")
    def set_options(body: Settings) -> None:
        """Change the model for clients that do not name one."""
        if body.sd_model_checkpoint is not None:
            service.models.model(body.sd_model_checkpoint)
            service.default_model = body.sd_model_checkpoint

    @router.get("/sdapi/v1/samplers")
    def samplers() -> list[dict[str, Any]]:
        return [{"name": named.shown, "aliases": [key], "options": {}} for key, named in schedulers.SCHEDULERS.items()]

    @router.get("/sdapi/v1/schedulers")
    def schedules() -> list[dict[str, Any]]:
        return [{"name": name.lower(), "label": name, "aliases": None} for name in SCHEDULES]

    @router.get("/sdapi/v1/sd-models")
    def models() -> list[dict[str, Any]]:
        return [{"title": name, "model_name": name, "hash": None, "sha256": None, "filename": path, "config": None}
                for name, path in service.models.models().items()]  # fmt: skip

    @router.get("/sdapi/v1/loras")
    def loras() -> list[dict[str, Any]]:
        files = service.models.lora_files()
        return [{"name": name, "alias": name, "path": path, "metadata": {}} for name, path in files.items()]

    @router.get("/sdapi/v1/prompt-styles")
    def prompt_styles() -> list[dict[str, Any]]:
        return [{"name": style.name, "prompt": style.prompt, "negative_prompt": style.negative}
                for style in service.styles.values()]  # fmt: skip


def request_fields(body: TextToImage) -> dict[str, Any]:
    """As fields of GenerateOptions. Raises InputError for an unknown sampler."""
    return {
        "prompt": body.prompt, "negative_prompt": body.negative_prompt, "seed": body.seed, "steps": body.steps,
        "guidance_scale": body.cfg_scale, "width": body.width, "height": body.height,
        "num_images": body.batch_size * body.n_iter, "style": body.styles[0] if body.styles else None,
        "scheduler": sampler_key(body), "model": body.override_settings.sd_model_checkpoint,
    }  # fmt: skip


def sampler_key(body: TextToImage) -> str | None:
    """Sampler and schedule as one name; None for the model's own."""
    name = body.sampler_name or body.sampler_index
    if not name or name == "Automatic":
        return None
    karras = (body.scheduler or "").lower() == "karras" and not name.endswith("Karras")
    try:
        return schedulers.canonical_name(f"{name} Karras" if karras else name)
    except InputError as error:
        raise InputError(f"unknown sampler {name!r}", where=SAMPLER, allowed=error.allowed) from None


def txt2img_response(body: TextToImage, job: Job, gallery: Any) -> dict[str, Any]:
    """The files exactly as in outputs/, and how they were made."""
    paths = [image.path for image in job.images if not image.is_base]
    images = [base64.b64encode(path.read_bytes()).decode() for path in paths] if body.send_images else []
    info = gallery.a1111_info(paths) | {"state": job.state}
    if paths:
        info["files"] = [path.as_posix() for path in paths]
    return {"images": images, "parameters": body.model_dump(), "info": json.dumps(info)}


def progress_response(job: Job | None, waiting: int, skip_image: bool) -> dict[str, Any]:
    """Progress of the running job; zeros if there is none."""
    progress, steps = (job.progress, job.steps) if job else (0.0, 0)
    state = {
        "skipped": False, "interrupted": bool(job and job.stop.is_set()), "stopping_generation": False,
        "job": f"job {job.id}" if job else "", "job_count": (job is not None) + waiting,
        "job_timestamp": "0", "job_no": 0, "sampling_step": round(progress * steps), "sampling_steps": steps,
    }  # fmt: skip
    return {
        "progress": round(progress, 4), "eta_relative": round(job.seconds_left, 2) if job else 0.0, "state": state,
        "current_image": None if job is None or skip_image else newest_preview(job), "textinfo": None,
        "current_task": None,
    }  # fmt: skip


def newest_preview(job: Job) -> str | None:
    """As a PNG in base64."""
    previews = list(job.previews.values())
    if not previews:
        return None
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(previews[-1])) as image:
        image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def decode_image(body: ImageBody) -> bytes:
    """Raises InputError."""
    text = body.image.partition(",")[2] if body.image.startswith("data:") else body.image
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"is not a PNG in base64 ({error})", where="image") from None


async def input_error(request: Request, error: Exception) -> JSONResponse:
    """An InputError in A1111's format."""
    return error_response(str(error), 404 if getattr(error, "where", None) == SAMPLER else 422)


async def validation_error(request: Request, error: Exception) -> JSONResponse:
    """A malformed body, without repeating its content: that may not be valid text."""
    details = error.errors() if isinstance(error, RequestValidationError) else []
    return error_response("; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in details), 422)


def error_response(text: str, status: int) -> JSONResponse:
    text = text.encode("utf-8", "replace").decode()
    return JSONResponse({"error": "InputError", "detail": text, "body": "", "errors": text}, status_code=status)
