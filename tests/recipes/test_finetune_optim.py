"""finetune.py with another optimiser and an average of the weights: what is exported, and what the plan says."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.cli import parse
from data.errors import InputError
from tests import sessions
from train.config import ALIASES, CONFIGS, Config

QUICK = [
    *("--preserve.share", "0", "--objective.noise-offset", "0", "--pictures.caption-dropout", "0.1", "--lr", "0.001"),
    *("--pictures.size", "32", "--batch-size", "4", "--max-steps", "3", "--validation.every", "2", "--threads", "1"),
    *("--validation.pictures", "2", "--validation.timesteps", "2", "--optim.warmup", "0", "--adapter.rank", "4"),
    *("--optim.schedule", "constant", "--no-probe", "--adapter.targets", "attention"),
]


@pytest.fixture
def finetune(tmp_path: Path, tiny_model: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command, in this process; runs lie in tmp_path/runs."""
    monkeypatch.chdir(tmp_path)

    def run(*flags: str) -> int:
        argv = ["--model", str(tiny_model), "--data", str(tiny_data), *QUICK, *flags]
        return sessions.run(parse(Config, argv, prog="finetune.py", preset=CONFIGS / "pocket.yaml", aliases=ALIASES))

    return run


def test_the_average_is_exported(finetune: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--optim.kind", "schedule-free", "--ema.decay", "0.9", "--memory.gradient-checkpointing")
    assert finetune(*flags) == 0
    out = capsys.readouterr().out
    assert "schedule-free, learning rate 0.001, constant; validated and exported: the moving average (EMA 0.9)" in out
    assert "sdpa attention, channels-last, gradient checkpointing" in out
    (run,) = Path("runs").glob("0001-*")
    exported = load_file(run / "export" / "lora.safetensors")
    average = load_file(run / "checkpoints" / "000003" / "ema.safetensors")
    trained = load_file(run / "checkpoints" / "000003" / "weights.safetensors")
    for name, weight in trained.items():
        there = exported["unet." + name.replace(".default", "")]
        assert torch.equal(there, average[name]) and not torch.equal(there, weight)
    assert finetune(*flags) == 0
    assert "finished after 3 steps" in capsys.readouterr().out
    assert finetune(*flags[:4], "--dry-run") == 0, "gradient checkpointing does not make another run"
    assert "finished after 3 steps" in capsys.readouterr().out


def test_what_is_not_here_is_said_before_anything_is_made(
    finetune: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"^--memory.attention: xformers"):
        finetune("--memory.attention", "xformers")
    monkeypatch.setattr("train.optim.is_installed", lambda library: False)
    with pytest.raises(InputError, match=r"^--optim.kind: prodigy needs the library prodigyopt"):
        finetune("--optim.kind", "prodigy", "--learning-rate", "1")
    assert not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_from_pictures_to_an_export(finetune: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole command with all of torch.compile but the C++; stopped after two steps and extended."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    assert finetune("--compile", "--max-steps", "2") == 0
    assert finetune("--compile") == 0
    assert finetune() == 0
    (compiled,), (plain,) = (list(Path("runs").glob(f"000{n}-*/export/lora.safetensors")) for n in (1, 2))
    one, other = load_file(compiled), load_file(plain)
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=1e-4)
