"""3. Do types compose with objects that were never shown in them: type, object and both, base against tuned.

The source thesis's central claim ("a water type fridge") as a number: the share of images that show both, against the
product of the two shares, which is what chance would give.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data.captions import with_article
from data.metrics import statistics as stats
from data.metrics.distances import Matrix, unit_rows
from infer.config import POCKET_SCORER
from infer.evaluation.evidence import Evidence, Features, NameMixes, ProbeAccuracy, ProbeLabels, TypeGrid, Words
from infer.evaluation.section import Number, Section, Table, describe_sign, from_interval, mean_change

TITLE, ASKED = "Types on objects", "Is a type an idea that carries over to objects never shown with it?"
Hits = NDArray[np.bool_]


def section(evidence: Evidence, seed: int = 0) -> Section:
    """Of the grid of types and objects; objects are the clusters."""
    grid = evidence.grid
    if grid is None:
        note = 'The training images have no types (metadata.jsonl, "type"), so there is nothing to put on objects.'
        return Section(TITLE, ASKED, notes=(note,))
    numbers = [
        from_interval(f"accuracy of the probe for {probe.name}, held out",
                      stats.wilson_interval(probe.right, probe.trials), floor=1 / probe.classes, ceiling=1.0)
        for probe in grid.probes
    ]  # fmt: skip
    numbers += [*accuracies(grid, seed), *beyond_chance(grid), *directions(grid, seed)]
    numbers += mixed(evidence.mixes) if evidence.mixes else []
    return Section(
        TITLE, ASKED, tuple(numbers), tables=tuple(tables(grid)),
        notes=("Type: a probe on image features, trained on the training images' types. Object: the nearest of the "
               "objects' names to the scorer. Neither is right more often than the first lines say. Direction: the "
               'cosine of what "water type" changes in the image and in the text.',),
        cannot=("A probe trained on creatures judges fridges: what it calls water may be blue paint. GenEval and "
                "T2I-CompBench need detectors that are not included.",),
    )  # fmt: skip


def hits(grid: TypeGrid, labels: ProbeLabels) -> dict[str, Hits]:
    types, objects = labels.types == grid.types, labels.objects == grid.objects
    return {"type": types, "object": objects, "both": types & objects}


def accuracies(grid: TypeGrid, seed: int) -> list[Number]:
    """Type, object and both: the tuned model's share, and the paired change from the base."""
    tuned, base = hits(grid, grid.tuned), hits(grid, grid.base)
    chance = {"type": 1 / len(set(grid.types.tolist())), "object": 1 / len(set(grid.objects.tolist()))}
    chance["both"] = chance["type"] * chance["object"]
    numbers = []
    for name in tuned:
        before, after = base[name].astype(float), tuned[name].astype(float)
        share = stats.mean_interval(after, grid.objects)
        words = ("more than the base", "less than the base")
        numbers += [
            from_interval(f"{name} right", share, base=float(before.mean()), floor=chance[name], ceiling=1.0),
            mean_change(f"{name} right, change", before, after, grid.objects, words, seed=seed),
        ]
    return numbers


def beyond_chance(grid: TypeGrid) -> list[Number]:
    """Both right, less the product of the two shares."""
    numbers = []
    for name, labels in (("tuned", grid.tuned), ("base", grid.base)):
        found = hits(grid, labels)

        def excess(mask: Hits, found: dict[str, Hits] = found) -> float:
            types, objects, both = (float(found[each][mask].mean()) for each in ("type", "object", "both"))
            return both - types * objects

        interval = stats.jackknife_interval(excess, grid.objects)
        product = float(found["type"].mean() * found["object"].mean())
        title = f"both right less the product of the margins ({product:.3f}), {name}"
        said = describe_sign(interval, "type and object go together", "one at the cost of the other")
        numbers.append(from_interval(title, interval, floor=0.0, said=said))
    return numbers


def directions(grid: TypeGrid, seed: int) -> list[Number]:
    """Directional similarity, tuned and base."""
    tuned, base = grid.tuned.direction, grid.base.direction
    if tuned is None or base is None:
        return []
    interval = stats.mean_interval(tuned, grid.objects)
    return [from_interval("directional similarity", interval, base=float(base.mean()), floor=0.0, ceiling=1.0,
                          p=stats.sign_flip_test(tuned - base, grid.objects, seed=seed),
                          said=describe_sign(interval, "images change as the text does",
                                             "images change against the text"))]  # fmt: skip


def mixed(mixes: NameMixes) -> list[Number]:
    """Two names in one prompt: are both among the two nearest names, and how similar is the farther one."""
    tuned, base = (in_top_two(side, mixes.pairs) for side in (mixes.tuned, mixes.base))
    names = mixes.tuned.shape[1]
    after, before = (np.take_along_axis(side, mixes.pairs, axis=1).min(axis=1) for side in (mixes.tuned, mixes.base))
    return [
        from_interval("mixes with both names in the top two", stats.wilson_interval(int(tuned.sum()), len(tuned)),
                      base=float(base.mean()), floor=2 / (names * (names - 1))),
        mean_change("likeness to the farther of the two, change", before, after, mixes.prompts, ("closer", "farther"),
                    base=float(before.mean())),
    ]  # fmt: skip


def in_top_two(similarity: NDArray[np.floating], pairs: NDArray[np.int64]) -> Hits:
    top = np.argsort(-similarity, axis=1)[:, :2]
    return np.array([set(row) == set(pair) for row, pair in zip(top.tolist(), pairs.tolist(), strict=True)])


def tables(grid: TypeGrid) -> Sequence[Table]:
    """The confusion matrix of types, and the shares by object."""
    types = list(dict.fromkeys(grid.types.tolist()))
    seen = list(dict.fromkeys([*types, *grid.tuned.types.tolist()]))
    confusion = [[each, *(int(((grid.types == each) & (grid.tuned.types == other)).sum()) for other in seen)]
                 for each in types]  # fmt: skip
    found = hits(grid, grid.tuned)
    by_object = [(name, *(float(found[each][grid.objects == name].mean()) for each in ("type", "object", "both")))
                 for name in dict.fromkeys(grid.objects.tolist())]  # fmt: skip
    return (
        Table("Types in the prompt (rows) and what the probe sees in the tuned model's images", ("asked", *seen),
              confusion),
        Table("Both right, by object", ("object", "type", "object ", "both"), by_object),
    )  # fmt: skip


# ---- probes: which type, object and names an image shows, with their accuracy on images they were not trained on


@dataclass(frozen=True)
class TypeProbe:
    """Logistic regression on standardized content and style of the training images, whose types people annotated."""

    model: Any
    classes: Words

    def predict(self, features: Features) -> Words:
        return np.asarray(self.model.predict(probe_inputs(features)), str)


def probe_inputs(features: Features) -> Matrix:
    return np.concatenate([unit_rows(features.content), features.style], axis=1)


def train_type_probe(train: Features, types: Sequence[str | None]) -> TypeProbe | None:
    """None if fewer than two types are known."""
    known = [row for row, type_ in enumerate(types) if type_]
    labels = np.array([str(types[row]) for row in known])
    if len(set(labels.tolist())) < 2:
        return None
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(probe_inputs(train.take(known)), labels)
    return TypeProbe(model, np.unique(labels))


def type_accuracy(probe: TypeProbe, held_out: Features, types: Sequence[str | None]) -> ProbeAccuracy | None:
    """On held-out images whose types are known."""
    known = [row for row, type_ in enumerate(types) if type_]
    if not known:
        return None
    right = probe.predict(held_out.take(known)) == np.array([str(types[row]) for row in known])
    return ProbeAccuracy("types", int(right.sum()), len(known), len(probe.classes))


def predict_objects(joint: Matrix, texts: Matrix, names: Sequence[str]) -> Words:
    """The nearest of the names to each image. texts: (names, e), of object_texts."""
    return np.array(names)[(unit_rows(joint) @ unit_rows(texts).T).argmax(axis=1)]


def object_texts(names: Sequence[str]) -> list[str]:
    return [with_article(name) for name in names]


def object_accuracy(texts: Matrix, names: Sequence[str]) -> ProbeAccuracy | None:
    """On real images of the embedded world's objects, four of each, that nothing was trained on."""
    known = (POCKET_SCORER / "names.txt").read_text(encoding="utf-8").splitlines()
    rows = load_file(POCKET_SCORER / "real.safetensors")["features"].astype(np.float64)
    if rows.shape[1] != texts.shape[1]:
        return None
    shown = np.array([known[row % len(known)] for row in range(len(rows))])
    used = np.isin(shown, names)
    right = predict_objects(rows[used], texts, names) == shown[used]
    return ProbeAccuracy("objects", int(right.sum()), int(used.sum()), len(names)) if used.any() else None


def name_similarity(
    features: Features, train: Features, owners: Sequence[str | None]
) -> tuple[NDArray[np.float64], list[str]]:
    """(n, names): the cosine of each image to the mean of each name's training images; and the names."""
    names = sorted({name for name in owners if name})
    content = unit_rows(train.content)
    mean = content.mean(axis=0)
    means = np.stack([content[[row for row, own in enumerate(owners) if own == name]].mean(axis=0) for name in names])
    return unit_rows(unit_rows(features.content) - mean) @ unit_rows(means - mean).T, names
