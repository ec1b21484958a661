"""The full Stable Diffusion v1.4 architecture, with random weights, through the real command on the CPU."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open

from data import rng, sample_set
from infer import lora_loading, metadata, pipeline
from infer.config import LoraFile
from tests.full_size import FILES, PARAMETERS, full_size_model
from train import model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
MOST_MEMORY = 12 * 2**30  # bytes

# Runs a command and reports the peak of its resident memory: getrusage counts the largest child there was.
MEASURED = (
    "import json, resource, subprocess, sys; rc = subprocess.run(sys.argv[1:]).returncode;"
    "print(json.dumps([rc, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024]))"
)


def test_the_architecture_is_the_published_one() -> None:
    folder = full_size_model()
    for part, file in FILES.items():
        with safe_open(folder / part / file, framework="pt") as opened:
            shapes = [opened.get_slice(key).get_shape() for key in opened.keys()]  # noqa: SIM118
        counted = sum(math.prod(shape) for shape in shapes)
        assert counted == PARAMETERS[part], part


def measured(argv: list[object], folder: Path) -> tuple[str, int]:
    """Run a command in a folder; its output and the peak of its memory in bytes."""
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, sys.executable, *map(str, argv)], capture_output=True, text=True, cwd=folder
    )
    code, peak = json.loads(result.stdout.splitlines()[-1])
    assert code == 0, result.stderr
    print(f"peak {peak / 2**30:.2f} GiB\n{result.stdout}\n{result.stderr[-300:]}")
    return result.stdout, peak


def test_one_step_of_lora_at_512_fits_in_12_gib_and_diffusers_loads_it(tmp_path: Path) -> None:
    """finetune.py as typed; its LoRA changes the network in diffusers' own pipeline as it does in ours."""
    sample_set.write_sample_folder(tmp_path / "pictures", count=2, size=512)
    flags = ["--config", ROOT / "train/configs/sd14-lora.yaml", "--model", full_size_model(), "--data", "pictures"]
    few = ["--validation.timesteps", 1, "--validation.pictures", 1, "--logging.tensorboard", "false"]
    steps = ["--batch-size", 1, "--max-steps", 1, "--optim.warmup", 0, "--learning-rate", 0.01]
    out, peak = measured([ROOT / "train/finetune.py", *flags, *few, *steps], tmp_path)
    assert peak < MOST_MEMORY
    assert "3,188,736 of 862,709,700 weights are trained" in out
    lora = tmp_path / "runs/0001-lora-r16/export/lora.safetensors"

    theirs = StableDiffusionPipeline.from_pretrained(full_size_model())
    before = predict(theirs)
    theirs.load_lora_weights(str(lora.parent), weight_name=lora.name)
    change = predict(theirs) - before
    del theirs
    ours = pipeline.build_pipeline(model.load_model(str(full_size_model())), None, torch.device("cpu"))
    lora_loading.load_loras(ours, [LoraFile(path=lora)])
    assert float(change.abs().max()) > 1e-2, "too small a change to tell anything"
    torch.testing.assert_close(predict(ours) - before, change, rtol=0, atol=1e-4)


@torch.no_grad()
def predict(pipe: StableDiffusionPipeline) -> torch.Tensor:
    """The U-Net's answer to a fixed question at 256x256 pixels."""
    noisy, states = rng.normal((1, 4, 32, 32), "true size"), rng.normal((1, 77, 768), "true size", "states")
    return pipe.unet(noisy, torch.tensor([500]), states, return_dict=False)[0]


def test_two_steps_at_512_fit_in_12_gib(tmp_path: Path) -> None:
    argv = ["--model", full_size_model(), "--steps", 2, "--prompt", "a water type fridge", "--outdir", tmp_path / "out"]
    command = [ROOT / "infer" / "generate.py", *argv, "--device", "cpu"]
    _, peak = measured(command, ROOT)
    assert peak < MOST_MEMORY
    recipe = metadata.read_metadata(tmp_path / "out" / "00000-42.png")
    assert (recipe.width, recipe.height, recipe.verdict, recipe.dtype) == (512, 512, "ok", "fp32")
    with Image.open(tmp_path / "out" / "00000-42.png") as picture:
        assert picture.size == (512, 512)
        assert len(picture.convert("RGB").getcolors(maxcolors=512 * 512) or []) > 100
