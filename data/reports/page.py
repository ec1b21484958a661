"""A report page from top to bottom: sections of text, facts, tables, charts and rows of images; text is escaped."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from markupsafe import Markup
from markupsafe import escape as html_escape
from PIL import Image

from data.atomic_io import write_atomic
from data.reports import macro, printable_text, render
from data.reports.charts import Series, line_chart

Cell = str | int | float | bool | None


@dataclass
class Section:
    title: str
    anchor: str
    blocks: list[str] = field(default_factory=list)


@dataclass
class Page:
    """Page("Run 7").section("Loss").curve(...).write(path). style, script: of this page alone."""

    title: str
    subtitle: str = ""
    style: str = ""
    script: str = ""
    sections: list[Section] = field(default_factory=list)

    def section(self, title: str) -> Self:
        """Start a section; what follows goes into it."""
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        taken = {section.anchor for section in self.sections}
        anchor = next(name for name in (slug, *(f"{slug}-{n}" for n in range(2, len(taken) + 3))) if name not in taken)
        self.sections.append(Section(title, anchor))
        return self

    def add(self, block: str) -> Self:
        """Add finished HTML; before the first section it goes under the title."""
        if not self.sections:
            self.sections.append(Section("", ""))
        self.sections[-1].blocks.append(Markup(block))
        return self

    def text(self, text: str) -> Self:
        """Plain paragraphs, separated by empty lines."""
        parts = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
        return self.add(macro("paragraphs", texts=parts))

    def note(self, text: str) -> Self:
        """A highlighted paragraph: a warning, or what a number does not say."""
        return self.add(macro("note", text=text))

    def code(self, text: str) -> Self:
        """A command or a file, as it is typed."""
        return self.add(macro("code", text=text))

    def facts(self, facts: Mapping[str, Cell]) -> Self:
        """A few numbers or words, large, each with its name."""
        return self.add(macro("facts", facts={name: format_cell(value) for name, value in facts.items()}))

    def table(self, head: Sequence[str], rows: Iterable[Sequence[Cell]], *, caption: str = "") -> Self:
        """A table; a column of numbers is right-aligned with equal decimals. None is shown as a dash."""
        body = [list(row) for row in rows]
        assert all(len(row) == len(head) for row in body), f"rows of other lengths than the head, {len(head)}"
        columns = [[row[index] for row in body] for index in range(len(head))]
        kinds = [Markup(' class="number"' if is_numeric(column) else "") for column in columns]
        texts = zip(*map(column_texts, columns), strict=True)
        return self.add(macro("table", head=head, rows=list(texts), kinds=kinds, caption=caption))

    def curve(self, *series: Series, x: str, y: str, title: str = "", log_y: bool = False) -> Self:
        """Lines over a common axis, with bands where a series has bounds."""
        return self.add(line_chart(series, x=x, y=y, title=title, log_y=log_y))

    def strip(
        self, images: Iterable[tuple[Image.Image, str]], *, title: str = "", columns: int = 0, width: int = 150
    ) -> Self:
        """Captioned images, each `width` CSS pixels or more; `columns` fixes how many a row has, to compare rows."""
        layout = f"repeat(auto-fill, minmax({width}px, 1fr))"
        if columns:
            layout = f"repeat({columns}, minmax(0, 1fr));max-width:{columns * (width + 130)}px"
        return self.add(macro("strip", images=images, title=title, layout=layout, width=width))

    def html(self) -> str:
        """The whole page; equal content gives equal bytes."""
        return render("page.html", **vars(self))

    def write(self, path: Path) -> Path:
        """Write the page atomically, and return its path."""
        write_atomic(path, self.html())
        return path


def escape(text: str) -> str:
    """Text as HTML shows it."""
    return str(html_escape(printable_text(text)))


def is_numeric(column: Sequence[Cell]) -> bool:
    """Whether a column holds numbers alone, dashes aside."""
    filled = [cell for cell in column if cell is not None]
    return bool(filled) and all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in filled)


def column_texts(column: Sequence[Cell]) -> list[str]:
    """The cells of a column as text; floats with equal decimals, those that four digits of the largest need."""
    sizes = [abs(cell) for cell in column if isinstance(cell, float) and math.isfinite(cell) and cell]
    decimals = max(0, 3 - math.floor(math.log10(max(sizes)))) if is_numeric(column) and sizes else 0
    if not decimals or decimals > 6 or min(sizes) < 0.5 * 10.0**-decimals:
        return [format_cell(cell) for cell in column]
    finite = [f"{cell:,.{decimals}f}" for cell in column if isinstance(cell, float) and math.isfinite(cell)]
    decimals -= min(len(text) - len(text.rstrip("0")) for text in finite)
    return [
        f"{cell:,.{decimals}f}" if isinstance(cell, float) and math.isfinite(cell) else format_cell(cell)
        for cell in column
    ]


def format_cell(value: Cell) -> str:
    """A value as people write it: 12,345 and 0.1234, yes and no, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value
