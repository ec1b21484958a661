"""Does the base compose? Colours on nouns, elements on nouns never shown with one, two nouns in two colours.

The judge is a small network with one answer each for noun, colour and attribute, trained on the world's own pictures,
blurred and noised. Its score on fresh real pictures, printed beside every number, is that number's ceiling.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from data.atomic_io import atomic_file
from data.captions import with_article
from data.rng import generator, seed_for
from tools.pocket import attributes
from tools.pocket.attributes import SIZE
from tools.pocket.export import load_pipeline
from tools.pocket.figures import COLOURS, nouns
from tools.pocket.training import Losses, Plan, fit, state_folder
from tools.pocket.world import HELD_OUT, VERSION, as_tensor, ground_of, pair_picture, subject_of

POOL, BATCH = 24_576, 64  # pictures, and how many of them a step takes
PLAN = Plan("judge", steps=2000, peak=2e-3, ema=0.995, decay=0.05, log_every=100)
ATTRIBUTES = (*attributes.ELEMENTS, *dict.fromkeys(attributes.ACCESSORIES))
ASKED = {  # attribute -> how it is asked for
    "on_fire": "on fire", "in_water": "in water", "in_leaves": "covered in leaves", "electrified": "with lightning",
    "icy": "made of ice", "snowy": "covered in snow", "of_stone": "made of stone", "of_metal": "made of metal",
    "magical": "with stars", "with_face": "with a face", "with_wings": "with wings", "with_hat": "with a hat",
}  # fmt: skip
SAMPLING_STEPS, GUIDANCE, CHUNK = 20, 4.0, 24
Labels = tuple[int, int, int]  # noun, colour (0: its own), attribute (0: none)
Both = tuple[Labels, Labels]  # of a pair: left, right


def labelled(number: int) -> tuple[Image.Image, Labels]:
    """A picture with its noun, colour and attribute: one alone, one half of a pair, or an attributed one."""
    rng = random.Random(seed_for("pocket", "judge", number))
    names, paints = tuple(nouns()), tuple(COLOURS)
    noun = rng.randrange(len(names))
    colour = rng.randrange(len(paints)) if rng.random() < 0.5 else -1
    word = paints[colour] if colour >= 0 else ""
    if rng.random() < 0.25:
        other = (rng.choice(names), rng.choice(paints))
        side = rng.randrange(2)
        both = ((names[noun], word), other) if side == 0 else (other, (names[noun], word))
        return half(pair_picture(*both, rng), side), (noun, colour + 1, 0)
    suited = (*attributes.KEEP_COLOUR, *attributes.ACCESSORIES) if colour >= 0 else ATTRIBUTES
    attribute = ATTRIBUTES.index(rng.choice(suited)) if rng.random() < 0.6 else -1
    size = (76, 90, 6) if attribute >= 0 else (90, 116, 0)
    subject = subject_of(names[noun], rng, word, *size)
    if attribute >= 0:
        ATTRIBUTES[attribute](subject, rng)
    return subject.picture(ground_of(rng, 0.25, word)[0]), (noun, colour + 1, attribute + 1)


def half(picture: Image.Image, side: int) -> Image.Image:
    """The left (0) or right (1) half of a pair, enlarged: what stands there fills the picture."""
    left, top, span = side * SIZE // 2, SIZE // 4, SIZE // 2
    return picture.crop((left, top, left + span, top + span)).resize((SIZE, SIZE))


def new_judge() -> nn.Module:
    """A convolutional network with three answers, from a fixed seed."""
    torch.manual_seed(15)

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GroupNorm(8, outputs), nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3, 1, 1), nn.GroupNorm(8, outputs), nn.ReLU()]  # fmt: skip

    layers = [*block(3, 32), *block(32, 64), *block(64, 128), *block(128, 192), nn.Flatten(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(192 * 16, len(nouns()) + len(COLOURS) + 1 + len(ATTRIBUTES) + 1))


def answers(judge: nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Scores of the nouns, of the colours and of the attributes; pixels (B, 3, SIZE, SIZE) in [-1, 1]."""
    return judge(pixels).split([len(nouns()), len(COLOURS) + 1, len(ATTRIBUTES) + 1], 1)


def worn(pixels: torch.Tensor, step: int) -> torch.Tensor:
    """Pictures blurred, shifted and noised a little, as what comes out of an autoencoder is."""
    rng = generator("pocket", "judge", "worn", step)
    if step % 2:
        pixels = pixels.flip(3)
    share = torch.rand(len(pixels), 1, 1, 1, generator=rng)
    pixels = pixels + share * (functional.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False) - pixels)
    noise = torch.randn(pixels.shape, generator=rng) * 0.15 * torch.rand(len(pixels), 1, 1, 1, generator=rng)
    return torch.roll((pixels + noise).clamp(-1, 1), torch.randint(-3, 4, (2,), generator=rng).tolist(), (2, 3))


def pool(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """POOL pictures as uint8 (count, 3, SIZE, SIZE) and their labels (count, 3), drawn at the first call."""
    path = folder / f"pool-{VERSION}.safetensors"
    if not path.exists():
        rows = [labelled(number) for number in tqdm(range(POOL), "drawing", mininterval=20)]
        pixels = ((as_tensor([picture for picture, _ in rows]) + 1) * 127.5).round().to(torch.uint8)
        with atomic_file(path) as beside:
            save_file({"pixels": pixels, "labels": torch.tensor([label for _, label in rows])}, beside)
    stored = load_file(path)
    return stored["pixels"], stored["labels"]


def trained_judge(folder: Path) -> nn.Module:
    """The judge in `folder`, trained at the first call; a stopped training goes on."""
    judge = new_judge()
    pixels, labels = pool(folder)

    def losses_at(step: int) -> Losses:
        rows = torch.randint(POOL, (BATCH,), generator=generator("pocket", "judge", "rows", step))
        scores = answers(judge, worn(pixels[rows].float() / 127.5 - 1.0, step))
        losses = [functional.cross_entropy(*both) for both in zip(scores, labels[rows].T, strict=True)]
        return {"loss": torch.stack(losses).sum(), "noun": losses[0], "colour": losses[1], "attribute": losses[2]}

    return fit(PLAN, judge, losses_at, folder)


def right(judge: nn.Module, pictures: Sequence[Image.Image], wanted: Sequence[Labels]) -> dict[str, float]:
    """Shares, in per cent, of pictures whose noun, colour and attribute are as wanted."""
    with torch.no_grad():
        found = torch.stack([scores.argmax(1) for scores in answers(judge, as_tensor(pictures))], 1)
    hits = found == torch.tensor(wanted)
    noun, colour, attribute = hits.T
    shares = {"noun": noun, "colour": colour, "attribute": attribute}
    shares |= {"noun and colour": noun & colour, "noun and attribute": noun & attribute}
    return {name: round(100 * float(hit.float().mean()), 1) for name, hit in shares.items()}


def requests() -> dict[str, tuple[list[str], list[Labels]]]:
    """Prompts by kind, with what each must show."""
    names, paints = tuple(nouns()), tuple(COLOURS)
    rng = random.Random(seed_for("pocket", "composition"))
    attribute = {function.__name__: index + 1 for index, function in enumerate(ATTRIBUTES)}

    def dressed(some: Sequence[str]) -> tuple[list[str], list[Labels]]:
        rows = [(noun, name) for noun in some for name in ASKED]
        return ([f"{with_article(noun)} {ASKED[name]}" for noun, name in rows],
                [(names.index(noun), 0, attribute[name]) for noun, name in rows])  # fmt: skip

    some = rng.sample(names, 96)
    tinted = [(noun, rng.randrange(len(paints))) for noun in rng.sample(names, 60)]
    return {
        "plain": ([with_article(noun) for noun in some], [(names.index(noun), 0, 0) for noun in some]),
        "coloured": ([with_article(f"{paints[colour]} {noun}") for noun, colour in tinted],
                     [(names.index(noun), colour + 1, 0) for noun, colour in tinted]),
        "dressed, unseen": dressed(HELD_OUT),
        "dressed, seen": dressed(rng.sample([name for name in names if name not in HELD_OUT], 8)),
    }  # fmt: skip


def pair_requests(count: int = 48) -> tuple[list[str], list[Both]]:
    """Two nouns in two colours, and what the halves must show."""
    names, paints, rng = tuple(nouns()), tuple(COLOURS), random.Random(seed_for("pocket", "composition", "pairs"))
    prompts, wanted = [], []
    for _ in range(count):
        (a, b), (p, q) = rng.sample(range(len(names)), 2), rng.sample(range(len(paints)), 2)
        prompts.append(" and ".join(with_article(f"{paints[paint]} {names[noun]}") for noun, paint in ((a, p), (b, q))))
        wanted.append(((a, p + 1, 0), (b, q + 1, 0)))
    return prompts, wanted


def real(wanted: Sequence[Labels]) -> list[Image.Image]:
    """Fresh pictures of the world that show what is wanted: the judge's ceiling."""
    shown, names, paints = [], tuple(nouns()), ("", *COLOURS)
    for number, (noun, colour, attribute) in enumerate(wanted):
        rng = random.Random(seed_for("pocket", "composition", "real", number))
        subject = subject_of(names[noun], rng, paints[colour], *((76, 90, 6) if attribute else (104, 116, 0)))
        if attribute:
            ATTRIBUTES[attribute - 1](subject, rng)
        shown.append(subject.picture(ground_of(rng, 0.0, paints[colour])[0]))
    return shown


def real_pairs(wanted: Sequence[Both]) -> list[Image.Image]:
    names, paints, rng = tuple(nouns()), ("", *COLOURS), random.Random(seed_for("pocket", "composition", "real pairs"))
    return [pair_picture((names[a], paints[p]), (names[b], paints[q]), rng) for (a, p, _), (b, q, _) in wanted]


def pairs_right(judge: nn.Module, pictures: Sequence[Image.Image], wanted: Sequence[Both]) -> dict[str, float]:
    """Shares of pairs with both colours in their halves, with both nouns, and with all four words right."""
    halves = [half(picture, side) for picture in pictures for side in (0, 1)]
    with torch.no_grad():
        found = torch.stack([scores.argmax(1) for scores in answers(judge, as_tensor(halves))], 1)
    hits = (found == torch.tensor([label for both in wanted for label in both])).view(-1, 2, 3).all(1)
    shares = {"both colours": hits[:, 1], "both nouns": hits[:, 0], "all four": hits[:, 0] & hits[:, 1]}
    return {name: round(100 * float(hit.float().mean()), 1) for name, hit in shares.items()}


def generated(pipeline: Any, prompts: Sequence[str]) -> list[Image.Image]:
    """One picture a prompt, each from a seed of its own."""
    pictures = []
    for start in range(0, len(prompts), CHUNK):
        chunk = list(prompts[start : start + CHUNK])
        rngs = [torch.Generator().manual_seed(1000 + start + index) for index in range(len(chunk))]
        pictures += pipeline(chunk, num_inference_steps=SAMPLING_STEPS, guidance_scale=GUIDANCE, generator=rngs).images
        print(f"generated {len(pictures)} of {len(prompts)}", flush=True)
    return pictures


def judge_base(folder: Path) -> dict[str, Any]:
    """For each kind of request: the shares of the model's pictures, and of real ones."""
    judge, pipeline = trained_judge(state_folder() / "judge"), load_pipeline(folder)
    table: dict[str, Any] = {}
    for kind, (prompts, wanted) in requests().items():
        table[kind] = {
            "model": right(judge, generated(pipeline, prompts), wanted),
            "real": right(judge, real(wanted), wanted),
        }
    prompts, both = pair_requests()
    table["pairs"] = {"model": pairs_right(judge, generated(pipeline, prompts), both),
                      "real": pairs_right(judge, real_pairs(both), both)}  # fmt: skip
    return table


def report(folder: Path) -> None:
    """Judge the model in `folder`, print the table and add it to composition.jsonl in the state folder."""
    table = judge_base(folder)
    with (state_folder() / "composition.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": time.strftime("%F %T"), "folder": str(folder)} | table) + "\n")
    for kind, rows in table.items():
        for measure, value in rows["model"].items():
            print(f"{kind:18s} {measure:20s} {value:5.1f} %   of real pictures {rows['real'][measure]:5.1f} %")
