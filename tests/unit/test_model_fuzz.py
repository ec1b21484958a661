"""Whatever is wrong with a model folder, it loads, or one InputError says why: never a traceback."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.errors import InputError
from train.exporters.verify import probe_output
from train.model import load_model

PARTS = ("unet", "vae", "text_encoder")
VALUES: tuple[Any, ...] = (None, 0, -1, 3, 7.5, "text", [], [1, 2], {}, True, 10**9)


def change_config(folder: Path, rng: random.Random) -> str:
    part = rng.choice((*PARTS, "scheduler"))
    file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    config = json.loads(file.read_text())
    key = rng.choice(sorted(config))
    if rng.random() < 0.3:
        del config[key]
    else:
        config[key] = rng.choice(VALUES)
    file.write_text(json.dumps(config))
    return f"{part}: {key} = {config.get(key, 'deleted')}"


def change_weights(folder: Path, rng: random.Random) -> str:
    file = next((folder / rng.choice(PARTS)).glob("*.safetensors"))
    tensors = load_file(file)
    name = rng.choice(sorted(tensors))
    how = rng.choice(("drop", "widen", "nan", "half", "rename", "scalar"))
    tensor = tensors.pop(name)
    changed = {
        "widen": torch.cat([tensor, tensor]),
        "nan": torch.full_like(tensor, torch.nan),
        "half": tensor.half(),
        "scalar": torch.zeros(()),
    }
    if how != "drop":
        tensors[f"other.{name}" if how == "rename" else name] = changed.get(how, tensor)
    save_file(tensors, file, {"format": "pt"})
    return f"{file.parent.name}: {how} {name}"


def change_files(folder: Path, rng: random.Random) -> str:
    file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    how = rng.choice(("cut", "empty", "noise", "delete", "folder"))
    content = file.read_bytes()
    file.unlink()
    if how == "folder":
        file.mkdir()
    elif how != "delete":
        file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "noise": rng.randbytes(64)}[how])
    return f"{how} {file.relative_to(folder)}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(60))
def test_a_changed_model_folder(tiny_model: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    change = rng.choice((change_config, change_config, change_weights, change_files))(folder, rng)
    said = ""
    try:
        model = load_model(str(folder))
        parts = model.unet, model.vae, model.text_encoder, model.tokenizer
        assert all(parts) and model.sample_size > 0 and model.schedule.steps > 0 and model.fingerprint
        if " = " not in change:  # a library may take a value that no network runs with
            probe_output(model.unet, model)
    except InputError as error:
        said = str(error)
    except Exception as error:
        raise AssertionError(f"{change}: {type(error).__name__}: {error}") from error
    assert "\n" not in said, change
