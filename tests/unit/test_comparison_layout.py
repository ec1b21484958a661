"""Labelled sheets: every cell in its place, headings beside it, every letter of the thesis' prompts printable."""

from PIL import Image, ImageChops, ImageDraw

from infer import contact_sheet
from infer.comparison import figures
from infer.comparison.layout import Sheet, layout_of, render_sheet
from infer.contact_sheet import GAP

COLOURS = {(0, 0): (200, 0, 0), (1, 0): (0, 200, 0), (0, 1): (0, 0, 200)}


def sheet(**more: object) -> Sheet:
    cells = {at: Image.new("RGB", (64, 64), colour) for at, colour in COLOURS.items()}
    return Sheet(["steps 10", "steps 20"], ["a guitar", "a word " * 20], cells, **more)  # type: ignore[arg-type]


def test_cells_stand_in_their_places_and_a_missing_one_is_white() -> None:
    drawn = render_sheet(sheet(title="seed 1", footer="50 steps", notes={(0, 0): "fits 0.3"}))
    page = layout_of(sheet())
    assert (page.width, page.height) == (256, 256)
    middles = {at: page.left(at[0]) + 128 for at in ((0, 0), (1, 0), (0, 1), (1, 1))}
    columns = {at: [drawn.getpixel((x, y)) for y in range(drawn.height)] for at, x in middles.items()}
    for at, colour in COLOURS.items():
        assert columns[at].count(colour) == 256, at
    assert columns[0, 0].index((200, 0, 0)) < columns[0, 1].index((0, 0, 200))
    assert (0, 0, 200) not in columns[1, 1]
    side = drawn.crop((0, 0, page.left(0) - 1, drawn.height))
    assert ImageChops.invert(side.convert("L")).getbbox(), "headings beside the rows"


def test_many_columns_are_not_enlarged_past_a_screen() -> None:
    cells = {(column, 0): Image.new("RGB", (64, 64)) for column in range(30)}
    assert render_sheet(Sheet([str(column) for column in range(30)], [""], cells)).width <= 30 * (96 + GAP) + GAP
    large = {(0, 0): Image.new("RGB", (512, 512)), (1, 0): Image.new("RGB", (64, 64), "red")}
    drawn = render_sheet(Sheet(["SD", "pocket"], [""], large))
    assert drawn.width == 2 * 512 + 3 * GAP, "models of two sizes share a sheet"


def test_every_letter_of_the_prompts_has_a_shape() -> None:
    nothing = shape("\uffff")
    panels = [panel for figure in figures.load_figures() for panel in figure.panels]
    letters = {letter for panel in panels for letter in panel.prompt if letter != " "}
    assert "é" in letters
    for letter in letters:
        assert shape(letter) != nothing, letter


def shape(letter: str) -> bytes:
    """A letter as it is printed."""
    paper = Image.new("L", (40, 40))
    ImageDraw.Draw(paper).text((5, 5), letter, fill=255, font=contact_sheet.load_font(20))
    return paper.tobytes()
