"""The scorer: a small CLIPModel of its own seed and towers that judges pictures and never conditions them.

It learns the nouns in all their looks and the creatures with their types, softened and noised, since what it will judge
has gone through an autoencoder. Paper, ink and colours of all pictures are changed at random as well: a judge that has
seen cream paper under creatures alone confuses nouns on it (of the base's pictures of twenty nouns 85 % were found by
name, of the same pictures multiplied by that paper 65 %, before it was so).
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from data import sample_set
from data.atomic_io import atomic_folder, write_atomic
from data.captions import with_article
from data.rng import generator, integer, seed_for
from data.sample_set import POCKET
from tools.pocket.attributes import SIZE
from tools.pocket.binding import contrastive
from tools.pocket.export import save_config, save_half
from tools.pocket.figures import nouns
from tools.pocket.tokenizer import LENGTH, load_tokenizer, save_tokenizer, short_ids
from tools.pocket.training import Losses, Plan, fit
from tools.pocket.world import Sample, as_tensor, sample

SCORER = POCKET / "scorer"
PLAN = Plan("scorer", steps=1200, peak=2e-3, warmup=50, ema=0.99, decay=0.05, muon=True)
NOUNS, CREATURES = 64, 12  # pictures of each kind a step
FRESH = 2**41  # samples of the world from here on are used by no other training
OUTSIDE = 0.9  # all three colours at or above, of 1: paper around a noun
TYPED = {
    0: "a {type} type creature", 1: "a {type} type creature named {name}", 2: "{type} type",
    3: "a picture of a {type} type creature",
}  # fmt: skip
PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"height": SIZE, "width": SIZE},
    "resample": 3, "do_center_crop": False, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "do_convert_rgb": True,
}  # fmt: skip


@cache
def creature_pixels() -> np.ndarray:
    """The whole sample set at 64x64, uint8 (count, 64, 64, 3)."""
    import numpy as np

    return np.stack([np.asarray(sample_set.sample_image(index)) for index in range(sample_set.COUNT)])


def is_held_out_creature(row: int) -> bool:
    """One creature in ten is never trained on, so that errors and accuracies can be measured on it."""
    return integer(10, "pocket", "creatures", "held out", row) == 0


def seen_creatures() -> list[int]:
    """The rows that may be trained on."""
    return [row for row in range(len(creature_pixels())) if not is_held_out_creature(row)]


def scorer_config(eos: int) -> CLIPConfig:
    """Patches of 8, three layers of 128 for pictures; two layers of 128 for text; 128 shared axes."""
    shared = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "projection_dim": 128}
    text = {"vocab_size": eos + 1, "num_hidden_layers": 2, "max_position_embeddings": LENGTH}
    marks = {"bos_token_id": eos - 1, "eos_token_id": eos, "pad_token_id": eos}
    vision = {"image_size": SIZE, "patch_size": 8, "num_hidden_layers": 3}
    return CLIPConfig(text_config=shared | text | marks, vision_config=shared | vision, projection_dim=128)


def new_scorer(eos: int) -> CLIPModel:
    """Untrained weights from a fixed seed of its own."""
    torch.manual_seed(1014)
    return CLIPModel(scorer_config(eos))


def creature_caption(row: int, step: int) -> str:
    """The annotator's words half the time, else a short phrase with the type."""
    note = sample_set.sample_annotation(row)
    kind = integer(8, "pocket", "scorer", "caption", step, row)
    return TYPED[kind].format(type=note.type, name=note.name) if kind in TYPED else note.text or ""


def redrawn(pixels: torch.Tensor, step: int) -> torch.Tensor:
    """Pictures with thicker ink, outlines, other colours and other paper, each by its own draws; shapes stay.

    pixels: (B, 3, SIZE, SIZE) in [-1, 1], as the answer.
    """
    rng = generator("pocket", "scorer", "redraw", step)

    def some(share: float, low: float, high: float, still: float = 0.0, channels: int = 1) -> torch.Tensor:
        """A value for each picture: `still` for most, from low to high for a share of them."""
        drawn = low + (high - low) * torch.rand(len(pixels), channels, 1, 1, generator=rng)
        return torch.where(torch.rand(len(pixels), 1, 1, 1, generator=rng) < share, drawn, still)

    shown = (pixels + 1) / 2
    darkest = -functional.max_pool2d(-shown, 3, 1, 1)
    shown = shown + some(0.3, 0.2, 1.0) * (darkest - shown)
    body = (shown.amin(dim=1, keepdim=True) < OUTSIDE).float()
    edge = functional.max_pool2d(body, 3, 1, 1) - body
    shown = shown + some(0.4, 0.4, 1.0) * edge * (some(1.0, 0.0, 0.25, channels=3) - shown)
    shown = shown.clamp(1e-3, 1) ** some(0.4, 0.7, 1.4, still=1.0)
    grey = shown.mean(dim=1, keepdim=True)
    shown = grey + some(0.4, 0.6, 1.4, still=1.0) * (shown - grey)
    shown = shown * some(0.6, 0.76, 1.0, still=1.0, channels=3)
    return (shown * 2 - 1).clamp(-1, 1)


def softened(pixels: torch.Tensor, step: int) -> torch.Tensor:
    """Pictures flipped, shifted, blurred and noised a little, each by its own draw."""
    rng = generator("pocket", "scorer", "soften", step)
    count = len(pixels)
    flip = torch.rand(count, generator=rng)[:, None, None, None] < 0.5
    pixels = torch.where(flip, pixels.flip(3), pixels)
    blur = torch.rand(count, generator=rng)[:, None, None, None]
    pixels = pixels + blur * (functional.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False) - pixels)
    noise = torch.randn(pixels.shape, generator=rng) * 0.12 * torch.rand(count, generator=rng)[:, None, None, None]
    shift = torch.randint(-3, 4, (2,), generator=rng).tolist()
    return torch.roll((pixels + noise).clamp(-1, 1), shift, (2, 3))


def noun_samples(step: int) -> tuple[list[Sample], list[str]]:
    """NOUNS samples of different nouns, captioned by their own words or, unless two stand there, by the noun alone."""
    rng = random.Random(seed_for("pocket", "scorer", "nouns", step))
    rows = [sample(FRESH + rng.randrange(2**40), (noun,)) for noun in rng.sample(tuple(nouns()), NOUNS)]
    short = [row.kind != "pair" and rng.random() < 0.6 for row in rows]
    return rows, [with_article(row.noun) if alone else row.caption for row, alone in zip(rows, short, strict=True)]


def train_scorer(plan: Plan = PLAN) -> None:
    """Train or go on, then write data/pocket/scorer."""
    creatures, seen = creature_pixels(), seen_creatures()
    model = new_scorer(len(load_tokenizer()) - 1)

    def losses_at(step: int) -> Losses:
        rows, captions = noun_samples(step)
        drawn = random.Random(seed_for("pocket", "scorer", "creatures", step)).sample(seen, CREATURES)
        captions += [creature_caption(row, step) for row in drawn]
        shown = as_tensor([row.picture for row in rows] + [Image.fromarray(creatures[row]) for row in drawn])
        pixels = softened(redrawn(shown, step), step)
        output = model(input_ids=short_ids(captions), pixel_values=pixels)
        same = torch.tensor([[one == two for one in captions] for two in captions])
        loss = contrastive(output.text_embeds, output.image_embeds, model.logit_scale, same)
        hits = (output.logits_per_image.argmax(1) == torch.arange(len(captions))).float().mean()
        return {"loss": loss, "batch_hits": hits}

    export_scorer(fit(plan, model, losses_at))


def export_scorer(model: CLIPModel, target: Path = SCORER) -> None:
    """The scorer as CLIPModel.from_pretrained reads it, fp16, with its tokenizer and preprocessor.

    Card and names stay; the real pictures' features, which another scorer made, go until the next --score.
    """
    kept = {name: (target / name).read_bytes() for name in ("README.md", "names.txt") if (target / name).exists()}
    with atomic_folder(target) as folder:
        save_config(model, folder / "model")
        (folder / "model" / "config.json").rename(folder / "config.json")
        (folder / "model").rmdir()
        save_half(model, folder / "model.safetensors")
        save_tokenizer(folder)
        write_atomic(folder / "preprocessor_config.json", json.dumps(PREPROCESSOR, indent=2) + "\n")
        for name, content in kept.items():
            (folder / name).write_bytes(content)
        for file in folder.iterdir():
            file.chmod(0o644)
