"""Batches are functions of position, noise without a generator is normal, and answers cost what the core says."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats

from data import rng
from data.dataset import BatchLayout
from data.errors import InputError
from train.ddpm import diffusion, losses, prediction, schedule
from train.ddpm.image_sets import ImageSet, to_float
from train.ddpm.runs import objective
from train.ddpm.runs.batches import BatchStream
from train.ddpm.runs.config import FitConfig, ObjectiveOptions, ScheduleOptions, identity
from train.ddpm.runs.model import build_schedule
from train.ddpm.runs.objective import NoisedBatch

T = 50
SCHEDULE = schedule.linear(T)


def pictures(count: int = 10, *, flip: bool = False) -> ImageSet:
    pixels = torch.arange(count * 16, dtype=torch.int64).remainder(256).byte().reshape(count, 1, 4, 4)
    return ImageSet("ramps", pixels, torch.arange(count) % 2, ("even", "odd"), flip=flip)


def stream(layout: BatchLayout, *, flip: bool = False, seed: int = 3) -> BatchStream:
    return BatchStream(pictures(flip=flip), layout, seed, T, conditional=True, dropout=0.5)


# ---- noise


def test_counted_noise_is_standard_normal() -> None:
    found = rng.counter_normals(torch.arange(64), 5, (3, 11, 7)).flatten().double().numpy()
    assert stats.kstest(found, "norm").pvalue > 0.01
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 4 / math.sqrt(len(found))
    both = rng.counter_normals(torch.arange(2000), 5, (2,))  # a pair made of one radius and one angle
    assert abs(torch.corrcoef(both.T)[0, 1]) < 4 / math.sqrt(2000)
    assert abs(torch.corrcoef((both**2).T)[0, 1]) < 4 / math.sqrt(2000)


def test_counted_noise_depends_on_its_key_alone() -> None:
    whole = rng.counter_normals(torch.arange(6), 5, (1, 5, 5))
    assert torch.equal(rng.counter_normals(torch.tensor([4, 2]), 5, (1, 5, 5)), whole[[4, 2]])
    assert not torch.equal(rng.counter_normals(torch.arange(6), 6, (1, 5, 5)), whole)
    chances = rng.counter_uniforms(torch.arange(4000), 1, 1)
    assert 0 <= chances.min() < 0.01 and 0.99 < chances.max() < 1
    assert stats.kstest(chances.flatten().numpy(), "uniform").pvalue > 0.01


# ---- batches


def test_every_picture_comes_once_before_any_comes_twice() -> None:
    seen = torch.cat([stream(BatchLayout(4)).positions(step) for step in range(5)])
    assert sorted(seen[:10].tolist()) == list(range(10))
    assert sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_a_batch_is_a_function_of_its_step() -> None:
    straight, fresh = stream(BatchLayout(4)), stream(BatchLayout(4))
    last = [straight.batch(step) for step in range(6)][-1]
    again = fresh.batch(5)
    assert all(torch.equal(getattr(last, name), getattr(again, name)) for name in ("x0", "eps", "t", "labels"))
    other = stream(BatchLayout(4), seed=4).batch(5)
    assert not torch.equal(other.eps, again.eps)


def test_processes_share_out_the_same_global_batch() -> None:
    whole = stream(BatchLayout(4)).batch(7)
    parts = [stream(BatchLayout(2, 1, 2, rank)).batch(7) for rank in range(2)]
    for name in ("x0", "eps", "t", "labels"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name


def test_a_batch_holds_pictures_mirrored_or_not_and_labels_hidden_or_not() -> None:
    many = [stream(BatchLayout(10), flip=True).batch(step) for step in range(40)]
    plain = to_float(pictures().pixels)
    places = [stream(BatchLayout(10)).positions(step) for step in range(40)]
    mirrored = hidden = 0
    for batch, rows in zip(many, places, strict=True):
        as_is = (batch.x0 == plain[rows]).flatten(1).all(1)
        turned = (batch.x0 == plain[rows].flip(-1)).flatten(1).all(1)
        assert bool((as_is | turned).all())
        mirrored += int(turned.sum())
        assert batch.labels is not None
        hidden += int((batch.labels == 2).sum())
        assert bool(((batch.labels == rows % 2) | (batch.labels == 2)).all())
        assert batch.t.min() >= 0 and batch.t.max() < T
        assert batch.x0.is_contiguous(memory_format=torch.channels_last)
    assert 150 < mirrored < 250
    assert 150 < hidden < 250
    assert all(torch.equal(s.batch(0).x0, plain[s.positions(0)]) for s in [stream(BatchLayout(10))])


# ---- what an answer costs


def question(batch: int = 4) -> NoisedBatch:
    torch.manual_seed(0)
    x0, eps = (torch.randn(batch, 1, 4, 4).clamp(-1, 1) for _ in range(2))
    x0 = ((x0 + 1) * 127.5).round() / 127.5 - 1  # of 256 levels, as the decoder of L_0 asks
    t = torch.tensor([0, 1, 20, 49])[:batch]
    return NoisedBatch(x0, eps, diffusion.add_noise(SCHEDULE, x0, eps, t), t)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "mean"])
@pytest.mark.parametrize("loss", ["l1", "l2", "huber"])
def test_l_simple_of_every_prediction(predicts: str, loss: str) -> None:
    asked = question()
    cost = objective.build_loss(ObjectiveOptions.model_validate({"predicts": predicts, "loss": loss}), SCHEDULE)
    right = prediction.get_parametrization(predicts).target(SCHEDULE, asked.x0, asked.eps, asked.t)
    assert not cost(asked, right).any()
    torch.testing.assert_close(cost(asked, right + 0.5), losses.get_loss(loss)(right + 0.5, right))


def test_min_snr_is_a_weight() -> None:
    asked = question()
    options = ObjectiveOptions(predicts="v", weighting="min-snr", gamma=2.0)
    right = prediction.get_parametrization("v").target(SCHEDULE, asked.x0, asked.eps, asked.t)
    snr = SCHEDULE.snr[asked.t]
    found = objective.build_loss(options, SCHEDULE)(asked, right + 1.0)
    torch.testing.assert_close(found.double(), snr.clamp(max=2.0) / (snr + 1), rtol=1e-5, atol=1e-6)


def test_the_hybrid_moves_the_variance_and_the_bound_knows_its_best() -> None:
    asked = question()
    options = ObjectiveOptions(bound="hybrid", variance="learned-range")
    output = torch.cat([asked.eps + 0.1, torch.zeros_like(asked.eps)], dim=1).requires_grad_()
    objective.build_loss(options, SCHEDULE)(asked, output).sum().backward()
    simple = torch.cat([asked.eps + 0.1, torch.zeros_like(asked.eps)], dim=1).requires_grad_()
    losses.mse(simple[:, :1], asked.eps).sum().backward()
    assert output.grad is not None and simple.grad is not None
    torch.testing.assert_close(output.grad[:, :1], simple.grad[:, :1])  # the mean learns from L_simple alone
    assert output.grad[:, 1:].abs().sum() > 0
    alone = objective.build_loss(ObjectiveOptions(bound="only"), SCHEDULE)
    assert (alone(asked, asked.eps)[1:] < alone(asked, asked.eps + 0.3)[1:]).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"noise": "uniform"}, "the Gaussian process has Gaussian noise"),
        ({"corruption": "mix"}, "only the picture can be predicted"),
        ({"corruption": "mix", "predicts": "x0", "bound": "only"}, "only the picture can be predicted"),
        ({"weighting": "min-snr", "predicts": "mean"}, "weighting is of an error of eps, x0 or v"),
        ({"gamma": 3.0}, "means nothing without --objective.weighting"),
        ({"variance": "learned-range"}, "a learned variance learns from the bound"),
        ({"bound": "hybrid"}, "a learned variance learns from the bound"),
    ],
)
def test_settings_that_do_not_fit_together(given: dict[str, object], said: str) -> None:
    with pytest.raises((InputError, ValidationError), match=said):
        ObjectiveOptions.model_validate(given)


def test_the_mix_is_with_the_noise_asked_for() -> None:
    asked = question()
    course = {"corruption": "mix", "predicts": "x0"}
    for name, made in (("gaussian", asked.eps), ("uniform", torch.erf(asked.eps / 2**0.5))):
        corrupt = objective.build_corruption(ObjectiveOptions.model_validate(course | {"noise": name}))
        amount = ((asked.t + 1) / T)[:, None, None, None]
        mixed = corrupt(SCHEDULE, asked.x0, asked.eps, asked.t)
        torch.testing.assert_close(mixed, (1 - amount) * asked.x0 + amount * made)
    assert objective.build_corruption(ObjectiveOptions()) is diffusion.add_noise


def test_noise_prediction_needs_a_signal() -> None:
    flat = build_schedule(ScheduleOptions(steps=T, zero_terminal_snr=True))
    with pytest.raises(InputError, match=r"noise \(epsilon\) prediction on a noise schedule with zero terminal SNR"):
        objective.build_loss(ObjectiveOptions(), flat)
    objective.build_loss(ObjectiveOptions(predicts="v"), flat)
    with pytest.raises(InputError, match=r"--schedule.name: unknown noise schedule 'cosin', did you mean 'cosine'"):
        build_schedule(ScheduleOptions(name="cosin"))


def test_what_makes_two_runs_the_same() -> None:
    base = FitConfig()
    same = base.model_copy(update={"max_steps": 7, "threads": 2, "log_every": 3})
    assert identity(base, "data", 7) == identity(same, "data", 9)
    assert identity(base, "other", 7) != identity(base, "data", 7)
    assert identity(base.model_copy(update={"seed": 1}), "data", 7) != identity(base, "data", 7)
    falling = base.model_copy(update={"optim": base.optim.model_copy(update={"schedule": "cosine"})})
    assert identity(falling, "data", 7) != identity(falling, "data", 8)
    course = {"corruption": "mix", "predicts": "x0"}
    mixes = [ObjectiveOptions.model_validate(course | {"noise": noise}) for noise in ("gaussian", "uniform")]
    assert len({identity(base.model_copy(update={"objective": each}), "data", 7) for each in mixes}) == 2
    assert FitConfig(epochs=2.0).steps(100, 32) == 7
    assert FitConfig(max_steps=5).steps(100, 32) == 5
