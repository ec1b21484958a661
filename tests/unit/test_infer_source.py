"""Which weights a command means."""

import json
from pathlib import Path

import pytest

from data.errors import InputError
from infer import config, resolve_model
from infer.config import LoraFile
from infer.resolve_model import ResolvedModel


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


def chosen(runs: Path, *argv: str) -> ResolvedModel:
    return resolve_model.resolve(config.read_options(list(argv)), runs)


def test_without_runs_it_is_the_embedded_base(tmp_path: Path) -> None:
    found = chosen(tmp_path / "runs")
    assert (found.model, found.is_tuned) == ("pocket", False)
    assert found.said.startswith("model: pocket, the embedded base (there is no finished run in ")


def test_the_newest_finished_run_is_the_default(tmp_path: Path) -> None:
    a_run(tmp_path, "0001-old")
    run = a_run(tmp_path, "0002-style", config="model: CompVis/stable-diffusion-v1-4\ntokenizer: words\n")
    a_run(tmp_path, "0003-unfinished", done=False)
    found = chosen(tmp_path)
    assert (found.model, found.tokenizer) == ("CompVis/stable-diffusion-v1-4", "words")
    assert found.loras == (LoraFile(run / "export" / "lora.safetensors"),)
    assert found.said.endswith("0002-style (a LoRA over CompVis/stable-diffusion-v1-4), the newest finished run")
    assert found.is_tuned


def test_a_full_run_is_a_model_of_its_own_with_a_base(tmp_path: Path) -> None:
    run = a_run(tmp_path, "0001-full", kind="full")
    found = chosen(tmp_path, "--model", str(run), "--lora", "x.safetensors:0.5")
    assert (found.model, found.base) == (str(run / "export" / "model"), "base")
    assert found.loras == (LoraFile(Path("x.safetensors"), 0.5),)


def test_a_name_is_taken_as_it_is_and_pocket_beats_the_newest_run(tmp_path: Path) -> None:
    a_run(tmp_path, "0001-style")
    assert chosen(tmp_path, "--model", "pocket").model == "pocket"
    assert chosen(tmp_path, "--model", "pocket").loras == ()
    assert chosen(tmp_path, "--tokenizer", "words", "--model", "one.safetensors").tokenizer == "words"


def test_a_lora_lies_over_the_base_of_its_run(tmp_path: Path) -> None:
    run = a_run(tmp_path, "0001-style", config="model: other\n")
    a_run(tmp_path, "0002-newest")
    file = run / "export" / "lora.safetensors"
    assert chosen(tmp_path, "--lora", f"{file}:0.5").model == "other"
    assert chosen(tmp_path, "--lora", str(tmp_path / "away.safetensors")).model == "pocket"


def test_another_base_is_the_model_under_a_lora_and_what_a_whole_model_is_compared_with(tmp_path: Path) -> None:
    style = a_run(tmp_path, "0001-style", config="model: /elsewhere/sd14\n")
    full = a_run(tmp_path, "0002-full", kind="full")
    moved = chosen(tmp_path, "--model", str(style), "--base", "here/sd14")
    assert (moved.model, moved.base, moved.is_tuned) == ("here/sd14", None, True)
    assert moved.said.endswith("; base: here/sd14")
    whole = chosen(tmp_path, "--model", str(full), "--base", "here/sd14")
    assert (whole.model, whole.base) == (str(full / "export" / "model"), "here/sd14")
    mine = chosen(tmp_path, "--model", "mine.safetensors", "--base", "here/sd14", "--compare-base")
    assert (mine.model, mine.base) == ("mine.safetensors", "here/sd14")
    away = chosen(tmp_path, "--lora", str(tmp_path.parent / "away.safetensors"), "--base", "here/sd14")
    assert (away.model, away.base) == ("here/sd14", None)


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    unfinished = a_run(tmp_path, "0001-a", done=False)
    empty = a_run(tmp_path, "0002-b", kind="none")
    mute = a_run(tmp_path, "0003-c", config="seed: 1\n")
    for run in (unfinished, empty):
        with pytest.raises(InputError, match="the run is not finished, nothing is exported"):
            chosen(tmp_path, "--model", str(run))
    with pytest.raises(InputError, match="does not say which model the run was tuned from"):
        chosen(tmp_path, "--model", str(mute))
    with pytest.raises(InputError, match="--compare-base: pocket is itself a base: nothing is tuned"):
        chosen(tmp_path, "--model", "pocket", "--compare-base")
