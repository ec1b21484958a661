"""The page: fields become jobs within limits, and what is generated becomes safe HTML."""

import asyncio
import base64
import html
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from data.errors import InputError, InputErrors
from infer.config import GenerateOptions, StudioOptions
from infer.galleries import SearchHit
from infer.prompts import ImageRequest
from infer.web import components, service, worker
from infer.web.components import NAMES
from infer.web.page import Callbacks
from infer.web.queue import Job, JobImage, JobStopped
from infer.web.service import ModelList, StudioService, check_lora_tags
from infer.web.worker import ProgressCallback
from tests.errors import error_of


def job(prompt: str = "a cat", **fields: Any) -> Job:
    return Job(GenerateOptions(prompt=(prompt,)), **fields)


# ---- limits


@pytest.mark.parametrize(
    ("fields", "where", "allowed"),
    [
        ({"steps": 151}, "--steps", "up to 150"), ({"num_images": 17}, "--num-images", "up to 16"),
        ({"guidance_scale": 31.0}, "--guidance-scale", "up to 30"),
        ({"negative_prompt": "x" * 4001}, "--negative-prompt", "4000 characters"), ({"prompt": " "}, "--prompt", None),
        ({"aspect": "99:1"}, "--aspect", None), ({"steps": 0}, "--steps", None),
    ],
)  # fmt: skip
def test_requests_beyond_the_limits(fields: dict[str, Any], where: str, allowed: str | None) -> None:
    error = error_of(service.parse_request, {"prompt": "a cat"} | fields)
    assert error.where == where and (allowed is None or error.allowed == allowed)
    assert service.page_message(error).startswith(service.LABELS[where])


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(InputErrors) as caught:
        service.parse_request({"prompt": "a cat", "steps": 999, "num_images": 99})
    assert len(caught.value.errors) == 2


@pytest.mark.parametrize("tag", ["<lora:/x:1>", "<lora:a\\b:1>", "<lora:..:1>", "<lora:~root:1>", "<LORA:a/b>"])
def test_lora_tags_name_no_paths(tag: str) -> None:
    check_lora_tags("a cat <lora:ink:0.5> and (braces) <b>")
    with pytest.raises(InputError):
        check_lora_tags(f"a cat {tag}")


def test_model_list(tmp_path: Path) -> None:
    runs, files = tmp_path / "runs", tmp_path / "loras"
    for name, done, exported in (("0001-a", True, True), ("0002-b", False, True), ("0003-c", True, False)):
        (runs / name / "export").mkdir(parents=True)
        (runs / name / "config.yaml").write_text("model: pocket\n")
        if done:
            (runs / name / "done").write_text('{"steps": 1}')
        if exported:
            (runs / name / "export" / "lora.safetensors").write_bytes(b"")
    files.mkdir()
    (files / "ink.safetensors").write_bytes(b"")
    models = ModelList(None, runs, files)
    assert list(models.models()) == ["0001-a", "pocket"]
    assert (models.model(""), models.model("pocket")) == (str(runs / "0001-a"), "pocket")
    assert models.lora("ink", 0.5) == f"{files / 'ink.safetensors'}:0.5"
    assert models.is_tuned("0001-a") and not models.is_tuned("pocket")
    error = error_of(models.lora, "inc", 1.0)
    assert (error.where, error.allowed) == ("--lora", "ink")
    assert error_of(models.model, "../secret").where == "--model"
    assert next(iter(ModelList("CompVis/x", runs, files).models())) == "CompVis/x"
    (tmp_path / "elsewhere" / "pocket").mkdir(parents=True)
    named = ModelList(str(tmp_path / "elsewhere" / "pocket"), runs, files)
    assert named.model("") == named.model("pocket") == str(tmp_path / "elsewhere" / "pocket"), "--model wins"


# ---- previews


def test_the_linear_preview_recovers_an_affine_map() -> None:
    generator = torch.Generator().manual_seed(0)
    expected, latents = torch.randn(5, 3, generator=generator), torch.randn(200, 4, generator=generator)
    fitted = worker.fit_colors(latents, worker.with_ones(latents) @ expected)
    torch.testing.assert_close(fitted, expected, atol=1e-4, rtol=0)


def test_only_strong_noise_is_scaled_down() -> None:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 14
    assert worker.normalize(noise).std() == pytest.approx(1.0, abs=1e-4)
    assert torch.equal(worker.normalize(noise / 100), noise / 100)


def test_progress_is_counted_previewed_and_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "INTERVAL", 1000.0)
    running, previewed = job(total=10), []

    def preview(latents: torch.Tensor) -> Image.Image:
        previewed.append(latents)
        return Image.new("RGB", (8, 8), "red")

    callback, batch = ProgressCallback(running, preview), [ImageRequest(0, "a", 0), ImageRequest(1, "b", 1)]
    callback(batch, torch.zeros(2, 4, 2, 2))
    callback(batch, torch.zeros(2, 4, 2, 2))
    assert running.calls == 4 and sorted(running.previews) == [0, 1]
    assert len(previewed) == 2, "the second step comes too soon for another preview"
    running.stop.set()
    with pytest.raises(JobStopped):
        callback(batch, torch.zeros(2, 4, 2, 2))


# ---- HTML

EVIL = "<script>alert('x')</script>\"onload=\"x"


def test_prompts_are_escaped() -> None:
    images = [
        JobImage(Path("outputs/1/00000-1.png"), EVIL, 1),
        JobImage(Path("outputs/1/base/00000-1.png"), EVIL, 1, True),
    ]
    for text in (
        components.finished(job(EVIL, state="done", images=images)),
        components.finished(job(EVIL, state="done", images=images[:1], notes=(EVIL,))),
        components.running(job(EVIL, state="running", images=images[:1], total=2, calls=1, count=2)),
        components.error(EVIL),
        components.gallery([hit(prompt=EVIL, places="0001/<b>.png")], EVIL),
    ):
        assert "<script" not in text and '"onload="' not in text and "<b>" not in text


def hit(**fields: Any) -> SearchHit:
    database = sqlite3.connect(":memory:")
    database.row_factory = sqlite3.Row
    values = {"prompt": "a cat", "places": "0001/00000-1.png", "star": 0, "model": "pocket", "lora": "",
              "sampler": "PLMS", "steps": 30, "cfg": 4.0, "seed": 1, "width": 64, "height": 64, "negative": "",
              "copies": 1} | fields  # fmt: skip
    row = database.execute(f"select {', '.join(f'? as {name}' for name in values)}", tuple(values.values())).fetchone()
    database.close()
    return SearchHit(row, None)


def test_a_tile_carries_what_the_dialog_shows() -> None:
    text = components.gallery([hit(star=1, negative="blurry")], "")
    about = json.loads(html.unescape(text.split('data-about="')[1].split('"')[0]))
    assert about["path"] == "0001/00000-1.png" and about["star"] == 1
    assert about["facts"] == {
        "model": "pocket", "sampler": "PLMS", "steps": 30, "cfg": 4.0, "seed": 1, "size": "64 x 64",
        "negative": "blurry",
    }  # fmt: skip
    assert 'class="star"' in text


def test_the_stage() -> None:
    assert "<img" not in components.finished(job(state="stopped"))
    failed = JobImage(Path("outputs/0001/00000-1.png"), "x", 1, verdict="nan")
    assert components.finished(job(state="done", images=[failed])).count('class="note"') == 1
    assert "the prompt is long" in components.finished(job(state="done", notes=("the prompt is long",)))
    assert "2 jobs" in components.waiting(2) and "1 job " in components.waiting(1)
    shown = components.running(job(total=4, calls=3, count=2, size=(96, 64), previews={1: b"x"}))
    assert 'aria-valuenow="75"' in shown and shown.count("aspect-ratio:96/64") == 2
    assert shown.count("data:image/webp") == 1


# ---- event handlers


def field_values(**fields: Any) -> tuple[Any, ...]:
    values = {"place": "Generate", "prompt": "a cat", "style": "", "shape": "1:1", "count": 1, "freedom": 0.7,
              "negative": "", "steps": "3", "guidance": "4", "seed": "", "locked": False, "model": "", "lora": "",
              "weight": 1.0, "sampler": "", "width": 0, "height": 0, "scribble": ""} | fields  # fmt: skip
    return tuple(values[name] for name in NAMES)


def data_url(canvas: Image.Image) -> str:
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def callbacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callbacks:
    def no_backend(*_: Any) -> Any:
        raise AssertionError("not needed")

    monkeypatch.chdir(tmp_path)
    return Callbacks(StudioService(StudioOptions(), no_backend))


def first_stage(callbacks: Callbacks, values: tuple[Any, ...]) -> str:
    async def once() -> str:
        stream = callbacks.generate(*values)
        outputs = await anext(stream)
        await stream.aclose()
        return outputs[0]

    return asyncio.run(once())


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"prompt": " "}, "Prompt: "), ({"seed": "many", "locked": True}, "Seed: "),
        ({"seed": "7" * 5000, "locked": True}, "Seed: "), ({"steps": "many"}, "Steps: "), ({"steps": "151"}, "Steps: "),
        ({"guidance": "nan"}, "Guidance: "), ({"place": "Compare"}, "nothing to compare"),
        ({"place": "Scribble"}, "Scribble: "), ({"style": "origammi"}, "Style: "), ({"model": "/etc"}, "Model: "),
        ({"place": "Scribble", "scribble": "data:image/png;base64,AAAA"}, "Scribble: "),
        ({"place": "Scribble", "scribble": data_url(Image.new("1", (2049, 8)))}, "2048 pixels"),
    ],
)  # fmt: skip
def test_problems_are_shown_on_the_stage(callbacks: Callbacks, fields: dict[str, Any], text: str) -> None:
    stage = first_stage(callbacks, field_values(**fields))
    assert 'role="alert"' in stage and text in stage
    assert not callbacks.service.queue.waiting


def test_fields_become_a_job(callbacks: Callbacks) -> None:
    fields = {"style": "origami", "shape": "3:2", "count": 4, "negative": "text", "seed": "77", "locked": True,
              "sampler": "euler_a", "guidance": "5.5"}  # fmt: skip
    assert 'role="alert"' not in first_stage(callbacks, field_values(**fields))
    (submitted,) = callbacks.service.queue.waiting
    options = submitted.options
    assert (options.prompt, options.style, options.aspect, options.num_images) == (("a cat",), "origami", "3:2", 4)
    assert (options.negative_prompt, options.seed, options.scheduler) == ("text", 77, "euler_a")
    assert (options.guidance_scale, options.model, options.compare_base) == (5.5, "pocket", False)
    assert submitted.state == "waiting", "the job stays when the page is left"


def test_empty_fields_follow_the_model_and_a_seed_that_is_not_locked_is_random(callbacks: Callbacks) -> None:
    first_stage(callbacks, field_values(steps="", guidance="", seed="77", locked=False))
    options = callbacks.service.queue.waiting[0].options
    assert not {"steps", "guidance_scale"} & options.model_fields_set and options.seed == -1


def test_scribbles_are_saved_outside_the_gallery(callbacks: Callbacks, tmp_path: Path) -> None:
    first_stage(callbacks, field_values(place="Scribble", scribble=data_url(Image.new("RGB", (64, 64), "white"))))
    options = callbacks.service.queue.waiting[0].options
    assert options.scribble is not None and options.strength == 0.7
    with pytest.raises(InputError):
        callbacks.service.image_path(f".scribbles/{options.scribble.name}")
    assert list((tmp_path / "outputs" / ".scribbles").iterdir()) == [tmp_path / options.scribble]
