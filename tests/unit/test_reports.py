"""The HTML page: self-contained, everything escaped, tables and charts that say what they were given."""

import base64
import io
import math
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.reports import render
from data.reports.charts import Series, bar_chart, decimate, line_chart, short_number
from data.reports.page import Page, column_texts

EVIL = "<script>alert('x')</script> & \"quoted\" $\\frac$"
VOID = {"meta", "img", "br", "link"}


class Reader(HTMLParser):
    """Collects tags, text and addresses, and fails on a tag that is closed out of turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def full() -> Page:
    """A page with every kind of block, and mischief wherever text goes."""
    line = Series(EVIL, [0, 1, 2], [1.0, 2.0, 1.5], [0.5, 1.5, 1.0], [1.5, 2.5, 2.0])
    page = Page(EVIL, EVIL).facts({EVIL: EVIL}).text(f"{EVIL}\n\nsecond").section(EVIL).note(EVIL).code(EVIL)
    page.table([EVIL, "n"], [[EVIL, 1]], caption=EVIL).curve(line, Series("b", [0], [1]), x=EVIL, y=EVIL, title=EVIL)
    page.section("Loss").strip([(Image.new("RGB", (4, 3), "red"), EVIL)], title=EVIL)
    return page


def test_everything_is_escaped_and_well_formed() -> None:
    html = full().html()
    assert "script" not in Reader(html).tags
    assert "<script" not in html
    assert "".join(Reader(html).words).count("<script>alert('x')</script>") >= 12


def test_nothing_comes_from_elsewhere() -> None:
    html = full().html()
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in Reader(html).addresses)
    assert not re.search(r"url\(|@import|https?:|//", html.replace("data:image/png;base64,", ""))
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in unescape(html)


def test_contents_link_to_sections_of_equal_names() -> None:
    page = Page("t").section("Loss").text("a").section("Loss").text("b").section("Ähnlich!").text("c").section("???")
    assert [section.anchor for section in page.sections] == ["loss", "loss-2", "hnlich", "section"]
    assert {"#loss", "#loss-2", "#hnlich", "#section"} == set(Reader(page.html()).addresses)
    assert all(f'id="{section.anchor}"' in page.html() for section in page.sections)
    assert Reader(Page("t").section("Only").text("a").html()).addresses == []


def test_a_page_is_written_whole_and_the_same_each_time(tmp_path: Path) -> None:
    path = full().write(tmp_path / "new" / "report.html")
    assert path.read_text("utf-8") == full().html()
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_names_that_are_no_text_are_shown(tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    assert "caf\\udce9.png" in Page("t").text(name).write(tmp_path / "p.html").read_text("utf-8")


def test_images_are_inside_the_page_bit_for_bit() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    (address,) = Reader(Page("t").strip([(image, "x")]).html()).addresses
    back = Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))
    assert np.array_equal(np.asarray(back), np.asarray(image))


def test_a_strip_has_the_columns_asked_for() -> None:
    image = Image.new("RGB", (400, 400))
    assert "repeat(3, minmax(0, 1fr))" in Page("t").strip([(image, "")] * 6, columns=3).html()
    assert "minmax(90px, 1fr)" in Page("t").strip([(image, "")] * 6, width=90).html()


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        ([1, 22222, None], ["1", "22,222", "–"]),
        ([12.31, 4.2, -8.11], ["12.31", "4.20", "-8.11"]),
        ([0.0312, 0.0871], ["0.0312", "0.0871"]),
        ([0.5, None, 0.25], ["0.50", "–", "0.25"]),
        ([1234567.0, 2.0], ["1.235e+06", "2"]),
        ([1e-9, 0.5], ["1e-09", "0.5"]),
        ([0.0, 0.0], ["0", "0"]),
        ([float("nan"), 0.25, 3], ["nan", "0.25", "3"]),
        (["a", 1.5, True, False], ["a", "1.5", "yes", "no"]),
        ([], []),
    ],
)
def test_numbers_of_a_column_have_equal_decimals(column: list[str | float | None], texts: list[str]) -> None:
    assert column_texts(column) == texts


def line_points(svg: str, name: str) -> list[tuple[float, float]]:
    """The points of the line of that name, in the order drawn; a gap starts with M."""
    (path,) = re.findall(rf'<g><title>{name}</title>\s*<path d="([^"]*)"', svg)
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", path)]


def test_a_line_goes_through_its_points() -> None:
    svg = line_chart([Series("a", [0, 5, 10], [0, 1, 4])], x="step", y="loss")
    (x0, y0), (x1, y1), (x2, y2) = line_points(svg, "a")
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.01)
    assert (y0 - y1) * 4 == pytest.approx(y0 - y2, abs=0.01) and y0 > y1
    dots = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert np.array(dots, float) == pytest.approx(np.array([(x0, y0), (x1, y1), (x2, y2)]), abs=0.06)
    assert "a: 4 at 10" in svg and ">step<" in svg and ">loss<" in svg


def test_gaps_cut_a_line_and_single_points_are_dots() -> None:
    nan, inf = math.nan, math.inf
    values = [1.0] * 30
    values[10], values[20], values[22] = nan, inf, nan
    svg = line_chart([Series("a", range(30), values)], x="x", y="y")
    assert len(line_points(svg, "a")) in (26, 27)  # matplotlib leaves out the one between two gaps, or not
    assert svg.count("<circle") == 1


def test_nothing_to_draw_is_said() -> None:
    for series in ([], [Series("a", [], [])], [Series("a", [1], [math.nan])]):
        assert "<svg" not in line_chart(series, x="x", y="loss")
    assert "<svg" not in line_chart([Series("a", [1, 2], [0, -1])], x="x", y="y", log_y=True)


def test_a_logarithmic_axis_shows_equal_ratios_as_equal_steps_and_leaves_out_zero() -> None:
    svg = line_chart([Series("a", [0, 1, 2, 3], [1, 0.1, 0.01, 0])], x="x", y="y", log_y=True)
    heights = [y for _, y in line_points(svg, "a")]
    assert len(heights) == 3
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)


def test_a_band_runs_along_both_bounds_and_around_gaps() -> None:
    svg = line_chart([Series("a", [0, 1, 2], [1, 2, 3], [0, 1, math.nan], [2, 3, 4])], x="x", y="y")
    (band,) = re.findall(r'<path d="(M [^"]*z)', svg, re.IGNORECASE)
    heights = [float(y) for _, y in re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", band)]
    low_0, low_1, high_1, high_0 = heights[:4]
    assert high_0 < low_0 and high_1 < low_1 < low_0
    with pytest.raises(AssertionError, match="a band needs both"):
        Series("a", [0], [1], low=[0])


def test_several_lines_are_named_and_told_apart() -> None:
    svg = line_chart([Series(f"line {n}", [0, 1], [n, n]) for n in range(8)], x="x", y="y")
    assert all(f"</svg>line {n}</span>" in svg for n in range(8))
    assert len(set(re.findall(r'<line class="line" style="([^"]*)"', svg))) == 8
    assert svg.count("stroke-dasharray: ") == 2
    assert 'class="legend"' not in line_chart([Series("only", [0, 1], [1, 2])], x="x", y="y")


def test_charts_take_their_colours_from_the_page_and_refer_to_nothing() -> None:
    lines = [Series("a", [0, 1], [1, 2], [0, 1], [2, 3]), Series("b", [0, 1], [3, 4])]
    svg, again = (line_chart(lines, x="x", y="y") + bar_chart({"a": (0.5, 0.4, 0.6)}, title="t") for _ in range(2))
    assert not re.search(r"#[0-9a-f]{6}|url\(|xlink|xmlns| id=|<use|<defs", svg)
    assert "var(--series-1)" in svg and "var(--rule)" in svg
    assert svg == again


def test_bars_have_their_values_and_names() -> None:
    svg = bar_chart({"real <b>": (0.5, 0.4, 0.6), "generated": (1.0, 0.9, 1.0)}, title="accuracy")
    assert "real &lt;b&gt;: 0.500 (0.400 to 0.600)" in svg and "1.000" in svg and "<b>" not in svg


def test_a_scatter_has_points_alone() -> None:
    svg = line_chart([Series("a", range(50), range(50))], x="x", y="y", scatter=True)
    assert svg.count("<circle") == 50 and "<title>a</title>" not in svg


def test_a_long_line_is_short_in_the_page_and_keeps_its_spikes() -> None:
    values = np.sin(np.arange(100_000) / 500)
    values[77_777], values[5] = 9.0, -9.0
    kept = decimate(values)
    assert len(kept) <= 620
    assert {77_777, 5, 0, 99_999} <= set(kept.tolist())
    assert np.all(np.diff(kept) > 0)
    assert len(line_chart([Series("a", range(100_000), values.tolist())], x="x", y="y")) < 30_000


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (1500, "1,500"), (20_000, "20k"), (3e7, "30M"), (1e-5, "1e-05"), (0.1 + 0.2, "0.3")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short_number(value) == text


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-3.0], [1e-12, 2e-12], [0.123, 98765.4], [-1e9, 1e9]])
@pytest.mark.parametrize("log", [False, True])
def test_any_values_get_an_axis(values: list[float], log: bool) -> None:
    drawable = not log or max(values) > 0
    svg = line_chart([Series("a", range(len(values)), values)], x="x", y="y", log_y=log)
    assert ("<svg" in svg) == drawable
    if drawable:
        assert len(re.findall(r"text-anchor: end", svg)) >= 2


def test_a_template_elsewhere_extends_the_common_ones(tmp_path: Path) -> None:
    (tmp_path / "own.html").write_text('{% extends "base.html" %}{% block content %}<p>{{ words }}</p>{% endblock %}')
    html = render(tmp_path / "own.html", title="t", words=EVIL, script="let a = 1;")
    assert "<p>&lt;script&gt;" in html and "script-src 'sha256-" in html and "<script>let a = 1;</script>" in html
