"""Evidence with known faults, from real features: drawn creatures, the base's own pictures, the embedded scorer.

A clean run draws creatures that it was not trained on when asked for them, and the base's things in
another style otherwise.
Softening stands for what an autoencoder does to a picture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from safetensors.numpy import load_file

from data import sample_set
from data.captions import with_article
from data.duplicates import near_duplicates
from data.features import Clip, StyleDescriptors
from data.metrics.distances import Matrix
from infer.evaluation.evidence import DenoisingLosses, Evidence, Features, NearDuplicates, Pairs, PromptedPairs
from tools.pocket.scorer import SCORER

GRID = Path(__file__).parents[1] / "docs" / "pocket-base-grid.png"
SIDE, COUNT, NAMES, LEAKS = 64, 130, 100, 30
TRAIN, HELD_OUT, DRAWN, PLAIN = 60, 20, 24, 30
PROMPTS, SEEDS = 8, 4  # of variety: species k is shown by creatures k, k + 100, k + 200 ...
FAULTS = ("memorised", "collapsed", "zero", "ignored", "leak")
ALARMS = {"memorised": "copies", "collapsed": "collapsed", "zero": "nothing-learned", "ignored": "prompts-ignored",
          "leak": "leak"}  # fmt: skip


@dataclass(frozen=True)
class Pool:
    """All pictures and their features, looked at once.

    alike: (creature, softened creature) of the first LEAKS that alignment takes for one.
    """

    real: Features
    soft: Features  # the same creatures, softened
    things: Features  # the base's pictures of names
    restyled: Features  # the same, in another style
    poses: Features  # PROMPTS x SEEDS creatures, softened
    looks: Matrix  # (200 names, 4 seeds, e) of real pictures of things
    names: list[str]
    texts: Matrix
    captions: list[str]
    caption_texts: Matrix
    alike: frozenset[tuple[int, int]]


def soften(picture: Image.Image, seed: int) -> Image.Image:
    """A little blur, and light that changes by up to a fiftieth."""
    light = 1.0 + 0.02 * np.random.default_rng(seed).uniform(-1, 1)
    return ImageEnhance.Brightness(picture.convert("RGB").filter(ImageFilter.GaussianBlur(0.6))).enhance(light)


def restyled(picture: Image.Image) -> Image.Image:
    """Paler colours and a softer line: a style that leaves things what they are."""
    return ImageEnhance.Color(picture.convert("RGB").filter(ImageFilter.GaussianBlur(0.5))).enhance(0.7)


def pool() -> Pool:
    eyes = Clip(SCORER)

    def seen(pictures: list[Image.Image]) -> Features:
        joint = eyes.encode(pictures)
        return Features(StyleDescriptors().encode(pictures), joint, joint)

    drawn = [sample_set.sample_image(index, SIDE) for index in range(COUNT)]
    softened = [soften(picture, index) for index, picture in enumerate(drawn)]
    sheet = Image.open(GRID).convert("RGB")
    places = [(SIDE * column, SIDE * row) for row in range(NAMES // 10) for column in range(10)]
    things = [sheet.crop((x, y, x + SIDE, y + SIDE)) for x, y in places]
    poses = [soften(sample_set.sample_image(species + 100 * turn, SIDE), 1000 + turn)
             for species in range(PROMPTS) for turn in range(SEEDS)]  # fmt: skip
    names = (SCORER / "names.txt").read_text(encoding="utf-8").splitlines()
    looks = load_file(SCORER / "real.safetensors")["features"].astype(np.float64)
    prompts = [with_article(name) for name in names[:NAMES]]
    captions = [sample_set.sample_annotation(index).text for index in range(COUNT)]
    pairs = near_duplicates([*drawn[:LEAKS], *softened[:LEAKS]], cache=False)
    alike = frozenset((pair.first, pair.second - LEAKS) for pair in pairs if pair.first < LEAKS <= pair.second)
    return Pool(
        seen(drawn), seen(softened), seen(things), seen([restyled(thing) for thing in things]), seen(poses),
        looks.reshape(SEEDS, len(names), -1).transpose(1, 0, 2), prompts, eyes.encode_text(prompts), captions,
        eyes.encode_text(captions), alike,
    )  # fmt: skip


def evidence(of: Pool, seed: int, fault: str = "") -> Evidence:
    """What a run would leave; other creatures and things for each seed."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(COUNT)
    train, held, fresh = order[:TRAIN], order[TRAIN : TRAIN + HELD_OUT], order[TRAIN + HELD_OUT :][:DRAWN]
    things = rng.permutation(NAMES)
    held_out = of.real.take(held)
    leaked = held[:0]
    if fault == "leak":
        leaked = train[train < LEAKS][: HELD_OUT // 4]
        held_out = joined(of.real.take(held[len(leaked) :]), of.soft.take(leaked))
    tuned = of.soft.take(train[:DRAWN] if fault == "memorised" else fresh)
    shown, drawn = things[:PLAIN], of.restyled.take(things[:PLAIN])
    if fault == "ignored":
        drawn = of.restyled.take(rng.permutation(shown))
    found = Evidence(
        train=of.real.take(train),
        held_out=held_out,
        captions=PromptedPairs(
            Pairs(np.array([of.captions[row] for row in fresh]), of.things.take(things[PLAIN:][:DRAWN]), tuned),
            np.array(of.captions), of.caption_texts,
        ),
        plain=PromptedPairs(Pairs(np.array([of.names[row] for row in shown]), of.things.take(shown), drawn),
                    np.array(of.names), of.texts),
        variety=variety(of, rng),
        copies=NearDuplicates([(f"soft {row}", f"{other}") for other, row in sorted(of.alike) if row in leaked]),
        losses=losses(rng, fault),
    )  # fmt: skip
    return {"collapsed": collapsed, "zero": zero}.get(fault, lambda found, _: found)(found, rng)


def variety(of: Pool, rng: np.random.Generator) -> Pairs:
    """SEEDS pictures a prompt: by the base of one thing, by the tuned model of one species."""
    rows = rng.permutation(len(of.looks))[:PROMPTS]
    looks = of.looks[rows].reshape(PROMPTS * SEEDS, -1)
    prompts = np.repeat([f"prompt {row}" for row in range(PROMPTS)], SEEDS)
    return Pairs(prompts, Features(of.poses.style, looks, looks), of.poses)


def collapsed(found: Evidence, rng: np.random.Generator) -> Evidence:
    """Three pictures over and over, whatever is asked, but for noise."""

    def few(seen: Features) -> Features:
        rows = rng.integers(0, 3, len(seen))
        noise = 0.02 * rng.standard_normal(seen.content.shape) / np.sqrt(seen.content.shape[1])
        same = seen.take(rows)
        return Features(same.style, same.content + noise, same.joint + noise)

    variety = replace(found.variety, tuned=Features(*(each.repeat(SEEDS, axis=0) for each in vars(few(
        found.variety.tuned.take(range(PROMPTS)))).values())))  # fmt: skip
    shown = replace(found.captions.pairs, tuned=few(found.captions.pairs.tuned))
    return replace(found, captions=replace(found.captions, pairs=shown), variety=variety)


def zero(found: Evidence, rng: np.random.Generator) -> Evidence:
    """A LoRA of zero: the tuned model is the base."""
    captions, plain = (
        replace(asked, pairs=replace(asked.pairs, tuned=asked.pairs.base)) for asked in (found.captions, found.plain)
    )
    return replace(found, captions=captions, plain=plain, variety=replace(found.variety, tuned=found.variety.base))


def losses(rng: np.random.Generator, fault: str) -> DenoisingLosses:
    """Of 32 pictures a side; what was memorised is predicted better."""
    before = rng.normal(0.17, 0.03, (2, 32))
    gain = np.array([[0.06 if fault == "memorised" else 0.04], [0.01 if fault == "memorised" else 0.04]])
    after = before - gain + rng.normal(0, 0.005, (2, 32))
    return DenoisingLosses(after[0], after[1], before[0], before[1])


def joined(one: Features, other: Features) -> Features:
    return Features(*(np.concatenate(pair) for pair in zip(vars(one).values(), vars(other).values(), strict=True)))
