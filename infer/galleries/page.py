"""What was found as one self-contained HTML file: thumbnails, prompts and settings; nothing is loaded from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.page import Page
from infer.galleries.index import opened
from infer.galleries.search import Hit

SIDE = 320  # pixels of a thumbnail
SHOWN = ("model", "lora", "sampler", "steps", "cfg", "seed")


def write(hits: Sequence[Hit], folder: Path, asked: str, target: Path) -> Path:
    """The page, whole. Pictures that went since the search are left out."""
    page = Page("Gallery", f"{len(hits)} pictures" + (f' for "{asked}"' if asked else ""))
    pictures = []
    for hit in hits:
        path = hit.path(folder)
        if path.is_file():
            picture = opened(path)
            picture.thumbnail((SIDE, SIDE))
            pictures.append((picture, caption(hit)))
    page.strip(pictures, width=190)
    return page.write(target)


def caption(hit: Hit) -> str:
    """Prompt, settings and place, on lines of their own."""
    settings = ", ".join(f"{name} {hit.row[name]}" for name in SHOWN if hit.row[name] not in (None, ""))
    star = "\N{BLACK STAR} " if hit.row["star"] else ""
    return "\n".join(filter(None, (f"{star}{hit.row['prompt'] or 'no prompt'}", settings, hit.places[0])))
