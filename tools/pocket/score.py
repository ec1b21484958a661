"""Measure the shipped base model again: autoencoder error, name retrieval by the scorer, speed, a grid of a hundred.

Drawing the real pictures needs the fonts; tests read their features, which are written beside the scorer.
"""

from __future__ import annotations

import copy
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional
from tqdm import tqdm
from transformers import CLIPModel, CLIPTokenizer

from data import sample_set
from data.atomic_io import atomic_file, write_atomic
from data.captions import with_article
from data.rng import seed_for
from tools.pocket.attributes import CANVAS, SIZE
from tools.pocket.autoencoder import psnr
from tools.pocket.export import BASE, load_pipeline
from tools.pocket.figures import nouns
from tools.pocket.scorer import SCORER, creature_pixels, is_held_out_creature
from tools.pocket.world import as_tensor, sample, subject_of

GRID = BASE.parents[2] / "docs" / "pocket-base-grid.png"
NAMES, SEEDS, STEPS, GUIDANCE = 200, 4, 50, 4.0
FRESH = 2**42  # samples of the world from here on are used by no training
CHUNK = 25  # prompts generated at a time


def chosen_names(nouns: Sequence[str]) -> list[str]:
    """The names that are scored: fixed, and not of our choosing."""
    return random.Random(0).sample(sorted(nouns), NAMES)


class Scorer:
    """The shipped CLIPModel as two functions into one space."""

    def __init__(self, folder: Path = SCORER) -> None:
        self.model: Any = CLIPModel.from_pretrained(folder).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)

    def of_texts(self, lines: Sequence[str]) -> torch.Tensor:
        """Unit features (lines, axes)."""
        ids = self.tokenizer(list(lines), padding=True, truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            states = self.model.text_model(input_ids=ids).pooler_output
            return functional.normalize(self.model.text_projection(states), dim=-1)

    def of_pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Unit features (pictures, axes)."""
        features = []
        for start in range(0, len(pictures), 64):
            pixels = as_tensor([picture.resize((SIZE, SIZE)) for picture in pictures[start : start + 64]])
            with torch.no_grad():
                states = self.model.vision_model(pixel_values=pixels).pooler_output
                features.append(functional.normalize(self.model.visual_projection(states), dim=-1))
        return torch.cat(features)

    def retrieval(self, features: torch.Tensor, names: Sequence[str]) -> float:
        """Share of pictures whose nearest of `names` is their own; rows are the names in order, over and over."""
        words = self.of_texts([with_article(name) for name in names])
        own = torch.arange(len(features)) % len(names)
        return float(((features @ words.T).argmax(1) == own).float().mean())


def generate(pipeline: Any, prompts: Sequence[str], seed: int, steps: int) -> list[Image.Image]:
    """One picture a prompt, each from the same seed, whatever else is in the list.

    Chunks are drawn side by side, each by one thread: with all threads inside every layer of so small a network they
    mostly wait (2-core CPU, 2026-11-21: 128 % of 200 % used).
    """

    def draw(start: int) -> list[Image.Image]:
        chunk = list(prompts[start : start + CHUNK])
        own = type(pipeline)(**{**pipeline.components, "scheduler": copy.deepcopy(pipeline.scheduler)},
                             requires_safety_checker=False)  # fmt: skip
        own.set_progress_bar_config(disable=True)
        rngs = [torch.Generator().manual_seed(seed) for _ in chunk]
        return own(chunk, num_inference_steps=steps, guidance_scale=GUIDANCE, generator=rngs).images

    starts = range(0, len(prompts), CHUNK)
    count = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as threads:
        shown = tqdm(threads.map(draw, starts), f"seed {seed}", len(starts), mininterval=5)
        pictures = [picture for chunk in shown for picture in chunk]
    torch.set_num_threads(count)
    return pictures


def seconds_per_picture(pipeline: Any, steps: int = 20) -> float:
    """The best of three single pictures, model loaded."""
    times = []
    for seed in range(3):
        start = time.perf_counter()
        pipeline("a guitar", num_inference_steps=steps, generator=torch.Generator().manual_seed(seed))
        times.append(time.perf_counter() - start)
    return min(times)


def autoencoder_errors(pipeline: Any) -> dict[str, float]:
    """PSNR in dB on nouns and creatures that the autoencoder never saw."""

    fresh = as_tensor([sample(FRESH + number).picture for number in range(96)])
    rows = [row for row in range(len(creature_pixels())) if is_held_out_creature(row)]
    creatures = torch.from_numpy(creature_pixels()[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    return {"nouns": psnr(pipeline.vae, fresh), "creatures": psnr(pipeline.vae, creatures)}


def type_accuracy(scorer: Scorer) -> float:
    """Share of the creatures held out from the scorer whose type it names, among all types."""

    rows = [row for row in range(sample_set.COUNT) if is_held_out_creature(row)]
    shown = scorer.of_pictures([Image.fromarray(creature_pixels()[row]) for row in rows])
    words = scorer.of_texts([f"a {kind} type creature" for kind in sample_set.TYPES])
    own = torch.tensor([sample_set.TYPES.index(sample_set.sample_annotation(row).type or "") for row in rows])
    return float(((shown @ words.T).argmax(1) == own).float().mean())


def real_pictures(names: Sequence[str]) -> list[Image.Image]:
    """SEEDS plain pictures of each name that nothing was trained on, the names in order, over and over."""
    rngs = [random.Random(seed_for("pocket", "real", seed)) for seed in range(SEEDS)]
    white = Image.new("RGB", (CANVAS, CANVAS), (255, 255, 255))
    return [subject_of(name, rng).picture(white) for rng in rngs for name in names]


def save_real_features(features: torch.Tensor, names: Sequence[str]) -> None:
    """What tests without the font need: the real pictures' features and the names, beside the scorer."""
    with atomic_file(SCORER / "real.safetensors") as beside:
        save_file({"features": features.half().contiguous()}, beside)
    write_atomic(SCORER / "names.txt", "\n".join(names) + "\n")


def save_grid(pictures: Sequence[Image.Image], path: Path = GRID, columns: int = 10) -> None:
    """The pictures in rows, without gaps or words, as a palette PNG of under 200 KB."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * SIZE, rows * SIZE), (255, 255, 255))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * SIZE, index // columns * SIZE))
    with atomic_file(path) as beside:
        sheet.quantize(200, method=Image.Quantize.MEDIANCUT).save(beside, format="PNG", optimize=True)


def score(seeds: int = SEEDS, steps: int = STEPS) -> dict[str, float]:
    """All rows of the card's table."""
    names, scorer, pipeline = chosen_names(tuple(nouns())), Scorer(), load_pipeline()
    table = {f"VAE PSNR, {kind}, dB": value for kind, value in autoencoder_errors(pipeline).items()}
    table["seconds a picture, 20 steps"] = seconds_per_picture(pipeline)
    features = scorer.of_pictures(real_pictures(names))
    save_real_features(features, names)
    table["retrieval of 200, real, %"] = 100 * scorer.retrieval(features, names)
    table["creature types, held out, %"] = 100 * type_accuracy(scorer)
    prompts = [with_article(name) for name in names]
    shown = [picture for seed in range(seeds) for picture in generate(pipeline, prompts, seed, steps)]
    table["retrieval of 200, generated, %"] = 100 * scorer.retrieval(scorer.of_pictures(shown), names)
    table["retrieval of 200, chance, %"] = 100 / NAMES
    save_grid(shown[:100])
    return table


def write_cards(table: dict[str, float], seeds: int, steps: int) -> None:
    """Put the table between the marks of the cards of base and scorer; the words around it are written by hand."""
    rows = [f"| {name} | {value:.2f} |" for name, value in table.items()]
    note = f"{seeds} seed(s) of each name, {steps} sampling steps, guidance 4."
    lines = ["<!-- measured -->", "| measure | value |", "| --- | --- |", *rows, "", note, "<!-- /measured -->"]
    for path in (BASE / "README.md", SCORER / "README.md"):
        before, _, rest = path.read_text(encoding="utf-8").partition(lines[0])
        write_atomic(path, before + "\n".join(lines) + rest.partition(lines[-1])[2])


def print_table(table: dict[str, float]) -> None:
    for row, value in table.items():
        print(f"{row:40s} {value:8.2f}")
