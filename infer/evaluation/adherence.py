"""2. Prompt adherence: is an image's own prompt found among others, by a model that generated none of the images.

6. Forgetting: prompts without style, base against tuned; and how far the style leaks into them.
"""

from collections.abc import Callable

import numpy as np

from data import rng
from data.metrics import statistics as stats
from data.metrics.adherence import CANDIDATES, clip_text_similarity, r_precision
from data.metrics.distances import Vector, unit_rows
from infer.evaluation.evidence import Evidence, Features, PromptedPairs
from infer.evaluation.section import ALARM, Alarm, Number, Section, from_interval, mean_change
from infer.evaluation.style import cmmd_interval, style_axis

DRAWS = 1000
KEPT = 0.5  # of the base's R-precision: a model below has forgotten what words mean
HALF = 0.5  # of the way from base to training images: an image beyond it counts as being in the style
TITLE, ASKED = "Prompt adherence", "Do the tuned model's images still show what the prompt says?"
Measure = Callable[[PromptedPairs, Features, int], Vector]


def section(evidence: Evidence, seed: int = 0) -> Section:
    """Of prompts without style, base against tuned; and of the training captions."""
    plain, captions = evidence.plain, evidence.captions
    chance = shuffle_test(plain, plain.pairs.tuned, seed)
    numbers = [*measure_both(plain, "prompts without style", seed), *measure_both(captions, "training captions", seed)]
    numbers.append(Number("p that prompts are ignored", chance, p=chance,
                          said="prompts matter" if chance <= ALARM else "no evidence that they matter"))  # fmt: skip
    tuned, base = (own_prompt_first(plain, each, seed) for each in (plain.pairs.tuned, plain.pairs.base))
    alarms = []
    if chance > ALARM:
        alarms.append(Alarm("prompts-ignored", "There is no evidence that the tuned model's images depend on their "
                            f"prompts (p = {chance:.2g})."))  # fmt: skip
    if stats.mean_interval(tuned - KEPT * base, plain.pairs.prompts).high < 0:
        alarms.append(Alarm("prompts-half-lost", "The tuned model's images are matched to their prompts less than half "
                            "as often as the base's."))  # fmt: skip
    return Section(
        TITLE, ASKED, tuple(numbers), tuple(alarms),
        notes=("CLIP-T is the cosine of image and prompt (CLIPScore is 2.5 max(cos, 0), torchmetrics has 100 cos). "
               f"R-precision: the share of images whose own prompt ranks first among {CANDIDATES}, or all.",),
        cannot=("VQAScore and human judges are not included: the scorer only knows whether an image looks like its own "
                "idea of a thing.",),
    )  # fmt: skip


def own_prompt_first(prompted: PromptedPairs, features: Features, seed: int) -> Vector:
    return r_precision(features.joint, prompted.texts, prompted.own, seed=seed).astype(np.float64)


def own_prompt_cosine(prompted: PromptedPairs, features: Features, seed: int = 0) -> Vector:
    return clip_text_similarity(features.joint, prompted.texts[prompted.own])


MEASURES: dict[str, Measure] = {"R-precision": own_prompt_first, "CLIP-T": own_prompt_cosine}


def measure_both(prompted: PromptedPairs, of_what: str, seed: int) -> list[Number]:
    """R-precision and CLIP-T: the tuned model's, and the change from the base."""
    pairs, numbers = prompted.pairs, []
    for name, measure in MEASURES.items():
        tuned, base = (measure(prompted, features, seed) for features in (pairs.tuned, pairs.base))
        chance = 1 / min(CANDIDATES, len(prompted.candidates)) if measure is own_prompt_first else None
        numbers += [
            from_interval(f"{name}, {of_what}", stats.mean_interval(tuned, pairs.prompts), base=float(base.mean()),
                          floor=chance),
            mean_change(f"{name}, {of_what}, change", base, tuned, pairs.prompts,
                        ("better than the base", "worse than the base"), seed=seed),
        ]  # fmt: skip
    return numbers


def shuffle_test(prompted: PromptedPairs, features: Features, seed: int) -> float:
    """The p-value of "images have nothing to do with their prompts", by permuting whole prompts.

    The statistic is the mean cosine of images and their own prompts.
    """
    used, column = np.unique(prompted.own, return_inverse=True)
    cosines = unit_rows(features.joint) @ unit_rows(prompted.texts[used]).T
    means = np.stack([cosines[column == row].mean(axis=0) for row in range(len(used))])  # (prompts, prompts)
    generator = np.random.default_rng(rng.seed_for(seed, "ignored"))
    orders = [generator.permutation(len(used)) for _ in range(DRAWS)]
    permuted = np.array([means[np.arange(len(used)), order].mean() for order in orders])
    return float((1 + (permuted >= means.diagonal().mean() - 1e-12).sum()) / (1 + DRAWS))


def forgetting(evidence: Evidence, seed: int = 0) -> Section:
    plain, pairs = evidence.plain, evidence.plain.pairs
    numbers = []
    for name, measure in MEASURES.items():
        tuned, base = (measure(plain, features, seed) for features in (pairs.tuned, pairs.base))
        numbers.append(mean_change(f"{name} lost", tuned, base, pairs.prompts, ("forgotten", "better than before"),
                                   seed=seed, base=float(base.mean()), floor=0.0))  # fmt: skip
    moved = cmmd_interval(unit_rows(pairs.base.joint), unit_rows(pairs.tuned.joint), pairs)
    numbers.append(from_interval("CMMD of base and tuned", moved, floor=0.0))
    _, along = style_axis(evidence.train, pairs)
    tuned, base, real = (along(each.style) > HALF for each in (pairs.tuned, pairs.base, evidence.held_out))
    numbers.append(from_interval("style leakage", stats.wilson_interval(int(tuned.sum()), len(tuned)),
                                 base=float(base.mean()), ceiling=float(np.mean(real)),
                                 said="ceiling: of held-out images"))  # fmt: skip
    return Section(
        "Forgetting", "What of the base is lost where no style was requested?", tuple(numbers),
        notes=("Leakage: images beyond half of the way from the base's to the training images' descriptors. A LoRA "
               "without a trigger word is meant to leak, so there it is no fault.",),
        cannot=("Named people, places and scenes are not tested: the embedded base knows none. For other base models "
                "use infer/compare.py with your own prompts.",),
    )  # fmt: skip
