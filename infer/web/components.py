"""The page's own pieces of HTML: a job's progress and results, the comparison slider, the gallery."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from data.reports import environment
from infer.web.queue import Job

if TYPE_CHECKING:
    from infer.galleries import SearchHit

IDEAS = ("a water type fridge", "a blue cat", "a cactus with two red flowers", "a yellow guitar")
FACTS = ("model", "lora", "sampler", "steps", "cfg", "seed")


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


def gallery(hits: Sequence[SearchHit], query: str) -> str:
    """A tile for each image, and the dialog that opens on a click."""
    if not hits:
        return empty("No image matches." if query.strip() else "The images that you generate appear here.")
    tiles = [about(hit) for hit in hits]
    return MACROS.gallery([(each, json.dumps(each)) for each in tiles])


def about(hit: SearchHit) -> dict[str, Any]:
    """What the dialog shows of an image."""
    row: Any = hit.row
    facts = {name: row[name] for name in FACTS if row[name] not in (None, "")}
    facts["size"] = f"{row['width']} x {row['height']}"
    if row["negative"]:
        facts["negative"] = row["negative"]
    return {"path": hit.places[0], "prompt": row["prompt"] or hit.places[0], "star": row["star"], "facts": facts}
