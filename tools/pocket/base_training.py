"""The base model's U-Net on the world: one state that survives kill -9, and an export now and then.

The autoencoder and the tokenizer are frozen; the text encoder has learned to bind (binding.py) and is trained on,
slowly, until TEXT_UNTIL of the samples. All processes share each batch.
"""

from __future__ import annotations

import json
import time

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextModel

from data.atomic_io import atomic_folder
from data.rng import generator
from tools.pocket.binding import train_binding
from tools.pocket.export import draw_sheet, noise_schedule, write_pipeline
from tools.pocket.parallel import is_first, part, process_count, run_shared
from tools.pocket.shards import BATCH, Batch, Stream, data_key, has_bf16, shard
from tools.pocket.tokenizer import BASE
from tools.pocket.training import Log, Losses, Plan, Trainee, resume, save, state_folder
from tools.pocket.world import SHARDS, VERSION

PEAK, SLOW = 1.5e-3, 0.1  # learning rate of the U-Net; the text encoder's is SLOW times that
STEADY = 0.6  # share of the samples at the peak rate; linear to zero afterwards
TEXT_UNTIL = 0.4  # share of the samples after which the text encoder is frozen
SAVE_EVERY, EXPORT_EVERY = 120.0, 1800.0  # seconds; a save takes less than one
EXPORT_STEPS = 200  # steps at least between two exports, for a sheet costs as much as thirty
VALIDATION = 256  # samples of the shard after the last, never trained on
GAMMA, HEAVIEST = 5.0, 25.0  # bounds of the weights: of min-SNR, and of a single picture
BUCKETS = 4  # of timesteps, logged apart


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


def rate(seen: int, total: int) -> float:
    """The learning rate after `seen` samples: constant, then linear to nearly zero at `total`."""
    return PEAK * min(1.0, max(0.01, (1.0 - seen / total) / (1.0 - STEADY)), (seen + BATCH) / (300 * BATCH))


def networks() -> torch.nn.ModuleDict:
    """The shipped U-Net and the text encoder that has learned to bind.

    Attention is plain matrix products: the fused kernel's backward pass took 40 % of a step (AMD EPYC, bf16).
    """
    unet = UNet2DConditionModel.from_pretrained(BASE / "unet").to(memory_format=torch.channels_last)
    unet.set_attn_processor(AttnProcessor())
    text = CLIPTextModel.from_pretrained(state_folder() / "text", attn_implementation="eager")
    return torch.nn.ModuleDict({"unet": unet, "text": text}).float()


def losses_of(
    models: torch.nn.ModuleDict, batch: Batch, noise: torch.Tensor, timesteps: torch.Tensor, learn_text: bool
) -> Losses:
    """The weighted error of the predicted noise, and the plain error of each quarter of the timesteps."""
    (latents, ids), schedule = batch, noise_schedule()
    noisy = schedule.add_noise(latents, noise, timesteps).contiguous(memory_format=torch.channels_last)  # pyright: ignore
    with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
        with torch.set_grad_enabled(learn_text and torch.is_grad_enabled()):
            states = models["text"](ids).last_hidden_state
        predicted = models["unet"](noisy, timesteps, states).sample
    signal = schedule.alphas_cumprod[timesteps]
    return weighted_losses((predicted.float() - noise).square().mean((1, 2, 3)), timesteps, signal / (1 - signal))


def losses_at(models: torch.nn.ModuleDict, stream: Stream, step: int, learn_text: bool) -> Losses:
    """Of this process' share of a step's batch; timesteps lie evenly over the whole batch."""
    slots = list(part(BATCH))
    latents, ids = stream.batch(step, slots)
    rng = generator("pocket", "base", "noise", step)
    noise = torch.randn(BATCH, *latents.shape[1:], generator=rng)[slots]
    spread = (torch.randperm(BATCH, generator=rng) + torch.rand(BATCH, generator=rng)) / BATCH
    return losses_of(models, (latents, ids), noise, (spread * 1000).long()[slots], learn_text)


def validation_losses(models: torch.nn.ModuleDict) -> Losses:
    """On fixed samples that are never trained on, with fixed noise."""
    data, rng = shard(SHARDS), generator("pocket", "base", "validation")
    noise = torch.randn(VALIDATION, *data["latents"].shape[1:], generator=rng)
    timesteps = torch.linspace(0, 999, VALIDATION).long()
    batch = data["latents"][:VALIDATION].float(), data["ids"][:VALIDATION].long()
    with torch.no_grad():
        return losses_of(models, batch, noise, timesteps, learn_text=False)


class BaseTrainee(Trainee):
    """The state of the training; the text encoder has an AdamW of its own, with a lower rate."""

    def __init__(self, plan: Plan, models: torch.nn.ModuleDict) -> None:
        super().__init__(plan, models)
        text = {id(value) for value in models["text"].parameters()}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["params"] = [value for value in group["params"] if id(value) not in text]
        self.optimizers.append(torch.optim.AdamW(models["text"].parameters(), PEAK, (0.9, 0.99), weight_decay=0.0))
        self.optimizers[-1].param_groups[0]["scale"] = SLOW


def prepare() -> None:
    """The frozen parts and the text encoder, made once."""
    folder = state_folder() / "text"
    if not folder.exists():
        encoder = train_binding(state_folder() / "binding")
        with atomic_folder(folder) as beside:
            encoder.save_pretrained(beside)


def train(total: int, processes: int | None = None) -> None:
    """Train until `total` samples have been seen, from wherever the state stands."""
    prepare()
    count = processes or process_count()
    if count > 1:
        run_shared(train_share, total, count)
    else:
        train_share(total)


def train_share(total: int) -> None:
    """One process' share of the training; alone, all of it."""
    torch.set_num_threads(1)
    models, folder, stream = networks().train(), state_folder(), Stream()
    plan = Plan("base", steps=-(-total // BATCH), peak=PEAK, ema=0.9995, decay=0.02, muon=True, log_every=25)
    trainee, path = BaseTrainee(plan, models), folder / "state.safetensors"
    resume(trainee, path)

    def keep() -> None:
        save(trainee, path, {"samples": trainee.step * BATCH, "total": total, "data": data_key(), "world": VERSION})

    log = Log(plan, folder, trainee.step)
    saved, exported, exported_at = time.monotonic(), time.monotonic(), trainee.step
    while trainee.step < plan.steps:
        learn_text = trainee.step * BATCH < TEXT_UNTIL * total
        losses = losses_at(models, stream, trainee.step, learn_text)
        trainee.update(losses["loss"], rate(trainee.step * BATCH, total))
        if not is_first():
            continue
        log.add(trainee.step, losses)
        if time.monotonic() - saved > SAVE_EVERY:
            keep()
            saved = time.monotonic()
        if time.monotonic() - exported > EXPORT_EVERY and trainee.step - exported_at >= EXPORT_STEPS:
            export(trainee, models, total)
            exported, exported_at = time.monotonic(), trainee.step
    if is_first():
        keep()
        export(trainee, models, total)


def export(trainee: Trainee, models: torch.nn.ModuleDict, total: int) -> None:
    """Write the averaged weights as a diffusers folder, their held-out loss into the log, and a sheet."""
    kept = {name: value.detach().clone() for name, value in trainee.parameters.items()}
    with torch.no_grad():
        for name, value in trainee.parameters.items():
            value.copy_(trainee.average[name])
    write_pipeline(state_folder() / "export", models.eval()["unet"], models["text"], trainee.step)
    seen = trainee.step * BATCH
    held_out = {f"held_out_{name}": round(float(value), 5) for name, value in validation_losses(models).items()}
    row = {
        "step": trainee.step,
        "samples": seen,
        "of": total,
        "time": time.strftime("%F %T"),
        "data": data_key(),
    } | held_out
    with (state_folder() / "exports.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    draw_sheet(state_folder() / "export", state_folder() / "sheets" / f"{seen:08d}.png")
    with torch.no_grad():
        for name, value in trainee.parameters.items():
            value.copy_(kept[name])
    models.train()
