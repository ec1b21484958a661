"""finetune.py in this process, on twelve creatures and a tiny model."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from data.cli import parse
from tests import sessions
from train.config import ALIASES, CONFIGS, Config

QUICK = [
    *("--preserve.share", "0", "--pictures.size", "32", "--batch-size", "4", "--threads", "1", "--no-probe"),
    *("--validation.every", "4", "--validation.pictures", "2", "--validation.timesteps", "2", "--logging.every", "2"),
    *("--checkpoints.every", "2", "--optim.warmup", "0", "--optim.schedule", "constant", "--previews.every", "0"),
]
FEW = ("--adapter.targets", "attention")  # a third of the preset's layers, where it is not about them
Finetune = Callable[..., int]


@pytest.fixture
def finetune(
    tmp_path: Path, tiny_model: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Finetune:
    """The command with the flags of QUICK and of the test module's FLAGS; runs lie in tmp_path/runs."""
    monkeypatch.chdir(tmp_path)
    usual = [*QUICK, *getattr(request.module, "FLAGS", ())]

    def run(
        *flags: str,
        steps: int = 4,
        data: Path = tiny_data,
        model: Path = tiny_model,
        preset: str = "pocket.yaml",
        adapter: Sequence[str] = FEW,
    ) -> int:
        argv = ["--model", str(model), "--data", str(data), "--max-steps", str(steps), *usual, *adapter, *flags]
        config = parse(Config, argv, prog="finetune.py", preset=CONFIGS / preset, aliases=ALIASES)
        return sessions.run(config, generate=getattr(request.module, "GENERATE", None))

    return run
