"""The full Stable Diffusion v1.4 architecture, with random weights, through the real command on the CPU."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from infer import metadata
from tests.full_size import FILES, PARAMETERS, full_size_model

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


def test_two_steps_at_512_fit_in_12_gib(tmp_path: Path) -> None:
    argv = ["--model", full_size_model(), "--steps", 2, "--prompt", "a water type fridge", "--outdir", tmp_path / "out"]
    command = [sys.executable, ROOT / "infer" / "generate.py", *argv, "--device", "cpu"]
    measured = [sys.executable, "-c", MEASURED, *map(str, command)]
    result = subprocess.run(measured, capture_output=True, text=True, cwd=ROOT)
    code, peak = json.loads(result.stdout.splitlines()[-1])
    assert code == 0, result.stderr
    print(f"peak {peak / 2**30:.2f} GiB\n{result.stderr[-300:]}")
    assert peak < MOST_MEMORY
    recipe = metadata.read(tmp_path / "out" / "00000-42.png")
    assert (recipe.width, recipe.height, recipe.verdict, recipe.dtype) == (512, 512, "ok", "fp32")
    with Image.open(tmp_path / "out" / "00000-42.png") as picture:
        assert picture.size == (512, 512)
        assert len(picture.convert("RGB").getcolors(maxcolors=512 * 512) or []) > 100
