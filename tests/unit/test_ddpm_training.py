"""Training: batches as functions of position, timestep sampling, losses, run identity; and the parts together learn."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from scipy import stats
from torch import Tensor, nn

from data import rng
from data.dataset import BatchLayout
from data.errors import InputError
from train.config import EmaOptions
from train.ddpm import diffusion, image_sets, losses, prediction, samplers, schedule
from train.ddpm.config import (
    AnyNetwork,
    BasicUNetOptions,
    ConvNextOptions,
    ObjectiveOptions,
    PaperOptions,
    ScheduleOptions,
)
from train.ddpm.image_sets import ImageSet, to_float
from train.ddpm.losses import TimestepSampler
from train.ddpm.runs.batches import Batch, BatchStream
from train.ddpm.runs.config import CONFIGS, FitConfig, identity
from train.ddpm.runs.model import ModelInfo, build_corruption, build_loss, build_schedule
from train.ddpm.runs.trainer import step_flops
from train.ddpm.unets.build import NetworkShape
from train.ddpm.unets.convnext import AnnotatedUNet, ResnetBlock
from train.ddpm.unets.paper import PaperUNet
from train.optim import Ema

T = 50
SCHEDULE = schedule.linear(T)

# ---- noise


def test_counter_noise_is_standard_normal() -> None:
    noise = rng.counter_normals(torch.arange(64), 5, (3, 11, 7)).flatten().double().numpy()
    assert stats.kstest(noise, "norm").pvalue > 0.01
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 4 / math.sqrt(len(noise))
    both = rng.counter_normals(torch.arange(2000), 5, (2,))  # a pair made of one radius and one angle
    for pair in (both, both**2):
        assert abs(torch.corrcoef(pair.T)[0, 1]) < 4 / math.sqrt(2000)


def test_counter_noise_depends_on_its_key_alone() -> None:
    whole = rng.counter_normals(torch.arange(6), 5, (1, 5, 5))
    assert torch.equal(rng.counter_normals(torch.tensor([4, 2]), 5, (1, 5, 5)), whole[[4, 2]])
    assert not torch.equal(rng.counter_normals(torch.arange(6), 6, (1, 5, 5)), whole)
    uniforms = rng.counter_uniforms(torch.arange(4000), 1, 1)
    assert 0 <= uniforms.min() < 0.01 and 0.99 < uniforms.max() < 1
    assert stats.kstest(uniforms.flatten().numpy(), "uniform").pvalue > 0.01


# ---- batches


def ramps(*, flip: bool = False) -> ImageSet:
    pixels = torch.arange(160, dtype=torch.int64).remainder(256).byte().reshape(10, 1, 4, 4)
    return ImageSet("ramps", pixels, torch.arange(10) % 2, ("even", "odd"), flip=flip)


def stream(layout: BatchLayout, *, flip: bool = False, seed: int = 3) -> BatchStream:
    return BatchStream(ramps(flip=flip), layout, seed, TimestepSampler(T), class_dropout=0.5)


def test_every_image_comes_once_before_any_comes_twice() -> None:
    seen = torch.cat([stream(BatchLayout(4)).positions(step) for step in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_22_a_batch_is_a_function_of_its_step_in_any_number_of_processes() -> None:
    one = stream(BatchLayout(4))
    last, again = [one.batch(step) for step in range(8)][-1], stream(BatchLayout(4)).batch(7)
    parts = [stream(BatchLayout(2, 1, 2, rank)).batch(7) for rank in range(2)]
    for name in ("x0", "eps", "t", "labels"):
        assert torch.equal(getattr(last, name), getattr(again, name)), name
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(last, name)), name
    assert not torch.equal(stream(BatchLayout(4), seed=4).batch(7).eps, last.eps)


def test_images_are_mirrored_and_labels_dropped_at_their_rates() -> None:
    plain, mirrored, dropped = to_float(ramps().pixels), 0, 0
    for step in range(40):
        batch, rows = stream(BatchLayout(10), flip=True).batch(step), stream(BatchLayout(10)).positions(step)
        as_is = (batch.x0 == plain[rows]).flatten(1).all(1)
        turned = (batch.x0 == plain[rows].flip(-1)).flatten(1).all(1)
        assert bool((as_is | turned).all())
        assert batch.labels is not None
        assert bool(((batch.labels == rows % 2) | (batch.labels == 2)).all())
        assert batch.t.min() >= 0 and batch.t.max() < T
        assert batch.x0.is_contiguous(memory_format=torch.channels_last)
        mirrored, dropped = mirrored + int(turned.sum()), dropped + int((batch.labels == 2).sum())
    assert 150 < mirrored < 250 and 150 < dropped < 250
    assert torch.equal(stream(BatchLayout(10)).batch(0).x0, plain[stream(BatchLayout(10)).positions(0)])


# ---- timesteps


def draw_and_update(timesteps: TimestepSampler, rank: int, processes: int, steps: int) -> list[Tensor]:
    """The timesteps that a process draws; the loss at t is t + 1."""
    drawn = []
    for step in range(steps):
        uniforms = torch.rand(24, generator=torch.Generator().manual_seed(step)).chunk(processes)[rank]
        t, weights = timesteps.draw(uniforms)
        assert weights.dtype == torch.float32
        timesteps.update(t, t.float() + 1)
        drawn.append(t)
    return drawn


def test_19_every_process_has_the_history_of_all() -> None:
    """Two processes draw, together, what one process with the whole batch draws."""
    box: dict[int, Tensor] = {}
    meeting = threading.Barrier(2)

    def gather(rank: int, mine: Tensor) -> Tensor:
        box[rank] = mine
        meeting.wait(20)
        joined = torch.cat([box[0], box[1]])
        meeting.wait(20)
        return joined

    alone = TimestepSampler(4, True)
    expected = draw_and_update(alone, 0, 1, 12)
    both = [TimestepSampler(4, True, partial(gather, rank)) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(lambda rank: draw_and_update(both[rank], rank, 2, 12), range(2)))
    assert alone.complete
    for one in both:
        assert one.state() == alone.state()
    assert all(torch.equal(torch.cat(pair), whole) for *pair, whole in zip(*halves, expected, strict=True))
    counts = torch.bincount(torch.cat(expected[6:]), minlength=4)
    assert counts[3] > counts[0], "the largest loss is drawn most often"


def test_19_a_history_survives_a_checkpoint() -> None:
    first, second = (TimestepSampler(4, True) for _ in range(2))
    draw_and_update(first, 0, 1, 9)
    second.load_state(first.state())
    assert second.state() == first.state()
    rest = [draw_and_update(each, 0, 1, 3) for each in (first, second)]
    assert all(torch.equal(*pair) for pair in zip(*rest, strict=True))


def test_uniform_timesteps_have_weight_one() -> None:
    uniform = TimestepSampler(4)
    t, weights = uniform.draw(torch.tensor([0.0, 0.26, 0.999999, 0.5]))
    assert (t.tolist(), weights.tolist()) == ([0, 1, 3, 2], [1.0] * 4)
    assert uniform.state() == {}


# ---- losses


def noised() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_0 of 256 levels, as the decoder of L_0 needs, eps, x_t and t."""
    torch.manual_seed(0)
    x0, eps = (torch.randn(4, 1, 4, 4).clamp(-1, 1) for _ in range(2))
    x0, t = ((x0 + 1) * 127.5).round() / 127.5 - 1, torch.tensor([0, 1, 20, 49])
    return x0, eps, diffusion.add_noise(SCHEDULE, x0, eps, t), t


@pytest.mark.parametrize("predicts", prediction.PARAMETRIZATIONS)
@pytest.mark.parametrize("loss", ["l1", "l2", "huber"])
def test_l_simple_of_every_prediction(predicts: str, loss: str) -> None:
    x0, eps, xt, t = noised()
    cost = build_loss(ObjectiveOptions.model_validate({"predicts": predicts, "loss": loss}), SCHEDULE)
    target = prediction.get_parametrization(predicts).target(SCHEDULE, x0, eps, t)
    assert not cost(target, x0, eps, xt, t).any()
    torch.testing.assert_close(cost(target + 0.5, x0, eps, xt, t), losses.get_loss(loss)(target + 0.5, target))


def test_min_snr_is_a_weight() -> None:
    x0, eps, xt, t = noised()
    cost = build_loss(ObjectiveOptions(predicts="v", weighting="min-snr", gamma=2.0), SCHEDULE)
    target, snr = diffusion.velocity(SCHEDULE, x0, eps, t), SCHEDULE.snr[t]
    weights = cost(target + 1.0, x0, eps, xt, t).double()
    torch.testing.assert_close(weights, snr.clamp(max=2.0) / (snr + 1), rtol=1e-5, atol=1e-6)


def test_the_hybrid_moves_the_variance_and_the_bound_prefers_the_truth() -> None:
    x0, eps, xt, t = noised()
    gradients = []
    for cost in (
        build_loss(ObjectiveOptions(bound="hybrid", variance="learned-range"), SCHEDULE),
        lambda output, *rest: losses.mse(output[:, :1], eps),
    ):
        output = torch.cat([eps + 0.1, torch.zeros_like(eps)], dim=1).requires_grad_()
        gradients.append(torch.autograd.grad(cost(output, x0, eps, xt, t).sum(), output)[0])
    torch.testing.assert_close(gradients[0][:, :1], gradients[1][:, :1])  # the mean learns from L_simple alone
    assert gradients[0][:, 1:].abs().sum() > 0
    bound = build_loss(ObjectiveOptions(bound="only"), SCHEDULE)
    assert (bound(eps, x0, eps, xt, t)[1:] < bound(eps + 0.3, x0, eps, xt, t)[1:]).all()


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"noise": "uniform"}, "noise"),
        ({"corruption": "mix"}, "corruption"),
        ({"corruption": "mix", "predicts": "x0", "bound": "only"}, "corruption"),
        ({"weighting": "min-snr", "predicts": "mean"}, "weighting"),
        ({"gamma": 3.0}, "gamma"),
        ({"variance": "learned-range"}, "bound"),
        ({"bound": "hybrid"}, "bound"),
    ],
)
def test_settings_that_do_not_fit_together(settings: dict[str, object], flag: str) -> None:
    with pytest.raises((InputError, ValidationError), match=f"--objective.{flag}"):
        ObjectiveOptions.model_validate(settings)


@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
def test_the_mix_uses_the_chosen_noise(noise: str) -> None:
    x0, eps, _, t = noised()
    options = ObjectiveOptions.model_validate({"corruption": "mix", "predicts": "x0", "noise": noise})
    made, amount = eps if noise == "gaussian" else torch.erf(eps / 2**0.5), ((t + 1) / T)[:, None, None, None]
    mixed = build_corruption(options)(SCHEDULE, x0, eps, t)
    torch.testing.assert_close(mixed, (1 - amount) * x0 + amount * made)
    assert build_corruption(ObjectiveOptions()) is diffusion.add_noise


def test_noise_prediction_needs_a_signal() -> None:
    flat = build_schedule(ScheduleOptions(steps=T, zero_terminal_snr=True))
    build_loss(ObjectiveOptions(predicts="v"), flat)
    with pytest.raises(InputError, match="zero terminal SNR"):
        build_loss(ObjectiveOptions(), flat)
    with pytest.raises(InputError, match="did you mean 'cosine'") as caught:
        build_schedule(ScheduleOptions(name="cosin"))
    assert caught.value.where == "--schedule.name"


# ---- runs


def test_what_makes_two_runs_the_same() -> None:
    base = FitConfig()
    known = identity(base, "data", 7)
    assert known == identity(base.model_copy(update={"max_steps": 7, "threads": 2, "log_every": 3}), "data", 9)
    cosine = base.model_copy(update={"optim": base.optim.model_copy(update={"schedule": "cosine"})})
    mixes = [
        ObjectiveOptions.model_validate({"corruption": "mix", "predicts": "x0", "noise": noise})
        for noise in ("gaussian", "uniform")
    ]
    others = [base.model_copy(update={"objective": each}) for each in mixes]
    others.append(base.model_copy(update={"seed": 1}))
    keys = [identity(base, "other", 7), identity(cosine, "data", 7), identity(cosine, "data", 8)]
    keys += [identity(other, "data", 7) for other in others]
    assert len({known, *keys}) == 7
    assert FitConfig(epochs=2.0).steps(100, 32) == 7
    assert FitConfig(max_steps=5).steps(100, 32) == 5


# what earlier versions computed for three presets: their unfinished runs are still resumed
KNOWN = {
    "digits.yaml": "e35c099a03c41e84389c723387e8cfc7d4fc5810d0e95eb57468acb62405dadb",
    "paper-cifar10.yaml": "624043cf058d8ffc88359894c59f0e08decad5653df7520031d4fc2304334a98",
}


@pytest.mark.parametrize("preset", KNOWN)
def test_earlier_runs_and_new_options_keep_their_identity(preset: str) -> None:
    class NewSection(ScheduleOptions):
        later: int = 1

    class Later(FitConfig):
        schedule: NewSection = NewSection()
        another: str = "default"

    settings = yaml.safe_load((CONFIGS / preset).read_text())
    for model in (FitConfig, Later):
        assert identity(model.model_validate(settings), "data", 7) == KNOWN[preset]
    changed = [{"another": "x"}, {"schedule": {"later": 2}}]
    assert KNOWN[preset] not in {identity(Later.model_validate(settings | each), "data", 7) for each in changed}


def info(network: AnyNetwork, *shape: int) -> ModelInfo:
    frame, objective = NetworkShape(*shape), ObjectiveOptions()
    return ModelInfo(
        network=network, frame=frame, schedule=ScheduleOptions(), objective=objective, classes=(), source=""
    )


def test_flops_of_a_step() -> None:
    """Two operations for each weight and place, forward; twice that backward, but for the image's own gradient."""
    sizes = [(1, 32, 8), (32, 64, 4), (64, 64, 2), (64, 64, 2), (64, 32, 4), (32, 1, 8)]  # channels, side
    forward = [2 * 25 * inputs * outputs * side**2 for inputs, outputs, side in sizes]
    assert step_flops(info(BasicUNetOptions(), 1, 8)) == 3 * sum(forward) - forward[0]
    assert step_flops(info(PaperOptions(), 3, 32)) == pytest.approx(37.3e9, rel=0.005)  # as published
    small = ConvNextOptions(width=8, multiples=(1, 2))
    assert step_flops(info(small, 1, 8)) < step_flops(info(small, 1, 8, 10, 2))


# ---- the parts together learn

STEEP = schedule.linear(50, beta_end=0.3)  # little signal is left after 50 steps
LOSS = build_loss(ObjectiveOptions(predicts="v"), STEEP)
DIGITS = image_sets.load_digit_images()


def small_network() -> AnnotatedUNet:
    torch.manual_seed(0)
    return AnnotatedUNet(1, width=8, multiples=(1, 2), block=ResnetBlock)


def loss_of(network: Callable[..., Tensor], batch: Batch) -> Tensor:
    xt = diffusion.add_noise(STEEP, batch.x0, batch.eps, batch.t)
    return LOSS(network(xt, batch.t).float(), batch.x0, batch.eps, xt, batch.t).mean()


def digits(count: int) -> BatchStream:
    return BatchStream(DIGITS.select(range(count)), BatchLayout(count), seed=0, timesteps=TimestepSampler(50))


def learn(network: nn.Module, batch: Callable[[int], Batch], steps: int) -> None:
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(network, batch(step)).backward()
        optimizer.step()


def test_24_one_image_is_memorised_and_generated() -> None:
    one, network = DIGITS.select([7]), small_network()
    learn(network, BatchStream(one, BatchLayout(8), 0, TimestepSampler(50)).batch, 130)
    predict = prediction.clipped(prediction.v(network.eval(), STEEP))
    noise = samplers.seeded_noise(3, 2, (1, 8, 8))
    images = samplers.generate(samplers.make_sampler("ddim", count=10), predict, STEEP, noise.start(), noise)
    error = (images - to_float(one.pixels)).square().mean((1, 2, 3))
    assert error.max() < 0.1  # the image's own variance is 0.6, and two noises are as far apart as 2


def test_24_one_batch_is_learned() -> None:
    batch, network = digits(8).batch(0), small_network()
    first = loss_of(network, batch).item()
    learn(network, lambda step: batch, 80)
    assert loss_of(network, batch).item() < 0.15 * first


@pytest.mark.parametrize("make", [small_network, lambda: PaperUNet(1, widths=(32, 64), blocks=1, dropout=0.0)])
def test_24_the_loss_in_bfloat16_is_that_in_float32(make: Callable[[], nn.Module]) -> None:
    batch, network = digits(64).batch(0), make()
    with torch.no_grad():
        exact = loss_of(network, batch)
        with torch.autocast("cpu", torch.bfloat16):
            half = loss_of(network, batch)
    assert half.item() == pytest.approx(exact.item(), rel=0.01)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_24_compiled_is_eager(backend: str) -> None:
    """Outputs and gradients to 1e-4; the fast tier leaves the code generator out, which takes minutes."""
    batch, plain = digits(4).batch(0), small_network()
    compiled = torch.compile(plain, dynamic=False, backend=backend)
    gradients = [torch.autograd.grad(loss_of(each, batch), list(plain.parameters())) for each in (plain, compiled)]
    with torch.no_grad():
        outputs = [[each(batch.x0, batch.t)] for each in (plain, compiled)]
    for pair in (*zip(*gradients, strict=True), *zip(*outputs, strict=True)):
        torch.testing.assert_close(*pair, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("warmup", [True, False])
def test_20_the_average_in_closed_form(warmup: bool) -> None:
    """Weights that jump from w_0 to w once: after n updates the average is w + d_0 ... d_{n-1} (w_0 - w)."""
    weight = nn.Parameter(torch.randn(3, 5))
    start, end = weight.detach().clone(), torch.randn(3, 5)
    average = Ema({"layer.weight": weight}, EmaOptions(decay=0.95, warmup=warmup))
    with torch.no_grad():
        weight.copy_(end)
    for updates in range(1, 401):
        average.update(torch.tensor(1.0))
        decays = [min(0.95, (1 + n) / (10 + n)) if warmup else 0.95 for n in range(updates)]
        expected = end.double() + math.prod(decays) * (start - end).double()
        torch.testing.assert_close(average.averages["layer.weight"].double(), expected, rtol=0, atol=1e-5)
    with average.swapped():
        torch.testing.assert_close(weight.detach(), end, rtol=0, atol=1e-5)
