"""The page's words and fields: what is typed becomes an order within bounds, what is drawn becomes safe HTML."""

import asyncio
import base64
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from data.errors import InputError
from infer.config import GenerateOptions
from infer.galleries.search import Hit
from infer.studios import asking, looks, showing
from infer.studios.desk import Done, Order, Withdrawn
from infer.studios.weights import Shelf, refuse_paths


def order(prompt: str = "a cat", **given: Any) -> Order:
    found = Order(GenerateOptions(prompt=(prompt,)))
    for name, value in given.items():
        setattr(found, name, value)
    return found


# ---- bounds


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"steps": 151}, "Steps: 151 is too much; allowed: up to 150"),
        ({"num_images": 17}, "Pictures: 17 is too much; allowed: up to 16"),
        ({"guidance_scale": 31.0}, "Guidance: 31.0 is too much; allowed: up to 30"),
        ({"negative_prompt": "x" * 4001}, "Negative prompt: is too long; allowed: 4000 letters"),
        ({"prompt": " "}, "Prompt: the prompt is empty"),
        ({"aspect": "99:1"}, "Shape: '99:1' is no ratio"),
        ({"steps": 0}, "Steps: 0 is not allowed"),
        ({"prompt": "x <lora:a/b:1>"}, "Prompt: <lora:a/b:1>: a LoRA is named without its folder"),
    ],
)
def test_what_is_too_much_is_told_by_the_fields_name(values: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as caught:
        asking.options_of({"prompt": "a cat"} | values)
    assert asking.told(caught.value).startswith(told)


def test_everything_wrong_is_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        asking.options_of({"prompt": "a cat", "steps": 999, "num_images": 99})
    assert asking.told(caught.value).count("is too much") == 2


def test_sizes() -> None:
    asking.check_size(128, 128, 64)
    with pytest.raises(InputError, match="129 x 128 is more than 4 times the 64 x 64 that this model draws"):
        asking.check_size(129, 128, 64)
    assert (asking.guidance_for("pocket"), asking.guidance_for("sd")) == (4.0, 7.5)


def test_tags_name_a_lora_and_no_file() -> None:
    refuse_paths("a cat <lora:ink:0.5> and (braces) <b>")
    for tag in ("<lora:/x:1>", "<lora:a\\b:1>", "<lora:..:1>", "<lora:~root:1>", "<LORA:a/b>"):
        with pytest.raises(InputError, match="without its folder"):
            refuse_paths(f"a cat {tag}")


def test_the_shelf_offers_runs_that_are_finished(tmp_path: Path) -> None:
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
    shelf = Shelf(None, runs, files)
    assert list(shelf.models()) == ["0001-a", "pocket"]
    assert (shelf.model(""), shelf.model("pocket")) == (str(runs / "0001-a"), "pocket")
    assert shelf.is_tuned("0001-a") and not shelf.is_tuned("pocket")
    assert shelf.lora("ink", 0.5) == f"{files / 'ink.safetensors'}:0.5"
    with pytest.raises(InputError, match=r"unknown LoRA 'inc', did you mean 'ink'\?"):
        shelf.lora("inc", 1.0)
    with pytest.raises(InputError, match=r"unknown model '\.\./secret'"):
        shelf.model("../secret")
    assert next(iter(Shelf("CompVis/x", runs, files).models())) == "CompVis/x"
    (tmp_path / "elsewhere" / "pocket").mkdir(parents=True)
    named = Shelf(str(tmp_path / "elsewhere" / "pocket"), runs, files)
    assert named.model("") == named.model("pocket") == str(tmp_path / "elsewhere" / "pocket"), "what --model named"


# ---- previews


def test_the_linear_guess_finds_a_linear_map() -> None:
    draw = torch.Generator().manual_seed(0)
    true = torch.randn(5, 3, generator=draw)
    latents = torch.randn(200, 4, generator=draw)
    found = looks.fitted(latents, looks.with_one(latents) @ true)
    torch.testing.assert_close(found, true, atol=1e-4, rtol=0)


def test_strong_noise_is_calmed_and_weak_is_left() -> None:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 14
    assert looks.calm(noise).std() == pytest.approx(1.0, abs=1e-4)
    assert torch.equal(looks.calm(noise / 100), noise / 100)


def test_watching_counts_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    from infer.prompts import Picture

    monkeypatch.setattr(looks, "PAUSE", 1000.0)
    asked = order(total=10)
    seen: list[torch.Tensor] = []

    def look(latents: torch.Tensor) -> Image.Image:
        seen.append(latents)
        return Image.new("RGB", (8, 8), "red")

    watch = looks.Watching(asked, look)
    pictures = [Picture(0, "a", 0), Picture(1, "b", 1)]
    watch(pictures, torch.zeros(2, 4, 2, 2))
    watch(pictures, torch.zeros(2, 4, 2, 2))
    assert asked.calls == 4 and sorted(asked.looks) == [0, 1]
    assert len(seen) == 2, "the second look came too soon to show anything"
    asked.stop.set()
    with pytest.raises(Withdrawn):
        watch(pictures, torch.zeros(2, 4, 2, 2))


# ---- HTML

EVIL = "<script>alert('x')</script>\"onload=\"x"


def test_no_prompt_becomes_html() -> None:
    done = [Done(Path("outputs/0001/00000-1.png"), EVIL, 1), Done(Path("outputs/0001/base/00000-1.png"), EVIL, 1, True)]
    said = [
        showing.finished(order(EVIL, state="done", done=done)),
        showing.finished(order(EVIL, state="done", done=done[:1], notes=(EVIL,))),
        showing.drawing(order(EVIL, state="drawing", done=done[:1], total=2, calls=1, count=2)),
        showing.wrong(EVIL),
        showing.gallery([hit(prompt=EVIL, places="0001/<b>.png")], EVIL),
    ]
    for text in said:
        assert "<script" not in text and '"onload="' not in text and "<b>" not in text


def hit(**given: Any) -> Hit:
    base = sqlite3.connect(":memory:")
    base.row_factory = sqlite3.Row
    values = {"prompt": "a cat", "places": "0001/00000-1.png", "star": 0, "model": "pocket", "lora": "",
              "sampler": "PLMS", "steps": 30, "cfg": 4.0, "seed": 1, "width": 64, "height": 64, "negative": "",
              "copies": 1} | given  # fmt: skip
    names = ", ".join(f"? as {name}" for name in values)
    row = base.execute(f"select {names}", tuple(values.values())).fetchone()
    base.close()
    return Hit(row, None)


def test_a_tile_tells_what_the_dialog_shows() -> None:
    text = showing.gallery([hit(star=1, negative="blurry")], "")
    about = json.loads(text.split('data-about="')[1].split('"')[0].replace("&quot;", '"'))
    assert about["path"] == "0001/00000-1.png" and about["star"] == 1
    assert about["facts"] == {
        "model": "pocket", "sampler": "PLMS", "steps": 30, "cfg": 4.0, "seed": 1, "size": "64 x 64",
        "without": "blurry",
    }  # fmt: skip
    assert "1 picture" in text and "favourite" in text


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"state": "stopped"}, "Nothing was finished"),
        ({"state": "done", "done": [Done(Path("outputs/0001/00000-1.png"), "x", 1, verdict="nan")]}, "broke down"),
        ({"state": "done", "notes": ("the prompt is long",)}, "the prompt is long"),
    ],
)
def test_the_stage(given: dict[str, Any], told: str) -> None:
    assert told in showing.finished(order(**given))


def test_waiting_says_how_long() -> None:
    assert "2 orders before yours" in showing.waiting(order(), 2)
    assert "1 order before yours" in showing.waiting(order(), 1)


# ---- the handlers


def page_values(**given: Any) -> tuple[Any, ...]:
    from infer.studios.controls import NAMES

    values = {"place": "Draw", "prompt": "a cat", "style": "", "shape": "1:1", "count": 1, "freedom": 0.7,
              "negative": "", "steps": 3, "guidance": 4.0, "seed": "", "locked": False, "model": "", "lora": "",
              "weight": 1.0, "sampler": "", "width": 0, "height": 0, "scribble": ""} | given  # fmt: skip
    return tuple(values[name] for name in NAMES)


def drawing_of(canvas: Image.Image) -> str:
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from infer.studios.acts import Acts
    from infer.studios.options import StudioOptions
    from infer.studios.workshop import Workshop

    monkeypatch.chdir(tmp_path)
    return Acts(Workshop(StudioOptions()))


def first_seen(acts: Any, values: tuple[Any, ...]) -> str:
    async def once() -> str:
        stream = acts.draw(*values)
        found = await anext(stream)
        await stream.aclose()
        return found[0]

    return asyncio.run(once())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"prompt": " "}, "Prompt: say what you would like to see"),
        ({"seed": "many", "locked": True}, "Seed: &#x27;many&#x27; is no seed"),
        ({"seed": "7" * 5000, "locked": True}, "is no seed"),
        ({"place": "Compare"}, "there is nothing to compare it with"),
        ({"place": "Scribble"}, "draw something on the white square first"),
        ({"place": "Scribble", "scribble": "data:image/png;base64,AAAA"}, "could not be read"),
        ({"place": "Scribble", "scribble": drawing_of(Image.new("1", (2049, 8)))}, "is larger than 2048 pixels"),
        ({"style": "origammi"}, "did you mean &#x27;origami&#x27;?"),
        ({"model": "/etc"}, "unknown model"),
    ],
)
def test_what_is_wrong_is_said_on_the_stage(acts: Any, given: dict[str, Any], told: str) -> None:
    assert told in first_seen(acts, page_values(**given))
    assert not acts.workshop.desk.waiting


def test_fields_become_an_order(acts: Any) -> None:
    given = {"style": "origami", "shape": "3:2", "count": 4, "negative": "text", "seed": "77", "locked": True,
             "sampler": "euler_a", "guidance": 5.5}  # fmt: skip
    assert "Getting the brushes ready" in first_seen(acts, page_values(**given))
    (taken,) = acts.workshop.desk.waiting
    options = taken.options
    assert (options.prompt, options.style, options.aspect, options.num_images) == (("a cat",), "origami", "3:2", 4)
    assert (options.negative_prompt, options.seed, options.scheduler) == ("text", 77, "euler_a")
    assert (options.guidance_scale, options.model, options.compare_base) == (5.5, "pocket", False)
    assert taken.state == "waiting", "whoever leaves the page leaves the order"


def test_a_seed_that_is_not_kept_is_drawn_anew(acts: Any) -> None:
    first_seen(acts, page_values(seed="77", locked=False))
    assert acts.workshop.desk.waiting[0].options.seed == -1


def test_a_scribble_is_kept_out_of_the_gallery(acts: Any, tmp_path: Path) -> None:
    first_seen(acts, page_values(place="Scribble", scribble=drawing_of(Image.new("RGB", (64, 64), "white"))))
    options = acts.workshop.desk.waiting[0].options
    assert options.scribble is not None and options.scribble.parent.name == ".scribbles" and options.strength == 0.7
    with pytest.raises(InputError, match="no such picture"):
        acts.workshop.picture(f".scribbles/{options.scribble.name}")
    assert list((tmp_path / "outputs" / ".scribbles").iterdir()) == [tmp_path / options.scribble]
