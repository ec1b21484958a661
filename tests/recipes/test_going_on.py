"""What continues a run, what begins another, and what is refused in between; on twelve creatures and a tiny model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file

from data.errors import InputError
from tests.recipes.conftest import Finetune
from train.metrics import read_metrics
from train.run_folder import all_runs
from train.trainer import Diverged

FLAGS = ["--logging.tensorboard", "false"]
FIRST = Path("runs/0001-lora-r16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 is what a GPU would go on with")
@pytest.mark.parametrize(
    ("name", "before", "how"),
    [
        ("processes", 2, r" \(ACCELERATE_MIXED_PRECISION=no torchrun --nproc-per-node 2 \.\.\.\)"),
        ("precision", "bf16 with float32 trained weights", r" \(accelerate launch --mixed_precision bf16 \.\.\.\)"),
        ("precision", "fp16 with float32 trained weights", ", on a GPU"),
    ],
)
def test_other_processes_and_precisions_do_not_go_on_unnoticed(
    finetune: Finetune, name: str, before: object, how: str
) -> None:
    """Two processes see twice the pictures a step; another precision gives other weights."""
    assert finetune(steps=2) == 0
    facts = json.loads((FIRST / "plan.json").read_text())
    (FIRST / "plan.json").write_text(json.dumps(facts | {name: before}))
    words = (
        r"began with (2 processes|1 process) in .*this would go on with 1 process in fp32\. "
        rf"Start it as it was started{how}, or .*--new"
    )
    with pytest.raises(InputError, match=words):
        finetune(steps=4)
    assert json.loads((FIRST / "done").read_text()) == {"steps": 2}
    assert finetune("--new", steps=2) == 0 and len(all_runs(Path("runs"))) == 2


def test_another_noise_schedule_is_another_run(finetune: Finetune, tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    assert finetune(steps=1, model=model) == 0
    file = model / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beta_end": 0.05}))
    assert finetune(steps=2, model=model) == 0
    assert [run.done for run in all_runs(Path("runs"))] == [1, 2]


def test_a_run_without_a_checkpoint_says_that_it_begins_again(
    finetune: Finetune, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(steps=2) == 0
    shutil.rmtree(FIRST / "checkpoints")
    with pytest.raises(
        InputError, match=r"finished after 2 steps, but none of its checkpoints is whole\. --new starts"
    ):
        finetune(steps=4)
    assert (FIRST / "export" / "lora.safetensors").is_file() and (FIRST / "done").is_file()
    (FIRST / "done").unlink()
    assert finetune(steps=4) == 0
    assert "no checkpoint in runs/0001-lora-r16: starting at step 0" in capsys.readouterr().out
    steps = [line["step"] for line in read_metrics(FIRST / "metrics.jsonl") if "validation" in line]
    assert steps == [0, 4], "lines of what is done again are written once"


def test_a_finished_run_is_exported_again_where_something_is_missing(
    finetune: Finetune, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files that were deleted, a merged model that was not asked for before, another precision."""
    assert finetune(steps=2) == 0
    before = (FIRST / "export" / "lora.safetensors").read_bytes()
    for change, flags in (
        (lambda: shutil.rmtree(FIRST / "export"), []),
        (lambda: None, ["--export.merge"]),
        (lambda: None, ["--export.merge", "--export.precision", "fp16"]),
    ):
        change()
        assert finetune(*flags, steps=2) == 0
        assert "finished: runs/0001-lora-r16/export/lora.safetensors" in capsys.readouterr().out
        assert finetune(*flags, steps=2) == 0
        assert "nothing to do" in capsys.readouterr().out
        made = json.loads((FIRST / "export" / "export.json").read_text())
        assert ("model" in made["files"]) == ("--export.merge" in flags)
        if made["precision"] == "fp32":
            weights = [load_file(FIRST / "export" / "lora.safetensors"), load(before)]
            assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])
    losses = [line["step"] for line in read_metrics(FIRST / "metrics.jsonl") if "loss" in line]
    assert losses == [1, 2], "nothing was trained again"


def test_the_plan_of_a_finished_run(finetune: Finetune, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune(steps=1) == 0
    capsys.readouterr()
    assert finetune("--dry-run", steps=1) == 0
    assert "length     1 steps" in (out := capsys.readouterr().out) and ", 1 done" in out
    assert "finished after 1 steps; nothing to do" in out and "continuing" not in out


def test_a_run_that_finished_in_another_precision_says_so(
    finetune: Finetune, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(steps=1) == 0
    facts = json.loads((FIRST / "plan.json").read_text())
    (FIRST / "plan.json").write_text(json.dumps(facts | {"precision": "bf16 with float32 trained weights"}))
    capsys.readouterr()
    assert finetune(steps=1) == 0
    out = capsys.readouterr().out
    assert "finished after 1 steps; nothing to do" in out
    assert "warning: it was trained by 1 process in bf16 with float32 trained weights; this would be" in out


def test_fewer_steps_than_are_done_take_nothing_back(finetune: Finetune, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune(steps=4) == 0
    (FIRST / "done").unlink()
    assert finetune(steps=2) == 0
    assert "--max-steps 2: 4 are done already" in capsys.readouterr().out


def test_a_warm_up_that_never_ends_is_said(finetune: Finetune, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--dry-run", "--lr", "0.001"]
    assert finetune(*asked, "--optim.warmup", "10", steps=4) == 0
    out = capsys.readouterr().out
    assert "the warm-up of 10 steps is longer than the run of 4: the learning rate reaches 0.0004, not 0.001" in out
    assert finetune(*asked, "--optim.warmup", "4", steps=4) == 0
    assert "warm-up of" not in capsys.readouterr().out.replace("steps of warm-up", "")


def test_weights_that_burst_end_the_run_when_they_are_looked_at(finetune: Finetune) -> None:
    """The loss of the only step is that of the base: nothing but validation sees what came of it."""
    with pytest.raises(Diverged, match=r"at fixed noise is (nan|inf) after step 1\. No checkpoint"):
        finetune("--lr", "1e30", "--optim.clip-norm", "1e30", steps=1)
    assert not list(FIRST.glob("checkpoints/0*"))


@pytest.mark.parametrize("flags", [["--lr", "inf"], ["--optim.weight-decay", "inf"], ["--adapter.alpha", "inf"]])
def test_numbers_that_are_none_are_refused(finetune: Finetune, flags: list[str]) -> None:
    with pytest.raises(InputError, match=r"finite number"):
        finetune(*flags)


def test_schedule_free_needs_a_mean_of_gradients(finetune: Finetune) -> None:
    with pytest.raises(InputError, match=r"--optim\.beta1: schedule-free divides by it.*more than 0"):
        finetune("--optim.kind", "schedule-free", "--optim.beta1", "0")
