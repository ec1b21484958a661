"""The pieces of the page: its fields, a few for everybody and an expert section with all that change an image; and its
own HTML, a job's progress and results, the comparison slider, the gallery.
"""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from data.errors import InputError
from data.reports import environment
from infer import schedulers
from infer.config import MAX_WEIGHT
from infer.web.queue import Job
from infer.web.service import MAX_PROMPT, SHAPES, StudioService
from train.config import POCKET

IDEAS = ("a water type fridge", "a blue cat", "a cactus with two red flowers", "a yellow guitar")
FACTS = ("model", "lora", "sampler", "steps", "cfg", "seed")
COUNTS = (1, 2, 4, 8)
OWN = "the model's own"
SCRIBBLE = """
<canvas width="512" height="512" tabindex="0" role="img"
  aria-label="Draw here with the mouse, a pen or a finger; Ctrl+Z undoes a line"></canvas>
<div class="pens">
<button type="button" data-pen="undo">Undo</button><button type="button" data-pen="clear">Clear</button>
<label>Pen <input type="range" min="1" max="6" value="2" aria-label="Width of the pen"></label></div>
"""
# every field that is sent with a job, in this order
NAMES: tuple[str, ...] = (
    "place", "prompt", "style", "shape", "count", "freedom", "negative", "steps", "guidance", "seed", "locked", "model",
    "lora", "weight", "sampler", "width", "height", "scribble",
)  # fmt: skip
Controls = dict[str, Any]  # components by name


# ---- fields


def build(service: StudioService, place: Any) -> tuple[Controls, Any, Any]:
    """The fields in the order of NAMES, and the buttons Generate and Stop."""
    gr.HTML(SCRIBBLE, elem_id="scribble", js_on_load="window.studio.scribble.begin(element)")
    controls = {"place": place, **simple_controls(service)}
    generate = gr.Button("Generate", variant="primary", elem_id="generate")
    stop = gr.Button("Stop", elem_id="stop", visible=False)
    gr.HTML('<p class="hint keys">or press <kbd>Enter</kbd>; <kbd>Esc</kbd> stops</p>')
    with gr.Column(elem_id="expert"):
        controls |= expert_controls(service)
    controls["scribble"] = gr.Textbox(visible="hidden")
    return {name: controls[name] for name in NAMES}, generate, stop


def simple_controls(service: StudioService) -> Controls:
    prompt = gr.Textbox(
        label="What would you like to see?", placeholder=IDEAS[0], lines=1, max_lines=5, autofocus=True,
        max_length=MAX_PROMPT, elem_id="prompt",
    )  # fmt: skip
    ideas = "".join(f'<button type="button" data-idea="{idea}">{idea}</button>' for idea in IDEAS)
    gr.HTML(f'<div class="ideas">{ideas}</div>')
    freedom = gr.Slider(
        0.2, 1.0, 0.7, step=0.05, label="Freedom", info="Low stays close to your lines, high changes more.",
        elem_id="freedom", buttons=[],
    )  # fmt: skip
    styles = [("No style", ""), *((name.replace("-", " "), name) for name in service.styles)]
    return {
        "prompt": prompt,
        "freedom": freedom,
        "style": gr.Dropdown(styles, value="", label="Style", elem_id="style"),
        "shape": gr.Radio(list(SHAPES.items()), value="1:1", label="Shape", elem_id="shape"),
        "count": gr.Radio(list(COUNTS), value=1, label="Images", elem_id="count"),
    }


def expert_controls(service: StudioService) -> Controls:
    models = [(f"{name} (embedded)" if name == POCKET else name, name) for name in service.models.models()]
    samplers = [(OWN, ""), *((named.shown, key) for key, named in schedulers.SCHEDULERS.items())]
    first = models[0][1]
    controls: Controls = {
        "negative": gr.Textbox(label="Negative prompt", info="What to avoid: blurry, text", elem_id="negative"),
        "model": gr.Dropdown(models, value=first, label="Model", elem_id="model"),
    }
    with gr.Row():
        loras = [("none", ""), *((name, name) for name in service.models.lora_files())]
        controls["lora"] = gr.Dropdown(loras, value="", label="LoRA", elem_id="lora")
        controls["weight"] = gr.Number(
            1.0, minimum=-MAX_WEIGHT, maximum=MAX_WEIGHT, step=0.1, label="Weight", elem_id="weight"
        )
    with gr.Row():
        for name in ("steps", "guidance"):
            controls[name] = gr.Textbox("", label=name.title(), placeholder=OWN, elem_id=name)
    with gr.Row():
        controls["seed"] = gr.Textbox("", label="Seed", placeholder="random", elem_id="seed")
        controls["locked"] = gr.Checkbox(False, label="Keep this seed", elem_id="locked")
    controls["sampler"] = gr.Dropdown(samplers, value="", label="Sampler", elem_id="sampler")
    with gr.Row():
        for side in ("width", "height"):
            controls[side] = gr.Number(0, minimum=0, maximum=4096, precision=0, label=side.title(), info="0: by shape")
    return controls


def to_request(values: dict[str, Any]) -> dict[str, Any]:
    """The fields' values as fields of GenerateOptions. Raises InputError for text that is not a number."""
    has_size = bool(values["width"] or values["height"])
    return {
        "prompt": values["prompt"] or "", "negative_prompt": values["negative"] or "", "style": values["style"] or None,
        "aspect": "" if has_size or values["shape"] in (None, "1:1") else values["shape"],
        "num_images": int(values["count"] or 1), "steps": parse_number(values["steps"], int, "--steps"),
        "guidance_scale": parse_number(values["guidance"], float, "--guidance-scale"), "model": values["model"],
        "loras": {values["lora"]: float(values["weight"] or 0.0)} if values["lora"] else {},
        "scheduler": values["sampler"] or None, "width": int(values["width"] or 0) or None,
        "height": int(values["height"] or 0) or None, "compare_base": values["place"] == "Compare",
    }  # fmt: skip


def parse_number(text: str, kind: type, flag: str) -> Any:
    """None for an empty field: the model's own value. Raises InputError."""
    try:
        return kind(text) if text.strip() else None
    except ValueError:
        raise InputError(f"{text[:40]!r} is not a number", where=flag) from None


def from_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """An image's settings (Gallery.settings) as values of the fields; the seed is kept."""
    by_shape = settings["shape"] in SHAPES.values()
    return {
        "place": "Generate", "prompt": settings["prompt"], "style": "", "count": 1, "freedom": gr.skip(),
        "shape": settings["shape"] if by_shape else None, "negative": settings.get("negative_prompt", ""),
        "steps": str(settings.get("steps", "")), "guidance": str(settings.get("guidance_scale", "")),
        "seed": str(settings.get("seed", "")), "locked": "seed" in settings, "model": settings.get("model", gr.skip()),
        "lora": settings.get("lora", ""), "weight": settings.get("weight", 1.0),
        "sampler": settings.get("scheduler") or "", "width": 0 if by_shape else settings.get("width", 0),
        "height": 0 if by_shape else settings.get("height", 0),
    }  # fmt: skip


# ---- HTML


def name_of(path: str | Path) -> str:
    """The path of an image relative to outputs/."""
    return Path(*path.parts[1:]).as_posix() if isinstance(path, Path) else path


TEMPLATE = environment(Path(__file__).parent).get_template("components.html")
MACROS: Any = TEMPLATE.make_module({"name": name_of, "url": lambda path: f"pictures/{quote(name_of(path))}"})


def empty(text: str = "Describe an image and press Generate.") -> str:
    return MACROS.empty(text)


def error(text: str) -> str:
    return MACROS.error(text)


def waiting(position: int) -> str:
    """A job in the queue, or one whose first step is not done."""
    jobs = "1 job" if position == 1 else f"{position} jobs"
    return MACROS.empty(f"{jobs} before yours" if position else "Starting ...", busy=True)


def running(job: Job) -> str:
    """A progress bar, and the finished image or preview of each image."""
    finished = {int(image.path.name[:5]): image for image in job.images if not image.is_base}
    previews = {index: base64.b64encode(webp).decode() for index, webp in dict(job.previews).items()}
    cells = [(finished.get(index), previews.get(index)) for index in range(max(job.count, 1))]
    return MACROS.running(job, cells, layout(len(cells)))


def finished(job: Job) -> str:
    """The images of a finished job, or those of a stopped one that were finished."""
    if job.state == "stopped" and not job.images:
        return empty("Stopped. No image was finished.")
    base = {image.path.name: image for image in job.images if image.is_base}
    pairs = [(base[each.path.name], each) for each in job.images if not each.is_base and each.path.name in base]
    return MACROS.finished(job, pairs, layout(len(job.images)))


def layout(count: int) -> str:
    """CSS class for this many images."""
    return "one" if count == 1 else "few" if count <= 4 else "many"


def gallery(hits: Sequence[Any], query: str) -> str:
    """A tile for each galleries.SearchHit, and the dialog that opens on a click."""
    if not hits:
        return empty("No image matches." if query.strip() else "The images that you generate appear here.")
    tiles = [about(hit) for hit in hits]
    return MACROS.gallery([(each, json.dumps(each)) for each in tiles])


def about(hit: Any) -> dict[str, Any]:
    """What the dialog shows of an image."""
    row = hit.row
    facts = {name: row[name] for name in FACTS if row[name] not in (None, "")}
    facts["size"] = f"{row['width']} x {row['height']}"
    if row["negative"]:
        facts["negative"] = row["negative"]
    return {"path": hit.places[0], "prompt": row["prompt"] or hit.places[0], "star": row["star"], "facts": facts}
