"""Files that commit 2874934 wrote (tests/fixtures/v1) are still read: runs, configs, checkpoints, images, releases."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from train.config import Config
from train.run_folder import identity_v1

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "v1"
FINETUNE = ("train/finetune.py", "--config", "config.yaml", "--model", "model", "--data", "images")
FIT = (
    *("train/ddpm/fit.py", "--network.width", "4", "--network.multiples", "1", "--network.multiples", "2"),
    *("--looks.every", "2", "--drawings.every", "0", "--checkpoints.every", "2", "--optim.schedule", "constant"),
    *("--optim.warmup", "0", "--threads", "1", "--batch-size", "16", "--run-name", "ddpm"),
)

Command = Callable[..., None]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the fixture, which is the working directory."""
    folder = shutil.copytree(FIXTURE, tmp_path / "v1")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def command(old: Path, fresh_accelerate: None, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run an entry's command line in this process; it must end well."""

    def run(script: str, *flags: object) -> None:
        monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        assert ended.value.code in (0, None)

    return run


def runs() -> list[str]:
    return sorted(path.name for path in Path("runs").iterdir() if path.is_dir())


def apart(one: Path, other: Path) -> float:
    """The largest difference of two files' tensors."""
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_an_unfinished_run_is_resumed_by_the_same_command(old: Path, command: Command) -> None:
    run, before = old / "runs" / "0002-unfinished", runs()
    command(*FINETUNE, "--seed", 1, "--max-steps", 6, "--run-name", "unfinished")
    assert runs() == before
    assert json.loads((run / "done").read_text())["steps"] == 6
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert apart(run / "export" / "lora.safetensors", old / "expected" / "lora.safetensors") < 1e-5


def test_a_finished_run_is_found_and_left_alone(old: Path, command: Command) -> None:
    files = [path for path in (old / "runs" / "0001-finished").rglob("*") if path.suffix in {".safetensors", ".json"}]
    before = runs(), [path.stat().st_mtime_ns for path in files]
    command(*FINETUNE, "--run-name", "finished")
    assert (runs(), [path.stat().st_mtime_ns for path in files]) == before


def test_a_finished_run_is_exported_again(old: Path, command: Command) -> None:
    command("train/export.py", "runs/0001-finished", "--output", "again")
    for name in ("lora.safetensors", "lora-kohya.safetensors"):
        assert apart(old / "again" / name, old / "runs" / "0001-finished" / "export" / name) < 1e-6


def test_an_image_is_generated_again_from_its_metadata(old: Path, command: Command) -> None:
    lora = "runs/0001-finished/export/lora.safetensors:0.8"
    command("infer/generate.py", "--params-from", "generated.png", "--model", "model", "--lora", lora, "--outdir", "a")
    (again,) = sorted((old / "a").glob("0*.png"))
    assert again.name == "00000-7.png"
    pixels = [np.asarray(Image.open(path).convert("RGB"), dtype=int) for path in ("generated.png", again)]
    assert np.abs(pixels[0] - pixels[1]).max() <= 2


@pytest.mark.parametrize("name", ["lora.safetensors", "lora-kohya.safetensors"])
def test_a_lora_file_is_loaded_whole(old: Path, command: Command, name: str) -> None:
    lora = f"runs/0001-finished/export/{name}"
    command(
        *("infer/generate.py", "--model", "model", "--lora", lora, "--prompt", "fire", "--steps", 1, "--strict"),
        *("--outdir", "a"),
    )
    assert len(list((old / "a").glob("0*.png"))) == 1


def test_a_run_is_a_model_to_generate_with(old: Path, command: Command) -> None:
    command("infer/generate.py", "--model", "runs/0001-finished", "--prompt", "fire", "--steps", 1, "--outdir", "a")
    assert len(list((old / "a").glob("0*.png"))) == 1


def test_a_ddpm_run_is_sampled_and_continued(old: Path, command: Command) -> None:
    command(
        *("train/ddpm/sample.py", "--run", "runs/0003-ddpm", "--count", 2, "--columns", 2, "--steps", 2),
        *("--sampler", "ddim", "--no-walk", "--out", "samples"),
    )
    assert (old / "samples" / "grid.png").is_file()
    before = runs()
    command(*FIT, "--max-steps", 6)
    assert runs() == before
    assert json.loads((old / "runs" / "0003-ddpm" / "done").read_text())["steps"] == 6


def test_a_release_is_known_again(old: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers give the same release: the lock's hashes are those of before."""
    monkeypatch.chdir(old / "project")
    lock = (old / "project" / "release" / "dataset.lock").read_bytes()
    command("annotation/annotate.py", "export", "--into", "release")
    assert (old / "project" / "release" / "dataset.lock").read_bytes() == lock
    command("data/prepare.py", "release", "--size", 64)


@pytest.mark.parametrize("row", json.loads((FIXTURE / "identities.json").read_text()), ids=lambda row: row["preset"])
def test_the_identity_of_an_old_run_is_known(row: dict) -> None:
    assert identity_v1(Config.model_validate(row["settings"]), "data", "model") == row["identity"]
