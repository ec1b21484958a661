"""What fine-tuning on the creatures did to the base: how much of the style is there, are nouns still themselves.

Twenty nouns that no creature is called by, drawn by the base and with the LoRA from the same seeds. Style is told by
the weight-free descriptors of data/features.py, nouns by the scorer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import t

from data.captions import with_article
from data.errors import InputError
from data.features import StyleDescriptors, standardized
from data.metrics.distances import unbiased_mmd
from tools.pocket.export import load_pipeline
from tools.pocket.score import Scorer, generate
from tools.pocket.scorer import SCORER, creature_pixels

NOUNS, SEEDS, STEPS = 20, 10, 50
Rows = NDArray[np.float64]


def scored_names() -> list[str]:
    """The 200 names of the card's table, shipped beside the scorer: no font is needed here."""
    return (SCORER / "names.txt").read_text(encoding="utf-8").splitlines()


def unseen_nouns() -> list[str]:
    """The twenty, fixed and not of our choosing."""
    return random.Random(1).sample(sorted(scored_names()), NOUNS)


def lora_file(given: Path) -> Path:
    """A LoRA file, or that of a finished run. Raises InputError."""
    file = given / "export" / "lora.safetensors" if given.is_dir() else given
    if not file.is_file():
        raise InputError(
            f"{file}: no such file", where="--score-tuned", allowed="a finished run's folder or a LoRA file"
        )
    return file


def gap_closed(base: Rows, tuned: Rows, creatures: Rows) -> float:
    """(D(base) - D(tuned)) / D(base): 0 is as the base, 1 as the creatures.

    D is the unbiased squared maximum mean discrepancy to the creatures (data/metrics/distances.py),
    0 between like sets.
    """
    base, tuned, creatures = standardized(base, tuned, creatures)
    before = unbiased_mmd(base, creatures)
    return (before - unbiased_mmd(tuned, creatures)) / before


def way_gone(base: Rows, tuned: Rows, creatures: Rows) -> float:
    """How far the mean descriptors went along the straight way from the base's to the creatures'."""
    base, tuned, creatures = standardized(base, tuned, creatures)
    way = creatures.mean(0) - base.mean(0)
    return float((tuned.mean(0) - base.mean(0)) @ way / (way @ way))


def half_interval(base: Rows, tuned: Rows, creatures: Rows, count: int = NOUNS) -> float:
    """Half the 95 % interval of gap_closed over nouns, by leaving out one at a time (jackknife; t with count - 1).

    Noun k of seed s lies in row s * count + k. Drawing rows again would put pictures beside themselves, which the
    unbiased discrepancy takes for closeness.
    """
    nouns = np.arange(len(base)) % count
    values = [gap_closed(base[nouns != k], tuned[nouns != k], creatures) for k in range(count)]
    error = np.sqrt((count - 1) * np.var(values))
    return float(t.ppf(0.975, count - 1) * error)


def drawn(pipeline: Any, seeds: int, steps: int) -> list[Image.Image]:
    """The twenty nouns, all of a seed together."""
    prompts = [with_article(noun) for noun in unseen_nouns()]
    return [picture for seed in range(seeds) for picture in generate(pipeline, prompts, 100 + seed, steps)]


def retrieved(scorer: Scorer, pictures: Sequence[Image.Image]) -> float:
    """Share of the pictures whose own noun comes first among the 200 names of the card."""
    own = unseen_nouns()
    names = [*own, *(name for name in scored_names() if name not in own)]
    words = scorer.of_texts([with_article(name) for name in names])
    first = (scorer.of_pictures(pictures) @ words.T).argmax(1).numpy()
    return float((first == np.arange(len(pictures)) % NOUNS).mean())


def score_tuned(given: Path, seeds: int = SEEDS, steps: int = STEPS) -> dict[str, float]:
    """The table: style gap closed with half its interval, way gone, retrieval before and after, all in per cent."""
    file, scorer = lora_file(given), Scorer()
    pipeline = load_pipeline()
    before = drawn(pipeline, seeds, steps)
    pipeline.load_lora_weights(str(file))
    after = drawn(pipeline, seeds, steps)
    real = [Image.fromarray(pixels) for pixels in creature_pixels()]
    base, tuned, creatures = (StyleDescriptors().encode(each).astype(np.float64) for each in (before, after, real))
    return {
        "style gap closed, %": 100 * gap_closed(base, tuned, creatures),
        "  half of its 95 % interval, over nouns": 100 * half_interval(base, tuned, creatures),
        "way of the means gone, %": 100 * way_gone(base, tuned, creatures),
        "retrieval of 20 unseen nouns, base, %": 100 * retrieved(scorer, before),
        "retrieval of 20 unseen nouns, tuned, %": 100 * retrieved(scorer, after),
    }
