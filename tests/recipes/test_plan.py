"""The plan and the sweep through the real command, on twelve creatures and a tiny model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.cli import parse
from infer import previews
from tests import sessions
from train import estimate, profiler, sweep, trainer
from train.config import ALIASES, CONFIGS, Config
from train.metrics import read_metrics
from train.model import load_model
from train.run_folder import all_runs

QUICK = [
    *("--preserve.share", "0"),
    *("--pictures.size", "32", "--batch-size", "4", "--validation.every", "4", "--validation.pictures", "2"),
    *("--validation.timesteps", "2", "--checkpoints.every", "2", "--logging.every", "2", "--threads", "1"),
    *("--optim.warmup", "0", "--optim.schedule", "constant"),
]
PRESETS = sorted(path.name for path in CONFIGS.glob("*.yaml"))

ConfigOf = Callable[..., Config]


@pytest.fixture
def config_of(tmp_path: Path, tiny_model: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigOf:
    """A parsed command; runs lie in tmp_path/runs."""
    monkeypatch.chdir(tmp_path)

    def config(*flags: str, preset: str = "pocket.yaml", quick: bool = True) -> Config:
        argv = ["--model", str(tiny_model), "--data", str(tiny_data), *(QUICK if quick else []), *flags]
        return parse(Config, argv, prog="finetune.py", preset=CONFIGS / preset, aliases=ALIASES)

    return config


def test_the_first_screen_and_plan_json_tell_what_it_takes(
    config_of: ConfigOf, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of("--price-per-hour", "1.29", "--max-steps", "2", "--accumulate", "2")
    assert sessions.run(config) == 0
    out = capsys.readouterr().out
    for words in ("memory     about", "training: weights", "s a step after a 3-step probe", "GFLOP an image"):
        assert words in out
    assert "cost       " in out and "at 1.29 an hour" in out and "checkpoints of" in out
    (run,) = all_runs(Path("runs"))
    plan = run.facts("plan.json")
    assert plan["peak_gib"] == pytest.approx(max(plan["memory"]["phases"].values()) / 2**30)
    assert sum(plan["memory"]["parts"].values()) == plan["memory"]["phases"]["training"]
    assert "drawing" not in plan["memory"]["phases"]  # nobody who can draw was handed down
    duration = plan["duration"]
    parts = ("encoding", "training", "validation", "previews", "checkpoints")
    assert plan["seconds"] == pytest.approx(sum(duration[part] for part in parts))
    assert duration["previews"] == 0.0  # as above
    assert plan["cost"] == pytest.approx(1.29 * plan["seconds"] / 3600)
    assert duration["images_per_second"] == pytest.approx(8 / duration["step"])
    assert plan["disk"]["checkpoint"] == pytest.approx(sum_of_files(run.checkpoints / "000002"), rel=0.3)
    assert plan["disk"]["export"] == pytest.approx(sum_of_files(run.export), rel=0.3)


def sum_of_files(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers 0.42.1 and NumPy 2
@pytest.mark.parametrize(("guidance", "rows"), [("5", 2), ("1", 1)])
def test_previews_are_in_the_time(config_of: ConfigOf, tiny_model: Path, guidance: str, rows: int) -> None:
    """At steps 0, 2, 4 and 5, an image for each held-out caption: three steps and a decoding, at training's speed."""
    asked = ["--previews.every", "2", "--previews.steps", "3", "--previews.guidance", guidance]
    config = config_of("--max-steps", "5", *asked)
    assert sessions.run(config, generate=previews.generate_previews) == 0
    (run,) = all_runs(Path("runs"))
    plan = run.facts("plan.json")
    images = 4 * plan["held_out"]
    assert len(list(run.path.glob("previews/*/0*.png"))) == images > 0
    model = load_model(str(tiny_model))
    decoding = profiler.decode_flops(model.config("vae"), 32 // model.factor, 32 // model.factor)
    picture = 3 * rows * plan["flops"]["forward"] + decoding
    seconds = plan["duration"]["step"] / (4 * plan["flops"]["step"])
    assert plan["duration"]["previews"] == pytest.approx(images * picture * seconds)


def test_captions_that_must_be_encoded_are_in_the_time(config_of: ConfigOf) -> None:
    template = ["--max-steps", "1", "--new", "--pictures.caption", "so many {text}"]
    for _ in range(2):
        assert sessions.run(config_of(*template)) == 0
    assert sessions.run(config_of(*template, "--pictures.size", "64")) == 0
    captions, nothing, pictures = (run.facts("plan.json")["duration"]["encoding"] for run in all_runs(Path("runs")))
    assert captions > 0 and nothing == 0.0 and pictures > 0


def test_the_plan_of_a_sweep_is_that_of_all_its_rounds(config_of: ConfigOf, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of("--sweep", "adapter.rank=2,4,8,16", "--sweep-steps", "3", "--dry-run", "--price-per-hour", "2")
    assert sweep.run_sweep(config, []) == 0
    out = capsys.readouterr().out
    assert "rounds     4 to step 3, 2 to step 6" in out
    assert "length     18 steps in all" in out and "length     18 steps = " in out and "cost       " in out
    assert not all_runs(Path("runs/sweep-adapter.rank"))


def test_the_probe_changes_nothing(config_of: ConfigOf) -> None:
    """The run with it and the run without it end in the same weights, bit for bit."""
    probed = weights_after(config_of("--max-steps", "3", "--new"))
    plain = weights_after(config_of("--max-steps", "3", "--new", "--no-probe"))
    assert probed.keys() == plain.keys()
    assert all(torch.equal(probed[name], plain[name]) for name in plain)
    losses = [[line["loss"] for line in read_metrics(run.metrics) if "loss" in line] for run in all_runs(Path("runs"))]
    assert losses[0] == losses[1]


def weights_after(config: Config) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    assert sessions.run(config) == 0
    return load_file(all_runs(config.runs)[-1].export / "lora.safetensors")


def test_too_little_memory_is_said_with_what_would_help(
    config_of: ConfigOf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = ["--dry-run", "--no-probe", "--adapter.kind", "full", "--batch-size", "8"]
    monkeypatch.setattr(profiler, "resident_bytes", lambda: 0)
    monkeypatch.setattr(profiler, "free_bytes", lambda device: 2**40)
    seen: list[Any] = []
    original = estimate.RunEstimate.fits
    monkeypatch.setattr(estimate.RunEstimate, "fits", lambda self: seen.append(self) or original(self))
    assert sessions.run(config_of(*full)) == 0
    assert "warning" not in (out := capsys.readouterr().out) and "not measured" in out
    needed = original(seen[0])["needed"]
    monkeypatch.setattr(profiler, "free_bytes", lambda device: int(0.9 * needed))
    assert sessions.run(config_of(*full)) == 0
    out = capsys.readouterr().out
    assert "are probably too much for" in out and "--batch-size 4 --accumulate 2" in out


@pytest.mark.parametrize("preset", PRESETS)
def test_every_shipped_config_is_planned(config_of: ConfigOf, preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sessions.run(config_of("--pictures.size", "32", "--dry-run", "--no-probe", preset=preset, quick=False)) == 0
    assert "memory     about" in capsys.readouterr().out
    assert not Path("runs").exists()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_shipped_config_says_only_what_differs_from_the_defaults(config_of: ConfigOf, preset: str) -> None:
    import yaml

    text = (CONFIGS / preset).read_text()
    chosen = config_of(preset=preset, quick=False).model_dump(mode="json")
    default = Config(adapter=type(config_of(preset=preset, quick=False).adapter)()).model_dump(mode="json")
    for path, value in leaves(yaml.safe_load(text)):
        if path[-1] != "kind" and path[0] != "model":
            assert at(chosen, path) == value != at(default, path), f"{'.'.join(path)} is the default"
    for word in ("accelerate launch", "Memory", "Time", "Why", "Measured"):
        assert word in text, f"the header says nothing of {word}"


def leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for name, value in tree.items():
        found += leaves(value, (*path, name)) if isinstance(value, dict) else [((*path, name), value)]
    return found


def at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


SWEEP = [
    "--sweep",
    "learning-rate=1e-3,1e-2,1e-6,1e30",
    "--sweep-steps",
    "2",
    "--no-probe",
    "--adapter.targets",
    "attention",
]


def test_a_sweep_halves_survives_a_kill_and_names_the_winner(
    config_of: ConfigOf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four candidates, one of which bursts; stopped in the third; the same command goes on where it was."""
    taken: list[float] = []
    original = trainer.train_step

    def counting(state: trainer.TrainState, task: trainer.TrainContext, *rest: Any) -> None:
        if task.config.learning_rate == 1e-6 and patience:
            patience.pop()
            raise KeyboardInterrupt
        taken.append(task.config.learning_rate)
        original(state, task, *rest)

    patience = [1]
    monkeypatch.setattr(trainer, "train_step", counting)
    config = config_of(*SWEEP)
    with pytest.raises(KeyboardInterrupt):
        sweep.run_sweep(config, SWEEP)
    assert taken == [1e-3] * 2 + [1e-2] * 2
    assert sweep.run_sweep(config, SWEEP) == 0
    out = capsys.readouterr().out
    went_on = taken[4:]
    assert went_on.count(1e-6) in (2, 4) and went_on.count(1e-3) + went_on.count(1e-2) <= 4, (
        "what was done is not redone"
    )
    assert "round 2 of 2: 2 candidates to step 4" in out
    assert "the loss is" in out and "--learning-rate" in out.splitlines()[-1]
    folder = Path("runs/sweep-learning-rate")
    assert "<svg" in (folder / "sweep.html").read_text()
    runs = all_runs(folder)
    assert len(runs) == 4
    assert sorted(run.done or 0 for run in runs) == [0, 2, 4, 4]
    assert len([run for run in runs if run.export.is_dir()]) == 2, "those that went out keep no weights"
    assert all(json.loads((run.path / "data.json").read_text())["identity"] for run in runs)
    before = len(taken)
    assert sweep.run_sweep(config, SWEEP) == 0
    assert all(rate == 1e30 for rate in taken[before:]), "a finished sweep is only told again"
