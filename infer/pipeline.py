"""diffusers' StableDiffusionPipeline out of a BaseModel's parts, and pictures out of it, one generator each.

A picture depends on its own prompt and seed alone: its start noise and step noise come from a CPU generator of its own,
every prompt is encoded alone, and the U-Net always sees the same micro-batch shape, the last one padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import torch

from data import images
from data.errors import InputError
from infer import schedulers, sheets
from infer.prompts import Picture

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from PIL import Image
    from torch import Tensor

    from data.shapes import Latents, TextStates
    from train.base_model import BaseModel

MICRO_BATCH = {"cpu": 1, "mps": 1}  # other devices: 4, which fills a GPU at 512 x 512 well enough
GPU_MICRO_BATCH = 4
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """How pictures are drawn. Sizes in pixels; guidance_scale 1 or less: the prompt alone, no guidance."""

    steps: int
    guidance_scale: float
    width: int
    height: int
    negative_prompt: str = ""
    micro_batch: int = 1

    def of(self, picture: Picture) -> Settings:
        """With what the picture has of its own."""
        return replace(self, **picture.own)


@dataclass(frozen=True)
class Drawn:
    """A finished picture; verdict `nan` when its numbers broke down; `image` then says so instead of being black."""

    picture: Picture
    settings: Settings
    image: Image.Image
    verdict: Literal["ok", "nan"]


def choose_device(asked: str | None) -> torch.device:
    """The device asked for, else a GPU if there is one. Raises InputError for one that this machine lacks."""
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
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
    return pipe.to(device)


def quieten() -> None:
    """Only errors from the libraries: our own lines say what people need to know, once, and one bar shows progress."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    for logging in (of_diffusers, of_transformers):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def calls_of(pipe: StableDiffusionPipeline, steps: int) -> int:
    """U-Net calls for one picture: PNDM makes one more than steps, Heun nearly twice as many. Raises InputError."""
    most = pipe.scheduler.config.num_train_timesteps
    if steps > most:  # some schedulers refuse, others would stay at the first timestep
        raise InputError(
            f"{steps} steps are more than the model was trained with", where="--steps", allowed=f"1 to {most}"
        )
    try:
        pipe.scheduler.set_timesteps(steps)
    except (ValueError, IndexError, RuntimeError, ZeroDivisionError) as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(f"{steps} steps do not suit the scheduler ({reason})", where="--steps") from None
    return len(pipe.scheduler.timesteps)


class Encoder:
    """Text states of each prompt, encoded once and alone, so that they do not depend on what else is drawn."""

    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        self.pipe = pipe
        self.known: dict[str, TextStates] = {}

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> TextStates:
        for prompt in dict.fromkeys(prompts):
            if prompt not in self.known:
                self.known[prompt], _ = self.pipe.encode_prompt(prompt, self.pipe.device, 1, False)
        return torch.cat([self.known[prompt] for prompt in prompts])  # (B, L, D)


def draw(
    pipe: StableDiffusionPipeline,
    pictures: Sequence[Picture],
    settings: Settings,
    on_call: Callable[[int], object] = lambda pictures: None,
) -> Iterator[Drawn]:
    """Draw the pictures in order. `on_call` is told after each U-Net call for how many pictures it was.

    settings: of all pictures that have none of their own.
    """
    encode = Encoder(pipe)
    for own, alike in groupby(pictures, settings.of):
        for chunk in chunks(list(alike), own.micro_batch):
            padded = [*chunk, *[chunk[-1]] * (own.micro_batch - len(chunk))]
            latents = denoise(pipe, padded, own, encode, partial(on_call, len(chunk)))
            for number, picture in enumerate(chunk):
                image, verdict = decode(pipe, latents[number : number + 1])
                yield Drawn(picture, own, image, verdict)


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
    generators = [torch.Generator("cpu").manual_seed(picture.seed) for picture in pictures]

    def after_call(pipe: Any, step: int, timestep: Any, states: dict[str, Tensor]) -> dict[str, Tensor]:
        on_call()
        return states

    try:
        result = pipe(
            prompt_embeds=encode([picture.prompt for picture in pictures]),
            negative_prompt_embeds=encode([settings.negative_prompt] * len(pictures)),
            latents=start_noise(pipe, generators, settings),
            generator=generators,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            height=settings.height,
            width=settings.width,
            output_type="latent",
            callback_on_step_end=after_call,  # pyright: ignore[reportArgumentType]
        )
    except torch.OutOfMemoryError:
        fix = "Choose a smaller --height and --width, or --device cpu."
        raise InputError("the device has too little memory for this size", where="--device", fix=fix) from None
    return result.images  # pyright: ignore[reportAttributeAccessIssue, reportReturnType]


def start_noise(pipe: StableDiffusionPipeline, generators: Sequence[torch.Generator], settings: Settings) -> Latents:
    """Standard normal latents (B, C, h, w), drawn in fp32 whatever the precision, so that a seed means one picture."""
    factor = pipe.vae_scale_factor
    shape = (1, pipe.unet.config.in_channels, settings.height // factor, settings.width // factor)
    noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    return noise.to(pipe.device, pipe.unet.dtype)


@torch.no_grad()
def decode(pipe: StableDiffusionPipeline, latents: Latents) -> tuple[Image.Image, Literal["ok", "nan"]]:
    """One picture out of its latents (1, C, h, w), and the verdict on it."""
    pixels = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    pixels = pixels[0].float().cpu()  # (3, H, W) in [-1, 1], roughly
    if not bool(torch.isfinite(pixels).all()):
        return sheets.broken(pixels.shape[2], pixels.shape[1]), "nan"
    return images.to_picture(pixels), "ok"
