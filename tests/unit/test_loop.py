"""The step's mathematics, and fit()'s promises: nothing lost, nothing done twice, stopped when patience ends."""

import math
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data.dataset import Batch, BatchLayout, EncodedDataset, EncodedImage, StepSampler, collate
from data.errors import InputError
from train import checkpoint, optim, trainer
from train.config import Config, Epsilon
from train.ddpm import schedule
from train.losses import DenoisingLoss, build_loss
from train.metrics import MetricsLogger, RunLogger, read_metrics
from train.optim import Ema
from train.samples import PreviewSampler
from train.trainer import MetricBuffer, TrainContext, TrainState, fit
from train.validation import Losses, Validator


class Toy(nn.Module):
    """A convolution that hears of the timestep and the caption."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(4, 4, 1)
        self.words = nn.Linear(6, 4)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, return_dict: bool) -> tuple[Tensor]:
        said = self.words(encoder_hidden_states.mean(1))[:, :, None, None]
        return (self.conv(x) * (1 + t / 1000)[:, None, None, None] + said,)


def entries(count: int) -> list[EncodedImage]:
    generator = torch.Generator().manual_seed(1)
    return [
        EncodedImage(
            f"{i}.png", (torch.randn(8, 4, 4, generator=generator),), (torch.randn(5, 6, generator=generator),)
        )
        for i in range(count)
    ]


def config_of(**changes: Any) -> Config:
    plain = {"learning_rate": 1e-2, "max_steps": 6, "batch_size": 4, "checkpoints": {"every": 2, "keep": 2}}
    return Config.model_validate({**plain, "validation": {"every": 3}, "logging": {"every": 2}, **changes})


def prepare(
    folder: Path, change: Callable[[Accelerator], None] = lambda accelerator: None, **changes: Any
) -> tuple[TrainState, TrainContext]:
    """A run of the toy, as train/trainer.py sets up one of a U-Net."""
    config = config_of(**changes)
    layout = BatchLayout(config.batch_size, config.accumulate)
    images = EncodedDataset([entries(7)], torch.zeros(5, 6), seed=config.seed, scaling_factor=0.5, dropout=0.1)

    def batches(start: int, stop: int) -> Iterator[Batch]:
        sampler = StepSampler([7], layout, seed=config.seed, start=start, stop=stop)
        loader = DataLoader(images, batch_sampler=sampler, collate_fn=collate, generator=torch.Generator())
        return iter(loader)

    accelerator = Accelerator(cpu=True)
    change(accelerator)
    unet = Toy()
    prepared, optimizer = accelerator.prepare(unet, optim.build_optimizer(unet.parameters(), config.optim))
    accelerator.native_amp = accelerator.scaler is not None  # only now: the toy itself stays in float32
    tables = schedule.scaled_linear(1000, 0.00085, 0.012)
    validator = Validator({"held-out": entries(3)}, Epsilon(), tables, 0.5, timesteps=2)
    loss = build_loss(Epsilon(), tables)
    task = TrainContext(config, layout, loss, batches, validator, folder / "checkpoints", "this run")
    return TrainState(0, prepared, optimizer, accelerator, Ema({}, config.ema)), task


def weights(state: TrainState) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in state.plain_unet().parameters()]


def run(state: TrainState, task: TrainContext, steps: int) -> MetricBuffer:
    window, batches = MetricBuffer(), task.batches(state.step, state.step + steps)
    for _ in range(steps):
        trainer.train_step(state, task, batches, window)
    return window


def test_one_step_is_the_formula(tmp_path: Path) -> None:
    """The loss of the first step, worked out by hand from its own batch: E || eps - eps_theta(x_t, t) ||^2."""
    state, task = prepare(tmp_path)
    batch = next(task.batches(0, 1))
    toy = Toy()
    t = (batch.timestep_uniforms * 1000).long()
    abar = task.loss.schedule.alphas_cumprod[t].float()[:, None, None, None]
    noisy = abar.sqrt() * batch.latents + (1 - abar).sqrt() * batch.noise
    expected = ((toy(noisy, t, batch.text_states, False)[0] - batch.noise) ** 2).mean()
    window = run(state, task, 1)
    assert float(window.losses[0]) == pytest.approx(expected.item(), rel=1e-6)
    assert state.step == 1 and window.rates == [1e-2]


def test_accumulation_is_one_large_batch(tmp_path: Path) -> None:
    whole, parts = prepare(tmp_path, batch_size=8), prepare(tmp_path, batch_size=2, accumulate=4)
    one, several = run(*whole, 3), run(*parts, 3)
    assert [sorted(ids) for ids in one.sample_ids] == [sorted(ids) for ids in several.sample_ids]
    for a, b in zip(weights(whole[0]), weights(parts[0]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.stack(one.losses), torch.stack(several.losses), rtol=1e-6, atol=1e-7)


def test_clipping_clips_the_global_norm(tmp_path: Path) -> None:
    """Plain gradient descent shows the gradient that was used: its norm over all weights together is the limit."""
    state, task = prepare(tmp_path, optim={"clip_norm": 1e-3})
    inner = torch.optim.SGD(state.plain_unet().parameters(), lr=0.0)
    state.optimizer = state.accelerator.prepare(inner)
    before = weights(state)
    window = run(state, task, 1)
    moved = torch.cat([((b - a) / 1e-2).flatten() for a, b in zip(before, weights(state), strict=True)])
    assert float(window.norms[0]) > 0.1, "the gradient itself is large"
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-2)


def as_on_a_gpu(scale: float) -> Callable[[Accelerator], None]:
    """accelerate's fp16 path, with torch's gradient scaler for the CPU."""

    def change(accelerator: Accelerator) -> None:
        accelerator.state._mixed_precision = "fp16"
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)  # type: ignore[assignment]

    return change


@pytest.fixture
def fp16() -> Iterator[None]:
    """accelerate keeps the precision in a state shared by all Accelerators: put it back."""
    state = Accelerator(cpu=True).state
    before = state._mixed_precision
    yield
    state._mixed_precision = before


@pytest.mark.usefixtures("fp16")
def test_gradients_are_unscaled_before_they_are_clipped(tmp_path: Path) -> None:
    plain = prepare(tmp_path, optim={"clip_norm": 0.1})
    expected = run(*plain, 3)
    scaled = prepare(tmp_path, as_on_a_gpu(2.0**10), optim={"clip_norm": 0.1})
    found = run(*scaled, 3)
    torch.testing.assert_close(torch.stack(found.norms), torch.stack(expected.norms), rtol=1e-5, atol=1e-6)
    for a, b in zip(weights(plain[0]), weights(scaled[0]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("fp16")
def test_a_step_that_overflows_is_left_out_and_counted(tmp_path: Path) -> None:
    state, task = prepare(tmp_path, as_on_a_gpu(3e38))
    with torch.no_grad():
        next(state.plain_unet().parameters()).mul_(100)  # a gradient over 1 is infinite once it is scaled
    before = weights(state)
    window = run(state, task, 1)
    assert state.step == 1
    assert all(torch.equal(a, b) for a, b in zip(before, weights(state), strict=True))
    assert state.accelerator.scaler is not None
    assert state.accelerator.scaler.get_scale() == pytest.approx(1.5e38)
    report = Said()
    assert window.flush(1, state.accelerator, task.layout, task.speed, report, timesteps=1000) is None
    assert not math.isfinite(report.lines[0]["gradient_norm"])
    assert "1 of the last 1 steps overflowed in fp16" in report.words[0]


class Said(MetricsLogger):
    """Remembers what was reported."""

    def __init__(self) -> None:
        self.lines: list[Any] = []
        self.words: list[str] = []

    def write(self, lines: Any) -> None:
        self.lines += lines

    def say(self, text: str) -> None:
        self.words.append(text)


def test_fit_writes_looks_and_saves_when_it_is_due(tmp_path: Path) -> None:
    state, task = prepare(tmp_path)
    report = Said()
    assert fit(state, task, report)
    assert [line["step"] for line in report.lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    looks = [line for line in report.lines if "validation" in line]
    assert [line["step"] for line in looks] == [0, 3, 6]
    assert looks[0]["change"] == {} and looks[2]["change"]["held-out"]["mean"] == pytest.approx(
        looks[2]["validation"]["held-out"] - looks[0]["validation"]["held-out"]
    )
    assert [path.name for path in checkpoint.list_checkpoints(task.checkpoints)] == ["000004", "000006"]


@pytest.mark.parametrize("stops", [(3,), (1, 2), (2, 4, 5)])
def test_a_stopped_run_ends_in_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...]
) -> None:
    """Stopped after any steps and continued: weights, losses and sample ids are bit for bit those of one session."""
    ids: dict[str, Any] = {"logging": {"sample_ids": True, "every": 1}}
    whole, task = prepare(tmp_path / "whole", batch_size=2, accumulate=2, **ids)
    report = RunLogger(tmp_path, start=0, stop=6, tensorboard=False)
    assert fit(whole, task, report)
    report.close()
    expected = read_metrics(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").unlink()

    original = trainer.train_step

    def stopping(state: TrainState, task: TrainContext, batches: Iterator[Batch], window: MetricBuffer) -> None:
        original(state, task, batches, window)
        if state.step in stops:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainer, "train_step", stopping)
    finished, session = False, 0
    state = whole
    while not finished:
        state, task = prepare(tmp_path / "parts", batch_size=2, accumulate=2, **ids)
        kept, skipped = checkpoint.newest_checkpoint(task.checkpoints, task.identity)
        assert not skipped and (kept is None) == (session == 0)
        if kept is not None:
            state.load(kept, task.checkpoints)
        report = RunLogger(tmp_path, start=state.step, stop=6, tensorboard=False)
        finished = fit(state, task, report)
        report.close()
        assert finished or state.step == stops[session]
        session += 1
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(state), strict=True))
    found = read_metrics(tmp_path / "metrics.jsonl")
    # a window's speed is the clock's: every other line is a step's (loss, norm, rate, samples) or a look's
    found, expected = ([line for line in lines if "window" not in line] for lines in (found, expected))
    assert found == expected
    assert [line["samples"] for line in found if "loss" in line] and len(found) == 6 + 3


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(tmp_path: Path) -> None:
    state, task = prepare(tmp_path)
    with torch.no_grad():
        next(state.plain_unet().parameters()).fill_(float("nan"))
    words = r"training: .* nan at step 1, on \d.png.*No checkpoint had been written yet"
    with pytest.raises(InputError, match=words):
        fit(state, task, Said())
    assert checkpoint.list_checkpoints(task.checkpoints) == []


def test_a_run_that_bursts_later_names_its_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, task = prepare(tmp_path)
    original = trainer.train_step

    def bursting(state: TrainState, *rest: Any) -> None:
        if state.step == 3:
            with torch.no_grad():
                next(state.plain_unet().parameters()).fill_(float("nan"))
        original(state, *rest)

    monkeypatch.setattr(trainer, "train_step", bursting)
    with pytest.raises(InputError, match=r"nan at step 4.*last good checkpoint is \S+/000003\."):
        fit(state, task, Said())
    assert [path.name for path in checkpoint.list_checkpoints(task.checkpoints)] == ["000002", "000003"]


def test_the_global_generator_is_not_touched(tmp_path: Path) -> None:
    state, task = prepare(tmp_path)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    fit(state, task, Said())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_gradient_that_is_not_finite_ends_the_run_before_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss is a number still; only that of the next step would not be, after the save."""
    state, task = prepare(tmp_path)
    original = DenoisingLoss.__call__

    def steep(self: DenoisingLoss, denoiser: Any, batch: Batch, teacher: Any = None) -> Tensor:
        found = original(self, denoiser, batch, teacher)
        if state.step == 1:  # saved after step 2
            found.register_hook(lambda gradient: gradient * float("inf"))
        return found

    monkeypatch.setattr(DenoisingLoss, "__call__", steep)
    with pytest.raises(InputError, match=r"training: .*gradient.* (nan|inf) at step 2, on \d.png"):
        fit(state, task, Said())
    assert checkpoint.list_checkpoints(task.checkpoints) == []


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
