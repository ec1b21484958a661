"""AUTOMATIC1111's HTTP interface, as far as pictures from words go, so that clients made for it work here.

Source of the fields: AUTOMATIC1111/stable-diffusion-webui, modules/api/api.py and modules/api/models.py.
"""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from data.errors import InputError
from infer import schedulers
from infer.studios import api_fields
from infer.studios.api_fields import SAMPLER, Switches, TextToImage, Uploaded
from infer.studios.desk import Order
from infer.studios.waiting import finished
from infer.studios.workshop import Workshop


def routes(workshop: Workshop) -> APIRouter:
    """What draws and stops, what there is to draw with, and what pictures tell."""
    router = APIRouter()
    drawn_pictures(router, workshop)
    what_there_is(router, workshop)

    @router.post("/sdapi/v1/png-info")
    @router.post("/png-info")
    def png_info(asked: Uploaded) -> dict[str, Any]:
        return told_of(asked.image)

    return router


def drawn_pictures(router: APIRouter, workshop: Workshop) -> None:
    """What draws, says how far it is, and stops it."""

    @router.post("/sdapi/v1/txt2img")
    async def txt2img(asked: TextToImage) -> dict[str, Any]:
        """Waits until the pictures are there. They are drawn even if the client leaves."""
        order = await run_in_threadpool(lambda: workshop.take(api_fields.values(asked, workshop.shelf)))
        await finished(order)
        if order.state == "failed":
            raise InputError(order.error)
        return await run_in_threadpool(api_fields.answer, asked, order)

    @router.get("/sdapi/v1/progress")
    def progress(skip_current_image: bool = False) -> dict[str, Any]:
        return api_fields.progress(workshop.desk.current, len(workshop.desk.waiting), skip_current_image)

    @router.post("/sdapi/v1/interrupt")
    def interrupt() -> dict[str, Any]:
        """Stop what is being drawn; what waits is drawn all the same."""
        order: Order | None = workshop.desk.current
        if order is not None:
            workshop.desk.withdraw(order)
        return {}


def what_there_is(router: APIRouter, workshop: Workshop) -> None:
    """Models, samplers, styles, and which model is drawn with."""

    @router.get("/sdapi/v1/options")
    def options() -> dict[str, Any]:
        name = workshop.chosen or next(iter(workshop.shelf.models()))
        return {"sd_model_checkpoint": name, "samples_format": "png", "CLIP_stop_at_last_layers": 1}

    @router.post("/sdapi/v1/options")
    def switch(asked: Switches) -> None:
        """Draw with another model from now on, for clients that do not name one."""
        if asked.sd_model_checkpoint is not None:
            workshop.shelf.model(asked.sd_model_checkpoint)
            workshop.chosen = asked.sd_model_checkpoint

    @router.get("/sdapi/v1/samplers")
    def samplers() -> list[dict[str, Any]]:
        return [{"name": named.shown, "aliases": [key], "options": {}} for key, named in schedulers.NAMES.items()]

    @router.get("/sdapi/v1/schedulers")
    def schedules() -> list[dict[str, Any]]:
        return [{"name": name.lower(), "label": name, "aliases": None} for name in api_fields.SCHEDULES]

    @router.get("/sdapi/v1/sd-models")
    def models() -> list[dict[str, Any]]:
        return [api_fields.model(name, path) for name, path in workshop.shelf.models().items()]

    @router.get("/sdapi/v1/loras")
    def loras() -> list[dict[str, Any]]:
        return [{"name": name, "alias": name, "path": path, "metadata": {}} for name, path in files().items()]

    def files() -> dict[str, str]:
        return workshop.shelf.files()

    @router.get("/sdapi/v1/prompt-styles")
    def prompt_styles() -> list[dict[str, Any]]:
        found = workshop.styles.values()
        return [{"name": each.name, "prompt": each.prompt, "negative_prompt": each.negative} for each in found]


def told_of(text: str) -> dict[str, Any]:
    """How a picture was made, out of its base64. Raises InputError."""
    from infer import metadata

    try:
        content = base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"is no PNG in base64 ({error})", where="image") from None
    texts = metadata.texts(io.BytesIO(content), "image")
    info = texts.get(metadata.A1111_KEY, "")
    return {"info": info, "items": texts, "parameters": metadata.parse_parameters(info) if info else {}}


async def refused(request: Request, error: Exception) -> JSONResponse:
    """An InputError as A1111 reports what it cannot do."""
    return told(str(error), 404 if getattr(error, "where", None) == SAMPLER else 422)


async def misread(request: Request, error: Exception) -> JSONResponse:
    """A body that is no such question, without what it said: that may be no text at all."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    return told("; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in found), 422)


def told(text: str, status: int) -> JSONResponse:
    text = text.encode("utf-8", "replace").decode()
    return JSONResponse({"error": "InputError", "detail": text, "body": "", "errors": text}, status_code=status)
