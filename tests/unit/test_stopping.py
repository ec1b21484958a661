"""Patience by a paired test, the best step, and that both come back from JSON bit for bit."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from train.validation import MIN_FOR_T_TEST, EarlyStopping, ValidationResult

SPREAD = np.random.default_rng(3).normal(1.0, 0.5, 16)  # pictures differ a hundred times more than networks do


def look(step: int, change: float, noise: float = 0.001, side: str = "held-out", count: int = 16) -> ValidationResult:
    """Every picture's loss moved by `change`, a little more or less."""
    jitter = np.random.default_rng(step).normal(0.0, noise, count)
    return ValidationResult(step, {side: (SPREAD[:count] + change + jitter - jitter.mean()).tolist()})


def told(*looks: ValidationResult) -> EarlyStopping:
    progress = EarlyStopping("these")
    for each in looks:
        progress = progress.after(each, on_grid=True)
    return progress


def test_a_fall_that_chance_explains_is_no_progress() -> None:
    base, first = look(0, 0.0), look(10, -0.1)
    progress = told(base, first, look(20, -0.1001), look(30, -0.1002))
    assert progress.waited == 2
    assert progress.reference == first
    assert progress.best is not None and progress.best.step == 30, "the lowest mean is the best all the same"
    assert progress.out_of_patience(2) and not progress.out_of_patience(3)


def test_slow_progress_adds_up_until_it_shows() -> None:
    """Each fall alone is lost in the noise of its look; against the reference they are not."""
    progress = told(look(0, 0.0))
    longest = 0
    for number in range(1, 40):
        progress = progress.after(look(number, -0.0002 * number), on_grid=True)
        longest = max(longest, progress.waited)
    assert 0 < longest <= 4
    assert not progress.out_of_patience(5)


def test_pairing_sees_what_means_hide() -> None:
    """A fall of 0.01 under losses that spread by 0.5: surely progress."""
    assert told(look(0, 0.0), look(10, -0.01)).waited == 0


def test_getting_worse_uses_up_patience() -> None:
    progress = told(look(0, 0.0), look(10, -0.1), look(20, -0.05), look(30, 0.0))
    assert progress.out_of_patience(2)
    assert progress.chosen is not None and progress.chosen.step == 10
    words = progress.explain(2, 30)
    assert all(part in words for part in ("step 30", "step 10", "2 validations", "--validation.patience 2"))


def test_never_better_than_the_base() -> None:
    progress = told(look(0, 0.0), look(10, 0.1))
    assert progress.out_of_patience(1)
    assert "over the base in 1 validation " in progress.explain(1, 10)
    assert progress.chosen is not None and progress.chosen.step == 10, "the base itself is nothing to export"


def test_no_patience_never_ends() -> None:
    progress = told(look(0, 0.0), *(look(step, 0.1) for step in range(1, 50)))
    assert not progress.out_of_patience(0)
    assert not EarlyStopping().out_of_patience(1)


def test_training_pictures_alone_stop_nothing() -> None:
    progress = told(*(look(step, 0.1 * step, side="train") for step in range(5)))
    assert progress.waited == 4 and not progress.out_of_patience(1)
    assert progress.best is not None and progress.best.judged_by == "train"


@pytest.mark.parametrize(("count", "waited"), [(MIN_FOR_T_TEST - 1, 0), (MIN_FOR_T_TEST, 1), (1, 0)])
def test_too_few_pictures_for_a_test_compare_means(count: int, waited: int) -> None:
    assert told(look(0, 0.0, noise=0.2, count=count), look(10, -0.01, noise=0.2, count=count)).waited == waited


def test_the_look_after_the_last_step_counts_for_the_choice_alone() -> None:
    """A longer run does not look at that step: what it will do must not depend on it."""
    before = told(look(0, 0.0), look(10, -0.1), look(20, -0.05))
    after = before.after(look(25, -0.2), on_grid=False)
    assert after.chosen is not None and after.chosen.step == 25
    assert (after.waited, after.best, after.reference) == (before.waited, before.best, before.reference)
    assert after.continued() == before
    worse = before.after(look(25, 0.2), on_grid=False)
    assert worse.chosen is not None and worse.chosen.step == 10


def test_the_earlier_of_equals_and_no_nan_is_best() -> None:
    same = look(10, -0.1)
    progress = told(
        look(0, 0.0),
        same,
        ValidationResult(20, same.per_picture),
        ValidationResult(30, {"held-out": [float("nan")] * 16}),
    )
    assert progress.best == same
    assert progress.waited == 2
    assert told(look(0, 0.0), ValidationResult(10, {"held-out": [float("nan")] * 16})).best is None


def test_changes_since_the_base_and_the_best() -> None:
    progress = told(look(0, 0.0), look(10, -0.1), look(20, -0.05))
    now = look(20, -0.05)
    assert progress.since_base(now)["held-out"].mean == pytest.approx(-0.05)
    since_best = progress.since_best(now)
    assert since_best is not None and since_best.mean == pytest.approx(0.05) and since_best.low > 0
    assert progress.since_best(look(10, -0.1)) is None
    assert EarlyStopping().since_base(now) == {}


def test_json_keeps_every_bit() -> None:
    progress = told(look(0, 0.1), look(10, -1 / 3), look(20, 0.3)).after(look(25, 0.7), on_grid=False)
    assert EarlyStopping.from_json(json.loads(json.dumps(asdict(progress), sort_keys=True))) == progress
    assert EarlyStopping.from_json(json.loads(json.dumps(asdict(EarlyStopping())))) == EarlyStopping()
    assert EarlyStopping.from_json(None) == EarlyStopping(), "a checkpoint from before there was any"


def test_other_questions_are_not_compared() -> None:
    progress = told(look(0, 0.0), look(10, -0.1))
    assert progress.about("these") is progress
    assert progress.about("others") == EarlyStopping("others")
