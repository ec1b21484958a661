"""diffusers' StableDiffusionPipeline out of a BaseModel's parts, and pictures out of it, one generator each.

A picture depends on its own prompt and seed alone: its start noise and step noise come from a CPU generator of its own,
every prompt is encoded alone, and the U-Net always sees the same micro-batch shape, the last one padded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby, repeat
from typing import TYPE_CHECKING, Any

import torch

from data.errors import InputError
from infer import canvas, denoising, schedulers
from infer.canvas import Canvas
from infer.config import LoraFile
from infer.decoding import Decoded, Decoder, Verdict
from infer.encoder import Encoder
from infer.prompts import Picture

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from PIL import Image

    from data.shapes import Latents, TextStates
    from train.base_model import BaseModel

MICRO_BATCH = {"cpu": 1, "mps": 1}  # other devices: 4, which fills a GPU at 512 x 512 well enough
GPU_MICRO_BATCH = 4
Watch = Callable[[Sequence[Picture], "Latents"], object]  # a micro-batch's pictures, and their latents after a call
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """How pictures are drawn. Sizes in pixels; guidance_scale 1 or less: the prompt alone, no guidance.

    guidance_stop: the share of the steps that are guided. strength: of what is drawn over a picture that is given.
    weighting: the prompts' grammar, see infer/encoder.py.
    """

    steps: int
    guidance_scale: float
    width: int
    height: int
    negative_prompt: str = ""
    micro_batch: int = 1
    guidance_rescale: float = 0.0
    guidance_stop: float = 1.0
    strength: float = 1.0
    weighting: str = "none"

    def of(self, picture: Picture) -> Settings:
        """With what the picture has of its own."""
        return replace(self, **picture.own)


@dataclass(frozen=True)
class Drawn:
    """A finished picture; verdict `nan` when its numbers broke down; `image` then says so instead of being black."""

    picture: Picture
    settings: Settings
    image: Image.Image
    verdict: Verdict
    decoded_again: bool = False
    concepts: tuple[str, ...] = ()


def choose_device(asked: str | None, local_rank: int = 0) -> torch.device:
    """The device asked for, else a GPU if there is one. Raises InputError for one that this machine lacks.

    local_rank: of this process among those of the machine: each takes a GPU of its own.
    """
    best = (
        f"cuda:{local_rank % torch.cuda.device_count()}"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu"
    )
    try:
        device = torch.device(asked or best)
    except RuntimeError:
        raise InputError(f"unknown device {asked!r}", where="--device", allowed="cpu, cuda, cuda:1, mps") from None
    here = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= here.get(device.type, 0):
        known = ", ".join(kind for kind, count in here.items() if count)
        raise InputError(f"this machine has no device {asked!r}", where="--device", allowed=known)
    return device


def choose_dtype(asked: str | None, device: torch.device) -> torch.dtype:
    """The precision asked for, else fp32 on the CPU and fp16 on a GPU. Raises InputError for fp16 on the CPU."""
    if asked == "fp16" and device.type == "cpu":
        raise InputError("fp16 needs a GPU", where="--dtype", allowed="fp32, bf16")
    return DTYPES[asked or ("fp16" if device.type == "cuda" else "fp32")]


def micro_batch_for(device: torch.device) -> int:
    """How many pictures one U-Net call draws; fixed for a kind of device, because kernels depend on the shape."""
    return MICRO_BATCH.get(device.type, GPU_MICRO_BATCH)


def build(model: BaseModel, scheduler: str | None, device: torch.device) -> StableDiffusionPipeline:
    """The model's parts as a diffusers pipeline without safety checker, on the device. No autocast anywhere."""
    import diffusers

    quieten()
    parts: dict[str, Any] = {
        "vae": model.vae,
        "text_encoder": model.text_encoder,
        "tokenizer": model.tokenizer,
        "unet": model.unet,
        "scheduler": schedulers.build(scheduler, model.scheduler_config),
    }
    absent: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    pipe = diffusers.StableDiffusionPipeline(**parts, **absent, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    if device.type == "cuda":  # tensor cores read channels last; on a CPU the bits stay diffusers' own
        for network in (pipe.unet, pipe.vae):
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return pipe


def quieten() -> None:
    """Only errors from the libraries: our own lines say what people need to know, once, and one bar shows progress."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    for logging in (of_diffusers, of_transformers):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def calls_of(pipe: StableDiffusionPipeline, steps: int, strength: float = 1.0) -> int:
    """U-Net calls for one picture: PNDM makes one more than steps, Heun nearly twice as many. Raises InputError."""
    denoising.check_strength(steps, strength)
    most = pipe.scheduler.config.num_train_timesteps
    if steps > most:  # some schedulers refuse, others would stay at the first timestep
        raise InputError(
            f"{steps} steps are more than the model was trained with", where="--steps", allowed=f"1 to {most}"
        )
    try:
        timesteps = denoising.timesteps_of(copy.deepcopy(pipe.scheduler), steps, strength)
    except (ValueError, IndexError, RuntimeError, ZeroDivisionError) as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(f"{steps} steps do not suit the scheduler ({reason})", where="--steps") from None
    return len(timesteps)


def unwatched(pictures: Sequence[Picture], latents: Latents) -> None:
    """The default callback: does nothing."""


def draw(
    pipe: StableDiffusionPipeline,
    pictures: Sequence[Picture],
    settings: Settings,
    on_call: Callable[[int], object] = lambda pictures: None,
    *,
    watch: Watch = unwatched,
    given: Canvas = canvas.BLANK,
    decoder: Decoder | None = None,
    wear: Callable[[tuple[LoraFile, ...]], object] = lambda loras: None,
) -> Iterator[Drawn]:
    """Generate the images in order. After each U-Net call, `on_call` gets the number of images, `watch` their latents.

    settings: defaults of the images that have none of their own. given: input images. wear: activates LoRAs.
    Raises InputError when the device runs out of memory.
    """
    decoder = decoder or Decoder(pipe.vae)
    encoders: dict[tuple[tuple[LoraFile, ...], str], Encoder] = {}
    for (loras, own), alike in groupby(pictures, lambda picture: (picture.loras, settings.of(picture))):
        wear(loras)
        encoder = encoders.setdefault((loras, own.weighting), Encoder(pipe, own.weighting))
        for chunk in micro_batches(list(alike), own, encoder):
            padded = [*chunk, *[chunk[-1]] * (own.micro_batch - len(chunk))]
            states = encoder.pair([picture.prompt for picture in padded], own.negative_prompt)

            def called(number: int, t: object, latents: Latents, chunk: Sequence[Picture] = chunk) -> None:
                on_call(len(chunk))
                watch(chunk, latents)

            latents = latents_of(pipe, padded, own, states, called, given)
            with enough_memory():
                decoded = [decoder(row) for row in latents.split(1)[: len(chunk)]]
            yield from map(finished, chunk, repeat(own), repeat(given), decoded)


def micro_batches(pictures: Sequence[Picture], settings: Settings, encoder: Encoder) -> Iterator[Sequence[Picture]]:
    """Images of equal settings; neighbours have embeddings of one length, so that none is padded for the others."""

    def length(picture: Picture) -> int:
        return encoder.length(picture.prompt, settings.negative_prompt)

    rows = [[picture] for picture in pictures] if settings.micro_batch == 1 else groupby(pictures, length)
    for same in rows:
        yield from chunks(list(same if isinstance(same, list) else same[1]), settings.micro_batch)


def finished(picture: Picture, settings: Settings, given: Canvas, decoded: Decoded) -> Drawn:
    """The image with the original pasted back outside the mask."""
    image = decoded.image
    if decoded.verdict != "nan" and not decoded.hidden:
        image = given.at(settings.width, settings.height).pasted(image)
    return Drawn(picture, settings, image, decoded.verdict, decoded.again, decoded.concepts)


def chunks(pictures: Sequence[Picture], size: int) -> Iterator[Sequence[Picture]]:
    """In order, each but the last of `size` pictures."""
    return (pictures[start : start + size] for start in range(0, len(pictures), size))


def latents_of(
    pipe: StableDiffusionPipeline,
    pictures: Sequence[Picture],
    settings: Settings,
    states: tuple[TextStates, TextStates],
    watch: denoising.Watch,
    given: Canvas = canvas.BLANK,
) -> Latents:
    """The latents (B, C, h, w) of a micro-batch. watch: called with every step's number, timestep and latents."""
    generators = [torch.Generator("cpu").manual_seed(picture.seed) for picture in pictures]
    parts = denoising.Parts(pipe.unet, pipe.vae, copy.deepcopy(pipe.scheduler), pipe.device)
    with enough_memory():
        return denoising.latents_of(parts, denoising.Work(settings, *states, generators, given), watch)


@contextmanager
def enough_memory() -> Iterator[None]:
    """A device that is full is one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        fix = "Choose a smaller --height and --width, or --device cpu."
        raise InputError("the device has too little memory for this size", where="--device", fix=fix) from None
