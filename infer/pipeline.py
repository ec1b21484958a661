"""A diffusers pipeline made of a BaseModel's parts, and images from it, each with a generator of its own.

An image depends on its own prompt and seed alone: its noise comes from a CPU generator of its own, every prompt is
encoded alone, and the U-Net always sees the same micro-batch shape, the last one padded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, islice
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from data import images
from data.errors import InputError
from data.shapes import Latents, TextStates
from infer import contact_sheet, sampling_loop, schedulers
from infer.conditioning_images import NO_IMAGES, ConditioningImages, ResizedImages, load_errors
from infer.config import GenerateOptions, LoraFile
from infer.prompts import ImageRequest
from infer.sampling_loop import SamplingSettings, StepCallback
from infer.text_encoding import PromptEncoder
from train.model import BaseModel

MICRO_BATCH = {"cpu": 1, "mps": 1}
GPU_MICRO_BATCH = 4  # fills a GPU at 512 x 512 well enough
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PREPROCESSOR_CONFIG = "preprocessor_config.json"
Verdict = Literal["ok", "nan", "flagged"]
ImageCallback = Callable[[Sequence[ImageRequest], Latents], object]  # a micro-batch and its latents after a U-Net call


def choose_device(requested: str | None, local_rank: int = 0) -> torch.device:
    """The requested device, else a GPU if there is one. Raises InputError for one that this machine lacks.

    local_rank: of this process among those of the machine: each takes a GPU of its own.
    """
    gpus, mps = torch.cuda.device_count() if torch.cuda.is_available() else 0, torch.backends.mps.is_available()
    default = f"cuda:{local_rank % gpus}" if gpus else "mps" if mps else "cpu"
    try:
        device = torch.device(requested or default)
    except RuntimeError:
        raise InputError(f"unknown device {requested!r}", where="--device", allowed="cpu, cuda, cuda:1, mps") from None
    counts = {"cpu": 1, "cuda": gpus, "mps": int(mps)}
    if (device.index or 0) >= counts.get(device.type, 0):
        known = ", ".join(kind for kind, count in counts.items() if count)
        raise InputError(f"this machine has no device {requested!r}", where="--device", allowed=known)
    return device


def choose_dtype(requested: str | None, device: torch.device) -> torch.dtype:
    """The requested precision, else fp32 on the CPU and fp16 on a GPU. Raises InputError for fp16 on the CPU."""
    if requested == "fp16" and device.type == "cpu":
        raise InputError("fp16 needs a GPU", where="--dtype", allowed="fp32, bf16")
    return DTYPES[requested or ("fp16" if device.type == "cuda" else "fp32")]


def micro_batch_for(device_type: str) -> int:
    """Images in one U-Net call; fixed for a kind of device, because kernels depend on the shape."""
    return MICRO_BATCH.get(device_type, GPU_MICRO_BATCH)


def build_pipeline(model: BaseModel, scheduler: str | None, device: torch.device) -> Any:
    """The model's parts as a StableDiffusionPipeline without safety checker, on the device. No autocast anywhere."""
    from diffusers import StableDiffusionPipeline

    silence_libraries()
    parts: dict[str, Any] = {name: getattr(model, name) for name in ("vae", "text_encoder", "tokenizer", "unet")}
    parts["scheduler"] = schedulers.build_scheduler(scheduler, model.scheduler_config)
    parts |= dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    if device.type == "cuda":  # tensor cores read channels last; on a CPU the bits stay diffusers' own
        for network in (pipe.unet, pipe.vae):
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return pipe


def silence_libraries() -> None:
    """Only errors from the libraries, and no progress bars of theirs."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


# ---- generating


@dataclass(frozen=True)
class DecodedImage:
    """Verdict `nan`: the numbers broke down, and `image` says so instead of being black.

    decoded_again: in fp32. concepts: what the safety checker flagged. hidden: replaced by a tile.
    """

    image: Image.Image
    verdict: Verdict
    decoded_again: bool = False
    concepts: tuple[str, ...] = ()
    hidden: bool = False

    def restored(self, conditioning: ResizedImages) -> DecodedImage:
        """With the original outside the mask."""
        if self.verdict == "nan" or self.hidden:
            return self
        return replace(self, image=conditioning.restore_outside_mask(self.image))


@dataclass(frozen=True, kw_only=True)
class GeneratedImage(DecodedImage):
    request: ImageRequest
    settings: SamplingSettings


def generate_images(
    pipe: Any, requests: Sequence[ImageRequest], settings: SamplingSettings,
    on_call: Callable[[int], object] = lambda count: None, *,
    callback: ImageCallback = lambda requests, latents: None, conditioning: ConditioningImages = NO_IMAGES,
    decoder: ImageDecoder | None = None, activate: Callable[[tuple[LoraFile, ...]], object] = lambda loras: None,
) -> Iterator[GeneratedImage]:  # fmt: skip
    """Generate the images in order. After a U-Net call `on_call` gets the number of images, `callback` their latents.

    settings: defaults of the images that have none of their own. activate: puts an image's LoRAs onto the networks.
    Raises InputError when the device runs out of memory.
    """
    decoder = decoder or ImageDecoder(pipe.vae)
    encoders: dict[tuple[tuple[LoraFile, ...], str], PromptEncoder] = {}
    for (loras, own), alike in groupby(requests, lambda request: (request.loras, settings.of(request))):
        activate(loras)
        encoder = encoders.setdefault((loras, own.weighting), PromptEncoder(pipe, own.weighting))
        for batch in micro_batches(list(alike), own, encoder):
            padded = [*batch, *[batch[-1]] * (own.micro_batch - len(batch))]
            embeds = encoder.pair([request.prompt for request in padded], own.negative_prompt)

            def after_step(step: int, t: Tensor, latents: Latents, batch: Sequence[ImageRequest] = batch) -> None:
                on_call(len(batch))
                callback(batch, latents)

            latents = sample_micro_batch(pipe, padded, own, embeds, after_step, conditioning)
            with out_of_memory_as_input_error():
                decoded = [decoder(row) for row in latents.split(1)[: len(batch)]]
            finished = [vars(one.restored(conditioning.at(own.width, own.height))) for one in decoded]
            yield from (GeneratedImage(request=r, settings=own, **one) for r, one in zip(batch, finished, strict=True))


def micro_batches(
    requests: Sequence[ImageRequest], settings: SamplingSettings, encoder: PromptEncoder
) -> Iterator[Sequence[ImageRequest]]:
    """Images of equal settings; those of a batch have embeddings of one length, so none depends on the others."""
    for _, group in groupby(requests, lambda request: encoder.length(request.prompt, settings.negative_prompt)):
        while batch := list(islice(group, settings.micro_batch)):
            yield batch


def sample_micro_batch(
    pipe: Any, requests: Sequence[ImageRequest], settings: SamplingSettings, embeds: tuple[TextStates, TextStates],
    callback: StepCallback = lambda step, t, latents: None, conditioning: ConditioningImages = NO_IMAGES,
) -> Latents:  # fmt: skip
    """The latents (B, C, h, w) of a micro-batch, by a generator for each seed. embeds: of prompts, of the negative."""
    generators = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
    with out_of_memory_as_input_error():
        return sampling_loop.sample(pipe, settings, *embeds, generators, conditioning, callback)


@contextmanager
def out_of_memory_as_input_error() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        fix = "Use a smaller --height and --width, or --device cpu."
        raise InputError("out of memory at this size", where="--device", fix=fix) from None


# ---- decoding


class ImageDecoder:
    """The VAE's decoder, with a copy in fp32 for images whose numbers break down in half precision."""

    def __init__(self, vae: Any, checker: SafetyChecker | None = None) -> None:
        self.vae, self.checker = vae, checker

    @cached_property
    def vae_fp32(self) -> Any:
        return copy.deepcopy(self.vae).float()

    @torch.no_grad()
    def __call__(self, latents: Latents) -> DecodedImage:
        """The image of latents (1, C, h, w)."""
        pixels, again = self.pixels(self.vae, latents), False
        if not pixels.isfinite().all() and latents.isfinite().all() and self.vae.dtype != torch.float32:
            pixels, again = self.pixels(self.vae_fp32, latents.float()), True
        if not pixels.isfinite().all():
            return DecodedImage(contact_sheet.placeholder_image(pixels.shape[2], pixels.shape[1]), "nan", again)
        image = images.tensor_to_image(pixels)
        return DecodedImage(image, "ok", again) if self.checker is None else self.checker.judged(image, again)

    def pixels(self, vae: Any, latents: Latents) -> Tensor:
        """(3, H, W) float32 on the CPU, in [-1, 1] or roughly so."""
        return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0][0].float().cpu()


class SafetyChecker:
    """CompVis' safety checker: its verdict goes into the metadata; the image is kept unless hiding was requested.

    It was made for photographs and flags drawn figures that nobody would.
    """

    def __init__(self, network: Any, prepare: Any, *, hide: bool) -> None:
        self.network, self.prepare, self.hide = network, prepare, hide

    @torch.no_grad()
    def judged(self, image: Image.Image, again: bool) -> DecodedImage:
        weight = next(self.network.parameters())
        pixels = self.prepare(images=image, return_tensors="pt").pixel_values.to(weight.device, weight.dtype)
        concepts = self.concepts(pixels)
        if not concepts:
            return DecodedImage(image, "ok", again)
        shown = contact_sheet.placeholder_image(*image.size, words="hidden") if self.hide else image
        return DecodedImage(shown, "flagged", again, concepts, self.hide)

    def concepts(self, pixels: Tensor) -> tuple[str, ...]:
        """Concepts whose cosine similarity to the image exceeds their threshold, and by how much.

        As StableDiffusionSafetyChecker.forward, which would also paint the image black: a special concept lowers the
        other thresholds by 0.01.
        """
        net = self.network
        embeds = torch.nn.functional.normalize(net.visual_projection(net.vision_model(pixels)[1]).float())
        special = excess_similarity(embeds, net.special_care_embeds, net.special_care_embeds_weights)
        lowered = 0.01 if any(score > 0 for score in special) else 0.0
        plain = excess_similarity(embeds, net.concept_embeds, net.concept_embeds_weights)
        scores = {f"concept {number}": round(score + lowered, 3) for number, score in enumerate(plain)}
        return tuple(f"{name} by {score:g}" for name, score in scores.items() if score > 0)


def excess_similarity(embeds: Tensor, concepts: Tensor, thresholds: Tensor) -> list[float]:
    """By how much the similarity to each concept exceeds its threshold."""
    similarity = embeds @ torch.nn.functional.normalize(concepts.float()).T
    return (similarity[0] - thresholds.float()).cpu().tolist()


def load_safety_checker(options: GenerateOptions, device: torch.device) -> SafetyChecker | None:
    """--safety-checker: a folder with safety_checker/ and feature_extractor/, or the former. Raises InputError."""
    if options.safety_checker is None:
        return None
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    folder = options.safety_checker
    own = folder / "safety_checker" if (folder / "safety_checker").is_dir() else folder
    prepares = [place for place in (folder / "feature_extractor", own) if (place / PREPROCESSOR_CONFIG).is_file()]
    where = f"--safety-checker {folder}"
    if not (own / "config.json").is_file() or not prepares:
        fix = f"Use a folder with safety_checker/config.json and feature_extractor/{PREPROCESSOR_CONFIG}."
        raise InputError("has no safety checker", where=where, fix=fix)
    with load_errors(where):
        network: Any = StableDiffusionSafetyChecker.from_pretrained(own, use_safetensors=True, local_files_only=True)
        prepare = CLIPImageProcessor.from_pretrained(prepares[0], local_files_only=True)
    return SafetyChecker(network.requires_grad_(False).eval().to(device), prepare, hide=options.hide_flagged)
