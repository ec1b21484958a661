"""How large a picture is: as typed, by a ratio of its sides, as the picture given, or as the model learned it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data.errors import InputError

if TYPE_CHECKING:
    from infer.config import GenerateOptions
    from train.base_model import BaseModel


def chosen(options: GenerateOptions, model: BaseModel, given: tuple[int, int] | None) -> tuple[int, int]:
    """(width, height) in pixels. given: of a picture that goes in; its ratio is kept if nothing else is said."""
    if options.width or options.height or (not options.aspect and given is None):
        return options.width or model.sample_size, options.height or model.sample_size
    ratio = options.ratio or (given[0] / given[1] if given else 1.0)
    return of_ratio(ratio, model.sample_size**2, model.step)


def of_ratio(ratio: float, area: int, step: int) -> tuple[int, int]:
    """The sides of about this ratio and area (pixels) that are multiples of `step`; the ratio counts twice as much."""

    def miss(sides: tuple[int, int]) -> float:
        width, height = sides
        return 2 * abs(math.log(width / height / ratio)) + abs(math.log(width * height / area))

    width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
    return min(((w, h) for w in around(width, step) for h in around(height, step)), key=miss)


def around(side: float, step: int) -> Sequence[int]:
    below = max(step, int(side // step) * step)
    return (below, below + step)


def wrong(flag: str, side: int, model: BaseModel) -> list[InputError]:
    """An InputError for a side that the model's networks cannot halve as often as they do."""
    if side % model.step == 0:
        return []
    below = side // model.step * model.step
    near = f"{below} or {below + model.step}" if below else f"{model.step}"
    return [InputError(f"{side} is not a multiple of {model.step} pixels", where=flag, fix=f"Take {near}.")]
