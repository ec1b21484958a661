"""What gallery.py does: bring the index up to date, mark, search, list, and write a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.encoders import Clip
from data.errors import show
from infer.comparison.measures import POCKET_SCORER
from infer.galleries import page
from infer.galleries.index import Index
from infer.galleries.options import GalleryOptions
from infer.galleries.search import Hit, search


def run(options: GalleryOptions) -> int:
    """Returns the exit code. Raises InputError."""
    judge = Clip(options.judge or POCKET_SCORER)
    index = Index(options.folder, options.index)
    try:
        changes = index.update(judge)
        print(f"{options.folder}: {len(index.rows())} pictures ({changes})")
        for problem in changes.unreadable:
            print(f"no picture: {show(problem)}")
        for path in options.star:
            index.star(path, True)
        for path in options.unstar:
            index.star(path, False)
        hits = search(index, options.search, judge, None if options.page else options.most)
    finally:
        index.close()
    for line in listed(hits[: options.most], options.folder):
        print(line)
    if options.page:
        print(f"page: {page.write(hits, index.folder, options.search, options.page)}")
    return 0


def listed(hits: Sequence[Hit], folder: Path) -> list[str]:
    """A line a picture: where it lies, its prompt, and how near it is to the words."""
    lines = []
    for hit in hits:
        near = "" if hit.likeness is None else f"{hit.likeness:.2f}  "
        star = "* " if hit.row["star"] else "  "
        more = f"  ({hit.row['copies']} copies)" if hit.row["copies"] > 1 else ""
        lines.append(f"{star}{near}{show(folder / hit.places[0])}  {show(hit.row['prompt'] or '')}{more}")
    return lines or ["nothing found"]
