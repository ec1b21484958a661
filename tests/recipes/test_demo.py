"""The demo as `make demo` has it, cut short; and the README's commands, which must stay true."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from data import cli
from data.validate import ALIASES as CHECKUP_ALIASES
from data.validate import PrepareOptions
from infer import config as infer_config
from infer.config import (
    CompareOptions,
    EvaluateOptions,
    GalleryOptions,
    GenerateOptions,
    StudioOptions,
    SynthesizeOptions,
)
from train.config import ALIASES, Config
from train.study.config import ClassifyOptions, StudyOptions

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ENTRIES = {
    "data/prepare.py": (PrepareOptions, CHECKUP_ALIASES),
    "train/finetune.py": (Config, ALIASES),
    "infer/generate.py": (GenerateOptions, infer_config.ALIASES),
    "infer/compare.py": (CompareOptions, infer_config.COMPARE_ALIASES),
    "infer/gallery.py": (GalleryOptions, {}),
    "infer/studio.py": (StudioOptions, {}),
    "infer/evaluate.py": (EvaluateOptions, {}),
    "infer/synthesize.py": (SynthesizeOptions, {}),
    "train/study/run.py": (StudyOptions, {}),
    "train/study/classify.py": (ClassifyOptions, {}),
}


def run(*command: str, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    noise = [line for line in done.stderr.splitlines() if "Warning" in line or "[transformers]" in line]
    assert not noise, "a library's chatter reaches the user"
    return done.stdout


def test_the_demo_from_nothing_to_a_sheet(tmp_path: Path) -> None:
    """The embedded base and the sample set: what the commands do with no arguments."""
    launch = [str(Path(sys.executable).parent / "accelerate"), "launch", "--quiet"]
    few = ["--max-steps", "2", "--validation.pictures", "2", "--previews.steps", "2", "--threads", "1"]
    few += ["--batch-size", "4", "--validation.timesteps", "2", "--no-probe"]  # a quarter of a step's work, no more
    trained = run(
        *(*launch, "--config_file", str(ROOT / "accelerate_config.yaml"), str(ROOT / "train/finetune.py"), *few),
        folder=tmp_path,
    )
    assert "finished: runs/0001-lora-r16/export/lora.safetensors" in trained
    assert re.search(r"no GPU here: fp16 is for GPUs, training in (bf16|fp32) on the CPU", trained)
    assert re.search(r"images     pocket: 5\d\d for training, \d+ held out", trained)
    assert "0 truncated" in trained, "the sample captions fit the embedded tokenizer"
    two = ["--prompt", "a water type fridge", "--prompt", "a guitar", "--steps", "2", "--compare-base"]
    drawn = run(sys.executable, str(ROOT / "infer/generate.py"), *two, folder=tmp_path)
    assert "the newest finished run" in drawn.splitlines()[0]
    sheet = tmp_path / drawn.splitlines()[-1].rpartition(": ")[2]
    assert sheet.name == "compare.png" and sheet.stat().st_size > 10_000


def commands() -> list[list[str]]:
    """The lines of the README's bash blocks that start one of our scripts, split as a shell does."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if any(word in ENTRIES for word in words)]


def test_the_readme_shows_commands() -> None:
    assert len(commands()) >= 5
    assert README.splitlines().index("```bash") < 10, "code before line 10"


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_readmes_commands_are_right(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    script = next(word for word in words if word in ENTRIES)
    assert (ROOT / script).is_file()
    model, aliases = ENTRIES[script]
    cli.parse(model, words[words.index(script) + 1 :], prog=script, aliases=aliases)


@pytest.mark.parametrize("target", ["setup", "demo", "test", "test-all", "lint", "clean"])
def test_make_knows_the_target(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("path", re.findall(r"`((?:data|train|infer|annotation|tests|docs)/[\w/.-]+)`", README))
def test_the_readmes_paths_are_there(path: str) -> None:
    assert (ROOT / path).exists()
