"""The fields on the left: few for a beginner, all of generate.py's that change a picture for an expert."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from infer import schedulers
from infer.config import HIGHEST_WEIGHT
from infer.studios import asking, showing
from infer.studios.widgets import gr
from infer.studios.workshop import Workshop

SHAPES = {"Square": "1:1", "Landscape": "3:2", "Portrait": "2:3", "Wide": "16:9", "Tall": "9:16"}
COUNTS = (1, 2, 4, 8)
STEPS = 30
OWN = "the model's own"
ANYTHING = ("No style", "")
SCRIBBLE = """
<canvas width="512" height="512" tabindex="0" role="img"
  aria-label="Draw here with the mouse, a pen or a finger; Ctrl+Z takes a line back"></canvas>
<div class="pens">
<button type="button" data-pen="undo">Undo</button><button type="button" data-pen="clear">Clear</button>
<label>Pen <input type="range" min="1" max="6" value="2" aria-label="Width of the pen"></label></div>
"""


@dataclass(frozen=True)
class Controls:
    """Every field whose value goes to the server with an order, in that order."""

    place: Any
    prompt: Any
    style: Any
    shape: Any
    count: Any
    freedom: Any
    negative: Any
    steps: Any
    guidance: Any
    seed: Any
    locked: Any
    model: Any
    lora: Any
    weight: Any
    sampler: Any
    width: Any
    height: Any
    scribble: Any

    def all(self) -> list[Any]:
        return [getattr(self, field.name) for field in fields(self)]


NAMES = tuple(field.name for field in fields(Controls))


def build(workshop: Workshop, place: Any) -> tuple[Controls, Any, Any]:
    """The fields, and the buttons Draw and Stop."""
    gr.HTML(SCRIBBLE, elem_id="scribble", js_on_load="window.studio.scribble.begin(element)")
    simple = beginner(workshop)
    draw = gr.Button("Draw", variant="primary", elem_id="draw")
    stop = gr.Button("Stop", elem_id="stop", visible=False)
    gr.HTML('<p class="hint keys">or press <kbd>Enter</kbd>; <kbd>Esc</kbd> stops</p>')
    with gr.Column(elem_id="expert"):
        expert = for_experts(workshop)
    scribble = gr.Textbox(visible="hidden")
    return Controls(place=place, scribble=scribble, **simple, **expert), draw, stop


def beginner(workshop: Workshop) -> dict[str, Any]:
    """What everybody sees."""
    prompt = gr.Textbox(
        label="What would you like to see?", placeholder=showing.IDEAS[0], lines=1, max_lines=5, autofocus=True,
        max_length=asking.MOST_LETTERS, elem_id="prompt",
    )  # fmt: skip
    ideas = "".join(f'<button type="button" data-idea="{idea}">{idea}</button>' for idea in showing.IDEAS)
    gr.HTML(f'<div class="ideas">{ideas}</div>')
    freedom = gr.Slider(
        0.2, 1.0, 0.7, step=0.05, label="How freely", info="Little keeps to your lines, much makes more of them.",
        elem_id="freedom", buttons=[],
    )  # fmt: skip
    styles = [ANYTHING, *((name.replace("-", " "), name) for name in workshop.styles)]
    return {
        "prompt": prompt,
        "style": gr.Dropdown(styles, value="", label="Style", elem_id="style"),
        "shape": gr.Radio(list(SHAPES.items()), value="1:1", label="Shape", elem_id="shape"),
        "count": gr.Radio(list(COUNTS), value=1, label="How many", elem_id="count"),
        "freedom": freedom,
    }


def for_experts(workshop: Workshop) -> dict[str, Any]:
    """What a beginner need not see."""
    titles = list(workshop.shelf.titles().items())
    first = titles[0][1]
    found: dict[str, Any] = {
        "negative": gr.Textbox(
            label="Without", info="Negative prompt: things to steer away from, as in: blurry, text", elem_id="negative"
        ),
        "model": gr.Dropdown(titles, value=first, label="Model", elem_id="model"),
    }
    with gr.Row():
        found["lora"] = gr.Dropdown([("none", ""), *workshop.shelf.files()], value="", label="LoRA", elem_id="lora")
        found["weight"] = gr.Number(
            1.0, minimum=-HIGHEST_WEIGHT, maximum=HIGHEST_WEIGHT, step=0.1, label="at weight", elem_id="weight"
        )
    found["steps"] = gr.Slider(1, asking.MOST_STEPS, STEPS, step=1, label="Steps", elem_id="steps", buttons=[])
    found["guidance"] = gr.Slider(
        0, asking.HIGHEST_GUIDANCE, workshop.guidance(first), step=0.5, label="Guidance",
        info="How strictly the words are followed.", elem_id="guidance", buttons=[],
    )  # fmt: skip
    with gr.Row():
        found["seed"] = gr.Textbox("", label="Seed", placeholder="a new one each time", elem_id="seed")
        found["locked"] = gr.Checkbox(False, label="Keep this seed", elem_id="locked")
    samplers = [(OWN, ""), *((named.shown, key) for key, named in schedulers.NAMES.items())]
    found["sampler"] = gr.Dropdown(samplers, value="", label="Sampler", elem_id="sampler")
    with gr.Row():
        found["width"] = gr.Number(0, minimum=0, maximum=4096, precision=0, label="Width", info="0: by the shape")
        found["height"] = gr.Number(0, minimum=0, maximum=4096, precision=0, label="Height", info="0: by the shape")
    return found


def wanted(values: dict[str, Any]) -> dict[str, Any]:
    """The fields' values as fields of GenerateOptions; what is wrong with them is found where orders are taken."""
    own = bool(values["width"] or values["height"])
    shape = "" if own or values["shape"] in (None, "1:1") else values["shape"]
    return {
        "prompt": values["prompt"] or "", "negative_prompt": values["negative"] or "", "style": values["style"] or None,
        "aspect": shape, "num_images": int(values["count"] or 1), "steps": int(values["steps"]),
        "guidance_scale": float(values["guidance"]), "model": values["model"],
        "loras": {values["lora"]: float(values["weight"] or 0.0)} if values["lora"] else {},
        "scheduler": values["sampler"] or None, "width": int(values["width"] or 0) or None,
        "height": int(values["height"] or 0) or None, "compare_base": values["place"] == "Compare",
    }  # fmt: skip
