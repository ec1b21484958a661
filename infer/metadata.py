"""What a PNG tells about how it was made: A1111's `parameters` text, and one JSON key `atelier` with everything.

Source of the text layout: AUTOMATIC1111/stable-diffusion-webui, modules/processing.py (create_infotext) and
modules/infotext_utils.py. Neither time nor place is written, so the same picture is the same file.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from PIL import Image, PngImagePlugin
from pydantic import BaseModel, ConfigDict

from data import images
from data.atomic_io import write_atomic
from data.errors import InputError
from infer import text_encoding

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

KEY = "atelier"
A1111_KEY = "parameters"
MODEL_HASH_LENGTH, LORA_HASH_LENGTH = 10, 12  # hex digits, as A1111 shortens SHA-256
MIN_SETTINGS = 3  # A1111 takes the last line as settings only from three pairs on
SETTING = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


class MetadataModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # a newer version's file is still readable


class ModelUsed(MetadataModel):
    """name: as typed. fingerprint: SHA-256 over weights and configs. file_hash: of a single-file model."""

    name: str
    fingerprint: str
    file_hash: str = ""
    tokenizer: str = ""


class LoraUsed(MetadataModel):
    """change: Frobenius norm of the weight change at this weight; share: of the norm of the weights it changes.

    prediction: the share of a predicted noise that it changes.
    """

    name: str
    sha256: str
    weight: float
    matched: int
    unused: tuple[str, ...] = ()
    change: float
    share: float
    prediction: float = 0.0


class TokensUsed(MetadataModel):
    """chunks: how often the text encoder reads `limit` tokens of it; lost: words that are not read."""

    count: int
    limit: int
    lost: str = ""
    chunks: int = 1


class InputUsed(MetadataModel):
    """A picture that went in: init, mask or scribble."""

    role: str
    name: str
    sha256: str


class ImageMetadata(MetadataModel):
    """Everything that decides a picture's pixels, and the verdict on them."""

    format: int = 1
    prompt: str
    template: str = ""  # that the prompt was made from, if it was
    negative_prompt: str = ""
    seed: int
    steps: int
    guidance_scale: float
    scheduler: str
    sampler: str
    scheduler_config: dict[str, Any]
    width: int
    height: int
    dtype: str
    device: str
    model: ModelUsed
    loras: tuple[LoraUsed, ...] = ()
    tokens: TokensUsed
    negative_tokens: TokensUsed
    micro_batch: int
    threads: int
    versions: dict[str, str]
    weighting: str = "none"  # the prompts' grammar
    guidance_rescale: float = 0.0
    guidance_stop: float = 1.0  # the share of the steps that were guided
    inputs: tuple[InputUsed, ...] = ()
    strength: float = 1.0  # of what was drawn over the picture that went in
    polarity: str = ""  # of a scribble's lines
    controlnet: str = ""  # SHA-256 of its weights
    control_scale: float = 1.0
    style: str = ""
    unstyled: str = ""  # the prompt before the style was laid around it
    compiled: bool = False  # by torch.compile, which rounds otherwise
    decoded_again: bool = False  # in fp32, because the numbers broke down
    safety: str = "off"  # the checker, if there was one
    concepts: tuple[str, ...] = ()  # that it flagged
    verdict: Literal["ok", "nan", "flagged"] = "ok"


def format_parameters(recipe: ImageMetadata) -> str:
    """The recipe as A1111 writes it: prompt with a tag for each LoRA, negative prompt, and a line of settings."""
    tags = "".join(f" <lora:{Path(lora.name).stem}:{lora.weight:g}>" for lora in recipe.loras)
    prompts = [f"{recipe.prompt}{tags}", f"Negative prompt: {recipe.negative_prompt}" if recipe.negative_prompt else ""]
    settings = ", ".join(f"{key}: {quote(value)}" for key, value in a1111_settings(recipe).items() if value != "")
    return "\n".join([*filter(None, prompts), settings])


def a1111_settings(recipe: ImageMetadata) -> dict[str, Any]:
    """The last line of A1111's text. Noise comes from the CPU: without `RNG: CPU` readers would take the GPU's."""
    sampler, karras = recipe.sampler.removesuffix(" Karras"), recipe.sampler.endswith(" Karras")
    loras = ", ".join(f"{Path(lora.name).stem}: {lora.sha256[:LORA_HASH_LENGTH]}" for lora in recipe.loras)
    return {
        "Steps": recipe.steps,
        "Sampler": sampler,
        "Schedule type": "Karras" if karras else "",
        "CFG scale": f"{recipe.guidance_scale:g}",
        "Seed": recipe.seed,
        "Size": f"{recipe.width}x{recipe.height}",
        "Model hash": (recipe.model.file_hash or recipe.model.fingerprint)[:MODEL_HASH_LENGTH],
        "Model": Path(recipe.model.name).stem if recipe.model.file_hash else recipe.model.name,
        "Denoising strength": f"{recipe.strength:g}" if recipe.inputs else "",
        "Emphasis": "No norm" if has_weights(recipe) else "",
        "RNG": "CPU",
        "Lora hashes": loras,
        "Version": f"atelier {recipe.versions.get('atelier', '')}".strip(),
    }


def has_weights(recipe: ImageMetadata) -> bool:
    """Whether A1111 would have to be told how weights are applied."""
    texts = (recipe.prompt, recipe.negative_prompt)
    return recipe.weighting == "a1111" and any(text_encoding.is_weighted(text) for text in texts)


def quote(value: Any) -> str:
    """A value that holds a comma, a colon or a line break stands in JSON quotes."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def encode_png(picture: Picture, recipe: ImageMetadata) -> bytes:
    """The picture as PNG bytes with both texts. What is not ASCII becomes iTXt (UTF-8): tEXt is read as Latin-1."""
    info = PngImagePlugin.PngInfo()
    text = format_parameters(recipe)
    (info.add_text if text.isascii() else info.add_itxt)(A1111_KEY, text)
    info.add_text(KEY, json.dumps(recipe.model_dump(mode="json")))  # JSON escapes: always ASCII
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def write_png(path: Path, picture: Picture, recipe: ImageMetadata) -> None:
    """Save a picture with its recipe, whole or not at all. Raises InputError (disk)."""
    write_atomic(path, encode_png(picture, recipe))


def read_metadata(path: Path) -> ImageMetadata:
    """The recipe of one of our pictures. Raises InputError if it is no PNG or has no recipe of ours."""
    text = read_png_texts(path).get(KEY)
    if text is None:
        raise InputError("holds no recipe of this toolkit", where=path, fix="read_parameters() reads A1111's text.")
    return parse_metadata(text, path)


def parse_metadata(text: str, where: object) -> ImageMetadata:
    """A recipe out of its JSON. Raises InputError."""
    try:
        return ImageMetadata.model_validate_json(text)
    except ValueError as error:
        raise InputError(f"holds a damaged recipe ({str(error).splitlines()[0]})", where=where) from None


def read_parameters(path: Path) -> dict[str, str]:
    """A1111's text of a PNG as {"Prompt": ..., "Negative prompt": ..., "Steps": ...}; {} if there is none."""
    return parse_parameters(read_png_texts(path).get(A1111_KEY, ""))


def read_png_texts(file: Path | IO[bytes], where: object = None) -> dict[str, str]:
    """Every text of a PNG, those that stand after the pixels included. `where` names a file that has no path.

    Raises InputError: no PNG, a damaged one, or one of more than MAX_PIXELS, since it is unpacked for its last texts.
    """
    at = file if where is None else where
    try:
        with images.no_pillow_warnings(), Image.open(file, formats=["PNG"]) as picture:
            if picture.width * picture.height > images.MAX_PIXELS:
                raise InputError("is too large a picture", where=at, allowed=f"{images.MAX_PIXELS} pixels")
            picture.load()
            return {key: str(value) for key, value in getattr(picture, "text", {}).items()}
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"is not a readable PNG ({error})", where=at) from None


def parse_parameters(text: str) -> dict[str, str]:
    """A1111's text, taken apart as A1111 does. A last line of fewer than three pairs belongs to the prompt."""
    lines = text.strip().split("\n")
    pairs = SETTING.findall(lines[-1])
    settings = {key: unquote(value) for key, value in pairs} if len(pairs) >= MIN_SETTINGS else {}
    body = lines[:-1] if settings else lines
    start = next((number for number, line in enumerate(body) if line.startswith("Negative prompt:")), len(body))
    negative = "\n".join(body[start:]).removeprefix("Negative prompt:").strip()
    found = {"Prompt": "\n".join(body[:start]), "Negative prompt": negative, **settings}
    return {key: value for key, value in found.items() if value}


def unquote(value: str) -> str:
    """The inverse of `quoted`."""
    try:
        return str(json.loads(value)) if value.startswith('"') else value.strip()
    except ValueError:
        return value
