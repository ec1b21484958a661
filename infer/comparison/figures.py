"""--figures thesis: figures 3.1 to 3.8 of the source thesis, all 18 panels, as labeled sheets and a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

from data.atomic_io import write_atomic
from data.errors import InputError, printable
from infer import output, resolve_model
from infer.comparison import results
from infer.comparison.grid import Axis, build_request
from infer.comparison.image_cache import CachedImage, ImageCache
from infer.comparison.results import Panel as PagePanel
from infer.comparison.results import Report, render_page
from infer.comparison.studies import mean_distance
from infer.comparison.weights import BASE, TUNED, WeightsFinder
from infer.config import CompareOptions
from infer.contact_sheet import by_place, render_sheet

FILE = Path(__file__).with_name("thesis.yaml")
COLUMNS = 2
FROZEN = ConfigDict(frozen=True, extra="forbid")


class Panel(BaseModel):
    """prompt: the thesis's own. twin: the same for the sample set; default: the same prompt. seed: added to --seed."""

    model_config = FROZEN
    letter: str
    prompt: str
    twin: str | None = None
    model: Literal["base", "tuned"] = TUNED
    seed: int = 0

    def wording(self, name: str) -> str:
        """name: twin or literal."""
        return self.twin or self.prompt if name == "twin" else self.prompt


class Figure(BaseModel):
    model_config = FROZEN
    number: str
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class FinishedPanel:
    figure: Figure
    panel: Panel
    cached: CachedImage
    model: str

    @property
    def label(self) -> str:
        """The prompt used, and the thesis's own if that is different."""
        prompt = self.cached.recipe.prompt
        own = f'; the thesis: "{self.panel.prompt}"' if prompt != self.panel.prompt else ""
        return f'({self.panel.letter}) "{prompt}", {self.model}, seed {self.cached.recipe.seed}{own}'


def load_figures() -> list[Figure]:
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return [Figure.model_validate(each) for each in content["figures"]]


def run(options: CompareOptions, finder: WeightsFinder, cache: ImageCache) -> int:
    """Write fig-3.1.png ... and the page; returns the exit code. Raises InputError."""
    if options.x_axis or options.y_axis or options.z_axis or "prompt" in options.model_fields_set:
        raise InputError("the figures have their own prompts and no axes", where="--figures thesis")
    is_tuned = finder.chosen.is_tuned
    if not is_tuned:
        print("nothing is tuned yet: every panel is the base's; finish a run with train/finetune.py for the style")
    wording = options.wording
    if wording == "auto":
        wording = "twin" if finder.base().model == resolve_model.POCKET else "literal"
    panels = [(figure, panel) for figure in load_figures() for panel in figure.panels]
    models = [panel.model if is_tuned else BASE for _, panel in panels]
    requests = [
        build_request(
            options, finder, {"model": model, "prompt": panel.wording(wording), "seed": options.seed + panel.seed}
        )
        for (_, panel), model in zip(panels, models, strict=True)
    ]
    cache.check(requests)
    folder = results.output_folder(options.outdir)
    images = cache.get(requests)
    finished = [
        FinishedPanel(*each, images[request], model)
        for each, model, request in zip(panels, models, requests, strict=True)
    ]
    write_figures(folder, options, finished)
    new = sum(cached.is_new for cached in images.values())
    count = len({figure.number for figure, _ in panels})
    print(f"{len(panels)} panels of {count} figures, {new} images newly generated, {wording} prompts")
    print(printable(folder / results.PAGE))
    return results.exit_code(folder, list(images.values()))


def write_figures(folder: Path, options: CompareOptions, finished: Sequence[FinishedPanel]) -> None:
    """A sheet for each figure, the panels with their recipes, and the page."""
    results.write_mark(folder, options)
    names = results.copy_images(folder, [each.cached for each in finished])
    results.write_log(folder, [
        {"file": name, "figure": each.figure.number + each.panel.letter, **each.cached.recipe.model_dump(mode="json")}
        for name, each in zip(names, finished, strict=True)
    ])  # fmt: skip
    pages: dict[str, PagePanel] = {}
    for figure, group in groupby(finished, lambda each: each.figure):
        panels = list(group)
        cells = by_place([each.cached for each in panels], COLUMNS)
        notes, title = by_place([each.label for each in panels], COLUMNS), f"Figure {figure.number}: {figure.title}"
        page = PagePanel(title, [""] * COLUMNS, [""] * -(-len(panels) // COLUMNS), cells, notes)
        apart = mean_distance([cached.image for cached in cells.values()])
        shared = results.shared_settings([each.cached.recipe for each in panels])
        sheet = page.sheet(f"{shared}; RMS difference of the panels {apart:.3f}")
        output.save_png(render_sheet(sheet), folder / f"fig-{figure.number}.png")
        pages[figure.number] = page
    none, numbers = Axis("", "", (None,), ("",)), tuple(pages)
    subtitle = f"chapter 3, {len(pages)} figures, {len(finished)} panels"
    axes = (none, none, Axis("", "figure", numbers, numbers))
    html = render_page(Report("The source thesis's figures"), subtitle, list(pages.values()), axes)
    write_atomic(folder / results.PAGE, html)
