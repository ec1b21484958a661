"""Contact sheets: every image is on them unchanged, every word fits, in any script that a font has."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageChops, ImageDraw

from infer import contact_sheet
from infer.contact_sheet import GAP, MISSING_GLYPH, SheetCell, SheetRow

EM = 1000


def plain(colour: str, side: int = 256) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def region(sheet: Image.Image, left: int, top: int, width: int, height: int) -> Image.Image:
    return sheet.crop((left, top, left + width, top + height))


def has_ink(picture: Image.Image) -> bool:
    return ImageChops.difference(picture, Image.new("RGB", picture.size, contact_sheet.PAPER)).getbbox() is not None


def test_large_pictures_stand_on_the_sheet_pixel_for_pixel() -> None:
    noise = Image.effect_noise((256, 320), 60).convert("RGB")
    sheet = contact_sheet.build_sheet(
        [SheetRow([SheetCell(noise), SheetCell(noise.transpose(Image.Transpose.FLIP_LEFT_RIGHT))])]
    )
    assert region(sheet, GAP, GAP, 256, 320).tobytes() == noise.tobytes()
    assert sheet.width == 2 * 256 + 3 * GAP


@pytest.mark.parametrize(("side", "factor"), [(64, 4), (96, 3), (128, 2), (255, 2), (256, 1), (512, 1), (8, 32)])
def test_small_pictures_are_enlarged_by_the_smallest_factor_that_is_readable(side: int, factor: int) -> None:
    sheet = contact_sheet.build_sheet([SheetRow([SheetCell(plain("#cc0000", side))])])
    assert region(sheet, GAP, GAP, side * factor, side * factor).getcolors() == [((side * factor) ** 2, (204, 0, 0))]


def test_columns_rows_and_cells_are_labelled() -> None:
    rows = [
        SheetRow([SheetCell(plain("red"), "seed 1"), SheetCell(plain("blue"))], "a prompt"),
        SheetRow([SheetCell(plain("green"))]),
    ]
    sheet = contact_sheet.build_sheet(rows, columns=["base", "tuned"])
    head = contact_sheet.wrap_text("base", 256, contact_sheet.HEAD_SIZE).height
    label = contact_sheet.wrap_text("a prompt", 256).height
    assert has_ink(region(sheet, GAP, GAP, 256, head))
    assert has_ink(region(sheet, GAP + 256 + GAP, GAP, 256, head))
    assert has_ink(region(sheet, GAP, GAP + head, 256, label))
    top = GAP + head + label
    assert region(sheet, GAP, top, 256, 256).getcolors() == [(256 * 256, (255, 0, 0))]
    under = contact_sheet.wrap_text("seed 1", 256).height
    assert has_ink(region(sheet, GAP, top + 256, 256, under))
    assert not has_ink(region(sheet, GAP + 256 + GAP, top + 256, 256, under))


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
    cell = SheetCell(Image.new("RGB", (64, 64)), "水 草型 é")
    contact_sheet.build_grid([cell, cell], 2)
    contact_sheet.build_grid([cell], 1)
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
