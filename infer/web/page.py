"""The page, laid out with Gradio: a header, the fields, the stage beside them, and the gallery."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from infer.web import components, controls
from infer.web.callbacks import Callbacks
from infer.web.controls import Controls
from infer.web.service import StudioService

HERE = Path(__file__).parent
PLACES = ("Generate", "Scribble", "Compare", "Gallery")
SILENT: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
LISTEN = "window.studio.listen(element, (detail) => trigger('select', detail))"
INPUTS = f"(...values) => window.studio.inputs(values.slice(0, {len(controls.NAMES)}))"  # outputs follow the inputs
ABOUT_COMPARING = '<p class="note">The same prompt and seed with the base and the tuned model. Move the handle.</p>'


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
                fields, generate, stop = controls.build(service, place)
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
