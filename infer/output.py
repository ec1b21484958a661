"""Where images go: a folder for each command, metadata and a log line for each image, one labelled contact sheet."""

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from data.atomic_io import atomic_file, write_atomic
from data.errors import InputError
from infer import contact_sheet, lora_loading, schedulers
from infer.conditioning_images import NO_IMAGES
from infer.config import OUTPUTS
from infer.contact_sheet import Sheet
from infer.lora_loading import LoraEffect
from infer.metadata import ImageMetadata, LoraUsed, ModelUsed
from infer.pipeline import DTYPES, GeneratedImage
from infer.prompts import ImageRequest
from infer.resolve_model import POCKET
from infer.text_encoding import TokenCount
from train.model import BaseModel

LOG_FILE, GRID_FILE, COMPARE_FILE, JOB_FILE = "run.jsonl", "grid.png", "compare.png", "job.json"
MAX_CELLS = 100  # of a contact sheet
RECORDED_PACKAGES = ("atelier", "torch", "diffusers", "transformers", "peft")


@dataclass(frozen=True)
class SavedImage:
    """An image on the disk. seconds: that it took, or its micro-batch if it is the first; None if not made by us."""

    path: Path
    request: ImageRequest
    metadata: ImageMetadata
    seconds: float | None


# ---- folders


def open_output_folder(requested: Path | None, job: str = "", *, resume: bool = False) -> Path:
    """The requested folder, which must be new, empty or begun by the same job, or the next free number in outputs/.

    It holds job.json until the job is finished. job: a hash over what decides the images. resume: use the newest folder
    in outputs/ that this job began. Raises InputError when it holds something else (nothing is ever overwritten), or
    cannot be created.
    """
    try:
        if requested is not None:
            folder = requested
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = find_unfinished(job) if resume else next_numbered_folder(OUTPUTS)
        taken = any(folder.iterdir()) and (not job or read_job_hash(folder) != job)
    except OSError as error:
        where = f"--outdir {requested or OUTPUTS}"
        raise InputError(f"cannot be created ({error.strerror})", where=where) from None
    if taken:
        what, fix = "is not empty, and nothing is overwritten", "Use a new folder."
        if read_job_hash(folder) is not None:
            what, fix = "belongs to another, unfinished command", "Use a new folder, or repeat that command."
        raise InputError(what, where=f"--outdir {folder}", fix=fix)
    for part in folder.rglob(".*.part"):  # what a killed process was writing
        part.unlink(missing_ok=True)
    if job:
        write_atomic(folder / JOB_FILE, json.dumps({"job": job}))
    return folder


def read_job_hash(folder: Path) -> str | None:
    """The job that began a folder and did not finish it."""
    try:
        return str(json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))["job"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find_unfinished(job: str) -> Path:
    """The newest numbered folder that this job began and did not finish. Raises InputError."""
    folders = sorted(OUTPUTS.glob("[0-9]*"), reverse=True) if OUTPUTS.is_dir() else []
    found = next((folder for folder in folders if read_job_hash(folder) == job), None)
    if found is None:
        what = f"this command has no unfinished folder in {OUTPUTS}/"
        raise InputError(what, where="--resume", fix="Leave out --resume to start again.")
    return found


def next_numbered_folder(parent: Path) -> Path:
    """Create outputs/0001, or the number after the highest there; two commands at once get two folders."""
    parent.mkdir(parents=True, exist_ok=True)
    number = max((int(e.name) for e in parent.iterdir() if re.fullmatch(r"[0-9]{4,}", e.name)), default=0)
    while True:
        number += 1
        try:
            (parent / f"{number:04d}").mkdir()
            return parent / f"{number:04d}"
        except FileExistsError:
            continue


def write_log(folder: Path, saved: Sequence[SavedImage]) -> None:
    """run.jsonl, a line for each image; without any, the empty folder is removed."""
    lines = []
    for done in saved:
        seconds = {} if done.seconds is None else {"seconds": round(done.seconds, 3)}
        file = done.path.relative_to(folder).as_posix()
        lines.append(json.dumps({"file": file, **seconds, **done.metadata.model_dump(mode="json")}) + "\n")
    if lines:
        write_atomic(folder / LOG_FILE, "".join(lines))
    elif folder.is_dir() and {entry.name for entry in folder.iterdir()} <= {JOB_FILE}:
        (folder / JOB_FILE).unlink(missing_ok=True)
        folder.rmdir()


# ---- metadata of an image


def shared_metadata(
    pipe: Any, model: BaseModel, effects: Sequence[LoraEffect], scheduler: str | None, images: Any = NO_IMAGES
) -> dict[str, Any]:
    """The fields of ImageMetadata that all images of a pass have in common."""
    return {
        "scheduler": type(pipe.scheduler).__name__, "sampler": schedulers.a1111_name(pipe.scheduler, scheduler),
        "scheduler_config": json.loads(pipe.scheduler.to_json_string()),
        "dtype": next(name for name, dtype in DTYPES.items() if dtype == model.dtype),
        "device": device_name(pipe.device), "threads": torch.get_num_threads(), "versions": package_versions(),
        "model": model_used(model), "loras": tuple(map(lora_used, effects)),
        "inputs": images.used, "polarity": images.polarity,
        "controlnet": images.control_hash, "control_scale": images.control_scale,
    }  # fmt: skip


def build_metadata(
    shared: Mapping[str, Any], generated: GeneratedImage, tokens: Mapping[str, TokenCount]
) -> ImageMetadata:
    request, settings = generated.request, generated.settings
    return ImageMetadata(
        prompt=request.prompt, seed=request.seed, template=request.template, unstyled=request.unstyled,
        verdict=generated.verdict, decoded_again=generated.decoded_again, concepts=generated.concepts,
        tokens=tokens[request.prompt], negative_tokens=tokens[settings.negative_prompt], **asdict(settings), **shared,
    )  # fmt: skip


def model_used(model: BaseModel) -> ModelUsed:
    file_hash = model.fingerprints["unet"] if model.weights else ""
    return ModelUsed(name=public_model_name(model.name), fingerprint=model.fingerprint, file_hash=file_hash)


def public_model_name(name: str) -> str:
    """A model's name in files that people pass on: of a local one the last part, without the path to it."""
    path = Path(name).expanduser()
    if name == POCKET or not path.exists():
        return name
    return lora_loading.run_name_of(path) or path.resolve().name


def lora_used(effect: LoraEffect) -> LoraUsed:
    name = lora_loading.lora_display_name(effect.file.path)
    values = {field: getattr(effect, field) for field in LoraUsed.model_fields if hasattr(effect, field)}
    return LoraUsed(name=name, weight=effect.file.weight, **values)


def device_name(device: torch.device) -> str:
    """The kind of device that images are bit-equal on: the GPU's name, or the CPU's vector instructions."""
    if device.type == "cuda":
        return f"{device.type} ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({torch.backends.cpu.get_cpu_capability()})" if device.type == "cpu" else device.type


def package_versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in RECORDED_PACKAGES}


# ---- contact sheets


def write_contact_sheet(folder: Path, passes: Mapping[str, Sequence[SavedImage]]) -> Path:
    """The labelled sheet of the job, and its path: compare.png with a column for each pass, or grid.png for one."""
    path = folder / (COMPARE_FILE if len(passes) > 1 else GRID_FILE)
    save_png(comparison_sheet(passes) if len(passes) > 1 else grid_sheet(*passes.values()), path)
    return path


def save_png(image: Image.Image, path: Path) -> None:
    with atomic_file(path) as temporary:
        image.save(temporary, "PNG")


def grid_sheet(saved: Sequence[SavedImage]) -> Image.Image:
    """One cell for each image, its prompt and seed under it."""
    per_prompt = sum(done.request.prompt == saved[0].request.prompt for done in saved)
    shown = saved[:MAX_CELLS]
    footer = describe_settings(saved[0].metadata) + describe_left_out(len(shown), len(saved))
    images, notes = [open_image(done.path) for done in shown], [caption(done) for done in shown]
    columns = contact_sheet.choose_columns(len(shown), per_prompt)
    return contact_sheet.render_sheet(contact_sheet.grid_sheet(images, notes, columns, footer=footer))


def comparison_sheet(passes: Mapping[str, Sequence[SavedImage]]) -> Image.Image:
    """A row for each image, base on the left: the same prompt, seed and noise, different weights."""
    names = sorted(passes)  # base, tuned
    together = list(zip(*(passes[name] for name in names), strict=True))
    shown = together[: MAX_CELLS // len(names)]
    cells = {(x, y): open_image(done.path) for y, row in enumerate(shown) for x, done in enumerate(row)}
    about = "; ".join(describe_settings(passes[name][0].metadata, name) for name in names)
    footer = about + describe_left_out(len(shown), len(together))
    return contact_sheet.render_sheet(Sheet(names, [caption(row[0]) for row in shown], cells, footer=footer))


def caption(done: SavedImage) -> str:
    return f"{done.request.prompt}  (seed {done.request.seed})"


def open_image(path: Path) -> Image.Image:
    """An image read back from the disk: a job of thousands does not hold them all."""
    with Image.open(path) as image:
        return image.convert("RGB")


def describe_settings(info: ImageMetadata, name: str = "") -> str:
    """What all images of a pass share, in a line."""
    loras = "".join(f" + {lora.name}:{lora.weight:g}" for lora in info.loras)
    model = f"{name or 'model'}: {info.model.name}{loras}"
    how = f", {info.steps} steps, guidance {info.guidance_scale:g}, {info.sampler}, {info.width} x {info.height} pixels"
    return model if name == "base" else model + how


def describe_left_out(shown: int, count: int) -> str:
    return f"; the first {shown} of {count}" if shown < count else ""
