"""What training would make of a captioned folder: sizes, buckets, tokens, near-duplicates, split; facts and lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from data import buckets, captions, duplicates
from data.captions import TokenReport
from data.duplicates import Split
from data.errors import InputError, show
from data.problems import Problem
from data.schema import Sample
from data.store import Listing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMBEDDED = Path(__file__).parent / "pocket" / "base"  # the base model that training takes unless told otherwise
SHOWN = 3  # examples of anything that there may be hundreds of
MOST_LOST = 60  # characters shown of what a cut caption loses


@dataclass(frozen=True)
class Shape:
    """What a base model asks of pictures: the side in pixels it was trained at, and what all sides are multiples of."""

    size: int = 512  # Stable Diffusion v1
    step: int = 64


@dataclass(frozen=True)
class Summary:
    """A folder as training would see it. tokens is None where there is no tokenizer to count with."""

    listing: Listing
    problems: list[Problem]  # of the folder, and captions that would be cut
    shape: Shape
    uses: list[buckets.Use]
    tokens: TokenReport | None
    groups: list[list[Sample]]  # near-duplicates, two or more each
    split: Split
    seed: int
    share: float

    @property
    def samples(self) -> list[Sample]:
        return self.listing.samples


def shape_of(model: Path) -> Shape:
    """Read size and step from a diffusers folder; Stable Diffusion v1's if the embedded base is not built yet."""
    if model == EMBEDDED and not model.exists():
        return Shape()
    try:
        unet = json.loads((model / "unet" / "config.json").read_text(encoding="utf-8"))
        vae = json.loads((model / "vae" / "config.json").read_text(encoding="utf-8"))
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        return Shape(unet["sample_size"] * factor, factor * 2 ** (len(unet["block_out_channels"]) - 1))
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "Give a folder with unet/config.json and vae/config.json."
        raise InputError("is not a Stable Diffusion model in diffusers layout", where=model, fix=fix) from error


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A CLIP tokenizer from a local folder: a tokenizer's own, or a model that has one."""
    from transformers import CLIPTokenizer

    within = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    if not any((within / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        fix = "Give a folder with vocab.json and merges.txt, or with tokenizer.json."
        raise InputError("holds no tokenizer", where=folder, fix=fix)
    try:
        return CLIPTokenizer.from_pretrained(within, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be loaded ({str(error).splitlines()[0]})", where=folder) from error


def summarize(
    listing: Listing,
    *,
    shape: Shape,
    tokenizer: PreTrainedTokenizerBase | None,
    template: str = captions.TEMPLATE,
    seed: int = 0,
    share: float = 0.1,
    imported: Sequence[Problem] = (),
) -> Summary:
    """Work out everything training would do with the usable pictures of a folder. Raises InputError for a bad setting.

    share, seed: of the held-out split, which is the one that finetune.py makes with the same two numbers.
    imported: what was wrong with the source that the folder was imported from.
    """
    captions.parse(template, captions.known_fields(sample.annotation for sample in listing.samples))
    sizes = buckets.make(shape.size, step=shape.step)
    uses = buckets.summary([(sample.width, sample.height) for sample in listing.samples], sizes)
    tokens = captions.count_tokens(listing.samples, tokenizer, template) if tokenizer is not None else None
    numbers = duplicates.groups(listing.samples)
    split = duplicates.split(listing.samples, numbers, share=share, seed=seed)
    return Summary(
        listing=listing,
        problems=[*imported, *listing.problems, *cut_captions(tokens), *empty_prompts(listing.samples, template)],
        shape=shape,
        uses=uses,
        tokens=tokens,
        groups=members(listing.samples, numbers),
        split=split,
        seed=seed,
        share=share,
    )


def cut_captions(tokens: TokenReport | None) -> list[Problem]:
    """A warning for each caption that the text encoder would not read to its end."""
    problems: list[Problem] = []
    for cut in tokens.cut if tokens else []:
        lost = cut.lost_text if len(cut.lost_text) <= MOST_LOST else f"{cut.lost_text[:MOST_LOST]}..."
        what = f"a caption has {cut.count} tokens of which {tokens.limit if tokens else 0} are read; lost: {lost!r}"
        problems.append(Problem(cut.where, what, "Shorten it.", refused=False))
    return problems


def empty_prompts(samples: Sequence[Sample], template: str) -> list[Problem]:
    """A warning for each picture that would be trained on with nothing said of it."""
    what = f"the caption template {template!r} leaves nothing to say of it"
    fix = "Fill its fields in, or name {text} in the template."
    fields = captions.known_fields(sample.annotation for sample in samples)
    empty = [sample for sample in samples if not captions.render(sample.annotation, template, fields=fields)]
    return [Problem(sample.where, what, fix, refused=False) for sample in empty]


def members(samples: list[Sample], numbers: list[int]) -> list[list[Sample]]:
    """The samples of each near-duplicate group that has more than one."""
    found: dict[int, list[Sample]] = {}
    for sample, number in zip(samples, numbers, strict=True):
        found.setdefault(number, []).append(sample)
    return [group for group in found.values() if len(group) > 1]


def facts(summary: Summary) -> dict[str, Any]:
    """Everything, for a program: plain JSON values."""
    samples, tokens = summary.samples, summary.tokens
    return {
        "folder": show(summary.listing.folder),
        "found": summary.listing.found,
        "usable": len(samples),
        "problems": [problem.fields() for problem in summary.problems],
        "formats": summary.listing.formats,
        "notes": summary.listing.notes,
        "sizes": [[sample.width, sample.height] for sample in samples],
        "size": summary.shape.size,
        "step": summary.shape.step,
        "buckets": [asdict(use) for use in summary.uses],
        "captions": asdict(tokens) if tokens else None,
        "near_duplicates": [[sample.annotation.file_name for sample in group] for group in summary.groups],
        "seed": summary.seed,
        "held_out_share": summary.share,
        "train": [samples[index].annotation.file_name for index in summary.split.train],
        "held_out": [samples[index].annotation.file_name for index in summary.split.held_out],
    }


def rows(summary: Summary) -> list[tuple[str, str]]:
    """Everything, for a person: a name and a line each."""
    return [
        ("pictures", pictures_line(summary)),
        ("sizes", sizes_line(summary)),
        *[("opened", f"{count} of them: {note}") for note, count in sorted(summary.listing.notes.items())],
        *[("bucket", bucket_line(use)) for use in summary.uses],
        ("captions", captions_line(summary)),
        ("near-copies", copies_line(summary)),
        ("split", split_line(summary)),
    ]


def pictures_line(summary: Summary) -> str:
    refused = sum(problem.refused for problem in summary.problems)
    formats = ", ".join(f"{count} {name}" for name, count in sorted(summary.listing.formats.items()))
    usable = f"{len(summary.samples)} of {summary.listing.found} usable" + (f" ({formats})" if formats else "")
    return f"{usable}; {refused} refusals, {len(summary.problems) - refused} warnings"


def sizes_line(summary: Summary) -> str:
    if not summary.samples:
        return "none"
    counts = Counter((sample.width, sample.height) for sample in summary.samples)
    common = ", ".join(f"{width}x{height}: {count}" for (width, height), count in counts.most_common(SHOWN))
    if len(counts) <= SHOWN:
        return common
    short = [min(size) for size in counts.elements()]
    spread = f"short side {min(short)} to {max(short)} pixels, median {median(short):g}"
    return f"{len(counts)} different; {spread}; most common {common}"


def bucket_line(use: buckets.Use) -> str:
    enlarged = f"; {use.enlarged} smaller than it, so enlarged" if use.enlarged else ""
    cropped = f"; cropped by {use.mean_cropped:.0%} on average, {use.worst_cropped:.0%} at most"
    return f"{use.bucket}: {use.count}{cropped if use.worst_cropped >= 0.005 else ''}{enlarged}"


def captions_line(summary: Summary) -> str:
    count = sum(len(sample.captions) for sample in summary.samples)
    no_tokenizer = f"{count} captions; tokens not counted, since there is no tokenizer here (--tokenizer FOLDER)"
    return str(summary.tokens) if summary.tokens else no_tokenizer


def copies_line(summary: Summary) -> str:
    if not summary.groups:
        return "none"
    shown = "; ".join(
        " = ".join(show(s.annotation.file_name) for s in group[:SHOWN]) for group in summary.groups[:SHOWN]
    )
    pictures = sum(len(group) for group in summary.groups)
    more = "; ..." if len(summary.groups) > SHOWN or any(len(group) > SHOWN for group in summary.groups) else ""
    return f"{pictures} pictures in {len(summary.groups)} groups, each kept on one side of the split: {shown}{more}"


def split_line(summary: Summary) -> str:
    held = summary.split.held_out
    sides = f"{len(summary.split.train)} to train on, {len(held)} held out"
    shown = ", ".join(show(summary.samples[index].annotation.file_name) for index in held[:SHOWN])
    names = f" ({shown}{', ...' if len(held) > SHOWN else ''})" if held else ""
    return f"{sides}{names}; seed {summary.seed}, share {summary.share:g}"
