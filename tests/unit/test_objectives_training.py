"""The objective inside a run: what the step does with it, what validation leaves out, what flags and refusals say."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data import rng
from data.cli import parse
from data.dataset import (
    Batch,
    BatchLayout,
    EncodedDataset,
    EncodedImage,
    Position,
    TrainingNoise,
    collate,
    mean_latents,
)
from data.errors import InputError
from train import losses, trainer
from train.config import AnyKind, Config, Epsilon, Objective, Sample, Velocity
from train.ddpm import diffusion
from train.ddpm import schedule as schedules
from train.ddpm.schedule import Schedule
from train.losses import OBJECTIVES, ObjectiveFunctions, build_loss
from train.model import Denoiser
from train.validation import Validator, entry_hash

TABLE = schedules.scaled_linear(1000, 0.00085, 0.012)
RESCALED = schedules.zero_terminal_snr(TABLE)
CPU = torch.device("cpu")


class Answers(nn.Module):
    """A network that always gives the same answer, and remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 0.25))
        self.shown: list[Tensor] = []

    def forward(self, noisy: Tensor, t: Tensor, **given: Any) -> tuple[Tensor]:
        self.shown.append(noisy)
        return (torch.zeros_like(noisy) + self.weight,)


def entry(name: str) -> EncodedImage:
    return EncodedImage(name, (rng.normal((8, 4, 4), name, "moments"),), (rng.normal((5, 6), name, "states"),))


def batch_of(noise: TrainingNoise) -> Batch:
    pictures = EncodedDataset(
        [[entry(f"{i}.png") for i in range(4)]], torch.zeros(5, 6), seed=2, scaling_factor=0.5, dropout=0.0, noise=noise
    )
    return collate([pictures[Position(0, slot, 0, slot)] for slot in range(4)])


def task_of(objective: Objective, schedule: Schedule = TABLE) -> trainer.TrainContext:
    def none(start: int, stop: int) -> Iterator[Batch]:
        return iter(())

    validator = Validator({"held-out": [entry("0.png")]}, objective, schedule, 0.5, 8)
    return trainer.TrainContext(Config(), BatchLayout(4), build_loss(objective, schedule), none, validator, Path(), "")


def test_the_network_sees_the_perturbed_noise_and_is_asked_for_the_plain_one() -> None:
    plain, batch = batch_of(TrainingNoise()), batch_of(TrainingNoise(perturbation=0.3))
    network = Answers()
    found = build_loss(Epsilon(), TABLE)(Denoiser(network), batch)
    t = (batch.timestep_uniforms * 1000).long()
    assert torch.equal(network.shown[0], diffusion.add_noise(TABLE, batch.latents, batch.input_noise, t))
    assert not torch.equal(network.shown[0], diffusion.add_noise(TABLE, batch.latents, batch.noise, t))
    torch.testing.assert_close(found, (0.25 - plain.noise).square().mean(dim=(1, 2, 3)))


def test_the_offset_is_seen_and_asked_for() -> None:
    batch = batch_of(TrainingNoise(offset=0.5))
    network = Answers()
    found = build_loss(Epsilon(), TABLE)(Denoiser(network), batch)
    t = (batch.timestep_uniforms * 1000).long()
    assert torch.equal(network.shown[0], diffusion.add_noise(TABLE, batch.latents, batch.noise, t))
    torch.testing.assert_close(found, (0.25 - batch.noise).square().mean(dim=(1, 2, 3)))
    assert not torch.equal(batch.noise, batch_of(TrainingNoise()).noise)


@pytest.mark.parametrize("objective", [Epsilon(), Velocity(), Sample()], ids=lambda o: o.kind)
def test_a_network_that_knows_has_no_loss_in_any_space(objective: Objective) -> None:
    batch = batch_of(TrainingNoise())

    @dataclass(frozen=True)
    class Knows:
        def __call__(self, noisy: Tensor, t: Tensor, states: Tensor) -> Tensor:
            eps = diffusion.eps_from_x0(TABLE, noisy, batch.latents, t)
            spaces = {"epsilon": eps, "sample": batch.latents}
            return spaces.get(objective.predicts, diffusion.velocity(TABLE, batch.latents, eps, t))

    knows: Any = Knows()
    assert build_loss(objective, TABLE)(knows, batch).max() < 1e-6


def test_the_criterion_is_put_up_once_from_the_schedule_of_the_run() -> None:
    task = task_of(Velocity(weighting="min-snr", zero_terminal_snr=True), RESCALED)
    ones, t = torch.ones(2, 3), torch.tensor([500, 999])
    abar = RESCALED.alphas_cumprod[500].item()
    assert task.loss.criterion(ones, 0 * ones, t).tolist() == pytest.approx([min(abar, 5 * (1 - abar)), 0.0], rel=1e-6)


LOSSES: list[dict[str, Any]] = [
    {"loss": "huber", "huber_c": 0.01},
    {"loss": "smooth-l1"},
    {"weighting": "min-snr", "gamma": 1.0},
    {"weighting": "soft-min-snr"},
    {"noise_offset": 0.2, "input_perturbation": 0.2},
]


@pytest.mark.parametrize("kind", [Epsilon, Velocity, Sample])
@pytest.mark.parametrize("settings", LOSSES, ids=str)
def test_validation_is_the_same_whatever_the_training_loss(kind: type[Objective], settings: dict[str, Any]) -> None:
    """Bit for bit: the plain mean square in the space that is predicted."""
    found = task_of(kind.model_validate(settings)).validator.measure(Denoiser(Answers()), CPU)["held-out"].values
    plain = task_of(kind()).validator.measure(Denoiser(Answers()), CPU)["held-out"].values
    assert np.array_equal(found, plain)
    x0 = mean_latents(entry("0.png").moments[0], 0.5).expand(8, 4, 4, 4)
    eps = rng.normal((8, 4, 4, 4), "validation", entry_hash(entry("0.png")))
    t = torch.arange(8) * 125 + 62
    target = OBJECTIVES[kind().kind].target(TABLE, x0, eps, t)
    assert plain[0].tolist() == pytest.approx((0.25 - target).square().mean(dim=(1, 2, 3)).tolist(), rel=1e-6)


# ---------------------------------------------------------------- flags


def config(*flags: str) -> Config:
    return parse(Config, flags, prog="finetune.py")


def test_flags_name_every_setting() -> None:
    found = config(
        *("--objective.kind", "velocity", "--objective.loss", "huber", "--objective.huber-c", "0.2"),
        *("--objective.huber-schedule", "exponential", "--objective.weighting", "min-snr", "--objective.gamma", "3"),
        *("--objective.noise-offset", "0.05", "--objective.input-perturbation", "0.1"),
        "--objective.zero-terminal-snr",
    ).objective
    assert found == Velocity(
        loss="huber",
        huber_c=0.2,
        huber_schedule="exponential",
        weighting="min-snr",
        gamma=3.0,
        noise_offset=0.05,
        input_perturbation=0.1,
        zero_terminal_snr=True,
    )
    assert config().objective == Epsilon()
    assert config("--objective.loss", "smooth-l1").objective == Epsilon(loss="smooth-l1")
    assert config("--objective.kind", "sample").objective == Sample()


@pytest.mark.parametrize("objective", [Epsilon(), Velocity(weighting="min-snr", zero_terminal_snr=True), Sample()])
def test_a_runs_config_can_be_read_back(objective: Objective) -> None:
    written = Config.model_validate({"objective": objective.model_dump()}).model_dump(mode="json")
    assert Config.model_validate(written).objective == objective


VELOCITY, NOISY = "--objective.kind velocity", "--objective.zero-terminal-snr"
MISTAKES = {  # flags -> where, and what is allowed or named
    "zero SNR for eps": ([NOISY], NOISY, VELOCITY),
    "zero SNR for x0": (["--objective.kind", "sample", NOISY], NOISY, VELOCITY),
    "gamma of nothing": (["--objective.gamma", "5"], "--objective.gamma", "--objective.weighting min-snr"),
    "c of nothing": (["--objective.huber-c", "0.1"], "--objective.huber-c", "--objective.loss huber"),
    "curve of nothing": (["--objective.huber-schedule", "snr"], "--objective.huber-schedule", "--objective.loss huber"),
    "c of zero": (["--objective.huber-c", "0"], "--objective.huber-c", "greater than 0"),
    "gamma of zero": (["--objective.gamma", "0"], "--objective.gamma", "greater than 0"),
    "negative noise": (["--objective.noise-offset", "-1"], "--objective.noise-offset", "0"),
    "too much": (["--objective.input-perturbation", "2"], "--objective.input-perturbation", "1"),
    "a loss": (["--objective.loss", "l3"], "--objective.loss", "'mse', 'huber'"),
    "a weighting": (["--objective.weighting", "snr"], "--objective.weighting", "'none'"),
    "a kind": (["--objective.kind", "x0"], "--objective.kind", "epsilon, velocity, sample"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_clear_line(case: str) -> None:
    flags, where, named = MISTAKES[case]
    with pytest.raises(InputError) as caught:
        config(*flags)
    assert caught.value.where == where and named in f"{caught.value.allowed} {caught.value.fix}"
    assert "\n" not in str(caught.value)


def test_a_weighting_that_undoes_the_rescaling_is_said() -> None:
    assert len(losses.objective_warnings(Velocity(zero_terminal_snr=True, weighting="min-snr"))) == 1
    assert losses.objective_warnings(Velocity(zero_terminal_snr=True)) == []
    assert losses.objective_warnings(Velocity(weighting="min-snr")) == []


# ---------------------------------------------------------------- adding one


class Doubled(Objective):
    """Predict twice the noise."""

    kind: Literal["doubled"] = "doubled"
    predicts = "epsilon"


def late(uniforms: Tensor, schedule: Schedule) -> Tensor:
    """Only the noisier half of the timesteps."""
    return losses.uniform_timesteps(0.5 + uniforms / 2, schedule)


def test_another_objective_needs_only_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains, is validated, and has every loss and weighting."""
    twice = ObjectiveFunctions(lambda schedule, x0, eps, t: 2 * eps)
    monkeypatch.setitem(OBJECTIVES, "doubled", twice)
    objective: Any = Doubled(loss="huber", weighting="min-snr")
    batch = batch_of(TrainingNoise())
    plain = build_loss(Doubled(), TABLE)(Denoiser(Answers()), batch)
    torch.testing.assert_close(plain, (0.25 - 2 * batch.noise).square().mean(dim=(1, 2, 3)))
    assert build_loss(objective, TABLE)(Denoiser(Answers()), batch).shape == (4,)
    assert task_of(objective).validator.measure(Denoiser(Answers()), CPU)["held-out"].values.shape == (1, 8)
    losses.check_prediction_type(objective, "epsilon")


def test_validation_does_not_depend_on_the_timesteps_that_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """So runs whose objectives draw timesteps in other ways can be compared."""
    network = Denoiser(Answers())
    plain = task_of(Epsilon())
    expected = plain.validator.measure(network, CPU)["held-out"].values
    monkeypatch.setitem(OBJECTIVES, "epsilon", ObjectiveFunctions(OBJECTIVES["epsilon"].target, late))
    other = task_of(Epsilon())
    assert torch.equal(other.loss.timesteps(torch.tensor([0.0, 0.5])), torch.tensor([500, 750]))
    assert np.array_equal(other.validator.measure(network, CPU)["held-out"].values, expected)


def test_every_objective_has_options_and_functions() -> None:
    kinds = {kind.model_fields["kind"].default for kind in get_args(AnyKind)}
    assert kinds == OBJECTIVES.keys(), f"only options or only functions: {kinds ^ OBJECTIVES.keys()}"


def test_kinds_that_predict_alike_are_all_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "AnyKind", AnyKind | Doubled)
    with pytest.raises(InputError) as caught:
        losses.check_prediction_type(Sample(), "epsilon")
    assert (caught.value.where, caught.value.allowed) == ("--objective.kind", "epsilon, doubled")


def test_the_schedule_of_a_rescaled_base_is_that_of_what_it_exports(tmp_path: Path) -> None:
    from tests.tiny import tiny_pipeline
    from train.model import load_model

    model = load_model(str(tiny_pipeline(tmp_path / "tiny")))
    final = replace(model, zero_terminal_snr=True)
    assert torch.equal(final.schedule.betas, RESCALED.betas)
    assert torch.equal(schedules.from_diffusers(final.scheduler_config).betas, final.schedule.betas)
    assert model.scheduler_config["_class_name"] == "PNDMScheduler" and model.schedule.has_signal_left
