"""--study steps, guidance, trigger: a sweep of one setting, what it changes in the images, and a verdict.

The source thesis says (chapter 2.2) that complex prompts need many denoising steps, and that many steps make a simple
prompt's image worse. "Worse" is measured as a lower similarity to the prompt at the most steps than at a number fixed
beforehand, paired by prompt and seed. It also finds "no significant difference" between a prompt with and without the
trigger word (figure 3.3): that becomes the distance that the word makes at one seed, in units of the distance between
seeds, and the p-value of "the word shifts nothing" in the scorer's features.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.errors import InputError
from data.features import Clip, extract_features
from data.metrics.statistics import all_signs, random_signs, student_interval
from data.reports.charts import Series
from infer.comparison.grid import Grid, Position, parse_axis, trigger_word
from infer.comparison.image_cache import CachedImage
from infer.comparison.results import Report
from infer.config import POCKET_SCORER, CompareOptions

SIDE = 64  # pixels; images are reduced to it before they are compared, so that grain is no difference
MAX_FLIPS = 2**14  # sign patterns; if there are more, this many are drawn at random
SIMPLE = ("a guitar", "a red apple", "a fish")
COMPLEX = (
    "a cat and a guitar",
    "a small red car on the left at night",
    "a line drawing of a dog on a yellow background",
)
PLAIN = ("a calculator", "a guitar", "a car")  # of the trigger study, as in the thesis's figure 3.3
SIMPLE_WORDS = 4  # a prompt of more words is complex
STEP_SHARES = (0.06, 0.1, 0.2, 0.4, 0.6, 1.0)  # of --steps: 3, 5, 10, 20, 30, 50
GUIDANCE = "1,2,4,7.5,12,20"
SEEDS, TRIGGER_SEEDS = 4, 8  # eight seeds allow a p of 0.008, four none below 0.125
SETTLED = 0.25  # of the distance between two seeds' images
LEVEL = 0.05
Values = Sequence[float] | NDArray[np.floating]


# ---- measures


@dataclass(frozen=True)
class SeedInterval:
    """A mean and its 95 % t-interval over n seeds; NaN bounds for a single seed."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:+.3f} (95 % {self.low:+.3f} to {self.high:+.3f}, {self.n} seeds)"

    @property
    def sign(self) -> int:
        """-1 or +1 if all of it lies on one side of 0, else 0."""
        return -1 if self.high < 0 else 1 if self.low > 0 else 0


def interval(values: Values) -> SeedInterval:
    """The mean of independent values with Student's interval, mean ± t s / sqrt(n)."""
    array = np.asarray(values, np.float64)
    mean, n = float(array.mean()), len(array)
    if n < 2:
        return SeedInterval(mean, math.nan, math.nan, n)
    found = student_interval(mean, float(array.std(ddof=1)) / math.sqrt(n), n - 1)
    return SeedInterval(mean, found.low, found.high, n)


def distance(one: Image.Image, two: Image.Image) -> float:
    """Root mean square difference of the colors at SIDE x SIDE pixels: 0 (equal) to 1 (black and white)."""
    return float(np.sqrt(np.mean((to_pixels(one) - to_pixels(two)) ** 2)))


def to_pixels(image: Image.Image) -> NDArray[np.float64]:
    """(SIDE, SIDE, 3) in [0, 1], reduced by averaging."""
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), np.float64) / 255


def mean_distance(images: Sequence[Image.Image]) -> float:
    """The mean distance over all pairs; 0 for a single image."""
    pairs = list(itertools.combinations(images, 2))
    return float(np.mean([distance(*pair) for pair in pairs])) if pairs else 0.0


@dataclass(frozen=True)
class Scorer:
    """A CLIP model that judges images; it generated none of them."""

    folder: Path = POCKET_SCORER

    @property
    def name(self) -> str:
        return "data/pocket/scorer" if self.folder == POCKET_SCORER else self.folder.name

    @cached_property
    def clip(self) -> Clip:
        return Clip(self.folder)

    def features(self, images: Sequence[Image.Image]) -> NDArray[np.floating]:
        """(n, d) unit rows, cached by content."""
        return extract_features(self.clip, images)

    def similarity(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> NDArray[np.float64]:
        """(n,) the cosine of each image with its own prompt."""
        texts = list(dict.fromkeys(prompts))
        rows = dict(zip(texts, self.clip.encode_text(texts), strict=True))
        own = np.stack([rows[prompt] for prompt in prompts])
        return np.einsum("nd,nd->n", self.features(images).astype(np.float64), own)


def flip_test(differences: NDArray[np.floating]) -> float:
    """The p-value of "paired rows do not differ in the mean", (n, d) differences, by flipping their signs.

    The statistic is the length of the mean difference; p is the share of sign patterns at least as long. Source: Fisher
    1935, The design of experiments, §21.
    """
    rows = np.asarray(differences, np.float64)
    count = len(rows)
    if 2**count <= MAX_FLIPS:
        signs = all_signs(count)
    else:
        signs = np.vstack([np.ones(count), random_signs(MAX_FLIPS, count, 0)])
    lengths = np.linalg.norm(signs @ rows / count, axis=1)
    return float(np.mean(lengths >= lengths[0] * (1 - 1e-12)))


# ---- the studies


def study_options(options: CompareOptions, steps: int) -> CompareOptions:
    """The options with the study's axes and prompts. steps: the model's. Raises InputError for axes that do not fit."""
    if options.study == "steps":
        values = sorted({max(1, round(share * (options.steps or steps))) for share in STEP_SHARES})
        x, prompts, seeds = f"steps={','.join(map(str, values))}", (*SIMPLE, *COMPLEX), SEEDS
    elif options.study == "guidance":
        x, prompts, seeds = f"guidance-scale={GUIDANCE}", (*SIMPLE[:2], *COMPLEX[:2]), SEEDS
    else:
        x, prompts, seeds = "trigger=off,on", PLAIN, TRIGGER_SEEDS
    if options.y_axis or options.z_axis:
        fix = "Give prompts with --prompt, seeds with --seed and --seeds."
        raise InputError("a study has its own rows and sheets", where="--y, --z", fix=fix)
    expected, given = x.partition("=")[0], parse_axis(options.x_axis, "--x", options.prompt)
    if given and given.name != expected:
        fix = f'Its values can be chosen: --x "{x}".'
        raise InputError(f"--study {options.study} sweeps {expected}, not {given.name}", where="--x", fix=fix)
    count = options.seeds or seeds
    changed = {
        "x_axis": options.x_axis or x,
        "z_axis": f"seed={options.seed}..{options.seed + count - 1}",
        "prompt": options.prompt if "prompt" in options.model_fields_set else tuple(prompts),
    }
    return options.model_copy(update=changed)


# ---- steps and guidance

Key = tuple[str, int, Any]  # prompt, seed, value of the swept setting


@dataclass(frozen=True)
class Sweep:
    """Images of prompts in groups (simple, complex) at rising values of one setting, with every seed.

    scores: every image's similarity to its prompt, by the model `scorer`.
    """

    groups: Mapping[str, Sequence[str]]
    seeds: Sequence[int]
    values: Sequence[float]
    images: Mapping[Key, Image.Image]
    scores: Mapping[Key, float]
    scorer: str

    @property
    def last(self) -> float:
        return self.values[-1]

    @property
    def middle(self) -> float:
        """What the last value is compared with, fixed beforehand: the nearest to 40 % of it (20 of 50)."""
        return min(self.values[:-1], key=lambda value: abs(value - 0.4 * self.last))

    def distance(self, prompt: str, seed: int, one: float, two: float) -> float:
        return distance(self.images[prompt, seed, one], self.images[prompt, seed, two])

    def over_seeds(self, prompts: Sequence[str], measure: Callable[[str, int], float]) -> SeedInterval:
        """The interval over seeds of a measure's mean over the prompts."""
        return interval([float(np.mean([measure(p, s) for p in prompts])) for s in self.seeds])

    def to_last(self, prompts: Sequence[str]) -> list[SeedInterval]:
        """For each value: the distance to the images at the last value."""
        return [self.over_seeds(prompts, lambda p, s, v=v: self.distance(p, s, v, self.last)) for v in self.values]

    def per_unit(self, prompts: Sequence[str]) -> list[SeedInterval]:
        """For each value but the first: the change since the previous one, per unit of the setting."""
        return [
            self.over_seeds(prompts, lambda p, s, v=low, w=high: self.distance(p, s, v, w) / (w - v))
            for low, high in pairwise(self.values)
        ]

    def between_seeds(self, prompts: Sequence[str]) -> list[float]:
        """For each value: the mean distance between images of one prompt with different seeds."""
        return [
            float(np.mean([mean_distance([self.images[p, s, value] for s in self.seeds]) for p in prompts]))
            for value in self.values
        ]

    def similarity(self, prompts: Sequence[str]) -> list[SeedInterval]:
        return [self.over_seeds(prompts, lambda p, s, v=v: self.scores[p, s, v]) for v in self.values]

    def similarity_change(self, prompts: Sequence[str], low: float, high: float) -> SeedInterval:
        """At `high` minus at `low`, paired by prompt and seed; below 0 the images got worse."""
        return self.over_seeds(prompts, lambda p, s: self.scores[p, s, high] - self.scores[p, s, low])


def images_by_key(grid: Grid, images: Mapping[Position, CachedImage]) -> dict[Key, Image.Image]:
    x, y, z = grid.axes
    return {(y.values[at[1]], z.values[at[2]], x.values[at[0]]): cached.image for at, cached in images.items()}


def build_sweep(grid: Grid, images: Mapping[Position, CachedImage], scorer: Scorer) -> Sweep:
    x, y, z = grid.axes
    if len(x) < 2 or list(x.values) != sorted(x.values):
        raise InputError(f"the values of {x.name} do not rise", where=x.flag, fix="Name two or more, lowest first.")
    groups: dict[str, list[str]] = {"simple": [], "complex": []}
    for prompt in y.values:
        groups["simple" if len(prompt.split()) <= SIMPLE_WORDS else "complex"].append(prompt)
    filled = {name: prompts for name, prompts in groups.items() if prompts}
    by_key = images_by_key(grid, images)
    cosines = map(float, scorer.similarity(list(by_key.values()), [prompt for prompt, _, _ in by_key]))
    return Sweep(filled, z.values, x.values, by_key, dict(zip(by_key, cosines, strict=True)), scorer.name)


def sweep_report(options: CompareOptions, grid: Grid, images: Mapping[Position, CachedImage], scorer: Scorer) -> Report:
    sweep = build_sweep(grid, images, scorer)
    verdict = (steps_verdict if options.study == "steps" else guidance_verdict)(sweep)
    curves: dict[str, Any] = {"values": list(sweep.values), "seeds": list(sweep.seeds)}
    measured: dict[str, dict[str, Any]] = {}
    for name, prompts in sweep.groups.items():
        own = {"to the last": sweep.to_last(prompts), "change per unit": sweep.per_unit(prompts),
               "similarity": sweep.similarity(prompts)}  # fmt: skip
        apart = sweep.between_seeds(prompts)
        measured[name] = own | {"between seeds": apart}
        points = {curve: [asdict(point) for point in values] for curve, values in own.items()}
        curves[name] = {"prompts": list(prompts), **points, "between seeds": apart}
    notes = {}
    for at, key in zip(images, sweep.images, strict=True):
        gap = sweep.distance(*key, sweep.last)
        notes[at] = f"similarity {sweep.scores[key]:.3f}, {gap:.3f} from the last"
    name = "steps" if options.study == "steps" else "guidance"
    numbers = {"verdict": verdict, "curves": curves, "scorer": sweep.scorer}
    return Report(f"Study: {name}", verdict, notes, numbers, sweep_charts(name, sweep, measured),
                  text=f"Bands: 95 % t-intervals over {len(sweep.seeds)} seeds of the mean over a group's prompts. "
                  f"Distances: root mean square of colors at {SIDE} x {SIDE} pixels, 0 to 1. A "
                  f"prompt of more than {SIMPLE_WORDS} words is complex. The scorer's cosines are not calibrated: "
                  "compare differences, not levels.")  # fmt: skip


def sweep_charts(name: str, sweep: Sweep, measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Keyword arguments of a line chart each."""
    unit = "step" if name == "steps" else "unit of guidance"
    values = list(sweep.values)
    middles = [(low + high) / 2 for low, high in pairwise(values)]

    def lines(curve: str, x: list[float]) -> list[Series]:
        return [line(group, x, found[curve]) for group, found in measured.items()]

    apart = [Series(f"two seeds, {group}", values, found["between seeds"], faint=True)
             for group, found in measured.items()]  # fmt: skip
    return [
        {"series": [*lines("to the last", values), *apart], "x": name, "y": "RMS difference",
         "title": f"Distance to the image at {sweep.last:g}"},
        {"series": lines("change per unit", middles), "x": name, "y": f"change per {unit}",
         "title": f"Change with each further {unit}", "log_y": True},
        {"series": lines("similarity", values), "x": name, "y": "cosine",
         "title": f"Similarity to the prompt, by {sweep.scorer}"},
    ]  # fmt: skip


def line(name: str, x: Sequence[float], points: Sequence[SeedInterval]) -> Series:
    lows = [max(point.low, 0.0) if point.mean >= 0 else point.low for point in points]  # distances are not negative
    return Series(name, x, [point.mean for point in points], lows, [point.high for point in points])


def steps_verdict(sweep: Sweep) -> str:
    """The thesis's claim about simple prompts, with numbers."""
    low, high = sweep.middle, sweep.last
    changes = {name: sweep.similarity_change(prompts, low, high) for name, prompts in sweep.groups.items()}
    claim = {
        -1: "Simple prompts do get worse with many steps here",
        0: "There is no evidence here that simple prompts get worse with many steps",
        1: "Simple prompts get better, not worse, with many steps here",
    }[next(iter(changes.values())).sign]
    by_group = " and ".join(f"{change} for {name} prompts" for name, change in changes.items())
    settled = []
    for name, prompts in sweep.groups.items():
        most = SETTLED * sweep.between_seeds(prompts)[-1]
        far = [point.mean for point in sweep.to_last(prompts)]
        first = next(v for index, v in enumerate(sweep.values) if all(gap <= most for gap in far[index:]))
        settled.append(f"{name} from {first:g} on")
    return (
        f"{claim}: from {low:g} to {high:g} steps the similarity to the prompt ({sweep.scorer}) changes by "
        f"{by_group}. Images are settled (closer to the last one than a quarter of the distance between two seeds): "
        f"{', '.join(settled)}."
    )


def guidance_verdict(sweep: Sweep) -> str:
    """The thesis: strong guidance follows the prompt, weak guidance leaves freedom. Both with numbers."""
    low, high = sweep.values[0], sweep.middle
    prompts = [prompt for group in sweep.groups.values() for prompt in group]
    gain = sweep.similarity_change(prompts, low, high)
    beyond = sweep.similarity_change(prompts, high, sweep.last)
    free = dict(zip(sweep.values, sweep.between_seeds(prompts), strict=True))
    claim = {1: "Guidance makes images follow the prompt", 0: "Guidance has no visible effect on the prompt",
             -1: "Guidance makes images worse"}[gain.sign]  # fmt: skip
    return (
        f"{claim}: from {low:g} to {high:g} the similarity ({sweep.scorer}) changes by {gain}, from there to "
        f"{sweep.last:g} by {beyond}. Freedom, the distance between two seeds' images: {free[low]:.3f} at {low:g}, "
        f"{free[high]:.3f} at {high:g}, {free[sweep.last]:.3f} at {sweep.last:g}."
    )


# ---- trigger


@dataclass(frozen=True)
class Effect:
    """Of one prompt, or of all. pair: distance of with and without at one seed. seeds: between seeds, without.

    ratio: pair / seeds of each seed, as an interval; at 1 the word changes as much as another seed does.
    shift: p-value of the flip test on the scorer's features.
    """

    name: str
    pair: SeedInterval
    seeds: float
    ratio: SeedInterval
    shift: float


def trigger_effects(
    prompts: Sequence[str], seeds: Sequence[int], images: Mapping[Key, Image.Image], scorer: Scorer
) -> list[Effect]:
    """One for each prompt, and last one for all together."""
    keys = list(images)
    rows = dict(zip(keys, scorer.features([images[key] for key in keys]), strict=True))
    shift = {p: np.stack([rows[p, s, True] - rows[p, s, False] for s in seeds]) for p in prompts}
    pair = {p: [distance(images[p, s, True], images[p, s, False]) for s in seeds] for p in prompts}
    without = {p: [images[p, s, False] for s in seeds] for p in prompts}
    apart = {p: [float(np.mean([distance(one, two) for two in without[p] if two is not one])) for one in without[p]]
             for p in prompts}  # fmt: skip
    effects = [effect(p, pair[p], apart[p], flip_test(shift[p])) for p in prompts]
    if len(prompts) > 1:
        pairs, others = (np.mean([values[p] for p in prompts], axis=0).tolist() for values in (pair, apart))
        # a seed's prompts start from the same noise, so their signs are flipped together
        joint = np.concatenate([shift[p] for p in prompts], axis=1)
        effects.append(effect("all prompts", pairs, others, flip_test(joint)))
    return effects


def effect(name: str, pair: Sequence[float], apart: Sequence[float], shift: float) -> Effect:
    ratios = [one / other if other else float("nan") for one, other in zip(pair, apart, strict=True)]
    return Effect(name, interval(pair), float(np.mean(apart)), interval(ratios), shift)


def trigger_verdict(word: str, effects: Sequence[Effect], seeds: int) -> str:
    last = effects[-1]
    least = 2 / 2**seeds  # all signs as they are, or all flipped
    outcome = "a significant difference" if last.shift <= LEVEL else "no significant difference"
    weak = f" (with {seeds} seeds no p below {least:.3g} is possible)" if least > LEVEL else ""
    return (
        f"{word!r} makes {outcome}: p = {last.shift:.3g} that it shifts nothing{weak}. At one seed it moves the image "
        f"by {last.pair.mean:.3f}, {last.ratio.mean:.2f} times (95 % {last.ratio.low:.2f} to {last.ratio.high:.2f}) "
        f"the {last.seeds:.3f} between two seeds."
    )


def trigger_report(
    options: CompareOptions, grid: Grid, images: Mapping[Position, CachedImage], scorer: Scorer
) -> Report:
    _, y, z = grid.axes
    effects = trigger_effects(y.values, z.values, images_by_key(grid, images), scorer)
    word = trigger_word(options, grid.requests[0, 0, 0].weights)
    verdict = trigger_verdict(word, effects, len(z))
    head = ("prompt", "word moves it by", "another seed by", "ratio", "95 %", "p of no shift")
    rows = [(e.name, e.pair.mean, e.seeds, e.ratio.mean, f"{e.ratio.low:.2f} to {e.ratio.high:.2f}", e.shift)
            for e in effects]  # fmt: skip
    notes = {
        at: f"moved by {distance(cached.image, images[0, *at[1:]].image):.3f}"
        for at, cached in images.items()
        if at[0] == 1
    }
    numbers = {"verdict": verdict, "effects": [asdict(each) for each in effects], "scorer": scorer.name, "word": word}
    return Report(f"Study: the trigger {word!r}", verdict, notes, numbers, table=(head, rows),
                  text="Distances: root mean square of colors, 0 to 1. Ratio: the word's distance at a seed by that "
                  f"seed's mean distance to the others, with the 95 % t-interval over {len(z)} seeds. p: sign flips of "
                  f"the differences of {scorer.name}'s features, with minus without.")  # fmt: skip
