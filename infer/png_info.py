"""--params-from image.png: the options that an image was made with, under the flags on the command line.

Our own images are repeated bit for bit; a model or LoRA that has changed or is missing is an error. Of other programs'
images the settings are used; what cannot be repeated is named. A1111's text is parsed as A1111 does (modules/
infotext_utils.py), kohya's as gen_img.py writes it; InvokeAI, Fooocus, ComfyUI and NovelAI are read by sd-parsers.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from data.atomic_io import file_sha256
from data.errors import InputError, printable
from infer import metadata, prompts, schedulers, text_encoding
from infer.config import LORAS, RUNS, GenerateOptions
from infer.metadata import ImageMetadata, LoraUsed
from infer.output import SavedImage, open_image
from infer.pipeline import micro_batch_for
from infer.resolve_model import POCKET

OURS = "this toolkit"
FLAG_OF_ROLE = {"init": "init_image", "mask": "mask", "scribble": "scribble"}
IRRELEVANT_FIELDS = {"format", "template", "verdict", "style", "unstyled"}  # for the pixels
IMPLIED_FIELDS = {"from_file": ("prompt",), "aspect": ("width", "height"), "seeds": ("seed",)}  # by a flag
IGNORED_KEYS = {"Version", "Model hash", "VAE hash", "Lora hashes", "Size", "Schedule type", "Model", "RNG", "Prompt"}
KNOWN_KEYS = {"Emphasis", "Negative prompt", "Steps", "Sampler", "CFG scale", "Seed", "Denoising strength", "Clip skip"}


@dataclass(frozen=True)
class ImageSettings:
    """values: fields of GenerateOptions by name. notes: what is not repeated, a line each. metadata: if it is ours."""

    program: str
    values: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    metadata: ImageMetadata | None = None


def options_from_image(options: GenerateOptions) -> tuple[GenerateOptions, ImageSettings]:
    """The image's settings under the typed flags. Raises InputError, naming the flag that would help."""
    assert options.params_from is not None
    where = f"--params-from {options.params_from}"
    typed = options.model_fields_set
    found = read_image_settings(options.params_from, typed)
    implied = typed | {other for name in typed for other in IMPLIED_FIELDS.get(name, ())}
    values = {name: value for name, value in found.values.items() if name not in implied}
    if "scheduler" in values:
        values["scheduler"] = known_scheduler(values["scheduler"], found.program, where)
    try:
        return GenerateOptions.model_validate(values | {name: getattr(options, name) for name in typed}), found
    except ValidationError as error:
        detail = error.errors()[0]
        name = ".".join(map(str, detail["loc"])) or "a setting"
        raise InputError(f"{name} is not allowed here: {detail['msg']}", where=where) from None


def read_image_settings(path: Path, typed: set[str]) -> ImageSettings:
    """The settings of an image, ours first. typed: fields given on the command line. Raises InputError."""
    where = f"--params-from {path}"
    texts = metadata.read_image_texts(path, where)
    if metadata.KEY in texts:
        info = metadata.parse_metadata(texts[metadata.KEY], where)
        notes = tuple(  # pixels may differ in the last bits for it
            f"it was made with {name} {info.versions[name]}, this is {version(name)}"
            for name in ("torch", "diffusers")
            if info.versions.get(name, version(name)) != version(name)
        )
        return ImageSettings(OURS, options_from_metadata(info, typed, where), notes, info)
    found = read_foreign(texts, where)
    if found is None:
        programs = f"{OURS}, A1111, InvokeAI, Fooocus, ComfyUI, NovelAI or kohya's gen_img"
        raise InputError("has no settings", where=where, allowed=f"an image made by {programs}")
    prompt = (prompts.escape_template(found.values.get("prompt", "")),)
    return replace(found, values={**found.values, "prompt": prompt})


# ---- our own images


def options_from_metadata(info: ImageMetadata, typed: set[str], where: str) -> dict[str, Any]:
    """Our metadata as options. Raises InputError for weights or input images that are not here."""
    # a style that is typed is applied to the prompt that was typed then
    prompt = info.unstyled if info.unstyled and "style" in typed else info.prompt
    same = ("negative_prompt", "seed", "steps", "guidance_scale", "width", "height", "dtype", "weighting")
    same += ("guidance_rescale", "guidance_stop")
    usual_batch = micro_batch_for(info.device.partition(" ")[0])
    values = {name: getattr(info, name) for name in same} | {
        "prompt": (prompts.escape_template(prompt),), "scheduler": info.sampler, "compile": info.compiled,
        "batch_size": None if info.micro_batch == usual_batch else info.micro_batch,
        **find_input_images(info, typed, where),
    }  # fmt: skip
    return values if {"model", "lora"} & typed else values | find_weights(info, where)


def find_input_images(info: ImageMetadata, typed: set[str], where: str) -> dict[str, Any]:
    """The input images, by name and content, and how they were used. Raises InputError."""
    if not info.inputs:
        return {}
    values: dict[str, Any] = {"strength": info.strength, "control_scale": info.control_scale}
    values |= {"polarity": info.polarity} if info.polarity else {}
    for used in info.inputs:
        name, path = FLAG_OF_ROLE[used.role], Path(used.name)
        if name not in typed and not (path.is_file() and file_sha256(path) == used.sha256):
            what = f"was made with {printable(used.name)} ({used.role}, sha256 {used.sha256[:10]}), which is not here"
            raise InputError(what, where=where, fix=f"Name it with --{name.replace('_', '-')}.")
        values[name] = path
    if info.controlnet and "controlnet" not in typed:
        raise InputError("was made with a ControlNet", where=where, fix="Name its folder with --controlnet.")
    return values


def find_weights(info: ImageMetadata, where: str) -> dict[str, Any]:
    """The model and LoRAs, by the names that they have on this machine. Raises InputError."""
    files = [find_lora_file(lora, where) for lora in info.loras]
    values: dict[str, Any] = {
        "lora": tuple(f"{file}:{lora.weight!r}" for file, lora in zip(files, info.loras, strict=True))
    }
    if any(file.parent.name == "export" and (file.parent.parent / "config.yaml").is_file() for file in files):
        return values  # the base follows from the run
    name = info.model.name
    if (RUNS / name / "config.yaml").is_file():
        return values | {"model": str(RUNS / name)}
    if name == POCKET or "/" in name or Path(name).exists():
        return values | {"model": name}
    raise InputError(f"was made with the model {name!r}, which is not here", where=where, fix="Name it with --model.")


def find_lora_file(lora: LoraUsed, where: str) -> Path:
    """The file of a LoRA by its name and content. Raises InputError."""
    run_lora = RUNS / Path(lora.name).stem / "export" / "lora.safetensors"
    files = [path for path in (run_lora, Path(lora.name), LORAS / lora.name) if path.is_file()]
    same = next((path for path in files if file_sha256(path) == lora.sha256), None)
    if same is not None:
        return same
    missing = f"was made with the LoRA {lora.name!r}, which is not here"
    what = f"{printable(files[0])} has changed since" if files else missing
    raise InputError(what, where=where, fix=f"Name it with --lora FILE:{lora.weight:g}.")


def known_scheduler(name: str, program: str, where: str) -> str | None:
    """A sampler's name as --scheduler takes it; None, the model's own, for one of ours without such a name."""
    try:
        return schedulers.canonical_name(name)
    except InputError as error:
        if program == OURS:
            return None
        what = f"was made with the sampler {name!r}, which is not supported"
        raise InputError(what, where=where, allowed=error.allowed, fix="Choose one with --scheduler.") from None


def compare_with_original(done: SavedImage, original: ImageMetadata, path: Path) -> str:
    """Whether the image is the same bit for bit, or by how much it is not and why."""
    before, after = (np.asarray(open_image(file), dtype=np.float64) for file in (path, done.path))
    now = done.metadata
    if before.shape != after.shape:
        return f"the image is {now.width} x {now.height} now, it was {original.width} x {original.height}"
    if np.array_equal(before, after):
        return "the same image, bit for bit"
    fields = [name for name in type(now).model_fields if name not in IRRELEVANT_FIELDS]
    changed = [name.replace("_", " ") for name in fields if getattr(now, name) != getattr(original, name)]
    reasons = ", ".join(changed) or "nothing that is in the metadata"
    return f"a different image: {psnr(before, after):.1f} dB from the original; changed since: {reasons}"


def psnr(one: np.ndarray, two: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two images of values 0 to 255."""
    error = float(np.mean((one - two) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


# ---- other programs' images


def read_foreign(texts: Mapping[str, str], where: str) -> ImageSettings | None:
    """The settings in an image's texts, or None if no known program wrote them. Raises InputError."""
    a1111 = texts.get(metadata.A1111_KEY, "")
    if a1111 and not a1111.lstrip().startswith("{"):
        found = parse_a1111(a1111, where)
    elif "prompt" in texts and "workflow" not in texts and not texts["prompt"].lstrip().startswith("{"):
        words = {"prompt": texts["prompt"], "negative_prompt": texts.get("negative-prompt", "")}
        words |= {"scheduler": clean_sampler_name(texts.get("sampler", ""))}
        numbers = parse_numbers(texts, where, steps="steps", guidance_scale="scale", seed="seed")
        found = ImageSettings("kohya's gen_img", words | numbers)
    else:
        found = parse_others(texts, where)
    return found and replace(found, values={name: value for name, value in found.values.items() if value is not None})


def parse_a1111(text: str, where: str) -> ImageSettings:
    found = metadata.parse_parameters(text)
    if "Steps" not in found:
        raise InputError("its text has no settings that A1111 would read", where=where)
    width, _, height = found.get("Size", "").partition("x")
    keys = {"steps": "Steps", "guidance_scale": "CFG scale", "seed": "Seed", "strength": "Denoising strength"}
    sampler = f"{found.get('Sampler', '')} {found.get('Schedule type', '').removesuffix('Automatic')}"
    values = {
        **parse_numbers({**found, "width": width, "height": height}, where, **keys, width="width", height="height"),
        "prompt": found.get("Prompt", ""), "negative_prompt": found.get("Negative prompt", ""),
        "scheduler": clean_sampler_name(sampler),
    }  # fmt: skip
    return ImageSettings("A1111", values, tuple(unsupported_settings(found)))


def unsupported_settings(found: Mapping[str, str]) -> Iterator[str]:
    """What decided A1111's pixels and cannot be repeated, a line each."""
    if "Denoising strength" in found:
        yield "it was made from an initial image: name it with --init-image"
    if found.get("RNG") != "CPU":
        yield "its noise came from a GPU, ours comes from the CPU: expect a different image with the same settings"
    if "Model" in found:
        yield f"it was made with the model {found['Model']!r} ({found.get('Model hash', 'no hash')})"
    if found.get("Clip skip", "1") != "1":
        yield f"Clip skip {found['Clip skip']} is not supported: the text encoder's last layer is used"
    weighted = any(text_encoding.is_weighted(found.get(key, "")) for key in ("Prompt", "Negative prompt"))
    if weighted and found.get("Emphasis", "Original") != "No norm":
        yield "its weights were rescaled to the mean (Emphasis: Original); ours are not (No norm)"
    others = [f"{key}: {value}" for key, value in found.items() if key not in IGNORED_KEYS | KNOWN_KEYS]
    if others:
        yield f"not supported: {', '.join(others)}"


def parse_others(texts: Mapping[str, str], where: str) -> ImageSettings | None:
    """InvokeAI, Fooocus, ComfyUI and NovelAI, read by sd-parsers. Raises InputError for what it cannot read."""
    from sd_parsers import parsers
    from sd_parsers.exceptions import ParserError

    for parser in (parsers.InvokeAIParser, parsers.FooocusParser, parsers.ComfyUIParser, parsers.NovelAIParser):
        try:
            info = parser().parse(dict(texts))
        except (ParserError, AttributeError, TypeError, KeyError, ValueError):
            continue
        if info.samplers:
            return from_sd_parsers(info, where)
    if texts.keys() & {"invokeai_metadata", "sd-metadata", "Dream", metadata.A1111_KEY, "workflow", "prompt"}:
        raise InputError("has settings that cannot be read", where=where, fix="Give its prompt and settings as flags.")
    return None


def from_sd_parsers(info: Any, where: str) -> ImageSettings:
    """The last sampler's settings, which made the image."""
    sampler, more, program = info.samplers[-1], info.metadata, info.generator.value
    sides = re.findall(r"\d+", str(more.get("resolution", "")))  # Fooocus
    size = dict(zip(("width", "height"), sides, strict=False)) if len(sides) == 2 else {}
    given = {**more, **sampler.parameters, **size}
    keys = {name: name for name in ("steps", "seed", "width", "height", "strength")}
    keys |= {"guidance_scale": "cfg_scale", "guidance_rescale": "cfg_rescale_multiplier"}
    values = {
        **parse_numbers(given, where, **keys),
        "prompt": ", ".join(map(str, sampler.prompts)),
        "negative_prompt": ", ".join(map(str, sampler.negative_prompts)),
        "scheduler": clean_sampler_name(f"{re.sub(r'_k$', '_karras', str(sampler.name))} {given.get('scheduler', '')}"),
        "weighting": "compel" if program == "InvokeAI" else None,
    }
    notes = [f"it was made with the model {sampler.model.name!r}"] if sampler.model else []
    loras = [lora.get("model", lora) if isinstance(lora, Mapping) else lora for lora in more.get("loras") or ()]
    notes += [f"its LoRA is not loaded: {lora}" for lora in loras]
    notes += [f"{program}'s other settings and nodes are not supported"]
    return ImageSettings(program, values, tuple(notes))


def parse_numbers(found: Mapping[str, Any], where: str, **keys: str) -> dict[str, Any]:
    """Fields of GenerateOptions from these keys, None where a key is not there. Raises InputError."""
    values: dict[str, Any] = {}
    for field, key in keys.items():
        kind = float if field in ("guidance_scale", "guidance_rescale", "strength") else int
        try:
            values[field] = None if found.get(key) in (None, "") else kind(found[key])
        except (ValueError, TypeError):
            raise InputError(f"its {key} {found[key]!r} is not a number", where=where) from None
    return values


def clean_sampler_name(name: str) -> str | None:
    """Another program's name of a sampler, without suffixes that mean nothing here."""
    name = re.sub(r"[\s_]+(normal|automatic|simple)$", "", name.strip(), flags=re.IGNORECASE)
    return name.replace("_gpu", "") or None
