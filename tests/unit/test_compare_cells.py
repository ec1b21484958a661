"""Cells: the pictures that generate.py draws, each once, whatever is asked next; and what lies in the folder."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from data.errors import InputError
from infer import config, drawing, metadata, pipeline
from infer.comparing import cells as cells_file
from infer.comparing import job, options, recording, result
from infer.comparing.cells import Machine, Store
from infer.comparing.weights import Weights
from infer.comparing.wishes import Wish
from tests.tiny import tiny_lora
from train.base_model import BaseModel

# diffusers 0.42.1 hands torch tensors to NumPy functions in ways that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that are really drawn from now on."""
    seen: list[str] = []
    plain = pipeline.draw

    def draw(pipe, pictures, *rest, **more):
        for each in plain(pipe, pictures, *rest, **more):
            seen.append(each.picture.prompt)
            yield each

    monkeypatch.setattr(pipeline, "draw", draw)
    return seen


@pytest.fixture(scope="module")
def lora(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lora(tiny_model, tmp_path_factory.mktemp("lora") / "style.safetensors", strength=0.3)


def compare(*argv: object) -> int:
    return job.run(options.read([str(word) for word in argv]))


def generate(*argv: object) -> int:
    return drawing.run(config.read([str(word) for word in argv]))


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]


def test_a_prompts_own_lora_is_drawn_as_generate_draws_it(tiny_model: Path, lora: Path, tmp_path: Path) -> None:
    shared = ["--model", tiny_model, "--prompt", f"a fire <lora:{lora}:0.5>", "--steps", 1]
    assert compare(*shared, "--x", "seed=3,4", "--cells", tmp_path / "kept", "--outdir", tmp_path / "a") == 0
    assert generate(*shared, "--seed", 3, "--outdir", tmp_path / "b") == 0
    assert (tmp_path / "a/cells/00000-3.png").read_bytes() == (tmp_path / "b/00000-3.png").read_bytes()
    assert metadata.read(tmp_path / "b/00000-3.png").prompt == "a fire"


def test_cells_are_the_files_that_generate_writes(tiny_model: Path, lora: Path, tmp_path: Path) -> None:
    """Base and LoRA by turns, two schedulers, another step count: every file byte for byte."""
    shared = ["--model", tiny_model, "--prompt", "a fire", "--seed", 3, "--steps", 2]
    axes = ["--x", f"lora=none,{lora}:0.5", "--y", "scheduler=ddim,euler_a", "--cells", tmp_path / "kept"]
    assert compare(*shared, *axes, "--outdir", tmp_path / "a") == 0
    assert [line["place"] for line in log(tmp_path / "a")][1] == {
        "lora": f"LoRA {lora}:0.5",
        "scheduler": "scheduler ddim",
    }
    for number, (scheduler, flags) in enumerate(
        [("ddim", []), ("ddim", ["--lora", f"{lora}:0.5"]), ("euler_a", []), ("euler_a", ["--lora", f"{lora}:0.5"])]
    ):
        folder = tmp_path / f"g{number}"
        assert generate(*shared, "--scheduler", scheduler, *flags, "--outdir", folder) == 0
        mine = tmp_path / "a" / "cells" / f"{number:05d}-3.png"
        assert mine.read_bytes() == (folder / "00000-3.png").read_bytes(), (scheduler, flags)


def test_an_extended_axis_draws_the_new_cells_alone(
    tiny_model: Path, tmp_path: Path, drawn: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["--model", tiny_model, "--steps", 1, "--cells", tmp_path / "kept", "--outdir", tmp_path / "a"]
    assert compare(*shared, "--x", "seed=1,2", "--prompt", "a", "--prompt", "b") == 0
    assert sorted(drawn) == ["a", "a", "b", "b"]
    assert compare(*shared, "--x", "seed=1,2,3", "--prompt", "b", "--prompt", "a", "--prompt", "a") == 0
    assert sorted(drawn[4:]) == ["a", "b"], "seed 3 of each; the same prompt twice is one picture"
    assert "9 cells, 2 of them newly drawn" in capsys.readouterr().out
    assert len(list((tmp_path / "a" / "cells").iterdir())) == 9, "the folder shows what was asked last"
    damaged = sorted((tmp_path / "kept").rglob("*.png"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    assert compare(*shared, "--x", "seed=1,2,3", "--prompt", "b", "--prompt", "a") == 0
    assert len(drawn) == 7, "a torn file is drawn again"
    assert compare(*shared, "--x", "seed=1,2,3", "--prompt", "b", "--prompt", "a", "--guidance-scale", 3) == 0
    assert len(drawn) == 13, "any other setting is another picture"


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model", tiny_model, "--steps", 1, "--cells", tmp_path / "kept", "--outdir", tmp_path / "a"]
    argv += ["--prompt", "a", "--x", "seed=1..4"]
    plain, count = metadata.write, []

    def write(*what):
        if len(count) == 2:
            raise KeyboardInterrupt
        count.append(what)
        plain(*what)

    monkeypatch.setattr(metadata, "write", write)
    assert compare(*argv) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert len(list((tmp_path / "kept").rglob("*.png"))) == 2
    monkeypatch.setattr(metadata, "write", plain)
    assert compare(*argv) == 0
    assert "4 cells, 2 of them newly drawn" in capsys.readouterr().out


def test_each_model_is_loaded_once_and_none_for_cells_that_are_there(
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


def test_what_is_wrong_is_said_before_a_folder_is_made(tiny_model: Path, tmp_path: Path) -> None:
    argv = ["--model", tiny_model, "--prompt", "a", "--outdir", tmp_path / "a"]
    for flags, said in (
        (["--width", 7], "--width: 7 is not a multiple of 8 pixels"),
        (["--x", "steps=1,1001"], "1001 steps are more than the model was trained with"),
        (["--x", "lora=none,missing.safetensors"], "--lora missing.safetensors: no such file"),
        (["--x", "model=missing/folder/of/mine"], "no such file or folder"),
        (["--prompt", "a (water:1000)"], "a weight in 'a (water:1000)'"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            compare(*argv, *flags)
        assert not (tmp_path / "a").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="is not empty, and nothing is overwritten"):
        compare(*argv[:-1], tmp_path / "full", "--steps", 1)


def test_sheets_and_the_page_show_every_cell(tiny_model: Path, tmp_path: Path) -> None:
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
    marked = json.loads((tmp_path / "a" / result.MARK).read_text())
    assert marked["asked"]["x_axis"] == "seed=1,2"


@pytest.mark.parametrize("scheduler", [None, "ddim", "euler"])
def test_a_watched_picture_is_the_one_drawn_unwatched(tiny_model: Path, tmp_path: Path, scheduler: str | None) -> None:
    store = Store(Machine(pipeline.choose_device("cpu"), pipeline.DTYPES["fp32"]), tmp_path)
    wish = Wish(Weights(str(tiny_model)), "a fire", 5, 4, 7.5, scheduler)
    (cell,) = store.fetch([wish]).values()
    with store.pipe(wish.weights) as (pipe, _):
        pipe.scheduler = cells_file.schedulers.build(scheduler, store.model(wish.weights).scheduler_config)
        frames = recording.frames(pipe, wish.prompt, wish.seed, store.settings(wish), 3)
        assert type(pipe.scheduler).__module__.startswith("diffusers"), "the scheduler is as it was"
    assert frames[-1].noisy.tobytes() == cell.picture.tobytes()
    assert len(frames) == 3
    assert frames[0].t > frames[1].t >= 0 == frames[2].t
    assert frames[0].noisy.tobytes() != frames[0].expected.tobytes()


def test_expected_pictures_follow_from_every_kind_of_prediction() -> None:
    """x_t = s x_0 + n eps at a known x_0 and eps; v = s eps - n x_0."""
    import torch

    x0, eps = torch.tensor([0.3, -1.0]), torch.tensor([1.5, 0.2])
    signal2 = torch.tensor(0.36)
    xt, v = 0.6 * x0 + 0.8 * eps, 0.6 * eps - 0.8 * x0
    for kind, said in (("epsilon", eps), ("v_prediction", v), ("sample", x0)):
        assert torch.allclose(recording.expected(kind, xt, said, signal2), x0, atol=1e-6)


def test_strips_and_moving_pictures_in_lockstep(tiny_model: Path, lora: Path, tmp_path: Path) -> None:
    argv = ["--model", tiny_model, "--lora", lora, "--gif", "--steps", 3, "--prompt", "a fire"]
    assert compare(*argv, "--outdir", tmp_path / "a") == 0
    with Image.open(tmp_path / "a" / "walk-00.gif") as walk:
        assert walk.n_frames == 5  # pyright: ignore[reportAttributeAccessIssue]
        assert walk.width > 4 * 256, "base and tuned, as they are and as expected"
    with Image.open(tmp_path / "a" / "strip-00.png") as strip:
        assert strip.height > 4 * 256
    with pytest.raises(InputError, match="a strip has no axis but the model's; allowed: model"):
        compare(*argv, "--x", "seed=1,2", "--outdir", tmp_path / "b")
