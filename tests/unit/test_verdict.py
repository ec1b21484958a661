"""The gap's interval is Welch's, and each word needs numbers that chance does not explain."""

import numpy as np
import pytest
from scipy import stats

from train.validation import (
    EarlyStopping,
    Interval,
    ValidationResult,
    diagnose,
    diagnosis_metrics,
    generalization_gap,
    welch_difference,
)

DRAW = np.random.default_rng(0)
BASE = {"held-out": DRAW.normal(1.0, 0.3, 20), "train": DRAW.normal(1.0, 0.3, 30)}


def look(step: int, held_out: float, train: float, noise: float = 0.005) -> ValidationResult:
    """Losses that changed by so much on each side since the base."""
    draw = np.random.default_rng(step + 1)
    moved = {"held-out": held_out, "train": train} if step else {"held-out": 0.0, "train": 0.0}
    jitter = noise if step else 0.0
    noises = {side: draw.normal(0, jitter, len(BASE[side])) for side in BASE}
    return ValidationResult(step, {s: (BASE[s] + moved[s] + noises[s] - noises[s].mean()).tolist() for s in BASE})


def progress(*looks: ValidationResult) -> EarlyStopping:
    found = EarlyStopping("q").after(look(0, 0, 0), on_grid=True)
    for each in looks:
        found = found.after(each, on_grid=True)
    return found


def test_the_interval_of_two_groups_is_welchs() -> None:
    one, other = DRAW.normal(0.3, 1.0, 9), DRAW.normal(0.0, 3.0, 25)
    found = welch_difference(one, other)
    want = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    assert found.mean == pytest.approx(one.mean() - other.mean())
    assert (found.low, found.high) == (pytest.approx(want.low), pytest.approx(want.high))


def test_welch_covers_the_truth_in_95_of_100() -> None:
    """Unequal groups of unequal spread, 2000 draws: 95 +- 0.5 %."""
    intervals = [welch_difference(DRAW.normal(0.5, 1.0, 6), DRAW.normal(0.0, 4.0, 18)) for _ in range(2000)]
    assert 0.93 < sum(each.low <= 0.5 <= each.high for each in intervals) / 2000 < 0.97


def test_welch_without_spread_or_with_one_picture() -> None:
    assert welch_difference(np.ones(3), np.zeros(4)) == Interval(1.0, 1.0, 1.0)
    assert welch_difference(np.ones(1), np.zeros(4)) == Interval(1.0, float("-inf"), float("inf"))


def test_the_gap_is_the_difference_of_changes_not_of_losses() -> None:
    """Held-out pictures that are harder to begin with are no sign of memorising."""
    harder = ValidationResult(0, {"held-out": [5.0, 6.0, 7.0], "train": [1.0, 2.0, 3.0]})
    now = ValidationResult(9, {"held-out": [4.9, 5.9, 6.9], "train": [0.9, 1.9, 2.9]})
    gap = generalization_gap(now, harder)
    assert gap is not None and gap.mean == pytest.approx(0.0) and gap.high < 1e-9
    assert generalization_gap(now, None) is None and generalization_gap(now, now) is None
    assert generalization_gap(ValidationResult(9, {"train": [1.0]}), harder) is None


def test_it_learns() -> None:
    now = look(10, -0.1, -0.1)
    verdict = diagnose(now, progress(now))
    assert verdict.word == "learns"
    assert "-0.1000, 95 % interval -0.1" in verdict.because and "training" not in verdict.because


def test_it_learns_and_partly_by_heart() -> None:
    now = look(10, -0.1, -0.2)
    verdict = diagnose(now, progress(now))
    assert verdict.word == "learns"
    assert "training loss fell 0.1" in verdict.because


def test_it_memorises_from_the_start() -> None:
    now = look(10, 0.1, -0.2)
    verdict = diagnose(now, progress(now))
    assert verdict.word == "memorises"
    assert "since the base (+0.1" in verdict.because


def test_it_memorises_since_its_best_step() -> None:
    """Still better than the base, but falling back while the training side goes on."""
    best, now = look(10, -0.2, -0.2), look(20, -0.1, -0.4)
    verdict = diagnose(now, progress(best, now))
    assert verdict.word == "memorises"
    assert "since step 10 (+0.1" in verdict.because


def test_a_loss_that_both_sides_share_is_no_memorising() -> None:
    best, now = look(10, -0.2, -0.2), look(20, -0.1, -0.1)
    assert diagnose(now, progress(best, now)).word == "learns"


def test_it_gets_worse() -> None:
    now = look(10, 0.1, 0.1)
    assert diagnose(now, progress(now)).word == "gets worse"
    assert "lower --learning-rate" in diagnose(now, progress(now)).because


def test_it_cannot_tell_yet() -> None:
    now = look(10, -0.001, -0.001, noise=0.05)
    assert diagnose(now, progress(now)).word == "cannot tell yet"
    train_only = ValidationResult(10, {"train": BASE["train"].tolist()})
    unknown = [
        diagnose(train_only, EarlyStopping()),
        diagnose(now, EarlyStopping()),
        diagnose(look(0, 0, 0), progress()),
    ]
    assert {each.word for each in unknown} == {"cannot tell yet"} and len({each.because for each in unknown}) == 3


def test_what_is_written_of_a_look() -> None:
    now = look(10, -0.1, -0.2)
    found = diagnosis_metrics(now, progress(now))
    assert found.keys() == {"change", "gap", "verdict"}
    assert diagnosis_metrics(look(0, 0, 0), progress()) == {"change": {}}
