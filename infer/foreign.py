"""What other programs wrote into their pictures, in this toolkit's words; and what of it cannot be repeated here.

Sources of the layouts: AUTOMATIC1111/stable-diffusion-webui, modules/infotext_utils.py and modules/images.py (PNG text
`parameters`, EXIF UserComment in JPEG and WebP); invoke-ai/InvokeAI (`invokeai_metadata`); lllyasviel/Fooocus,
modules/meta_parser.py (`parameters` as JSON); kohya-ss/sd-scripts, gen_img.py (a text for each field).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from data.errors import InputError
from infer import metadata, weighting

UNICODE = b"UNICODE\0"
QUIET = {"Version", "Model hash", "VAE hash", "Lora hashes", "Size", "Schedule type", "Model", "RNG", "Prompt"}
READ = {"Emphasis", "Negative prompt", "Steps", "Sampler", "CFG scale", "Seed", "Denoising strength", "Clip skip"}


@dataclass(frozen=True)
class Found:
    """values: fields of GenerateOptions by name. said: what the picture had that is not repeated, a line each."""

    program: str
    values: Mapping[str, Any]
    said: tuple[str, ...] = ()


def texts_of(path: Path) -> dict[str, str]:
    """Every text of a PNG, JPEG or WebP picture; an EXIF UserComment under A1111's key. Raises InputError."""
    try:
        with Image.open(path, formats=["PNG", "JPEG", "WEBP"]) as picture:
            picture.load()
            found = {key: str(value) for key, value in getattr(picture, "text", {}).items()}
            comment = picture.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"is not a readable picture ({error})", where=f"--params-from {path}") from None
    return found | ({metadata.A1111_KEY: user_comment(comment)} if isinstance(comment, bytes) else {})


def user_comment(content: bytes) -> str:
    """The text of an EXIF UserComment: eight bytes name its encoding; A1111 writes big-endian UTF-16 (piexif)."""
    body = content[len(UNICODE) :]
    if not content.startswith(UNICODE):
        return body.decode("utf-8", "replace")
    little = body[1::2].count(0) > body[0::2].count(0)  # no byte order mark is written
    return body.decode("utf-16-le" if little else "utf-16-be", "replace")


def read(texts: Mapping[str, str], where: str) -> Found | None:
    """The settings in a picture's texts, or None if no known program wrote them. Raises InputError."""
    for key, reader in READERS:
        if key in texts:
            found = reader(texts, where)
            return Found(found.program, {name: v for name, v in found.values.items() if v is not None}, found.said)
    return None


# ---- A1111


def of_a1111(texts: Mapping[str, str], where: str) -> Found:
    """A1111's text; Fooocus writes JSON under the same key."""
    text = texts[metadata.A1111_KEY]
    if text.lstrip().startswith("{"):
        return of_fooocus(objects(text, where), where)
    found = metadata.parse_parameters(text)
    if "Steps" not in found:
        raise InputError("its text has no settings that A1111 would read", where=where)
    schedule = found.get("Schedule type", "").removesuffix("Automatic")
    width, _, height = found.get("Size", "").partition("x")
    values = {
        "prompt": found.get("Prompt", ""),
        "negative_prompt": found.get("Negative prompt", ""),
        "steps": number(found, "Steps", int, where),
        "guidance_scale": number(found, "CFG scale", float, where),
        "seed": number(found, "Seed", int, where),
        "scheduler": scheduler(f"{found.get('Sampler', '')} {schedule}"),
        "width": number({"Size": width}, "Size", int, where),
        "height": number({"Size": height}, "Size", int, where),
        "strength": number(found, "Denoising strength", float, where),
    }
    return Found("A1111", values, tuple(not_repeated(found)))


def not_repeated(found: Mapping[str, str]) -> list[str]:
    """What decided A1111's pixels and cannot be repeated, a line each."""
    said = ["it was drawn over a picture: name it with --init-image"] if "Denoising strength" in found else []
    if found.get("RNG") != "CPU":
        said.append("its noise came from a GPU, ours comes from the CPU: expect another picture of the same settings")
    if "Model" in found:
        said.append(f"it was drawn with the model {found['Model']!r} ({found.get('Model hash', 'no hash')})")
    if found.get("Clip skip", "1") != "1":
        said.append(f"Clip skip {found['Clip skip']} is not repeated: the text encoder's last layer is used")
    weighted = any(weighting.is_weighted(found.get(key, "")) for key in ("Prompt", "Negative prompt"))
    if weighted and found.get("Emphasis", "Original") != "No norm":
        said.append("its weights were rescaled to the mean (Emphasis: Original); ours are not (No norm)")
    others = [f"{key}: {value}" for key, value in found.items() if key not in QUIET | READ]
    return said + ([f"not repeated: {', '.join(others)}"] if others else [])


# ---- others


def of_invoke(texts: Mapping[str, str], where: str) -> Found:
    """InvokeAI's flat JSON; its weights are compel's grammar, its noise comes from the CPU unless it says otherwise."""
    found = objects(texts["invokeai_metadata"], where)
    values = {
        "prompt": found.get("positive_prompt", ""),
        "negative_prompt": found.get("negative_prompt") or "",
        "steps": number(found, "steps", int, where),
        "guidance_scale": number(found, "cfg_scale", float, where),
        "guidance_rescale": number(found, "cfg_rescale_multiplier", float, where),
        "seed": number(found, "seed", int, where),
        "scheduler": scheduler(re.sub(r"_k$", "_karras", str(found.get("scheduler", "")))),
        "width": number(found, "width", int, where),
        "height": number(found, "height", int, where),
        "strength": number(found, "strength", float, where),
        "weighting": "compel",
    }
    model = found.get("model") or {}
    said = [f"it was drawn with the model {model.get('name') or model.get('model_name')!r}"] if model else []
    said += [f"its LoRA is not loaded: {lora.get('model', lora)}" for lora in found.get("loras") or ()]
    return Found("InvokeAI", values, tuple(said))


def of_fooocus(found: Mapping[str, Any], where: str) -> Found:
    """Fooocus' own scheme: one JSON object."""
    sides = re.findall(r"\d+", str(found.get("resolution", "")))
    values = {
        "prompt": found.get("prompt", ""),
        "negative_prompt": found.get("negative_prompt", ""),
        "steps": number(found, "steps", int, where),
        "guidance_scale": number(found, "guidance_scale", float, where),
        "seed": number(found, "seed", int, where),
        "scheduler": scheduler(f"{found.get('sampler', '')} {found.get('scheduler', '')}"),
        "width": int(sides[0]) if len(sides) == 2 else None,
        "height": int(sides[1]) if len(sides) == 2 else None,
    }
    return Found("Fooocus", values, ("its styles, sharpness and SDXL model are not repeated",))


def of_kohya(texts: Mapping[str, str], where: str) -> Found:
    """kohya's gen_img.py: a text for each field."""
    values = {
        "prompt": texts["prompt"],
        "negative_prompt": texts.get("negative-prompt", ""),
        "steps": number(texts, "steps", int, where),
        "guidance_scale": number(texts, "scale", float, where),
        "seed": number(texts, "seed", int, where),
        "scheduler": scheduler(texts.get("sampler", "")),
    }
    return Found("kohya's gen_img", values)


def of_comfy(texts: Mapping[str, str], where: str) -> Found:
    raise InputError("ComfyUI's graph is not read", where=where, fix="Type its prompt and settings as flags.")


def not_comfy(texts: Mapping[str, str], where: str) -> Found:
    return of_comfy(texts, where) if texts["prompt"].lstrip().startswith("{") else of_kohya(texts, where)


Reader = Callable[[Mapping[str, str], str], Found]
READERS: tuple[tuple[str, Reader], ...] = (
    ("invokeai_metadata", of_invoke),
    (metadata.A1111_KEY, of_a1111),
    ("workflow", of_comfy),
    ("prompt", not_comfy),
)


# ---- values


def objects(text: str, where: str) -> dict[str, Any]:
    """A JSON object. Raises InputError."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"holds damaged JSON ({error})", where=where) from None
    if not isinstance(found, dict):
        raise InputError("holds JSON that is no object", where=where)
    return found


def number(found: Mapping[str, Any], key: str, kind: Callable[[Any], Any], where: str) -> Any:
    """A value as a number, None if it is not there. Raises InputError."""
    if found.get(key) in (None, ""):
        return None
    try:
        return kind(found[key])
    except (ValueError, TypeError):
        raise InputError(f"its {key} {found[key]!r} is no number", where=where) from None


def scheduler(name: str) -> str | None:
    """A sampler as another program calls it, without what says nothing; replay.py asks whether it is known here."""
    name = re.sub(r"[\s_]+(normal|automatic)$", "", name.strip(), flags=re.IGNORECASE)
    return name.replace("_gpu", "") or None
