"""Take up training from the shipped model where the states of the build are gone: another machine, a cleaned cache."""

from __future__ import annotations

import shutil
from pathlib import Path

from data.atomic_io import atomic_file, atomic_folder
from data.errors import InputError
from tools.pocket.export import BASE
from tools.pocket.latents import WEIGHTS
from tools.pocket.training import state_folder
from tools.pocket.unet import PLAN

PLACES = {  # in the state's folder -> in the shipped one
    "tokenizer": "tokenizer",
    "text/model": "text_encoder",
    "vae/model": "vae",
}


def adopt(base: Path = BASE) -> None:
    """Copy the shipped parts to where the stages look for them; a state that is there already is never replaced.

    The U-Net goes on from its averaged weights in half precision, without the optimiser's memory. Only the stages unet
    and export are meant to follow: the others would start anew.
    """
    target = state_folder()
    if (target / PLAN.name / "state.safetensors").exists():
        raise InputError("there is a state to go on from", where=target / PLAN.name, fix="Run without --adopt.")
    for place, part in PLACES.items():
        with atomic_folder(target / place) as folder:
            shutil.copytree(base / part, folder, dirs_exist_ok=True)
    adopt_unet(base / "unet" / WEIGHTS, target / PLAN.name)


def adopt_unet(file: Path, folder: Path) -> None:
    """The shipped weights as a stage's state: both as the network and as its running average."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(file, "pt") as opened:
        step = int((opened.metadata() or {}).get("steps", 0))
    weights = {name: value.float() for name, value in load_file(file).items()}
    state = {f"{kind}.{name}": value.clone() for name, value in weights.items() for kind in ("model", "average")}
    with atomic_file(folder / "state.safetensors") as beside:
        save_file(state | {"step": torch.tensor(step)}, beside)
