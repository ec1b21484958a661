"""fit() stops when patience ends, keeps the best step, and a killed run does what an uninterrupted one does."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from tests.unit.test_loop import Said, prepare, weights
from train import checkpoint, trainer
from train.samples import PreviewSampler
from train.trainer import TrainContext, TrainState, fit
from train.validation import Losses, Validator

SPREAD = np.linspace(0.5, 1.5, 12)
FALLS_THEN_RISES = [1.0, 0.8, 0.6, 0.7, 0.75, 0.9, 1.0, 1.1]


@dataclass
class Scripted:
    """A validator whose losses are written down beforehand, by look."""

    state: TrainState
    every: int
    means: list[float]
    questions: str = "the same"

    def measure(self, denoiser: object, device: object) -> dict[str, Losses]:
        mean = self.means[-(-self.state.step // self.every)]
        return {"held-out": Losses((SPREAD * mean)[:, None])}


def scripted(folder: Path, means: list[float], **changes: Any) -> tuple[TrainState, TrainContext]:
    settings = {"max_steps": 14, "validation": {"every": 2, "patience": 2}, "checkpoints": {"every": 3, "keep": 1}}
    state, task = prepare(folder, **{**settings, **changes})
    return state, replace(task, validator=cast(Validator, Scripted(state, 2, means)))


def kept_steps(task: TrainContext) -> list[int]:
    return [int(path.name) for path in checkpoint.list_checkpoints(task.checkpoints)]


def test_it_stops_when_it_stops_learning(tmp_path: Path) -> None:
    state, task = scripted(tmp_path, FALLS_THEN_RISES)
    assert fit(state, task, Said())
    assert state.step == 8, "looks at 6 and 8 brought nothing"
    assert state.early_stopping.chosen is not None and state.early_stopping.chosen.step == 4
    assert kept_steps(task) == [4, 8], "keep is 1: the newest, and the best one besides"


def test_without_patience_it_goes_on_and_still_keeps_the_best(tmp_path: Path) -> None:
    state, task = scripted(tmp_path, FALLS_THEN_RISES, validation={"every": 2, "patience": 0})
    assert fit(state, task, Said())
    assert state.step == 14 and kept_steps(task) == [4, 14]


def test_a_new_best_is_saved_though_no_checkpoint_is_due(tmp_path: Path) -> None:
    state, task = scripted(tmp_path, [1.0, 0.5, *[0.9] * 6], checkpoints={"every": 100, "keep": 1})
    assert fit(state, task, Said())
    assert kept_steps(task) == [2, 6]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kills", [(1,), (4,), (5, 7), (6, 6), (8,), (3, 5, 8)])
def test_a_killed_run_stops_at_the_same_step_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: tuple[int, ...]
) -> None:
    """Killed in the middle of these steps, nothing but the disk left each time."""
    whole, task = scripted(tmp_path / "whole", FALLS_THEN_RISES)
    assert fit(whole, task, Said())
    original = trainer.train_step
    state: TrainState | None = None
    for kill in (*kills, None):
        state, task = scripted(tmp_path / "parts", FALLS_THEN_RISES)
        kept, _ = checkpoint.newest_checkpoint(task.checkpoints, task.identity)
        if kept is not None:
            state.load(kept, task.checkpoints)

        def killed(state: TrainState, *rest: Any, kill: int | None = kill) -> None:
            original(state, *rest)
            if state.step == kill:
                raise Killed

        monkeypatch.setattr(trainer, "train_step", killed)
        if kill is None:
            assert fit(state, task, Said())
        else:
            with pytest.raises(Killed):
                fit(state, task, Said())
    assert state is not None
    assert state.step == whole.step == 8
    assert state.early_stopping == whole.early_stopping
    assert kept_steps(task) == [4, 8]
    best = [
        checkpoint.load_checkpoint(tmp_path / name / "checkpoints" / "000004", task.identity)
        for name in ("whole", "parts")
    ]
    assert all(torch.equal(best[0].weights[name], best[1].weights[name]) for name in best[0].weights)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(state), strict=True))


def test_a_run_killed_after_its_last_checkpoint_has_nothing_left_to_do(tmp_path: Path) -> None:
    state, task = scripted(tmp_path, FALLS_THEN_RISES)
    fit(state, task, Said())
    again, task = scripted(tmp_path, FALLS_THEN_RISES)
    kept, _ = checkpoint.newest_checkpoint(task.checkpoints, task.identity)
    assert kept is not None
    again.load(kept, task.checkpoints)
    report = Said()
    assert fit(again, task, report)
    assert again.step == 8 and report.lines == []


def test_more_patience_goes_on(tmp_path: Path) -> None:
    state, task = scripted(tmp_path, FALLS_THEN_RISES)
    fit(state, task, Said())
    again, task = scripted(tmp_path, FALLS_THEN_RISES, validation={"every": 2, "patience": 4})
    kept, _ = checkpoint.newest_checkpoint(task.checkpoints, task.identity)
    assert kept is not None
    again.load(kept, task.checkpoints)
    assert fit(again, task, Said())
    assert again.step == 12


def test_other_pictures_to_look_at_start_anew_and_say_so(tmp_path: Path) -> None:
    state, task = scripted(tmp_path, FALLS_THEN_RISES)
    fit(state, task, Said())
    again, task = scripted(tmp_path, FALLS_THEN_RISES)
    task = replace(task, validator=cast(Validator, Scripted(again, 2, FALLS_THEN_RISES, questions="others")))
    kept, _ = checkpoint.newest_checkpoint(task.checkpoints, task.identity)
    assert kept is not None
    again.load(kept, task.checkpoints)
    report = Said()
    assert fit(again, task, report)
    assert "validation uses other images" in report.words[0]
    assert again.early_stopping.base is None and again.early_stopping.questions == "others"


def test_a_longer_run_forgets_the_look_after_its_last_step(tmp_path: Path) -> None:
    """5 steps, then 14: what is remembered is what 14 in one go remember."""
    state, task = scripted(tmp_path, FALLS_THEN_RISES, max_steps=5)
    fit(state, task, Said())
    assert state.early_stopping.final is not None and state.early_stopping.final.step == 5
    again, task = scripted(tmp_path, FALLS_THEN_RISES)
    kept, _ = checkpoint.newest_checkpoint(task.checkpoints, task.identity)
    assert kept is not None
    again.load(kept, task.checkpoints)
    fit(again, task, Said())
    whole, other = scripted(tmp_path / "whole", FALLS_THEN_RISES)
    fit(whole, other, Said())
    assert again.early_stopping == whole.early_stopping and again.step == whole.step


def test_the_verdict_and_the_window_are_written(tmp_path: Path) -> None:
    state, task = scripted(tmp_path, FALLS_THEN_RISES)
    report = Said()
    fit(state, task, report)
    looks = [line for line in report.lines if "validation" in line]
    assert "verdict" not in looks[0]
    assert looks[1]["verdict"]["word"] == "cannot tell yet", "without a training side there is no gap"
    windows = [line for line in report.lines if "loss_by_timestep" in line]
    assert sum(line["window"] for line in windows) == 8
    assert all(line["images_per_second"] > 0 for line in windows)
    assert windows[0]["loss_by_timestep"].keys() == {"0-249", "250-499", "500-749", "750-999"}


def test_bands_average_to_the_loss(tmp_path: Path) -> None:
    """Weighted by how many samples fell into each, the bands' means are the mean loss of the window's steps."""
    state, task = prepare(tmp_path)
    window, batches = trainer.MetricBuffer(), task.batches(0, 3)
    for _ in range(3):
        trainer.train_step(state, task, batches, window)
    sums, counts = torch.stack(window.bins).sum(0)
    assert float(counts.sum()) == 12
    assert float(sums.sum() / counts.sum()) == pytest.approx(float(torch.stack(window.losses).mean()), rel=1e-6)


@dataclass
class Sketched:
    """Notes what it is asked to draw, and what was on the disk by then."""

    folder: Path
    every: int
    asked: list[tuple[int, list[str]]]

    def due(self, step: int, *, last: bool) -> bool:
        return step % self.every == 0 or last

    def save(self, unet: object, step: int, logger: object) -> None:
        self.asked.append((step, [path.name for path in checkpoint.list_checkpoints(self.folder)]))


def test_previews_come_after_saving(tmp_path: Path) -> None:
    state, task = prepare(tmp_path, max_steps=5)
    sketched = Sketched(task.checkpoints, 2, [])
    published: list[int] = []
    task = replace(task, previews=cast(PreviewSampler, sketched), publish=lambda: published.append(state.step))
    fit(state, task, Said())
    assert [step for step, _ in sketched.asked] == [0, 2, 4, 5]
    assert [saved[-1] for step, saved in sketched.asked if step] == ["000002", "000004", "000005"]
    assert published == [0, 3, 5]
