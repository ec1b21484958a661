"""The text encoder: CLIPTextModel, trained contrastively with an image tower that is thrown away afterwards.

Phrases with type words ("a water type fridge") have no picture here: two ways to say the same are pulled together and
apart from the others, so that every word of them leaves its mark on the states that the U-Net reads.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from data.rng import integer, seed_for
from tools.pocket.nouns import all_nouns
from tools.pocket.pool import VARIANTS, Pool, load_pool
from tools.pocket.tokenizer import LENGTH, load_tokenizer, type_phrase
from tools.pocket.training import Losses, Plan, fit, state_folder

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import CLIPTextModel, CLIPTokenizer

PLAN = Plan("text", steps=800, peak=1.2e-3, ema=0.99, decay=0.02)
WIDTH = 128
NOUNS, LOOKS, PHRASES = 32, 2, 24  # nouns a step, pictures of each, pairs of phrases without pictures


def text_config(eos: int):
    """Two layers of 128, four heads; a projection into the space shared with the pictures."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=eos + 1, hidden_size=WIDTH, intermediate_size=4 * WIDTH, projection_dim=WIDTH, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=LENGTH, bos_token_id=eos - 1, eos_token_id=eos, pad_token_id=eos,
    )  # fmt: skip


def image_tower() -> nn.Sequential:
    """A small convolutional network: 64x64 pixels to one vector of WIDTH."""
    from torch import nn

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.GELU()]

    layers = [nn.Conv2d(3, 64, 4, 4), nn.GELU(), *block(64, 64, 1), *block(64, 128, 2), *block(128, 128, 1)]
    layers += [*block(128, 192, 2), nn.Flatten(), nn.Linear(192 * 16, WIDTH)]
    return nn.Sequential(*layers)


def new_towers(eos: int) -> nn.ModuleDict:
    """Both towers and the temperature, from a fixed seed."""
    import torch
    from torch import nn
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(12)
    towers = nn.ModuleDict({"text": CLIPTextModelWithProjection(text_config(eos)), "image": image_tower()})
    towers.register_parameter("scale", nn.Parameter(torch.tensor(2.7)))
    return towers


def tokens(tokenizer: CLIPTokenizer, lines: list[str]) -> torch.Tensor:
    """Token numbers (batch, longest) int64; what follows a line's end mark never changes it: the padding is short."""
    return tokenizer(lines, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt").input_ids


def contrastive(left: torch.Tensor, right: torch.Tensor, scale: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Symmetric cross entropy over cosines; pairs marked `same` (equal captions) are not counted against each other.

    Source: Radford et al. 2021 (CLIP), figure 3.
    """
    import torch
    from torch.nn import functional

    left, right = functional.normalize(left, dim=-1), functional.normalize(right, dim=-1)
    logits = (left @ right.T) * scale.exp().clamp(max=100.0)
    others = same & ~torch.eye(len(logits), dtype=torch.bool)
    logits = logits.masked_fill(others, -1e4)
    target = torch.arange(len(logits))
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def phrases(pool: Pool, step: int) -> tuple[list[str], list[str]]:
    """Pairs of lines that say the same: type phrases, and long lists of captions in two orders."""
    rng = random.Random(seed_for("pocket", "text", "phrases", step))
    pairs = [type_phrase(rng) for _ in range(PHRASES - 6)]
    for _ in range(6):
        parts = rng.sample(pool.captions, rng.randint(3, 8))
        pairs.append((", ".join(parts), ", ".join(rng.sample(parts, len(parts)))))
    return [first for first, _ in pairs], [second for _, second in pairs]


def chosen(pool: Pool, step: int) -> list[int]:
    """Pictures of one step: several looks of the same nouns, so that the words for looks matter too."""
    count = len(all_nouns())
    order = random.Random(seed_for("pocket", "text", "nouns", step)).sample(range(count), NOUNS)
    return [
        noun + count * integer(VARIANTS, "pocket", "text", "variant", step, noun, look)
        for noun in order
        for look in range(LOOKS)
    ]


def train_text_encoder(plan: Plan = PLAN) -> None:
    """Train both towers or go on; only the text tower is kept, under the state folder."""
    import torch
    from transformers import CLIPTextModel

    pool, tokenizer = load_pool(), load_tokenizer()
    towers = new_towers(len(tokenizer) - 1)

    def losses_at(step: int) -> Losses:
        rows = chosen(pool, step)
        first, second = phrases(pool, step)
        captions = [pool.captions[row] for row in rows]
        words = towers["text"](tokens(tokenizer, captions)).text_embeds
        looks = towers["image"](pool.tensor(rows))
        said = towers["text"](tokens(tokenizer, first + second)).text_embeds
        scale = towers.get_parameter("scale")
        same = torch.tensor([[one == two for one in captions] for two in captions])
        pictures = contrastive(words, looks, scale, same)
        phrasing = contrastive(said[:PHRASES], said[PHRASES:], scale, torch.zeros(PHRASES, PHRASES, dtype=torch.bool))
        return {"loss": pictures + 0.3 * phrasing, "pictures": pictures, "phrases": phrasing}

    trained = fit(plan, towers, losses_at)
    kept = CLIPTextModel(text_config(len(tokenizer) - 1))
    weights = trained["text"].get_submodule("text_model").state_dict()
    kept.load_state_dict(weights)
    kept.save_pretrained(text_folder())


def text_folder() -> Path:
    """Where the finished text tower stands."""
    return state_folder() / "text" / "model"


@cache
def load_text_encoder() -> CLIPTextModel:
    """The finished text encoder."""
    from transformers import CLIPTextModel

    return CLIPTextModel.from_pretrained(text_folder()).eval()


def text_states(lines: list[str]) -> torch.Tensor:
    """The states that the U-Net reads, (batch, LENGTH, WIDTH): padded with the end mark, as Stable Diffusion does."""
    import torch

    tokenizer = load_tokenizer()
    ids = tokenizer(lines, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        return load_text_encoder()(ids).last_hidden_state
