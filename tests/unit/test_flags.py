"""Every flag that a command had at commit 2874934 is still accepted, under its spelling or as an alias."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from data.cli import parse
from data.errors import InputError
from infer import config as infer_config
from train.config import ALIASES, CONFIGS, Config

ROOT = Path(__file__).parents[2]
FLAGS: dict[str, dict[str, str]] = json.loads((ROOT / "tests" / "fixtures" / "v1" / "flags.json").read_text())
REMOVED = {  # command: flag: reason
    "infer/generate.py": {
        "--benchmark": "a measurement of the toy model; time generate.py itself",
        "--fast": "replaced by the flags --steps 20 --scheduler dpmpp_2m_karras --guidance-stop 0.8",
    },
}
NOT_A_FLAG = "--not-a-flag"


def errors(command: str, flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a command prints when it stops at its command line."""
    script, *words = command.split()
    monkeypatch.setattr(sys, "argv", [script, *words, *flags])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("command", FLAGS)
def test_every_flag_is_known(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once beside one that is unknown: that one alone is refused."""
    gone = REMOVED.get(command, {})
    kept = {flag: kind for flag, kind in FLAGS[command].items() if flag not in gone}
    argv = [word for flag, kind in kept.items() for word in ([flag] if kind.startswith("switch") else [flag, "1"])]
    argv += [flag.replace("--", "--no-", 1) for flag, kind in kept.items() if kind == "switch" and "." not in flag]
    unknown = [
        line for line in errors(command, [*argv, NOT_A_FLAG], capsys, monkeypatch).splitlines() if "nknown" in line
    ]
    assert len(unknown) == 1, unknown
    assert NOT_A_FLAG in unknown[0]


@pytest.mark.parametrize(("command", "flag"), [(command, flag) for command in REMOVED for flag in REMOVED[command]])
def test_a_removed_flag_is_refused_by_name(
    command: str, flag: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert flag in errors(command, [flag], capsys, monkeypatch)


def read(*flags: str) -> Config:
    return parse(Config, flags, prog="finetune.py", preset=CONFIGS / "pocket.yaml", aliases=ALIASES)


def test_another_kind_forgets_the_presets_settings_of_the_first() -> None:
    assert read("--adapter.kind", "full").adapter.kind == "full"


def test_a_repeated_flag_replaces_the_default() -> None:
    config = read("--data", "a", "--data", "b=2")
    assert [(folder.path, folder.weight) for folder in config.data] == [("a", 1), ("b", 2)]


@pytest.mark.parametrize(
    ("flags", "strict"),
    [
        (["--strict"], True), (["--strict", "true"], True), (["--strict=yes"], True), (["--no-strict"], False),
        (["--strict", "false"], False), (["--strict=no"], False), ([], False),
    ],
)  # fmt: skip
def test_switches_as_people_write_them(flags: list[str], strict: bool) -> None:
    assert read(*flags).strict is strict


def test_underscores_are_dashes_and_equals_signs_are_spaces() -> None:
    config = read("--max_steps=7", "--optim.weight_decay", "0.5", "--train_batch_size", "3", "--lr", "0.001")
    assert (config.max_steps, config.optim.weight_decay, config.batch_size) == (7, 0.5, 3)
    assert config.learning_rate == 0.001


def test_a_prompt_is_not_cut_at_its_commas() -> None:
    prompts = ("a cat, black, [old]", "two, three")
    assert infer_config.read_options(["--prompt", prompts[0], "-p", prompts[1]]).prompt == prompts


def test_all_errors_are_reported_at_once() -> None:
    with pytest.raises(InputError) as error:
        read("--max-steps", "0", "--batch-size", "-1", "--adapter.rank", "x")
    for flag in ("--max-steps", "--batch-size", "--adapter.rank"):
        assert flag in str(error.value)
    with pytest.raises(InputError) as error:
        read("--max-stepz", "1", "--nonsense")
    assert "--max-stepz" in str(error.value)
    assert "--nonsense" in str(error.value)
