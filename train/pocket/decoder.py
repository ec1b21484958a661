"""The autoencoder's second half trained on: the encoder stays as it is, so the latents the U-Net learned stay valid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from data.files import sha256
from data.seeds import generator
from train.pocket.autoencoder import WHOLE, as_tensor, is_held_out, reconstruction_terms, training_picture
from train.pocket.latents import WEIGHTS, load_autoencoder
from train.pocket.nouns import all_nouns
from train.pocket.training import Losses, Plan, fit, state_folder

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

PLAN = Plan("decoder", steps=400, peak=1.5e-3, warmup=30, decay=0.0, ema=0.99, muon=True)
ONWARDS = 10_000  # pictures of steps that the autoencoder's own training never reached


def decoder_alone(model: AutoencoderKL) -> AutoencoderKL:
    """The model with gradients for its decoder only."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("decoder", "post_quant_conv")))
    return model


def latents_of(model: AutoencoderKL, pixels: torch.Tensor, step: int) -> torch.Tensor:
    """Latents drawn from the frozen encoder's posterior."""
    import torch

    with torch.no_grad():
        posterior = model.encode(pixels).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        return posterior.sample(generator=generator("pocket", "decoder", "posterior", step))


def train_decoder(plan: Plan = PLAN) -> None:
    """Train or go on; the result stands beside the autoencoder and shares its encoder bit for bit."""
    import torch

    model = decoder_alone(load_autoencoder("vae"))
    nouns = [noun for noun in all_nouns() if not is_held_out(noun)]

    def losses_at(step: int) -> Losses:
        pixels = as_tensor(training_picture(nouns, ONWARDS + step, slot) for slot in range(WHOLE))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        shown = model.decode(latents_of(model, pixels, step)).sample  # pyright: ignore
        return reconstruction_terms(shown, pixels)

    encoder = sha256(state_folder() / "vae" / "model" / WEIGHTS)
    fit(plan, model, losses_at, inputs=encoder).save_pretrained(state_folder() / "decoder" / "model")
