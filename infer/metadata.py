"""What a PNG says about how it was made: A1111's `parameters` text, and one JSON key `atelier` with everything.

Source of the text layout: AUTOMATIC1111/stable-diffusion-webui, modules/processing.py (create_infotext) and
modules/infotext_utils.py. Neither time nor place is written: the same image is the same file.
"""

import io
import json
import re
from pathlib import Path
from typing import IO, Any, Literal

from PIL import ExifTags, Image, PngImagePlugin
from pydantic import BaseModel, ConfigDict

from data import images
from data.atomic_io import write_atomic
from data.errors import InputError
from infer.text_encoding import TokenCount, is_weighted

KEY = "atelier"
A1111_KEY = "parameters"
MODEL_HASH_LENGTH, LORA_HASH_LENGTH = 10, 12  # hex digits, as A1111 shortens SHA-256
MIN_SETTINGS = 3  # A1111 takes the last line as settings only from three pairs on
SETTING = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
UNICODE_COMMENT = b"UNICODE\0"


class MetadataModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # files of newer and older versions stay readable


class ModelUsed(MetadataModel):
    """name: as typed. fingerprint: SHA-256 over weights and configs. file_hash: of a single-file model."""

    name: str
    fingerprint: str
    file_hash: str = ""
    tokenizer: str = ""


class LoraUsed(MetadataModel):
    """See infer.lora_loading.LoraEffect."""

    name: str
    sha256: str
    weight: float
    matched: int
    unused: tuple[str, ...] = ()
    change: float
    share: float
    prediction: float = 0.0


class InputUsed(MetadataModel):
    """An input image: init, mask or scribble."""

    role: str
    name: str
    sha256: str


class ImageMetadata(MetadataModel):
    """Everything that decides an image's pixels, and the verdict on them."""

    format: int = 1
    prompt: str
    template: str = ""  # that the prompt was made from, if any
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
    tokens: TokenCount
    negative_tokens: TokenCount
    micro_batch: int
    threads: int
    versions: dict[str, str]
    weighting: str = "none"  # the prompts' syntax
    guidance_rescale: float = 0.0
    guidance_stop: float = 1.0
    inputs: tuple[InputUsed, ...] = ()
    strength: float = 1.0
    polarity: str = ""  # of a scribble's lines
    controlnet: str = ""  # SHA-256 of its weights
    control_scale: float = 1.0
    style: str = ""
    unstyled: str = ""  # the prompt before the style was applied
    compiled: bool = False  # by torch.compile, which rounds differently
    decoded_again: bool = False  # in fp32, because the numbers broke down
    safety: str = "off"
    concepts: tuple[str, ...] = ()  # that the safety checker flagged
    verdict: Literal["ok", "nan", "flagged"] = "ok"


# ---- writing


def format_parameters(info: ImageMetadata) -> str:
    """A1111's text: prompt with a tag for each LoRA, negative prompt, and a line of settings."""
    tags = "".join(f" <lora:{Path(lora.name).stem}:{lora.weight:g}>" for lora in info.loras)
    prompts = [f"{info.prompt}{tags}", f"Negative prompt: {info.negative_prompt}" if info.negative_prompt else ""]
    settings = ", ".join(f"{key}: {quote(value)}" for key, value in a1111_settings(info).items() if value != "")
    return "\n".join([*filter(None, prompts), settings])


def a1111_settings(info: ImageMetadata) -> dict[str, Any]:
    """The last line of A1111's text. Noise comes from the CPU: without `RNG: CPU` readers would use the GPU's."""
    sampler, karras = info.sampler.removesuffix(" Karras"), info.sampler.endswith(" Karras")
    weighted = info.weighting == "a1111" and any(map(is_weighted, (info.prompt, info.negative_prompt)))
    hashes = ", ".join(f"{Path(lora.name).stem}: {lora.sha256[:LORA_HASH_LENGTH]}" for lora in info.loras)
    return {
        "Steps": info.steps, "Sampler": sampler, "Schedule type": "Karras" if karras else "",
        "CFG scale": f"{info.guidance_scale:g}", "Seed": info.seed, "Size": f"{info.width}x{info.height}",
        "Model hash": (info.model.file_hash or info.model.fingerprint)[:MODEL_HASH_LENGTH],
        "Model": Path(info.model.name).stem if info.model.file_hash else info.model.name,
        "Denoising strength": f"{info.strength:g}" if info.inputs else "", "Emphasis": "No norm" if weighted else "",
        "RNG": "CPU", "Lora hashes": hashes, "Version": f"atelier {info.versions.get('atelier', '')}".strip(),
    }  # fmt: skip


def quote(value: Any) -> str:
    """A value with a comma, a colon or a line break goes into JSON quotes."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def encode_png(image: Image.Image, info: ImageMetadata) -> bytes:
    """PNG bytes with both texts. What is not ASCII becomes iTXt (UTF-8): tEXt is read as Latin-1."""
    texts = PngImagePlugin.PngInfo()
    text = format_parameters(info)
    (texts.add_text if text.isascii() else texts.add_itxt)(A1111_KEY, text)
    texts.add_text(KEY, json.dumps(info.model_dump(mode="json")))  # JSON escapes: always ASCII
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=texts)
    return buffer.getvalue()


def write_png(path: Path, image: Image.Image, info: ImageMetadata) -> None:
    """Save an image with its metadata, whole or not at all. Raises InputError (disk)."""
    write_atomic(path, encode_png(image, info))


# ---- reading


def read_metadata(path: Path) -> ImageMetadata:
    """The metadata of one of our images. Raises InputError if it has none of ours."""
    text = read_image_texts(path).get(KEY)
    if text is None:
        raise InputError("has no metadata of this toolkit", where=path)
    return parse_metadata(text, path)


def parse_metadata(text: str, where: object) -> ImageMetadata:
    """Raises InputError."""
    try:
        return ImageMetadata.model_validate_json(text)
    except ValueError as error:
        raise InputError(f"has damaged metadata ({str(error).splitlines()[0]})", where=where) from None


def read_image_texts(file: Path | IO[bytes], where: object = None) -> dict[str, str]:
    """Every text of a PNG, JPEG or WebP image, including those after the pixels; an EXIF UserComment as A1111's text.

    where: names a file that has no path. Raises InputError: no image, damaged, or of more than MAX_PIXELS, since
    it is decoded for its last texts.
    """
    at = file if where is None else where
    try:
        with images.no_pillow_warnings(), Image.open(file, formats=["PNG", "JPEG", "WEBP"]) as image:
            if image.width * image.height > images.MAX_PIXELS:
                raise InputError("is too large an image", where=at, allowed=f"{images.MAX_PIXELS} pixels")
            image.load()
            texts = {key: str(value) for key, value in getattr(image, "text", {}).items()}
            comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"is not a readable image ({error})", where=at) from None
    return texts | ({A1111_KEY: decode_user_comment(comment)} if isinstance(comment, bytes) else {})


def decode_user_comment(content: bytes) -> str:
    """The text of an EXIF UserComment: eight bytes name its encoding; A1111 writes big-endian UTF-16 (piexif)."""
    body = content[len(UNICODE_COMMENT) :]
    if not content.startswith(UNICODE_COMMENT):
        return body.decode("utf-8", "replace")
    is_little_endian = body[1::2].count(0) > body[0::2].count(0)  # there is no byte order mark
    return body.decode("utf-16-le" if is_little_endian else "utf-16-be", "replace")


def parse_parameters(text: str) -> dict[str, str]:
    """A1111's text as {"Prompt": ..., "Negative prompt": ..., "Steps": ...}, {} for "", parsed as A1111 does.

    A last line of fewer than three pairs belongs to the prompt.
    """
    lines = text.strip().split("\n")
    pairs = SETTING.findall(lines[-1])
    settings = {key: unquote(value) for key, value in pairs} if len(pairs) >= MIN_SETTINGS else {}
    body = lines[:-1] if settings else lines
    start = next((number for number, line in enumerate(body) if line.startswith("Negative prompt:")), len(body))
    negative = "\n".join(body[start:]).removeprefix("Negative prompt:").strip()
    values = {"Prompt": "\n".join(body[:start]), "Negative prompt": negative, **settings}
    return {key: value for key, value in values.items() if value}


def unquote(value: str) -> str:
    """The inverse of `quote`."""
    try:
        return str(json.loads(value)) if value.startswith('"') else value.strip()
    except ValueError:
        return value
