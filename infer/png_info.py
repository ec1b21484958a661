"""What other programs wrote into their pictures, in this toolkit's words; and what of it cannot be repeated here.

Sources of the layouts: AUTOMATIC1111/stable-diffusion-webui, modules/infotext_utils.py and modules/images.py (PNG text
`parameters`, EXIF UserComment in JPEG and WebP); invoke-ai/InvokeAI (`invokeai_metadata`); lllyasviel/Fooocus,
modules/meta_parser.py (`parameters` as JSON); kohya-ss/sd-scripts, gen_img.py (a text for each field).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image
from pydantic import ValidationError

from data.atomic_io import file_sha256
from data.errors import InputError, printable
from infer import metadata, schedulers, templates, text_encoding
from infer.config import GenerateOptions
from infer.metadata import ImageMetadata, LoraUsed
from infer.pipeline import GPU_MICRO_BATCH, MICRO_BATCH

if TYPE_CHECKING:
    from infer.output import SavedImage

UNICODE = b"UNICODE\0"
IGNORED_KEYS = {"Version", "Model hash", "VAE hash", "Lora hashes", "Size", "Schedule type", "Model", "RNG", "Prompt"}
KNOWN_KEYS = {"Emphasis", "Negative prompt", "Steps", "Sampler", "CFG scale", "Seed", "Denoising strength", "Clip skip"}


@dataclass(frozen=True)
class ForeignSettings:
    """values: fields of GenerateOptions by name. said: what the picture had that is not repeated, a line each."""

    program: str
    values: Mapping[str, Any]
    said: tuple[str, ...] = ()


def read_image_texts(path: Path) -> dict[str, str]:
    """Every text of a PNG, JPEG or WebP picture; an EXIF UserComment under A1111's key. Raises InputError."""
    try:
        with Image.open(path, formats=["PNG", "JPEG", "WEBP"]) as picture:
            picture.load()
            found = {key: str(value) for key, value in getattr(picture, "text", {}).items()}
            comment = picture.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"is not a readable picture ({error})", where=f"--params-from {path}") from None
    return found | ({metadata.A1111_KEY: decode_user_comment(comment)} if isinstance(comment, bytes) else {})


def decode_user_comment(content: bytes) -> str:
    """The text of an EXIF UserComment: eight bytes name its encoding; A1111 writes big-endian UTF-16 (piexif)."""
    body = content[len(UNICODE) :]
    if not content.startswith(UNICODE):
        return body.decode("utf-8", "replace")
    little = body[1::2].count(0) > body[0::2].count(0)  # no byte order mark is written
    return body.decode("utf-16-le" if little else "utf-16-be", "replace")


def read_foreign(texts: Mapping[str, str], where: str) -> ForeignSettings | None:
    """The settings in a picture's texts, or None if no known program wrote them. Raises InputError."""
    for key, reader in FOREIGN_PARSERS:
        if key in texts:
            found = reader(texts, where)
            return ForeignSettings(
                found.program, {name: v for name, v in found.values.items() if v is not None}, found.said
            )
    return None


# ---- A1111


def parse_a1111(texts: Mapping[str, str], where: str) -> ForeignSettings:
    """A1111's text; Fooocus writes JSON under the same key."""
    text = texts[metadata.A1111_KEY]
    if text.lstrip().startswith("{"):
        return parse_fooocus(parse_json_object(text, where), where)
    found = metadata.parse_parameters(text)
    if "Steps" not in found:
        raise InputError("its text has no settings that A1111 would read", where=where)
    schedule = found.get("Schedule type", "").removesuffix("Automatic")
    width, _, height = found.get("Size", "").partition("x")
    values = {
        "prompt": found.get("Prompt", ""),
        "negative_prompt": found.get("Negative prompt", ""),
        "steps": parse_number(found, "Steps", int, where),
        "guidance_scale": parse_number(found, "CFG scale", float, where),
        "seed": parse_number(found, "Seed", int, where),
        "scheduler": clean_sampler_name(f"{found.get('Sampler', '')} {schedule}"),
        "width": parse_number({"Size": width}, "Size", int, where),
        "height": parse_number({"Size": height}, "Size", int, where),
        "strength": parse_number(found, "Denoising strength", float, where),
    }
    return ForeignSettings("A1111", values, tuple(unsupported_settings(found)))


def unsupported_settings(found: Mapping[str, str]) -> list[str]:
    """What decided A1111's pixels and cannot be repeated, a line each."""
    said = ["it was drawn over a picture: name it with --init-image"] if "Denoising strength" in found else []
    if found.get("RNG") != "CPU":
        said.append("its noise came from a GPU, ours comes from the CPU: expect another picture of the same settings")
    if "Model" in found:
        said.append(f"it was drawn with the model {found['Model']!r} ({found.get('Model hash', 'no hash')})")
    if found.get("Clip skip", "1") != "1":
        said.append(f"Clip skip {found['Clip skip']} is not repeated: the text encoder's last layer is used")
    weighted = any(text_encoding.is_weighted(found.get(key, "")) for key in ("Prompt", "Negative prompt"))
    if weighted and found.get("Emphasis", "Original") != "No norm":
        said.append("its weights were rescaled to the mean (Emphasis: Original); ours are not (No norm)")
    others = [f"{key}: {value}" for key, value in found.items() if key not in IGNORED_KEYS | KNOWN_KEYS]
    return said + ([f"not repeated: {', '.join(others)}"] if others else [])


# ---- others


def parse_invokeai(texts: Mapping[str, str], where: str) -> ForeignSettings:
    """InvokeAI's flat JSON; its weights are compel's grammar, its noise comes from the CPU unless it says otherwise."""
    found = parse_json_object(texts["invokeai_metadata"], where)
    values = {
        "prompt": found.get("positive_prompt", ""),
        "negative_prompt": found.get("negative_prompt") or "",
        "steps": parse_number(found, "steps", int, where),
        "guidance_scale": parse_number(found, "cfg_scale", float, where),
        "guidance_rescale": parse_number(found, "cfg_rescale_multiplier", float, where),
        "seed": parse_number(found, "seed", int, where),
        "scheduler": clean_sampler_name(re.sub(r"_k$", "_karras", str(found.get("scheduler", "")))),
        "width": parse_number(found, "width", int, where),
        "height": parse_number(found, "height", int, where),
        "strength": parse_number(found, "strength", float, where),
        "weighting": "compel",
    }
    model = found.get("model") or {}
    said = [f"it was drawn with the model {model.get('name') or model.get('model_name')!r}"] if model else []
    said += [f"its LoRA is not loaded: {lora.get('model', lora)}" for lora in found.get("loras") or ()]
    return ForeignSettings("InvokeAI", values, tuple(said))


def parse_fooocus(found: Mapping[str, Any], where: str) -> ForeignSettings:
    """Fooocus' own scheme: one JSON object."""
    sides = re.findall(r"\d+", str(found.get("resolution", "")))
    values = {
        "prompt": found.get("prompt", ""),
        "negative_prompt": found.get("negative_prompt", ""),
        "steps": parse_number(found, "steps", int, where),
        "guidance_scale": parse_number(found, "guidance_scale", float, where),
        "seed": parse_number(found, "seed", int, where),
        "scheduler": clean_sampler_name(f"{found.get('sampler', '')} {found.get('scheduler', '')}"),
        "width": int(sides[0]) if len(sides) == 2 else None,
        "height": int(sides[1]) if len(sides) == 2 else None,
    }
    return ForeignSettings("Fooocus", values, ("its styles, sharpness and SDXL model are not repeated",))


def parse_kohya(texts: Mapping[str, str], where: str) -> ForeignSettings:
    """kohya's gen_img.py: a text for each field."""
    values = {
        "prompt": texts["prompt"],
        "negative_prompt": texts.get("negative-prompt", ""),
        "steps": parse_number(texts, "steps", int, where),
        "guidance_scale": parse_number(texts, "scale", float, where),
        "seed": parse_number(texts, "seed", int, where),
        "scheduler": clean_sampler_name(texts.get("sampler", "")),
    }
    return ForeignSettings("kohya's gen_img", values)


def reject_comfyui(texts: Mapping[str, str], where: str) -> ForeignSettings:
    raise InputError("ComfyUI's graph is not read", where=where, fix="Type its prompt and settings as flags.")


def parse_prompt_text(texts: Mapping[str, str], where: str) -> ForeignSettings:
    return reject_comfyui(texts, where) if texts["prompt"].lstrip().startswith("{") else parse_kohya(texts, where)


ForeignParser = Callable[[Mapping[str, str], str], ForeignSettings]
FOREIGN_PARSERS: tuple[tuple[str, ForeignParser], ...] = (
    ("invokeai_metadata", parse_invokeai),
    (metadata.A1111_KEY, parse_a1111),
    ("workflow", reject_comfyui),
    ("prompt", parse_prompt_text),
)


# ---- values


def parse_json_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object. Raises InputError."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"holds damaged JSON ({error})", where=where) from None
    if not isinstance(found, dict):
        raise InputError("holds JSON that is no object", where=where)
    return found


def parse_number(found: Mapping[str, Any], key: str, kind: Callable[[Any], Any], where: str) -> Any:
    """A value as a number, None if it is not there. Raises InputError."""
    if found.get(key) in (None, ""):
        return None
    try:
        return kind(found[key])
    except (ValueError, TypeError):
        raise InputError(f"its {key} {found[key]!r} is no number", where=where) from None


def clean_sampler_name(name: str) -> str | None:
    """A sampler as another program calls it, without what says nothing; replay.py asks whether it is known here."""
    name = re.sub(r"[\s_]+(normal|automatic)$", "", name.strip(), flags=re.IGNORECASE)
    return name.replace("_gpu", "") or None


FLAG_OF_ROLE = {"init": "init_image", "mask": "mask", "scribble": "scribble"}
IRRELEVANT_FIELDS = {"format", "template", "verdict", "style", "unstyled"}
RUNS, LORAS_FOLDER = Path("runs"), Path("loras")
IMPLIED_FIELDS = {  # a flag that was typed also answers for these
    "from_file": ("prompt",),
    "aspect": ("width", "height"),
    "seeds": ("seed",),
}


@dataclass(frozen=True)
class ImageSettings:
    """program: that drew it. values: fields of GenerateOptions. said: what is not repeated. recipe: if it is ours."""

    program: str
    values: Mapping[str, Any]
    said: tuple[str, ...] = ()
    recipe: ImageMetadata | None = None


def options_from_image(options: GenerateOptions) -> tuple[GenerateOptions, ImageSettings]:
    """The picture's settings with the typed flags over them. Raises InputError, naming the flag that would answer."""
    assert options.params_from is not None
    where = f"--params-from {options.params_from}"
    typed = options.model_fields_set
    found = read_image_settings(options.params_from, typed)
    answered = typed | {other for name in typed for other in IMPLIED_FIELDS.get(name, ())}
    values = {name: value for name, value in found.values.items() if name not in answered}
    if "scheduler" in values:
        values["scheduler"] = known_scheduler(values["scheduler"], found.program, where)
    merged = {**values, **{name: getattr(options, name) for name in typed}}
    try:
        return GenerateOptions.model_validate(merged), found
    except ValidationError as error:
        detail = error.errors()[0]
        name = ".".join(map(str, detail["loc"])) or "its settings"
        raise InputError(f"{name} is not allowed here: {detail['msg']}", where=where) from None


def read_image_settings(path: Path, typed: set[str]) -> ImageSettings:
    """The settings of a picture, ours first. typed: fields that the person answers for. Raises InputError."""
    where = f"--params-from {path}"
    texts = read_image_texts(path)
    if metadata.KEY in texts:
        recipe = metadata.parse_metadata(texts[metadata.KEY], where)
        return ImageSettings(
            "this toolkit", options_from_metadata(recipe, typed, where), tuple(version_differences(recipe)), recipe
        )
    found = read_foreign(texts, where)
    if found is None:
        programs = "this toolkit, A1111, InvokeAI, Fooocus or kohya's gen_img"
        raise InputError("holds no settings", where=where, allowed=f"a picture by {programs}")
    values = dict(found.values)
    values["prompt"] = (templates.escape_template(values["prompt"]),)
    return ImageSettings(found.program, values, found.said)


def options_from_metadata(recipe: ImageMetadata, typed: set[str], where: str) -> dict[str, Any]:
    """One of our recipes as options. Raises InputError for weights that are not here."""
    values = {
        # a style that is typed is laid around the words that were typed then
        "prompt": (
            templates.escape_template(recipe.unstyled if recipe.unstyled and "style" in typed else recipe.prompt),
        ),
        "negative_prompt": recipe.negative_prompt,
        "seed": recipe.seed,
        "steps": recipe.steps,
        "guidance_scale": recipe.guidance_scale,
        "scheduler": recipe.sampler,
        "width": recipe.width,
        "height": recipe.height,
        "dtype": recipe.dtype,
        "weighting": recipe.weighting,
        "guidance_rescale": recipe.guidance_rescale,
        "guidance_stop": recipe.guidance_stop,
        "compile": recipe.compiled,
        "batch_size": batch_size_of(recipe),
        **find_input_images(recipe, typed, where),
    }
    if not {"model", "lora"} & typed:
        return values | find_weights(recipe, where)
    return values


def batch_size_of(recipe: ImageMetadata) -> int | None:
    """Pictures at a time, where it was not what is usual on the kind of device that drew it."""
    usual = MICRO_BATCH.get(recipe.device.partition(" ")[0], GPU_MICRO_BATCH)
    return None if recipe.micro_batch == usual else recipe.micro_batch


def find_input_images(recipe: ImageMetadata, typed: set[str], where: str) -> dict[str, Any]:
    """The pictures that went in, by name and content, and how they were used. Raises InputError."""
    if not recipe.inputs:
        return {}
    flags = {used.role: FLAG_OF_ROLE[used.role] for used in recipe.inputs}
    found: dict[str, Any] = {"strength": recipe.strength, "control_scale": recipe.control_scale}
    found |= {"polarity": recipe.polarity} if recipe.polarity else {}
    for used in recipe.inputs:
        same = Path(used.name).is_file() and file_sha256(Path(used.name)) == used.sha256
        if not same and flags[used.role] not in typed:
            flag = f"--{flags[used.role].replace('_', '-')}"
            what = f"was drawn with {printable(used.name)} ({used.role}, sha256 {used.sha256[:10]}), which is not here"
            raise InputError(what, where=where, fix=f"Name it with {flag}.")
        found[flags[used.role]] = Path(used.name)
    if recipe.controlnet and "controlnet" not in typed:
        raise InputError("was drawn along a ControlNet", where=where, fix="Name its folder with --controlnet.")
    return found


def find_weights(recipe: ImageMetadata, where: str) -> dict[str, Any]:
    """The model and LoRAs of a recipe, by the names that they have on this machine. Raises InputError."""
    files = [find_lora_file(lora, where) for lora in recipe.loras]
    found: dict[str, Any] = {"lora": tuple(f"{file}:{lora.weight!r}" for file, lora in files)}
    if not any(is_of_a_run(file) for file, _ in files):  # its base follows from the run
        found["model"] = find_model(recipe.model.name, where)
    return found


def find_model(name: str, where: str) -> str:
    """A model by the name in a recipe: as it is, or a run's. Raises InputError if it is neither here nor on a hub."""
    if (RUNS / name / "config.yaml").is_file():
        return str(RUNS / name)
    if name == "pocket" or "/" in name or Path(name).exists():
        return name
    raise InputError(f"was drawn with the model {name!r}, which is not here", where=where, fix="Name it with --model.")


def find_lora_file(lora: LoraUsed, where: str) -> tuple[Path, LoraUsed]:
    """The file of a LoRA by its name and content. Raises InputError."""
    places = [RUNS / Path(lora.name).stem / "export" / "lora.safetensors", Path(lora.name), LORAS_FOLDER / lora.name]
    there = [path for path in places if path.is_file()]
    same = [path for path in there if file_sha256(path) == lora.sha256]
    if same:
        return same[0], lora
    what = (
        f"{printable(there[0])} has changed since"
        if there
        else f"was drawn with the LoRA {lora.name!r}, which is not here"
    )
    raise InputError(what, where=where, fix=f"Name it with --lora FILE:{lora.weight:g}.")


def is_of_a_run(file: Path) -> bool:
    return file.parent.name == "export" and (file.parent.parent / "config.yaml").is_file()


def known_scheduler(name: str, program: str, where: str) -> str | None:
    """A sampler's name as --scheduler takes it; None, the model's own, for one of ours that has no such name."""
    try:
        return schedulers.canonical_name(name)
    except InputError as error:
        if program == "this toolkit":
            return None
        what = f"was drawn with the sampler {name!r}, which is not known here"
        raise InputError(what, where=where, allowed=error.allowed, fix="Choose one with --scheduler.") from None


def version_differences(recipe: ImageMetadata) -> Iterator[str]:
    """What of this machine is not as it was; pixels may differ in the last bits for it."""
    from importlib.metadata import version

    for name in ("torch", "diffusers"):
        if name in recipe.versions and recipe.versions[name] != version(name):
            yield f"it was drawn with {name} {recipe.versions[name]}, this is {version(name)}"


def compare_with_original(done: SavedImage, was: ImageMetadata, options: GenerateOptions) -> str:
    """Whether the picture came out as it was, in a line: equal bit for bit, or by how much not and why."""
    assert options.params_from is not None
    before, after = read_pixels(options.params_from), read_pixels(done.path)
    if before.shape != after.shape:
        return f"the picture is {done.recipe.width} x {done.recipe.height} now, it was {was.width} x {was.height}"
    if np.array_equal(before, after):
        return "the same picture, bit for bit"
    reasons = ", ".join(changed_fields(done.recipe, was)) or "nothing that was written down"
    return f"another picture: {psnr(before, after):.1f} dB from the one it was; changed since: {reasons}"


def changed_fields(now: ImageMetadata, was: ImageMetadata) -> Iterator[str]:
    """The names of the fields that decide pixels and are no longer the same."""
    for name in type(now).model_fields:
        if name not in IRRELEVANT_FIELDS and getattr(now, name) != getattr(was, name):
            yield name.replace("_", " ")


def read_pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.float64)


def psnr(one: np.ndarray, two: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two pictures of values 0 to 255."""
    error = float(np.mean((one - two) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf
