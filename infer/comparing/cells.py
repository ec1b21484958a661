"""Cells are drawn once: each is kept under the hash of all that makes it, as a whole PNG with its recipe.

What was drawn before (an axis was extended, a command was killed, another sheet had the same picture) is taken from
there. A cell is what generate.py draws with the same settings, byte for byte: it is drawn by the same functions.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from tqdm import tqdm

from data import kept
from data.errors import InputError, raise_all
from data.files import cache_root, sha256
from infer import drawing, encoder, loras, metadata, pipeline, planning, recipes, schedulers, sizes
from infer.comparing.weights import Weights
from infer.comparing.wishes import Wish
from infer.config import GenerateOptions
from infer.encoder import Tokens
from infer.loras import Proof
from infer.metadata import Recipe
from infer.pipeline import Settings
from infer.prompts import Picture
from train import base_model
from train.base_model import BaseModel

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

GRAMMAR = GenerateOptions().weighting  # of prompts, as generate.py reads them
VERSION = 1  # raise it when the same wish would get another picture


@dataclass(frozen=True)
class Cell:
    """A finished picture: its file and its recipe. fresh: drawn by this command, not before it."""

    path: Path
    recipe: Recipe
    fresh: bool

    @property
    def picture(self) -> Image.Image:
        with Image.open(self.path) as picture:
            return picture.convert("RGB")


@dataclass(frozen=True)
class Machine:
    """Where and in which numbers pictures are drawn."""

    device: torch.device
    dtype: torch.dtype
    strict: bool = False

    @property
    def facts(self) -> tuple[object, ...]:
        """What bit-equal pictures need to have in common."""
        versions = recipes.versions().items()
        return (recipes.device_name(self.device), str(self.dtype), torch.get_num_threads(), *versions)


@dataclass
class Store:
    """Finds, draws and keeps cells."""

    machine: Machine
    folder: Path | None = None
    models: dict[tuple[str, str | None, bool], BaseModel] = field(default_factory=dict)
    tokens: dict[tuple[str, str], Tokens] = field(default_factory=dict)  # by tokenizer and text

    def path(self, wish: Wish) -> Path:
        key = self.key(wish)
        return (self.folder or cache_root() / "cells") / key[:2] / f"{key}.png"

    def key(self, wish: Wish) -> str:
        """Everything that the picture, and what is written in it, follows from; no network is loaded to know it."""
        model = self.model(wish.weights)
        scheduler = scheduler_text(wish.scheduler, json.dumps(model.scheduler_config, sort_keys=True))
        files = [(loras.shown_name(lora.path), file_hash(lora.path), lora.weight) for lora in wish.weights.loras]
        asked = (wish.prompt, wish.template, wish.seed, *asdict(self.settings(wish)).items())
        return kept.digest("cell", VERSION, recipes.model_used(model), scheduler, files, asked, *self.machine.facts)

    def settings(self, wish: Wish) -> Settings:
        own = self.model(wish.weights).sample_size
        return Settings(
            wish.steps,
            wish.guidance_scale,
            wish.width or own,
            wish.height or own,
            wish.negative_prompt,
            pipeline.micro_batch_for(self.machine.device),
            weighting=GRAMMAR,
        )

    def model(self, weights: Weights) -> BaseModel:
        """The model by name; its networks load when they are first used, and go in `forget`."""
        key = (weights.model, weights.tokenizer, weights.zero_terminal_snr)
        if key not in self.models:
            found = base_model.load(weights.model, tokenizer=weights.tokenizer, dtype=self.machine.dtype)
            self.models[key] = replace(found, zero_terminal_snr=weights.zero_terminal_snr)
        return self.models[key]

    def check(self, wishes: Sequence[Wish]) -> None:
        """Raise InputError for sizes that a model cannot draw, all at once; say what of the prompts is not read."""
        problems: list[InputError] = []
        for wish in wishes:
            settings, model = self.settings(wish), self.model(wish.weights)
            problems += sizes.wrong("--width", settings.width, model)
            problems += sizes.wrong("--height", settings.height, model)
            self.calls(wish)
            self.key(wish)  # reads every LoRA
            unread = planning.unreadable((wish.prompt, wish.negative_prompt), GRAMMAR)
            problems += unread
            if not unread:
                self.tokens_of(wish)
        problems = list({str(problem): problem for problem in problems}.values())
        cut = encoder.cut_prompts({text: found for (_, text), found in self.tokens.items()})
        raise_all([*problems, *cut] if self.machine.strict else problems)
        for problem in cut:
            drawing.warn(problem)

    def tokens_of(self, wish: Wish) -> dict[str, Tokens]:
        """The Tokens of a wish's prompts."""
        model = self.model(wish.weights)
        mark = model.fingerprints["tokenizer"]
        texts = (wish.prompt, wish.negative_prompt)
        missing = [text for text in texts if (mark, text) not in self.tokens]
        for text, found in encoder.measure(missing, model.tokenizer, GRAMMAR).items() if missing else ():
            self.tokens[mark, text] = found
        return {text: self.tokens[mark, text] for text in texts}

    def fetch(self, wishes: Sequence[Wish]) -> dict[Wish, Cell]:
        """The cell of every wish; only those that are not there yet are drawn. Raises InputError."""
        asked = list(dict.fromkeys(wishes))
        there = {wish: cell for wish in asked if (cell := read(self.path(wish))) is not None}
        missing = [wish for wish in asked if wish not in there]
        if missing:
            self.draw(missing)
        fresh = {wish: Cell(path, metadata.read(path), True) for wish in missing if (path := self.path(wish))}
        return {wish: fresh.get(wish) or there[wish] for wish in asked}

    def draw(self, wishes: Sequence[Wish]) -> None:
        """Draw cells in the order that loads each model, LoRA and scheduler once; each is kept when it is finished."""
        order = {name: index for index, name in enumerate(dict.fromkeys(wish.weights.model for wish in wishes))}
        ranked = sorted(wishes, key=lambda wish: (order[wish.weights.model], repr(wish.weights), str(wish.scheduler)))
        total = sum(self.calls(wish) for wish in wishes)
        with tqdm(total=total, desc=f"{len(wishes)} cells", unit="step", dynamic_ncols=True) as bar:
            for name, same_model in groupby(ranked, lambda wish: wish.weights.model):
                for weights, alike in groupby(same_model, lambda wish: wish.weights):
                    self.draw_with(weights, list(alike), bar)
                self.forget(name)

    def calls(self, wish: Wish) -> int:
        """U-Net calls of a wish. Raises InputError for steps that its scheduler cannot make."""
        scheduler = schedulers.build(wish.scheduler, self.model(wish.weights).scheduler_config)
        return pipeline.calls_of(cast(Any, SimpleNamespace(scheduler=scheduler)), wish.steps)

    def draw_with(self, weights: Weights, wishes: Sequence[Wish], bar: Any) -> None:
        """Draw the wishes of one set of weights; the model's networks stay, its LoRAs go again."""
        with self.pipe(weights) as (pipe, proofs):
            for scheduler, alike in groupby(wishes, lambda wish: wish.scheduler):
                model = self.model(weights)
                pipe.scheduler = schedulers.build(scheduler, model.scheduler_config)
                self.draw_alike(pipe, recipes.shared(pipe, model, proofs, scheduler), list(alike), bar)

    @contextmanager
    def pipe(self, weights: Weights) -> Iterator[tuple[StableDiffusionPipeline, list[Proof]]]:
        """A pipeline with these weights, and what each LoRA does to them."""
        pipe = pipeline.build(self.model(weights), None, self.machine.device)
        proofs = loras.attach(pipe, weights.loras, strict=self.machine.strict)
        for proof in proofs:
            tqdm.write(str(proof), file=sys.stdout)
        yield pipe, proofs
        if proofs:
            pipe.unload_lora_weights()

    def draw_alike(self, pipe: Any, shared: Mapping[str, Any], wishes: Sequence[Wish], bar: Any) -> None:
        """Draw the wishes of one scheduler, those of equal settings together."""
        own = {wish: self.settings(wish) for wish in wishes}
        ranked = sorted(wishes, key=lambda wish: repr(own[wish]))
        pictures = [
            Picture(index, wish.prompt, wish.seed, wish.template, asdict(own[wish]))
            for index, wish in enumerate(ranked)
        ]
        for drawn in pipeline.draw(pipe, pictures, own[ranked[0]], bar.update):
            wish = ranked[drawn.picture.index]
            metadata.write(self.path(wish), drawn.image, recipes.of(shared, drawn, self.tokens_of(wish)))

    def forget(self, name: str) -> None:
        """Free the memory of a model's networks before the next one's come."""
        for key, model in self.models.items():
            if key[0] == name:
                model.forget("unet", "vae", "text_encoder")
        gc.collect()


def read(path: Path) -> Cell | None:
    """A cell that was kept, or None if there is none or it is damaged."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.verify()  # every chunk's checksum
        return Cell(path, metadata.read(path), False)
    except (OSError, SyntaxError, ValueError, InputError):
        return None


@cache
def scheduler_text(name: str | None, config: str) -> str:
    """A scheduler with all its settings, as it will be written in the recipe."""
    scheduler = schedulers.build(name, json.loads(config))
    return f"{type(scheduler).__name__} {schedulers.shown(scheduler, name)} {scheduler.to_json_string()}"


@cache
def file_hash(path: Path) -> str:
    """Raises InputError for a LoRA that is not there."""
    if not path.is_file():
        allowed = "FILE or FILE:WEIGHT, a .safetensors file"
        raise InputError("no such file", where=f"--lora {path}", allowed=allowed)
    return sha256(path)
