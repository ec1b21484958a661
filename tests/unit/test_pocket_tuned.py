"""What a fine-tune of the base did: the style gap's ends and middle, its interval, the twenty nouns, a wrong path."""

from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError
from tools.pocket import tuned

Rows = tuned.Rows


@pytest.fixture
def sides() -> tuple[Rows, Rows]:
    """Descriptors of 20 nouns of 10 seeds as the base draws them, and of 300 creatures elsewhere."""
    rng = np.random.default_rng(3)
    return rng.normal(0.2, 0.05, (200, 12)), rng.normal(0.5, 0.08, (300, 12))


def test_the_gap_is_0_as_base_and_1_as_the_creatures(sides: tuple[Rows, Rows]) -> None:
    base, creatures = sides
    same_style = np.random.default_rng(4).normal(0.5, 0.08, base.shape)
    assert tuned.gap_closed(base, base, creatures) == 0.0
    assert tuned.gap_closed(base, same_style, creatures) == pytest.approx(1.0, abs=0.01)
    assert tuned.gap_closed(base, base - 0.2, creatures) < 0, "away from the creatures is less than nothing"


def test_half_way_is_half_of_the_means_way(sides: tuple[Rows, Rows]) -> None:
    base, creatures = sides
    shift = creatures.mean(0) - base.mean(0)
    assert tuned.way_gone(base, base + 0.5 * shift, creatures) == pytest.approx(0.5)
    assert tuned.way_gone(base, base, creatures) == 0.0


def test_the_interval_is_of_nouns(sides: tuple[Rows, Rows]) -> None:
    base, creatures = sides
    half_the_nouns = base.copy().reshape(10, 20, 12)
    half_the_nouns[:, ::2] += creatures.mean(0) - base.mean(0)
    after = half_the_nouns.reshape(200, 12)
    assert tuned.half_interval(base, after, creatures) > 0.1, "nouns differ, so twenty of them leave it open"
    alike = base + (creatures.mean(0) - base.mean(0)) / 2
    assert tuned.half_interval(base, alike, creatures) < 0.05


def test_the_nouns_are_twenty_of_the_cards() -> None:
    assert len(set(tuned.unseen_nouns())) == tuned.NOUNS
    assert set(tuned.unseen_nouns()) <= set(tuned.scored_names())


def test_a_wrong_path_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--score-tuned: .*no such file; allowed: a finished run's folder or a LoRA"):
        tuned.score_tuned(tmp_path)
