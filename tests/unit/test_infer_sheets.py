"""Sheets: every picture is on them unchanged, every word fits, small pictures are enlarged by a whole factor."""

import pytest
from PIL import Image, ImageChops

from infer import contact_sheet
from infer.contact_sheet import GAP, SheetCell, SheetRow


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
    assert contact_sheet.enlargement(side, side) == factor
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
    assert [contact_sheet.choose_columns(count, per) for count, per in ((1, 1), (4, 1), (5, 1), (6, 3), (64, 64))] == [
        1,
        2,
        3,
        3,
        8,
    ]


def test_a_broken_picture_is_neither_black_nor_a_picture() -> None:
    colours = contact_sheet.placeholder_image(64, 64).getcolors(maxcolors=64 * 64)
    assert colours is not None
    assert len(colours) > 2
    assert (0, 0, 0) not in {colour for _, colour in colours}
