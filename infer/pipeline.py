"""From latents to a picture and the verdict on it: ok, nan (it says so instead of being black), or flagged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, repeat
from typing import TYPE_CHECKING, Any, Literal

import torch

from data import images
from data.errors import InputError
from infer import conditioning_images, contact_sheet, sampling_loop, schedulers
from infer.conditioning_images import ConditioningImages
from infer.config import LoraFile
from infer.prompts import ImageRequest
from infer.text_encoding import PromptEncoder

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from PIL import Image
    from torch import Tensor

    from data.shapes import Latents, TextStates
    from infer.config import GenerateOptions
    from train.model import BaseModel

Verdict = Literal["ok", "nan", "flagged"]


@dataclass(frozen=True)
class DecodedImage:
    """verdict nan: the image says so. again: it was decoded once more in fp32. concepts: what a checker flagged."""

    image: Image.Image
    verdict: Verdict
    again: bool = False
    concepts: tuple[str, ...] = ()
    hidden: bool = False


class ImageDecoder:
    """The autoencoder's decoder, with a copy of it in fp32 for pictures that break down in half precision."""

    def __init__(self, vae: Any, checker: SafetyChecker | None = None) -> None:
        self.vae, self.checker = vae, checker

    @cached_property
    def exact(self) -> Any:
        return copy.deepcopy(self.vae).float()

    @torch.no_grad()
    def __call__(self, latents: Latents) -> DecodedImage:
        """One picture out of its latents (1, C, h, w)."""
        pixels, again = self.pixels(self.vae, latents), False
        if not is_finite(pixels) and is_finite(latents) and self.vae.dtype != torch.float32:
            pixels, again = self.pixels(self.exact, latents.float()), True
        if not is_finite(pixels):
            return DecodedImage(contact_sheet.placeholder_image(pixels.shape[2], pixels.shape[1]), "nan", again)
        image = images.tensor_to_image(pixels)
        return DecodedImage(image, "ok", again) if self.checker is None else self.checker.judged(image, again)

    def pixels(self, vae: Any, latents: Latents) -> Tensor:
        """(3, H, W) float32 on the CPU, in [-1, 1] or roughly so."""
        return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0][0].float().cpu()


def is_finite(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all())


class SafetyChecker:
    """CompVis' safety checker: its verdict is written down; the picture is kept unless hiding was asked for.

    It was made for photographs and flags drawn figures that nobody would.
    """

    def __init__(self, network: Any, prepare: Any, *, hide: bool) -> None:
        self.network, self.prepare, self.hide = network, prepare, hide

    @torch.no_grad()
    def judged(self, image: Image.Image, again: bool) -> DecodedImage:
        weight = next(self.network.parameters())
        seen = self.prepare(images=image, return_tensors="pt").pixel_values.to(weight.device, weight.dtype)
        concepts = self.concepts(seen)
        if not concepts:
            return DecodedImage(image, "ok", again)
        shown = contact_sheet.placeholder_image(*image.size, words="hidden") if self.hide else image
        return DecodedImage(shown, "flagged", again, concepts, self.hide)

    def concepts(self, seen: Tensor) -> tuple[str, ...]:
        """Concepts whose cosine similarity to the picture is over their threshold, and by how much.

        As StableDiffusionSafetyChecker.forward, which would also paint the picture black: a special concept lowers the
        other thresholds by 0.01.
        """
        net = self.network
        embeds = torch.nn.functional.normalize(net.visual_projection(net.vision_model(seen)[1]).float())
        special = excess_similarity(embeds, net.special_care_embeds, net.special_care_embeds_weights)
        lowered = 0.01 if any(score > 0 for score in special) else 0.0
        plain = excess_similarity(embeds, net.concept_embeds, net.concept_embeds_weights)
        scores = {f"concept {number}": round(score + lowered, 3) for number, score in enumerate(plain)}
        return tuple(f"{name} by {score:g}" for name, score in scores.items() if score > 0)


def excess_similarity(embeds: Tensor, concepts: Tensor, thresholds: Tensor) -> list[float]:
    """By how much the similarity to each concept is over its threshold."""
    similar = embeds @ torch.nn.functional.normalize(concepts.float()).T
    return (similar[0] - thresholds.float()).cpu().tolist()


def load_safety_checker(options: GenerateOptions, device: torch.device) -> SafetyChecker:
    """A safety checker from a folder that holds safety_checker/ and feature_extractor/, or is the former itself.

    Raises InputError.
    """
    folder = options.safety_checker
    assert folder is not None
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from safetensors import SafetensorError
    from transformers import CLIPImageProcessor

    own = folder / "safety_checker" if (folder / "safety_checker").is_dir() else folder
    prepares = [place for place in (folder / "feature_extractor", own) if (place / PREPROCESSOR_CONFIG).is_file()]
    where = f"--safety-checker {folder}"
    if not (own / "config.json").is_file() or not prepares:
        what = f"holds no safety checker: safety_checker/config.json and feature_extractor/{PREPROCESSOR_CONFIG} are looked for"
        raise InputError(what, where=where)
    try:
        network: Any = StableDiffusionSafetyChecker.from_pretrained(own, use_safetensors=True, local_files_only=True)
        prepare = CLIPImageProcessor.from_pretrained(prepares[0], local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(f"could not be loaded ({reason})", where=where) from error
    return SafetyChecker(network.requires_grad_(False).eval().to(device), prepare, hide=options.hide_flagged)


PREPROCESSOR_CONFIG = "preprocessor_config.json"


MICRO_BATCH = {"cpu": 1, "mps": 1}  # other devices: 4, which fills a GPU at 512 x 512 well enough
GPU_MICRO_BATCH = 4
ImageCallback = Callable[
    [Sequence[ImageRequest], "Latents"], object
]  # a micro-batch's pictures, and their latents after a call
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class SamplingSettings:
    """How pictures are drawn. Sizes in pixels; guidance_scale 1 or less: the prompt alone, no guidance.

    guidance_stop: the share of the steps that are guided. strength: of what is drawn over a picture that is given.
    weighting: the prompts' grammar, see infer/text_encoding.py.
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

    def of(self, picture: ImageRequest) -> SamplingSettings:
        """With what the picture has of its own."""
        return replace(self, **picture.own)


@dataclass(frozen=True)
class GeneratedImage:
    """A finished picture; verdict `nan` when its numbers broke down; `image` then says so instead of being black."""

    picture: ImageRequest
    settings: SamplingSettings
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


def build_pipeline(model: BaseModel, scheduler: str | None, device: torch.device) -> StableDiffusionPipeline:
    """The model's parts as a diffusers pipeline without safety checker, on the device. No autocast anywhere."""
    import diffusers

    silence_libraries()
    parts: dict[str, Any] = {
        "vae": model.vae,
        "text_encoder": model.text_encoder,
        "tokenizer": model.tokenizer,
        "unet": model.unet,
        "scheduler": schedulers.build_scheduler(scheduler, model.scheduler_config),
    }
    absent: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    pipe = diffusers.StableDiffusionPipeline(**parts, **absent, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    if device.type == "cuda":  # tensor cores read channels last; on a CPU the bits stay diffusers' own
        for network in (pipe.unet, pipe.vae):
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return pipe


def silence_libraries() -> None:
    """Only errors from the libraries: our own lines say what people need to know, once, and one bar shows progress."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    for logging in (of_diffusers, of_transformers):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def count_unet_calls(pipe: StableDiffusionPipeline, steps: int, strength: float = 1.0) -> int:
    """U-Net calls for one picture: PNDM makes one more than steps, Heun nearly twice as many. Raises InputError."""
    sampling_loop.check_strength(steps, strength)
    most = pipe.scheduler.config.num_train_timesteps
    if steps > most:  # some schedulers refuse, others would stay at the first timestep
        raise InputError(
            f"{steps} steps are more than the model was trained with", where="--steps", allowed=f"1 to {most}"
        )
    try:
        timesteps = sampling_loop.set_timesteps(copy.deepcopy(pipe.scheduler), steps, strength)
    except (ValueError, IndexError, RuntimeError, ZeroDivisionError) as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(f"{steps} steps do not suit the scheduler ({reason})", where="--steps") from None
    return len(timesteps)


def no_callback(pictures: Sequence[ImageRequest], latents: Latents) -> None:
    """The default callback: does nothing."""


def generate_images(
    pipe: StableDiffusionPipeline,
    pictures: Sequence[ImageRequest],
    settings: SamplingSettings,
    on_call: Callable[[int], object] = lambda pictures: None,
    *,
    watch: ImageCallback = no_callback,
    given: ConditioningImages = conditioning_images.NO_IMAGES,
    decoder: ImageDecoder | None = None,
    wear: Callable[[tuple[LoraFile, ...]], object] = lambda loras: None,
) -> Iterator[GeneratedImage]:
    """Generate the images in order. After each U-Net call, `on_call` gets the number of images, `watch` their latents.

    settings: defaults of the images that have none of their own. given: input images. wear: activates LoRAs.
    Raises InputError when the device runs out of memory.
    """
    decoder = decoder or ImageDecoder(pipe.vae)
    encoders: dict[tuple[tuple[LoraFile, ...], str], PromptEncoder] = {}
    for (loras, own), alike in groupby(pictures, lambda picture: (picture.loras, settings.of(picture))):
        wear(loras)
        encoder = encoders.setdefault((loras, own.weighting), PromptEncoder(pipe, own.weighting))
        for chunk in micro_batches(list(alike), own, encoder):
            padded = [*chunk, *[chunk[-1]] * (own.micro_batch - len(chunk))]
            states = encoder.pair([picture.prompt for picture in padded], own.negative_prompt)

            def called(number: int, t: object, latents: Latents, chunk: Sequence[ImageRequest] = chunk) -> None:
                on_call(len(chunk))
                watch(chunk, latents)

            latents = sample_micro_batch(pipe, padded, own, states, called, given)
            with out_of_memory_as_input_error():
                decoded = [decoder(row) for row in latents.split(1)[: len(chunk)]]
            yield from map(finish_image, chunk, repeat(own), repeat(given), decoded)


def micro_batches(
    pictures: Sequence[ImageRequest], settings: SamplingSettings, encoder: PromptEncoder
) -> Iterator[Sequence[ImageRequest]]:
    """Images of equal settings; neighbours have embeddings of one length, so that none is padded for the others."""

    def length(picture: ImageRequest) -> int:
        return encoder.length(picture.prompt, settings.negative_prompt)

    rows = [[picture] for picture in pictures] if settings.micro_batch == 1 else groupby(pictures, length)
    for same in rows:
        yield from split_chunks(list(same if isinstance(same, list) else same[1]), settings.micro_batch)


def finish_image(
    picture: ImageRequest, settings: SamplingSettings, given: ConditioningImages, decoded: DecodedImage
) -> GeneratedImage:
    """The image with the original pasted back outside the mask."""
    image = decoded.image
    if decoded.verdict != "nan" and not decoded.hidden:
        image = given.at(settings.width, settings.height).pasted(image)
    return GeneratedImage(picture, settings, image, decoded.verdict, decoded.again, decoded.concepts)


def split_chunks(pictures: Sequence[ImageRequest], size: int) -> Iterator[Sequence[ImageRequest]]:
    """In order, each but the last of `size` pictures."""
    return (pictures[start : start + size] for start in range(0, len(pictures), size))


def sample_micro_batch(
    pipe: StableDiffusionPipeline,
    pictures: Sequence[ImageRequest],
    settings: SamplingSettings,
    states: tuple[TextStates, TextStates],
    watch: sampling_loop.StepCallback,
    given: ConditioningImages = conditioning_images.NO_IMAGES,
) -> Latents:
    """The latents (B, C, h, w) of a micro-batch. watch: called with every step's number, timestep and latents."""
    generators = [torch.Generator("cpu").manual_seed(picture.seed) for picture in pictures]
    parts = sampling_loop.Networks(pipe.unet, pipe.vae, copy.deepcopy(pipe.scheduler), pipe.device)
    with out_of_memory_as_input_error():
        return sampling_loop.sample_latents(
            parts, sampling_loop.MicroBatch(settings, *states, generators, given), watch
        )


@contextmanager
def out_of_memory_as_input_error() -> Iterator[None]:
    """A device that is full is one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        fix = "Choose a smaller --height and --width, or --device cpu."
        raise InputError("the device has too little memory for this size", where="--device", fix=fix) from None
