"""A command that does not resume an unfinished run says why, and --resume resumes it anyway where a checkpoint fits."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from data.cli import parse
from data.errors import InputError
from tests import sessions
from train.config import ALIASES, CONFIGS, Config
from train.run_folder import Run, all_runs

QUICK = [
    *("--preserve.share", "0", "--adapter.targets", "attention", "--logging.tensorboard", "false"),
    *("--pictures.size", "32", "--batch-size", "4", "--validation.every", "4", "--validation.pictures", "2"),
    *("--validation.timesteps", "2", "--checkpoints.every", "2", "--threads", "1"),
    *("--optim.warmup", "0", "--optim.schedule", "constant", "--previews.every", "0", "--no-probe"),
]
FIRST = Path("runs/0001-lora-r16")
Finetune = Callable[..., int]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_data: Path) -> Path:
    """A place with a model, a dataset and a run that stopped at step 2 of 4."""
    place = tmp_path_factory.mktemp("stopped")
    shutil.copytree(tiny_model, place / "model")
    shutil.copytree(tiny_data, place / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert train("--max-steps", "2") == 0
    run = place / FIRST
    (run / "done").unlink()
    settings = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(settings | {"max_steps": 4}))
    return place


def train(*flags: str) -> int:
    argv = ["--model", "model", "--data", "data", "--max-steps", "4", *QUICK, *flags]
    return sessions.run(parse(Config, argv, prog="finetune.py", preset=CONFIGS / "pocket.yaml", aliases=ALIASES))


@pytest.fixture
def place(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `stopped`, as the working folder."""
    shutil.copytree(stopped, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def add_image() -> None:
    Image.new("RGB", (40, 40), (250, 3, 77)).save("data/new.png")
    rows = Path("data/metadata.jsonl").read_text()
    Path("data/metadata.jsonl").write_text(rows + json.dumps({"file_name": "new.png", "text": "a new one"}) + "\n")


def remove_image() -> None:
    rows = Path("data/metadata.jsonl").read_text().splitlines(keepends=True)
    Path("data/metadata.jsonl").write_text("".join(rows[1:]))
    (Path("data") / json.loads(rows[0])["file_name"]).unlink()


def change_caption() -> None:
    rows = [json.loads(row) for row in Path("data/metadata.jsonl").read_text().splitlines()]
    rows[0]["text"] = "something else"
    Path("data/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rename_folder() -> None:
    Path("data").rename("elsewhere")
    Path("data").symlink_to("elsewhere")


def rename_image() -> None:
    rows = [json.loads(row) for row in Path("data/metadata.jsonl").read_text().splitlines()]
    (Path("data") / rows[0]["file_name"]).rename(Path("data/zzz.png"))
    rows[0]["file_name"] = "zzz.png"
    Path("data/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def move_run() -> None:
    Path("runs/0001-lora-r16").rename("runs/0001-mine")


def nothing() -> None:
    pass


RESUMES: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {
    "the folder renamed": (rename_folder, ()),
    "an image renamed": (rename_image, ()),
    "the run renamed": (move_run, ()),
    "another log": (nothing, ("--logging.every", "1")),
    "more checkpoints": (nothing, ("--checkpoints.every", "1")),
    "another validation": (nothing, ("--validation.every", "2")),
    "more steps": (nothing, ("--max-steps", "6")),
    "another export": (nothing, ("--export.merge",)),
    "a default given": (nothing, ("--pictures.caption-dropout", "0.4")),
}


@pytest.mark.parametrize("name", RESUMES)
def test_the_same_run_is_resumed(place: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    change, flags = RESUMES[name]
    change()
    assert train(*flags) == 0
    assert "after step 2" in capsys.readouterr().out
    assert len(all_runs(Path("runs"))) == 1


CHANGES: dict[str, tuple[Callable[[], None], tuple[str, ...], str]] = {
    "an image added": (add_image, (), "data (+1 image)"),
    "an image removed": (remove_image, (), "data (-1 image)"),
    "a caption": (change_caption, (), "data (captions)"),
    "learning rate": (nothing, ("--learning-rate", "2e-4"), "--learning-rate (0.0015 -> 0.0002)"),
    "batch": (nothing, ("--batch-size", "2"), "--batch-size (4 -> 2)"),
    "seed": (nothing, ("--seed", "5"), "--seed (0 -> 5)"),
    "two at once": (add_image, ("--accumulate", "2"), "--accumulate (1 -> 2), data (+1 image)"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_run_says_why_and_how_to_resume_anyway(
    place: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, flags, words = CHANGES[name]
    change()
    assert train(*flags, "--dry-run") == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if "stopped at step 2 of 4" in line)
    assert words in said
    assert f"--resume {FIRST}" in said

    assert train(*flags, "--resume", str(FIRST)) == 0
    assert "after step 2" in capsys.readouterr().out
    facts = Run(FIRST).facts("data.json")
    assert facts["resumed"] == [{"step": 2, "changes": words.split(", ")}]
    assert Run(FIRST).done == 4
    assert train(*flags) == 0  # the same command without --resume finds the run, which has finished
    assert len(all_runs(Path("runs"))) == 1


UNFIT: dict[str, tuple[str, ...]] = {
    "--adapter.rank (16 -> 8)": ("--adapter.rank", "8"),
    "--adapter.alpha (None -> 8)": ("--adapter.alpha", "8"),
    "--optim.kind (adamw -> adafactor)": ("--optim.kind", "adafactor"),
    "--ema.decay": ("--ema.decay", "0.5"),
}


@pytest.mark.parametrize("words", UNFIT)
def test_what_no_checkpoint_fits_is_refused(place: Path, capsys: pytest.CaptureFixture[str], words: str) -> None:
    flags = UNFIT[words]
    assert train(*flags, "--dry-run") == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if "stopped at step 2 of 4" in line)
    assert words in said
    assert "--resume" not in said
    with pytest.raises(InputError) as error:
        train(*flags, "--resume", str(FIRST))
    assert error.value.where == f"--resume {FIRST}"
    assert words in str(error.value)


def test_only_files_that_are_loaded_count(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = Path("model/unet/diffusion_pytorch_model.safetensors")
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert train() == 0
    assert "after step 2" in capsys.readouterr().out


def test_another_base_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads(Path("model/vae/config.json").read_text())
    Path("model/vae/config.json").write_text(json.dumps(config | {"note": 1}))
    assert train("--dry-run") == 0
    assert "model (vae)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["runs", "runs/0009-x", "data"])
def test_what_is_no_run_cannot_be_resumed(place: Path, name: str) -> None:
    with pytest.raises(InputError) as error:
        train("--resume", name)
    assert error.value.where == f"--resume {name}"
    assert str(FIRST) in str(error.value.allowed)
