"""Early stopping by a paired test, the best step, and a diagnosis that chance does not explain."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from train.validation import (
    MIN_FOR_T_TEST,
    EarlyStopping,
    Interval,
    ValidationResult,
    diagnose,
    diagnosis_metrics,
    generalization_gap,
    welch_difference,
)

SPREAD = np.random.default_rng(3).normal(1.0, 0.5, 16)  # images differ a hundred times more than networks do


def result(step: int, change: float, noise: float = 0.001, side: str = "held-out", count: int = 16) -> ValidationResult:
    """Every image's loss moved by `change`, a little more or less."""
    jitter = np.random.default_rng(step).normal(0.0, noise, count)
    return ValidationResult(step, {side: (SPREAD[:count] + change + jitter - jitter.mean()).tolist()})


def after(*looks: ValidationResult) -> EarlyStopping:
    progress = EarlyStopping("these")
    for each in looks:
        progress = progress.after(each, on_grid=True)
    return progress


def test_a_fall_that_chance_explains_is_no_progress() -> None:
    base, first = result(0, 0.0), result(10, -0.1)
    progress = after(base, first, result(20, -0.1001), result(30, -0.1002))
    assert progress.waited == 2
    assert progress.reference == first
    assert progress.best is not None and progress.best.step == 30, "the lowest mean is the best all the same"
    assert progress.out_of_patience(2) and not progress.out_of_patience(3)


def test_slow_progress_adds_up_until_it_shows() -> None:
    """Each fall alone is lost in the noise of its result; against the reference they are not."""
    progress = after(result(0, 0.0))
    longest = 0
    for number in range(1, 40):
        progress = progress.after(result(number, -0.0002 * number), on_grid=True)
        longest = max(longest, progress.waited)
    assert 0 < longest <= 4
    assert not progress.out_of_patience(5)


def test_pairing_sees_what_means_hide() -> None:
    """A fall of 0.01 under losses that spread by 0.5: surely progress."""
    assert after(result(0, 0.0), result(10, -0.01)).waited == 0


def test_getting_worse_uses_up_patience() -> None:
    progress = after(result(0, 0.0), result(10, -0.1), result(20, -0.05), result(30, 0.0))
    assert progress.out_of_patience(2)
    assert progress.chosen is not None and progress.chosen.step == 10
    words = progress.explain(2, 30)
    assert all(part in words for part in ("step 30", "step 10", "2 validations", "--validation.patience 2"))


def test_never_better_than_the_base() -> None:
    progress = after(result(0, 0.0), result(10, 0.1))
    assert progress.out_of_patience(1)
    assert "over the base in 1 validation " in progress.explain(1, 10)
    assert progress.chosen is not None and progress.chosen.step == 10, "the base itself is nothing to export"


def test_no_patience_never_ends() -> None:
    progress = after(result(0, 0.0), *(result(step, 0.1) for step in range(1, 50)))
    assert not progress.out_of_patience(0)
    assert not EarlyStopping().out_of_patience(1)


def test_training_pictures_alone_stop_nothing() -> None:
    progress = after(*(result(step, 0.1 * step, side="train") for step in range(5)))
    assert progress.waited == 4 and not progress.out_of_patience(1)
    assert progress.best is not None and progress.best.judged_by == "train"


@pytest.mark.parametrize(("count", "waited"), [(MIN_FOR_T_TEST - 1, 0), (MIN_FOR_T_TEST, 1), (1, 0)])
def test_too_few_pictures_for_a_test_compare_means(count: int, waited: int) -> None:
    assert after(result(0, 0.0, noise=0.2, count=count), result(10, -0.01, noise=0.2, count=count)).waited == waited


def test_the_look_after_the_last_step_counts_for_the_choice_alone() -> None:
    """A longer run is not validated at that step: what it will do must not depend on it."""
    before = after(result(0, 0.0), result(10, -0.1), result(20, -0.05))
    then = before.after(result(25, -0.2), on_grid=False)
    assert then.chosen is not None and then.chosen.step == 25
    assert (then.waited, then.best, then.reference) == (before.waited, before.best, before.reference)
    assert then.continued() == before
    worse = before.after(result(25, 0.2), on_grid=False)
    assert worse.chosen is not None and worse.chosen.step == 10


def test_the_earlier_of_equals_and_no_nan_is_best() -> None:
    same = result(10, -0.1)
    progress = after(
        result(0, 0.0),
        same,
        ValidationResult(20, same.per_picture),
        ValidationResult(30, {"held-out": [float("nan")] * 16}),
    )
    assert progress.best == same
    assert progress.waited == 2
    assert after(result(0, 0.0), ValidationResult(10, {"held-out": [float("nan")] * 16})).best is None


def test_changes_since_the_base_and_the_best() -> None:
    progress = after(result(0, 0.0), result(10, -0.1), result(20, -0.05))
    now = result(20, -0.05)
    assert progress.since_base(now)["held-out"].mean == pytest.approx(-0.05)
    since_best = progress.since_best(now)
    assert since_best is not None and since_best.mean == pytest.approx(0.05) and since_best.low > 0
    assert progress.since_best(result(10, -0.1)) is None
    assert EarlyStopping().since_base(now) == {}


def test_json_keeps_every_bit() -> None:
    progress = after(result(0, 0.1), result(10, -1 / 3), result(20, 0.3)).after(result(25, 0.7), on_grid=False)
    assert EarlyStopping.from_json(json.loads(json.dumps(asdict(progress), sort_keys=True))) == progress
    assert EarlyStopping.from_json(json.loads(json.dumps(asdict(EarlyStopping())))) == EarlyStopping()
    assert EarlyStopping.from_json(None) == EarlyStopping(), "a checkpoint from before there was any"


def test_other_questions_are_not_compared() -> None:
    progress = after(result(0, 0.0), result(10, -0.1))
    assert progress.about("these") is progress
    assert progress.about("others") == EarlyStopping("others")


DRAW = np.random.default_rng(0)
BASE = {"held-out": DRAW.normal(1.0, 0.3, 20), "train": DRAW.normal(1.0, 0.3, 30)}


def moved(step: int, held_out: float, train: float, noise: float = 0.005) -> ValidationResult:
    """Losses that changed by so much on each side since the base."""
    draw = np.random.default_rng(step + 1)
    moved = {"held-out": held_out, "train": train} if step else {"held-out": 0.0, "train": 0.0}
    jitter = noise if step else 0.0
    noises = {side: draw.normal(0, jitter, len(BASE[side])) for side in BASE}
    return ValidationResult(step, {s: (BASE[s] + moved[s] + noises[s] - noises[s].mean()).tolist() for s in BASE})


def history(*looks: ValidationResult) -> EarlyStopping:
    found = EarlyStopping("q").after(moved(0, 0, 0), on_grid=True)
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
    """Held-out images that are harder to begin with are no sign of memorising."""
    harder = ValidationResult(0, {"held-out": [5.0, 6.0, 7.0], "train": [1.0, 2.0, 3.0]})
    now = ValidationResult(9, {"held-out": [4.9, 5.9, 6.9], "train": [0.9, 1.9, 2.9]})
    gap = generalization_gap(now, harder)
    assert gap is not None and gap.mean == pytest.approx(0.0) and gap.high < 1e-9
    assert generalization_gap(now, None) is None and generalization_gap(now, now) is None
    assert generalization_gap(ValidationResult(9, {"train": [1.0]}), harder) is None


def test_it_learns() -> None:
    now = moved(10, -0.1, -0.1)
    verdict = diagnose(now, history(now))
    assert verdict.word == "learns"
    assert "-0.1000, 95 % interval -0.1" in verdict.because and "training" not in verdict.because


def test_it_learns_and_partly_by_heart() -> None:
    now = moved(10, -0.1, -0.2)
    verdict = diagnose(now, history(now))
    assert verdict.word == "learns"
    assert "training loss fell 0.1" in verdict.because


def test_it_memorises_from_the_start() -> None:
    now = moved(10, 0.1, -0.2)
    verdict = diagnose(now, history(now))
    assert verdict.word == "memorises"
    assert "since the base (+0.1" in verdict.because


def test_it_memorises_since_its_best_step() -> None:
    """Still better than the base, but falling back while the training side goes on."""
    best, now = moved(10, -0.2, -0.2), moved(20, -0.1, -0.4)
    verdict = diagnose(now, history(best, now))
    assert verdict.word == "memorises"
    assert "since step 10 (+0.1" in verdict.because


def test_a_loss_that_both_sides_share_is_no_memorising() -> None:
    best, now = moved(10, -0.2, -0.2), moved(20, -0.1, -0.1)
    assert diagnose(now, history(best, now)).word == "learns"


def test_it_gets_worse() -> None:
    now = moved(10, 0.1, 0.1)
    assert diagnose(now, history(now)).word == "gets worse"
    assert "lower --learning-rate" in diagnose(now, history(now)).because


def test_it_cannot_tell_yet() -> None:
    now = moved(10, -0.001, -0.001, noise=0.05)
    assert diagnose(now, history(now)).word == "cannot tell yet"
    train_only = ValidationResult(10, {"train": BASE["train"].tolist()})
    unknown = [
        diagnose(train_only, EarlyStopping()),
        diagnose(now, EarlyStopping()),
        diagnose(moved(0, 0, 0), history()),
    ]
    assert {each.word for each in unknown} == {"cannot tell yet"} and len({each.because for each in unknown}) == 3


def test_what_is_written_of_a_look() -> None:
    now = moved(10, -0.1, -0.2)
    found = diagnosis_metrics(now, history(now))
    assert found.keys() == {"change", "gap", "verdict"}
    assert diagnosis_metrics(moved(0, 0, 0), history()) == {"change": {}}
