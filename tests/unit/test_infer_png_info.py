"""--params-from: whose settings are understood, which flags take precedence, and what cannot be repeated."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from data.atomic_io import file_sha256
from infer import config, metadata, png_info
from infer.config import GenerateOptions
from infer.metadata import LoraUsed, ModelUsed
from tests.errors import error_of
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


def test_our_own_settings_come_back_under_typed_flags(tmp_path: Path) -> None:
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


def test_a1111s_text_and_what_is_not_repeated(tmp_path: Path) -> None:
    path = texts(tmp_path, parameters=A1111)
    options, found = png_info.options_from_image(config.read_options(["--params-from", str(path)]))
    assert options.prompt == ("a (water:1.2) \\{fridge\\}",)
    assert (options.scheduler, options.guidance_scale, options.seed) == ("dpmpp_2m_karras", 6.5, 7)
    assert (options.width, options.height, options.model) == (64, 32, None)
    notes = "\n".join(found.notes)
    assert all(word in notes for word in ("GPU", "dreamy", "Clip skip", "Hires upscale", "Emphasis"))
    assert not png_info.read_image_settings(texts(tmp_path, parameters="a\nSteps: 2, Seed: 1, RNG: CPU"), set()).notes


def test_a1111s_jpegs_and_webps_have_it_in_exif(tmp_path: Path) -> None:
    for suffix, encoding in (("jpg", "utf-16-be"), ("webp", "utf-16-le")):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + A1111.replace("water", "wäter 水").encode(encoding)
        PICTURE.save(tmp_path / f"a.{suffix}", exif=exif)
        assert replayed(tmp_path / f"a.{suffix}").prompt == ("a (wäter 水:1.2) \\{fridge\\}",)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + A1111.encode()
    PICTURE.save(tmp_path / "a.jpg", exif=exif)
    assert replayed(tmp_path / "a.jpg").seed == 7
    PICTURE.save(tmp_path / "plain.jpg")
    assert metadata.read_image_texts(tmp_path / "plain.jpg") == {}


def test_other_programs(tmp_path: Path) -> None:
    invoke = {"positive_prompt": "a++ cat", "negative_prompt": "", "width": 64, "height": 32, "seed": 3}
    invoke |= {"cfg_scale": 5, "steps": 9, "scheduler": "dpmpp_2m_k", "model": {"model_name": "m"}}
    path = texts(tmp_path, invokeai_metadata=json.dumps(invoke | {"loras": [{"model": "l"}]}))
    found = png_info.read_image_settings(path, set())
    assert found.program == "InvokeAI" and any("l" in note for note in found.notes)
    options = replayed(path)
    assert (options.prompt, options.scheduler, options.weighting) == (("a++ cat",), "dpmpp_2m_karras", "compel")
    assert (options.width, options.height, options.seed, options.steps) == (64, 32, 3, 9)
    fooocus = {"prompt": "p", "seed": "5", "steps": 8, "resolution": "(64, 32)", "sampler": "dpmpp_2m_sde_gpu"}
    fooocus |= {"scheduler": "karras", "guidance_scale": 4, "negative_prompt": "n"}
    fooocus |= {"base_model": "m", "base_model_hash": "h"}
    options = replayed(texts(tmp_path, parameters=json.dumps(fooocus)))
    assert (options.seed, options.width, options.height, options.scheduler) == (5, 64, 32, "dpmpp_2m_sde_karras")
    assert (options.guidance_scale, options.negative_prompt) == (4.0, "n")
    kohya = replayed(texts(tmp_path, prompt="p", seed="5", steps="8", scale="4", sampler="ddim", negative__prompt="n"))
    assert (kohya.prompt, kohya.steps, kohya.scheduler, kohya.negative_prompt) == (("p",), 8, "ddim", "n")


def test_comfyuis_graph(tmp_path: Path) -> None:
    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    graph = {
        "1": node("CheckpointLoaderSimple", ckpt_name="m.safetensors"),
        "2": node("CLIPTextEncode", text="a fridge", clip=["1", 1]),
        "3": node("CLIPTextEncode", text="grey", clip=["1", 1]),
        "4": node("KSampler", seed=9, steps=12, cfg=6.0, sampler_name="euler", scheduler="normal", denoise=1.0,
                  model=["1", 0], positive=["2", 0], negative=["3", 0]),
    }  # fmt: skip
    links = [[1, 1, 0, 4, 0, "MODEL"], [2, 2, 0, 4, 1, "CONDITIONING"], [3, 3, 0, 4, 2, "CONDITIONING"]]
    path = texts(tmp_path, prompt=json.dumps(graph), workflow=json.dumps({"links": links}))
    options = replayed(path)
    assert (options.prompt, options.negative_prompt) == (("a fridge",), "grey")
    assert (options.steps, options.guidance_scale, options.scheduler, options.seed) == (12, 6.0, "euler", 9)


@pytest.mark.parametrize(
    "found",
    [
        {"parameters": "a\nSteps: 20, Sampler: DPM adaptive, Seed: 1"},
        {"parameters": "a\nSteps: many, Sampler: Euler, Seed: 1"},
        {"parameters": "a\nSteps: 0, Sampler: Euler, Seed: 1"},
        {"parameters": "a cat"},
        {"parameters": "{"},
        {"invokeai_metadata": "[]"},
        {"prompt": '{"3": {}}', "workflow": "{}"},
        {"Software": "gimp"},
    ],
)
def test_what_cannot_be_used_is_an_input_error(tmp_path: Path, found: dict[str, str]) -> None:
    error = error_of(replayed, texts(tmp_path, **found))
    assert error.where == f"--params-from {tmp_path}/b.png"
    assert "\n" not in str(error)


def test_a_typed_sampler_replaces_an_unknown_one(tmp_path: Path) -> None:
    path = texts(tmp_path, parameters="a\nSteps: 20, Sampler: DPM adaptive, Seed: 1")
    assert replayed(path, "--sampler", "euler").scheduler == "euler"


@pytest.mark.parametrize("name", ["a.png", "missing.png"])
def test_files_that_are_not_images(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.png").write_text("no")
    assert error_of(replayed, tmp_path / name).where == f"--params-from {tmp_path / name}"


def test_weights_are_found_by_name_and_content_or_their_flag_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    for name in ("s.safetensors", "away.safetensors"):  # changed, missing
        assert "--lora FILE:0.5" in str(error_of(replayed, ours(tmp_path, loras=(used(name, None),))).fix)
    assert "--model" in str(error_of(replayed, ours(tmp_path, model=ModelUsed(name="away", fingerprint=""))).fix)
    assert replayed(ours(tmp_path, model=ModelUsed(name="0001-x", fingerprint=""))).model == "runs/0001-x"


def test_other_versions_are_noted(tmp_path: Path) -> None:
    (note,) = png_info.read_image_settings(ours(tmp_path, versions={"torch": "1.0"}), set()).notes
    assert "torch 1.0" in note
