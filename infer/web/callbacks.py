"""The page's event handlers."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import io
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from data.atomic_io import write_atomic
from data.errors import InputError
from infer.config import MAX_SEED, OUTPUTS
from infer.web import components, controls
from infer.web.controls import NAMES
from infer.web.queue import Job
from infer.web.service import StudioService
from infer.web.validation import MAX_IMAGES, page_message

REFRESH = 0.15  # seconds between two updates of a job
SCRIBBLES = OUTPUTS / ".scribbles"  # hidden, so they are not part of the gallery
MAX_SCRIBBLE = 2048  # pixels a side
MAX_SEED = MAX_SEED - MAX_IMAGES


@dataclass(frozen=True)
class Callbacks:
    """Event handlers. An InputError is shown on the page."""

    service: StudioService

    async def generate(self, *inputs: Any) -> AsyncIterator[tuple[Any, ...]]:
        """Yields stage, Generate, Stop, the job's key and the seed until the job is finished."""
        values = dict(zip(NAMES, inputs, strict=True))
        try:
            job = await asyncio.to_thread(self.submit, values)
        except InputError as error:
            yield components.error(page_message(error)), gr.skip(), gr.skip(), "", gr.skip()
            return
        yield self.stage(job), gr.update(visible=False), gr.update(visible=True), job.key, gr.skip()
        shown = ""
        while not job.finished.is_set():
            await asyncio.sleep(REFRESH)
            now = self.stage(job)
            if now != shown:
                yield now, gr.skip(), gr.skip(), gr.skip(), gr.skip()
            shown = now
        seed = str(job.images[0].seed) if job.images else gr.skip()
        yield self.stage(job), gr.update(visible=True), gr.update(visible=False), "", seed

    def submit(self, values: dict[str, Any]) -> Job:
        """Queue the job that the fields describe. Raises InputError."""
        request = controls.to_request(values) | {"seed": parse_seed(values)}
        if not str(request["prompt"]).strip():
            raise InputError("describe what you would like to see", where="--prompt")
        tuned = request["loras"] or self.service.models.is_tuned(values["model"])
        if values["place"] == "Compare" and not tuned:
            fix = "Choose a finished run or a LoRA in the expert settings; train/finetune.py makes one."
            raise InputError("this is a base model, so there is nothing to compare it with", fix=fix)
        if values["place"] == "Scribble":
            request |= {"scribble": save_scribble(values["scribble"]), "strength": float(values["freedom"])}
        return self.service.submit(request)

    def stage(self, job: Job) -> str:
        """HTML of a job's state."""
        if job.state == "failed":
            return components.error(page_message(InputError(job.error)))
        if job.finished.is_set():
            return components.finished(job)
        if job.state == "waiting" or not job.calls:
            return components.waiting(self.service.queue.position(job))
        return components.running(job)

    def stop(self, key: str) -> None:
        job = self.service.queue.jobs.get(key)
        if job is not None:
            self.service.queue.stop(job)

    def search(self, text: str) -> str:
        text = text or ""
        try:
            return components.gallery(self.service.backend().gallery.search(text), text)
        except InputError as error:
            return components.error(page_message(error))

    def open(self, place: str, text: str) -> Any:
        """Fill the gallery when its tab is opened."""
        return self.search(text) if place == "Gallery" else gr.skip()

    def press(self, event: gr.EventData) -> tuple[Any, ...]:
        """A button in our own HTML: star an image, or copy its settings into the fields (all but the scribble)."""
        data: dict[str, Any] = event._data or {}
        skipped = (gr.skip(),) * (len(NAMES) - 1)
        if data.get("act") not in ("star", "use"):
            return skipped

        def act() -> tuple[Any, ...]:
            path, gallery = self.service.image_path(str(data["picture"])), self.service.backend().gallery
            if data["act"] == "star":
                gallery.star(path, bool(data["star"]))
                return skipped
            fields = controls.from_settings(gallery.settings(path))
            return tuple(fields[name] for name in NAMES[:-1])

        return self._or_warn(act, skipped)

    def _or_warn(self, action: Callable[[], Any], default: Any) -> Any:
        """Returns the action's result; an InputError is shown in a corner of the page."""
        try:
            return action()
        except InputError as error:
            gr.Warning(page_message(error), title="That did not work")
            return default


def parse_seed(values: dict[str, Any]) -> int:
    """The seed to keep, or -1 for a random one. Raises InputError."""
    text = str(values["seed"] or "").strip()
    if not values["locked"] or not text:
        return -1
    if not text.isdecimal() or len(text) > len(str(MAX_SEED)) or int(text) > MAX_SEED:
        raise InputError(f"invalid seed {text[:40]!r}", where="--seed", allowed=f"a number from 0 to {MAX_SEED}")
    return int(text)


def save_scribble(data: str) -> Path:
    """Save the canvas (a data URL) as a file named by its content. Raises InputError."""
    if not data:
        raise InputError("draw something on the white square first", where="--scribble")
    try:
        content = base64.b64decode(data.partition(",")[2], validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if max(image.size) > MAX_SCRIBBLE:
                raise InputError(f"is larger than {MAX_SCRIBBLE} pixels", where="--scribble")
            image.load()
    except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot be read ({error})", where="--scribble") from None
    path = SCRIBBLES / f"{hashlib.sha256(content).hexdigest()[:16]}.png"
    if not path.is_file():
        write_atomic(path, content)
    return path
