"""Every image a folder may hold gets the right pixels or a clear verdict, and none is decoded beyond its bounds."""

import io
import os
import resource
import struct
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageFile, ImageOps

from data import images
from data.errors import InputError

SIZE = (48, 32)  # width, height of the test image


def scene(size: tuple[int, int] = SIZE) -> Image.Image:
    """A smooth image without symmetry, so that a wrong turn or a lost channel shows."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    red, green = 255 * x / (size[0] - 1), 255 * y / (size[1] - 1)
    return Image.fromarray(np.stack([red, green, 255 - red / 2 - green / 2], axis=2).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def saved(path: Path, image: Image.Image, kind: str, **options: object) -> Path:
    path.write_bytes(encoded(image, kind, **options))
    return path


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def inspect(path: Path) -> images.ImageInfo:
    return images.decode(images.read_bytes(path), path)[1]


def refused(path: Path) -> InputError:
    """The error for an unusable image: one line that names the file once and says how to fix it."""
    with pytest.raises(InputError) as inspected:
        inspect(path)
    with pytest.raises(InputError) as opened:
        images.open_image(path)
    assert str(inspected.value) == str(opened.value)
    assert inspected.value.where == path and "\n" not in str(inspected.value)
    return inspected.value


@pytest.mark.parametrize(
    ("kind", "suffix", "options", "tolerance"),
    [
        ("PNG", ".png", {}, 0),
        ("BMP", ".bmp", {}, 0),
        ("TIFF", ".tif", {"compression": "tiff_lzw"}, 0),
        ("WEBP", ".webp", {"lossless": True}, 0),
        ("JPEG", ".jpg", {"quality": 95, "subsampling": 0}, 6),
        ("AVIF", ".avif", {"quality": 95}, 12),
    ],
)
def test_every_format_gives_its_pixels(tmp_path: Path, kind: str, suffix: str, options: dict, tolerance: int) -> None:
    path = saved(tmp_path / f"a{suffix}", scene(), kind, **options)
    info, image = inspect(path), images.open_image(path)
    assert (info.width, info.height, info.format, info.mode, info.frames) == (*SIZE, kind, "RGB", 1)
    assert info.notes == () and info.warnings == ()
    assert image.mode == "RGB"
    assert abs(pixels(image) - pixels(scene())).max() <= tolerance


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_cut_file_is_refused_or_whole_at_every_length(tmp_path: Path, kind: str) -> None:
    content = encoded(scene(), kind)
    path = tmp_path / f"a{images.FORMATS[kind][0]}"
    path.write_bytes(content)
    whole = pixels(images.open_image(path))
    errors = 0
    for length in range(0, len(content), max(1, len(content) // 150)):
        path.write_bytes(content[:length])
        try:
            image = images.open_image(path)
        except InputError:
            errors += 1
            continue
        assert (pixels(image) == whole).all(), f"{length} of {len(content)} bytes gave another image"
    assert errors > 50


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_damaged_files_give_a_image_or_a_verdict_and_nothing_else(kind: str) -> None:
    content = encoded(scene(), kind)
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content)
        for at in rng.integers(0, len(content), 4):
            damaged[at] = rng.integers(0, 256)
        try:
            image, _ = images.decode(bytes(damaged), Path("a.png"))
        except InputError:
            continue
        assert image.mode == "RGB"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"hello" * 50, "not a readable image"),
        (b"\n<!doctype HTML><p>404", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\xff\xd8\xff" + b"rubbish" * 9, "header"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
    ],
)
def test_what_is_not_an_image(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert words in refused(path).what and refused(path).fix


def test_only_listed_decoders_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", scene(), "PPM")  # Pillow would open it, and PostScript through Ghostscript too
    assert refused(path).allowed == ", ".join(images.DECODERS)


def test_a_wrong_suffix_is_used_and_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", scene(), "JPEG", quality=95)
    info = inspect(path)
    assert info.format == "JPEG"
    assert info.warnings == ("is a JPEG file by its content, and used as such. Rename it to end in .jpg.",)
    assert inspect(saved(tmp_path / "B.JPG", scene(), "JPEG")).warnings == ()


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", scene().convert("CMYK"), "TIFF")
    assert inspect(path).notes == ("CMYK is converted to RGB",)
    assert abs(pixels(images.open_image(path)) - pixels(scene())).max() <= 1
    jpeg = saved(tmp_path / "a.jpg", scene().convert("CMYK"), "JPEG", quality=98)
    assert abs(pixels(images.open_image(jpeg)) - pixels(scene())).max() <= 12


@pytest.mark.parametrize(("kind", "suffix"), [("PNG", ".png"), ("TIFF", ".tif")])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, kind: str, suffix: str) -> None:
    values = np.linspace(0, 65535, SIZE[0] * SIZE[1]).round().astype(np.uint16).reshape(SIZE[1], SIZE[0])
    path = saved(tmp_path / f"a{suffix}", Image.fromarray(values), kind)
    info = inspect(path)
    assert (info.mode, info.notes) == ("I;16", ("16-bit grey is scaled to 8 bits",))
    grey = pixels(images.open_image(path))
    assert (grey == np.round(values / 257).astype(int)[:, :, None]).all()
    assert (grey.min(), grey.max()) == (0, 255)


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(np.ones((32, 32), np.float32)), "TIFF")
    assert "mode F" in refused(path).what


def test_alpha_is_laid_on_white(tmp_path: Path) -> None:
    alpha = Image.linear_gradient("L").resize(SIZE)
    image = scene()
    image.putalpha(alpha)
    path = saved(tmp_path / "a.png", image, "PNG")
    assert inspect(path).notes == ("transparency is shown on white",)
    share = pixels(alpha)[:, :, None] / 255
    expected = pixels(scene()) * share + 255 * (1 - share)
    assert abs(pixels(images.open_image(path)) - expected).max() <= 1


def test_alpha_that_hides_nothing_is_not_mentioned(tmp_path: Path) -> None:
    image = scene()
    image.putalpha(255)
    path = saved(tmp_path / "a.png", image, "PNG")
    assert inspect(path).notes == ()
    assert (pixels(images.open_image(path)) == pixels(scene())).all()


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_a_transparent_colour_becomes_white(tmp_path: Path, mode: str) -> None:
    left_black = Image.new("RGB", (32, 32), "gray" if mode != "1" else "white")
    left_black.paste((0, 0, 0), (0, 0, 16, 32))
    if mode == "P":
        palette = left_black.quantize(4)
        options: dict = {"transparency": palette.getpixel((0, 0))}
        left_black = palette
    else:
        left_black = left_black.convert(mode)
        options = {"transparency": (0, 0, 0) if mode == "RGB" else 0}
    path = saved(tmp_path / "a.png", left_black, "PNG", **options)
    image = images.open_image(path)
    assert image.getpixel((4, 4)) == (255, 255, 255)
    assert image.getpixel((28, 4)) == ((255,) * 3 if mode == "1" else (128,) * 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_followed(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 98} if kind in {"JPEG", "WEBP"} else {}
    path = saved(tmp_path / f"a{images.FORMATS[kind][0]}", scene(), kind, exif=exif, **options)
    with Image.open(path) as stored:
        expected = ImageOps.exif_transpose(stored).convert("RGB")
    info = inspect(path)
    assert (info.width, info.height) == expected.size == (SIZE if orientation < 5 else SIZE[::-1])
    assert abs(pixels(images.open_image(path)) - pixels(expected)).max() == 0


def test_nonsense_in_exif_turns_nothing(tmp_path: Path) -> None:
    for block in (
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x07" * 30,
        b"Exif\0\0rubbish",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
    ):
        path = saved(tmp_path / "a.jpg", scene(), "JPEG", exif=block)
        assert images.open_image(path).size == SIZE
    exif = Image.Exif()
    exif[0x0112] = 99
    assert inspect(saved(tmp_path / "a.png", scene(), "PNG", exif=exif)).notes == ()


@pytest.mark.parametrize(("kind", "suffix"), [("GIF", ".gif"), ("WEBP", ".webp"), ("PNG", ".png"), ("TIFF", ".tif")])
def test_the_first_frame_of_an_animation_is_used_and_said(tmp_path: Path, kind: str, suffix: str) -> None:
    colours = [Image.new("RGB", (32, 32), name) for name in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    path = saved(tmp_path / f"a{suffix}", colours[0], kind, save_all=True, append_images=colours[1:], **options)
    info = inspect(path)
    assert info.frames == 3
    assert info.warnings == ("has 3 frames: only the first is used. Save the one you mean as PNG.",)
    assert images.open_image(path).getpixel((5, 5)) == (255, 0, 0)


def test_a_telephones_second_image_is_not_mentioned(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", scene(), "MPO", save_all=True, append_images=[scene((24, 16))])
    info = inspect(path)
    assert (info.format, info.frames, info.warnings) == ("MPO", 2, ())


@pytest.mark.parametrize(("size", "allowed"), [((1, 1), "16 pixels"), ((15, 60), "16 pixels"), ((16, 257), "16 : 1")])
def test_shapes_that_are_refused(tmp_path: Path, size: tuple[int, int], allowed: str) -> None:
    assert allowed in str(refused(saved(tmp_path / "a.png", Image.new("RGB", size), "PNG")).allowed)


def test_a_long_image_is_used_with_a_warning(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (81, 20)), "PNG")
    (warning,) = inspect(path).warnings
    assert "81 x 20" in warning
    assert inspect(saved(tmp_path / "b.png", Image.new("RGB", (80, 20)), "PNG")).warnings == ()


def bomb_png(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes whose header declares any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(4096))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def bomb_bmp(width: int, height: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 64, 0, 0, 54) + head + bytes(64)


def bomb_webp(width: int, height: int) -> bytes:
    """An extended WebP header (VP8X) that declares a canvas, around a small image."""
    flags = struct.pack("<I", 0)
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    small = encoded(scene(), "WEBP", lossless=True)[12:]
    chunks = b"VP8X" + struct.pack("<I", 10) + flags + canvas + small
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def bomb_gif(width: int, height: int) -> bytes:
    content = bytearray(encoded(scene(), "GIF"))
    content[6:10] = struct.pack("<HH", width, height)
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        (bomb_png(60000, 60000), ".png"),
        (bomb_png(9000, 9000), ".png"),  # under Pillow's own limit, over ours
        (bomb_png(2**31 - 1, 2**31 - 1), ".png"),
        (bomb_bmp(65000, 65000), ".bmp"),
        (bomb_gif(65535, 65535), ".gif"),
        (bomb_webp(16000, 16000), ".webp"),
    ],
)
def test_a_decompression_bomb_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert len(content) < 5000
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it was decoded"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    expected = ("is too large to decode", "is damaged (could not create decoder")  # the latter: WebP with Pillow 12
    assert refused(path).what.startswith(expected)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_a_file_larger_than_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        file.truncate(images.MAX_BYTES + (1 << 20))  # sparse: takes no room on the disk
    assert "512 MiB" in refused(path).what


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No such file" in refused(tmp_path / "gone.png").what
    (tmp_path / "folder.png").mkdir()
    assert "not a file" in refused(tmp_path / "folder.png").what
    os.mkfifo(tmp_path / "pipe.png")  # opening one to read would wait for ever
    assert "not a file" in refused(tmp_path / "pipe.png").what
    path = saved(tmp_path / "a.png", scene(), "PNG")

    def refuse(*_: object) -> int:  # the tests may run as root, who may read everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert "Permission denied" in refused(path).what and "chmod" in str(refused(path).fix)


def test_pillows_warnings_do_not_reach_the_screen(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = saved(tmp_path / "a.tif", scene(), "TIFF", tiffinfo={282: 72.0, 296: 2})
    images.open_image(path)
    path.write_bytes(bomb_png(9500, 9500))  # 90 million: Pillow itself only warns
    with pytest.raises(InputError):
        images.open_image(path)
    assert not recwarn.list


@pytest.mark.parametrize(("width", "height"), [(32, 32), (48, 16), (16, 48), (100, 90), (48, 32)])
def test_fit_covers_and_keeps_the_centre(width: int, height: int) -> None:
    target = images.resize_and_crop(scene(), width, height)
    assert target.size == (width, height)
    assert target.mode == "RGB"
    middle = pixels(target).mean(axis=(0, 1))
    assert abs(middle - pixels(scene()).mean(axis=(0, 1))).max() < 2.5
    if (width, height) == SIZE:
        assert (pixels(target) == pixels(scene())).all()


def test_fit_does_not_alias() -> None:
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (256, 128))).convert("RGB")
    assert abs(pixels(images.resize_and_crop(stripes, 32, 32)) - 127.5).max() < 12


def test_tensor_and_back_is_exact_for_every_value() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([values, values[::-1], values.T], axis=2))
    tensor = images.image_to_tensor(image)
    assert tensor.shape == (3, 16, 16)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    expected = torch.from_numpy(np.asarray(image).astype(np.float64) / 127.5 - 1).permute(2, 0, 1)
    assert (tensor - expected).abs().max() < 1e-6
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert (pixels(images.tensor_to_image(tensor)) == pixels(image)).all()


def test_to_image_rounds_and_clips() -> None:
    level = torch.tensor([-3.0, -1.0, (100.4 / 127.5) - 1, (100.6 / 127.5) - 1, 1.0, 3.0])
    assert pixels(images.tensor_to_image(level.expand(3, 1, 6)))[0, :, 0].tolist() == [0, 0, 100, 101, 255, 255]
    assert images.tensor_to_image(torch.zeros(3, 2, 2, dtype=torch.bfloat16)).getpixel((0, 0)) == (128, 128, 128)


def test_tensor_to_image_refuses_nan() -> None:
    with pytest.raises(InputError, match="NaN"):
        images.tensor_to_image(torch.full((3, 2, 2), float("nan")))


def profile_with_swapped_primaries() -> bytes:
    """sRGB's profile with its red and green primaries exchanged: a colour space that nobody could miss."""
    content = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert content.count(b"rXYZ") == content.count(b"gXYZ") == 1
    swapped = content.replace(b"rXYZ", b"tmp_").replace(b"gXYZ", b"rXYZ").replace(b"tmp_", b"gXYZ")
    return swapped.replace("sRGB".encode("utf-16-be"), "Swap".encode("utf-16-be")).replace(b"sRGB", b"Swap")


def test_colours_of_another_space_are_converted(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", scene(), "PNG", icc_profile=profile_with_swapped_primaries())
    assert inspect(path).notes == ("colours are converted from Swap built-in to sRGB",)
    assert abs(pixels(images.open_image(path)) - pixels(scene())[:, :, [1, 0, 2]]).max() <= 2


def test_srgb_is_left_alone_and_a_broken_profile_is_said(tmp_path: Path) -> None:
    content = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = saved(tmp_path / "a.png", scene(), "PNG", icc_profile=content)
    assert inspect(path).notes == ()
    path = saved(tmp_path / "a.png", scene(), "PNG", icc_profile=content[:60] + b"rubbish")
    assert inspect(path).notes == ("its colour profile cannot be read",)
    assert (pixels(images.open_image(path)) == pixels(scene())).all()


def test_plugins_of_pillow_are_used_where_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[str] = []
    plugin = SimpleNamespace(register_heif_opener=lambda: registered.append("heif"))
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)  # not installed
    assert images.plugin_formats() == {"HEIF": (".heic", ".heif")}
    assert registered == ["heif"]
