"""The world as the U-Net sees it: latents and token ids in shards, made when they are first needed and kept."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from data.atomic_io import atomic_file
from data.rng import generator, permutation, uniform
from tools.pocket.export import WEIGHTS, load_vae, vae_folder
from tools.pocket.tokenizer import BASE, token_ids
from tools.pocket.training import state_folder
from tools.pocket.world import SHARD, SHARDS, VERSION, as_tensor, sample

Batch = tuple["torch.Tensor", "torch.Tensor"]  # latents and token ids
BATCH, EMPTY_PROMPT = 64, 0.1


@cache
def data_key() -> str:
    """A hash of the world, the encoder and the tokenizer: other ones make other shards, another decoder does not."""
    weights = load_file(vae_folder() / WEIGHTS)
    factor = repr(load_vae().config.scaling_factor)
    digest = hashlib.sha256(f"{VERSION} {factor}".encode() + (BASE / "tokenizer" / "merges.txt").read_bytes())
    for name in sorted(weights):
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(weights[name].half().numpy().tobytes())
    return digest.hexdigest()[:12]


@cache
def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware; elsewhere autocast would be slower than fp32."""
    return "avx512_bf16" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else False


def encode(pixels: torch.Tensor) -> torch.Tensor:
    """Scaled latents of pictures in [-1, 1], fp16."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
        means = [
            load_vae().encode(chunk.contiguous(memory_format=torch.channels_last)).latent_dist.mean
            for chunk in pixels.split(32)
        ]
    return torch.cat(means).float().mul(load_vae().config.scaling_factor).half()


def shard(index: int) -> dict[str, torch.Tensor]:
    """`latents` (SHARD, 4, 16, 16) fp16 and `ids` (SHARD, LENGTH) int16 of a shard, made at the first call."""
    path = state_folder() / "shards" / data_key() / f"{index:04d}.safetensors"
    if not path.exists():
        latents, ids = [], []
        for start in range(0, SHARD, 256):
            rows = [sample(index * SHARD + start + row) for row in range(256)]
            latents.append(encode(as_tensor([row.picture for row in rows])))
            ids.append(token_ids([row.caption for row in rows]).to(torch.int16))
        with atomic_file(path) as beside:
            save_file({"latents": torch.cat(latents).contiguous(), "ids": torch.cat(ids)}, beside)
    return load_file(path)


class Stream:
    """The batches: all shards once in their order, afterwards again and again in other orders."""

    def __init__(self) -> None:
        self.loaded: dict[int, dict[str, torch.Tensor]] = {}

    def batch(self, step: int, slots: list[int]) -> Batch:
        """Latents and token ids of some slots of a step's batch; the empty prompt for one in ten."""
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
        return token_ids([""])[0].to(torch.int16)
