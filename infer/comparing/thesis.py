"""--figures thesis: figures 3.1 to 3.8 of the source thesis, all 18 panels, as labelled sheets and a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

from data.errors import InputError, show
from data.files import write_atomic
from infer import outputs, source
from infer.comparing import measures, page, paper, result, wishes
from infer.comparing.cells import Cell, Store
from infer.comparing.options import CompareOptions
from infer.comparing.page import Panel as PagePanel
from infer.comparing.paper import Sheet
from infer.comparing.weights import BASE, TUNED, Finder
from infer.comparing.wishes import Wish

FILE = Path(__file__).parent / "thesis.yaml"
PER_ROW = 2


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Panel(Part):
    """One picture. prompt: the thesis' own words. twin: the same for the sample creatures; default: the same words."""

    letter: str
    prompt: str
    twin: str | None = None
    model: Literal["base", "tuned"] = TUNED
    seed: int = 0  # added to the seed asked for

    def words(self, wording: str) -> str:
        return self.twin or self.prompt if wording == "twin" else self.prompt


class Figure(Part):
    number: str
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Drawn:
    """A panel with its picture. model: the weights it was drawn with, base or tuned."""

    panel: Panel
    cell: Cell
    model: str

    @property
    def label(self) -> str:
        """What stands under it: the words that were drawn, and the thesis' own where they are others."""
        said = self.cell.recipe.prompt
        own = f'; the thesis: "{self.panel.prompt}"' if said != self.panel.prompt else ""
        return f'({self.panel.letter}) "{said}", {self.model}, seed {self.cell.recipe.seed}{own}'


def figures() -> list[Figure]:
    """The shipped figures, in their order."""
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return [Figure.model_validate(each) for each in content["figures"]]


def run(options: CompareOptions, finder: Finder, store: Store) -> int:
    """Draw all panels and write fig-3.1.png ... and the page; returns the exit code. Raises InputError."""
    if options.x_axis or options.y_axis or options.z_axis or "prompt" in options.model_fields_set:
        raise InputError("the figures have their own prompts and no axes", where="--figures thesis")
    if not finder.chosen.is_tuned:
        print("nothing is tuned yet: every panel is the base's; finish a run with train/finetune.py for the style")
    wording = wording_of(options, finder)
    asked = [
        (figure, panel, wish_of(options, finder, panel, wording)) for figure in figures() for panel in figure.panels
    ]
    store.check([wish for *_, wish in asked])
    folder = result.folder_for(options.outdir)
    cells = store.fetch([wish for *_, wish in asked])
    drawn = {
        figure.number: (
            figure,
            [Drawn(panel, cells[wish], model_of(panel, finder)) for other, panel, wish in asked if other is figure],
        )
        for figure, _, _ in asked
    }
    write(folder, options, list(drawn.values()))
    new = sum(cell.fresh for cell in cells.values())
    print(f"{len(asked)} panels of {len(drawn)} figures, {new} pictures newly drawn, {wording} prompts")
    print(show(folder / result.PAGE))
    return result.broken(folder, [cell.recipe.verdict for cell in cells.values()])


def wording_of(options: CompareOptions, finder: Finder) -> str:
    if options.wording != "auto":
        return options.wording
    return "twin" if finder.base().model == source.POCKET else "literal"


def model_of(panel: Panel, finder: Finder) -> str:
    return TUNED if panel.model == TUNED and finder.chosen.is_tuned else BASE


def wish_of(options: CompareOptions, finder: Finder, panel: Panel, wording: str) -> Wish:
    chosen = {"model": model_of(panel, finder), "prompt": panel.words(wording), "seed": options.seed + panel.seed}
    return wishes.wish(options, finder, chosen, [])


def write(folder: Path, options: CompareOptions, drawn: Sequence[tuple[Figure, Sequence[Drawn]]]) -> None:
    """A sheet for each figure, the panels with their recipes, and the page."""
    result.mark(folder, options)
    every = [each for _, panels in drawn for each in panels]
    names = result.keep_cells(folder, [each.cell for each in every])
    lines = [
        {"file": name, "figure": f"{figure.number}{each.panel.letter}", **each.cell.recipe.model_dump(mode="json")}
        for name, (figure, each) in zip(names, ((f, e) for f, panels in drawn for e in panels), strict=True)
    ]
    write_atomic(folder / outputs.LOG, "".join(json.dumps(line) + "\n" for line in lines))
    for figure, panels in drawn:
        result.save(paper.draw(sheet(figure, panels)), folder / f"fig-{figure.number}.png")
    write_atomic(folder / result.PAGE, html(drawn))


def spot(index: int) -> tuple[int, int]:
    """Column and row of a panel."""
    return index % PER_ROW, index // PER_ROW


def sheet(figure: Figure, panels: Sequence[Drawn]) -> Sheet:
    cells = {spot(index): each.cell.picture for index, each in enumerate(panels)}
    notes = {spot(index): each.label for index, each in enumerate(panels)}
    rows = [""] * -(-len(panels) // PER_ROW)
    return Sheet([""] * PER_ROW, rows, cells, f"Figure {figure.number}: {figure.title}", footer(panels), notes)


def footer(panels: Sequence[Drawn]) -> str:
    """The shared settings, and how far the panels are apart."""
    shared = result.footer([each.cell.recipe for each in panels])
    apart = measures.between([each.cell.picture for each in panels])
    return f"{shared}; RMS difference of the panels {apart:.3f}"


def html(drawn: Sequence[tuple[Figure, Sequence[Drawn]]]) -> str:
    """All figures on one page, a tab for each."""
    panels = []
    for figure, found in drawn:
        at = {spot(index): each for index, each in enumerate(found)}
        rows = [""] * -(-len(found) // PER_ROW)
        cells, notes = {place: each.cell for place, each in at.items()}, {place: e.label for place, e in at.items()}
        panels.append(PagePanel(f"Figure {figure.number}: {figure.title}", [""] * PER_ROW, rows, cells, notes))
    count = sum(len(found) for _, found in drawn)
    begun = page.begin("The source thesis' figures", f"chapter 3, {len(drawn)} figures, {count} panels")
    return begun.add(page.bar([page.tabs("figure", [figure.number for figure, _ in drawn])])).add(
        page.sheets(panels)
    ).html()  # fmt: skip
