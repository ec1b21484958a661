"""What a PNG says, read back by ours and by a parser that shares no line with it."""

import json
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from infer import metadata
from infer.metadata import ImageMetadata, LoraUsed, ModelUsed
from infer.text_encoding import TokenCount
from tests.errors import error_of

PICTURE = Image.new("RGB", (8, 8), "#336699")


def recipe(**changes: object) -> ImageMetadata:
    plain = ImageMetadata(
        prompt="a water type fridge", negative_prompt="blurry", seed=965400086, steps=20, guidance_scale=7.0,
        scheduler="DPMSolverMultistepScheduler", sampler="DPM++ 2M Karras", scheduler_config={"beta_start": 0.00085},
        width=512, height=768, dtype="fp32", device="cpu (AVX2)",
        model=ModelUsed(name="pocket", fingerprint="0123456789abcdef"), tokens=TokenCount(count=4, limit=75),
        negative_tokens=TokenCount(count=1, limit=75), micro_batch=1, threads=2,
        versions={"atelier": "0.1.0", "torch": "2.13.0"},
    )  # fmt: skip
    return plain.model_copy(update=changes)


def read_parameters(path: Path) -> dict[str, str]:
    return metadata.parse_parameters(metadata.read_image_texts(path).get(metadata.A1111_KEY, ""))


def chunks(png: bytes) -> list[tuple[str, bytes]]:
    """A PNG's chunks, each checked against its CRC (PNG specification, section 5.3)."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    found, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack(">I", png[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + body),)
        found.append((kind.decode(), body))
        at += 12 + length
    return found


def text_chunks(png: bytes) -> dict[str, tuple[str, str]]:
    """keyword -> (chunk kind, text) of tEXt (Latin-1) and iTXt (UTF-8) chunks (sections 11.3.3.2 and 11.3.3.4)."""
    found = {}
    for kind, body in chunks(png):
        if kind == "tEXt":
            key, _, text = body.partition(b"\0")
            found[key.decode()] = (kind, text.decode("latin-1"))
        elif kind == "iTXt":
            key, _, rest = body.partition(b"\0")
            assert rest[:2] == b"\0\0", "uncompressed"
            found[key.decode()] = (kind, rest[2:].split(b"\0", 2)[2].decode("utf-8"))
    return found


def pairs(line: str) -> dict[str, str]:
    """A1111's line of settings, read character by character: `Key: value, Key: "quoted, value"`."""
    found, rest = {}, line
    while rest:
        key, _, rest = rest.partition(": ")
        if rest.startswith('"'):
            value, end = json.JSONDecoder().raw_decode(rest)
            rest = rest[end:].removeprefix(", ")
        else:
            value, _, rest = rest.partition(", ")
        found[key] = value
    return found


def test_the_a1111_text_is_exact() -> None:
    assert metadata.format_parameters(recipe()) == (
        "a water type fridge\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, "
        "Model hash: 0123456789, Model: pocket, RNG: CPU, Version: atelier 0.1.0"
    )


def test_an_empty_negative_prompt_has_no_line_and_other_samplers_no_schedule() -> None:
    prompt, settings = metadata.format_parameters(recipe(negative_prompt="", sampler="PLMS")).split("\n")
    assert prompt == "a water type fridge"
    assert settings.startswith("Steps: 20, Sampler: PLMS, CFG scale: 7, Seed:")


def test_an_independent_reader_finds_every_setting(tmp_path: Path) -> None:
    loras = (
        LoraUsed(name="a.safetensors", sha256="a" * 64, weight=0.5, matched=2, change=1.0, share=0.1),
        LoraUsed(name="b.safetensors", sha256="b" * 64, weight=1.0, matched=2, change=1.0, share=0.1),
    )
    model = ModelUsed(name="models/odd, name: v1.safetensors", fingerprint="f" * 64, file_hash="e" * 64)
    metadata.write_png(tmp_path / "a.png", PICTURE, recipe(loras=loras, model=model, prompt="one\ntwo, (three:1.2)"))
    kind, text = text_chunks((tmp_path / "a.png").read_bytes())["parameters"]
    assert kind == "tEXt"
    *prompt, negative, settings = text.split("\n")
    words = ["one", "two, (three:1.2) <lora:a:0.5> <lora:b:1>"]
    assert (prompt, negative) == (words, "Negative prompt: blurry")
    found = pairs(settings)
    assert found["Lora hashes"] == f"a: {'a' * 12}, b: {'b' * 12}"
    assert (found["Model"], found["Model hash"], found["RNG"]) == ("odd, name: v1", "e" * 10, "CPU")
    assert found == {k: v for k, v in read_parameters(tmp_path / "a.png").items() if "rompt" not in k}


@pytest.mark.parametrize(
    ("prompt", "kind"), [("a toucan", "tEXt"), ("A Pokémon calculator", "iTXt"), ("日本の猫", "iTXt")]
)
def test_what_is_not_ascii_is_written_as_utf8(tmp_path: Path, prompt: str, kind: str) -> None:
    metadata.write_png(tmp_path / "a.png", PICTURE, recipe(prompt=prompt))
    found = text_chunks((tmp_path / "a.png").read_bytes())
    assert found["parameters"][0] == kind
    assert found["parameters"][1].startswith(f"{prompt}\n")
    assert json.loads(found["atelier"][1])["prompt"] == prompt
    assert read_parameters(tmp_path / "a.png")["Prompt"] == prompt


def test_a_recipe_is_read_back_whole_and_pixels_are_kept(tmp_path: Path) -> None:
    written = recipe(verdict="nan", tokens=TokenCount(count=90, limit=75, lost="the end"))
    metadata.write_png(tmp_path / "a.png", PICTURE, written)
    assert metadata.read_metadata(tmp_path / "a.png") == written
    assert metadata.encode_png(PICTURE, written) == (tmp_path / "a.png").read_bytes(), "the same recipe, the same file"
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.tobytes() == PICTURE.tobytes()


def test_a1111s_own_texts_are_read() -> None:
    old = "a cat\nNegative prompt: bad\nhands\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 8x8"
    found = metadata.parse_parameters(old)
    assert (found["Prompt"], found["Negative prompt"]) == ("a cat", "bad\nhands")
    assert (found["Sampler"], found["Size"]) == ("DPM++ 2M Karras", "8x8")
    assert metadata.parse_parameters("a cat\nratio: 1, mood: good") == {"Prompt": "a cat\nratio: 1, mood: good"}
    assert metadata.parse_parameters("") == {}


def test_files_without_metadata(tmp_path: Path) -> None:
    bare, text, damaged, cut = (tmp_path / name for name in ("bare.png", "text.png", "damaged.png", "cut.png"))
    PICTURE.save(bare)
    text.write_text("no image")
    content = metadata.encode_png(PICTURE, recipe())
    damaged.write_bytes(content.replace(b'"steps": 20', b'"steps": "x"'))
    cut.write_bytes(content[:-40])
    for path in (bare, text, damaged, cut):
        assert error_of(metadata.read_metadata, path).where == path
    assert read_parameters(bare) == {}
