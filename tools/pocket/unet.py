"""The denoiser: UNet2DConditionModel of Stable Diffusion v1's kind, trained to predict the noise in scaled latents.

What makes a small one good here: timesteps spread evenly over the batch (less variance than drawing each), min-SNR
weights (the last, nearly clean steps weigh less), all pictures once before any comes again, and a running average.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from data.rng import generator, uniform
from tools.pocket.latents import Latents, load_latents, made_of
from tools.pocket.pool import Pool, load_pool
from tools.pocket.text import WIDTH
from tools.pocket.training import Losses, Plan, fit, state_folder

if TYPE_CHECKING:
    import torch
    from diffusers import PNDMScheduler, UNet2DConditionModel

PLAN = Plan("unet", steps=5200, peak=2e-3, warmup=100, ema=0.999, decay=0.02, muon=True)
BATCH = 48
EMPTY_PROMPT = 0.1  # share of pictures trained with the empty prompt, for guidance
GAMMA, HEAVIEST = 5.0, 25.0  # bounds of the weights: of min-SNR, and of a single picture
BUCKETS = 4  # of timesteps, logged apart


def new_unet() -> UNet2DConditionModel:
    """Untrained weights from a fixed seed: 16x16, 8x8 and 4x4, text at all but the lowest, as in SD v1."""
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(13)
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=16,
        block_out_channels=(48, 96, 160), attention_head_dim=4, cross_attention_dim=WIDTH,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def noise_schedule() -> PNDMScheduler:
    """Stable Diffusion v1.4's own scheduler, as its scheduler_config.json has it."""
    from diffusers import PNDMScheduler

    schedule = PNDMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon",
    )  # fmt: skip
    schedule.register_to_config(clip_sample=False)  # PNDM ignores it; DDIM, made from this config, would clip latents
    return schedule


@lru_cache(maxsize=2)
def epoch_order(count: int, epoch: int) -> torch.Tensor:
    """The order in which the pictures of one epoch come."""
    import torch

    return torch.randperm(count, generator=generator("pocket", "unet", "order", epoch))


def turns(pool: Pool) -> torch.Tensor:
    """The pictures of one epoch: each once, a plain one twice, for a noun must be known before its looks."""
    import torch

    plain = [row for row, look in enumerate(pool.looks) if look == "plain"]
    return torch.tensor([*range(len(pool.looks)), *plain])


def rows_at(epoch_rows: torch.Tensor, step: int) -> torch.Tensor:
    """Which pictures a step trains on."""
    import torch

    count = len(epoch_rows)
    places = [divmod(step * BATCH + slot, count) for slot in range(BATCH)]
    return torch.stack([epoch_rows[epoch_order(count, epoch)[place]] for epoch, place in places])


def timesteps_at(step: int) -> torch.Tensor:
    """One timestep in each of BATCH equal parts of 0..999, in random order of the slots."""
    import torch

    rng = generator("pocket", "unet", "timesteps", step)
    spread = (torch.randperm(BATCH, generator=rng) + torch.rand(BATCH, generator=rng)) / BATCH
    return (spread * 1000).long()


def batch_at(latents: Latents, rows: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled latents drawn from the autoencoder's posterior, and text states, some of them of the empty prompt."""
    import torch

    means, deviations = latents.means[rows].float(), latents.deviations[rows].float()
    noise = torch.randn(means.shape, generator=generator("pocket", "unet", "posterior", step))
    named = torch.tensor([uniform("pocket", "unet", "empty", step, slot) >= EMPTY_PROMPT for slot in range(BATCH)])
    return means + deviations * noise, latents.states[latents.caption[rows] * named].float()


def weights_of(snr: torch.Tensor) -> torch.Tensor:
    """min(SNR + 1, gamma) / SNR, at most HEAVIEST: the error of v, said of epsilon, with min-SNR's bound.

    Where noise is strong a wrong shape hardly shows in epsilon: under min-SNR's own weights for epsilon (at most 1) the
    network had learned colours and places after 900 steps, but not which shape belongs to which noun (2026-11-21).
    Source: Hang et al. 2023, arXiv 2303.09556, section 3.4; Salimans and Ho 2022, arXiv 2202.00512, section 4.
    """
    return ((snr + 1).clamp(max=GAMMA) / snr).clamp(max=HEAVIEST)


def weighted_losses(errors: torch.Tensor, timesteps: torch.Tensor, snr: torch.Tensor) -> Losses:
    """Mean of the weighted squared errors, and the plain mean of each quarter of the timesteps."""
    weights = weights_of(snr)
    losses = {"loss": (weights * errors).mean()}
    for bucket in range(BUCKETS):
        losses[f"t{bucket}"] = errors[timesteps * BUCKETS // 1000 == bucket].nanmean()
    return losses


def train_unet(plan: Plan = PLAN) -> UNet2DConditionModel:
    """Train or go on, on all cores; returns the averaged network."""
    from tools.pocket.parallel import run_shared

    load_latents()
    run_shared(train_share, plan)
    return train_share(plan)


def train_share(plan: Plan) -> UNet2DConditionModel:
    """One process' share of the training; alone, all of it."""
    import torch

    from tools.pocket.parallel import part

    latents, schedule, epoch_rows = load_latents(), noise_schedule(), turns(load_pool())
    unet = new_unet().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    signal = schedule.alphas_cumprod

    def losses_at(step: int) -> Losses:
        mine = list(part(BATCH))
        clean, states = batch_at(latents, rows_at(epoch_rows, step), step)
        noise = torch.randn(clean.shape, generator=generator("pocket", "unet", "noise", step))
        clean, states, noise, timesteps = clean[mine], states[mine], noise[mine], timesteps_at(step)[mine]
        noisy = schedule.add_noise(clean, noise, timesteps).contiguous(memory_format=torch.channels_last)  # pyright: ignore
        errors = (unet(noisy, timesteps, states).sample - noise).square().mean((1, 2, 3))
        return weighted_losses(errors, timesteps, signal[timesteps] / (1 - signal[timesteps]))

    return fit(plan, unet, losses_at, inputs=made_of())


def averaged_so_far() -> tuple[UNet2DConditionModel, int]:
    """The running average of the stage's last saved state, finished or not, and its step."""
    import torch
    from safetensors.torch import load_file

    unet = new_unet()
    state = load_file(state_folder() / PLAN.name / "state.safetensors")
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            parameter.copy_(state[f"average.{name}"])
    return unet.eval(), int(state["step"])
