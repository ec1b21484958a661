"""The part of the model card that says what the exported files are, how to use them, and under which licence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from data.files import write_atomic
from train.exports import record
from train.run_folder import Run

MIB = 2**20
USES = {
    "lora.safetensors": 'diffusers: `pipe.load_lora_weights("{folder}", weight_name="lora.safetensors")`',
    "lora-kohya.safetensors": "AUTOMATIC1111: put it into `models/Lora` as `{name}.safetensors` and write "
    "`<lora:{name}:1>` into the prompt; ComfyUI: `models/loras` and the node Load LoRA",
    "model": 'diffusers: `StableDiffusionPipeline.from_pretrained("{folder}/model")`',
    "model.safetensors": "AUTOMATIC1111: `models/Stable-diffusion`; ComfyUI: `models/checkpoints`; diffusers: "
    "`from_single_file`",
}
RAIL = """The base is Stable Diffusion v1: the CreativeML Open RAIL-M licence, with its restrictions on use, applies to
what is derived from it, these files included."""
OTHER_LICENCE = "The base model's licence applies to what is derived from it, these files included."
DORA = """DoRA in `lora-kohya.safetensors` is LyCORIS' (`dora_scale` is the length of each row of the merged weights).
Tools differ here: some take the lengths of the base's rows, or of columns. A merged model (`python train/export.py RUN
--merge --single-file`) is the same everywhere."""


def files_and_use(run: Run) -> str:
    """Markdown: a table of the files, what to write into a prompt, what alpha means, the licence."""
    config = read_config(run)
    made = record.read(run.export)
    rows = [row(run, name) for name in made.get("files", [])]
    table = ["| file | size | use |", "| --- | --- | --- |", *rows] if rows else ["None."]
    adapter = config.get("adapter", {})
    return "\n\n".join(filter(None, ["\n".join(table), prompt(config), scale(adapter), licence(config)]))


def renew_files(run: Run) -> None:
    """The card of a finished run after it was exported again: its table of files."""
    file: Path = run.path / "README.md"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    before, files, after = text.partition("\n## Files\n\n")
    _, made, rest = after.partition("\n\n## How it was made\n")
    if files and made:
        write_atomic(file, f"{before}{files}{files_and_use(run)}{made}{rest}")


def row(run: Run, name: str) -> str:
    file = run.export / name
    parts = [file] if file.is_file() else [part for part in file.rglob("*") if part.is_file()]
    size = sum(part.stat().st_size for part in parts) / MIB
    return f"| `export/{name}` | {size:.1f} MiB | {USES[name].format(folder=run.export, name=run.path.name)} |"


def prompt(config: dict[str, Any]) -> str:
    """What the captions looked like: there is no trigger word but what they all share."""
    template = config.get("pictures", {}).get("caption", "")
    return f"It was trained with captions of the form `{template}`; prompts like them work best." if template else ""


def scale(adapter: dict[str, Any]) -> str:
    """The update's scale in numbers: the same alpha means other things in other tools."""
    if adapter.get("kind") != "lora":
        return ""
    rank, alpha = adapter["rank"], adapter["alpha"] or adapter["rank"]
    root = " the root of" if adapter.get("use_rslora") else ""
    factor = alpha / (rank**0.5 if adapter.get("use_rslora") else rank)
    said = (
        f"Rank {rank}, alpha {alpha:g}: the update is scaled by alpha /{root} rank = {factor:g}; both files carry it."
    )
    if adapter.get("ranks"):
        said += f" Blocks with a rank of their own keep alpha / rank: {', '.join(adapter['ranks'])}."
    return said + (f"\n\n{DORA}" if adapter.get("use_dora") else "")


def licence(config: dict[str, Any]) -> str:
    return RAIL if "stable-diffusion-v1" in str(config.get("model", "")) else OTHER_LICENCE


def read_config(run: Run) -> dict[str, Any]:
    file: Path = run.path / "config.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
