"""A sweep's arithmetic: values, rounds, who goes on, what may be said."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState

from data.cli import parse
from data.errors import InputError
from train import device, sweep
from train.config import ALIASES, CONFIGS, Config
from train.sweep import Candidate, read_spec
from train.validation import Losses


def test_a_range_is_evenly_spread_in_its_logarithm() -> None:
    spec = read_spec("learning-rate=1e-5..1e-3", 5)
    assert spec.values == ("1e-05", "3.16e-05", "0.0001", "0.000316", "0.001")
    assert (spec.field, spec.flag, spec.name) == ("learning_rate", "--learning-rate", "sweep-learning-rate")
    assert read_spec("adapter.rank=1..8", 8).values == ("1", "2", "3", "4", "6", "8")
    assert read_spec("optim.kind=adamw, adamw-8bit", 8).values == ("adamw", "adamw-8bit")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning-rate", "--sweep: no values in 'learning-rate'; allowed: learning-rate=1e-5..1e-3 or"),
        ("learning-rate=", "no values"),
        ("learning-rat=1..2", "unknown setting 'learning-rat', did you mean 'learning-rate'?"),
        ("learning-rate=1e-3..1e-5", "'1e-3..1e-5' is an empty range; allowed: low..high with 0 < low < high"),
        ("learning-rate=1e-3..1e-3", "is an empty range"),
        ("learning-rate=0..1", "has no logarithm"),
        ("learning-rate=a..b", "'a..b' is no range"),
        ("learning-rate=1..2..3", "is no range"),
        ("learning-rate=1e-4", "one value is no comparison"),
        ("learning-rate=1e-4,1e-4", "one value is no comparison"),
        ("max-steps=1,2", "values of max-steps cannot be compared on the same held-out images; allowed:"),
        ("objective.kind=epsilon,velocity", "cannot be compared"),
        ("seed=1,2", "cannot be compared"),
        ("optim.schedule=constant,cosine", "cannot be compared"),
        ("optim.warmup=0,10", "cannot be compared"),
        ("pictures.keep=memory,disk", "cannot be compared"),
    ],
)
def test_mistakes_are_one_clear_line(text: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        read_spec(text, 8)
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_value_is_checked_as_a_flag_is() -> None:
    config = parse(Config, [], prog="finetune.py", preset=CONFIGS / "pocket.yaml")
    changed = sweep.with_value(config, "adapter.rank", "4")
    assert changed.adapter.label == "lora-r4"
    assert changed.model_dump(exclude={"adapter"}) == config.model_dump(exclude={"adapter"})
    assert sweep.with_value(config, "optim.warmup", "7").optim.schedule == config.optim.schedule
    whole = sweep.with_value(config, "adapter.kind", "full")
    assert (whole.adapter.label, sweep.with_value(config, "adapter.kind", "lora").adapter) == ("full", config.adapter)
    for field, value, expected in (
        ("learning_rate", "-1", "--sweep: learning-rate=-1: '-1' is not allowed; allowed: greater than 0"),
        ("adapter.rank", "many", "adapter.rank=many: 'many' is not allowed"),
    ):
        with pytest.raises(InputError, match=expected):
            sweep.with_value(config, field, value)


def test_a_sweep_says_things_without_deciding_how_many_processes_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two processes without a GPU must be told so when accelerate's state is made, which happens once."""
    PartialState._reset_state()
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        sweep.print_lines([f"rank {rank}"])
    assert capsys.readouterr().out == "rank 0\n" and not PartialState._shared_state


def test_a_sweep_is_not_new() -> None:
    config = parse(Config, ["--new", "--sweep", "adapter.rank=4,8"], prog="finetune.py", preset=CONFIGS / "pocket.yaml")
    with pytest.raises(InputError, match=r"--new: a sweep goes on where it was\. Give another --runs"):
        sweep.run_sweep(config, [])


def test_each_round_keeps_the_better_half_and_doubles_the_length() -> None:
    assert sweep.rounds(8) == [8, 4, 2]
    assert sweep.rounds(5) == [5, 3, 2]
    assert sweep.rounds(2) == [2]
    assert sweep.total_steps([8, 4, 2], 10) == 8 * 10 + 4 * 10 + 2 * 20
    first = sweep.first_round([8, 4, 2], 1600)
    assert first == 100 and sweep.total_steps([8, 4, 2], first) == 1600
    losses = {"a": 0.3, "b": float("nan"), "c": 0.1, "d": float("inf"), "e": 0.2}
    assert sweep.better_half(losses, 2) == ["c", "e"]
    assert sweep.better_half(losses, 4) == ["c", "e", "a"], "NaN is out"


def row(value: str, shift: float, steps: tuple[int, ...], noise: float = 0.0) -> Candidate:
    draw = np.random.default_rng(int(float(value) * 1e6))
    base = np.linspace(0.1, 0.3, 40)[:, None]
    looks = {0: Losses(base)} | {s: Losses(base + shift + noise * draw.normal(size=base.shape)) for s in steps}
    return Candidate(value, losses=looks)


def test_a_clear_winner_and_what_may_be_said() -> None:
    spec = read_spec("learning-rate=1,2,4,8", 8)
    rows = sweep.rank_candidates([
        row("1", -0.01, (10,), 1e-3), row("2", -0.05, (10, 20), 1e-3), row("4", -0.03, (10, 20), 1e-3),
        Candidate("8", failed="the loss became nan at step 3")
    ])  # fmt: skip
    assert [r.value for r in rows] == ["2", "4", "1", "8"]
    assert sweep.tied(rows) == []
    assert rows[2].against(rows[0]).mean == pytest.approx(0.04, abs=1e-3), "after as many steps as both did"
    (said,) = sweep.conclusions(spec, rows)
    assert said.startswith("--learning-rate 2 is best: -0.05")
    text = "\n".join(sweep.text_table(spec, rows))
    assert "the loss became nan at step 3" in text and "against the winner" in text


def test_a_tie_an_edge_and_nothing_learnt_are_said() -> None:
    spec = read_spec("learning-rate=1,2", 8)
    rows = sweep.rank_candidates([row("1", -0.010, (10,), 0.02), row("2", -0.011, (10,), 0.02)])
    assert len(sweep.tied(rows)) == 1
    said = " ".join(sweep.conclusions(spec, rows))
    assert "not distinguishable from" in said and "edge of what was tried" in said
    upper = sweep.at_edge(read_spec("learning-rate=1e-5..1e-3", 3), "0.001")
    assert upper == ["It lies at the upper edge of what was tried: look further with --sweep learning-rate=0.001..0.1."]
    assert sweep.at_edge(read_spec("learning-rate=1e-5..1e-3", 3), "0.0001") == []
    assert sweep.at_edge(read_spec("optim.kind=adamw,adamw-8bit", 3), "adamw") == []
    worse = sweep.rank_candidates([row("1", +0.02, (10,)), row("2", +0.03, (10,))])
    assert "not distinguishable from the base" in " ".join(sweep.conclusions(spec, worse))


def test_all_failed_is_an_error() -> None:
    with pytest.raises(InputError, match="every candidate failed"):
        sweep.rank_candidates([Candidate("1", failed="burst"), Candidate("2", failed="burst")])


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 stays fp16 on a GPU")
@pytest.mark.parametrize(("here", "flag"), [("no", ""), ("bf16", " --mixed_precision bf16"), (None, "")])
def test_the_command_trains_in_the_sweeps_precision(
    here: str | None, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if here is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", here)
    plain = "accelerate launch --quiet --config_file accelerate_config.yaml"
    assert device.launch_command() == f"{plain}{flag} train/finetune.py"


def test_the_command_with_the_winner_is_the_one_typed(tmp_path: Path) -> None:
    spec = read_spec("learning-rate=1e-5..1e-3", 5)
    typed = [
        "--data",
        "my pictures",
        "--sweep",
        "learning-rate=1e-5..1e-3",
        "--lr=3",
        "--sweep-candidates=5",
        "--strict",
    ]
    line = sweep.winner_command(spec, "0.0001", typed)
    flags = shlex.split(line.removeprefix(device.launch_command()))
    assert flags == ["--data", "my pictures", "--strict", "--learning-rate", "0.0001"]
    config = parse(Config, flags, prog="finetune.py", preset=CONFIGS / "pocket.yaml", aliases=ALIASES)
    assert (config.learning_rate, config.sweep) == (1e-4, None)
    rows = sweep.rank_candidates([row("1e-05", -0.01, (10,), 1e-3), row("0.0001", -0.05, (10, 20), 1e-3)])
    page = sweep.write_page(spec, rows, tmp_path, line).read_text()
    assert "<svg" in page and "log10 of learning-rate" in page and "--learning-rate 0.0001" in page
