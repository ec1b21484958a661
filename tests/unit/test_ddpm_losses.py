"""Losses by hand, against scipy and their limits; timestep weights against the papers and diffusers; criteria."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from scipy import special
from torch import Tensor

from data import rng
from train.config import Epsilon, Objective, Sample, Velocity
from train.ddpm import diffusion, losses
from train.ddpm import schedule as schedules
from train.ddpm.losses import Criterion, Plain, Scheduled, Weighted
from train.ddpm.schedule import Schedule
from train.losses import build_criterion

# one sample with errors 0, 1, -3, 0.5; one without any
PREDICTION = torch.tensor([[1.0, 2.0, -1.0, 0.5], [1.0, 2.0, 3.0, 4.0]])
TARGET = torch.tensor([[1.0, 1.0, 2.0, 0.0], [1.0, 2.0, 3.0, 4.0]])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mse", (0 + 1 + 9 + 0.25) / 4),
        ("l2", (0 + 1 + 9 + 0.25) / 4),
        ("l1", (0 + 1 + 3 + 0.5) / 4),
        ("huber", (0 + 0.5 + 2.5 + 0.125) / 4),  # 1/2 e^2 up to 1, |e| - 1/2 beyond
    ],
)
def test_values_by_hand(name: str, expected: float) -> None:
    assert losses.get_loss(name)(PREDICTION, TARGET).tolist() == [expected, 0.0]


def test_huber_lies_between_its_two_limits() -> None:
    a, b = rng.normal((4, 50), "a").double(), rng.normal((4, 50), "b").double()
    torch.testing.assert_close(losses.huber(a, b, delta=1e3), losses.mse(a, b) / 2, rtol=1e-12, atol=0)
    narrow = losses.huber(a, b, delta=1e-9) / 1e-9  # delta (|e| - delta / 2)
    torch.testing.assert_close(narrow, losses.l1(a, b), rtol=1e-8, atol=0)
    smooth = torch.nn.functional.smooth_l1_loss(a, b, reduction="none").mean(1)
    torch.testing.assert_close(losses.huber(a, b), smooth, rtol=1e-12, atol=0)


def test_gradients_in_closed_form() -> None:
    prediction = PREDICTION.clone().requires_grad_()
    gradient = {
        name: torch.autograd.grad(losses.get_loss(name)(prediction, TARGET).sum(), prediction)[0]
        for name in losses.LOSSES
    }
    assert gradient["mse"][0].tolist() == [0.0, 0.5, -1.5, 0.25]  # 2 e / n
    assert gradient["l1"][0].tolist() == [0.0, 0.25, -0.25, 0.25]  # sign(e) / n
    assert gradient["huber"][0].tolist() == [0.0, 0.25, -0.25, 0.125]  # e / n, clipped at 1 / n


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("shape", [(2, 3), (2, 4, 8, 8), (3, 4, 2, 5, 5), (1, 1)])
def test_one_number_a_sample_and_each_its_own(name: str, shape: tuple[int, ...]) -> None:
    a, b = rng.normal(shape, "a"), rng.normal(shape, "b")
    together = losses.get_loss(name)(a, b)
    assert together.shape == shape[:1]
    alone = torch.cat([losses.get_loss(name)(a[i : i + 1], b[i : i + 1]) for i in range(len(a))])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_half_precision_is_summed_in_single(name: str) -> None:
    # 300^2 overflows float16, and 4,096 times 0.1 added up in bfloat16 would stop at 32
    large = torch.full((1, 4), 300.0, dtype=torch.float16)
    assert losses.get_loss(name)(large, -large).isfinite().all()
    many = torch.full((1, 4096), 0.1, dtype=torch.bfloat16)
    found = losses.get_loss(name)(many, torch.zeros_like(many))
    expected = losses.get_loss(name)(many.double(), torch.zeros_like(many).double())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    assert losses.get_loss(name)(many, torch.zeros(1, 4096)).dtype == torch.float32
    assert expected.dtype == torch.float64


def test_shapes_are_checked() -> None:
    with pytest.raises(AssertionError, match=r"prediction \(2, 4\), target \(2, 1\)"):
        losses.mse(PREDICTION, TARGET[:, :1])
    with pytest.raises(AssertionError, match="a batch of samples"):
        losses.l1(torch.ones(3), torch.ones(3))


# ---- pseudo-Huber losses and their widths

TABLE = schedules.scaled_linear(1000, 0.00085, 0.012)
RESCALED = schedules.zero_terminal_snr(TABLE)
A, B = (rng.normal((6, 4, 3), "huber", name).double() for name in "ab")
C = torch.tensor([1e-3, 0.01, 0.1, 0.5, 1.0, 100.0], dtype=torch.float64)


def test_it_is_twice_scipys() -> None:
    """scipy: c^2 (sqrt(1 + (e / c)^2) - 1)."""
    theirs = 2 * special.pseudo_huber(C.numpy()[:, None, None], (A - B).numpy()).mean(axis=(1, 2))
    assert losses.pseudo_huber(A, B, C).tolist() == pytest.approx(theirs.tolist(), rel=1e-9)
    assert losses.pseudo_smooth_l1(A, B, C).tolist() == pytest.approx((theirs / C.numpy()).tolist(), rel=1e-9)


def test_the_limits() -> None:
    """A large c: the mean square, to (e / 2c)^2; a small one: 2 c |e|, to c^2; and 2 |e| for smooth L1."""
    large, small = torch.full((6,), 1e6, dtype=torch.float64), torch.full((6,), 1e-9, dtype=torch.float64)
    torch.testing.assert_close(losses.pseudo_huber(A, B, large), losses.mse(A, B), rtol=1e-10, atol=0)
    torch.testing.assert_close(losses.pseudo_huber(A, B, small), 2e-9 * losses.l1(A, B), rtol=1e-7, atol=0)
    torch.testing.assert_close(losses.pseudo_smooth_l1(A, B, small), 2 * losses.l1(A, B), rtol=1e-7, atol=0)
    torch.testing.assert_close(losses.pseudo_smooth_l1(A, B, large), losses.mse(A, B) / 1e6, rtol=1e-10, atol=0)


def test_small_errors_keep_their_digits_in_single_precision() -> None:
    """sqrt(e^2 + c^2) - c would be 0 for e = 1e-4, c = 1 in float32."""
    error = torch.full((1, 8), 1e-4)
    found = losses.pseudo_huber(error, torch.zeros(1, 8), torch.ones(1))
    assert found.item() == pytest.approx(1e-8, rel=1e-5)


def test_the_gradient_is_bounded() -> None:
    """d/de = 2 c e / sqrt(e^2 + c^2), at most 2 c however far off a sample is; 0 at no error."""
    prediction = torch.tensor([[0.0, 0.3, -1.0, 1e6]], dtype=torch.float64, requires_grad=True)
    c = torch.tensor([0.1], dtype=torch.float64)
    (found,) = torch.autograd.grad(losses.pseudo_huber(prediction, torch.zeros_like(prediction), c).sum(), prediction)
    wanted = [2 * 0.1 * e / math.hypot(e, 0.1) / 4 for e in (0.0, 0.3, -1.0, 1e6)]
    assert found[0].tolist() == pytest.approx(wanted, rel=1e-12)


def test_half_precision_is_computed_in_single() -> None:
    large = torch.full((2, 4), 300.0, dtype=torch.float16)
    found = losses.pseudo_huber(large, -large, torch.tensor([0.1, 1.0], dtype=torch.float64))
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([2 * 0.1 * (600 - 0.1), 2 * (600 - 1)], rel=1e-3)


@pytest.mark.parametrize("c", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("schedule", [TABLE, RESCALED], ids=["plain", "rescaled"])
def test_widths_in_plain_numbers(schedule: Schedule, c: float) -> None:
    """As kohya's sd-scripts computes them, at every timestep; finite where no signal is left."""
    found = {name: losses.huber_deltas(name, schedule, c).tolist() for name in losses.HUBER_SCHEDULES}
    rate = -math.log(c) / 1000
    for t, abar in enumerate(schedule.alphas_cumprod.tolist()):
        sigma = math.sqrt((1 - abar) / abar) if abar else math.inf
        assert found["constant"][t] == c
        assert found["exponential"][t] == pytest.approx(math.exp(-rate * t), rel=1e-12)
        assert found["snr"][t] == pytest.approx((1 - c) / (1 + sigma) ** 2 + c, rel=1e-9)
    assert found["exponential"][0] == 1.0
    assert found["snr"][-1] == c if not schedule.has_signal_left else found["snr"][-1] > c or c == 1.0


def test_each_sample_has_the_width_and_the_weight_of_its_own_timestep() -> None:
    t = torch.tensor([0, 10, 100, 500, 900, 999])
    objective = Epsilon(loss="huber", huber_c=0.05, huber_schedule="exponential", weighting="min-snr", gamma=2.0)
    together = build_criterion(objective, TABLE)(A, B, t)
    for row, step in enumerate(t.tolist()):
        c = 0.05 ** (step / 1000)
        abar = TABLE.alphas_cumprod[step].item()
        weight = min(abar / (1 - abar), 2.0) * (1 - abar) / abar
        error = (A - B)[row].numpy()
        assert together[row].item() == pytest.approx(weight * np.mean(2 * c * (np.hypot(error, c) - c)), rel=1e-9)


def test_what_is_not_asked_for_is_not_there() -> None:
    """The default loss is the mean square itself, bit for bit: nothing is multiplied by one."""
    t = torch.zeros(6, dtype=torch.int64)
    assert build_criterion(Epsilon(), TABLE) == Plain(losses.mse)
    assert torch.equal(build_criterion(Velocity(), TABLE)(A.float(), B.float(), t), losses.mse(A.float(), B.float()))
    assert isinstance(build_criterion(Epsilon(loss="smooth-l1"), TABLE), Scheduled)
    assert isinstance(build_criterion(Epsilon(weighting="soft-min-snr"), TABLE), Weighted)


def test_the_defaults_are_kohyas() -> None:
    t = torch.arange(0, 1000, 200)
    default, said = Epsilon(loss="huber"), Epsilon(loss="huber", huber_c=0.1, huber_schedule="snr")
    found = [build_criterion(each, TABLE)(A[:5], B[:5], t) for each in (default, said)]
    assert torch.equal(*found)


@pytest.mark.parametrize("loss", ["mse", "huber", "smooth-l1"])
@pytest.mark.parametrize("weighting", ["none", "min-snr", "soft-min-snr"])
@pytest.mark.parametrize("schedule", [TABLE, RESCALED], ids=["plain", "rescaled"])
def test_loss_and_gradient_are_finite_everywhere(loss: str, weighting: str, schedule: Schedule) -> None:
    objective = Velocity.model_validate({"loss": loss, "weighting": weighting})
    t = torch.arange(1000)
    prediction = rng.normal((1000, 4), "finite").requires_grad_()
    criterion = build_criterion(objective, schedule.to("cpu"))
    found = criterion(prediction, torch.zeros(1000, 4), t)
    (gradient,) = torch.autograd.grad(found.sum(), prediction)
    assert bool(found.isfinite().all()) and bool(gradient.isfinite().all())
    assert found.dtype == torch.float32


def test_compilation_finds_one_graph() -> None:
    """A read of the device, or a table made in the loop, would break it."""
    criterion: Criterion = build_criterion(Epsilon(loss="huber", weighting="min-snr"), TABLE.to("cpu"))

    def cost(prediction: Tensor, target: Tensor, t: Tensor) -> Tensor:
        return criterion(prediction, target, t)

    t = torch.arange(6)
    compiled = torch.compile(cost, backend="eager", fullgraph=True)
    assert torch.equal(compiled(A, B, t), cost(A, B, t))


# ---- timestep weights

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
EVERY = {name: schedules.make_schedule(name, 1000) for name in schedules.SCHEDULES if name != "quadratic"}
EVERY |= {f"{name}, rescaled": schedules.zero_terminal_snr(schedule) for name, schedule in EVERY.items()}
FORMS = ("sample", "epsilon", "v_prediction")


def on_x0(name: str, snr: float, gamma: float) -> float:
    """The weight on the error of x_0, as the papers write it."""
    return min(snr, gamma) if name == "min-snr" else snr * gamma / (snr + gamma)


def expected(name: str, form: str, snr: float, gamma: float) -> float:
    """eps: w / SNR, in the limit 1 at SNR 0; v: w / (SNR + 1)."""
    w = on_x0(name, snr, gamma)
    if form == "epsilon":
        return w / snr if snr > 0 else 1.0
    return w / (snr + 1) if form == "v_prediction" else w


@pytest.mark.parametrize("gamma", [0.3, 1.0, 5.0, 1e3])
@pytest.mark.parametrize("name", losses.WEIGHTINGS)
@pytest.mark.parametrize("curve", EVERY)
def test_weights_are_the_papers_at_every_timestep(curve: str, name: str, gamma: float) -> None:
    alphas = [1.0 - beta for beta in EVERY[curve].betas.tolist()]
    for form in FORMS:
        found = losses.timestep_weights(name, EVERY[curve], gamma, form)
        assert found.dtype == torch.float64 and found.shape == (1000,)
        assert bool(found.isfinite().all()) and bool((found >= 0).all())
        abar = 1.0
        for t, weight in enumerate(found.tolist()):
            abar *= alphas[t]
            assert weight == pytest.approx(expected(name, form, abar / (1 - abar), gamma), rel=1e-9, abs=1e-300), t


@pytest.mark.parametrize("name", losses.WEIGHTINGS)
def test_zero_terminal_snr_has_its_limits(name: str) -> None:
    rescaled = EVERY["scaled_linear, rescaled"]
    last = {form: losses.timestep_weights(name, rescaled, 5.0, form)[-1].item() for form in FORMS}
    assert last == {"sample": 0.0, "epsilon": 1.0, "v_prediction": 0.0}


def test_hardly_any_noise_is_finite_too() -> None:
    """A beta so small that abar_1 is 1 as a float64: SNR is infinite, its weights are not."""
    schedule = Schedule(torch.tensor([1e-20, 0.5, 1.0], dtype=torch.float64))
    assert schedule.snr[0].isinf()
    for name in losses.WEIGHTINGS:
        first = {form: losses.timestep_weights(name, schedule, 5.0, form)[0].item() for form in FORMS}
        assert first == {"sample": 5.0, "epsilon": 0.0, "v_prediction": 0.0}


@pytest.mark.parametrize("name", losses.WEIGHTINGS)
def test_the_three_forms_are_one_objective(name: str) -> None:
    """The same wrong answer, said in x_0, eps and v by the process' own conversions, costs the same."""
    schedule, t = schedules.from_diffusers(SD), torch.arange(1000)
    x0, eps, wrong = (rng.normal((1000, 1, 2, 2), "weighting", part).double() for part in ("x0", "eps", "wrong"))
    xt = diffusion.add_noise(schedule, x0, eps, t)
    targets = {"sample": x0, "epsilon": eps, "v_prediction": diffusion.velocity(schedule, x0, eps, t)}
    wrong_eps = diffusion.eps_from_x0(schedule, xt, wrong, t)
    said = {"sample": wrong, "epsilon": wrong_eps, "v_prediction": diffusion.velocity(schedule, wrong, wrong_eps, t)}
    costs = {}
    for objective in (Sample, Epsilon, Velocity):
        form = objective.predicts
        criterion = build_criterion(objective.model_validate({"weighting": name, "gamma": 5.0}), schedule)
        costs[form] = criterion(said[form], targets[form], t)
    torch.testing.assert_close(costs["epsilon"], costs["sample"], rtol=1e-9, atol=0)
    torch.testing.assert_close(costs["v_prediction"], costs["sample"], rtol=1e-9, atol=0)


def by_diffusers(snr: Tensor, form: str, gamma: float) -> Tensor:
    """As diffusers' examples/text_to_image writes it."""
    weights = torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
    return weights / snr if form == "epsilon" else weights / (snr + 1)


@pytest.mark.parametrize("form", ["epsilon", "v_prediction"])
def test_min_snr_is_that_of_diffusers(form: str) -> None:
    scheduler, t = DDPMScheduler.from_config(SD), torch.arange(1000)
    snr = compute_snr(scheduler, t)
    ours = schedules.from_diffusers(SD)
    torch.testing.assert_close(ours.snr.float(), snr, rtol=1e-4, atol=0)
    found = losses.timestep_weights("min-snr", ours, 5.0, form).float()
    torch.testing.assert_close(found, by_diffusers(snr, form, 5.0), rtol=1e-4, atol=0)


def test_tables_come_from_the_final_alphas() -> None:
    """Taken before the rescaling, as happened elsewhere, v weights are 1.15 and 4.8 times too large at 500 and 900."""
    before = schedules.from_diffusers(SD)
    final = schedules.from_diffusers(SD | {"rescale_betas_zero_snr": True})
    objective = Velocity(weighting="min-snr", zero_terminal_snr=True)
    ones, t = torch.ones(1000, 1, dtype=torch.float64), torch.arange(1000)
    found = build_criterion(objective, final)(ones, 0 * ones, t)
    assert torch.equal(found, losses.timestep_weights("min-snr", final, 5.0, "v_prediction"))
    early = losses.timestep_weights("min-snr", before, 5.0, "v_prediction") / found
    assert early[500].item() == pytest.approx(1.15, abs=0.01)
    assert early[900].item() == pytest.approx(4.8, abs=0.05)


@pytest.mark.parametrize(("name", "gamma"), [("min-snr", 5.0), ("soft-min-snr", 4.0)])
@pytest.mark.parametrize("objective", [Epsilon, Velocity, Sample])
def test_gamma_is_the_papers_unless_said(objective: type[Objective], name: str, gamma: float) -> None:
    schedule, t = EVERY["linear"], torch.tensor([0, 100, 999])
    ones = torch.ones(3, 4)
    found = build_criterion(objective.model_validate({"weighting": name}), schedule)(ones, 0 * ones, t)
    abar = schedule.alphas_cumprod[t]
    wanted = [expected(name, objective.predicts, a / (1 - a), gamma) for a in abar.tolist()]
    assert found.tolist() == pytest.approx(wanted, rel=1e-6)
    assert found.dtype == torch.float32


def test_soft_is_half_of_hard_at_gamma_and_meets_it_far_away() -> None:
    abar = torch.tensor([1 - 1e-9, 5 / 6, 1e-9], dtype=torch.float64)  # SNR 1e9, 5, 1e-9
    alphas = torch.cat([abar[:1], abar[1:] / abar[:-1]])
    schedule = Schedule(1.0 - alphas)
    soft, hard = (losses.timestep_weights(name, schedule, 5.0, "sample") for name in ("soft-min-snr", "min-snr"))
    assert (soft / hard).tolist() == pytest.approx([1.0, 0.5, 1.0], rel=1e-7)
    assert math.isclose(hard[1].item(), 5.0, rel_tol=1e-9)
