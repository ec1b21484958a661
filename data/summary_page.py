"""The summary of a captioned folder as a page to look through: problems, numbers, pictures with their captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from data.errors import show
from data.images import open_picture
from data.page import Page
from data.progress import ProgressBar
from data.schema import Sample
from data.store import PATIENCE
from data.summary import Summary, rows

SIDE = 160  # pixels of the longer side of a picture on the page
MOST = 240  # pictures shown of each side of the split: about 15 MB of page
MOST_GROUPS = 40  # groups of near-duplicates shown
LONGEST = 200  # characters of a caption


def write_page(summary: Summary, path: Path) -> Path:
    """Write the page whole, and return its path. Raises InputError if a picture changed since the folder was read."""
    page = Page(show(summary.listing.folder), "what training would make of this folder")
    refused = sum(problem.refused for problem in summary.problems)
    page.facts({
        "pictures found": summary.listing.found,
        "usable": len(summary.samples),
        "refusals": refused,
        "warnings": len(summary.problems) - refused,
        "to train on": len(summary.split.train),
        "held out": len(summary.split.held_out),
    })  # fmt: skip
    page.table(["", ""], rows(summary))
    add_problems(page, summary)
    add_buckets(page, summary)
    add_copies(page, summary)
    add_pictures(page, "Held out", [summary.samples[index] for index in summary.split.held_out])
    add_pictures(page, "To train on", [summary.samples[index] for index in summary.split.train])
    return page.write(path)


def add_problems(page: Page, summary: Summary) -> None:
    """Every problem, as on the terminal."""
    if not summary.problems:
        return
    page.section("Problems").table(
        ["where", "", "what", "what to do"],
        [
            [show(problem.where), "refused" if problem.refused else "warning", show(problem.what), show(problem.fix)]
            for problem in summary.problems
        ],
    )


def add_buckets(page: Page, summary: Summary) -> None:
    """How the pictures fall into the sizes that training uses."""
    if not summary.uses:
        return
    page.section("Buckets").table(
        ["size", "pictures", "cropped on average, %", "cropped at most, %", "enlarged"],
        [
            [str(use.bucket), use.count, 100 * use.mean_cropped, 100 * use.worst_cropped, use.enlarged]
            for use in summary.uses
        ],
    )


def add_copies(page: Page, summary: Summary) -> None:
    """Near-duplicates, group by group, for a person to judge."""
    if not summary.groups:
        return
    page.section("Near-duplicates").text("Each row shows one picture more than once. All of a row go to the same side.")
    for group in summary.groups[:MOST_GROUPS]:
        page.strip(thumbnails(group[:6], ""), columns=6, title=f"{len(group)} pictures")
    if len(summary.groups) > MOST_GROUPS:
        page.note(f"{len(summary.groups) - MOST_GROUPS} more groups are not shown.")


def add_pictures(page: Page, title: str, samples: Sequence[Sample]) -> None:
    """Pictures with their captions, evenly picked if there are too many for a page."""
    if not samples:
        return
    shown = [samples[index * len(samples) // MOST] for index in range(MOST)] if len(samples) > MOST else samples
    page.section(title)
    if len(shown) < len(samples):
        page.text(f"{len(shown)} of {len(samples)}, evenly picked.")
    page.strip(thumbnails(shown, f"page: {title.lower()}"))


def thumbnails(samples: Sequence[Sample], title: str) -> Iterator[tuple[Image.Image, str]]:
    """Small pictures, each with its name and captions."""
    for sample in ProgressBar(samples, title, unit="picture", delay=PATIENCE):
        picture = open_picture(sample.path)
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        caption = f"{show(sample.annotation.file_name)}: {' / '.join(sample.captions)}"
        yield picture, caption if len(caption) <= LONGEST else f"{caption[:LONGEST]}..."
