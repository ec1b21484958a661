"""The plan's memory against the measured peak, at Stable Diffusion v1.4's true size, through the real command."""

import json
from pathlib import Path

import pytest

from data import sample_set
from tests.full_size import full_size_model
from tests.recipes.test_true_size import measured

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("kind", "side"), [("lora", 512), ("full", 256)])
def test_the_estimate_is_within_20_percent_of_the_peak(tmp_path: Path, kind: str, side: int) -> None:
    """Plain AdamW would hold 14 GiB in full fine-tuning, so that one is with 8-bit AdamW and small pictures."""
    sample_set.write_sample_folder(tmp_path / "pictures", count=2, size=side)
    flags = ["--config", ROOT / f"train/configs/sd14-{kind}.yaml", "--model", full_size_model(), "--data", "pictures"]
    few = ["--validation.timesteps", 1, "--validation.pictures", 1, "--logging.tensorboard", "false", "--no-probe"]
    few += ["--previews.steps", 2]
    steps = ["--batch-size", 1, "--accumulate", 1, "--max-steps", 2, "--optim.warmup", 0, "--pictures.size", side]
    _, peak = measured([ROOT / "train/finetune.py", *flags, *few, *steps, "--learning-rate", 0.001], tmp_path)
    (plan,) = tmp_path.glob("runs/0001-*/plan.json")
    estimate = json.loads(plan.read_text())["peak_gib"]
    print(f"{kind} at {side}: {estimate:.2f} GiB estimated, {peak / 2**30:.2f} measured")
    assert estimate == pytest.approx(peak / 2**30, rel=0.2)
