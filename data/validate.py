"""What prepare.py does: read or import a folder, list every problem, and show what training would make of it."""

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image
from pydantic import Field

from data import buckets, captions, duplicates
from data.captioned_folder import PROGRESS_DELAY, CaptionedFolder
from data.cli import positional
from data.config import FolderOptions
from data.errors import InputError, Problem, printable
from data.images import open_image
from data.progress import ProgressBar
from data.reports.page import Page
from data.sample_set import sample_folder
from data.schema import Sample
from data.sources import import_source, read_source

EMBEDDED = Path(__file__).parent / "pocket" / "base"  # the base model that training uses by default
EXIT_PROBLEMS = 1  # exit code: something should be fixed or known
MAX_EXAMPLES = 3  # shown of anything that there may be hundreds of
MAX_LOST = 60  # characters shown of what a truncated caption loses
THUMBNAIL_SIDE = 160  # pixels of the longer side of an image on the page
MAX_IMAGES = 240  # shown of each side of the split: about 15 MB of page
MAX_GROUPS = 40  # of near-duplicates on the page
MAX_CAPTION = 200  # characters on the page
ALIASES = {"--json": "--as-json", "--template": "--caption"}
FIELDS = ("caption", "size", "held-out", "prompt", "caption-column", "captions-per-line", "folder-repeats")
ALIASES |= {f"--{name}.{field}": f"--{field}" for name in ("pictures", "images") for field in FIELDS}


class PrepareOptions(FolderOptions):
    """The options of prepare.py."""

    folder: Path | None = positional(None)
    """captioned folder: images with metadata.jsonl (csv, json, parquet) or .txt files; or a .zip, a .tar, a dataset of
    Hugging Face; default: the sample set"""
    model: Path | None = None
    """diffusers folder of the base model, for sizes and tokenizer; default: the embedded model"""
    tokenizer: Path | None = None
    """folder of the tokenizer that counts the captions' tokens; default: the model's"""
    size: int | None = Field(default=None, gt=0)
    """side of the square bucket in pixels; default: the model's"""
    caption: str = captions.TEMPLATE
    """caption template with {text}, {type}, {name} or any other key of the metadata"""
    seed: int = 0
    """seed of the held-out split"""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    """share of images that training holds out"""
    as_json: bool = False
    """(also --json) print everything as JSON"""
    html: Path | None = None
    """also write an HTML file with all images"""
    into: Path | None = None
    """import FOLDER (here also: a Label Studio export) into this new folder first"""
    pictures: Path | None = None
    """with --into and a Label Studio export: the folder with its images"""


@dataclass(frozen=True)
class FolderSummary:
    """A captioned folder as training would see it. tokens is None if there is no tokenizer to count with."""

    folder: CaptionedFolder
    options: PrepareOptions
    problems: list[Problem]  # of the folder, and of captions that would be truncated
    size: int  # pixels of the square bucket's side
    step: int  # what all sides are multiples of
    buckets: list[buckets.BucketUse]
    tokens: captions.TokenReport | None
    groups: list[list[Sample]]  # near-duplicates, two or more each
    train: list[Sample]
    held_out: list[Sample]
    split_note: str = ""  # why the share is impossible

    @property
    def examples(self) -> list[tuple[str, str]]:
        """File name and prompt of some images, evenly picked; several prompts of an image are divided by |."""
        samples = self.folder.samples
        fields = captions.known_fields(sample.annotation for sample in samples)
        count = min(MAX_EXAMPLES, len(samples))
        chosen = [samples[index * len(samples) // count] for index in range(count)]
        prompts = [captions.render_prompts(each.annotation, self.options.caption, fields=fields) for each in chosen]
        return [(each.annotation.file_name, " | ".join(texts)) for each, texts in zip(chosen, prompts, strict=True)]

    @property
    def refused(self) -> int:
        return sum(problem.refused for problem in self.problems)


def validate_folder(options: PrepareOptions) -> int:
    """Check the folder, print what was found, and return 0 if nothing is wrong, else 1. InputError for bad settings."""
    check_targets(options)
    size, step = read_model_shape(options.model or EMBEDDED)
    size = options.size or size
    buckets.make_buckets(size, step=step)  # raises for a size that does not fit the step
    source = options.tokenizer or options.model or (EMBEDDED if (EMBEDDED / "tokenizer").is_dir() else None)
    tokenizer = load_tokenizer(source) if source else None
    folder = options.folder.expanduser() if options.folder else sample_folder(size=size)
    imported = import_source(folder, options.into, pictures=options.pictures, options=options) if options.into else []
    reading = options.model_copy(update={"caption_column": None}) if options.into else options  # imported as `text`
    summary = summarize(read_source(options.into or folder, reading), options, (size, step), tokenizer, imported)
    if options.html:
        write_page(summary, options.html)
    print(json.dumps(to_json(summary), indent=1) if options.as_json else format_report(summary))
    return EXIT_PROBLEMS if summary.problems else 0


def check_targets(options: PrepareOptions) -> None:
    """A folder of images is only read: nothing may be written into it."""
    if options.html and options.html.is_dir():
        raise InputError("is a folder", where=f"--html {options.html}", fix="Give the name of a file.")
    source = options.folder.expanduser().resolve() if options.folder else None
    for flag, target in (("--html", options.html), ("--into", options.into)):
        if source and target and target.resolve().is_relative_to(source):
            what = "is inside the folder that is being checked"
            raise InputError(what, where=f"{flag} {target}", fix="Write it elsewhere.")
    if options.into is None and options.pictures is not None:
        raise InputError("is for importing", where="--pictures", fix="Give the new folder: --into NEW_FOLDER.")
    if options.into is not None and options.folder is None:
        raise InputError("needs something to import", where="--into", fix="Give a folder or an export first.")


def read_model_shape(model: Path) -> tuple[int, int]:
    """The pixels a side that a model was trained at, and what sides are multiples of; SD v1's without the base."""
    if model == EMBEDDED and not model.exists():
        return 512, 64
    try:
        unet = json.loads((model / "unet" / "config.json").read_text(encoding="utf-8"))
        vae = json.loads((model / "vae" / "config.json").read_text(encoding="utf-8"))
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        return buckets.trained_side(unet, vae), factor * 2 ** (len(unet["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "Give a folder with unet/config.json and vae/config.json."
        raise InputError("is not a Stable Diffusion model in diffusers layout", where=model, fix=fix) from error


def load_tokenizer(folder: Path) -> captions.Tokenizer:
    """A CLIP tokenizer from its own folder, or from that of a model."""
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
    folder: CaptionedFolder,
    options: PrepareOptions,
    shape: tuple[int, int],
    tokenizer: captions.Tokenizer | None,
    imported: Sequence[Problem],
) -> FolderSummary:
    """What training would do with the usable images. shape: size and step. imported: the problems of the source."""
    samples, template = folder.samples, options.caption
    captions.parse_template(template, captions.known_fields(sample.annotation for sample in samples))
    sizes = buckets.make_buckets(shape[0], step=shape[1])
    tokens = captions.count_tokens(samples, tokenizer, template) if tokenizer is not None else None
    numbers = duplicates.duplicate_groups(samples)
    hashes = [sample.sha256 for sample in samples]
    split = duplicates.split_held_out(hashes, numbers, share=options.held_out, seed=options.seed)
    groups: dict[int, list[Sample]] = {}
    for sample, number in zip(samples, numbers, strict=True):
        groups.setdefault(number, []).append(sample)
    return FolderSummary(
        folder=folder,
        options=options,
        problems=[*imported, *folder.problems, *caption_warnings(samples, tokens, template)],
        size=shape[0],
        step=shape[1],
        buckets=buckets.summarize_buckets([(sample.width, sample.height) for sample in samples], sizes),
        tokens=tokens,
        groups=[group for group in groups.values() if len(group) > 1],
        train=[samples[index] for index in split.train],
        held_out=[samples[index] for index in split.held_out],
        split_note=split.note,
    )


def caption_warnings(samples: list[Sample], tokens: captions.TokenReport | None, template: str) -> Iterator[Problem]:
    """A warning for each caption that is too long for the text encoder, or empty under the template."""
    for cut in tokens.cut if tokens else []:
        lost = shorten(cut.lost_text, MAX_LOST)
        what = f"a caption has {cut.count} tokens, the limit is {tokens.limit if tokens else 0}; lost: {lost!r}"
        yield Problem(cut.where, what, "Shorten it, or train with --pictures.caption-chunks 3.", refused=False)
    fields = captions.known_fields(sample.annotation for sample in samples)
    for sample in samples:
        if not captions.render_prompts(sample.annotation, template, fields=fields):
            what = f"its caption is empty under the template {template!r}"
            yield Problem(sample.where, what, "Fill in its fields, or use {text} in the template.", refused=False)


def shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}..."


# ---- JSON and text


def names_of(samples: Sequence[Sample]) -> list[str]:
    return [sample.annotation.file_name for sample in samples]


def to_json(summary: FolderSummary) -> dict[str, Any]:
    """Everything as plain JSON values."""
    folder, options = summary.folder, summary.options
    return {
        "folder": printable(folder.folder),
        "found": folder.found,
        "usable": len(folder.samples),
        "problems": [problem.fields() for problem in summary.problems],
        "formats": folder.formats,
        "notes": folder.notes,
        "caption_notes": folder.caption_notes,
        "examples": dict(summary.examples),
        "sizes": [[sample.width, sample.height] for sample in folder.samples],
        "size": summary.size,
        "step": summary.step,
        "buckets": [asdict(use) for use in summary.buckets],
        "captions": asdict(summary.tokens) if summary.tokens else None,
        "near_duplicates": [names_of(group) for group in summary.groups],
        "seed": options.seed,
        "held_out_share": options.held_out,
        "train": names_of(summary.train),
        "held_out": names_of(summary.held_out),
    }


def format_report(summary: FolderSummary) -> str:
    """A line for each problem, then the summary, then the next command."""
    folder, usable = summary.folder.folder, len(summary.folder.samples)
    lines = [*map(str, summary.problems), *([""] if summary.problems else []), printable(folder)]
    lines += [f"  {name:<17}{line}" for name, line in summary_rows(summary)]
    lines += [f"  {'page':<17}{summary.options.html}"] if summary.options.html else []
    advice = next_command(summary)
    if not usable:
        advice = "fix these problems; no image can be used."
    elif summary.refused:
        advice = f"fix these problems and check again, or train on the {usable} usable images: {advice}"
    return "\n".join([*lines, "", f"next: {advice}"])


def next_command(summary: FolderSummary) -> str:
    """The training command for this folder with the settings that were given here."""
    options = summary.options
    words = ["python", "train/finetune.py", "--data", str(summary.folder.folder)]
    words += ["--model", str(options.model)] if options.model else []
    words += ["--tokenizer", str(options.tokenizer)] if options.tokenizer and options.model else []
    names = ("size", "held_out", *FolderOptions.model_fields, "caption")
    for name in names if options.into is None else ("size", "held_out", "caption"):
        value, flag = getattr(options, name), f"--pictures.{name.replace('_', '-')}"
        if value != type(options).model_fields[name].default:
            words += (
                [flag if value else flag.replace("--", "--no-", 1)] if isinstance(value, bool) else [flag, str(value)]
            )
    words += ["--seed", str(options.seed)] if options.seed else []
    return shlex.join(words)


def summary_rows(summary: FolderSummary) -> list[tuple[str, str]]:
    """A name and a line for each aspect of the folder."""
    folder, options, held = summary.folder, summary.options, summary.held_out
    formats = ", ".join(f"{count} {name}" for name, count in sorted(folder.formats.items()))
    usable = f"{len(folder.samples)} of {folder.found} usable" + (f" ({formats})" if formats else "")
    count = sum(len(sample.captions) for sample in folder.samples)
    not_counted = f"{count} captions; tokens not counted: there is no tokenizer here (--tokenizer FOLDER)"
    shown = ", ".join(map(printable, names_of(held[:MAX_EXAMPLES]))) + (", ..." if len(held) > MAX_EXAMPLES else "")
    sides = f"{len(summary.train)} to train on, {len(held)} held out" + (f" ({shown})" if held else "")
    return [
        ("images", f"{usable}; {summary.refused} errors, {len(summary.problems) - summary.refused} warnings"),
        ("sizes", sizes_line(folder.samples)),
        *[("opened", f"{count} images: {note}") for note, count in sorted(folder.notes.items())],
        *[("captions of", f"{count} images: {note}") for note, count in sorted(folder.caption_notes.items())],
        *[("bucket", bucket_line(use)) for use in summary.buckets],
        ("captions", str(summary.tokens) if summary.tokens else not_counted),
        *[("example", f"{printable(name)}: {shorten(caption, MAX_CAPTION)}") for name, caption in summary.examples],
        ("near-duplicates", duplicates_line(summary.groups)),
        ("split", f"{sides}; seed {options.seed}, share {options.held_out:g}"),
        *([("", summary.split_note)] if summary.split_note else []),
    ]


def sizes_line(samples: Sequence[Sample]) -> str:
    counts = Counter((sample.width, sample.height) for sample in samples)
    common = ", ".join(f"{width}x{height}: {count}" for (width, height), count in counts.most_common(MAX_EXAMPLES))
    if len(counts) <= MAX_EXAMPLES:
        return common or "none"
    short = [min(size) for size in counts.elements()]
    spread = f"short side {min(short)} to {max(short)} pixels, median {median(short):g}"
    return f"{len(counts)} different; {spread}; most common {common}"


def bucket_line(use: buckets.BucketUse) -> str:
    enlarged = f"; {use.enlarged} smaller than it, so enlarged" if use.enlarged else ""
    cropped = f"; cropped by {use.mean_cropped:.0%} on average, {use.worst_cropped:.0%} at most"
    return f"{use.bucket}: {use.count}{cropped if use.worst_cropped >= 0.005 else ''}{enlarged}"


def duplicates_line(groups: Sequence[Sequence[Sample]]) -> str:
    if not groups:
        return "none"
    shown = "; ".join(" = ".join(map(printable, names_of(group[:MAX_EXAMPLES]))) for group in groups[:MAX_EXAMPLES])
    more = "; ..." if len(groups) > MAX_EXAMPLES or any(len(group) > MAX_EXAMPLES for group in groups) else ""
    count = sum(map(len, groups))
    return f"{count} images in {len(groups)} groups, each kept on one side of the split: {shown}{more}"


# ---- HTML


def write_page(summary: FolderSummary, path: Path) -> Path:
    """Write the HTML page, and return its path. Raises InputError if an image changed since the folder was read."""
    page = Page(printable(summary.folder.folder), "what training would make of this folder")
    facts = {"images found": summary.folder.found, "usable": len(summary.folder.samples), "errors": summary.refused}
    facts |= {"warnings": len(summary.problems) - summary.refused}
    page.facts(facts | {"to train on": len(summary.train), "held out": len(summary.held_out)})
    page.table(["", ""], summary_rows(summary))
    if summary.problems:
        rows = [(p.where, "error" if p.refused else "warning", p.what, p.fix) for p in summary.problems]
        page.section("Problems").table(["where", "", "what", "fix"], [tuple(map(printable, row)) for row in rows])
    if summary.buckets:
        uses = [
            (str(u.bucket), u.count, 100 * u.mean_cropped, 100 * u.worst_cropped, u.enlarged) for u in summary.buckets
        ]
        head = ["size", "images", "cropped on average, %", "cropped at most, %", "enlarged"]
        page.section("Buckets").table(head, uses)
    if summary.groups:
        page.section("Near-duplicates").text("Each row is one group; a group stays on one side of the split.")
        for group in summary.groups[:MAX_GROUPS]:
            page.strip(thumbnails(group[:6], ""), columns=6, title=f"{len(group)} images")
        if len(summary.groups) > MAX_GROUPS:
            page.note(f"{len(summary.groups) - MAX_GROUPS} more groups are not shown.")
    add_images(page, "Held out", summary.held_out)
    add_images(page, "To train on", summary.train)
    return page.write(path)


def add_images(page: Page, title: str, samples: Sequence[Sample]) -> None:
    """Images with their captions, evenly picked if there are too many for a page."""
    if not samples:
        return
    page.section(title)
    count = min(MAX_IMAGES, len(samples))
    shown = [samples[index * len(samples) // count] for index in range(count)]
    if len(shown) < len(samples):
        page.text(f"{len(shown)} of {len(samples)}, evenly picked.")
    page.strip(thumbnails(shown, f"page: {title.lower()}"))


def thumbnails(samples: Sequence[Sample], title: str) -> Iterator[tuple[Image.Image, str]]:
    for sample in ProgressBar(samples, title, unit="image", delay=PROGRESS_DELAY):
        image = open_image(sample.path)
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
        caption = f"{printable(sample.annotation.file_name)}: {' / '.join(sample.captions)}"
        yield image, shorten(caption, MAX_CAPTION)
