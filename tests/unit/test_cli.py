"""Defaults, preset and flags become one config; every mistake names the flag or the line that it came from."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from data.cli import Options, parse, positional
from data.errors import InputError, InputErrors


class Full(Options):
    """All weights."""

    kind: Literal["full"] = "full"
    seeded: bool = True
    """share of both kinds"""


class Lora(Options):
    """Low-rank updates."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(default=16, gt=0)
    """rank of the update"""
    alpha: float | None = None
    """scale; default: the rank"""
    seeded: bool = True
    """share of both kinds"""


class Sample(Options):
    folder: Path | None = positional(None)
    """captioned folder"""
    config: Path | None = None
    """preset"""
    adapter: Annotated[Full | Lora, Field(discriminator="kind")] = Lora()
    learning_rate: float = Field(default=1e-4, gt=0)
    """peak learning rate, 100 % of it"""
    prompt: list[str] = Field(default=[])
    """may be repeated"""
    sides: tuple[int, ...] = (1, 2)
    """sides"""
    dtype: Literal["fp32", "fp16"] = "fp32"
    """precision"""
    strict: bool = False
    """no exceptions"""
    mirror: bool | None = None
    """mirror images; default: as the data set says"""
    seed: int = 0
    """random seed"""
    out: Path = Path("runs")
    """folder of the runs"""
    mask: Path | None = None
    """image file of the mask"""


ALIASES = {"-s": "--seed", "--lr": "--learning-rate", "--rank": "--adapter.rank"}


def read(*argv: str, preset: Any = None) -> Sample:
    return parse(Sample, argv, prog="sample.py", description="Try it.", preset=preset, aliases=ALIASES)


def refused(*argv: str, preset: Any = None) -> InputError:
    with pytest.raises(InputError) as caught:
        read(*argv, preset=preset)
    return caught.value


def all_refused(*argv: str, preset: Any = None) -> dict[object, InputError]:
    errors = refused(*argv, preset=preset)
    assert isinstance(errors, InputErrors)
    return {error.where: error for error in errors.errors}


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    path = tmp_path / "preset.yaml"
    path.write_text("learning_rate: 1e-3\nadapter:\n  kind: lora\n  rank: 4\n")
    return path


def test_defaults_then_preset_then_flags(preset: Path) -> None:
    assert read() == Sample()
    assert read(preset=preset) == Sample(learning_rate=1e-3, adapter=Lora(rank=4))
    assert read("--adapter.rank", "8", preset=preset) == Sample(learning_rate=1e-3, adapter=Lora(rank=8))
    assert read("--seed", "1").model_fields_set - {"adapter"} == {"seed"}


def test_config_names_the_preset(preset: Path) -> None:
    assert read("--config", str(preset)).learning_rate == 1e-3
    assert read(f"--config={preset}").config == preset


def test_a_function_chooses_the_preset_from_the_typed_values(preset: Path) -> None:
    seen: list[dict[str, Any]] = []

    def choose(typed: dict[str, Any]) -> Path:
        seen.append(dict(typed))
        return preset

    config = read("--adapter.rank", "8", "--prompt", "a", "-s=3", "--strict", preset=choose)
    assert config.learning_rate == 1e-3
    assert seen == [{"adapter.rank": "8", "prompt": ["a"], "seed": "3", "strict": True}]
    assert read("--config", str(preset), preset=choose).learning_rate == 1e-3
    assert len(seen) == 1


def test_a_section_without_its_kind_means_the_default_kind(tmp_path: Path) -> None:
    assert read("--adapter.rank", "2").adapter == Lora(rank=2)
    path = tmp_path / "preset.yaml"
    path.write_text("adapter: {rank: 3}\n")
    assert read(preset=path).adapter == Lora(rank=3)
    assert read("--adapter.kind", "full", preset=path).adapter == Full()


def test_another_kind_drops_the_presets_fields(preset: Path) -> None:
    assert read("--adapter.kind", "full", preset=preset).adapter == Full()
    assert read("--adapter.kind=lora", preset=preset).adapter == Lora(rank=4)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--learning_rate", "2", "-s", "7"], {"learning_rate": 2, "seed": 7}),
        (["--lr=3"], {"learning_rate": 3}),
        (["--rank", "8"], {"adapter": Lora(rank=8)}),
        (["--adapter.rank=8", "--seed", "1", "--seed", "2"], {"adapter": Lora(rank=8), "seed": 2}),
        (["--seed", "-5", "data"], {"seed": -5, "folder": Path("data")}),
        (["data", "--strict"], {"folder": Path("data"), "strict": True}),
        (["--sides", "3", "--sides", "4"], {"sides": (3, 4)}),
        (["--mask", "None"], {"mask": None}),
        (["--adapter.no-seeded"], None),
        (["--no-adapter.seeded"], {"adapter": Lora(seeded=False)}),
        (["--strict"], {"strict": True}),
        (["--no-strict"], {"strict": False}),
        (["--strict", "true"], {"strict": True}),
        (["--strict=YES", "--seed", "1"], {"strict": True, "seed": 1}),
        (["--strict", "false", "--seed", "1"], {"strict": False, "seed": 1}),
        (["--strict=no"], {"strict": False}),
        (["--mirror"], {"mirror": True}),
        (["--mirror", "false"], {"mirror": False}),
    ],
)
def test_spellings(argv: list[str], expected: dict[str, Any] | None) -> None:
    if expected is None:
        assert refused(*argv).where == "--adapter.no-seeded"
    else:
        assert read(*argv) == Sample(**expected)


def test_items_of_a_list_are_taken_literally() -> None:
    items = ["a, b", "[c]", '"d"', "e\\", 'f\\"g', "{h}", "true", "1.5"]
    items += ["ação 水", "", " i ", "(j:1.2), [k", "-l", "- m"]
    flags = [part for item in items for part in ("--prompt", item)]
    assert read(*flags).prompt == items
    assert read("--prompt=a, b").prompt == ["a, b"]


def test_a_repeated_flag_replaces_the_presets_list(tmp_path: Path) -> None:
    path = tmp_path / "preset.yaml"
    path.write_text("prompt: [x, y]\n")
    assert read(preset=path).prompt == ["x", "y"]
    assert read("--prompt", "a", "--prompt", "b", preset=path).prompt == ["a", "b"]


def test_unknown_flags_are_all_named_with_suggestions() -> None:
    errors = all_refused("--lerning-rate", "3", "--sed=4", "-q")
    assert set(errors) >= {"--lerning-rate", "--sed", "-q"}
    assert "'--learning-rate'" in errors["--lerning-rate"].what
    assert "'--seed'" in errors["--sed"].what


def test_a_second_word_without_a_flag_is_named() -> None:
    error = refused("data", "more")
    assert error.where == "sample.py" and "'more'" in error.what


def test_values_are_named_with_what_is_allowed() -> None:
    errors = all_refused("--learning-rate", "-1", "--seed", "x", "--dtype", "fp8")
    assert errors["--learning-rate"].allowed == "greater than 0"
    assert errors["--seed"].allowed == "integer"
    assert errors["--dtype"].allowed == "'fp32' or 'fp16'"


@pytest.mark.parametrize("argv", [["--seed"], ["--seed", "--strict"], ["--prompt"], ["--prompt", "--seed", "3"]])
def test_a_flag_without_its_value(argv: list[str]) -> None:
    assert refused(*argv).where == argv[0]


def test_a_field_of_another_kind() -> None:
    error = refused("--adapter.kind", "full", "--adapter.rank", "4")
    assert error.where == "--adapter.rank" and "adapter.kind" in error.what


def test_an_unknown_kind() -> None:
    error = refused("--adapter.kind", "lorra")
    assert (error.where, error.allowed) == ("--adapter.kind", "full, lora")
    assert "'lora'" in error.what


def test_a_required_argument_is_named() -> None:
    class Required(Options):
        source: Path = positional()
        into: Path

    with pytest.raises(InputErrors) as caught:
        parse(Required, [], prog="import.py")
    assert [error.where for error in caught.value.errors] == ["SOURCE", "--into"]
    assert parse(Required, ["a", "--into", "b"], prog="import.py") == Required(source=Path("a"), into=Path("b"))


def test_a_preset_is_blamed_by_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("learning_rte: 1\nadapter:\n  rank: -4\nsides: lora\n")
    errors = all_refused(preset=path)
    assert set(errors) == {f"{path}:1", f"{path}:3", f"{path}:4"}
    assert "'learning_rate'" in errors[f"{path}:1"].what
    assert errors[f"{path}:3"].allowed == "greater than 0"
    path.write_text("adapter: lora\n")
    assert refused("--adapter.rank", "3", preset=path).where == f"{path}:1"


def test_a_missing_preset_lists_its_neighbours(preset: Path) -> None:
    error = refused("--config", str(preset.with_name("none.yaml")))
    assert "preset.yaml" in str(error.allowed)


@pytest.mark.parametrize(("content", "line"), [("a: [", ":1"), ("- 1\n- 2\n", ""), ("seed: 1\nseed: 2\n", ":2")])
def test_files_that_are_no_presets(tmp_path: Path, content: str, line: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    assert str(refused(preset=path).where) == f"{path}{line}"


def shown(capsys: pytest.CaptureFixture[str], *argv: str, preset: Any = None) -> str:
    with pytest.raises(SystemExit) as caught:
        read(*argv, preset=preset)
    assert caught.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_shows_readable_values(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--help")
    for expected in (
        "sample.py [FOLDER] [options]",
        "--learning-rate X peak learning rate, 100 % of it (default: 0.0001)",
        "--prompt TEXT may be repeated --",
        "--sides N sides (default: 1, 2)",
        "--dtype {fp32,fp16} precision (default: fp32)",
        "--strict, --no-strict no exceptions (default: off)",
        "mirror images; default: as the data set says --",
        "--out FOLDER folder of the runs (default: runs)",
        "--mask FILE image file of the mask",
        "--adapter.kind {full,lora}",
        "adapter (--adapter.kind lora): Low-rank updates.",
        "--adapter.rank N rank of the update (default: 16)",
        "--adapter.alpha X scale; default: the rank",
    ):
        assert expected in text
    assert "None" not in text
    assert text.count("--adapter.seeded,") == 1


def test_help_shows_the_values_in_force(capsys: pytest.CaptureFixture[str], preset: Path) -> None:
    text = shown(capsys, "--help", "--seed", "7", preset=preset)
    assert "rank of the update (default: 4)" in text and "(default: 0.001)" in text and "seed (default: 7)" in text
    assert "--adapter.kind {full,lora} (default: lora)" in text
    assert "--adapter.kind {full,lora} (default: full)" in shown(capsys, "-h", "--adapter.kind", "full", preset=preset)
    assert "seed (default: 0)" in shown(capsys, "--help", "--seed", "x")


@pytest.mark.parametrize(
    "entry", ["data/prepare.py", "train/finetune.py", "train/ddpm/fit.py", "infer/generate.py", "infer/evaluate.py"]
)
def test_help_does_not_import_torch(entry: str) -> None:
    root = Path(__file__).parents[2]
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop: print('torch' in sys.modules, stop.code)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(root / entry)], capture_output=True, text=True, cwd=root)
    assert ran.stdout.splitlines()[-1] == "False 0", ran.stderr
