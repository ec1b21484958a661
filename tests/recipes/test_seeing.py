"""finetune.py shows whether it learns: previews that change no weight, the best step's weights, an early stop."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.errors import InputError
from infer import previews
from tests.recipes.conftest import Finetune
from train import metrics, optim, trainer
from train.metrics import read_metrics
from train.run_folder import all_runs

# diffusers 0.42.1 hands torch tensors to NumPy functions in ways that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
FLAGS = [
    *("--lr", "0.001", "--validation.every", "2", "--validation.pictures", "4", "--checkpoints.every", "3"),
    *("--checkpoints.keep", "1", "--previews.every", "2", "--previews.steps", "2"),
]
GENERATE = previews.generate_previews
IMPATIENT = ["--validation.patience", "2", "--pictures.held-out", "0.33"]


def exported(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "lora.safetensors")


def equal(one: Path, other: Path) -> bool:
    a, b = exported(one), exported(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_previews_are_left_and_change_no_weight(finetune: Finetune) -> None:
    assert finetune("--previews.prompts", "a fire", "--previews.prompts", "a water type fridge") == 0
    assert finetune("--previews.every", "0", "--new") == 0
    with_them, without = Path("runs/0001-lora-r16"), Path("runs/0002-lora-r16")
    assert equal(with_them, without)
    assert sorted(path.name for path in (with_them / "previews").iterdir()) == ["000000", "000002", "000004"]
    assert len(list((with_them / "previews" / "000004").glob("0*.png"))) == 2
    assert not (without / "previews").exists()
    phases = [json.loads((run / "plan.json").read_text())["memory"]["phases"] for run in (with_them, without)]
    assert ["drawing" in each for each in phases] == [True, False]
    page = (with_them / "report.html").read_text()
    assert page.count("<img") == 2 * 3 and "a water type fridge" in page
    assert "<img" not in (without / "report.html").read_text()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(with_them / "tensorboard")).Reload()
    assert [event.step for event in board.Images("previews")] == [0, 2, 4]


def test_other_questions_on_a_continued_run(finetune: Finetune, capsys: pytest.CaptureFixture[str]) -> None:
    """They start anew: the page and the card compare nothing with the answers to those before."""
    asked = ["--previews.every", "0"]
    assert finetune(*asked) == 0
    assert finetune(*asked, "--validation.timesteps", "5", steps=8) == 0
    assert "validation uses other images or timesteps than before" in capsys.readouterr().out
    run = Path("runs/0001-lora-r16")
    looks = [line for line in read_metrics(run / "metrics.jsonl") if "validation" in line]
    assert [look["step"] for look in looks] == [0, 2, 4, 6, 8] and len({look["questions"] for look in looks}) == 2
    card = (run / "README.md").read_text()
    assert "| not measured before, " in card and "| change against the base | not measured |" in card
    assert "step 6 and now" in (run / "report.html").read_text()


@pytest.fixture
def harmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third step makes the weights far too large, and more so each later one: those of step 2 stay the best."""
    original = trainer.train_step

    def harming(state: trainer.TrainState, *rest: object) -> None:
        original(state, *rest)  # type: ignore[arg-type]
        if state.step > 2:
            with torch.no_grad():
                for weight in optim.optimized_weights(state.optimizer):
                    weight.mul_(30 if state.step == 3 else 1.2)

    monkeypatch.setattr(trainer, "train_step", harming)


@pytest.mark.usefixtures("harmed")
def test_it_stops_early_and_leaves_the_best(
    finetune: Finetune, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps that only harm: the run ends on its own, killed in between or not, with the best step's weights.

    Then: it knows that it has finished, goes on with more patience, and exports the last weights when asked to.
    """
    original = trainer.train_step

    def killed(state: trainer.TrainState, *rest: object) -> None:
        original(state, *rest)  # type: ignore[arg-type]
        if state.step == 5:
            raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", killed)
        with pytest.raises(SystemExit):
            finetune(*IMPATIENT, "--previews.every", "0", steps=30)
    assert finetune(*IMPATIENT, "--previews.every", "0", steps=30) == 0
    assert "resuming runs/0001-lora-r16 after step" in capsys.readouterr().out
    assert finetune(*IMPATIENT, "--previews.every", "0", "--new", steps=30) == 0
    out = capsys.readouterr().out
    killed_run, whole = all_runs(Path("runs"))
    assert equal(killed_run.path, whole.path)
    best, done = whole.facts("best.json"), whole.facts("done")
    assert killed_run.facts("best.json") == best and killed_run.facts("done") == done
    assert done["patience"] == 2 and done["steps"] < 30
    assert best["exported"] == best["step"] < done["steps"] and best["side"] == "held-out"
    assert f"stopped early at step {done['steps']}" in out
    steps = [int(path.name) for path in whole.checkpoints.iterdir() if path.name.isdecimal()]
    assert sorted(steps) == [best["step"], done["steps"]], "the best and the last"
    looks = {line["step"]: line for line in read_metrics(whole.metrics) if "validation" in line}
    assert best["loss"] == looks[best["step"]]["validation"]["held-out"]
    assert best["change"] == looks[best["step"]]["change"]["held-out"]
    card = (whole.path / "README.md").read_text()
    assert f"| exported weights | step {best['step']} |" in card

    assert finetune(*IMPATIENT, "--previews.every", "0", steps=30) == 0
    said = capsys.readouterr().out
    assert f"finished after {done['steps']} steps (out of patience); nothing to do.\n" in said
    assert "\n--validation.patience 3 continues it, --new starts over.\n" in said
    before = exported(whole.path)
    assert finetune(*IMPATIENT, "--previews.every", "0", "--checkpoints.export", "last", steps=30) == 0
    assert f"lora-kohya.safetensors, the weights of step {done['steps']}" in capsys.readouterr().out
    assert any(not torch.equal(before[name], value) for name, value in exported(whole.path).items())
    assert finetune(*IMPATIENT, "--previews.every", "0", "--validation.patience", "3", steps=30) == 0
    assert whole.facts("done") == {"steps": done["steps"] + 2, "patience": 3}


@pytest.mark.usefixtures("harmed")
def test_the_exported_weights_are_those_of_the_best_checkpoint(finetune: Finetune) -> None:
    assert finetune("--pictures.held-out", "0.33", "--previews.every", "0", steps=6) == 0
    run = Path("runs/0001-lora-r16")
    best = json.loads((run / "best.json").read_text())["step"]
    assert best == 2
    kept = load_file(run / "checkpoints" / f"{best:06d}" / "weights.safetensors")
    found = exported(run)
    assert len(kept) == len(found)
    for name, value in kept.items():
        stem = f"unet.{name.replace('.default.weight', '.weight')}"
        assert torch.equal(found[stem], value), stem


@pytest.mark.usefixtures("harmed")
def test_a_best_checkpoint_that_is_gone_is_said(
    finetune: Finetune, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    original = trainer.load_best

    def spoilt(*given: object) -> None:
        for path in Path("runs/0001-lora-r16/checkpoints").glob("[0-9]*"):
            shutil.rmtree(path)
        original(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "load_best", spoilt)
    assert finetune("--pictures.held-out", "0.33", "--previews.every", "0", steps=6) == 0
    assert "the best checkpoint is gone" in capsys.readouterr().out
    best = json.loads(Path("runs/0001-lora-r16/best.json").read_text())
    assert best["exported"] == 6 != best["step"]


def test_weights_and_biases_that_is_absent(finetune: Finetune, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--logging.wandb: Weights & Biases is not installed. pip install wandb"):
        finetune("--logging.wandb")
    assert not Path("runs").exists()


def test_the_report_can_be_read_while_it_trains(finetune: Finetune, monkeypatch: pytest.MonkeyPatch) -> None:
    original, pages = trainer.train_step, {}
    report = Path("runs/0001-lora-r16/report.html")

    def reading(state: trainer.TrainState, *rest: object) -> None:
        pages[state.step] = report.read_text()
        original(state, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "train_step", reading)
    assert finetune("--previews.every", "0") == 0
    assert "Not trained yet. Still training: step 0 of 4" in pages[0]
    assert "Still training: step 2 of 4" in pages[3] and "best, step 2" in pages[3]
    assert "Finished after 4 steps" in report.read_text()


def test_patience_without_held_out_pictures_is_said(finetune: Finetune, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune("--pictures.held-out", "0", "--validation.patience", "1", "--previews.every", "0", steps=2) == 0
    assert "no image is held out: --validation.patience has no effect" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--previews.prompts", " "], "--previews.prompts: a preview's prompt is empty"),
        (["--previews.every", "-1"], "--previews.every: '-1' is not allowed"),
        (["--validation.patience", "-1"], "--validation.patience: '-1' is not allowed"),
        (["--checkpoints.export", "first"], "--checkpoints.export: 'first' is not allowed; allowed: 'best' or 'last'"),
    ],
)
def test_mistakes_are_one_clear_line(finetune: Finetune, flags: list[str], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        finetune(*flags)
    assert expected in str(caught.value)
    assert not list(Path("runs").glob("*-*")), "a run folder was left behind"
