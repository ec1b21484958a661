"""The tokenizer: CLIP's byte-level BPE, lower-cased, its merges learned from the captions and from plain English words.

Like CLIP's it has the 256 bytes, alone and at a word's end, so any text can be encoded, whatever its words.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from data.captions import with_article
from data.rng import seed_for
from tools.pocket.nouns import ALIASES, all_nouns, listed
from tools.pocket.pictures import COLOURS, PLACES
from tools.pocket.training import state_folder

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

MERGES = 2600
LENGTH = 77  # tokens with the two marks, as in Stable Diffusion v1
TYPE_WORDS = listed("""
water, fire, grass, electric, ice, rock, ghost, poison, metal, fairy, dragon, ground, flying, psychic, bug, dark,
normal, steel, fighting
""")
FRAMES = (
    "{a} {t} type {n}", "{t} type {n}", "{an} of the {t} type", "{an}, {t} type", "the {n} is of the {t} type",
    "a picture of {a} {t} type {n}",
)  # fmt: skip
PARTS = listed("""
big, small, round, tall, short, long, thin, wide, happy, sad, angry, sleepy, calm, shy, proud, surprised, smiling,
grumpy, curious, body, head, eyes, eye, ear, ears, tail, tails, wing, wings, horn, horns, crest, leaf, drop, flame,
flames, spark, crystal, crystals, cloud, belly, cheeks, mouth, fangs, teeth, tongue, nose, paws, feet, legs, arms,
fins, spikes, shell, stripes, spots, patches, antenna, hair, standing, sitting, jumping, flying, sleeping, waving,
walking, running, looking, left, right, up, down, front, side, facing, open, closed, light, dark, pale, bright,
deep, soft, sharp, pointed, curled, fluffy, smooth, teal, violet, cream, navy, lime, turquoise, gold, golden,
silver, magenta, lilac, mint, coral, peach, background, creature, pocket, cute, cartoon, style, drawing, picture,
mix, between, with, without, its, on, in, at, under, over, and, the, two, three, four, one, arms, outlined, outline,
thick, bold, flat, shading, colours, color
""")


def type_phrase(rng: random.Random) -> tuple[str, str]:
    """Two ways to say that a thing is of a type: text only, no picture of the base model carries such words."""
    noun, kind = rng.choice(all_nouns()), rng.choice(TYPE_WORDS)
    words = {"t": kind, "n": noun, "an": with_article(noun), "a": with_article(kind).split()[0]}
    first, second = rng.sample(FRAMES, 2)
    return first.format(**words), second.format(**words)


def corpus() -> Iterator[str]:
    """Lines to learn the merges from: captions' words, each often enough to become one token."""
    for noun in all_nouns():
        yield from [with_article(noun)] * 20
        for colour in COLOURS:
            yield f"a {colour} {noun}"
        for place in PLACES:
            yield f"{with_article(noun)} {place}"
        for look in ("line drawing", "black and white drawing", "sticker", "silhouette", "emoji", "close-up picture"):
            yield f"a {look} of {with_article(noun)} on a background with a bold outline at the top bottom pixel art"
    yield from [word for word in (*ALIASES.values(), *PARTS, *TYPE_WORDS) for _ in range(20)]
    rng = random.Random(seed_for("pocket", "tokenizer"))
    for _ in range(2000):
        yield " ".join(type_phrase(rng))


def learn_merges() -> list[tuple[str, str]]:
    """BPE merges over the corpus, split and normalised exactly as CLIPTokenizer does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    like_clip = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = like_clip.normalizer, like_clip.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=512 + MERGES, end_of_word_suffix="</w>", show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    learner.train_from_iterator(corpus(), trainer)
    return [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]


def new_tokenizer() -> CLIPTokenizer:
    """Train the tokenizer: bytes, bytes that end a word, merges, and the two marks last, in CLIP's order."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    merges = learn_merges()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *dict.fromkeys(a + b for a, b in merges)]
    vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)  # pyright: ignore[reportArgumentType]


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """tokenizer.json as transformers writes it, and vocab.json and merges.txt as Stable Diffusion v1 has them."""
    tokenizer.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")


def load_tokenizer() -> CLIPTokenizer:
    """The tokenizer of this build, trained at the first call."""
    from transformers import CLIPTokenizer

    folder = state_folder() / "tokenizer"
    if not (folder / "merges.txt").exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_tokenizer(new_tokenizer(), folder)
    return CLIPTokenizer.from_pretrained(folder)
