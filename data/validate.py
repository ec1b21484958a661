"""What training would make of a captioned folder: sizes, buckets, tokens, near-duplicates, split; facts and lines."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from PIL import Image
from pydantic import Field

from data import buckets, captions, duplicates
from data.captioned_folder import PROGRESS_DELAY, CaptionedFolder
from data.captions import TEMPLATE, TokenReport
from data.cli import Options, positional
from data.duplicates import Split
from data.errors import InputError, Problem, printable
from data.images import open_image
from data.progress import ProgressBar
from data.reports.page import Page
from data.schema import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


EMBEDDED = Path(__file__).parent / "pocket" / "base"  # the base model that training takes unless told otherwise
MAX_EXAMPLES = 3  # examples of anything that there may be hundreds of
MAX_LOST = 60  # characters shown of what a cut caption loses


@dataclass(frozen=True)
class ModelShape:
    """What a base model asks of pictures: the side in pixels it was trained at, and what all sides are multiples of."""

    size: int = 512  # Stable Diffusion v1
    step: int = 64


@dataclass(frozen=True)
class FolderSummary:
    """A folder as training would see it. tokens is None where there is no tokenizer to count with."""

    listing: CaptionedFolder
    problems: list[Problem]  # of the folder, and captions that would be cut
    shape: ModelShape
    uses: list[buckets.BucketUse]
    tokens: TokenReport | None
    groups: list[list[Sample]]  # near-duplicates, two or more each
    split: Split
    seed: int
    share: float

    @property
    def samples(self) -> list[Sample]:
        return self.listing.samples


def read_model_shape(model: Path) -> ModelShape:
    """Read size and step from a diffusers folder; Stable Diffusion v1's if the embedded base is not built yet."""
    if model == EMBEDDED and not model.exists():
        return ModelShape()
    try:
        unet = json.loads((model / "unet" / "config.json").read_text(encoding="utf-8"))
        vae = json.loads((model / "vae" / "config.json").read_text(encoding="utf-8"))
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        return ModelShape(unet["sample_size"] * factor, factor * 2 ** (len(unet["block_out_channels"]) - 1))
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
    listing: CaptionedFolder,
    *,
    shape: ModelShape,
    tokenizer: PreTrainedTokenizerBase | None,
    template: str = captions.TEMPLATE,
    seed: int = 0,
    share: float = 0.1,
    imported: Sequence[Problem] = (),
) -> FolderSummary:
    """Work out everything training would do with the usable pictures of a folder. Raises InputError for a bad setting.

    share, seed: of the held-out split, which is the one that finetune.py makes with the same two numbers.
    imported: what was wrong with the source that the folder was imported from.
    """
    captions.parse_template(template, captions.known_fields(sample.annotation for sample in listing.samples))
    sizes = buckets.make_buckets(shape.size, step=shape.step)
    uses = buckets.summarize_buckets([(sample.width, sample.height) for sample in listing.samples], sizes)
    tokens = captions.count_tokens(listing.samples, tokenizer, template) if tokenizer is not None else None
    numbers = duplicates.duplicate_groups(listing.samples)
    split = duplicates.split_held_out(listing.samples, numbers, share=share, seed=seed)
    return FolderSummary(
        listing=listing,
        problems=[*imported, *listing.problems, *truncated_captions(tokens), *empty_prompts(listing.samples, template)],
        shape=shape,
        uses=uses,
        tokens=tokens,
        groups=duplicate_samples(listing.samples, numbers),
        split=split,
        seed=seed,
        share=share,
    )


def truncated_captions(tokens: TokenReport | None) -> list[Problem]:
    """A warning for each caption that the text encoder would not read to its end."""
    problems: list[Problem] = []
    for cut in tokens.cut if tokens else []:
        lost = cut.lost_text if len(cut.lost_text) <= MAX_LOST else f"{cut.lost_text[:MAX_LOST]}..."
        what = f"a caption has {cut.count} tokens of which {tokens.limit if tokens else 0} are read; lost: {lost!r}"
        problems.append(Problem(cut.where, what, "Shorten it.", refused=False))
    return problems


def empty_prompts(samples: Sequence[Sample], template: str) -> list[Problem]:
    """A warning for each picture that would be trained on with nothing said of it."""
    what = f"the caption template {template!r} leaves nothing to say of it"
    fix = "Fill its fields in, or name {text} in the template."
    fields = captions.known_fields(sample.annotation for sample in samples)
    empty = [sample for sample in samples if not captions.render_prompts(sample.annotation, template, fields=fields)]
    return [Problem(sample.where, what, fix, refused=False) for sample in empty]


def duplicate_samples(samples: list[Sample], numbers: list[int]) -> list[list[Sample]]:
    """The samples of each near-duplicate group that has more than one."""
    found: dict[int, list[Sample]] = {}
    for sample, number in zip(samples, numbers, strict=True):
        found.setdefault(number, []).append(sample)
    return [group for group in found.values() if len(group) > 1]


def summary_to_json(summary: FolderSummary) -> dict[str, Any]:
    """Everything, for a program: plain JSON values."""
    samples, tokens = summary.samples, summary.tokens
    return {
        "folder": printable(summary.listing.folder),
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


def summary_rows(summary: FolderSummary) -> list[tuple[str, str]]:
    """Everything, for a person: a name and a line each."""
    return [
        ("pictures", images_line(summary)),
        ("sizes", sizes_line(summary)),
        *[("opened", f"{count} of them: {note}") for note, count in sorted(summary.listing.notes.items())],
        *[("bucket", bucket_line(use)) for use in summary.uses],
        ("captions", captions_line(summary)),
        ("near-copies", copies_line(summary)),
        ("split", split_line(summary)),
    ]


def images_line(summary: FolderSummary) -> str:
    refused = sum(problem.refused for problem in summary.problems)
    formats = ", ".join(f"{count} {name}" for name, count in sorted(summary.listing.formats.items()))
    usable = f"{len(summary.samples)} of {summary.listing.found} usable" + (f" ({formats})" if formats else "")
    return f"{usable}; {refused} refusals, {len(summary.problems) - refused} warnings"


def sizes_line(summary: FolderSummary) -> str:
    if not summary.samples:
        return "none"
    counts = Counter((sample.width, sample.height) for sample in summary.samples)
    common = ", ".join(f"{width}x{height}: {count}" for (width, height), count in counts.most_common(MAX_EXAMPLES))
    if len(counts) <= MAX_EXAMPLES:
        return common
    short = [min(size) for size in counts.elements()]
    spread = f"short side {min(short)} to {max(short)} pixels, median {median(short):g}"
    return f"{len(counts)} different; {spread}; most common {common}"


def bucket_line(use: buckets.BucketUse) -> str:
    enlarged = f"; {use.enlarged} smaller than it, so enlarged" if use.enlarged else ""
    cropped = f"; cropped by {use.mean_cropped:.0%} on average, {use.worst_cropped:.0%} at most"
    return f"{use.bucket}: {use.count}{cropped if use.worst_cropped >= 0.005 else ''}{enlarged}"


def captions_line(summary: FolderSummary) -> str:
    count = sum(len(sample.captions) for sample in summary.samples)
    no_tokenizer = f"{count} captions; tokens not counted, since there is no tokenizer here (--tokenizer FOLDER)"
    return str(summary.tokens) if summary.tokens else no_tokenizer


def copies_line(summary: FolderSummary) -> str:
    if not summary.groups:
        return "none"
    shown = "; ".join(
        " = ".join(printable(s.annotation.file_name) for s in group[:MAX_EXAMPLES])
        for group in summary.groups[:MAX_EXAMPLES]
    )
    pictures = sum(len(group) for group in summary.groups)
    more = (
        "; ..."
        if len(summary.groups) > MAX_EXAMPLES or any(len(group) > MAX_EXAMPLES for group in summary.groups)
        else ""
    )
    return f"{pictures} pictures in {len(summary.groups)} groups, each kept on one side of the split: {shown}{more}"


def split_line(summary: FolderSummary) -> str:
    held = summary.split.held_out
    sides = f"{len(summary.split.train)} to train on, {len(held)} held out"
    shown = ", ".join(printable(summary.samples[index].annotation.file_name) for index in held[:MAX_EXAMPLES])
    names = f" ({shown}{', ...' if len(held) > MAX_EXAMPLES else ''})" if held else ""
    return f"{sides}{names}; seed {summary.seed}, share {summary.share:g}"


ALIASES = {
    "--json": "--as-json",
    "--template": "--caption",
    "--pictures.caption": "--caption",
    "--pictures.size": "--size",
}
EXIT_PROBLEMS = 1  # exit code: something is to be mended or to be known


class PrepareOptions(Options):
    """What prepare.py can be told."""

    folder: Path | None = positional(None)
    """captioned folder: pictures with metadata.jsonl, metadata.csv or a .txt beside each; default: the sample set"""
    model: Path | None = None
    """diffusers folder of the base model, for sizes and tokenizer; default: the embedded one"""
    tokenizer: Path | None = None
    """folder of the tokenizer to count captions with; default: the model's"""
    size: int | None = Field(default=None, gt=0)
    """pixels of the square bucket's side; default: the model's"""
    caption: str = TEMPLATE
    """the prompt of a picture: a template with {text}, {type}, {name} or any other key of its metadata"""
    seed: int = 0
    """of the held-out split"""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    """share of pictures that training would hold out"""
    as_json: bool = False
    """(also --json) print everything as JSON"""
    html: Path | None = None
    """also write a page with pictures, to look through in a browser"""
    into: Path | None = None
    """first import FOLDER (here also: a Hugging Face dataset on disk, a Label Studio export) into this new folder"""
    pictures: Path | None = None
    """with --into and a Label Studio export: the folder that holds its pictures"""


def validate_folder(checkup: PrepareOptions) -> int:
    """Check the folder, print what was found, and return the exit code: 0 if nothing is wrong, else 1.

    Raises InputError for a bad path or setting, before anything long begins.
    """
    from data import captioned_folder

    check_targets(checkup)
    shape = choose_shape(checkup)
    tokenizer = choose_tokenizer(checkup)
    folder, imported = choose_folder(checkup, shape.size)
    found = summarize(
        captioned_folder.read_folder(folder),
        shape=shape,
        tokenizer=tokenizer,
        template=checkup.caption,
        seed=checkup.seed,
        share=checkup.held_out,
        imported=imported,
    )
    if checkup.html:
        write_page(found, checkup.html)
    print(json.dumps(summary_to_json(found), indent=1) if checkup.as_json else format_report(found, checkup.html))
    return EXIT_PROBLEMS if found.problems else 0


def check_targets(checkup: PrepareOptions) -> None:
    """A folder of pictures is only read: nothing may be written into it."""
    if checkup.html and checkup.html.is_dir():
        raise InputError("is a folder", where=f"--html {checkup.html}", fix="Give the name of a file.")
    source = checkup.folder.expanduser().resolve() if checkup.folder else None
    for flag, target in (("--html", checkup.html), ("--into", checkup.into)):
        if source and target and target.resolve().is_relative_to(source):
            raise InputError(
                "lies in the folder that is looked at", where=f"{flag} {target}", fix="Write it elsewhere."
            )


def choose_shape(checkup: PrepareOptions) -> ModelShape:
    """The size and step of the base model, unless --size says otherwise."""
    from data import buckets

    shape = read_model_shape(checkup.model or EMBEDDED)
    shape = replace(shape, size=checkup.size or shape.size)
    buckets.make_buckets(shape.size, step=shape.step)  # refuses a size that does not fit the step
    return shape


def choose_tokenizer(checkup: PrepareOptions) -> PreTrainedTokenizerBase | None:
    """The tokenizer to count with; None if none was asked for and the embedded one is not built yet."""

    asked = checkup.tokenizer or checkup.model
    if asked is None and not (EMBEDDED / "tokenizer").is_dir():
        return None
    return load_tokenizer(asked or EMBEDDED)


def choose_folder(checkup: PrepareOptions, size: int) -> tuple[Path, list[Problem]]:
    """The captioned folder to look at, and what was wrong with its source if it was imported first."""
    if checkup.into is None and checkup.pictures is not None:
        raise InputError("is for importing", where="--pictures", fix="Say where to: --into NEW_FOLDER.")
    if checkup.folder is None:
        if checkup.into is not None:
            raise InputError("needs something to import", where="--into", fix="Give a folder or an export first.")
        from data.sample_set import sample_folder

        return sample_folder(size=size), []
    if checkup.into is None:
        return checkup.folder.expanduser(), []
    from data.importers import import_folder

    return checkup.into, import_folder(checkup.folder.expanduser(), checkup.into, pictures=checkup.pictures)


def format_report(found: FolderSummary, html: Path | None) -> str:
    """Every problem on a line, then the summary, then the next command."""

    lines = [str(problem) for problem in found.problems]
    lines += ["", printable(found.listing.folder)] if lines else [printable(found.listing.folder)]
    lines += [f"  {name:<13}{line}" for name, line in summary_rows(found)]
    lines += [f"  {'page':<13}{html}"] if html else []
    return "\n".join([*lines, "", next_command(found)])


def next_command(found: FolderSummary) -> str:
    """What to do next."""
    train = f"python train/finetune.py --data {shlex.quote(str(found.listing.folder))}"
    if not found.samples:
        return "next: mend these; not one picture can be used."
    if any(problem.refused for problem in found.problems):
        return f"next: mend these and look again, or train on the {len(found.samples)} usable pictures: {train}"
    return f"next: {train}"


THUMBNAIL_SIDE = 160  # pixels of the longer side of a picture on the page
MAX_IMAGES = 240  # pictures shown of each side of the split: about 15 MB of page
MAX_GROUPS = 40  # groups of near-duplicates shown
MAX_CAPTION = 200  # characters of a caption


def write_page(summary: FolderSummary, path: Path) -> Path:
    """Write the page whole, and return its path. Raises InputError if a picture changed since the folder was read."""
    page = Page(printable(summary.listing.folder), "what training would make of this folder")
    refused = sum(problem.refused for problem in summary.problems)
    page.facts({
        "pictures found": summary.listing.found,
        "usable": len(summary.samples),
        "refusals": refused,
        "warnings": len(summary.problems) - refused,
        "to train on": len(summary.split.train),
        "held out": len(summary.split.held_out),
    })  # fmt: skip
    page.table(["", ""], summary_rows(summary))
    add_problems(page, summary)
    add_buckets(page, summary)
    add_duplicates(page, summary)
    add_images(page, "Held out", [summary.samples[index] for index in summary.split.held_out])
    add_images(page, "To train on", [summary.samples[index] for index in summary.split.train])
    return page.write(path)


def add_problems(page: Page, summary: FolderSummary) -> None:
    """Every problem, as on the terminal."""
    if not summary.problems:
        return
    page.section("Problems").table(
        ["where", "", "what", "what to do"],
        [
            [
                printable(problem.where),
                "refused" if problem.refused else "warning",
                printable(problem.what),
                printable(problem.fix),
            ]
            for problem in summary.problems
        ],
    )


def add_buckets(page: Page, summary: FolderSummary) -> None:
    """How the pictures fall into the sizes that training uses."""
    if not summary.uses:
        return
    page.section("Buckets").table(
        ["size", "pictures", "cropped on average, %", "cropped at most, %", "enlarged"],
        [
            [str(use.bucket), use.count, 100 * use.mean_cropped, 100 * use.worst_cropped, use.enlarged]
            for use in summary.uses
        ],
    )


def add_duplicates(page: Page, summary: FolderSummary) -> None:
    """Near-duplicates, group by group, for a person to judge."""
    if not summary.groups:
        return
    page.section("Near-duplicates").text("Each row shows one picture more than once. All of a row go to the same side.")
    for group in summary.groups[:MAX_GROUPS]:
        page.strip(thumbnails(group[:6], ""), columns=6, title=f"{len(group)} pictures")
    if len(summary.groups) > MAX_GROUPS:
        page.note(f"{len(summary.groups) - MAX_GROUPS} more groups are not shown.")


def add_images(page: Page, title: str, samples: Sequence[Sample]) -> None:
    """Pictures with their captions, evenly picked if there are too many for a page."""
    if not samples:
        return
    shown = (
        [samples[index * len(samples) // MAX_IMAGES] for index in range(MAX_IMAGES)]
        if len(samples) > MAX_IMAGES
        else samples
    )
    page.section(title)
    if len(shown) < len(samples):
        page.text(f"{len(shown)} of {len(samples)}, evenly picked.")
    page.strip(thumbnails(shown, f"page: {title.lower()}"))


def thumbnails(samples: Sequence[Sample], title: str) -> Iterator[tuple[Image.Image, str]]:
    """Small pictures, each with its name and captions."""
    for sample in ProgressBar(samples, title, unit="picture", delay=PROGRESS_DELAY):
        picture = open_image(sample.path)
        picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
        caption = f"{printable(sample.annotation.file_name)}: {' / '.join(sample.captions)}"
        yield picture, caption if len(caption) <= MAX_CAPTION else f"{caption[:MAX_CAPTION]}..."
