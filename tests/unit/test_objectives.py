"""The objective: timesteps and targets, its noise, what the step and validation do with it, flags, adding one."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from data import rng
from data.cli import parse
from data.dataset import (
    PLAIN_NOISE,
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
from train.ddpm import diffusion, schedule
from train.ddpm import schedule as schedules
from train.ddpm.schedule import Schedule
from train.losses import (
    OBJECTIVES,
    ObjectiveFunctions,
    build_criterion,
    build_loss,
    check_prediction_type,
    uniform_timesteps,
)
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
    images = EncodedDataset(
        [[entry(f"{i}.png") for i in range(4)]], torch.zeros(5, 6), seed=2, scaling_factor=0.5, dropout=0.0, noise=noise
    )
    return collate([images[Position(0, slot, 0, slot)] for slot in range(4)])


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


SHAPE = (4, 5, 6)
COUNT = 3000
POSITIONS = [(7, 3, 1), (8, 3, 1), (7, 4, 1), (7, 3, 2), (7, 1, 3)]  # run seed, step, slot


def noise_of(noise: TrainingNoise) -> tuple[Tensor, Tensor]:
    """(COUNT, 4, 5, 6) twice: eps and the input's noise in the slots of ten steps."""
    pairs = [noise.sample(SHAPE, 7, slot % 10, slot // 10) for slot in range(COUNT)]
    return torch.stack([eps for eps, _ in pairs]), torch.stack([seen for _, seen in pairs])


def near(found: Tensor, expected: float, deviation: float) -> bool:
    """Within five standard errors."""
    return abs(float(found) - expected) < 5 * deviation


def test_without_them_noise_is_what_it_was() -> None:
    """Bit for bit the stream that runs had before there was a choice."""
    for step in range(5):
        eps, seen = PLAIN_NOISE.sample(SHAPE, 3, step, 1)
        assert seen is eps
        assert torch.equal(eps, rng.normal(SHAPE, "noise", 3, step, 1))


def test_the_offset_is_one_number_a_channel_of_its_variance() -> None:
    eps, seen = noise_of(TrainingNoise(offset=0.5))
    assert torch.equal(eps, seen), "the network sees what it is asked for"
    plain, _ = noise_of(PLAIN_NOISE)
    added = eps - plain
    spread = (added - added.mean(dim=(2, 3), keepdim=True)).abs().max()
    assert spread < 2e-6, "constant within a channel"
    per_channel = added.mean(dim=(2, 3)).flatten()
    n = len(per_channel)
    assert near(per_channel.mean(), 0.0, 0.5 / n**0.5)
    assert near(per_channel.var(), 0.25, 0.25 * (2 / n) ** 0.5)
    channels = added.mean(dim=(2, 3))
    correlation = torch.corrcoef(channels.T) - torch.eye(4)
    assert correlation.abs().max() < 5 / COUNT**0.5, "channels are offset independently"
    # a pixel: 1 + offset^2; a channel's mean over 30 pixels: 1 / 30 + offset^2
    assert near(eps.mean(dim=(2, 3)).var(), 1 / 30 + 0.25, (1 / 30 + 0.25) * (2 / n) ** 0.5)
    assert near(eps[:, :, 0, 0].var(), 1.25, 1.25 * (2 / n) ** 0.5)


def test_the_perturbation_is_seen_and_not_asked_for() -> None:
    eps, seen = noise_of(TrainingNoise(perturbation=0.3))
    plain, _ = noise_of(PLAIN_NOISE)
    assert torch.equal(eps, plain), "the target stays what it was"
    n = eps.numel()
    xi = (seen - eps) / 0.3
    assert near(xi.mean(), 0.0, n**-0.5) and near(xi.var(), 1.0, (2 / n) ** 0.5)
    assert near((xi * eps).mean(), 0.0, n**-0.5), "independent of eps"
    assert near(seen.var(), 1.09, 1.09 * (2 / n) ** 0.5)


def test_the_perturbed_inputs_marginal() -> None:
    """q(x_t | x_0) = N(sqrt(abar) x_0, (1 - abar) (1 + gamma^2)), as Ning et al. 2023 make it."""
    schedule, t = schedules.scaled_linear(1000, 0.00085, 0.012), torch.full((COUNT,), 600)
    _, seen = noise_of(TrainingNoise(perturbation=0.3))
    noisy = diffusion.add_noise(schedule, torch.full_like(seen, 2.0), seen, t)
    abar, n = schedule.alphas_cumprod[600].item(), seen.numel()
    variance = (1 - abar) * 1.09
    assert near(noisy.mean(), 2 * abar**0.5, (variance / n) ** 0.5)
    assert near(noisy.var(), variance, variance * (2 / n) ** 0.5)


def test_both_at_once() -> None:
    """The target has the offset; the input has that, and the same perturbation as without it."""
    both, (offset, _), perturbed = (
        noise_of(TrainingNoise(0.1, 0.2)),
        noise_of(TrainingNoise(offset=0.1)),
        noise_of(TrainingNoise(perturbation=0.2)),
    )
    assert torch.equal(both[0], offset)
    torch.testing.assert_close(both[1] - both[0], perturbed[1] - perturbed[0], rtol=0, atol=1e-6)


def test_they_follow_from_the_position_alone() -> None:
    noise = TrainingNoise(0.1, 0.1)
    state = torch.get_rng_state()
    first, again = noise.sample(SHAPE, 7, 3, 1), noise.sample(SHAPE, 7, 3, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    others = [noise.sample(SHAPE, *here) for here in POSITIONS]
    offsets = [eps - rng.normal(SHAPE, "noise", *h) for (eps, _), h in zip(others, POSITIONS, strict=True)]
    assert all(not torch.allclose(a, b) for a, b in pairwise(offsets))


def encoded_images(dropout: float, noise: TrainingNoise = PLAIN_NOISE) -> EncodedDataset:
    generator = torch.Generator().manual_seed(0)
    entries = [
        EncodedImage(f"{i}.png", (torch.randn(8, 5, 6, generator=generator),), (torch.full((5, 6), float(i)),))
        for i in range(4)
    ]
    return EncodedDataset([entries], EMPTY, seed=1, scaling_factor=0.5, dropout=dropout, noise=noise)


EMPTY = rng.normal((5, 6), "the encoder's states of nothing")


def test_a_batch_carries_both() -> None:
    positions = [Position(2, slot, 0, slot) for slot in range(3)]
    plain, noised = (
        collate([encoded_images(0.1, noise)[p] for p in positions]) for noise in (PLAIN_NOISE, TrainingNoise(0.1, 0.2))
    )
    assert torch.equal(plain.noise, plain.input_noise)
    assert torch.equal(noised.latents, plain.latents) and torch.equal(noised.text_states, plain.text_states)
    assert torch.equal(noised.timestep_uniforms, plain.timestep_uniforms)
    for slot in range(3):
        eps, seen = TrainingNoise(0.1, 0.2).sample(SHAPE, 1, 2, slot)
        assert torch.equal(noised.noise[slot], eps) and torch.equal(noised.input_noise[slot], seen)


@pytest.mark.parametrize("rate", [0.0, 0.04, 0.1, 0.5, 1.0])
def test_captions_are_dropped_at_their_rate_to_the_encoders_own_nothing(rate: float) -> None:
    """Within the interval that a binomial count leaves once in ten thousand times; a dropped one is "" bit for bit."""
    found, total = encoded_images(rate), 2000
    items = [found[Position(step, slot, 0, slot % 4)] for step in range(200) for slot in range(10)]
    dropped = [item for item in items if torch.equal(item.text_states, EMPTY)]
    low, high = stats.binom.interval(0.9999, total, rate) if 0 < rate < 1 else (rate * total, rate * total)
    assert low <= len(dropped) <= high
    kept = [item for item in items if not torch.equal(item.text_states, EMPTY)]
    assert all(torch.equal(item.text_states, torch.full((5, 6), float(item.sample_id[0]))) for item in kept)


def test_dropping_is_no_matter_of_the_picture_or_of_the_noise() -> None:
    """Each image is dropped as often as the others, and whether it is says nothing about its timestep."""
    found = encoded_images(0.5)
    items = [found[Position(step, slot, 0, slot)] for step in range(1000) for slot in range(4)]
    is_dropped = torch.tensor([torch.equal(item.text_states, EMPTY) for item in items]).double()
    each = is_dropped.reshape(1000, 4).mean(dim=0)
    assert (each - 0.5).abs().max() < 5 * (0.25 / 1000) ** 0.5
    uniforms = torch.tensor([item.timestep_uniform for item in items], dtype=torch.float64)
    assert torch.corrcoef(torch.stack([is_dropped, uniforms]))[0, 1].abs() < 5 / 4000**0.5


KINDS: list[Any] = [Epsilon(), Velocity(), Sample()]
SHORT = schedule.linear(10, 0.01, 0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_timestep_has_the_same_share(dtype: torch.dtype) -> None:
    uniforms = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    t = uniform_timesteps(uniforms.to(dtype), SHORT)
    assert t.dtype == torch.int64
    assert torch.bincount(t, minlength=10).tolist() == [400] * 10


def test_the_borders_belong_to_the_step_above() -> None:
    uniforms = torch.arange(10, dtype=torch.float64) / 10
    assert uniform_timesteps(uniforms + 1e-12, SHORT).tolist() == list(range(10))
    assert uniform_timesteps(uniforms[1:] - 1e-12, SHORT).tolist() == list(range(9))


def test_the_last_number_below_one_stays_in_the_table() -> None:
    """As float32 a number a hair below 1 is 1, or its product with T is T."""
    hair = math.nextafter(1.0, 0.0)
    below = torch.tensor([hair], dtype=torch.float64)
    assert uniform_timesteps(below, SHORT).tolist() == [9]
    assert below.float().item() == 1.0
    assert uniform_timesteps(below.float(), SHORT).tolist() == [9]
    assert uniform_timesteps(torch.tensor([0.0]), SHORT).tolist() == [0]


@pytest.mark.parametrize("objective", KINDS, ids=lambda objective: objective.predicts)
def test_objectives_draw_all_timesteps(objective: Objective) -> None:
    uniforms = torch.tensor([0.0, 0.35, 0.999])
    assert build_loss(objective, SHORT).timesteps(uniforms).tolist() == [0, 3, 9]


def images(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


T = torch.tensor([0, 4, 9])


def test_epsilon_is_the_noise() -> None:
    x0, eps = images(0), images(1)
    assert torch.equal(OBJECTIVES[Epsilon().kind].target(SHORT, x0, eps, T), eps)


def test_velocity_is_its_formula() -> None:
    """v = sqrt(abar) eps - sqrt(1 - abar) x_0, with abar as the product that defines it."""
    x0, eps = images(0), images(1)
    found = OBJECTIVES[Velocity().kind].target(SHORT, x0, eps, T)
    for row, t in enumerate(T.tolist()):
        abar = math.prod(1 - (0.01 + (0.3 - 0.01) * step / 9) for step in range(t + 1))
        want = math.sqrt(abar) * eps[row] - math.sqrt(1 - abar) * x0[row]
        assert (found[row] - want).abs().max() < 1e-12


def test_sample_is_the_picture() -> None:
    x0, eps = images(0), images(1)
    assert torch.equal(OBJECTIVES[Sample().kind].target(SHORT, x0, eps, T), x0)


@pytest.mark.parametrize("objective", KINDS, ids=lambda objective: objective.predicts)
def test_losses_are_one_mean_square_a_sample(objective: Objective) -> None:
    predicted, target = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    target[1] = torch.tensor([[1.0, 2.0], [-3.0, 0.0]])
    assert build_criterion(objective, SHORT)(predicted, target, T[:2]).tolist() == [0.0, 14 / 4]


def test_a_model_goes_on_predicting_what_it_learnt() -> None:
    check_prediction_type(Epsilon(), "epsilon")
    check_prediction_type(Velocity(), "v_prediction")
    check_prediction_type(Sample(), "sample")


@pytest.mark.parametrize(
    ("objective", "prediction_type", "allowed"),
    [
        (Velocity(), "epsilon", "epsilon"),
        (Epsilon(), "v_prediction", "velocity"),
        (Epsilon(), "sample", "sample"),
        (Epsilon(), "flow_prediction", None),
    ],
)
def test_another_prediction_is_refused(objective: Objective, prediction_type: str, allowed: str | None) -> None:
    with pytest.raises(InputError) as caught:
        check_prediction_type(objective, prediction_type)
    error = caught.value
    assert (error.where, error.allowed, error.fix is None) == ("--objective.kind", allowed, allowed is not None)
    assert repr(prediction_type) in error.what and repr(objective.predicts) in error.what
