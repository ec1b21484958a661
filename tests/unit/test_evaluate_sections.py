"""Each section's numbers against ones worked out otherwise, on features that are easy to see through."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from data.errors import InputError
from data.metrics.distances import gaussian_kernel, unbiased_mmd
from data.metrics.statistics import Interval
from infer.evaluation import adherence, command, composition, diversity, memorization, section, style
from infer.evaluation.evidence import (
    DenoisingLosses,
    Evidence,
    Features,
    NameMixes,
    NearDuplicates,
    Pairs,
    ProbeAccuracy,
    ProbeLabels,
    PromptedPairs,
    TypeGrid,
)
from infer.evaluation.section import Number, Section
from tests import planted
from tests.errors import error_of
from tests.planted import ALARMS, FAULTS, Pool


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def seen(rng: np.random.Generator, count: int, shift: float = 0.0, width: int = 6) -> Features:
    rows = rng.normal(shift, 1.0, (count, width))
    return Features(rows, rows, rows)


def shown(rng: np.random.Generator, prompts: int, each: int = 1, base: float = 0.0, tuned: float = 0.0) -> Pairs:
    names = np.repeat([f"p{number}" for number in range(prompts)], each)
    return Pairs(names, seen(rng, len(names), base), seen(rng, len(names), tuned))


def evidence(rng: np.random.Generator, **parts: Any) -> Evidence:
    """A base at 0, training pictures at 2, a tuned model at 1."""
    drawn = shown(rng, 12, tuned=1.0)
    texts = rng.normal(size=(12, 6))
    asked = PromptedPairs(drawn, np.unique(drawn.prompts), texts)
    plain: dict[str, Any] = {"train": seen(rng, 40, 2.0), "held_out": seen(rng, 20, 2.0), "copies": NearDuplicates()}
    plain |= {"captions": asked, "plain": asked, "variety": shown(rng, 4, 5)}
    return Evidence(**(plain | parts))


def by_name(found: Section) -> dict[str, Number]:
    return {number.name: number for number in found.numbers}


# ---- style


@pytest.mark.parametrize("kernel", [style.polynomial_kernel, gaussian_kernel])
def test_a_distance_of_some_rows_is_the_distance_of_these_rows(rng: np.random.Generator, kernel: style.Kernel) -> None:
    real, drawn = rng.normal(size=(30, 5)), rng.normal(0.5, 1.0, (20, 5))
    away = style.Distance(real, drawn, kernel)
    for mask in (np.ones(20, bool), np.arange(20) % 3 > 0):
        assert away(mask) == pytest.approx(unbiased_mmd(real, drawn[mask], kernel), rel=1e-9)


def test_half_of_the_way(rng: np.random.Generator) -> None:
    """Means at 0, 1 and 2; the tuned pictures are one step on, and the base's descriptors are where its way begins."""
    found = evidence(rng)
    nearer, along = style.style_axis(found.train, found.captions.pairs)
    assert nearer.mean() == pytest.approx(0.5, abs=0.15)
    assert along(found.captions.pairs.base.style).mean() == pytest.approx(0.0, abs=1e-9)
    assert along(found.train.style).mean() == pytest.approx(1.0, abs=1e-9)
    numbers = by_name(style.section(found))
    closed = numbers["style gap closed, descriptors"]
    assert 0 < closed.value < 1 and closed.said == "closer than the base"
    assert numbers["prompts at which tuned is nearer in style"].value > 0.8
    away = numbers["kernel distance of descriptors"]
    assert away.floor is not None and away.base is not None and away.floor < away.value < away.base


def test_the_win_is_of_no_ones_choosing(rng: np.random.Generator) -> None:
    """Base and tuned exchanged give the same number with the other sign: no model is at home."""
    found = evidence(rng)
    there = found.captions.pairs
    back = Pairs(there.prompts, there.tuned, there.base)
    one, _ = style.style_axis(found.train, there)
    other, _ = style.style_axis(found.train, back)
    assert np.sign(one) == pytest.approx(-np.sign(other))


def test_a_base_in_the_style_leaves_no_gap(rng: np.random.Generator) -> None:
    train = seen(rng, 40)
    rows = Features(*(np.tile(each, (1, 1)) for each in vars(train).values())).take(range(12))
    names = np.array([f"p{number}" for number in range(12)])
    number = style.gap_closed(
        style.Gap(*(style.Distance(train.style, side.style) for side in (rows, seen(rng, 12))), floor=9.0), "x",
        Pairs(names, rows, rows),
    )  # fmt: skip
    assert np.isnan(number.value) and number.said.startswith("there is no gap")


@pytest.mark.parametrize(
    ("moved", "noise", "said"),
    [(0.0, 0.02, "no effect"), (1.0, 0.02, "it changes the style"), (0.1, 1.0, "not known")],
)
def test_what_a_trigger_word_does(rng: np.random.Generator, moved: float, noise: float, said: str) -> None:
    before = seen(rng, 20)
    rows = before.style + moved + noise * rng.normal(size=before.style.shape)
    pair = Pairs(np.array([f"p{number}" for number in range(20)]), before, Features(rows, rows, rows))
    number = style.trigger_effect(pair, lambda matrix: matrix.mean(axis=1), 0)
    assert number.said.startswith(said)


# ---- prompts


def test_own_prompts_are_found_and_shuffled_ones_are_not(rng: np.random.Generator) -> None:
    texts = rng.normal(size=(20, 8))
    names = np.array([f"p{number:02d}" for number in range(20)])
    near = texts + 0.1 * rng.normal(size=texts.shape)
    good, bad = (Features(rows, rows, rows) for rows in (near, rng.permutation(texts)))
    asked = PromptedPairs(Pairs(names, good, bad), names, texts)
    found = adherence.measure_both(asked, "x", 0)
    assert found[0].base == 1.0 and found[0].value < 0.3 and found[0].floor == 1 / 20
    assert found[1].said == "worse than the base"
    assert adherence.shuffle_test(asked, good, 0) == pytest.approx(1 / 1001)
    assert adherence.shuffle_test(asked, bad, 0) > 0.01
    kinds = [alarm.kind for alarm in adherence.section(evidence(rng, plain=asked)).alarms]
    assert kinds == ["prompts-ignored", "prompts-half-lost"]


# ---- types on objects


def grid(rng: np.random.Generator, kinds: np.ndarray, things: np.ndarray) -> TypeGrid:
    """PromptedPairs: 2 types on 3 objects, four times."""
    asked = [(kind, thing) for kind in ("fire", "water") for thing in ("bus", "cap", "tent")] * 4
    types, objects = (np.array(column) for column in zip(*asked, strict=True))
    wrong = ProbeLabels(np.full(24, "fire"), np.full(24, "bus"))
    tuned = ProbeLabels(np.where(kinds, types, "none"), np.where(things, objects, "none"), rng.normal(0.5, 0.1, 24))
    return TypeGrid(types, objects, wrong, tuned, (ProbeAccuracy("types", 50, 53, 10),))


def test_both_right_against_the_product_of_the_margins(rng: np.random.Generator) -> None:
    """Type and object right in the same half of the pictures, then in opposite halves."""
    half = np.arange(24) >= 12
    numbers = by_name(composition.section(evidence(rng, grid=grid(rng, half, half))))
    assert [numbers[f"{name} right"].value for name in ("type", "object", "both")] == [0.5, 0.5, 0.5]
    together = numbers["both right less the product of the margins (0.250), tuned"]
    assert together.value == 0.25 and together.said == "type and object go together"
    assert numbers["both right"].base == pytest.approx(1 / 6)
    numbers = by_name(composition.section(evidence(rng, grid=grid(rng, half, ~half))))
    apart = numbers["both right less the product of the margins (0.250), tuned"]
    assert apart.value == -0.25 and apart.said == "one at the cost of the other"
    assert numbers["accuracy of the probe for types, held out"].value == pytest.approx(50 / 53)


def test_no_types_no_numbers(rng: np.random.Generator) -> None:
    found = composition.section(evidence(rng))
    assert not found.numbers and len(found.notes) == 1


def test_who_is_taken_for_whom(rng: np.random.Generator) -> None:
    confusion = composition.tables(grid(rng, np.arange(24) % 2 == 0, np.ones(24, bool)))[0]
    assert list(confusion.head) == ["asked", "fire", "water", "none"]
    assert [list(row) for row in confusion.rows] == [["fire", 8, 0, 4], ["water", 0, 4, 8]]


def test_a_mix_shows_both_names() -> None:
    likeness = np.array([[0.9, 0.8, 0.1], [0.9, 0.1, 0.8]])
    mixes = NameMixes(np.array(["a mix", "b mix"]), np.array([[1, 0], [0, 1]]), likeness[::-1], likeness)
    found = composition.mixed(mixes)
    assert composition.in_top_two(likeness, mixes.pairs).tolist() == [True, False]
    assert found[0].value == 0.5 and found[0].floor == pytest.approx(1 / 3)
    assert found[1].base == pytest.approx(0.45)


def test_a_probe_learns_types_and_says_how_well(rng: np.random.Generator) -> None:
    centres = {"fire": 3.0, "water": -3.0}
    sides = []
    for count in (40, 20):
        types = [("fire", "water")[place % 2] for place in range(count)]
        rows = rng.normal(size=(count, 5)) + np.array([[centres[kind]] for kind in types])
        sides.append((Features(rows, rows, rows), types))
    probe = composition.train_type_probe(*sides[0])
    assert probe is not None and composition.train_type_probe(sides[0][0], [None] * 40) is None
    found = composition.type_accuracy(probe, *sides[1])
    assert found is not None and (found.right, found.trials, found.classes) == (20, 20, 2)
    assert composition.type_accuracy(probe, sides[1][0], [None] * 20) is None


def test_the_scorer_tells_the_twenty_objects_apart() -> None:
    """On real pictures that nothing was trained on: the ceiling of every object accuracy."""
    from data.features import Clip
    from infer.evaluation.prompts import load_prompts
    from tools.pocket.scorer import SCORER

    names = load_prompts()["objects"]
    found = composition.object_accuracy(Clip(SCORER).encode_text(composition.object_texts(names)), names)
    assert found is not None and found.trials == 4 * 20 and found.right >= 72


# ---- diversity, copies, forgetting


def test_seeds_that_say_the_same(rng: np.random.Generator) -> None:
    pair = shown(rng, 6, 5)
    narrow = Features(*(0.1 * each + each.mean(axis=0) for each in vars(pair.tuned).values()))
    ratio, _ = diversity.between_seeds(Pairs(pair.prompts, pair.base, narrow))
    assert ratio.value == pytest.approx(0.1, rel=0.2) and ratio.said == "less diverse"
    assert diversity.rms_distance(np.array([[0.0, 0.0], [3.0, 4.0]])) == pytest.approx(5.0)


def test_more_like_training_pictures_than_any_held_out_one(rng: np.random.Generator) -> None:
    """All 12 above all 20: 12! 20! / 32!; none above: 1."""
    train = seen(rng, 40)
    drawn = shown(rng, 12)
    same = PromptedPairs(
        Pairs(drawn.prompts, drawn.base, train.take(range(12))), np.unique(drawn.prompts), drawn.base.joint
    )
    far = evidence(rng, train=train, held_out=seen(rng, 20), captions=same)
    assert memorization.exceedance_p(far) == pytest.approx(1 / 225_792_840)
    assert "copies" in {alarm.kind for alarm in memorization.section(far).alarms}


def test_copies_and_leaks_by_alignment(rng: np.random.Generator) -> None:
    found = memorization.section(evidence(rng, copies=NearDuplicates([("a.png", "b.png")], [("a horse", "c.png")])))
    told = {alarm.kind: alarm.said for alarm in found.alarms}
    assert "a.png, b.png" in told["leak"] and "'a horse' is c.png" in told["copies"]


def test_losses_that_tell(rng: np.random.Generator) -> None:
    train, held_out = rng.normal(0.1, 0.02, 120), rng.normal(0.15, 0.02, 110)
    base = rng.normal(0.2, 0.02, (2, 120))
    found = memorization.section(evidence(rng, losses=DenoisingLosses(train, held_out, base[0], base[1][:110])))
    number = by_name(found)["AUC of training against held-out pictures by their loss"]
    assert number.value > 0.9 and number.p is not None and number.p < 0.001
    assert by_name(found)["training pictures told at 1 % false alarms"].value > 0.2
    assert memorization.auc_p(0.5, 50, 50) == pytest.approx(0.5)


def test_what_was_forgotten(rng: np.random.Generator) -> None:
    texts = rng.normal(size=(20, 8))
    names = np.array([f"p{number:02d}" for number in range(20)])
    base, tuned = (Features(rows, rows, rows) for rows in (texts, rng.normal(size=texts.shape)))
    asked = PromptedPairs(Pairs(names, base, tuned), names, texts)
    real = {"train": seen(rng, 40, 2.0, 8), "held_out": seen(rng, 20, 2.0, 8), "captions": asked}
    numbers = by_name(adherence.forgetting(evidence(rng, plain=asked, **real)))
    assert numbers["R-precision lost"].value > 0.7 and numbers["R-precision lost"].said == "forgotten"
    assert numbers["style leakage"].value < 0.2


# ---- what no section can use


def test_words_and_p_values() -> None:
    assert section.describe_sign(Interval(1, 0.5, 2), "up", "down") == "up"
    assert section.describe_sign(Interval(1, -0.5, 2), "up", "down").startswith("not known")
    raw = Section("t", "q", (Number("a", 1.0, p=0.01), Number("b", 1.0), Number("c", 1.0, p=0.04)))
    assert [number.p for number in raw.with_holm().numbers] == [0.02, None, 0.04]


def test_features_that_cannot_be_used(rng: np.random.Generator) -> None:
    wide, narrow = seen(rng, 12, width=6), seen(rng, 12, width=4)
    with pytest.raises(InputError):
        Pairs(np.array([f"p{number}" for number in range(12)]), wide, narrow)
    with pytest.raises(InputError):
        evidence(rng, train=seen(rng, 40, width=4))
    broken = np.full((3, 2), np.nan)
    with pytest.raises(InputError):
        Features(broken, broken, broken)
    for side, count, least in (("train", 9, "10"), ("held_out", 4, "5")):
        assert str(error_of(evidence, rng, **{side: seen(rng, count)}).allowed).startswith(least)


# ---- planted faults must be flagged in 19 of 20 runs, a clean run in no more than one of 20

RUNS = 20
LOOKED_AT = {"memorised": memorization, "collapsed": diversity, "zero": style, "ignored": adherence,
             "leak": memorization}  # fmt: skip


@pytest.fixture(scope="module")
def pictures() -> Pool:
    return planted.pool()


def kinds(found: list[Section]) -> set[str]:
    return {alarm.kind for section in found for alarm in section.alarms}


def test_a_clean_run_raises_no_alarm(pictures: Pool) -> None:
    raised = [kinds(command.compute_sections(planted.evidence(pictures, seed), seed)) for seed in range(RUNS)]
    assert sum(map(bool, raised)) <= 1, Counter(kind for each in raised for kind in each)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_flagged(pictures: Pool, fault: str) -> None:
    found = [LOOKED_AT[fault].section(planted.evidence(pictures, seed, fault), seed) for seed in range(RUNS)]
    assert sum(ALARMS[fault] in kinds([section]) for section in found) >= 19
