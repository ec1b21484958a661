"""Defaults, preset and flags become one config; every mistake is named with the flag or line it came from."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from data.errors import InputError, InputErrors
from data.options import Options, parse


class Full(Options):
    kind: Literal["full"] = "full"


class Lora(Options):
    kind: Literal["lora"] = "lora"
    rank: int = Field(default=16, gt=0)
    """rank of the update"""


class Sample(Options):
    config: Path | None = None
    """preset"""
    adapter: Annotated[Full | Lora, Field(discriminator="kind")] = Lora()
    learning_rate: float = Field(default=1e-4, gt=0)
    """peak learning rate"""
    prompt: list[str] = Field(default=[])
    strict: bool = False
    seed: int = 0


def read(*argv: str, preset: Path | None = None) -> Sample:
    return parse(Sample, argv, prog="sample.py", preset=preset, aliases={"-s": "--seed", "--lr": "--learning-rate"})


def message(*argv: str, preset: Path | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read(*argv, preset=preset)
    return str(caught.value)


def test_a_word_without_a_flag_is_named() -> None:
    assert message("folder") == "sample.py: no flag stands before 'folder'. See --help."


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    path = tmp_path / "preset.yaml"
    path.write_text("learning_rate: 1e-3\nadapter:\n  kind: lora\n  rank: 4\n")
    return path


def test_defaults_then_preset_then_flags(preset: Path) -> None:
    assert read() == Sample()
    assert read(preset=preset) == Sample(learning_rate=1e-3, adapter=Lora(rank=4))
    assert read("--adapter.rank", "8", preset=preset) == Sample(learning_rate=1e-3, adapter=Lora(rank=8))


def test_the_flag_names_the_preset(preset: Path) -> None:
    assert read("--config", str(preset)).learning_rate == 1e-3
    assert read(f"--config={preset}").config == preset


def test_a_section_without_its_kind_means_the_default_kind() -> None:
    assert read("--adapter.rank", "2").adapter == Lora(rank=2)


def test_another_kind_forgets_the_presets_fields(preset: Path) -> None:
    assert read("--adapter.kind", "full", preset=preset).adapter == Full()


def test_spellings_that_fingers_know() -> None:
    assert read("--learning_rate", "2", "-s", "7").model_dump() == Sample(learning_rate=2, seed=7).model_dump()
    assert read("--lr=3").learning_rate == 3


def test_items_of_a_list_are_taken_literally() -> None:
    items = ["a, b", "[c]", '"d"', "e\\", 'f\\"g', "{h}", "true", "1.5", "ação 水", "", " i ", "(j:1.2), [k"]
    flags = [part for item in items for part in ("--prompt", item)]
    assert read(*flags).prompt == items
    assert read("--prompt=a, b").prompt == ["a, b"]


def test_the_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEED", "99")
    monkeypatch.setenv("LEARNING_RATE", "99")
    assert read() == Sample()


def test_switches() -> None:
    assert read("--strict").strict
    assert not read("--no-strict").strict
    assert read("--strict", "true").strict and read("--strict=YES", "--seed", "1").strict
    assert not read("--strict", "false", "--seed", "1").strict and not read("--strict=no").strict


def test_unknown_flags_are_all_named_with_suggestions() -> None:
    text = message("--lerning-rate", "3", "--sed", "4")
    assert "--lerning-rate: unknown flag, did you mean '--learning-rate'?" in text
    assert "--sed: unknown flag, did you mean '--seed'?" in text


def test_values_are_named_with_what_is_allowed() -> None:
    with pytest.raises(InputErrors) as caught:
        read("--learning-rate", "-1", "--seed", "x")
    assert str(caught.value).splitlines() == [
        "--learning-rate: '-1' is not allowed; allowed: greater than 0",
        "--seed: 'x' is not allowed; allowed: integer",
    ]


def test_a_flag_without_its_value() -> None:
    assert message("--seed").startswith("--seed: expected one argument")


def test_a_field_of_another_kind() -> None:
    text = message("--adapter.kind", "full", "--adapter.rank", "4")
    assert text == "--adapter.rank: adapter.rank does not belong to the chosen adapter.kind"


def test_an_unknown_kind() -> None:
    assert "unknown kind 'lorra', did you mean 'lora'?; allowed: full, lora" in message("--adapter.kind", "lorra")


def test_a_preset_is_blamed_by_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("learning_rte: 1\nadapter:\n  rank: -4\n")
    text = message(preset=path)
    assert f"{path}:1: unknown key 'learning_rte', did you mean 'learning_rate'?" in text
    assert f"{path}:3: -4 is not allowed; allowed: greater than 0" in text


def test_a_missing_preset_lists_its_neighbours(preset: Path) -> None:
    text = message("--config", str(preset.with_name("none.yaml")))
    assert "no such preset" in text and "preset.yaml" in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a: [", "bad.yaml:1"),
        ("- 1\n- 2\n", "a preset is a list of `key: value` lines"),
        ("a: 1\na: 2\n", "stands twice"),
    ],
)
def test_presets_that_are_no_presets(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    assert expected in message(preset=path)


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "--adapter.rank" in text and "rank of the update" in text and "--learning-rate" in text
