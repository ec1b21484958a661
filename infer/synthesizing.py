"""What synthesize.py does: a plan of prompts and seeds, the pictures that are missing, and the set's table."""

from __future__ import annotations

import json
import os
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, PngImagePlugin
from tqdm import tqdm

from data import seeds
from data.errors import INTERRUPTED, InputError, choose
from data.files import replaced_file, write_atomic
from infer import generators
from infer.generators import Generator
from infer.synthesize_options import SynthesizeOptions

THEMES = Path(__file__).with_name("themes.yaml")
SETTINGS, TABLE = "synthesis.json", "metadata.jsonl"
LEFT_OUT = "left-out"  # a file of this suffix instead of a picture: it was redrawn as often as allowed


@dataclass(frozen=True)
class Theme:
    """classes in their order; each template has {class} and may have slots."""

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    slots: dict[str, tuple[str, ...]]

    @property
    def distinct(self) -> int:
        """How many different prompts a class can have; the thesis' animals have 18, its fruits 8."""
        total = 0
        for template in self.templates:
            ways = 1
            for name in slots_of(template) - {"class"}:
                ways *= len(self.slots[name])
            total += ways
        return total

    def prompt(self, kind: str, number: int, seed: int) -> str:
        """The prompt of a class' picture: template and slots drawn by position."""
        template = self.templates[seeds.integer(len(self.templates), seed, "synthetic", "template", number)]
        filled = {name: values[seeds.integer(len(values), seed, "synthetic", name, number)]
                  for name, values in self.slots.items()}  # fmt: skip
        return template.format(**filled, **{"class": kind})


def slots_of(template: str) -> set[str]:
    """The names in braces."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def theme_of(options: SynthesizeOptions) -> Theme:
    """The theme asked for, with the classes asked for. Raises InputError for an unknown one or a wrong file."""
    shipped = yaml.safe_load(THEMES.read_text(encoding="utf-8"))
    file = Path(options.theme)
    if file.suffix in (".yaml", ".yml"):
        return checked(file.stem, read_yaml(file), file, options.classes)
    name = choose(options.theme, shipped, what="theme", where="--theme")
    return checked(name, shipped[name], THEMES, options.classes)


def read_yaml(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot be read ({str(error).splitlines()[0]})", where=f"--theme {file}") from None


def checked(name: str, given: Any, file: Path, classes: tuple[str, ...]) -> Theme:
    """A theme out of a mapping. Raises InputError naming what is missing."""
    wanted = ("classes", "templates")
    if not isinstance(given, dict) or any(not isinstance(given.get(key), list) or not given[key] for key in wanted):
        raise InputError("is no theme", where=file, allowed="classes: [...], templates: [...] and slots: {name: [...]}")
    slots = {str(key): tuple(map(str, values)) for key, values in (given.get("slots") or {}).items()}
    for template in given["templates"]:
        unknown = slots_of(template) - {"class", *slots}
        if unknown or "class" not in slots_of(template):
            what = f"{{{sorted(unknown)[0]}}} has no values" if unknown else "has no {class}"
            raise InputError(f"the template {template!r}: {what}", where=file, allowed=", ".join(["class", *slots]))
    kinds = classes or tuple(map(str, given["classes"]))
    if len(set(kinds)) < len(kinds) or any("/" in kind or kind.startswith(".") for kind in kinds):
        raise InputError(f"classes {', '.join(kinds)}", where="--classes", allowed="different names without slashes")
    return Theme(name, kinds, tuple(given["templates"]), slots)


@dataclass(frozen=True)
class Item:
    """One picture of the plan."""

    number: int
    kind: str
    prompt: str
    seed: int

    @property
    def file_name(self) -> str:
        return f"{self.kind}/{self.number:06d}.png"

    def seed_at(self, attempt: int) -> int:
        """Other noise each time that it is drawn again."""
        return seeds.seed_for(self.seed, "redraw", attempt) % 2**48 if attempt else self.seed


def plan(theme: Theme, options: SynthesizeOptions) -> list[Item]:
    """Classes in turn, so that any beginning of the set is balanced as well."""
    kinds = theme.classes
    return [
        Item(number, kinds[number % len(kinds)], theme.prompt(kinds[number % len(kinds)], number, options.seed),
             seeds.seed_for(options.seed, "synthetic", "picture", number) % 2**48)
        for number in range(options.count)
    ]  # fmt: skip


def run(options: SynthesizeOptions) -> int:
    """Draw each model's set; returns the exit code. Raises InputError."""
    theme, items = theme_of(options), asked(options)
    print(f"{theme.name}: {len(theme.classes)} classes, {theme.distinct} different prompts each, {len(items)} pictures")
    for name in options.model or ("",):
        generator = generators.make(name, options)
        print(generator.said)
        folder = options.outdir / theme.name / generator.folder
        try:
            draw_set(generator, items, options, folder)
        except KeyboardInterrupt:
            done = sum((folder / item.file_name).is_file() for item in items)
            print(f"\nstopped: {done} of {len(items)} pictures are kept in {folder}; the same command goes on")
            return INTERRUPTED
        finish(folder, items)
    return 0


def one_set(options: SynthesizeOptions) -> Path:
    """Draw a single set for another command; returns its folder. Ctrl-C is that command's."""
    items, generator = asked(options), generators.make("", options)
    print(generator.said)
    folder = options.outdir / theme_of(options).name / generator.folder
    draw_set(generator, items, options, folder)
    finish(folder, items)
    return folder


def asked(options: SynthesizeOptions) -> list[Item]:
    """The plan that the options mean. Raises InputError for fewer pictures than classes."""
    theme = theme_of(options)
    if options.count < len(theme.classes):
        allowed = f"{len(theme.classes)} or more"
        raise InputError(f"{options.count} pictures of {len(theme.classes)} classes", where="--count", allowed=allowed)
    return plan(theme, options)


def share() -> tuple[int, int]:
    """This process' number and how many there are, as torchrun and accelerate tell it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def draw_set(generator: Generator, items: Sequence[Item], options: SynthesizeOptions, folder: Path) -> None:
    """Draw what this process has to, and what is not there yet; what is no picture again, at most so often."""
    guard(generator, items, options, folder)
    rank, count = share()
    pending = [item for item in items[rank::count] if not settled(folder, item)]
    with tqdm(total=len(pending), desc=generator.folder, unit="picture", dynamic_ncols=True,
              disable=rank > 0 or None) as bar:  # fmt: skip
        for attempt in range(options.redraws + 1):
            pending = [item for item in drawn_round(generator, pending, attempt, folder, bar) if item is not None]
    for item in pending:
        write_atomic(path_of(folder, item).with_suffix(f".{LEFT_OUT}"), f"{options.redraws + 1} times no picture\n")


def drawn_round(
    generator: Generator, items: Sequence[Item], attempt: int, folder: Path, bar: Any
) -> Iterator[Item | None]:
    """Draw each item once; yields those that came out black, flagged or broken."""
    seeds_now = [item.seed_at(attempt) for item in items]
    pairs = [(item.prompt, seed) for item, seed in zip(items, seeds_now, strict=True)]
    for item, seed, (picture, verdict) in zip(items, seeds_now, generator.draw(pairs), strict=True):
        good = verdict == "ok" and bool(picture.convert("L").getextrema()[1])
        if good:
            facts = {"prompt": item.prompt, "class": item.kind, "seed": seed, "redraws": attempt,
                     "model": generator.model}  # fmt: skip
            save(picture, path_of(folder, item), facts)
            bar.update()
        yield None if good else item


def path_of(folder: Path, item: Item) -> Path:
    """Where a picture lies; its class' folder is made."""
    path = folder / item.file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def settled(folder: Path, item: Item) -> bool:
    path = folder / item.file_name
    return path.is_file() or path.with_suffix(f".{LEFT_OUT}").is_file()


def save(picture: Image.Image, path: Path, facts: dict[str, object]) -> None:
    """A PNG that says how it was made."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("atelier-synthetic", json.dumps(facts, ensure_ascii=False))
    with replaced_file(path) as beside:
        picture.save(beside, "PNG", pnginfo=info)


def facts_of(path: Path) -> dict[str, object]:
    """What a picture says of itself."""
    with Image.open(path) as picture:
        return json.loads(picture.info["atelier-synthetic"])


def guard(generator: Generator, items: Sequence[Item], options: SynthesizeOptions, folder: Path) -> None:
    """Refuse a folder of another plan: pictures of two plans must not meet in one set. A longer one is the same."""
    facts = {
        "model": generator.model, "weights": generator.fingerprint, "theme": options.theme, "seed": options.seed,
        "steps": options.steps, "guidance_scale": options.guidance_scale, "scheduler": options.scheduler,
        "classes": list(dict.fromkeys(item.kind for item in items)), "first": items[0].prompt,
    }  # fmt: skip
    file = folder / SETTINGS
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != facts:
        raise InputError("holds a set of other settings", where=folder, fix="Give another --outdir, or delete it.")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def finish(folder: Path, items: Sequence[Item]) -> None:
    """When all is drawn, whoever sees it first writes the table, and says what was drawn."""
    if not all(settled(folder, item) for item in items):
        return
    drawn = [item for item in items if (folder / item.file_name).is_file()]
    facts = [facts_of(folder / item.file_name) for item in drawn]
    rows = [{"file_name": item.file_name, "text": item.prompt, "type": item.kind, "source": f"drawn by {fact['model']}",
             "seed": fact["seed"]} for item, fact in zip(drawn, facts, strict=True)]  # fmt: skip
    write_atomic(folder / TABLE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if share()[0]:
        return
    again, lost = sum(int(str(fact["redraws"])) for fact in facts), len(items) - len(drawn)
    counts = ", ".join(f"{kind} {count}" for kind, count in Counter(item.kind for item in drawn).items())
    print(f"{len(drawn)} pictures in {folder}: {counts}; redrawn {again} times, left out {lost}")
