"""Which weights a command uses, and the settings that suit them."""

import json
import shutil
from pathlib import Path

import pytest

from data.errors import InputError
from infer import config, resolve_model
from infer.config import LoraFile
from infer.resolve_model import ResolvedModel, recommended
from tests.errors import error_of
from train.model import load_model


def a_run(runs: Path, name: str, *, kind: str = "lora", done: bool = True, config: str = "model: base\n") -> Path:
    folder = runs / name
    (folder / "export").mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    if kind == "lora":
        (folder / "export" / "lora.safetensors").write_bytes(b"")
    elif kind == "full":
        (folder / "export" / "model").mkdir()
    if done:
        (folder / "done").write_text(json.dumps({"steps": 10}))
    return folder


def resolve(runs: Path, *argv: object) -> ResolvedModel:
    return resolve_model.resolve(config.read_options(list(map(str, argv))), runs)


def test_without_runs_it_is_the_embedded_base(tmp_path: Path) -> None:
    found = resolve(tmp_path / "runs")
    assert (found.model, found.is_tuned) == ("pocket", False)
    assert "pocket" in found.description


def test_the_newest_finished_run_is_the_default(tmp_path: Path) -> None:
    a_run(tmp_path, "0001-old")
    run = a_run(tmp_path, "0002-style", config="model: CompVis/stable-diffusion-v1-4\ntokenizer: words\n")
    a_run(tmp_path, "0003-unfinished", done=False)
    found = resolve(tmp_path)
    assert (found.model, found.tokenizer) == ("CompVis/stable-diffusion-v1-4", "words")
    assert found.loras == (LoraFile(run / "export" / "lora.safetensors"),)
    assert "0002-style" in found.description and found.is_tuned


def test_a_full_run_is_a_model_with_a_base(tmp_path: Path) -> None:
    run = a_run(tmp_path, "0001-full", kind="full")
    found = resolve(tmp_path, "--model", run, "--lora", "x.safetensors:0.5")
    assert (found.model, found.base) == (str(run / "export" / "model"), "base")
    assert found.loras == (LoraFile(Path("x.safetensors"), 0.5),)


def test_a_name_is_used_as_it_is(tmp_path: Path) -> None:
    a_run(tmp_path, "0001-style")
    found = resolve(tmp_path, "--model", "pocket")
    assert (found.model, found.loras) == ("pocket", ())
    assert resolve(tmp_path, "--tokenizer", "words", "--model", "one.safetensors").tokenizer == "words"


def test_a_lora_has_the_base_of_its_run(tmp_path: Path) -> None:
    run = a_run(tmp_path, "0001-style", config="model: other\n")
    a_run(tmp_path, "0002-newest")
    assert resolve(tmp_path, "--lora", f"{run}/export/lora.safetensors:0.5").model == "other"
    assert resolve(tmp_path, "--lora", tmp_path / "away.safetensors").model == "pocket"


def test_base_replaces_the_model_under_a_lora_and_is_compared_with_a_whole_model(tmp_path: Path) -> None:
    style = a_run(tmp_path, "0001-style", config="model: /elsewhere/sd14\n")
    full = a_run(tmp_path, "0002-full", kind="full")
    moved = resolve(tmp_path, "--model", style, "--base", "here/sd14")
    assert (moved.model, moved.base, moved.is_tuned) == ("here/sd14", None, True)
    assert "here/sd14" in moved.description
    whole = resolve(tmp_path, "--model", full, "--base", "here/sd14")
    assert (whole.model, whole.base) == (str(full / "export" / "model"), "here/sd14")
    mine = resolve(tmp_path, "--model", "mine.safetensors", "--base", "here/sd14", "--compare-base")
    assert (mine.model, mine.base) == ("mine.safetensors", "here/sd14")
    away = resolve(tmp_path, "--lora", tmp_path.parent / "away.safetensors", "--base", "here/sd14")
    assert (away.model, away.base) == ("here/sd14", None)


def test_runs_that_cannot_be_used(tmp_path: Path) -> None:
    unfinished = a_run(tmp_path, "0001-a", done=False)
    empty = a_run(tmp_path, "0002-b", kind="none")
    for run in (unfinished, empty):
        error = error_of(resolve, tmp_path, "--model", run)
        assert error.where == f"--model {run}" and error.fix
    no_base = a_run(tmp_path, "0003-c", config="seed: 1\n")
    assert error_of(resolve, tmp_path, "--model", no_base).where == no_base / "config.yaml"
    assert error_of(resolve, tmp_path, "--model", "pocket", "--compare-base").where == "--compare-base"


def test_recommended_settings_follow_the_model(tiny_model: Path, tmp_path: Path) -> None:
    assert recommended(load_model("pocket").layout) == (4.0, 50, 64)
    assert recommended(None) == (7.5, 50, 512), "Stable Diffusion's for what is not a folder here"
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    unet, own = model / "unet" / "config.json", model / resolve_model.RECOMMENDED_FILE
    assert recommended(model) == (4.0, 50, 64)
    unet.write_text(json.dumps(json.loads(unet.read_text()) | {"cross_attention_dim": 768}))
    assert recommended(model) == (7.5, 50, 64)
    own.write_text('{"guidance_scale": 3, "steps": 20}')
    assert recommended(model) == (3.0, 20, 64)
    own.write_text("{")
    with pytest.raises(InputError):
        recommended(model)
