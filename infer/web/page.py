"""The page, laid out with Gradio: a header, the fields, the stage beside them, the gallery; and its event handlers."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import io
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from PIL import Image

from data.atomic_io import write_atomic
from data.errors import InputError
from infer import config
from infer.config import OUTPUTS
from infer.web import components
from infer.web.components import NAMES, Controls
from infer.web.queue import Job
from infer.web.service import MAX_IMAGES, StudioService, page_message

HERE = Path(__file__).parent
PLACES = ("Generate", "Scribble", "Compare", "Gallery")
SILENT: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
LISTEN = "window.studio.listen(element, (detail) => trigger('select', detail))"
INPUTS = f"(...values) => window.studio.inputs(values.slice(0, {len(NAMES)}))"  # outputs follow the inputs
ABOUT_COMPARING = '<p class="note">The same prompt and seed with the base and the tuned model. Move the handle.</p>'
REFRESH = 0.15  # seconds between two updates of a job
SCRIBBLES = OUTPUTS / ".scribbles"  # hidden, so they are not part of the gallery
MAX_SCRIBBLE = 2048  # pixels a side
MAX_SEED = config.MAX_SEED - MAX_IMAGES


def mount(app: FastAPI, service: StudioService) -> FastAPI:
    """Add the page to an application, at /."""
    return gr.mount_gradio_app(
        app, blocks(service), "/", server_name=service.options.host, server_port=service.options.port,
        footer_links=[], run_history=False, ssr_mode=False, enable_monitoring=False, mcp_server=False, pwa=False,
        max_file_size="32mb", theme=theme(), css=(HERE / "page.css").read_text(encoding="utf-8"), show_error=True,
        head=f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>",
        app_kwargs={"docs_url": None, "redoc_url": None},
    )  # fmt: skip


def blocks(service: StudioService) -> gr.Blocks:
    callbacks = Callbacks(service)
    with gr.Blocks(title="Atelier", analytics_enabled=False, fill_width=True) as page:
        with gr.Row(elem_id="header"):
            gr.HTML("<h1>Atelier<b>.</b></h1>", elem_id="brand")
            place = gr.Radio(list(PLACES), value=PLACES[0], show_label=False, container=False, elem_id="place")
            mode = gr.Radio(["Simple", "Expert"], value="Simple", show_label=False, container=False, elem_id="mode")
        with gr.Row(elem_id="work"):
            with gr.Column(elem_id="controls"):
                fields, generate, stop = components.build(service, place)
            with gr.Column(elem_id="side"):
                gr.HTML(ABOUT_COMPARING, elem_id="about-compare")
                stage = gr.HTML(components.empty(), elem_id="stage", js_on_load=LISTEN)
        with gr.Column(elem_id="gallery"):
            query = gr.Textbox(
                show_label=False, placeholder="Find an image: a blue cat   or   steps:>20 star:", elem_id="search",
                container=False, max_length=500,
            )  # fmt: skip
            found = gr.HTML(components.gallery([], ""), elem_id="found", js_on_load=LISTEN)
        connect_generation(callbacks, fields, generate, stop, stage)
        connect_gallery(callbacks, fields, query, found, stage)
        place.change(None, [place], None, js="(value) => { window.studio.place(value) }", **SILENT)
        mode.change(None, [mode], None, js="(value) => { window.studio.mode(value) }", **SILENT)
        page.load(None, None, [mode], js="() => window.studio.start()")
        page.load(service.warm_up, None, None, queue=False, **SILENT)
    page.queue(default_concurrency_limit=None, max_size=None, api_open=False)
    return page


def connect_generation(callbacks: Callbacks, fields: Controls, generate: Any, stop: Any, stage: Any) -> None:
    """Generate by the button or Enter; Stop; and fields that change each other."""
    key = gr.Textbox(visible="hidden")
    outputs = [stage, generate, stop, key, fields["seed"]]
    for trigger in (generate.click, fields["prompt"].submit):
        trigger(callbacks.generate, list(fields.values()), outputs, js=INPUTS, **SILENT)
    stop.click(callbacks.stop, [key], None, queue=False, **SILENT)
    fields["seed"].input(None, None, [fields["locked"]], js="() => true", **SILENT)


def connect_gallery(callbacks: Callbacks, fields: Controls, query: Any, found: Any, stage: Any) -> None:
    latest: dict[str, Any] = {**SILENT, "trigger_mode": "always_last"}  # the last of several quick changes counts
    fields["place"].input(callbacks.open, [fields["place"], query], [found], **latest)
    query.submit(callbacks.search, [query], [found], **latest)
    for html in (stage, found):
        html.select(callbacks.press, None, list(fields.values())[:-1], trigger_mode="multiple", **SILENT)


def theme() -> gr.themes.Base:
    """Gradio's variables, light and dark, in terms of those of page.css."""
    look = {
        "body_background_fill": "paper", "body_text_color": "ink", "body_text_color_subdued": "faint",
        "background_fill_primary": "sheet", "background_fill_secondary": "paper", "block_title_text_color": "ink",
        "block_info_text_color": "faint", "border_color_primary": "line", "border_color_accent": "accent",
        "color_accent": "accent", "color_accent_soft": "wash", "input_background_fill": "field",
        "input_background_fill_focus": "field", "input_border_color": "line", "input_border_color_focus": "accent",
        "input_placeholder_color": "faint", "button_primary_background_fill": "accent",
        "button_primary_background_fill_hover": "accent-deep", "button_primary_text_color": "on-accent",
        "button_secondary_background_fill": "sheet", "button_secondary_text_color": "ink",
        "button_secondary_background_fill_hover": "wash", "button_secondary_border_color": "line",
        "slider_color": "accent", "checkbox_background_color": "field", "checkbox_background_color_selected": "accent",
        "checkbox_border_color": "line", "checkbox_label_background_fill_selected": "wash",
        "checkbox_label_background_fill_hover": "wash", "checkbox_label_text_color": "ink",
        "checkbox_label_text_color_selected": "ink", "checkbox_label_border_color": "line",
    }  # fmt: skip
    values = {name: f"var(--{variable})" for name, variable in look.items()}
    values |= dict.fromkeys(("block_border_width", "block_padding"), "0px")
    values |= dict.fromkeys(("block_shadow", "input_shadow", "input_shadow_focus"), "none")
    transparent = ("block_background_fill", "block_label_background_fill", "button_primary_border_color",
                   "panel_background_fill", "checkbox_label_background_fill")  # fmt: skip
    values |= dict.fromkeys(transparent, "transparent")
    values |= {"block_title_text_weight": "600", "input_radius": "10px", "button_border_width": "1px"}
    values |= {f"{name}_dark": value for name, value in values.items()}
    font = ("ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")  # on every machine
    base = gr.themes.Base(font=font, font_mono=("ui-monospace", "SFMono-Regular", "Menlo", "monospace"))
    known = gr.themes.Base.set.__code__.co_varnames
    return base.set(**{name: value for name, value in values.items() if name in known})


# ---- event handlers


@dataclass(frozen=True)
class Callbacks:
    """Event handlers. An InputError is shown on the page."""

    service: StudioService

    async def generate(self, *inputs: Any) -> AsyncGenerator[tuple[Any, ...], None]:
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
        request = components.to_request(values) | {"seed": parse_seed(values)}
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

        try:
            path, gallery = self.service.image_path(str(data["picture"])), self.service.backend().gallery
            if data["act"] == "star":
                gallery.star(path, bool(data["star"]))
                return skipped
            fields = components.from_settings(gallery.settings(path))
            return tuple(fields[name] for name in NAMES[:-1])
        except InputError as error:  # shown in a corner of the page
            gr.Warning(page_message(error), title="That did not work")
            return skipped


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
