"""Objectives through the whole command: a tiny base that predicts v or x_0, and what its run leaves behind."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import InputError
from infer import config as infer_config
from infer import generation, metadata, resolve_model
from tests.recipes.conftest import FEW, Finetune
from train import model
from train.ddpm import schedule as schedules
from train.losses import DenoisingLoss
from train.metrics import read_metrics

FLAGS = ["--logging.every", "1", "--no-logging.tensorboard"]
# diffusers 0.42.1 hands torch tensors to NumPy functions in ways that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


@pytest.fixture
def finetune_base(finetune: Finetune, tmp_path: Path, tiny_model: Path) -> Finetune:
    """The command on a base that predicts what it is told to."""

    def run(predicts: str, *flags: str, steps: int = 2) -> int:
        base = tmp_path / predicts
        if not base.exists():
            shutil.copytree(tiny_model, base)
            file = base / "scheduler" / "scheduler_config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": predicts}))
        return finetune(*flags, steps=steps, model=base, adapter=() if "full" in flags else FEW)

    return run


def losses(run: str) -> list[float]:
    return [line["loss"] for line in read_metrics(Path("runs") / run / "metrics.jsonl") if "loss" in line]


def look(run: str) -> dict[str, float]:
    """The untrained base at fixed noise."""
    return next(
        line["validation"] for line in read_metrics(Path("runs") / run / "metrics.jsonl") if "validation" in line
    )


def test_a_dropped_caption_is_the_encoders_own_nothing_cached_or_not(
    finetune_base: Finetune, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every caption dropped: each sample has the states that the text encoder itself gives for "", bit for bit."""
    from transformers import CLIPTextModel, CLIPTokenizer

    seen: list[torch.Tensor] = []
    original = DenoisingLoss.__call__

    def watching(self: Any, denoiser: Any, batch: Any, teacher: Any = None) -> torch.Tensor:
        seen.extend(batch.text_states)
        return original(self, denoiser, batch, teacher)

    monkeypatch.setattr(DenoisingLoss, "__call__", watching)
    monkeypatch.setenv("ATELIER_CACHE", str(Path("cache").resolve()))
    for _ in ("encoded now", "out of the cache"):
        assert finetune_base("epsilon", "--pictures.caption-dropout", "1", "--new", steps=1) == 0
    tokenizer = CLIPTokenizer.from_pretrained(tiny_model / "tokenizer")
    encoder: Any = CLIPTextModel.from_pretrained(tiny_model / "text_encoder")
    ids = tokenizer("", padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        nothing = encoder(ids).last_hidden_state[0]
    assert len(seen) == 8 and nothing.std() > 0.1
    assert all(torch.equal(states, nothing) for states in seen)


VELOCITY = ("--objective.kind", "velocity")
RESCALED = (*VELOCITY, "--objective.zero-terminal-snr")


def test_a_whole_model_says_the_schedule_it_was_trained_at(
    finetune_base: Finetune, capsys: pytest.CaptureFixture[str]
) -> None:
    """diffusers reads the export and draws with the schedule of the training, from noise alone."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    assert finetune_base("v_prediction", *RESCALED, "--objective.weighting", "min-snr", "--adapter.kind", "full") == 0
    out = capsys.readouterr().out
    assert "warnings   1:" in out and "min-snr gives the last timestep the weight 0" in out
    assert "warning:  trained at zero terminal SNR: use a scheduler that has rescale_betas_zero_snr" in out
    assert "It was trained at zero terminal SNR" in Path("runs/0001-full/README.md").read_text()
    exported = Path("runs/0001-full/export/model")
    pipeline = StableDiffusionPipeline.from_pretrained(exported, local_files_only=True)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    assert pipeline.scheduler.config["timestep_spacing"] == "trailing"
    assert pipeline.scheduler.alphas_cumprod[-1] == 0.0
    original = model.load_model("v_prediction")
    final = model.load_model(str(exported))
    assert torch.equal(final.schedule.betas, schedules.zero_terminal_snr(original.schedule).betas)
    assert final.prediction_type == "v_prediction"
    drawn: Any = pipeline("a", num_inference_steps=2, output_type="np", height=64, width=64)
    assert drawn.images.shape == (1, 64, 64, 3)


def test_a_lora_is_drawn_with_the_schedule_of_its_run(
    finetune_base: Finetune, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file cannot say it: the run's card, the last lines and generate.py do."""
    assert finetune_base("v_prediction", *RESCALED) == 0
    assert "trained at zero terminal SNR" in capsys.readouterr().out
    chosen = resolve_model.resolve(infer_config.read_options([]), Path("runs"))
    assert chosen.zero_terminal_snr and chosen.model == str(Path("v_prediction").resolve())
    assert (
        generation.run_generation(
            infer_config.read_options(["--prompt", "a", "--steps", "2", "--outdir", "drawn", "--seed", "42"])
        )
        == 0
    )
    recipe = metadata.read_metadata(Path("drawn/00000-42.png"))
    assert recipe.scheduler == "DDIMScheduler" and recipe.scheduler_config["rescale_betas_zero_snr"]
    file = Path("runs/0001-lora-r16/export/lora.safetensors")
    assert resolve_model.resolve(infer_config.read_options(["--lora", str(file)]), Path("runs")).zero_terminal_snr
    assert finetune_base("v_prediction", *VELOCITY) == 0
    assert "trained at zero terminal SNR" not in capsys.readouterr().out
    assert not resolve_model.resolve(infer_config.read_options([]), Path("runs")).zero_terminal_snr
    assert look("0001-lora-r16") != look("0002-lora-r16"), "validation asks at the run's own schedule"


def test_a_base_that_predicts_the_image(finetune_base: Finetune) -> None:
    """It trains; another loss changes the training and no bit of how it is judged."""
    with pytest.raises(InputError, match="the base model predicts 'sample', this objective 'epsilon'; allowed: sample"):
        finetune_base("sample")
    sample = ("--objective.kind", "sample")
    assert finetune_base("sample", *sample) == 0
    soft = ("--objective.weighting", "soft-min-snr", "--objective.noise-offset", "0.1")
    assert finetune_base("sample", *sample, "--objective.loss", "huber", *soft) == 0
    assert look("0001-lora-r16") == look("0002-lora-r16")
    assert losses("0001-lora-r16") != losses("0002-lora-r16")


def test_a_base_that_predicts_noise_is_not_rescaled(finetune_base: Finetune) -> None:
    with pytest.raises(
        InputError, match=r"--objective.zero-terminal-snr: at zero SNR the network's input is the noise"
    ):
        finetune_base("epsilon", "--objective.zero-terminal-snr")
    with pytest.raises(InputError, match="the base model predicts 'epsilon', this objective 'v_prediction'"):
        finetune_base("epsilon", *RESCALED)
    assert not Path("runs").exists()
