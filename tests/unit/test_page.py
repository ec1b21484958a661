"""The HTML page: self-contained, everything escaped, tables and charts that say what they were given."""

import base64
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.chart import HEIGHT, LEFT, RIGHT, WIDTH, Axis, Series, decimated, line_chart, round_step, tick_texts, widened
from data.page import Page, column_texts

EVIL = "<script>alert('x')</script> & \"quoted\""
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
    assert "alert('x')" not in html
    assert "".join(Reader(html).words).count("<script>alert('x')</script>") >= 12


def test_nothing_comes_from_elsewhere() -> None:
    html = full().html()
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in Reader(html).addresses)
    assert not re.search(r"url\(|@import|https?:|//", html.replace("data:image/png;base64,", ""))
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html


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


def test_pictures_are_inside_the_page_bit_for_bit() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    (address,) = Reader(Page("t").strip([(picture, "x")]).html()).addresses
    back = Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))
    assert np.array_equal(np.asarray(back), np.asarray(picture))


def test_a_strip_has_the_columns_asked_for() -> None:
    picture = Image.new("RGB", (400, 400))
    assert "repeat(3, minmax(0, 1fr))" in Page("t").strip([(picture, "")] * 6, columns=3).html()
    assert "minmax(90px, 1fr)" in Page("t").strip([(picture, "")] * 6, width=90).html()


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


def test_only_columns_of_numbers_are_aligned_right() -> None:
    html = Page("t").table(["a", "b", "c"], [["x", 1, True], ["y", None, False]]).html()
    assert html.count('<td class="number">') == 2
    with pytest.raises(AssertionError, match="rows of other lengths"):
        Page("t").table(["a"], [[1, 2]])


def test_a_line_goes_through_its_points() -> None:
    svg = line_chart([Series("a", [0, 5, 10], [0, 1, 4])], x="step", y="loss")
    (line,) = re.findall(r'<polyline[^>]* points="([^"]*)"', svg)
    points = [tuple(map(float, point.split(","))) for point in line.split()]
    assert [x for x, _ in points] == [LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT]
    heights = [y for _, y in points]
    assert heights[0] > heights[1] > heights[2]
    assert (heights[0] - heights[1]) * 4 == pytest.approx(heights[0] - heights[2], abs=0.5)
    assert "step" in svg
    assert "loss" in svg


def test_gaps_cut_a_line_and_single_points_are_dots() -> None:
    nan, inf = math.nan, math.inf
    values = [1.0] * 30
    values[10], values[20], values[22] = nan, inf, nan
    svg = line_chart([Series("a", range(30), values)], x="x", y="y")
    assert svg.count("<polyline") == 4
    assert svg.count("<circle") == 1  # the one point between two gaps


def test_nothing_to_draw_says_so() -> None:
    for series in ([], [Series("a", [], [])], [Series("a", [1], [math.nan])]):
        assert "loss: nothing to draw yet" in line_chart(series, x="x", y="loss")
    assert "nothing to draw yet" in line_chart([Series("a", [1, 2], [0, -1])], x="x", y="y", log_y=True)


def test_a_logarithmic_axis_shows_equal_ratios_as_equal_steps_and_leaves_out_zero() -> None:
    svg = line_chart([Series("a", [0, 1, 2, 3], [1, 0.1, 0.01, 0])], x="x", y="y", log_y=True)
    (line,) = re.findall(r'<polyline[^>]* points="([^"]*)"', svg)
    heights = [float(point.split(",")[1]) for point in line.split()]
    assert len(heights) == 3
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)


def test_a_band_runs_along_both_bounds() -> None:
    svg = line_chart([Series("a", [0, 1], [1, 2], [0, 1], [2, 3])], x="x", y="y")
    (band,) = re.findall(r'<polygon[^>]* points="([^"]*)"', svg)
    (low_0, low_1, high_1, high_0) = (float(point.split(",")[1]) for point in band.split())
    assert high_0 < low_0 <= HEIGHT
    assert high_1 < low_1
    with pytest.raises(AssertionError, match="a band needs both"):
        Series("a", [0], [1], low=[0])


def test_several_lines_are_named_and_told_apart() -> None:
    svg = line_chart([Series(f"line {n}", [0, 1], [n, n]) for n in range(8)], x="x", y="y")
    looks = re.findall(r'<polyline class="line" (style="[^"]*")', svg)
    assert len(set(looks)) == 8
    assert all(f"</svg>line {n}</span>" in svg for n in range(8))
    assert 'class="legend"' not in line_chart([Series("only", [0, 1], [1, 2])], x="x", y="y")


def test_a_long_line_is_short_on_paper_and_keeps_its_spikes() -> None:
    values = [math.sin(n / 500) for n in range(100_000)]
    values[77_777], values[5] = 9.0, -9.0
    kept = decimated(list(zip(range(100_000), values, strict=True)))
    assert len(kept) <= 600
    assert {(77_777, 9.0), (5, -9.0), (0, values[0]), (99_999, values[-1])} <= set(kept)
    assert kept == sorted(kept)
    assert len(line_chart([Series("a", range(100_000), values)], x="x", y="y")) < 20_000


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0, 3000, ["0", "500", "1,000", "1,500", "2,000", "2,500", "3,000"]),
        (0, 50_000, ["0", "10k", "20k", "30k", "40k", "50k"]),
        (-2, 2, ["-2", "-1", "0", "1", "2"]),
        (1.001, 1.004, ["1.0010", "1.0015", "1.0020", "1.0025", "1.0030", "1.0035", "1.0040"]),
    ],
)
def test_ticks_are_round_numbers_of_one_unit(low: float, high: float, texts: list[str]) -> None:
    assert [text for _, text in tick_texts(Axis(low, high, 0, 100))] == texts


def test_logarithmic_ticks_are_few() -> None:
    assert [text for _, text in tick_texts(Axis(0.01, 1, 0, 1, log=True))] == [
        f"{n:g}" for n in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
    ]
    assert len(tick_texts(Axis(1e-20, 1e20, 0, 1, log=True))) <= 8


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-3.0], [1e-12, 2e-12], [0.123, 98765.4], [-1e9, 1e9]])
@pytest.mark.parametrize("log", [False, True])
def test_any_values_get_an_axis_about_them(values: list[float], log: bool) -> None:
    if log and min(values) <= 0:
        return
    low, high = widened(values, log=log)
    assert low <= min(values) <= max(values) <= high
    assert low < high
    axis = Axis(low, high, 0, 100, log)
    assert 2 <= len(tick_texts(axis)) <= 12
    assert all(-1e-6 <= axis(value) <= 100 + 1e-6 for value, _ in tick_texts(axis))


def test_round_steps_are_one_two_or_five() -> None:
    for span in (1e-7, 0.3, 1.0, 7.0, 44.0, 12345.0):
        assert f"{round_step(span):e}"[0] in "125"
        assert 3 <= span / round_step(span) <= 9
