"""Compared images are those of generate.py, each generated once; and what lies in the folder."""

import json
import re
from itertools import product
from pathlib import Path

import pytest
from PIL import Image

from data.errors import InputError
from infer import metadata, pipeline, schedulers
from infer.comparison import results, trajectory
from infer.comparison.grid import CellRequest
from infer.comparison.image_cache import ImageCache, Machine
from infer.comparison.weights import Weights
from tests.commands import compare, generate, log
from tests.errors import error_of
from tests.tiny import tiny_lora
from train.model import BaseModel


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that are really drawn from now on."""
    seen: list[str] = []
    plain = pipeline.generate_images

    def draw(pipe, pictures, *rest, **more):
        for each in plain(pipe, pictures, *rest, **more):
            seen.append(each.request.prompt)
            yield each

    monkeypatch.setattr(pipeline, "generate_images", draw)
    return seen


@pytest.fixture(scope="module")
def lora(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lora(tiny_model, tmp_path_factory.mktemp("lora") / "style.safetensors", strength=0.3)


def test_a_lora_tag_gives_the_image_of_generate(tiny_model: Path, lora: Path, tmp_path: Path) -> None:
    shared = ["--model", tiny_model, "--prompt", f"a fire <lora:{lora}:0.5>", "--steps", 1]
    assert compare(*shared, "--x", "seed=3,4", "--cells", tmp_path / "kept", "--outdir", tmp_path / "a") == 0
    assert generate(*shared, "--seed", 3, "--outdir", tmp_path / "b") == 0
    assert (tmp_path / "a/cells/00000-3.png").read_bytes() == (tmp_path / "b/00000-3.png").read_bytes()
    assert metadata.read_metadata(tmp_path / "b/00000-3.png").prompt == "a fire"


def test_images_are_the_files_that_generate_writes(tiny_model: Path, lora: Path, tmp_path: Path) -> None:
    """Base and LoRA by turns, two schedulers, another step count: every file byte for byte."""
    shared = ["--model", tiny_model, "--prompt", "a fire", "--seed", 3, "--steps", 2]
    axes = ["--x", f"lora=none,{lora}:0.5", "--y", "scheduler=ddim,euler_a", "--cells", tmp_path / "kept"]
    assert compare(*shared, *axes, "--outdir", tmp_path / "a") == 0
    assert log(tmp_path / "a")[1]["place"] == {"lora": f"LoRA {lora}:0.5", "scheduler": "scheduler ddim"}
    for number, (scheduler, flags) in enumerate(product(("ddim", "euler_a"), ([], ["--lora", f"{lora}:0.5"]))):
        folder = tmp_path / f"g{number}"
        assert generate(*shared, "--scheduler", scheduler, *flags, "--outdir", folder) == 0
        mine = tmp_path / "a" / "cells" / f"{number:05d}-3.png"
        assert mine.read_bytes() == (folder / "00000-3.png").read_bytes(), (scheduler, flags)


def test_an_extended_axis_generates_only_what_is_new(
    tiny_model: Path, tmp_path: Path, drawn: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["--model", tiny_model, "--steps", 1, "--cells", tmp_path / "kept", "--outdir", tmp_path / "a"]
    assert compare(*shared, "--x", "seed=1,2", "--prompt", "a", "--prompt", "b") == 0
    assert sorted(drawn) == ["a", "a", "b", "b"]
    assert compare(*shared, "--x", "seed=1,2,3", "--prompt", "b", "--prompt", "a", "--prompt", "a") == 0
    assert sorted(drawn[4:]) == ["a", "b"], "seed 3 of each; the same prompt twice is one picture"
    assert "9 images, 2 newly generated" in capsys.readouterr().out
    assert len(list((tmp_path / "a" / "cells").iterdir())) == 9, "the folder shows what was asked last"
    damaged = sorted((tmp_path / "kept").rglob("*.png"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    assert compare(*shared, "--x", "seed=1,2,3", "--prompt", "b", "--prompt", "a") == 0
    assert len(drawn) == 7, "a torn file is drawn again"
    assert compare(*shared, "--x", "seed=1,2,3", "--prompt", "b", "--prompt", "a", "--guidance-scale", 3) == 0
    assert len(drawn) == 13, "any other setting is another picture"


def test_ctrl_c_keeps_finished_images_and_the_same_command_continues(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model", tiny_model, "--steps", 1, "--cells", tmp_path / "kept", "--outdir", tmp_path / "a"]
    argv += ["--prompt", "a", "--x", "seed=1..4"]
    plain, count = metadata.write_png, []

    def write(*what):
        if len(count) == 2:
            raise KeyboardInterrupt
        count.append(what)
        plain(*what)

    monkeypatch.setattr(metadata, "write_png", write)
    assert compare(*argv) == 130
    assert len(list((tmp_path / "kept").rglob("*.png"))) == 2
    monkeypatch.setattr(metadata, "write_png", plain)
    assert compare(*argv) == 0
    assert "4 images, 2 newly generated" in capsys.readouterr().out


def test_each_model_is_loaded_once_and_none_for_cached_images(
    tiny_model: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, str]] = []
    plain = BaseModel.load_part

    def load_part(self, kind, part):
        loaded.append((self.name, part))
        return plain(self, kind, part)

    monkeypatch.setattr(BaseModel, "load_part", load_part)
    other = tmp_path / "other"
    other.symlink_to(tiny_model)
    argv = ["--x", "seed=1,2", "--y", f"lora=none,{lora},{lora}:0.5", "--z", f"model={tiny_model},{other}"]
    argv += ["--prompt", "a", "--steps", 1, "--cells", tmp_path / "kept", "--outdir", tmp_path / "a"]
    assert compare(*argv) == 0
    parts = [(name, part) for name in (str(tiny_model), str(other)) for part in ("unet", "vae", "text_encoder")]
    assert sorted(loaded) == sorted(parts)
    assert sorted(path.name for path in (tmp_path / "a").glob("sheet*")) == ["sheet-01.png", "sheet-02.png"]
    loaded.clear()
    assert compare(*argv) == 0
    assert loaded == []


def test_errors_come_before_the_folder_is_made(tiny_model: Path, tmp_path: Path) -> None:
    argv = ["--model", tiny_model, "--prompt", "a", "--outdir", tmp_path / "a"]
    for flags, where in (
        (["--width", 7], "--width"),
        (["--x", "steps=1,1001"], "--steps"),
        (["--x", "lora=none,missing.safetensors"], "--lora missing.safetensors"),
        (["--x", "model=missing/folder/of/mine"], "--model missing/folder/of/mine"),
        (["--prompt", "a (water:1000)"], "--prompt"),
    ):
        assert error_of(compare, *argv, *flags).where == where
        assert not (tmp_path / "a").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(InputError):
        compare(*argv[:-1], tmp_path / "full", "--steps", 1)


def test_sheets_and_page_show_every_image(tiny_model: Path, tmp_path: Path) -> None:
    argv = ["--model", tiny_model, "--steps", 1, "--prompt", "a <b> & c", "--x", "seed=1,2", "--y", "cfg=1,2,3"]
    assert compare(*argv, "--cells", tmp_path / "kept", "--outdir", tmp_path / "a") == 0
    with Image.open(tmp_path / "a" / "sheet.png") as sheet:
        assert sheet.width > 2 * 256
        assert sheet.height > 3 * 256
    page = (tmp_path / "a" / "index.html").read_text()
    assert page.count('<button class="cell"') == 6
    assert page.count("data:image/png;base64,") == 6
    assert "a &lt;b&gt; &amp; c" in page and "<b>" not in page
    assert not re.search(r"https?://|src=\"(?!data:)", page), "nothing from elsewhere"
    assert "script-src 'sha256-" in page
    marked = json.loads((tmp_path / "a" / results.MARK).read_text())
    assert marked["asked"]["x_axis"] == "seed=1,2"


@pytest.mark.parametrize("scheduler", [None, "ddim", "euler"])
def test_recording_does_not_change_the_image(tiny_model: Path, tmp_path: Path, scheduler: str | None) -> None:
    cache = ImageCache(Machine.choose("cpu", "fp32"), tmp_path)
    request = CellRequest(Weights(str(tiny_model)), "a fire", 5, 4, 7.5, scheduler)
    (cached,) = cache.get([request]).values()
    with cache.pipe(request.weights) as (pipe, _):
        pipe.scheduler = schedulers.build_scheduler(scheduler, cache.model(request.weights).scheduler_config)
        frames = trajectory.record_frames(pipe, request.prompt, request.seed, cache.settings(request), 3)
        assert type(pipe.scheduler).__module__.startswith("diffusers"), "the scheduler is as it was"
    assert frames[-1].noisy.tobytes() == cached.image.tobytes()
    assert len(frames) == 3
    assert frames[0].t > frames[1].t >= 0 == frames[2].t
    assert frames[0].noisy.tobytes() != frames[0].denoised.tobytes()


def test_x0_from_every_prediction_type() -> None:
    """x_t = s x_0 + n eps at a known x_0 and eps; v = s eps - n x_0."""
    import torch

    x0, eps = torch.tensor([0.3, -1.0]), torch.tensor([1.5, 0.2])
    signal2 = torch.tensor(0.36)
    xt, v = 0.6 * x0 + 0.8 * eps, 0.6 * eps - 0.8 * x0
    for kind, said in (("epsilon", eps), ("v_prediction", v), ("sample", x0)):
        assert torch.allclose(trajectory.predict_x0(kind, xt, said, signal2), x0, atol=1e-6)


def test_strips_and_animations(tiny_model: Path, lora: Path, tmp_path: Path) -> None:
    argv = ["--model", tiny_model, "--lora", lora, "--gif", "--steps", 3, "--prompt", "a fire"]
    assert compare(*argv, "--outdir", tmp_path / "a") == 0
    with Image.open(tmp_path / "a" / "walk-00.gif") as walk:
        assert walk.n_frames == 5  # pyright: ignore[reportAttributeAccessIssue]
        assert walk.width > 4 * 256, "base and tuned, noisy and denoised"
    with Image.open(tmp_path / "a" / "strip-00.png") as strip:
        assert strip.height > 4 * 256
    error = error_of(compare, *argv, "--x", "seed=1,2", "--outdir", tmp_path / "b")
    assert (error.where, error.allowed) == ("--strip", "model")
