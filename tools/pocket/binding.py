"""The text encoder learns to bind before the U-Net reads it: contrastively, against pictures whose words are exchanged.

It starts from the shipped encoder with two more layers that change nothing yet. Each batch holds groups of pictures
that only the order of the words tells apart: "a red apple and a blue car", "a blue apple and a red car", "a blue car
and a red apple"; and the same noun with different attributes. The image tower is thrown away afterwards.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel

from data.rng import seed_for
from tools.pocket.figures import COLOURS, nouns
from tools.pocket.tokenizer import BASE, LENGTH, load_tokenizer, short_ids, type_phrase
from tools.pocket.training import Losses, Plan, fit
from tools.pocket.world import as_tensor, pair_caption, pair_picture, sample

PLAN = Plan("binding", steps=700, peak=6e-4, warmup=50, ema=0.99, decay=0.02, log_every=25)
WIDTH, LAYERS = 128, 4
PAIRS, ATTRIBUTED, PHRASES = 6, 16, 12  # groups of three pairs, of two pictures of one noun; pairs of phrases


def text_config() -> CLIPTextConfig:
    """LAYERS layers of WIDTH, four heads."""
    end = len(load_tokenizer()) - 1
    return CLIPTextConfig(
        vocab_size=end + 1, hidden_size=WIDTH, intermediate_size=4 * WIDTH, projection_dim=WIDTH,
        num_hidden_layers=LAYERS, num_attention_heads=4, max_position_embeddings=LENGTH, bos_token_id=end - 1,
        eos_token_id=end, pad_token_id=end,
    )  # fmt: skip


def image_tower() -> nn.Sequential:
    """A small convolutional network: 64x64 pixels to one vector of WIDTH."""

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.GELU()]

    layers = [nn.Conv2d(3, 64, 4, 4), nn.GELU(), *block(64, 64, 1), *block(64, 128, 2), *block(128, 128, 1)]
    layers += [*block(128, 192, 2), nn.Flatten(), nn.Linear(192 * 16, WIDTH)]
    return nn.Sequential(*layers)


def contrastive(left: torch.Tensor, right: torch.Tensor, scale: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Symmetric cross entropy over cosines; pairs marked `same` (equal captions) are not counted against each other.

    Source: Radford et al. 2021 (CLIP), figure 3.
    """
    left, right = functional.normalize(left, dim=-1), functional.normalize(right, dim=-1)
    logits = (left @ right.T) * scale.exp().clamp(max=100.0)
    others = same & ~torch.eye(len(logits), dtype=torch.bool)
    logits = logits.masked_fill(others, -1e4)
    target = torch.arange(len(logits))
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def deeper(shipped: CLIPTextModel) -> CLIPTextModel:
    """The shipped encoder with LAYERS layers, those above its own adding nothing until they are trained."""
    torch.manual_seed(14)
    encoder = CLIPTextModel(text_config())
    encoder.load_state_dict(shipped.state_dict(), strict=False)
    own = shipped.config.num_hidden_layers
    with torch.no_grad():
        for name, value in encoder.named_parameters():
            if (
                ".layers." in f".{name}"
                and int(name.split("layers.")[1].split(".")[0]) >= own
                and ("out_proj" in name or "fc2" in name)
            ):
                value.zero_()
    return encoder


def pair_group(rng: random.Random) -> list[tuple]:
    """Two nouns in two colours: as they are, with the colours exchanged, and with the sides exchanged."""
    first, second = rng.sample(tuple(nouns()), 2)
    red, blue = rng.sample(tuple(COLOURS), 2)
    sides = (((first, red), (second, blue)), ((first, blue), (second, red)), ((second, blue), (first, red)))
    return [(pair_picture(left, right, rng), pair_caption(left, right, random.Random(0))) for left, right in sides]


def batch(step: int) -> tuple[torch.Tensor, list[str]]:
    """Pictures (count, 3, 64, 64) in [-1, 1] and their captions."""

    rng = random.Random(seed_for("pocket", "binding", step))
    rows = [row for _ in range(PAIRS) for row in pair_group(rng)]
    for noun in rng.sample(tuple(nouns()), ATTRIBUTED):
        for _ in range(2):
            shown = sample(rng.randrange(2**40), (noun,))
            rows.append((shown.picture, shown.caption))
    return as_tensor([picture for picture, _ in rows]), [caption for _, caption in rows]


def new_towers(shipped: CLIPTextModel) -> nn.ModuleDict:
    """The text encoder with a projection, the image tower, and the temperature."""
    text = deeper(shipped)
    towers = nn.ModuleDict({"text": text, "projection": nn.Linear(WIDTH, WIDTH, bias=False), "image": image_tower()})
    towers.register_parameter("scale", nn.Parameter(torch.tensor(2.7)))
    return towers


def train_binding(folder: Path, plan: Plan = PLAN) -> CLIPTextModel:
    """Train or go on with the state in `folder`; returns the text encoder."""
    towers = new_towers(CLIPTextModel.from_pretrained(BASE / "text_encoder"))

    def read(lines: list[str]) -> torch.Tensor:
        return towers["projection"](towers["text"](short_ids(lines)).pooler_output)

    def losses_at(step: int) -> Losses:
        pixels, captions = batch(step)
        rng = random.Random(seed_for("pocket", "binding", "phrases", step))
        said = read([line for pair in zip(*(type_phrase(rng) for _ in range(PHRASES)), strict=True) for line in pair])
        words, looks, scale = read(captions), towers["image"](pixels), towers.get_parameter("scale")
        same = torch.tensor([[one == two for one in captions] for two in captions])
        pictures = contrastive(words, looks, scale, same)
        phrasing = contrastive(said[:PHRASES], said[PHRASES:], scale, torch.zeros(PHRASES, PHRASES, dtype=torch.bool))
        with torch.no_grad():
            unit = torch.nn.functional.normalize
            near = unit(looks[: 3 * PAIRS], dim=-1) @ unit(words[: 3 * PAIRS], dim=-1).T
            groups = near.view(PAIRS, 3, PAIRS, 3).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # within each group
            bound = (groups.argmax(2) == torch.arange(3)).float().mean()
        return {"loss": pictures + 0.3 * phrasing, "pictures": pictures, "phrases": phrasing, "bound": bound}

    return fit(plan, towers, losses_at, folder)["text"]
