"""Means along a curve, for the eye."""

from __future__ import annotations

from collections.abc import Sequence


def centred_mean(values: Sequence[float], reach: int = 25) -> list[float]:
    """The mean of each value with up to `reach` on either side.

    At the start, where losses fall, as many on both sides, so that the fall is not seen late; at the end, where they
    hardly do, some before it too, so that the last value does not stand for itself.
    """
    found = []
    for place in range(len(values)):
        after = min(reach, len(values) - 1 - place)
        before = min(place, max(after, reach // 2))
        window = values[place - before : place + min(before, after) + 1]
        found.append(sum(window) / len(window))
    return found
