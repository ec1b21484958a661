"""The page: a header, the fields, the stage beside them, and the gallery; laid out with Gradio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infer.studios import controls, showing, theme
from infer.studios.acts import Acts
from infer.studios.widgets import gr

if TYPE_CHECKING:
    from fastapi import FastAPI

    from infer.studios.workshop import Workshop

PLACES = ("Draw", "Scribble", "Compare", "Gallery")
MODES = ("Simple", "Expert")
LISTEN = "window.studio.listen(element, (detail) => trigger('select', detail))"


def mounted(app: FastAPI, workshop: Workshop) -> FastAPI:
    """The page at / of an application."""
    return gr.mount_gradio_app(
        app, blocks(workshop), "/", server_name=workshop.options.host, server_port=workshop.options.port,
        footer_links=[], run_history=False, ssr_mode=False, enable_monitoring=False, mcp_server=False, pwa=False,
        max_file_size="32mb", theme=theme.theme(), css=theme.css(), head=theme.head(), show_error=True,
        app_kwargs={"docs_url": None, "redoc_url": None},
    )  # fmt: skip


def blocks(workshop: Workshop) -> gr.Blocks:
    """The page's parts, and what happens when they are used."""
    acts = Acts(workshop)
    with gr.Blocks(title="Atelier", analytics_enabled=False, fill_width=True) as page:
        with gr.Row(elem_id="header"):
            gr.HTML("<h1>Atelier<b>.</b></h1>", elem_id="brand")
            place = gr.Radio(list(PLACES), value="Draw", show_label=False, container=False, elem_id="place")
            mode = gr.Radio(list(MODES), value="Simple", show_label=False, container=False, elem_id="mode")
        with gr.Row(elem_id="work"):
            with gr.Column(elem_id="controls"):
                fields, draw, stop = controls.build(workshop, place)
            with gr.Column(elem_id="side"):
                gr.HTML(about_comparing(), elem_id="about-compare")
                stage = gr.HTML(showing.empty(), elem_id="stage", js_on_load=LISTEN)
        with gr.Column(elem_id="gallery"):
            asked = gr.Textbox(
                show_label=False, placeholder="Find a picture: a blue cat   or   steps:>20 star:", elem_id="search",
                container=False, max_length=500,
            )  # fmt: skip
            found = gr.HTML(showing.gallery([], ""), elem_id="found", js_on_load=LISTEN)
        order = gr.Textbox(visible="hidden")
        drawing(acts, fields, (draw, stop), stage, order)
        looking(acts, fields, (place, mode), asked, (stage, found))
        page.load(None, None, [mode], js="() => window.studio.start()")
        page.load(workshop.begin, None, None, queue=False, show_progress="hidden", api_visibility="private")
    page.queue(default_concurrency_limit=None, max_size=None, api_open=False)
    return page


def about_comparing() -> str:
    return '<p class="note">The same words and seed, drawn by the base and by the tuned model. Move the handle.</p>'


def drawing(acts: Acts, fields: controls.Controls, buttons: tuple[Any, Any], stage: Any, order: Any) -> None:
    """Draw by the button or Enter; Stop; and what the fields do to one another."""
    draw, stop = buttons
    silent: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    outputs = [stage, draw, stop, order, fields.seed]
    with_drawing = f"(...values) => window.studio.inputs(values.slice(0, {len(controls.NAMES)}))"  # outputs come behind
    for trigger in (draw.click, fields.prompt.submit):
        trigger(acts.draw, fields.all(), outputs, js=with_drawing, **silent)
    stop.click(acts.stop, [order], None, queue=False, **silent)
    fields.seed.input(None, None, [fields.locked], js="() => true", **silent)
    fields.model.input(acts.guidance, [fields.model], [fields.guidance], queue=False, **silent)


def looking(
    acts: Acts, fields: controls.Controls, switches: tuple[Any, Any], asked: Any, shown: tuple[Any, Any]
) -> None:
    """The places of the page, the gallery, and the settings of its pictures."""
    place, mode = switches
    stage, found = shown
    silent: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    place.change(None, [place], None, js="(value) => { window.studio.place(value) }", **silent)
    last: dict[str, Any] = {**silent, "trigger_mode": "always_last"}  # who goes on quickly is not left behind
    place.input(acts.open, [place, asked], [found], **last)
    mode.change(None, [mode], None, js="(value) => { window.studio.mode(value) }", **silent)
    asked.submit(acts.search, [asked], [found], **last)
    for html in (stage, found):
        html.select(acts.press, None, fields.all()[:-1], trigger_mode="multiple", **silent)
