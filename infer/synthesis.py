"""Where a synthetic set's pictures come from: this project's own pipeline, or any text-to-image one of diffusers."""

from __future__ import annotations

import hashlib
import json
import os
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from PIL import Image, PngImagePlugin

from data import rng
from data.atomic_io import atomic_file, write_atomic
from data.errors import EXIT_INTERRUPTED, InputError, check_choice
from data.progress import ProgressBar
from infer import lora_loading, pipeline, resolve_model
from infer.config import SYNTHESIS_MODELS, GenerateOptions, SynthesizeOptions
from infer.pipeline import SamplingSettings
from infer.prompts import ImageRequest
from train.model import load_model

PromptAndSeed = tuple[str, int]  # prompt and seed
OWN_PIPELINE = "StableDiffusionPipeline"  # of model_index.json: what this project's own pipeline draws


class ImageGenerator(Protocol):
    """Draws a prompt from a seed; equal fingerprint and settings promise equal pictures on one kind of machine."""

    @property
    def model(self) -> str: ...  # as asked for, with its adapters
    @property
    def folder(self) -> str: ...  # a file name made of it
    @property
    def said(self) -> str: ...  # for the first line
    @property
    def fingerprint(self) -> str: ...

    def draw(self, asked: Sequence[PromptAndSeed]) -> Iterator[tuple[Image.Image, str]]:
        """A picture and `ok`, `nan` or `flagged` for each prompt and seed, in order."""
        ...


def make_generator(name: str, options: SynthesizeOptions) -> ImageGenerator:
    """The generator of a name; nothing is ever downloaded behind anybody's back. Raises InputError."""
    wanted = SYNTHESIS_MODELS.get(name, name)
    return OwnGenerator(wanted or None, options) if is_own(wanted) else DiffusersGenerator(wanted, options)


def is_own(name: str) -> bool:
    """Whether our pipeline draws it: the default, the embedded base, SD v1.4, a run, a file, an SD v1 folder."""
    index = Path(name) / "model_index.json"
    if name and index.is_file():
        return json.loads(index.read_text(encoding="utf-8")).get("_class_name") == OWN_PIPELINE
    return name in ("", resolve_model.POCKET, SYNTHESIS_MODELS["sd14"]) or Path(name).exists()


def folder_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model"


class OwnGenerator:
    """A run, a LoRA, the embedded base or an SD v1 folder or file, drawn as generate.py draws."""

    def __init__(self, name: str | None, options: SynthesizeOptions) -> None:
        chosen = resolve_model.resolve(GenerateOptions(model=name))
        device = pipeline.choose_device(options.device)
        model = load_model(chosen.model, tokenizer=chosen.tokenizer,
                                dtype=pipeline.choose_dtype(options.dtype, device))  # fmt: skip
        self.pipe = pipeline.build_pipeline(model, options.scheduler, device)
        lora_loading.load_loras(self.pipe, chosen.loras, strict=True)
        size = model.sample_size
        self.settings = SamplingSettings(options.steps, options.guidance_scale, size, size,
                                 micro_batch=pipeline.micro_batch_for(device))  # fmt: skip
        self.said = chosen.said
        self.model = " + ".join([chosen.model, *(str(lora.path) for lora in chosen.loras)])
        run = next((lora.path.parent.parent.name for lora in chosen.loras), None)
        self.folder = folder_name(run or Path(chosen.model).name)

    @property
    def fingerprint(self) -> str:
        """Of the U-Net as it draws, adapters included."""
        digest = hashlib.sha256()
        for parameter in self.pipe.unet.parameters():
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def draw(self, asked: Sequence[PromptAndSeed]) -> Iterator[tuple[Image.Image, str]]:
        pictures = [ImageRequest(index, prompt, seed) for index, (prompt, seed) in enumerate(asked)]
        for drawn in pipeline.generate_images(self.pipe, pictures, self.settings):
            yield drawn.image, drawn.verdict


@dataclass
class DiffusersGenerator:
    """Whatever AutoPipelineForText2Image takes, from the hub's cache on this machine or a folder."""

    model: str
    options: SynthesizeOptions

    def __post_init__(self) -> None:
        check_downloaded(self.model)
        import diffusers

        from infer import schedulers  # isort: skip

        device = pipeline.choose_device(self.options.device)
        dtype = pipeline.choose_dtype(self.options.dtype, device)
        pipeline.silence_libraries()
        try:
            self.pipe: Any = diffusers.AutoPipelineForText2Image.from_pretrained(
                self.model, torch_dtype=dtype, local_files_only=True
            )
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0][:160]
            raise InputError(f"{self.model} cannot be loaded ({reason})", where="--model") from None
        asked = self.options.scheduler or ("dpmpp_2m" if "stable-diffusion-2-1" in self.model else None)
        if asked:
            self.pipe.scheduler = schedulers.build_scheduler(asked, dict(self.pipe.scheduler.config))
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe = self.pipe.to(device)

    @property
    def folder(self) -> str:
        return folder_name(Path(self.model).name)

    @property
    def said(self) -> str:
        return f"model: {self.model}"

    @property
    def fingerprint(self) -> str:
        """The commit that the hub's cache names, or the folder's path."""
        return str(getattr(self.pipe.config, "_name_or_path", self.model))

    def draw(self, asked: Sequence[PromptAndSeed]) -> Iterator[tuple[Image.Image, str]]:
        for prompt, seed in asked:
            rng = torch.Generator("cpu").manual_seed(seed)
            found = self.pipe(
                prompt,
                num_inference_steps=self.options.steps,
                guidance_scale=self.options.guidance_scale,
                generator=rng,
            )
            flagged = any(getattr(found, "nsfw_content_detected", None) or [])
            yield found.images[0], "flagged" if flagged else "ok"


def check_downloaded(model: str) -> None:
    """Raise InputError for a model that is neither a folder nor in the hub's cache; nothing is asked over a network."""
    from huggingface_hub import try_to_load_from_cache

    if not Path(model).is_dir() and not isinstance(try_to_load_from_cache(model, "model_index.json"), str):
        raise InputError(f"{model} is not on this machine", where="--model", fix=f"Fetch it: hf download {model}")


THEMES = Path(__file__).with_name("themes.yaml")
SYNTHESIS_FILE, TABLE_FILE = "synthesis.json", "metadata.jsonl"
LEFT_OUT_SUFFIX = "left-out"  # a file of this suffix instead of a picture: it was redrawn as often as allowed


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
            for name in template_slots(template) - {"class"}:
                ways *= len(self.slots[name])
            total += ways
        return total

    def prompt(self, kind: str, number: int, seed: int) -> str:
        """The prompt of a class' picture: template and slots drawn by position."""
        template = self.templates[rng.integer(len(self.templates), seed, "synthetic", "template", number)]
        filled = {name: values[rng.integer(len(values), seed, "synthetic", name, number)]
                  for name, values in self.slots.items()}  # fmt: skip
        return template.format(**filled, **{"class": kind})


def template_slots(template: str) -> set[str]:
    """The names in braces."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def load_theme(options: SynthesizeOptions) -> Theme:
    """The theme asked for, with the classes asked for. Raises InputError for an unknown one or a wrong file."""
    shipped = yaml.safe_load(THEMES.read_text(encoding="utf-8"))
    file = Path(options.theme)
    if file.suffix in (".yaml", ".yml"):
        return parse_theme(file.stem, read_theme_file(file), file, options.classes)
    name = check_choice(options.theme, shipped, what="theme", where="--theme")
    return parse_theme(name, shipped[name], THEMES, options.classes)


def read_theme_file(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot be read ({str(error).splitlines()[0]})", where=f"--theme {file}") from None


def parse_theme(name: str, given: Any, file: Path, classes: tuple[str, ...]) -> Theme:
    """A theme out of a mapping. Raises InputError naming what is missing."""
    wanted = ("classes", "templates")
    if not isinstance(given, dict) or any(not isinstance(given.get(key), list) or not given[key] for key in wanted):
        raise InputError("is no theme", where=file, allowed="classes: [...], templates: [...] and slots: {name: [...]}")
    slots = {str(key): tuple(map(str, values)) for key, values in (given.get("slots") or {}).items()}
    for template in given["templates"]:
        unknown = template_slots(template) - {"class", *slots}
        if unknown or "class" not in template_slots(template):
            what = f"{{{sorted(unknown)[0]}}} has no values" if unknown else "has no {class}"
            raise InputError(f"the template {template!r}: {what}", where=file, allowed=", ".join(["class", *slots]))
    kinds = classes or tuple(map(str, given["classes"]))
    if len(set(kinds)) < len(kinds) or any("/" in kind or kind.startswith(".") for kind in kinds):
        raise InputError(f"classes {', '.join(kinds)}", where="--classes", allowed="different names without slashes")
    return Theme(name, kinds, tuple(given["templates"]), slots)


@dataclass(frozen=True)
class SynthesisItem:
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
        return rng.seed_for(self.seed, "redraw", attempt) % 2**48 if attempt else self.seed


def plan_items(theme: Theme, options: SynthesizeOptions) -> list[SynthesisItem]:
    """Classes in turn, so that any beginning of the set is balanced as well."""
    kinds = theme.classes
    return [
        SynthesisItem(number, kinds[number % len(kinds)], theme.prompt(kinds[number % len(kinds)], number, options.seed),
             rng.seed_for(options.seed, "synthetic", "picture", number) % 2**48)
        for number in range(options.count)
    ]  # fmt: skip


def run_synthesis(options: SynthesizeOptions) -> int:
    """Draw each model's set; returns the exit code. Raises InputError."""
    theme, items = load_theme(options), requested_items(options)
    print(f"{theme.name}: {len(theme.classes)} classes, {theme.distinct} different prompts each, {len(items)} pictures")
    for name in options.model or ("",):
        generator = make_generator(name, options)
        print(generator.said)
        folder = options.outdir / theme.name / generator.folder
        try:
            generate_set(generator, items, options, folder)
        except KeyboardInterrupt:
            done = sum((folder / item.file_name).is_file() for item in items)
            print(f"\nstopped: {done} of {len(items)} pictures are kept in {folder}; the same command goes on")
            return EXIT_INTERRUPTED
        finish_set(folder, items)
    return 0


def synthesize_one(options: SynthesizeOptions) -> Path:
    """Draw a single set for another command; returns its folder. Ctrl-C is that command's."""
    items, generator = requested_items(options), make_generator("", options)
    print(generator.said)
    folder = options.outdir / load_theme(options).name / generator.folder
    generate_set(generator, items, options, folder)
    finish_set(folder, items)
    return folder


def requested_items(options: SynthesizeOptions) -> list[SynthesisItem]:
    """The plan that the options mean. Raises InputError for fewer pictures than classes."""
    theme = load_theme(options)
    if options.count < len(theme.classes):
        allowed = f"{len(theme.classes)} or more"
        raise InputError(f"{options.count} pictures of {len(theme.classes)} classes", where="--count", allowed=allowed)
    return plan_items(theme, options)


def process_share() -> tuple[int, int]:
    """This process' number and how many there are, as torchrun and accelerate tell it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def generate_set(
    generator: ImageGenerator, items: Sequence[SynthesisItem], options: SynthesizeOptions, folder: Path
) -> None:
    """Draw what this process has to, and what is not there yet; what is no picture again, at most so often."""
    check_folder(generator, items, options, folder)
    rank, count = process_share()
    pending = [item for item in items[rank::count] if not is_settled(folder, item)]
    with ProgressBar(total=len(pending), desc=generator.folder, unit="picture", dynamic_ncols=True,
              disable=rank > 0 or None) as bar:  # fmt: skip
        for attempt in range(options.redraws + 1):
            pending = [item for item in generate_round(generator, pending, attempt, folder, bar) if item is not None]
    for item in pending:
        write_atomic(
            item_path(folder, item).with_suffix(f".{LEFT_OUT_SUFFIX}"), f"{options.redraws + 1} times no picture\n"
        )


def generate_round(
    generator: ImageGenerator, items: Sequence[SynthesisItem], attempt: int, folder: Path, bar: Any
) -> Iterator[SynthesisItem | None]:
    """Draw each item once; yields those that came out black, flagged or broken."""
    seeds_now = [item.seed_at(attempt) for item in items]
    pairs = [(item.prompt, seed) for item, seed in zip(items, seeds_now, strict=True)]
    for item, seed, (picture, verdict) in zip(items, seeds_now, generator.draw(pairs), strict=True):
        good = verdict == "ok" and bool(picture.convert("L").getextrema()[1])
        if good:
            facts = {"prompt": item.prompt, "class": item.kind, "seed": seed, "redraws": attempt,
                     "model": generator.model}  # fmt: skip
            save_image(picture, item_path(folder, item), facts)
            bar.update()
        yield None if good else item


def item_path(folder: Path, item: SynthesisItem) -> Path:
    """Where a picture lies; its class' folder is made."""
    path = folder / item.file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def is_settled(folder: Path, item: SynthesisItem) -> bool:
    path = folder / item.file_name
    return path.is_file() or path.with_suffix(f".{LEFT_OUT_SUFFIX}").is_file()


def save_image(picture: Image.Image, path: Path, facts: dict[str, object]) -> None:
    """A PNG that says how it was made."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("atelier-synthetic", json.dumps(facts, ensure_ascii=False))
    with atomic_file(path) as beside:
        picture.save(beside, "PNG", pnginfo=info)


def read_image_facts(path: Path) -> dict[str, object]:
    """What a picture says of itself."""
    with Image.open(path) as picture:
        return json.loads(picture.info["atelier-synthetic"])


def check_folder(
    generator: ImageGenerator, items: Sequence[SynthesisItem], options: SynthesizeOptions, folder: Path
) -> None:
    """Refuse a folder of another plan: pictures of two plans must not meet in one set. A longer one is the same."""
    facts = {
        "model": generator.model, "weights": generator.fingerprint, "theme": options.theme, "seed": options.seed,
        "steps": options.steps, "guidance_scale": options.guidance_scale, "scheduler": options.scheduler,
        "classes": list(dict.fromkeys(item.kind for item in items)), "first": items[0].prompt,
    }  # fmt: skip
    file = folder / SYNTHESIS_FILE
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != facts:
        raise InputError("holds a set of other settings", where=folder, fix="Give another --outdir, or delete it.")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def finish_set(folder: Path, items: Sequence[SynthesisItem]) -> None:
    """When all is drawn, whoever sees it first writes the table, and says what was drawn."""
    if not all(is_settled(folder, item) for item in items):
        return
    drawn = [item for item in items if (folder / item.file_name).is_file()]
    facts = [read_image_facts(folder / item.file_name) for item in drawn]
    rows = [{"file_name": item.file_name, "text": item.prompt, "type": item.kind, "source": f"drawn by {fact['model']}",
             "seed": fact["seed"]} for item, fact in zip(drawn, facts, strict=True)]  # fmt: skip
    write_atomic(folder / TABLE_FILE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if process_share()[0]:
        return
    again, lost = sum(int(str(fact["redraws"])) for fact in facts), len(items) - len(drawn)
    counts = ", ".join(f"{kind} {count}" for kind, count in Counter(item.kind for item in drawn).items())
    print(f"{len(drawn)} pictures in {folder}: {counts}; redrawn {again} times, left out {lost}")
