"""The autoencoder (AutoencoderKL, x4, 1.5 M parameters), trained further on eyes, mouths and outlines before the U-Net.

The shipped one smeared small eyes, whatever its decoder was taught: its latents did not hold them. It sees shapes with
faces, the world, and one image in six of the sample set; errors weigh more on faces and where detail is.
"""

from __future__ import annotations

import math
import random

import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageChops, ImageDraw, ImageOps
from torch.nn import functional

from data.atomic_io import atomic_folder
from data.rng import generator, seed_for
from tools.pocket.attributes import SIZE
from tools.pocket.scorer import creature_pixels, seen_creatures
from tools.pocket.shards import has_bf16
from tools.pocket.symbols import INKS, Colour, face, shade
from tools.pocket.tokenizer import BASE
from tools.pocket.training import Losses, Plan, fit, state_folder
from tools.pocket.world import as_tensor, sample

PLAN = Plan("autoencoder", steps=9000, peak=1.5e-3, decay=0.0, ema=0.998, muon=True, log_every=100)
CROPS, CROP = 24, 40  # crops a step, and their side
FRESH = 2**40  # samples of the world from here on are used by no other training
FACES, CREATURES = 0.5, 0.17  # shares of images: shapes with faces, creatures of the sample set (half in other colours)
KL_WEIGHT = 1e-4
ON_FACE, ON_DETAIL = 3.0, 3.0  # weights of errors


def shapes_with_faces(number: int) -> tuple[Image.Image, Image.Image]:
    """Outlined bodies with faces among small shapes, and a mask of the faces."""
    rng = random.Random(seed_for("pocket", "faces", number))

    def colour() -> Colour:
        return rng.randrange(256), rng.randrange(256), rng.randrange(256)

    side, ink = 4 * SIZE, rng.choice(INKS)
    pale = rng.randint(200, 255), rng.randint(200, 255), rng.randint(200, 255)
    picture = Image.new("RGB", (side, side), rng.choice(((255, 255, 255), (255, 242, 220), pale, colour())))
    mask = Image.new("L", (side, side), 0)
    pen, mark = ImageDraw.Draw(picture), ImageDraw.Draw(mask)
    for _ in range(rng.choice((1, 1, 2, 3))):
        x, y, radius = rng.uniform(0.25, 0.75) * side, rng.uniform(0.25, 0.7) * side, rng.uniform(0.18, 0.42) * side
        body(pen, (x, y, radius), (colour(), colour(), ink), rng)
        apart = radius * rng.uniform(0.28, 0.5)
        mark.rectangle(
            face(pen, x + rng.uniform(-0.3, 0.3) * radius, y - radius * rng.uniform(0, 0.3), apart, rng), fill=255
        )
    for _ in range(rng.randint(0, 4)):
        x, y, reach, tips = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(8, 22), rng.choice((4, 5, 12))
        reaches = (reach * (0.45 if tips < 12 else 0.95), reach)
        turns = [(reaches[tip % 2], tip * math.pi / tips) for tip in range(2 * tips)]
        points = [(x + far * math.cos(angle), y + far * math.sin(angle)) for far, angle in turns]
        pen.polygon(points, fill=colour(), outline=ink, width=3)
    return picture.reduce(4), mask.reduce(4)


def body(
    pen: ImageDraw.ImageDraw, place: tuple[float, float, float], paints: tuple[Colour, ...], rng: random.Random
) -> None:
    """A round or boxy body with limbs, at times with a pale belly and a light."""
    (x, y, radius), (main, limb, ink), line = place, paints, rng.choice((0, 6, 8, 8, 10))
    for _ in range(rng.randint(0, 4)):
        angle, size = rng.uniform(0, 6.28), radius * rng.uniform(0.25, 0.5)
        a, b = x + radius * math.cos(angle), y + radius * math.sin(angle)
        (pen.ellipse if rng.random() < 0.6 else pen.rectangle)(
            (a - size, b - size, a + size, b + size), limb, ink, line
        )
    box = (x - radius * rng.uniform(0.8, 1.1), y - radius, x + radius * rng.uniform(0.8, 1.1), y + radius)
    if rng.random() < 0.6:
        pen.ellipse(box, main, ink, line)
    else:
        pen.rounded_rectangle(box, radius * 0.5, main, ink, line)
    if rng.random() < 0.4:
        pen.ellipse((x - radius * 0.5, y + radius * 0.1, x + radius * 0.5, y + radius * 0.9), fill=shade(main, 1.5))
    if rng.random() < 0.4:
        pen.ellipse((x - radius * 0.6, y - radius * 0.8, x - radius * 0.2, y - radius * 0.5), fill=shade(main, 1.8))


def crop_of(number: int) -> tuple[Image.Image, Image.Image]:
    """A CROP x CROP part of a picture and of its mask; where there is a face, mostly of that."""
    rng = random.Random(seed_for("pocket", "autoencoder", number))
    kind = rng.random()
    if kind < FACES:
        picture, mask = shapes_with_faces(number)
    elif kind < FACES + CREATURES:
        picture, mask = creature(rng), Image.new("L", (SIZE, SIZE), 0)
    else:
        picture, mask = sample(FRESH + number).picture, Image.new("L", (SIZE, SIZE), 0)
        if rng.random() < 0.4:  # paper of another colour
            paper = rng.randint(195, 255), rng.randint(195, 255), rng.randint(195, 255)
            picture = ImageChops.multiply(picture, Image.new("RGB", picture.size, paper))
    box, room = mask.getbbox(), (SIZE - CROP) // 4
    left, top = 4 * rng.randint(0, room), 4 * rng.randint(0, room)
    if box and rng.random() < 0.8:
        left, top = (min(4 * room, max(0, (box[k] + box[k + 2] - CROP) // 8 * 4)) for k in (0, 1))
    place = (left, top, left + CROP, top + CROP)
    return picture.crop(place), mask.crop(place)


def creature(rng: random.Random) -> Image.Image:
    """A creature that may be trained on, mirrored or not, at times with its colour channels exchanged."""
    seen = seen_creatures()
    picture = Image.fromarray(creature_pixels()[seen[rng.randrange(len(seen))]])
    if rng.random() < 0.5:
        picture = ImageOps.mirror(picture)
    if rng.random() < 0.5:
        picture = Image.merge("RGB", rng.sample(picture.split(), 3))
    return picture


def opponent(pixels: torch.Tensor) -> torch.Tensor:
    """Colour axes (batch, 3, height, width): lightness, green-magenta, blue-yellow."""
    red, green, blue = pixels.unbind(1)
    return torch.stack([(red + green + blue) / 3, green - (red + blue) / 2, blue - (red + green) / 2], 1)


def detail(pixels: torch.Tensor) -> torch.Tensor:
    """The deviation of lightness among each pixel's neighbours, (batch, 1, height, width)."""
    grey = pixels.mean(1, keepdim=True)
    mean, square = (functional.avg_pool2d(values, 3, 1, 1, count_include_pad=False) for values in (grey, grey.square()))
    return (square - mean.square()).clamp_min(0).sqrt()


def reconstruction_losses(shown: torch.Tensor, pixels: torch.Tensor, mask: torch.Tensor) -> Losses:
    """L1 + half of squared, gradient and colour axes, weighted; pixels in [-1, 1], the mask in [0, 1]."""
    weights = 1 + ON_FACE * mask + ON_DETAIL * detail(pixels)
    weights = weights / weights.mean()
    error = shown - pixels
    down, across = error[:, :, 1:] - error[:, :, :-1], error[:, :, :, 1:] - error[:, :, :, :-1]
    gradient = (down.abs() * weights[:, :, 1:]).mean() + (across.abs() * weights[:, :, :, 1:]).mean()
    axes = (opponent(error).abs() * weights).mean((0, 2, 3))
    absolute, squared = (error.abs() * weights).mean(), (error.square() * weights).mean()
    loss = absolute + 0.5 * squared + 0.5 * gradient + 0.5 * (axes[1] + axes[2])
    return {"loss": loss, "absolute": absolute, "squared": squared, "on_faces": (error.abs() * mask).sum() / mask.sum()}


def train_autoencoder(plan: Plan = PLAN) -> AutoencoderKL:
    """Train the shipped autoencoder further, or resume; it becomes that of the state folder."""
    model = AutoencoderKL.from_pretrained(BASE / "vae").to(memory_format=torch.channels_last)  # pyright: ignore

    def losses_at(step: int) -> Losses:
        rows = [crop_of(step * CROPS + slot) for slot in range(CROPS)]
        pixels = as_tensor([picture for picture, _ in rows]).contiguous(memory_format=torch.channels_last)
        mask = as_tensor([mask for _, mask in rows])[:, :1] / 2 + 0.5
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
            posterior = model.encode(pixels).latent_dist  # pyright: ignore
            decoded = model.decode(posterior.sample(generator("pocket", "autoencoder", "noise", step))).sample  # pyright: ignore
        losses = reconstruction_losses(decoded.float(), pixels, mask)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return {**losses, "loss": losses["loss"] + KL_WEIGHT * kl, "kl": kl}

    trained = fit(plan, model, losses_at)
    with torch.no_grad():
        latents = trained.encode(as_tensor([sample(FRESH + number).picture for number in range(256)])).latent_dist.mean  # pyright: ignore
    trained.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))  # Rombach et al. 2022, appendix G
    with atomic_folder(state_folder() / "vae") as folder:
        trained.save_pretrained(folder)
    return trained


def psnr(model: AutoencoderKL, pixels: torch.Tensor) -> float:
    """Mean over pictures of 10 log10(1 / mse) in dB, pixels in [0, 1], from the posterior's mean."""
    with torch.no_grad():
        shown = model.decode(model.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)  # pyright: ignore
    errors = ((shown - pixels) / 2).square().mean((1, 2, 3))
    return float((10 * torch.log10(1 / errors.clamp_min(1e-10))).mean())
