"""The autoencoder: 64x64 pixels to 16x16x4 latents (x4), an AutoencoderKL of SD's own kind, 1.5 M parameters.

Left alone it learns lightness first, then blue-yellow, and green-magenta hardly (400 steps: error 0.25, as if nothing
had been learned). So the latents' first three channels are anchored at the start to the mean colour of their 4x4
pixels, and let go over the first steps; the error of each opponent colour axis is part of the loss and of the log.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from data.rng import generator, integer
from tools.pocket.creatures import creature_pixels, seen_creatures
from tools.pocket.nouns import all_nouns
from tools.pocket.pictures import SIZE, blobs, picture
from tools.pocket.training import Losses, Plan, fit, state_folder

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL
    from PIL import Image

PLAN = Plan("vae", steps=3600, peak=2e-3, decay=0.0, ema=0.998, muon=True)
CROPPED_STEPS = 1600  # 32x32 crops first: four times the variety for the same arithmetic; whole pictures after
CREATURES_FROM = 1600  # step: without them 19 dB on creatures, bar 24; from here on one picture in five shows one
CROPS, CROP, WHOLE = 32, 32, 16  # crops a step and their side; pictures a step afterwards
KL_WEIGHT, KL_WARMUP = 2e-4, 1000
ANCHOR_WEIGHT, ANCHORED_STEPS = 1.0, 700


def new_autoencoder() -> AutoencoderKL:
    """Untrained weights from a fixed seed."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(11)
    blocks: dict[str, Any] = {  # diffusers annotates these tuples as being of one element
        "block_out_channels": (24, 48, 96),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    }
    return AutoencoderKL(latent_channels=4, sample_size=SIZE, layers_per_block=1, norm_num_groups=8, **blocks)


def is_held_out(noun: str) -> bool:
    """One noun in twenty is never shown to the autoencoder, so that its error can be measured on new things."""
    return integer(20, "pocket", "vae", "held out", noun) == 0


def as_tensor(pictures: Iterable[Image.Image]) -> torch.Tensor:
    """RGB pictures as float32 (batch, 3, height, width) in [-1, 1]."""
    import numpy as np
    import torch

    stacked = np.stack([np.asarray(image.convert("RGB")) for image in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def training_picture(nouns: list[str], step: int, slot: int) -> Image.Image:
    """A noun in any single look, or random shapes one time in four."""
    if integer(4, "pocket", "vae", "kind", step, slot) == 0:
        return blobs(integer(2**31, "pocket", "vae", "blobs", step, slot))
    if step >= CREATURES_FROM and integer(4, "pocket", "vae", "creature", step, slot) == 0:
        return creature(integer(10**6, "pocket", "vae", "which", step, slot))
    noun = nouns[integer(len(nouns), "pocket", "vae", "noun", step, slot)]
    chosen = picture(noun, integer(2000, "pocket", "vae", "variant", step, slot))
    if chosen.look == "pair":  # it may show a held-out noun
        return blobs(step)
    return tinted(chosen.pixels, step, slot) if integer(3, "pocket", "vae", "tint", step, slot) == 0 else chosen.pixels


def creature(number: int) -> Image.Image:
    """One of the creatures that may be trained on."""
    from PIL import Image

    seen = seen_creatures()
    return Image.fromarray(creature_pixels()[seen[number % len(seen)]])


def tinted(pixels: Image.Image, step: int, slot: int) -> Image.Image:
    """The picture as if on pale coloured paper: white grounds alone would teach that every pale ground is white."""
    from PIL import Image, ImageChops

    paper = tuple(195 + integer(61, "pocket", "vae", "paper", axis, step, slot) for axis in range(3))
    return ImageChops.multiply(pixels, Image.new("RGB", pixels.size, paper))


def batch(nouns: list[str], step: int) -> torch.Tensor:
    """This process' pixels of one step: crops, two of a picture, at first, whole pictures at the end."""
    import torch

    from tools.pocket.parallel import part

    if step >= CROPPED_STEPS:
        return as_tensor(training_picture(nouns, step, slot) for slot in part(WHOLE))
    slots = part(CROPS // 2)
    crops = []
    for slot, whole in zip(slots, as_tensor(training_picture(nouns, step, slot) for slot in slots), strict=True):
        for index in (0, 1):
            top, left = (integer(SIZE - CROP + 1, "pocket", "vae", side, step, slot, index) for side in ("top", "left"))
            crops.append(whole[:, top : top + CROP, left : left + CROP])
    return torch.stack(crops)


def opponent(pixels: torch.Tensor) -> torch.Tensor:
    """Colour axes (batch, 3, height, width): lightness, green-magenta, blue-yellow."""
    import torch

    red, green, blue = pixels.unbind(1)
    return torch.stack([(red + green + blue) / 3, green - (red + blue) / 2, blue - (red + green) / 2], 1)


def edges(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences between neighbouring pixels, downwards and sideways."""
    return pixels[:, :, 1:] - pixels[:, :, :-1], pixels[:, :, :, 1:] - pixels[:, :, :, :-1]


def anchor(means: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """How far three latent channels are from lightness and twice the two colour axes, averaged over 4x4 pixels."""
    import torch
    from torch.nn import functional

    colours = functional.avg_pool2d(opponent(pixels), 4) * torch.tensor([1.0, 2.0, 2.0])[:, None, None]
    return (means[:, :3] - colours).square().mean()


def reconstruction_terms(shown: torch.Tensor, pixels: torch.Tensor) -> Losses:
    """L1 + squared + gradient + colour axes, for pixels in [-1, 1]."""
    axes = (opponent(shown) - opponent(pixels)).abs().mean((0, 2, 3))
    gradient = sum((ours - theirs).abs().mean() for ours, theirs in zip(edges(shown), edges(pixels), strict=True))
    squared = (shown - pixels).square().mean()
    loss = (shown - pixels).abs().mean() + 2.0 * squared + 0.5 * gradient + 0.5 * (axes[1] + axes[2])
    return {"loss": loss, "mse": squared, "light": axes[0], "green": axes[1], "blue": axes[2]}


def reconstruction_losses(model: AutoencoderKL, pixels: torch.Tensor, step: int) -> Losses:
    """The terms of the pictures, KL with its warm-up, and at the start the anchor."""
    from tools.pocket.parallel import part

    posterior = model.encode(pixels).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
    latents = posterior.sample(generator=generator("pocket", "vae", "posterior", step, part(WHOLE)[0]))
    shown = model.decode(latents).sample  # pyright: ignore[reportAttributeAccessIssue]
    terms = reconstruction_terms(shown, pixels)
    terms["kl"] = posterior.kl().mean() / latents[0].numel()
    terms["loss"] = terms["loss"] + KL_WEIGHT * min(1.0, step / KL_WARMUP) * terms["kl"]
    if step < ANCHORED_STEPS:
        release = 1.0 - step / ANCHORED_STEPS
        terms["loss"] = terms["loss"] + ANCHOR_WEIGHT * release * anchor(posterior.mean, pixels)
    return terms


def train_autoencoder(plan: Plan = PLAN) -> AutoencoderKL:
    """Train or go on, on all cores; the finished autoencoder carries its measured scaling factor."""
    from tools.pocket.parallel import run_shared

    run_shared(train_share, plan)
    finished = train_share(plan)
    normalise(finished)
    finished.register_to_config(scaling_factor=round(1.0 / float(sample_latents(finished).std()), 5))
    finished.save_pretrained(state_folder() / "vae" / "model")
    return finished


def train_share(plan: Plan) -> AutoencoderKL:
    """One process' share of the training; alone, all of it."""
    import torch

    model = new_autoencoder().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    nouns = [noun for noun in all_nouns() if not is_held_out(noun)]

    def losses_at(step: int) -> Losses:
        pixels = batch(nouns, step).contiguous(memory_format=torch.channels_last)
        return reconstruction_losses(model, pixels, step)

    return fit(plan, model, losses_at)


def sample_latents(model: AutoencoderKL) -> torch.Tensor:
    """Latents (256, 4, 16, 16) of pictures of all looks."""
    import torch

    nouns = all_nouns()
    shown = as_tensor(picture(nouns[(7 * index) % len(nouns)], index).pixels for index in range(256))
    with torch.no_grad():
        return model.encode(shown).latent_dist.mode()  # pyright: ignore[reportAttributeAccessIssue]


def normalise(model: AutoencoderKL) -> None:
    """Give each latent channel mean 0 and deviation 1 by rewriting the two 1x1 convolutions beside the latents.

    Pictures in and out stay the same; only what lies between is shifted and scaled, so that noise drowns all alike.
    """
    import torch

    latents = sample_latents(model)
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, out = model.quant_conv, model.post_quant_conv
    assert into is not None and out is not None and into.bias is not None and out.bias is not None
    with torch.no_grad():
        out.bias += out.weight[:, :, 0, 0] @ mean
        out.weight *= deviation[None, :, None, None]
        into.weight[:4] /= deviation[:, None, None, None]
        into.bias[:4] = (into.bias[:4] - mean) / deviation
        into.bias[4:] -= 2 * deviation.log()


def psnr(model: AutoencoderKL, pixels: torch.Tensor) -> float:
    """Mean over pictures of 10 log10(1 / mse) in dB, pixels in [0, 1], from the posterior's mean."""
    import torch

    with torch.no_grad():
        shown = model.decode(model.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)  # pyright: ignore
    errors = ((shown - pixels) / 2).square().mean((1, 2, 3))
    return float((10 * torch.log10(1 / errors.clamp_min(1e-10))).mean())


def held_out_pixels() -> torch.Tensor:
    """Every noun hidden from the autoencoder, twice plain and twice in other looks."""
    nouns = [noun for noun in all_nouns() if is_held_out(noun)]
    return as_tensor(picture(noun, 5000 * 24 + variant).pixels for noun in nouns for variant in (0, 2, 1, 13))
