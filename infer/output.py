"""Where pictures go: a folder of its own for each command, a line for each picture, and one labelled sheet."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from data.atomic_io import atomic_file, write_atomic
from data.errors import InputError
from infer import conditioning_images, contact_sheet, lora_loading, metadata, resolve_model, schedulers
from infer.conditioning_images import ConditioningImages
from infer.contact_sheet import SheetCell, SheetRow
from infer.lora_loading import LoraEffect
from infer.metadata import ImageMetadata, LoraUsed, ModelUsed, TokensUsed
from infer.pipeline import DTYPES, GeneratedImage
from infer.prompts import ImageRequest
from infer.text_encoding import TokenCount
from train.model import BaseModel

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

OUTPUTS = Path("outputs")
LOG_FILE, GRID_FILE, COMPARE_FILE, JOB_FILE = "run.jsonl", "grid.png", "compare.png", "job.json"


@dataclass(frozen=True)
class SavedImage:
    """A picture on the disk. seconds: to draw it, or its micro-batch if it is the first of one; None if not by us."""

    path: Path
    picture: ImageRequest
    recipe: ImageMetadata
    seconds: float | None


def open_output_folder(asked: Path | None, job: str = "", *, resume: bool = False) -> Path:
    """The folder asked for, which must be new or empty or begun by the same job, or the next free number in outputs/;
    it exists afterwards and holds job.json until the job is finished.

    job: a hash over what decides the pictures. resume: the newest folder of outputs/ that this job began.
    Raises InputError when it holds something else (nothing is ever overwritten) or cannot be made.
    """
    try:
        if asked is None:
            folder = find_unfinished(job) if resume else next_numbered_folder(OUTPUTS)
        else:
            folder = asked
            folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir()) and (not job or read_job_hash(folder) != job)
    except OSError as error:
        raise InputError(f"cannot be made ({error.strerror})", where=f"--outdir {asked or OUTPUTS}") from None
    if taken and read_job_hash(folder) is not None:
        fix = "Name a new folder, or repeat the command that began it."
        raise InputError("was begun by another command and is not finished", where=f"--outdir {folder}", fix=fix)
    if taken:
        raise InputError(
            "is not empty, and nothing is overwritten", where=f"--outdir {folder}", fix="Name a new folder."
        )
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
        what = f"no unfinished folder in {OUTPUTS}/ was begun by this command"
        raise InputError(what, where="--resume", fix="Leave it out to begin anew.")
    return found


def mark_finished(folder: Path) -> None:
    """The job is finished."""
    (folder / JOB_FILE).unlink(missing_ok=True)


def load_saved_image(path: Path, picture: ImageRequest) -> SavedImage:
    """A picture that another process drew, or this command before it was stopped."""
    return SavedImage(path, picture, metadata.read_metadata(path), None)


def next_numbered_folder(parent: Path) -> Path:
    """Make outputs/0001, or the number after the highest there; two commands at once get two folders."""
    parent.mkdir(parents=True, exist_ok=True)
    numbers = [int(entry.name) for entry in parent.iterdir() if re.fullmatch(r"[0-9]{4,}", entry.name)]
    number = max(numbers, default=0) + 1
    while True:
        folder = parent / f"{number:04d}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def write_log(folder: Path, finished: Sequence[SavedImage]) -> None:
    """run.jsonl, a line for each finished picture; without any, an empty folder is taken away again."""
    if finished:
        write_atomic(folder / LOG_FILE, "".join(f"{log_line(folder, done)}\n" for done in finished))
    elif folder.is_dir() and {entry.name for entry in folder.iterdir()} <= {JOB_FILE}:
        mark_finished(folder)
        folder.rmdir()


def log_line(folder: Path, done: SavedImage) -> str:
    file = {"file": done.path.relative_to(folder).as_posix()}
    taken = {} if done.seconds is None else {"seconds": round(done.seconds, 3)}
    return json.dumps(file | taken | done.recipe.model_dump(mode="json"))


def write_contact_sheet(folder: Path, passes: Mapping[str, Sequence[SavedImage]]) -> Path:
    """The labelled sheet of the job, and its path: compare.png with a column for each pass, or grid.png for one."""
    path = folder / (COMPARE_FILE if len(passes) > 1 else GRID_FILE)
    sheet = comparison_sheet(passes) if len(passes) > 1 else grid_sheet(*passes.values())
    with atomic_file(path) as beside:
        sheet.save(beside, "PNG")
    return path


def grid_sheet(finished: Sequence[SavedImage]) -> Image.Image:
    """One cell for each picture, its prompt and seed under it."""
    per_prompt = sum(done.picture.prompt == finished[0].picture.prompt for done in finished)
    shown = finished[: contact_sheet.MAX_CELLS]
    cells = [SheetCell(open_image(done), f"{done.picture.prompt}  (seed {done.picture.seed})") for done in shown]
    footer = [describe_settings(finished[0].recipe), describe_left_out(len(shown), len(finished))]
    return contact_sheet.build_grid(
        cells, contact_sheet.choose_columns(len(cells), per_prompt), footer="; ".join(filter(None, footer))
    )


def comparison_sheet(passes: Mapping[str, Sequence[SavedImage]]) -> Image.Image:
    """A row for each picture, base on the left: the same prompt, seed and start noise, other weights."""
    names = sorted(passes)  # base, tuned
    together = list(zip(*(passes[name] for name in names), strict=True))
    shown = together[: contact_sheet.MAX_CELLS // len(names)]
    rows = [
        SheetRow(
            [SheetCell(open_image(done)) for done in row], f"{row[0].picture.prompt}  (seed {row[0].picture.seed})"
        )
        for row in shown
    ]
    about = [describe_settings(passes[name][0].recipe, name) for name in names]
    return contact_sheet.build_sheet(
        rows, columns=names, footer="; ".join(filter(None, [*about, describe_left_out(len(shown), len(together))]))
    )


def open_image(done: SavedImage) -> Image.Image:
    """The picture, read back from the disk: a job of thousands does not hold them all."""
    with Image.open(done.path) as picture:
        return picture.convert("RGB")


def describe_settings(recipe: ImageMetadata, name: str = "") -> str:
    """What all pictures of a pass share, in a line."""
    loras = "".join(f" + {lora.name}:{lora.weight:g}" for lora in recipe.loras)
    how = f"{recipe.steps} steps, guidance {recipe.guidance_scale:g}, {recipe.sampler}"
    return (
        f"{name}: {recipe.model.name}{loras}"
        if name == "base"
        else f"{name or 'model'}: {recipe.model.name}{loras}, {how}"
    )


def describe_left_out(shown: int, count: int) -> str:
    return f"the first {shown} of {count}" if shown < count else ""


RECORDED_PACKAGES = ("atelier", "torch", "diffusers", "transformers", "peft")


def shared_metadata(
    pipe: StableDiffusionPipeline,
    model: BaseModel,
    proofs: Sequence[LoraEffect],
    scheduler: str | None,
    given: ConditioningImages = conditioning_images.NO_IMAGES,
) -> dict[str, Any]:
    """The fields of a Recipe that all pictures of a pass have in common."""
    return {
        "scheduler": type(pipe.scheduler).__name__,
        "sampler": schedulers.a1111_name(pipe.scheduler, scheduler),
        "scheduler_config": json.loads(pipe.scheduler.to_json_string()),
        "dtype": next(name for name, dtype in DTYPES.items() if dtype == model.dtype),
        "device": device_name(pipe.device),
        "model": model_used(model),
        "loras": tuple(lora_used(proof) for proof in proofs),
        "threads": torch.get_num_threads(),
        "inputs": given.used,
        "polarity": given.polarity,
        "controlnet": given.control_hash,
        "control_scale": given.control_scale,
        "versions": package_versions(),
    }


def build_metadata(shared: Mapping[str, Any], drawn: GeneratedImage, tokens: Mapping[str, TokenCount]) -> ImageMetadata:
    """The recipe of one picture."""
    own, negative = tokens[drawn.picture.prompt], tokens[drawn.settings.negative_prompt]
    return ImageMetadata(
        prompt=drawn.picture.prompt,
        seed=drawn.picture.seed,
        template=drawn.picture.template,
        unstyled=drawn.picture.unstyled,
        verdict=drawn.verdict,
        decoded_again=drawn.decoded_again,
        concepts=drawn.concepts,
        tokens=TokensUsed(**asdict(own)),
        negative_tokens=TokensUsed(**asdict(negative)),
        **asdict(drawn.settings),
        **shared,
    )


def model_used(model: BaseModel) -> ModelUsed:
    file_hash = model.fingerprints["unet"] if model.weights else ""
    return ModelUsed(name=public_model_name(model.name), fingerprint=model.fingerprint, file_hash=file_hash)


def public_model_name(name: str) -> str:
    """What a model is called in a file that people pass on: a local one by its last name, without the way to it."""
    path = Path(name).expanduser()
    if name == resolve_model.POCKET or not path.exists():
        return name
    return lora_loading.run_name_of(path) or path.resolve().name


def lora_used(proof: LoraEffect) -> LoraUsed:
    return LoraUsed(
        name=lora_loading.lora_display_name(proof.file.path),
        sha256=proof.sha256,
        weight=proof.file.weight,
        matched=proof.matched,
        unused=proof.unused,
        change=proof.change,
        share=proof.share,
        prediction=proof.prediction,
    )


def device_name(device: torch.device) -> str:
    """The kind of machine that pictures are bit-equal on: the GPU's name, or the CPU's vector instructions."""
    if device.type == "cuda":
        return f"{device.type} ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({torch.backends.cpu.get_cpu_capability()})" if device.type == "cpu" else device.type


def package_versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in RECORDED_PACKAGES}
