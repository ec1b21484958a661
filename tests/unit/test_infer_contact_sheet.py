"""Contact sheets: every image is on them unchanged and in its place, every word fits, in any script that a font has."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageChops, ImageDraw

from infer import contact_sheet
from infer.comparison import figures
from infer.contact_sheet import GAP, MISSING_GLYPH, Sheet, grid_sheet, layout_of, render_sheet

EM = 1000
COLOURS = {(0, 0): (200, 0, 0), (1, 0): (0, 200, 0), (0, 1): (0, 0, 200)}


def sheet(**more: object) -> Sheet:
    cells = {at: Image.new("RGB", (64, 64), colour) for at, colour in COLOURS.items()}
    return Sheet(["steps 10", "steps 20"], ["a guitar", "a word " * 20], cells, **more)  # type: ignore[arg-type]


def test_large_images_stand_on_the_sheet_pixel_for_pixel() -> None:
    noise = Image.effect_noise((256, 320), 60).convert("RGB")
    drawn = render_sheet(grid_sheet([noise, noise.transpose(Image.Transpose.FLIP_LEFT_RIGHT)], ["", ""], 2))
    assert drawn.crop((GAP, GAP, GAP + 256, GAP + 320)).tobytes() == noise.tobytes()
    assert drawn.width == 2 * 256 + 3 * GAP


@pytest.mark.parametrize(("side", "factor"), [(64, 4), (96, 3), (128, 2), (255, 2), (256, 1), (512, 1), (8, 32)])
def test_small_images_are_enlarged_by_the_smallest_factor_that_is_readable(side: int, factor: int) -> None:
    drawn = render_sheet(grid_sheet([Image.new("RGB", (side, side), "#cc0000")], [""], 1))
    cell = drawn.crop((GAP, GAP, GAP + side * factor, GAP + side * factor))
    assert cell.getcolors() == [((side * factor) ** 2, (204, 0, 0))]


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
    for box in ((0, 0, page.left(0) - 1, drawn.height), (0, 0, drawn.width, GAP + 20)):
        assert ImageChops.invert(drawn.crop(box).convert("L")).getbbox(), "headings beside the rows, a title on top"
    assert drawn.height > render_sheet(sheet()).height, "title and note have room"


def test_many_columns_are_not_enlarged_past_a_screen() -> None:
    cells = {(column, 0): Image.new("RGB", (64, 64)) for column in range(30)}
    assert render_sheet(Sheet([str(column) for column in range(30)], [""], cells)).width <= 30 * (96 + GAP) + GAP
    large = {(0, 0): Image.new("RGB", (512, 512)), (1, 0): Image.new("RGB", (64, 64), "red")}
    drawn = render_sheet(Sheet(["SD", "pocket"], [""], large))
    assert drawn.width == 2 * 512 + 3 * GAP, "models of two sizes share a sheet"


@pytest.mark.parametrize(
    "text", ["a water type fridge " * 5, "x" * 400, "A Pokémon\ncalculator\x1b[31m", "日" * 90, "w" * 3]
)
def test_wrapped_text_fits_and_loses_nothing_while_it_is_short(text: str) -> None:
    block = contact_sheet.wrap_text(text, 120)
    measure = contact_sheet.load_font(block.size).getlength
    assert all(measure(line) <= 120 for line in block.lines[: contact_sheet.MAX_LINES - 1])
    assert all(char.isprintable() for line in block.lines for char in line)
    if len(block.lines) < contact_sheet.MAX_LINES:
        kept = "".join(block.lines).replace(" ", "")
        assert kept == "".join(char for char in text if char.isprintable() and char != " ")


def test_a_novel_is_cut_with_an_ellipsis() -> None:
    block = contact_sheet.wrap_text("word " * 10_000, 256)
    assert len(block.lines) == contact_sheet.MAX_LINES
    assert block.lines[-1].endswith("...")
    assert contact_sheet.wrap_text("  ", 256).height == 0


def test_a_job_of_one_prompt_is_a_square_and_of_few_seeds_a_row_for_each_prompt() -> None:
    sizes = ((1, 1), (4, 1), (5, 1), (6, 3), (64, 64))
    assert [contact_sheet.choose_columns(count, per) for count, per in sizes] == [1, 2, 3, 3, 8]


def test_a_broken_picture_is_neither_black_nor_a_picture() -> None:
    colours = contact_sheet.placeholder_image(64, 64).getcolors(maxcolors=64 * 64)
    assert colours is not None
    assert len(colours) > 2
    assert (0, 0, 0) not in {colour for _, colour in colours}


# ---- fonts


def a_font(path: Path, letters: str) -> Path:
    """A TrueType file whose every letter is a black square of half an em on the line."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 500), (500, 500), (500, 0)):
        pen.lineTo(corner)
    pen.closePath()
    names = [".notdef", *(f"uni{ord(letter):04X}" for letter in letters)]
    made = FontBuilder(EM)
    made.setupGlyphOrder(names)
    made.setupCharacterMap({ord(letter): f"uni{ord(letter):04X}" for letter in letters})
    made.setupGlyf({name: pen.glyph() if name != ".notdef" else TTGlyphPen(None).glyph() for name in names})
    made.setupHorizontalMetrics(dict.fromkeys(names, (EM, 0)))
    made.setupHorizontalHeader(ascent=800, descent=-200)
    made.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    made.setupOS2(sTypoAscender=800, sTypoDescender=-200)
    made.setupPost()
    made.save(path)
    return path


@pytest.fixture
def squares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The only installed font: it has 水 and 火, and DejaVu neither."""
    path = a_font(tmp_path / "NotoSansCJK-squares.ttf", "水火")
    monkeypatch.setattr(contact_sheet, "installed_fonts", lambda: (tmp_path / "damaged.ttf", path))
    monkeypatch.setattr(contact_sheet, "reported_characters", set())
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    contact_sheet.font_for.cache_clear()
    yield path
    contact_sheet.font_for.cache_clear()


def test_each_character_is_written_with_a_font_that_has_it(squares: Path) -> None:
    assert list(contact_sheet.split_by_font("a Pokémon fridge")) == [(None, "a Pokémon fridge")]
    assert list(contact_sheet.split_by_font("a 水火 fridge 水")) == [
        (None, "a "),
        (squares, "水火"),
        (None, " fridge "),
        (squares, "水"),
    ]
    assert contact_sheet.text_width("水火", 20) == 40
    assert contact_sheet.text_width("a 水", 20) == contact_sheet.load_font(20).getlength("a ") + 20


def test_fonts_stand_on_one_line(squares: Path) -> None:
    picture = Image.new("L", (60, 40), 255)
    contact_sheet.draw_text(ImageDraw.Draw(picture), 5, 4, "水", "#000000", 20)
    base = 4 + contact_sheet.load_font(20).getmetrics()[0]
    dark = picture.point([255] * 128 + [0] * 128)
    assert dark.getbbox() == (5, base - 10, 15, base)


def test_ascii_is_drawn_as_pillow_draws_it() -> None:
    ours, theirs = Image.new("L", (200, 40), 255), Image.new("L", (200, 40), 255)
    contact_sheet.draw_text(ImageDraw.Draw(ours), 5, 4, "a fire type fridge", "#000000", 13)
    ImageDraw.Draw(theirs).text((5, 4), "a fire type fridge", fill="#000000", font=contact_sheet.load_font(13))
    assert ours.tobytes() == theirs.tobytes()


def test_missing_glyphs_are_reported_once(squares: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for count in (2, 1):
        render_sheet(grid_sheet([Image.new("RGB", (64, 64))] * count, ["水 草型 é"] * count, count))
    (line,) = capsys.readouterr().err.splitlines()
    assert "型 (U+578B), 草 (U+8349)" in line and "水" not in line
    assert list(contact_sheet.split_by_font("草型 fridge")) == [(None, MISSING_GLYPH * 2), (None, " fridge")]


def test_lines_of_words_without_spaces_are_broken(squares: Path) -> None:
    block = contact_sheet.wrap_text("水火" * 30, 200, 20)
    assert block.lines[:-1] == ("水火" * 5,) * 5
    assert all(contact_sheet.text_width(line, 20) <= 200 for line in block.lines[:-1])


def test_the_machines_fonts_are_always_asked_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """However the system lists them: those for many scripts first, then by name."""
    listed = ["/f/Zebra.ttf", "/f/NotoSansCJK-Regular.ttc", "/f/alpha.ttf", "/g/DejaVuSans.ttf"]
    expected = ["NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "alpha.ttf", "Zebra.ttf"]
    for order in (listed, listed[::-1], listed[2:] + listed[:2]):
        monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", order.copy)
        contact_sheet.installed_fonts.cache_clear()
        assert [path.name for path in contact_sheet.installed_fonts()] == expected
    contact_sheet.installed_fonts.cache_clear()  # what was listed above is not on this machine


def test_the_sheets_own_font_has_the_letters_of_latin_scripts() -> None:
    assert contact_sheet.glyphs_of(contact_sheet.dejavu_path()) >= set(map(ord, "aé€"))


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
