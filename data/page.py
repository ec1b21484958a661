"""One self-contained HTML page out of sections, text, tables, curves and picture strips.

Nothing is loaded from anywhere (a content policy in the page forbids it) and everything said is escaped: a caption is
shown, whatever is in it. Light or dark as the reader's system has it.
"""

import base64
import hashlib
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape as html_escape
from pathlib import Path
from typing import Self

from PIL import Image

from data.chart import Series, line_chart
from data.files import write_atomic
from data.page_style import STYLE

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # and the page's own script, by its hash
Cell = str | int | float | bool | None


@dataclass
class Section:
    title: str
    anchor: str
    blocks: list[str] = field(default_factory=list)


@dataclass
class Page:
    """A page that is filled from top to bottom: Page("Run 7").section("Loss").curve(...).write(path).

    style, script: of this page alone, behind the common looks; no other script runs.
    """

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

    def text(self, text: str) -> Self:
        """Plain paragraphs, parted by empty lines."""
        return self.add(
            "".join(f"<p>{escape(part.strip())}</p>" for part in re.split(r"\n\s*\n", text) if part.strip())
        )

    def note(self, text: str) -> Self:
        """A paragraph that must not be missed: a warning, or what a number does not say."""
        return self.add(f'<p class="note">{escape(text)}</p>')

    def code(self, text: str) -> Self:
        """A command or a file, as it is typed."""
        return self.add(f"<pre><code>{escape(text)}</code></pre>")

    def facts(self, facts: Mapping[str, Cell]) -> Self:
        """A few numbers or words, large, each with its name."""
        tiles = (f"<div><dt>{escape(name)}</dt><dd>{escape(plain(value))}</dd></div>" for name, value in facts.items())
        return self.add(f'<dl class="facts">{"".join(tiles)}</dl>')

    def table(self, head: Sequence[str], rows: Iterable[Sequence[Cell]], *, caption: str = "") -> Self:
        """A table; a column of numbers is right-aligned with equal decimals. None is shown as a dash."""
        body = [list(row) for row in rows]
        assert all(len(row) == len(head) for row in body), f"rows of other lengths than the head, {len(head)}"
        columns = [[row[index] for row in body] for index in range(len(head))]
        texts = [column_texts(column) for column in columns]
        kinds = [' class="number"' if numeric(column) else "" for column in columns]
        title = f"<caption>{escape(caption)}</caption>" if caption else ""
        top = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(head, kinds, strict=True))
        lines = (
            "<tr>" + "".join(f"<td{kind}>{escape(text)}</td>" for kind, text in zip(kinds, line, strict=True)) + "</tr>"
            for line in zip(*texts, strict=True)
        )
        table = f"<table>{title}<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        return self.add(f'<div class="wide">{table}</div>')

    def curve(self, *series: Series, x: str, y: str, title: str = "", log_y: bool = False) -> Self:
        """Lines over a common axis, with bands where a series has bounds."""
        head = f"<figcaption>{escape(title)}</figcaption>" if title else ""
        return self.add(f'<figure class="chart">{head}{line_chart(series, x=x, y=y, log_y=log_y)}</figure>')

    def strip(
        self,
        pictures: Iterable[tuple[Image.Image, str]],
        *,
        title: str = "",
        columns: int | None = None,
        width: int = 150,
    ) -> Self:
        """Captioned pictures, each `width` CSS pixels or more; `columns` fixes how many a row has, to compare rows."""
        figures = "".join(figure(picture, caption, width) for picture, caption in pictures)
        layout = f"repeat({columns}, minmax(0, 1fr))" if columns else f"repeat(auto-fill, minmax({width}px, 1fr))"
        most = f";max-width:{columns * (width + 130)}px" if columns else ""
        head = f"<h3>{escape(title)}</h3>" if title else ""
        return self.add(f'{head}<div class="strip" style="grid-template-columns:{layout}{most}">{figures}</div>')

    def add(self, block: str) -> Self:
        """Put a piece of finished HTML at the end; what comes before the first section stands under the title."""
        if not self.sections:
            self.sections.append(Section("", ""))
        self.sections[-1].blocks.append(block)
        return self

    def html(self) -> str:
        """The whole page; equal content gives equal bytes."""
        named = [section for section in self.sections if section.title]
        links = "".join(f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in named)
        return "\n".join([
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy(self.script)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}{self.style}</style>\n</head>\n<body>\n<main>",
            f"<header><h1>{escape(self.title)}</h1>",
            f'<p class="subtitle">{escape(self.subtitle)}</p>' if self.subtitle else "",
            f"<nav>{links}</nav>" if len(named) > 1 else "",
            "</header>",
            *map(section_html, self.sections),
            f"</main>\n<script>{self.script}</script>" if self.script else "</main>",
            "</body>\n</html>\n",
        ])  # fmt: skip

    def write(self, path: Path) -> Path:
        """Write the page whole, and return where it lies."""
        write_atomic(path, self.html())
        return path


def policy(script: str) -> str:
    """What the page may do: show what is in it, and run this one script."""
    mark = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"{POLICY}; script-src 'sha256-{mark}'" if script else POLICY


def section_html(section: Section) -> str:
    body = "\n".join(section.blocks)
    if not section.title:
        return f"<section>\n{body}\n</section>"
    return f'<section id="{section.anchor}">\n<h2>{escape(section.title)}</h2>\n{body}\n</section>'


def escape(text: str) -> str:
    """Text as HTML shows it; bytes of a file name that are no text appear as escapes."""
    return html_escape(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def figure(picture: Image.Image, caption: str, width: int) -> str:
    """One picture as a PNG inside the page; small ones keep their pixels sharp."""
    content = io.BytesIO()
    picture.convert("RGB").save(content, "PNG")
    data = base64.b64encode(content.getvalue()).decode()
    sharp = ' class="sharp"' if picture.width < width else ""
    size = f'width="{picture.width}" height="{picture.height}"'
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img{sharp} {size} alt="{escape(caption)}" src="data:image/png;base64,{data}">{words}</figure>'


def numeric(column: Sequence[Cell]) -> bool:
    """Whether a column holds numbers alone, dashes aside."""
    told = [cell for cell in column if cell is not None]
    return bool(told) and all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in told)


def column_texts(column: Sequence[Cell]) -> list[str]:
    """The cells of a column as text; floats with equal decimals, those that four digits of the largest need."""
    sizes = [abs(cell) for cell in column if isinstance(cell, float) and math.isfinite(cell) and cell]
    decimals = max(0, 3 - math.floor(math.log10(max(sizes)))) if numeric(column) and sizes else 0
    if not decimals or decimals > 6 or min(sizes) < 0.5 * 10.0**-decimals:
        return [plain(cell) for cell in column]
    finite = [f"{cell:,.{decimals}f}" for cell in column if isinstance(cell, float) and math.isfinite(cell)]
    decimals -= min(len(text) - len(text.rstrip("0")) for text in finite)
    return [
        f"{cell:,.{decimals}f}" if isinstance(cell, float) and math.isfinite(cell) else plain(cell) for cell in column
    ]


def plain(value: Cell) -> str:
    """A value as people write it: 12,345 and 0.1234, yes and no, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value
