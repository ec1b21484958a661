"""What happens when somebody presses something on the page."""

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

from PIL import Image

from data.errors import InputError
from data.files import write_atomic
from infer.config import HIGHEST_SEED
from infer.studios import controls, showing
from infer.studios.asking import MOST_PICTURES, told
from infer.studios.controls import NAMES, SHAPES, STEPS
from infer.studios.desk import Order
from infer.studios.widgets import gr
from infer.studios.workshop import OUTPUTS, Workshop

PAUSE = 0.15  # seconds between two looks at an order
SCRIBBLES = OUTPUTS / ".scribbles"  # hidden: they are no pictures of the gallery
LARGEST_SIDE = 2048  # pixels of a scribble


@dataclass(frozen=True)
class Acts:
    """The page's handlers. Every InputError becomes words on the page."""

    workshop: Workshop

    async def draw(self, *given: Any) -> AsyncIterator[tuple[Any, ...]]:
        """Stage, Draw, Stop, the order's key and the seed, again and again until the order is over."""
        values = dict(zip(NAMES, given, strict=True))
        try:
            order = await asyncio.to_thread(self.take, values)
        except InputError as error:
            yield showing.wrong(told(error)), gr.skip(), gr.skip(), "", gr.skip()
            return
        yield self.seen(order), gr.update(visible=False), gr.update(visible=True), order.key, gr.skip()
        shown = ""
        while not order.over.is_set():
            await asyncio.sleep(PAUSE)
            now = self.seen(order)
            if now != shown:
                yield now, gr.skip(), gr.skip(), gr.skip(), gr.skip()
            shown = now
        seed = str(order.done[0].seed) if order.done else gr.skip()
        yield self.seen(order), gr.update(visible=True), gr.update(visible=False), "", seed

    def take(self, values: dict[str, Any]) -> Order:
        """Put what the fields say into the queue. Raises InputError."""
        wanted = controls.wanted(values) | {"seed": seed_of(values)}
        if not str(wanted["prompt"]).strip():
            raise InputError("say what you would like to see", where="--prompt")
        if values["place"] == "Compare" and not self.workshop.shelf.is_tuned(values["model"]) and not wanted["loras"]:
            fix = "Choose a finished run, or a LoRA, in the expert settings; train/finetune.py makes one."
            raise InputError("this model is itself a base, there is nothing to compare it with", fix=fix)
        if values["place"] == "Scribble":
            wanted |= {"scribble": kept_scribble(values["scribble"]), "strength": float(values["freedom"])}
        return self.workshop.take(wanted)

    def seen(self, order: Order) -> str:
        """An order as the stage shows it."""
        if order.state == "failed":
            return showing.wrong(told(InputError(order.error)))
        if order.over.is_set():
            return showing.finished(order)
        if order.state == "waiting" or not order.calls:
            return showing.waiting(order, self.workshop.desk.ahead(order))
        return showing.drawing(order)

    def stop(self, key: str) -> None:
        order = self.workshop.desk.known.get(key)
        if order is not None:
            self.workshop.desk.withdraw(order)

    def guidance(self, model: str) -> Any:
        """What suits a model that was just chosen."""
        return self.spoken(lambda: self.workshop.guidance(model), gr.skip())

    # ---- gallery

    def search(self, text: str) -> str:
        try:
            return showing.gallery(self.workshop.search(text or ""), text or "")
        except InputError as error:
            return showing.wrong(told(error))

    def open(self, place: str, text: str) -> Any:
        """The gallery, when one goes there."""
        return self.search(text) if place == "Gallery" else gr.skip()

    def press(self, event: gr.EventData) -> tuple[Any, ...]:
        """A button of our own HTML: use the settings of a picture, or mark it. Place and every field, as outputs."""
        about: dict[str, Any] = event._data or {}
        skipped = (gr.skip(),) * (len(NAMES) - 1)
        if about.get("act") == "star":
            self.spoken(lambda: self.workshop.star(str(about["picture"]), bool(about["star"])), None)
        if about.get("act") != "use":
            return skipped
        found = self.spoken(lambda: self.workshop.settings(str(about["picture"])), None)
        return skipped if found is None else tuple(fields_of(found)[name] for name in NAMES[:-1])

    def spoken(self, do: Callable[[], Any], otherwise: Any) -> Any:
        """What it returns; an InputError is said in a corner of the page."""
        try:
            return do()
        except InputError as error:
            gr.Warning(told(error), title="That did not work")
            return otherwise


def seed_of(values: dict[str, Any]) -> int:
    """The seed to keep, else -1 for a new one. Raises InputError."""
    text = str(values["seed"] or "").strip()
    if not values["locked"] or not text:
        return -1
    highest = HIGHEST_SEED - MOST_PICTURES
    if not text.isdecimal() or len(text) > len(str(highest)) or int(text) > highest:
        raise InputError(f"{text[:40]!r} is no seed", where="--seed", allowed=f"a number from 0 to {highest}")
    return int(text)


def kept_scribble(data: str) -> Path:
    """A drawing from the page as a file of its own, named by its content. Raises InputError."""
    if not data:
        raise InputError("draw something on the white square first", where="--scribble")
    try:
        content = base64.b64decode(data.partition(",")[2], validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            if max(picture.size) > LARGEST_SIDE:
                raise InputError(f"is larger than {LARGEST_SIDE} pixels", where="--scribble")
            picture.load()
    except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"could not be read ({error})", where="--scribble") from None
    path = SCRIBBLES / f"{hashlib.sha256(content).hexdigest()[:16]}.png"
    if not path.is_file():
        write_atomic(path, content)
    return path


def fields_of(found: dict[str, Any]) -> dict[str, Any]:
    """Settings of a picture as values of the page's fields."""
    return {
        "place": "Draw", "prompt": found["prompt"], "style": "", "shape": shape_of(found), "count": 1,
        "freedom": gr.skip(), "negative": found.get("negative_prompt", ""), "steps": found.get("steps", STEPS),
        "guidance": found.get("guidance_scale", gr.skip()), "seed": str(found.get("seed", "")),
        "locked": "seed" in found, "model": found.get("model", gr.skip()), "lora": found.get("lora", ""),
        "weight": found.get("weight", 1.0), "sampler": found.get("scheduler") or "",
        "width": 0 if found["shape"] else found.get("width", 0),
        "height": 0 if found["shape"] else found.get("height", 0),
    }  # fmt: skip


def shape_of(found: dict[str, Any]) -> str | None:
    return found["shape"] if found["shape"] in SHAPES.values() else None
