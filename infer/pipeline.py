"""diffusers' StableDiffusionPipeline out of a BaseModel's parts, and pictures out of it, one generator each.

A picture depends on its own prompt and seed alone: its start noise and step noise come from a CPU generator of its own,
every prompt is encoded alone, and the U-Net always sees the same micro-batch shape, the last one padded, with the same
number of threads inside its operations.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from data.errors import InputError
from infer import canvas, crew, denoising, schedulers
from infer.canvas import Canvas
from infer.config import LoraFile
from infer.crew import Crew, Stopped
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
    from train.libraries import diffusers

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


@dataclass(frozen=True)
class Group:
    """Pictures of one kind, drawn in micro-batches: the same settings, LoRAs and length of text states."""

    settings: Settings
    pictures: Sequence[Picture]
    encoder: Encoder
    canvas: Canvas


def unwatched(pictures: Sequence[Picture], latents: Latents) -> None:
    """Nobody looks on."""


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
    by: Crew | None = None,
) -> Iterator[Drawn]:
    """Draw the pictures in order. `on_call` is told after each U-Net call for how many pictures it was, `watch` which.

    settings: of all pictures that have none of their own. given: pictures that go in. wear: puts LoRAs on the networks.
    by: who draws; by default who is suited. Raises InputError when the memory does not do.
    """
    here = by or suited(pipe)
    decoder = decoder or Decoder(pipe.vae)
    encoders: dict[tuple[tuple[LoraFile, ...], str], Encoder] = {}
    for loras, alike in groupby(pictures, lambda picture: picture.loras):
        wear(loras)
        for own, same in groupby(alike, settings.of):
            encoder = encoders.setdefault((loras, own.weighting), Encoder(pipe, own.weighting))
            yield from draw_alike(pipe, Group(own, list(same), encoder, given), decoder, here, on_call, watch)


def suited(pipe: StableDiffusionPipeline) -> Crew:
    """Who draws with this pipeline."""
    return crew.suited(pipe.unet, pipe.device)


def draw_alike(
    pipe: StableDiffusionPipeline,
    group: Group,
    decoder: Decoder,
    here: Crew,
    on_call: Callable[[int], object],
    watch: Watch = unwatched,
) -> Iterator[Drawn]:
    """Pictures with the same settings and LoRAs."""
    stop = threading.Event()
    lock = threading.Lock()

    def work(chunk: Sequence[Picture]) -> list[Drawn]:
        def called(number: int, t: object, latents: Latents) -> None:
            if stop.is_set():
                raise Stopped
            on_call(len(chunk))
            watch(chunk, latents)

        size = group.settings.micro_batch
        padded = [*chunk, *[chunk[-1]] * (size - len(chunk))]
        with lock:  # remembers what it has encoded
            states = group.encoder.pair([picture.prompt for picture in padded], group.settings.negative_prompt)
        latents = latents_of(pipe, padded, group.settings, states, called, group.canvas)
        with enough_memory():
            rows = zip(chunk, latents.split(1), strict=False)
            return [finished(picture, group, decoder(row)) for picture, row in rows]

    def length(picture: Picture) -> int:
        with lock:
            return group.encoder.length(picture.prompt, group.settings.negative_prompt)

    if group.settings.micro_batch == 1:
        rows = [[picture] for picture in group.pictures]
    else:  # neighbours in a micro-batch have text states of one length, so none is padded for the other's sake
        alike = [list(same) for _, same in groupby(group.pictures, length)]
        rows = [list(chunk) for same in alike for chunk in chunks(same, group.settings.micro_batch)]
    for drawn in here.each(work, rows, stop):
        yield from drawn


def finished(picture: Picture, group: Group, decoded: Decoded) -> Drawn:
    """A picture with what was given pasted back where it was not to be drawn."""
    image = decoded.image
    if decoded.verdict != "nan" and not decoded.hidden:
        image = group.canvas.at(group.settings.width, group.settings.height).pasted(image)
    return Drawn(picture, group.settings, image, decoded.verdict, decoded.again, decoded.concepts)


def chunks(pictures: Sequence[Picture], size: int) -> Iterator[Sequence[Picture]]:
    """In order, each but the last of `size` pictures."""
    return (pictures[start : start + size] for start in range(0, len(pictures), size))


def denoise(
    pipe: StableDiffusionPipeline,
    pictures: Sequence[Picture],
    settings: Settings,
    encode: Encoder,
    on_call: Callable[[], object],
) -> Latents:
    """The latents (B, C, h, w) of a micro-batch of pictures. Raises InputError when the GPU's memory does not do."""
    states = encode.pair([picture.prompt for picture in pictures], settings.negative_prompt)
    return latents_of(pipe, pictures, settings, states, lambda *_: on_call())


def latents_of(
    pipe: StableDiffusionPipeline,
    pictures: Sequence[Picture],
    settings: Settings,
    states: tuple[TextStates, TextStates],
    watch: denoising.Watch,
    given: Canvas = canvas.BLANK,
) -> Latents:
    """As denoise(), with the text states at hand. watch: told of every step's number, timestep and latents."""
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


def start_noise(pipe: StableDiffusionPipeline, generators: Sequence[torch.Generator], settings: Settings) -> Latents:
    """What a picture is drawn out of, (B, C, h, w)."""
    parts = denoising.Parts(pipe.unet, pipe.vae, pipe.scheduler, pipe.device)
    return denoising.noise_of(parts, settings, generators)


def decode(pipe: StableDiffusionPipeline, latents: Latents) -> tuple[Image.Image, Verdict]:
    """One picture out of its latents (1, C, h, w), and the verdict on it."""
    decoded = Decoder(pipe.vae)(latents)
    return decoded.image, decoded.verdict
