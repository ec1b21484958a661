"""The tokenizer: CLIP's byte-level BPE, lower-cased, with 2,578 tokens of its own; frozen, for weights depend on it.

Its merges were learned once from the captions and from plain English words. Like CLIP's it has the 256 bytes, alone and
at a word's end, so any text can be encoded.
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from data.captions import with_article
from data.sample_set import POCKET
from tools.pocket.figures import nouns

BASE = POCKET / "base"
LENGTH = 77  # tokens with the two marks, as in Stable Diffusion v1
TYPE_WORDS = (
    "water", "fire", "grass", "electric", "ice", "rock", "ghost", "poison", "metal", "fairy", "dragon", "ground",
    "flying", "psychic", "bug", "dark", "normal", "steel", "fighting",
)  # fmt: skip
FRAMES = (
    "{a} {t} type {n}", "{t} type {n}", "{an} of the {t} type", "{an}, {t} type", "the {n} is of the {t} type",
    "a picture of {a} {t} type {n}",
)  # fmt: skip


@cache
def load_tokenizer() -> CLIPTokenizer:
    """The shipped tokenizer."""
    return CLIPTokenizer.from_pretrained(BASE / "tokenizer")


def token_ids(lines: list[str]) -> torch.Tensor:
    """(count, LENGTH) int64, padded with the end mark as Stable Diffusion does."""
    padded = load_tokenizer()(lines, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    return padded.input_ids


def short_ids(lines: list[str]) -> torch.Tensor:
    """(count, longest) int64: what follows a line's end mark never changes the feature of the line."""
    return load_tokenizer()(lines, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt").input_ids


def save_tokenizer(folder: Path) -> None:
    """tokenizer.json as transformers writes it, and vocab.json and merges.txt as Stable Diffusion v1 has them."""
    load_tokenizer().save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")


def type_phrase(rng: random.Random) -> tuple[str, str]:
    """Two ways to say that a thing is of a type: text only, no picture of the base model carries such words."""
    noun, kind = rng.choice(tuple(nouns())), rng.choice(TYPE_WORDS)
    words = {"t": kind, "n": noun, "an": with_article(noun), "a": with_article(kind).split()[0]}
    first, second = rng.sample(FRAMES, 2)
    return first.format(**words), second.format(**words)
