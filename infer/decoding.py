"""From latents to a picture and the verdict on it: ok, nan (it says so instead of being black), or flagged."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch

from data import images
from data.errors import InputError
from infer import sheets

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from data.shapes import Latents
    from infer.config import GenerateOptions

Verdict = Literal["ok", "nan", "flagged"]


@dataclass(frozen=True)
class Decoded:
    """verdict nan: the image says so. again: it was decoded once more in fp32. concepts: what a checker flagged."""

    image: Image.Image
    verdict: Verdict
    again: bool = False
    concepts: tuple[str, ...] = ()
    hidden: bool = False


class Decoder:
    """The autoencoder's decoder, with a copy of it in fp32 for pictures that break down in half precision."""

    def __init__(self, vae: Any, checker: Checker | None = None) -> None:
        self.vae, self.checker = vae, checker

    @cached_property
    def exact(self) -> Any:
        return copy.deepcopy(self.vae).float()

    @torch.no_grad()
    def __call__(self, latents: Latents) -> Decoded:
        """One picture out of its latents (1, C, h, w)."""
        pixels, again = self.pixels(self.vae, latents), False
        if not whole(pixels) and whole(latents) and self.vae.dtype != torch.float32:
            pixels, again = self.pixels(self.exact, latents.float()), True
        if not whole(pixels):
            return Decoded(sheets.broken(pixels.shape[2], pixels.shape[1]), "nan", again)
        image = images.to_picture(pixels)
        return Decoded(image, "ok", again) if self.checker is None else self.checker.judged(image, again)

    def pixels(self, vae: Any, latents: Latents) -> Tensor:
        """(3, H, W) float32 on the CPU, in [-1, 1] or roughly so."""
        return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0][0].float().cpu()


def whole(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all())


class Checker:
    """CompVis' safety checker: its verdict is written down; the picture is kept unless hiding was asked for.

    It was made for photographs and flags drawn figures that nobody would.
    """

    def __init__(self, network: Any, prepare: Any, *, hide: bool) -> None:
        self.network, self.prepare, self.hide = network, prepare, hide

    @torch.no_grad()
    def judged(self, image: Image.Image, again: bool) -> Decoded:
        weight = next(self.network.parameters())
        seen = self.prepare(images=image, return_tensors="pt").pixel_values.to(weight.device, weight.dtype)
        concepts = self.concepts(seen)
        if not concepts:
            return Decoded(image, "ok", again)
        shown = sheets.broken(*image.size, words="hidden") if self.hide else image
        return Decoded(shown, "flagged", again, concepts, self.hide)

    def concepts(self, seen: Tensor) -> tuple[str, ...]:
        """Concepts whose cosine similarity to the picture is over their threshold, and by how much.

        As StableDiffusionSafetyChecker.forward, which would also paint the picture black: a special concept lowers the
        other thresholds by 0.01.
        """
        net = self.network
        embeds = torch.nn.functional.normalize(net.visual_projection(net.vision_model(seen)[1]).float())
        special = over(embeds, net.special_care_embeds, net.special_care_embeds_weights)
        lowered = 0.01 if any(score > 0 for score in special) else 0.0
        plain = over(embeds, net.concept_embeds, net.concept_embeds_weights)
        scores = {f"concept {number}": round(score + lowered, 3) for number, score in enumerate(plain)}
        return tuple(f"{name} by {score:g}" for name, score in scores.items() if score > 0)


def over(embeds: Tensor, concepts: Tensor, thresholds: Tensor) -> list[float]:
    """By how much the similarity to each concept is over its threshold."""
    similar = embeds @ torch.nn.functional.normalize(concepts.float()).T
    return (similar[0] - thresholds.float()).cpu().tolist()


def load_checker(options: GenerateOptions, device: torch.device) -> Checker:
    """A safety checker from a folder that holds safety_checker/ and feature_extractor/, or is the former itself.

    Raises InputError.
    """
    folder = options.safety_checker
    assert folder is not None
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from safetensors import SafetensorError
    from transformers import CLIPImageProcessor

    own = folder / "safety_checker" if (folder / "safety_checker").is_dir() else folder
    prepares = [place for place in (folder / "feature_extractor", own) if (place / PREPARE).is_file()]
    where = f"--safety-checker {folder}"
    if not (own / "config.json").is_file() or not prepares:
        what = f"holds no safety checker: safety_checker/config.json and feature_extractor/{PREPARE} are looked for"
        raise InputError(what, where=where)
    try:
        network: Any = StableDiffusionSafetyChecker.from_pretrained(own, use_safetensors=True, local_files_only=True)
        prepare = CLIPImageProcessor.from_pretrained(prepares[0], local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(f"could not be loaded ({reason})", where=where) from error
    return Checker(network.requires_grad_(False).eval().to(device), prepare, hide=options.hide_flagged)


PREPARE = "preprocessor_config.json"
