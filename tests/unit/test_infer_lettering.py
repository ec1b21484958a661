"""Words of any script on sheets, by an installed font that has them; what none has is said once: no silent box."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw

from infer import contact_sheet
from infer.comparison.layout import Sheet, render_sheet
from infer.contact_sheet import MISSING_GLYPH

EM = 1000


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


def test_what_no_font_has_is_said_once(squares: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = contact_sheet.SheetCell(Image.new("RGB", (64, 64)), "水 草型 é \U0001f3b8")
    contact_sheet.build_grid([cell, cell], 2)
    drawing = Sheet(["草"], ["水"], {(0, 0): Image.new("RGB", (64, 64))}, "型")
    render_sheet(drawing)
    said = capsys.readouterr().err.splitlines()
    names = [
        "型 (U+578B)",
        "草 (U+8349)",
        *([] if contact_sheet.font_for("\U0001f3b8") is None else ["\U0001f3b8 (U+1F3B8)"]),
    ]
    assert len(said) == 1
    assert said[0].startswith(
        f"warning: no font here has {', '.join(names)}: sheets show {MISSING_GLYPH}; the pictures and"
    )
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
