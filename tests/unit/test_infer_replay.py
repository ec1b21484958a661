"""--params-from: whose settings are understood, what a typed flag answers for, and what cannot be repeated."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from data.atomic_io import file_sha256
from data.errors import InputError
from infer import config, metadata, png_info
from infer.config import GenerateOptions
from infer.metadata import LoraUsed, ModelUsed
from tests.unit.test_infer_metadata import PICTURE, recipe

A1111 = (
    "a (water:1.2) {fridge}\nNegative prompt: bad\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, "
    "CFG scale: 6.5, Seed: 7, Size: 64x32, Model hash: 0123456789, Model: dreamy, Clip skip: 2, Hires upscale: 2, "
    "Version: v1.10.1"
)


def ours(folder: Path, **changes: Any) -> Path:
    metadata.write_png(folder / "a.png", PICTURE, recipe(**changes))
    return folder / "a.png"


def texts(folder: Path, **found: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for key, value in found.items():
        info.add_itxt(key.replace("__", "-"), value)
    PICTURE.save(folder / "b.png", pnginfo=info)
    return folder / "b.png"


def replayed(path: Path, *argv: str) -> GenerateOptions:
    return png_info.options_from_image(config.read_options(["--params-from", str(path), *argv]))[0]


def test_our_own_settings_come_back_and_typed_flags_go_before(tmp_path: Path) -> None:
    path = ours(tmp_path, prompt="a {b} __c__ \\(d\\) é日", dtype="bf16")
    found = replayed(path)
    assert found.prompt == ("a \\{b\\} \\_\\_c\\_\\_ \\\\(d\\\\) é日",), "the text itself, not a template"
    assert (found.negative_prompt, found.seed, found.steps, found.guidance_scale) == ("blurry", 965400086, 20, 7.0)
    assert (found.width, found.height, found.scheduler, found.dtype) == (512, 768, "dpmpp_2m_karras", "bf16")
    assert found.model == "pocket"
    assert replayed(ours(tmp_path, micro_batch=2, device="cpu (AVX512)")).batch_size == 2
    assert replayed(ours(tmp_path, micro_batch=4, device="cuda (NVIDIA A10)")).batch_size is None
    other = replayed(path, "--seed", "1", "--prompt", "b", "--width", "64", "--model", "mine")
    assert (other.seed, other.prompt, other.width, other.height, other.model) == (1, ("b",), 64, 768, "mine")


def test_a1111s_text_is_taken_over_and_what_is_not_repeated_is_said(tmp_path: Path) -> None:
    path = texts(tmp_path, parameters=A1111)
    options, found = png_info.options_from_image(config.read_options(["--params-from", str(path)]))
    assert options.prompt == ("a (water:1.2) \\{fridge\\}",)
    assert (options.scheduler, options.guidance_scale, options.seed) == ("dpmpp_2m_karras", 6.5, 7)
    assert (options.width, options.height, options.model) == (64, 32, None)
    said = "\n".join(found.said)
    assert "its noise came from a GPU" in said
    assert "the model 'dreamy' (0123456789)" in said
    assert "Clip skip 2 is not repeated" in said
    assert "not repeated: Hires upscale: 2" in said
    assert "its weights were rescaled to the mean" in said
    assert not png_info.read_image_settings(texts(tmp_path, parameters="a\nSteps: 2, Seed: 1, RNG: CPU"), set()).said


def test_a1111s_jpegs_and_webps_hold_it_in_exif(tmp_path: Path) -> None:
    for suffix, encoding in (("jpg", "utf-16-be"), ("webp", "utf-16-le")):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + A1111.replace("water", "wäter 水").encode(encoding)
        PICTURE.save(tmp_path / f"a.{suffix}", exif=exif)
        assert replayed(tmp_path / f"a.{suffix}").prompt == ("a (wäter 水:1.2) \\{fridge\\}",)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + A1111.encode()
    PICTURE.save(tmp_path / "a.jpg", exif=exif)
    assert replayed(tmp_path / "a.jpg").seed == 7


def test_other_programs_settings(tmp_path: Path) -> None:
    invoke = {"positive_prompt": "a++ cat", "negative_prompt": None, "width": 64, "height": 32, "seed": 3}
    invoke |= {"cfg_scale": 5, "steps": 9, "scheduler": "dpmpp_2m_k", "model": {"name": "m"}, "loras": [{"model": "l"}]}
    found = png_info.read_image_settings(texts(tmp_path, invokeai_metadata=json.dumps(invoke)), set())
    assert found.program == "InvokeAI"
    assert "its LoRA is not loaded: l" in found.said
    assert replayed(tmp_path / "b.png").scheduler == "dpmpp_2m_karras"
    fooocus = {"prompt": "p", "seed": "5", "steps": 8, "resolution": "(64, 32)", "sampler": "dpmpp_2m_sde_gpu"}
    options = replayed(texts(tmp_path, parameters=json.dumps(fooocus | {"scheduler": "karras", "guidance_scale": 4})))
    assert (options.seed, options.width, options.height, options.scheduler) == (5, 64, 32, "dpmpp_2m_sde_karras")
    kohya = replayed(texts(tmp_path, prompt="p", seed="5", steps="8", scale="4", sampler="ddim", negative__prompt="n"))
    assert (kohya.prompt, kohya.steps, kohya.scheduler, kohya.negative_prompt) == (("p",), 8, "ddim", "n")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            {"parameters": "a\nSteps: 20, Sampler: DPM adaptive, Seed: 1"},
            "the sampler 'DPM adaptive', which is not known",
        ),
        ({"parameters": "a\nSteps: many, Sampler: Euler, Seed: 1"}, "its Steps 'many' is no number"),
        ({"parameters": "a\nSteps: 0, Sampler: Euler, Seed: 1"}, "steps is not allowed here"),
        ({"parameters": "a cat"}, "no settings that A1111 would read"),
        ({"parameters": "{"}, "holds damaged JSON"),
        ({"invokeai_metadata": "[]"}, "holds JSON that is no object"),
        ({"prompt": '{"3": {}}', "workflow": "{}"}, "ComfyUI's graph is not read"),
        ({"Software": "gimp"}, "holds no settings; allowed: a picture by this toolkit, A1111"),
    ],
)
def test_what_cannot_be_taken_over_is_one_line(tmp_path: Path, found: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        replayed(texts(tmp_path, **found))
    assert str(caught.value).startswith(f"--params-from {tmp_path}/b.png: ")
    assert "\n" not in str(caught.value)


def test_a_typed_sampler_answers_for_an_unknown_one(tmp_path: Path) -> None:
    path = texts(tmp_path, parameters="a\nSteps: 20, Sampler: DPM adaptive, Seed: 1")
    assert replayed(path, "--sampler", "euler").scheduler == "euler"


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no")
    for name in ("a.png", "missing.png"):
        with pytest.raises(InputError, match="is not a readable picture"):
            replayed(tmp_path / name)


def test_weights_are_found_by_name_and_content_or_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.safetensors").write_bytes(b"one")
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "s.safetensors").write_bytes(b"two")
    export = tmp_path / "runs" / "0001-x" / "export"
    export.mkdir(parents=True)
    (export / "lora.safetensors").write_bytes(b"three")
    (export.parent / "config.yaml").write_text("model: base\n")

    def used(name: str, file: Path | None) -> LoraUsed:
        digest = file_sha256(file) if file else "0" * 64
        return LoraUsed(name=name, sha256=digest, weight=0.5, matched=1, change=1.0, share=1.0)

    in_folder = used("s.safetensors", tmp_path / "loras" / "s.safetensors")
    assert replayed(ours(tmp_path, loras=(in_folder,))).lora == ("loras/s.safetensors:0.5",)
    of_run = replayed(ours(tmp_path, loras=(used("0001-x.safetensors", export / "lora.safetensors"),)))
    assert (of_run.model, of_run.lora) == (None, ("runs/0001-x/export/lora.safetensors:0.5",))
    with pytest.raises(InputError, match=r"s\.safetensors has changed since\. Name it with --lora FILE:0\.5"):
        replayed(ours(tmp_path, loras=(used("s.safetensors", None),)))
    with pytest.raises(InputError, match=r"the LoRA 'away\.safetensors', which is not here"):
        replayed(ours(tmp_path, loras=(used("away.safetensors", None),)))
    with pytest.raises(InputError, match=r"the model 'away', which is not here. Name it with --model"):
        replayed(ours(tmp_path, model=ModelUsed(name="away", fingerprint="")))
    assert replayed(ours(tmp_path, model=ModelUsed(name="0001-x", fingerprint=""))).model == "runs/0001-x"


def test_other_versions_are_said(tmp_path: Path) -> None:
    path = ours(tmp_path, versions={"torch": "1.0"})
    (line,) = png_info.read_image_settings(path, set()).said
    assert line.startswith("it was drawn with torch 1.0, this is ")


def test_exif_without_text_is_no_text(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.jpg")
    assert png_info.read_image_texts(tmp_path / "a.jpg") == {}
