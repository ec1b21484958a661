"""Labelled synthetic sets for training classifiers: prompts and seeds planned by position, images by any generator.

Images come from this project's own pipeline or any text-to-image pipeline of diffusers. The set is complete when every
planned image is there or was left out; killed at any moment, the same command resumes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image, PngImagePlugin

from data import rng
from data.atomic_io import atomic_file, write_atomic
from data.errors import EXIT_INTERRUPTED, InputError, check_choice
from data.progress import ProgressBar
from infer import lora_loading, pipeline, resolve_model, schedulers
from infer.config import SYNTHESIS_MODELS, GenerateOptions, SynthesizeOptions
from infer.prompts import ImageRequest
from infer.sampling_loop import SamplingSettings
from train.model import load_model

OWN_PIPELINE = "StableDiffusionPipeline"  # of model_index.json: what this project's own pipeline supports
THEMES = Path(__file__).with_name("themes.yaml")
SYNTHESIS_FILE, TABLE_FILE, TEXT_KEY = "synthesis.json", "metadata.jsonl", "atelier-synthetic"
LEFT_OUT_SUFFIX = "left-out"  # of a file instead of an image that never came out well
PromptAndSeed = tuple[str, int]


# ---- generators: `model`, `folder` (a file name), `description` (the first line), `fingerprint`, `generate()`


def make_generator(name: str, options: SynthesizeOptions) -> ImageGenerator:
    """The generator of a model's name; nothing is downloaded. Raises InputError.

    Our pipeline supports the default, the embedded base, SD v1.4, a run, a file, an SD v1 folder.
    """
    model = SYNTHESIS_MODELS.get(name, name)
    index = Path(model) / "model_index.json"
    if model and index.is_file():
        is_own = json.loads(index.read_text(encoding="utf-8")).get("_class_name") == OWN_PIPELINE
    else:
        is_own = model in ("", resolve_model.POCKET, SYNTHESIS_MODELS["sd14"]) or Path(model).exists()
    return OwnGenerator(model or None, options) if is_own else DiffusersGenerator(model, options)


def folder_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model"


class OwnGenerator:
    """A run, a LoRA, the embedded base or an SD v1 folder or file, as generate.py uses it."""

    def __init__(self, name: str | None, options: SynthesizeOptions) -> None:
        chosen = resolve_model.resolve(GenerateOptions(model=name))
        device = pipeline.choose_device(options.device)
        dtype = pipeline.choose_dtype(options.dtype, device)
        model = load_model(chosen.model, tokenizer=chosen.tokenizer, dtype=dtype)
        self.pipe = pipeline.build_pipeline(model, options.scheduler, device)
        lora_loading.load_loras(self.pipe, chosen.loras, strict=True)
        suited = resolve_model.recommended(model.layout)
        guidance = suited.guidance_scale if options.guidance_scale is None else options.guidance_scale
        batch = pipeline.micro_batch_for(device.type)
        self.settings = SamplingSettings(options.steps, guidance, suited.size, suited.size, micro_batch=batch)
        self.description = chosen.description
        self.model = " + ".join([chosen.model, *(str(lora.path) for lora in chosen.loras)])
        run = next((lora.path.parent.parent.name for lora in chosen.loras), None)
        self.folder = folder_name(run or Path(chosen.model).name)

    @property
    def guidance_scale(self) -> float | None:
        return self.settings.guidance_scale

    @property
    def fingerprint(self) -> str:
        """Of the U-Net, adapters included."""
        digest = hashlib.sha256()
        for parameter in self.pipe.unet.parameters():
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def generate(self, prompts: Sequence[PromptAndSeed]) -> Iterator[tuple[Image.Image, str]]:
        """An image and `ok`, `nan` or `flagged` for each prompt and seed, in order."""
        requests = [ImageRequest(index, prompt, seed) for index, (prompt, seed) in enumerate(prompts)]
        for generated in pipeline.generate_images(self.pipe, requests, self.settings):
            yield generated.image, generated.verdict


class DiffusersGenerator:
    """Whatever AutoPipelineForText2Image supports, from the hub's cache on this machine or a folder."""

    def __init__(self, model: str, options: SynthesizeOptions) -> None:
        check_downloaded(model)
        from diffusers import AutoPipelineForText2Image

        self.model, self.options, self.description = model, options, f"model: {model}"
        self.folder = folder_name(Path(model).name)
        self.guidance_scale = options.guidance_scale  # None: the pipeline's own default
        device = pipeline.choose_device(options.device)
        dtype = pipeline.choose_dtype(options.dtype, device)
        pipeline.silence_libraries()
        try:
            self.pipe: Any = AutoPipelineForText2Image.from_pretrained(model, torch_dtype=dtype, local_files_only=True)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0][:160]
            raise InputError(f"{model} cannot be loaded ({reason})", where="--model") from None
        scheduler = options.scheduler or ("dpmpp_2m" if "stable-diffusion-2-1" in model else None)
        if scheduler:
            self.pipe.scheduler = schedulers.build_scheduler(scheduler, dict(self.pipe.scheduler.config))
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe = self.pipe.to(device)

    @property
    def fingerprint(self) -> str:
        """The commit that the hub's cache names, or the folder's path."""
        return str(getattr(self.pipe.config, "_name_or_path", self.model))

    def generate(self, prompts: Sequence[PromptAndSeed]) -> Iterator[tuple[Image.Image, str]]:
        """See OwnGenerator.generate."""
        guidance = {} if self.guidance_scale is None else {"guidance_scale": self.guidance_scale}
        for prompt, seed in prompts:
            generator = torch.Generator("cpu").manual_seed(seed)
            result = self.pipe(prompt, num_inference_steps=self.options.steps, generator=generator, **guidance)
            flagged = any(getattr(result, "nsfw_content_detected", None) or [])
            yield result.images[0], "flagged" if flagged else "ok"


ImageGenerator = OwnGenerator | DiffusersGenerator


def check_downloaded(model: str) -> None:
    """Raise InputError for a model that is neither a folder nor in the hub's cache, without asking a network."""
    from huggingface_hub import try_to_load_from_cache

    if not Path(model).is_dir() and not isinstance(try_to_load_from_cache(model, "model_index.json"), str):
        raise InputError(f"{model} is not on this machine", where="--model", fix=f"Download it: hf download {model}")


# ---- the plan


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
        slots = [template_slots(template) - {"class"} for template in self.templates]
        return sum(math.prod(len(self.slots[name]) for name in names) for names in slots)

    def prompt(self, kind: str, number: int, seed: int) -> str:
        """The prompt of image `number`: template and slots chosen by position."""
        template = self.templates[rng.integer(len(self.templates), seed, "synthetic", "template", number)]
        values = {
            name: options[rng.integer(len(options), seed, "synthetic", name, number)]
            for name, options in self.slots.items()
        }
        return template.format(**values, **{"class": kind})


@dataclass(frozen=True)
class SynthesisItem:
    """One planned image."""

    number: int
    kind: str
    prompt: str
    seed: int

    @property
    def file_name(self) -> str:
        return f"{self.kind}/{self.number:06d}.png"

    def seed_at(self, attempt: int) -> int:
        """Another seed each time that it is tried again."""
        return rng.seed_for(self.seed, "redraw", attempt) % 2**48 if attempt else self.seed


def requested_items(options: SynthesizeOptions) -> list[SynthesisItem]:
    """The planned images, classes in turn, so that any beginning of the set is balanced too. Raises InputError."""
    theme = load_theme(options)
    kinds = theme.classes
    if options.count < len(kinds):
        allowed = f"{len(kinds)} or more"
        raise InputError(f"{options.count} images of {len(kinds)} classes", where="--count", allowed=allowed)
    items = []
    for number in range(options.count):
        kind = kinds[number % len(kinds)]
        seed = rng.seed_for(options.seed, "synthetic", "picture", number) % 2**48
        items.append(SynthesisItem(number, kind, theme.prompt(kind, number, options.seed), seed))
    return items


def load_theme(options: SynthesizeOptions) -> Theme:
    """The requested theme with the requested classes. Raises InputError for an unknown one or an invalid file."""
    file = Path(options.theme)
    if file.suffix in (".yaml", ".yml"):
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"cannot be read ({str(error).splitlines()[0]})", where=f"--theme {file}") from None
        return parse_theme(file.stem, content, file, options.classes)
    shipped = yaml.safe_load(THEMES.read_text(encoding="utf-8"))
    name = check_choice(options.theme, shipped, what="theme", where="--theme")
    return parse_theme(name, shipped[name], THEMES, options.classes)


def parse_theme(name: str, given: Any, file: Path, classes: tuple[str, ...]) -> Theme:
    """Raises InputError naming what is missing."""
    needed = ("classes", "templates")
    if not isinstance(given, dict) or any(not isinstance(given.get(key), list) or not given[key] for key in needed):
        allowed = "classes: [...], templates: [...] and slots: {name: [...]}"
        raise InputError("is not a theme", where=file, allowed=allowed)
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


def template_slots(template: str) -> set[str]:
    """The names in braces."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


# ---- the command


def run_synthesis(options: SynthesizeOptions) -> int:
    """Generate each model's set; returns the exit code. Raises InputError."""
    theme, items = load_theme(options), requested_items(options)
    print(f"{theme.name}: {len(theme.classes)} classes, {theme.distinct} different prompts each, {len(items)} images")
    try:
        for name in options.model or ("",):
            synthesize_set(name, options, items, theme.name)
    except KeyboardInterrupt:
        print("\nstopped: finished images are kept; the same command resumes")
        return EXIT_INTERRUPTED
    return 0


def synthesize_set(name: str, options: SynthesizeOptions, items: Sequence[SynthesisItem], theme: str) -> Path:
    """Generate the set of one model; returns its folder. Raises InputError."""
    generator = make_generator(name, options)
    print(generator.description)
    folder = options.outdir / theme / generator.folder
    generate_set(generator, items, options, folder)
    finish_set(folder, items)
    return folder


def synthesize_one(options: SynthesizeOptions) -> Path:
    """Generate a single set for another command; returns its folder."""
    return synthesize_set("", options, requested_items(options), load_theme(options).name)


def process_share() -> tuple[int, int]:
    """This process' number and how many there are, as torchrun and accelerate set them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def generate_set(
    generator: ImageGenerator, items: Sequence[SynthesisItem], options: SynthesizeOptions, folder: Path
) -> None:
    """Generate this process' share of what is missing; what comes out badly is tried again, but only so often."""
    check_folder(generator, items, options, folder)
    rank, count = process_share()
    pending = [item for item in items[rank::count] if not is_settled(folder, item)]
    hidden = rank > 0 or None
    bar = ProgressBar(total=len(pending), desc=generator.folder, unit="image", disable=hidden)
    for attempt in range(options.redraws + 1):
        pairs = [(item.prompt, item.seed_at(attempt)) for item in pending]
        failed = []
        for item, (image, verdict) in zip(pending, generator.generate(pairs), strict=True):
            if verdict == "ok" and image.convert("L").getextrema()[1]:
                save_image(image, folder / item.file_name, item, attempt, generator.model)
                bar.update()
            else:
                failed.append(item)
        pending = failed
    bar.close()
    for item in pending:
        text = f"{options.redraws + 1} times without an image\n"
        write_atomic((folder / item.file_name).with_suffix(f".{LEFT_OUT_SUFFIX}"), text)


def is_settled(folder: Path, item: SynthesisItem) -> bool:
    path = folder / item.file_name
    return path.is_file() or path.with_suffix(f".{LEFT_OUT_SUFFIX}").is_file()


def save_image(image: Image.Image, path: Path, item: SynthesisItem, attempt: int, model: str) -> None:
    """A PNG that says how it was made."""
    seed = item.seed_at(attempt)
    facts = {"prompt": item.prompt, "class": item.kind, "seed": seed, "redraws": attempt, "model": model}
    info = PngImagePlugin.PngInfo()
    info.add_itxt(TEXT_KEY, json.dumps(facts, ensure_ascii=False))
    with atomic_file(path) as beside:
        image.save(beside, "PNG", pnginfo=info)


def read_image_facts(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        return json.loads(image.info[TEXT_KEY])


def check_folder(
    generator: ImageGenerator, items: Sequence[SynthesisItem], options: SynthesizeOptions, folder: Path
) -> None:
    """Raises InputError for a folder with a set of another plan. A longer set of the same plan is fine."""
    facts = {
        "model": generator.model, "weights": generator.fingerprint, "theme": options.theme, "seed": options.seed,
        "steps": options.steps, "guidance_scale": generator.guidance_scale, "scheduler": options.scheduler,
        "classes": list(dict.fromkeys(item.kind for item in items)), "first": items[0].prompt,
    }  # fmt: skip
    file = folder / SYNTHESIS_FILE
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != facts:
        raise InputError("has a set with other settings", where=folder, fix="Use another --outdir, or delete it.")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def finish_set(folder: Path, items: Sequence[SynthesisItem]) -> None:
    """When the set is complete, whoever sees it first writes the table, and prints what was generated."""
    if not all(is_settled(folder, item) for item in items):
        return
    done = [item for item in items if (folder / item.file_name).is_file()]
    facts = [read_image_facts(folder / item.file_name) for item in done]
    lines = []
    for item, fact in zip(done, facts, strict=True):
        row = {"file_name": item.file_name, "text": item.prompt, "type": item.kind}
        row |= {"source": f"drawn by {fact['model']}", "seed": fact["seed"]}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_atomic(folder / TABLE_FILE, "".join(lines))
    if process_share()[0]:
        return
    again, lost = sum(fact["redraws"] for fact in facts), len(items) - len(done)
    counts = ", ".join(f"{kind} {count}" for kind, count in Counter(item.kind for item in done).items())
    print(f"{len(done)} images in {folder}: {counts}; {again} tried again, {lost} left out")
