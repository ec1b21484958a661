"""The parts together learn: one picture by heart, one batch, in bfloat16 as in float32, compiled as not compiled; and
the average of the weights in closed form.
"""

import math
from collections.abc import Callable

import pytest
import torch

from data.dataset import BatchLayout
from train.config import EmaOptions
from train.ddpm import diffusion, image_sets, prediction, samplers, schedule
from train.ddpm.image_sets import to_float
from train.ddpm.runs.batches import Batch, BatchStream
from train.ddpm.runs.config import ObjectiveOptions
from train.ddpm.runs.objective import NoisedBatch, build_loss
from train.ddpm.unets.convnext import AnnotatedUNet, ResnetBlock
from train.ddpm.unets.paper import PaperUNet
from train.ema import Ema

SCHEDULE = schedule.linear(50, beta_end=0.3)  # steep enough that little signal is left after 50 steps
COST = build_loss(ObjectiveOptions(predicts="v"), SCHEDULE)


def network() -> AnnotatedUNet:
    torch.manual_seed(0)
    return AnnotatedUNet(1, width=8, multiples=(1, 2), block=ResnetBlock)


def cost(asked: Callable[..., torch.Tensor], batch: Batch) -> torch.Tensor:
    xt = diffusion.add_noise(SCHEDULE, batch.x0, batch.eps, batch.t)
    return COST(NoisedBatch(batch.x0, batch.eps, xt, batch.t), asked(xt, batch.t).float()).mean()


def test_24_one_picture_is_learnt_by_heart_and_drawn() -> None:
    one = image_sets.load_digit_images().taken([7])
    stream = BatchStream(one, BatchLayout(8), seed=0, steps=50)
    learner = network()
    optimizer = torch.optim.Adam(learner.parameters(), 5e-3)
    for step in range(130):
        optimizer.zero_grad()
        cost(learner, stream.batch(step)).backward()
        optimizer.step()
    predict = prediction.clipped(prediction.v(learner.eval(), SCHEDULE))
    own = samplers.seeded_noise(3, 2, (1, 8, 8))
    drawn = samplers.generate(samplers.make_sampler("ddim", count=10), predict, SCHEDULE, own.start(), own)
    error = (drawn - to_float(one.pixels)).square().mean((1, 2, 3))
    assert error.max() < 0.1  # the picture's own variance is 0.6, and two noises are as far apart as 2


def test_24_one_batch_is_learnt() -> None:
    batch = BatchStream(image_sets.load_digit_images().taken(range(8)), BatchLayout(8), seed=0, steps=50).batch(0)
    learner = network()
    optimizer = torch.optim.Adam(learner.parameters(), 5e-3)
    first = cost(learner, batch).item()
    for _ in range(80):
        optimizer.zero_grad()
        cost(learner, batch).backward()
        optimizer.step()
    assert cost(learner, batch).item() < 0.15 * first


def test_24_bfloat16_costs_what_float32_costs() -> None:
    batch = BatchStream(image_sets.load_digit_images().taken(range(64)), BatchLayout(64), seed=0, steps=50).batch(0)
    for asked in (network(), PaperUNet(1, widths=(32, 64), blocks=1, dropout=0.0)):
        with torch.no_grad():
            exact = cost(asked, batch)
            with torch.autocast("cpu", torch.bfloat16):
                half = cost(asked, batch)
        assert half.item() == pytest.approx(exact.item(), rel=0.01)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_24_compiled_is_eager(backend: str) -> None:
    """Answers and gradients to 1e-4; the fast tier leaves the code generator out, which takes minutes."""
    batch = BatchStream(image_sets.load_digit_images().taken(range(4)), BatchLayout(4), seed=0, steps=50).batch(0)
    plain = network()
    compiled = torch.compile(plain, dynamic=False, backend=backend)
    weights = list(plain.parameters())
    found = [torch.autograd.grad(cost(asked, batch), weights) for asked in (plain, compiled)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        xt = torch.randn(4, 1, 8, 8)
        torch.testing.assert_close(compiled(xt, batch.t), plain(xt, batch.t), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("warmup", [True, False])
def test_20_the_average_in_closed_form(warmup: bool) -> None:
    """Weights that jump from w_0 to w once: after n updates the average is w + d_0 ... d_{n-1} (w_0 - w)."""
    weight = torch.nn.Parameter(torch.randn(3, 5))
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
