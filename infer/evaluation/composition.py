"""3. Do types compose with objects that were never shown in them: type, object and both, base against tuned.

The source thesis' central claim ("a water type fridge") as a number: the share of pictures that are both, against the
product of the two shares, which is what chance would make of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.metrics.statistics import jackknife_interval, mean_interval, sign_flip_test, wilson_interval
from infer.evaluation.samples import Grid, Mixes, Probe, Said
from infer.evaluation.section import Number, Section, Table, of, sided

TITLE, ASKED = "Types on objects", "Is a type an idea that goes onto things never shown with it?"
Hits = NDArray[np.bool_]


def section(grid: Grid | None, mixes: Mixes | None = None, seed: int = 0) -> Section:
    """Of the grid of types and objects; objects are the clusters."""
    if grid is None:
        why = 'The training pictures have no types (metadata.jsonl, "type"): nothing to put on objects.'
        return Section(TITLE, ASKED, notes=(why,))
    numbers = [*map(probe, grid.probes), *accuracies(grid, seed), *composed(grid, seed)]
    numbers += directions(grid, seed)
    if mixes is not None:
        numbers += mixed(mixes)
    return Section(
        TITLE, ASKED, tuple(numbers), tables=tuple(tables(grid)),
        notes=("Type: a probe on pictures' features that learnt the training pictures' types. Object: the nearest of "
               "the objects' names to the scorer. Neither is right more often than the first lines say. Direction: "
               'the cosine of what "water type" changes in the picture and in the words.',),
        cannot=("A probe that learnt creatures judges fridges: what it calls water may be blue paint. GenEval and "
                "T2I-CompBench need detectors that are not here.",),
    )  # fmt: skip


def probe(found: Probe) -> Number:
    share = wilson_interval(found.right, found.trials)
    return of(f"accuracy of the probe for {found.name}, held out", share, floor=1 / found.classes, ceiling=1.0)


def hits(grid: Grid, said: Said) -> dict[str, Hits]:
    kind, thing = said.types == grid.types, said.objects == grid.objects
    return {"type": kind, "object": thing, "both": kind & thing}


def accuracies(grid: Grid, seed: int) -> list[Number]:
    """Type, object and both: the tuned model's share, the base's and the paired change."""
    tuned, base = hits(grid, grid.tuned), hits(grid, grid.base)
    chances = {"type": 1 / len(set(grid.types.tolist())), "object": 1 / len(set(grid.objects.tolist()))}
    chances = {**chances, "both": chances["type"] * chances["object"]}
    found = []
    for name in tuned:
        gap = tuned[name].astype(float) - base[name].astype(float)
        change = mean_interval(gap, grid.objects)
        found += [
            of(f"{name} right", mean_interval(tuned[name].astype(float), grid.objects), base=float(base[name].mean()),
               floor=chances[name], ceiling=1.0),
            of(f"{name} right, change", change, p=sign_flip_test(gap, grid.objects, seed=seed),
               said=sided(change, "more than the base", "less than the base")),
        ]  # fmt: skip
    return found


def composed(grid: Grid, seed: int) -> list[Number]:
    """Both right, less the product of the margins: of tuned, of base."""
    found = []
    for name, said in (("tuned", grid.tuned), ("base", grid.base)):
        of_side = hits(grid, said)
        excess = jackknife_interval(lambda mask, of_side=of_side: beyond(of_side, mask), grid.objects)
        product = float(of_side["type"].mean() * of_side["object"].mean())
        found.append(of(f"both right less the product of the margins ({product:.3f}), {name}", excess, floor=0.0,
                        said=sided(excess, "type and object go together", "one at the cost of the other")))  # fmt: skip
    return found


def beyond(of_side: dict[str, Hits], mask: Hits) -> float:
    kind, thing, joint = (float(of_side[name][mask].mean()) for name in ("type", "object", "both"))
    return joint - kind * thing


def directions(grid: Grid, seed: int) -> list[Number]:
    """Directional similarity, tuned and base."""
    tuned, base = grid.tuned.direction, grid.base.direction
    if tuned is None or base is None:
        return []
    interval = mean_interval(tuned, grid.objects)
    return [of("directional similarity", interval, base=float(base.mean()), floor=0.0, ceiling=1.0,
               p=sign_flip_test(tuned - base, grid.objects, seed=seed),
               said=sided(interval, "pictures change as words do", "pictures change against the words"))]  # fmt: skip


def mixed(mixes: Mixes) -> list[Number]:
    """Two names in one prompt: are both among the two nearest names, and how near is the farther one."""
    found = []
    both = {name: in_top_two(side, mixes.pairs) for name, side in (("tuned", mixes.tuned), ("base", mixes.base))}
    share = wilson_interval(int(both["tuned"].sum()), len(both["tuned"]))
    names = mixes.tuned.shape[1]
    found.append(of("mixes with both names in the top two", share, base=float(both["base"].mean()),
                    floor=2 / (names * (names - 1))))  # fmt: skip
    farther = {name: np.take_along_axis(side, mixes.pairs, axis=1).min(axis=1)
               for name, side in (("tuned", mixes.tuned), ("base", mixes.base))}  # fmt: skip
    change = mean_interval(farther["tuned"] - farther["base"], mixes.prompts)
    found.append(of("likeness to the farther of the two, change", change, base=float(farther["base"].mean()),
                    said=sided(change, "nearer", "farther")))  # fmt: skip
    return found


def in_top_two(likeness: NDArray[np.floating], pairs: NDArray[np.int64]) -> Hits:
    top = np.argsort(-likeness, axis=1)[:, :2]
    return np.array([set(row) == set(pair) for row, pair in zip(top.tolist(), pairs.tolist(), strict=True)])


def tables(grid: Grid) -> list[Table]:
    """Which types are taken for which, and the shares of each type and object."""
    kinds = list(dict.fromkeys(grid.types.tolist()))
    seen = list(dict.fromkeys([*kinds, *grid.tuned.types.tolist()]))
    rows = [[asked, *(int(((grid.types == asked) & (grid.tuned.types == other)).sum()) for other in seen)]
            for asked in kinds]  # fmt: skip
    return [
        Table("Types asked for (rows) and what the tuned model's pictures are taken for", ("asked", *seen), rows),
        Table("Both right, by object", ("object", "type", "object ", "both"), list(by_object(grid))),
    ]


def by_object(grid: Grid) -> Sequence[tuple[str | float, ...]]:
    of_side = hits(grid, grid.tuned)
    return [
        (thing, *(float(of_side[name][grid.objects == thing].mean()) for name in ("type", "object", "both")))
        for thing in dict.fromkeys(grid.objects.tolist())
    ]
