"""The base model's U-Net on the world: latents in shards made as they are needed, one state, an export now and then.

The VAE and the tokenizer are frozen parts; the text encoder has learned to bind (binding.py) and is trained on, slowly,
until TEXT_UNTIL of the samples. All processes share each batch: slot k of it comes from shard 2i + k % 2.
"""

from __future__ import annotations

import hashlib
import json
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.atomic_io import atomic_file, atomic_folder, cache_root, file_sha256
from data.rng import generator, permutation, uniform
from tools.pocket.export import BASE, INDEX, save_config, save_half
from tools.pocket.parallel import is_first, part, process_count, run_shared
from tools.pocket.tokenizer import LENGTH, save_tokenizer
from tools.pocket.training import Log, Losses, Plan, Trainee
from tools.pocket.unet import noise_schedule, weighted_losses
from tools.pocket.world import SHARD, SHARDS, VERSION, as_array, sample

if TYPE_CHECKING:
    import torch

Batch = tuple["torch.Tensor", "torch.Tensor"]  # latents and token ids
BATCH, EMPTY_PROMPT = 64, 0.1
PEAK, SLOW = 1.5e-3, 0.1  # learning rate of the U-Net; the text encoder's is SLOW times that
STEADY = 0.6  # share of the samples at the peak rate; linear to zero afterwards
TEXT_UNTIL = 0.4  # share of the samples after which the text encoder is frozen
SAVE_EVERY, EXPORT_EVERY = 600.0, 1800.0  # seconds
VALIDATION = 256  # samples of the shard after the last, never trained on
GUIDANCE, STEPS = 4.0, 20  # of the sheet
PROMPTS = (
    "a fridge", "a red fridge", "a fridge on fire", "a fridge in water", "a fridge covered in leaves",
    "a fridge made of ice", "a fridge with lightning", "a fridge with a face", "a car", "a blue car", "a car on fire",
    "a car in water", "a cat", "a cat with wings", "a cat made of stone", "a ghostly cat", "a guitar with flames",
    "a house covered in snow",
    "a dog on fire", "a robot made of metal", "a red apple and a blue car", "a blue apple and a red car",
    "a cactus with a happy face", "a horse with stars",
)  # fmt: skip


def state_folder() -> Path:
    """Everything of this training lies here."""
    return cache_root() / "pocket-base"


@cache
def tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(BASE / "tokenizer")


@cache
def vae() -> Any:
    """The frozen autoencoder: that of the state folder, else the shipped one."""
    import torch
    from diffusers import AutoencoderKL

    own = state_folder() / "vae"
    model = AutoencoderKL.from_pretrained(own if own.exists() else BASE / "vae").eval()
    return model.to(memory_format=torch.channels_last)


@cache
def data_key() -> str:
    """A hash of the world, the autoencoder and the tokenizer: other ones make other shards."""
    weights = (
        (state_folder() if (state_folder() / "vae").exists() else BASE) / "vae" / "diffusion_pytorch_model.safetensors"
    )
    hashes = VERSION + file_sha256(weights) + file_sha256(BASE / "tokenizer" / "merges.txt")
    return hashlib.sha256(hashes.encode()).hexdigest()[:12]


def encode(pixels: torch.Tensor) -> torch.Tensor:
    """Scaled latents of pictures in [-1, 1], fp16."""
    import torch

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
        means = [
            vae().encode(chunk.contiguous(memory_format=torch.channels_last)).latent_dist.mean
            for chunk in pixels.split(32)
        ]
    return torch.cat(means).float().mul(vae().config.scaling_factor).half()


@cache
def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware; elsewhere autocast would be slower than fp32."""
    return "avx512_bf16" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else False


def shard(index: int) -> dict[str, torch.Tensor]:
    """`latents` (SHARD, 4, 16, 16) fp16 and `ids` (SHARD, LENGTH) int16 of a shard, made at the first call."""
    import torch
    from safetensors.torch import load_file, save_file

    path = state_folder() / "shards" / data_key() / f"{index:04d}.safetensors"
    if not path.exists():
        latents, ids = [], []
        for start in range(0, SHARD, 256):
            rows = [sample(index * SHARD + start + row) for row in range(256)]
            pixels = torch.from_numpy(as_array([row.picture for row in rows])).permute(0, 3, 1, 2).float() / 127.5 - 1.0
            latents.append(encode(pixels))
            ids.append(token_ids([row.caption for row in rows]).to(torch.int16))
        with atomic_file(path) as beside:
            save_file({"latents": torch.cat(latents).contiguous(), "ids": torch.cat(ids)}, beside)
    return load_file(path)


def token_ids(captions: list[str]) -> torch.Tensor:
    """(count, LENGTH) int64, padded with the end mark as Stable Diffusion does."""
    return tokenizer()(
        captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


class Stream:
    """The batches: all shards once in their order, afterwards again and again in other orders."""

    def __init__(self) -> None:
        self.loaded: dict[int, dict[str, torch.Tensor]] = {}

    def batch(self, step: int, slots: list[int]) -> Batch:
        """Latents and token ids of some slots of a step's batch; the empty prompt for one in ten."""
        import torch

        visit, place = divmod(step * BATCH // 2, SHARD)  # a visit: two shards side by side
        epoch, turn = divmod(visit, SHARDS // 2)
        order = permutation(SHARDS // 2, "pocket", "base", "shards", epoch) if epoch else range(SHARDS // 2)
        indices = {slot % 2: 2 * order[turn] + slot % 2 for slot in slots}
        self.loaded = {index: self.loaded.get(index) or shard(index) for index in indices.values()}
        rows = torch.randperm(SHARD, generator=generator("pocket", "base", "rows", visit))
        latents, ids = [], []
        for slot in slots:
            data, row = self.loaded[indices[slot % 2]], int(rows[place + slot // 2])
            latents.append(data["latents"][row])
            ids.append(
                data["ids"][row] if uniform("pocket", "base", "empty", step, slot) >= EMPTY_PROMPT else self.empty()
            )
        return torch.stack(latents).float(), torch.stack(ids).long()

    @staticmethod
    @cache
    def empty() -> torch.Tensor:
        import torch

        return token_ids([""])[0].to(torch.int16)


def rate(seen: int, total: int) -> float:
    """The learning rate after `seen` samples: constant, then linear to nearly zero at `total`."""
    return PEAK * min(1.0, max(0.01, (1.0 - seen / total) / (1.0 - STEADY)), (seen + BATCH) / (300 * BATCH))


def networks() -> torch.nn.ModuleDict:
    """The shipped U-Net and the text encoder that has learned to bind.

    Attention is plain matrix products: the fused kernel's backward pass took 40 % of a step (AMD EPYC, bf16).
    """
    import torch
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor
    from transformers import CLIPTextModel

    unet = UNet2DConditionModel.from_pretrained(BASE / "unet").to(memory_format=torch.channels_last)
    unet.set_attn_processor(AttnProcessor())
    text = CLIPTextModel.from_pretrained(state_folder() / "text", attn_implementation="eager")
    return torch.nn.ModuleDict({"unet": unet, "text": text}).float()


def losses_of(
    models: torch.nn.ModuleDict, batch: Batch, noise: torch.Tensor, timesteps: torch.Tensor, learn_text: bool
) -> Losses:
    """The weighted error of the predicted noise, and the plain error of each quarter of the timesteps."""
    import torch

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
    import torch

    slots = list(part(BATCH))
    latents, ids = stream.batch(step, slots)
    rng = generator("pocket", "base", "noise", step)
    noise = torch.randn(BATCH, *latents.shape[1:], generator=rng)[slots]
    spread = (torch.randperm(BATCH, generator=rng) + torch.rand(BATCH, generator=rng)) / BATCH
    return losses_of(models, (latents, ids), noise, (spread * 1000).long()[slots], learn_text)


def validation_losses(models: torch.nn.ModuleDict) -> Losses:
    """On fixed samples that are never trained on, with fixed noise."""
    import torch

    data, rng = shard(SHARDS), generator("pocket", "base", "validation")
    noise = torch.randn(VALIDATION, *data["latents"].shape[1:], generator=rng)
    timesteps = torch.linspace(0, 999, VALIDATION).long()
    batch = data["latents"][:VALIDATION].float(), data["ids"][:VALIDATION].long()
    with torch.no_grad():
        return losses_of(models, batch, noise, timesteps, learn_text=False)


class BaseTrainee(Trainee):
    """The state of the training; the text encoder has an AdamW of its own, with a lower rate."""

    def __init__(self, plan: Plan, models: torch.nn.ModuleDict) -> None:
        import torch

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
        from tools.pocket.binding import train_binding

        encoder = train_binding(tokenizer(), state_folder() / "binding")
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
    import torch
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(1)
    models, folder, stream = networks().train(), state_folder(), Stream()
    plan = Plan("base", steps=-(-total // BATCH), peak=PEAK, ema=0.9995, decay=0.02, muon=True, log_every=25)
    trainee, path = BaseTrainee(plan, models), folder / "state.safetensors"
    if path.exists():
        trainee.restore(load_file(path))

    def save() -> None:
        about = {"samples": trainee.step * BATCH, "total": total, "data": data_key(), "world": VERSION}
        with atomic_file(path) as beside:
            save_file(trainee.tensors(), beside, metadata={"about": json.dumps(about)})

    log = Log(plan, folder, trainee.step)
    saved, exported = time.monotonic(), time.monotonic()
    while trainee.step < plan.steps:
        learn_text = trainee.step * BATCH < TEXT_UNTIL * total
        losses = losses_at(models, stream, trainee.step, learn_text)
        trainee.update(losses["loss"], rate(trainee.step * BATCH, total))
        if not is_first():
            continue
        log.add(trainee.step, losses)
        if time.monotonic() - saved > SAVE_EVERY:
            save()
            saved = time.monotonic()
        if time.monotonic() - exported > EXPORT_EVERY:
            export(trainee, models, total)
            exported = time.monotonic()
    if is_first():
        save()
        export(trainee, models, total)


def export(trainee: Trainee, models: torch.nn.ModuleDict, total: int) -> None:
    """Write the averaged weights as a diffusers folder, their held-out loss into the log, and a sheet."""
    import torch

    kept = {name: value.detach().clone() for name, value in trainee.parameters.items()}
    with torch.no_grad():
        for name, value in trainee.parameters.items():
            value.copy_(trainee.average[name])
    write_folder(models.eval(), trainee.step)
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
    draw_sheet(state_folder() / "sheets" / f"{seen:08d}.png")
    with torch.no_grad():
        for name, value in trainee.parameters.items():
            value.copy_(kept[name])
    models.train()


def write_folder(models: torch.nn.ModuleDict, steps: int) -> None:
    """`export` in the state folder, as StableDiffusionPipeline.from_pretrained reads it, in fp16."""
    with atomic_folder(state_folder() / "export") as folder:
        for name, model in {"vae": vae(), "unet": models["unet"]}.items():
            save_config(model, folder / name)
            save_half(
                model, folder / name / "diffusion_pytorch_model.safetensors", steps=steps if name == "unet" else 0
            )
        save_config(models["text"], folder / "text_encoder")
        save_half(models["text"], folder / "text_encoder" / "model.safetensors", lambda name: f"text_model.{name}")
        (folder / "tokenizer").mkdir()
        save_tokenizer(tokenizer(), folder / "tokenizer")
        noise_schedule().save_pretrained(folder / "scheduler")
        (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n", encoding="utf-8")


def draw_sheet(path: Path) -> None:
    """PROMPTS by the last export, each from the same seed, captioned."""
    import torch
    from diffusers import StableDiffusionPipeline
    from PIL import Image, ImageDraw

    pipeline = StableDiffusionPipeline.from_pretrained(state_folder() / "export")
    pipeline.set_progress_bar_config(disable=True)
    rngs = [torch.Generator().manual_seed(7) for _ in PROMPTS]
    pictures = pipeline(list(PROMPTS), num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=rngs).images
    sheet = Image.new("RGB", (8 * 136, -(-len(PROMPTS) // 8) * 150), (255, 255, 255))
    for index, (prompt, picture) in enumerate(zip(PROMPTS, pictures, strict=True)):
        x, y = index % 8 * 136, index // 8 * 150
        sheet.paste(picture.resize((132, 132), Image.Resampling.LANCZOS), (x, y))
        ImageDraw.Draw(sheet).text((x + 2, y + 134), prompt[:24], fill=(0, 0, 0))
    with atomic_file(path) as beside:
        sheet.save(beside, format="PNG")
