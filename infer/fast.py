"""--fast: fewer steps of a second-order solver, the last without guidance; how far that, or --guidance-stop, is from
the exact run.

It is another picture of the same words, and says so: in the metadata, and by how far it is from the one it stands for.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
from PIL import Image

from infer import loras, pipeline
from infer.config import GenerateOptions
from infer.crew import Crew
from infer.pipeline import Settings
from infer.planning import Job
from infer.prompts import Picture
from train.base_model import BaseModel

MEANS = {"steps": 20, "scheduler": "dpmpp_2m_karras", "guidance_stop": 0.8}


def settings(options: GenerateOptions) -> GenerateOptions:
    """With what --fast means, where nothing else was typed."""
    changes = {name: value for name, value in MEANS.items() if name not in options.model_fields_set}
    return options.model_copy(update=changes)


def distance(job: Job, exact: GenerateOptions, model: BaseModel, picture: Picture) -> str:
    """Draw one picture both ways, one after the other: how far apart they are, and how long each took.

    exact: the options without what --fast means; every step of it is guided.
    """
    own = {"steps": exact.steps} | dict(picture.own) | {"guidance_stop": 1.0}
    slow = replace(job.settings.of(picture), **own)
    ways = [(job.settings.of(picture), job.scheduler), (slow, exact.scheduler)]
    drawn = [timed(job, model, picture, way, scheduler) for way, scheduler in ways]
    (one, seconds), (other, longer) = drawn
    times = f"{seconds:.2f} s instead of {longer:.2f} s a picture ({longer / seconds:.1f} times as fast)"
    way = "fast" if job.fast else "guidance-stop"
    return f"{way}: {times}, {psnr(one, other):.1f} dB from the exact picture (of {picture.file_name})"


def timed(
    job: Job, model: BaseModel, picture: Picture, settings: Settings, scheduler: str | None
) -> tuple[Image.Image, float]:
    """One picture by one thread or the accelerator, and the seconds it took."""
    pipe = pipeline.build(model, scheduler, job.device)
    worn = list(dict.fromkeys(file for each in job.pictures for file in each.loras))
    loras.wear(pipe, worn, picture.loras)
    alone = replace(picture, own={})
    crew = Crew(1, pipeline.suited(pipe).threads)
    start = time.perf_counter()
    (drawn,) = pipeline.draw(pipe, [alone], settings, given=job.given, by=crew)
    return drawn.image, time.perf_counter() - start


def psnr(one: Image.Image, two: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB of two pictures of one size."""
    values = [np.asarray(picture.convert("RGB"), dtype=np.float64) for picture in (one, two)]
    error = float(np.mean((values[0] - values[1]) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf
