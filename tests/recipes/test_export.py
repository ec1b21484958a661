"""A finished run exported again, through the command's own job: what it leaves, and from which weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from data.atomic_io import current_umask
from data.cli import parse
from data.errors import InputError
from tests import sessions
from train import model
from train.config import ALIASES, CONFIGS, Config, ReexportOptions
from train.exporters import run_export
from train.run_folder import Run

ROOT = Path(__file__).parents[2]
QUICK = [
    *("--preserve.share", "0"),
    *("--pictures.size", "32", "--validation.every", "4", "--validation.pictures", "2"),
    *("--validation.timesteps", "2", "--checkpoints.every", "1", "--logging.every", "2", "--threads", "1"),
    *("--optim.warmup", "0", "--optim.schedule", "constant", "--logging.tensorboard", "false", "--no-probe"),
]


def finetune(folder: Path, model: Path, data: Path, *flags: str, steps: int = 2, batch: int = 4) -> Run:
    where = ["--model", str(model), "--data", str(data), "--runs", str(folder)]
    argv = [*where, "--max-steps", str(steps), "--batch-size", str(batch), *QUICK, *flags]
    assert sessions.run(parse(Config, argv, prog="finetune.py", preset=CONFIGS / "pocket.yaml", aliases=ALIASES)) == 0
    return Run(next(path for path in folder.iterdir() if path.name.startswith("0001")))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_data: Path) -> Run:
    """Two steps of DoRA with ranks and dropout, which also leave the merged model as one file."""
    shape = ["--adapter.use-dora", "--adapter.dropout", "0.1", "--adapter.ranks", "mid_block=4", "--lr", "0.01"]
    return finetune(tmp_path_factory.mktemp("runs"), tiny_model, tiny_data, *shape, "--export.single-file")


def export(run: Run, *flags: str) -> None:
    assert run_export.run_reexport(parse(ReexportOptions, [str(run.path), *flags], prog="export.py")) == 0


def test_a_run_leaves_what_was_asked_and_says_how_to_use_it(run: Run) -> None:
    names = ["lora.safetensors", "lora-kohya.safetensors", "model.safetensors"]
    assert {path.name for path in run.export.iterdir()} == {*names, "export.json"}
    assert run.facts("export/export.json") == {"step": 2, "precision": "fp32", "files": names}
    card = (run.path / "README.md").read_text()
    assert all(f"`export/{name}`" in card for name in names)
    assert f"<lora:{run.path.name}:1>" in card
    assert "alpha / rank = 1" in card and "`dora_scale`" in card and "licence applies" in card
    with safe_open(run.export / "lora-kohya.safetensors", framework="pt") as file:
        header = file.metadata()
    assert {oct(file.stat().st_mode)[-3:] for file in run.export.rglob("*.safetensors")} == {
        oct(0o666 & ~current_umask())[-3:]
    }, "others may read what others are to load"
    assert header["ss_steps"] == "2" and header["ss_network_dim"] == "Dynamic"
    training = run.facts("plan.json")["training"]
    buckets = json.loads(header["ss_bucket_info"])["buckets"]
    assert buckets == {"0": {"resolution": [32, 32], "count": training}}, "as AUTOMATIC1111's LoRA page reads it"
    assert int(header["ss_epoch"]) == round(2 * 4 / training)
    assert "Blocks with their own rank keep alpha / rank: mid_block=4." in card
    assert header["modelspec.architecture"] == "small-stable-diffusion-v1/lora"
    assert header["modelspec.resolution"] == "32x32"


@pytest.fixture
def bf16(fresh_accelerate: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")


@pytest.mark.parametrize("flags", [["--adapter.kind", "full"], ["--adapter.kind", "lora", "--export.merge"]], ids=str)
@pytest.mark.usefixtures("bf16")
def test_what_was_trained_in_mixed_precision(
    flags: list[str], tmp_path: Path, tiny_model: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is compared with the trained weights' own answer, not with one rounded by autocast."""
    targets = [] if "full" in flags else ["--adapter.targets", "attention"]
    run = finetune(tmp_path, tiny_model, tiny_data, *flags, *targets, "--export.single-file", "--lr", "0.001")
    assert "bf16 with float32 trained weights" in capsys.readouterr().out
    exported = model.load_model(str(run.export / "model")).unet.state_dict()
    trained = load_file(run.checkpoints / "000002" / "weights.safetensors")
    if "full" in flags:
        assert all(torch.equal(exported[name], weight) for name, weight in trained.items())


def test_the_same_weights_again_bit_for_bit(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(run, "--single-file", "--output", str(tmp_path))
    for name in ("lora.safetensors", "lora-kohya.safetensors", "model.safetensors"):
        mine, theirs = load_file(tmp_path / name), load_file(run.export / name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), name
    assert "the weights of step 2, each file loaded back and compared:" in capsys.readouterr().out


def test_the_card_names_what_was_exported_later(tmp_path: Path, tiny_model: Path, tiny_data: Path) -> None:
    run = finetune(tmp_path, tiny_model, tiny_data, "--adapter.targets", "attention")
    before = (run.path / "README.md").read_text()
    assert "`export/model`" not in before
    export(run, "--merge")
    after = (run.path / "README.md").read_text()
    table = [line for line in after.splitlines() if line.startswith("| `export/")]
    assert len(table) == 3 and "`export/model`" in table[-1]
    assert [line for line in after.splitlines() if line not in table[-1:]] == before.splitlines()


def test_an_extended_run_can_be_made_again_from_its_own_settings(
    tmp_path: Path, tiny_model: Path, tiny_data: Path
) -> None:
    finetune(tmp_path, tiny_model, tiny_data, "--adapter.targets", "attention", steps=1)
    run = finetune(tmp_path, tiny_model, tiny_data, "--adapter.targets", "attention", steps=2)
    flags = ["--config", str(run.path / "config.yaml"), "--runs", str(tmp_path / "again")]
    config = parse(Config, flags, prog="finetune.py", preset=CONFIGS / "pocket.yaml", aliases=ALIASES)
    assert config.max_steps == 2 and sessions.run(config) == 0
    again = load_file(tmp_path / "again" / "0001-lora-r16" / "export" / "lora.safetensors")
    assert all(torch.equal(weight, again[key]) for key, weight in load_file(run.export / "lora.safetensors").items())


def test_an_earlier_step_in_half_precision_has_a_folder_of_its_own(run: Run) -> None:
    before = (run.export / "lora.safetensors").read_bytes()
    export(run, "--checkpoint", "1", "--merge", "--precision", "fp16")
    folder = run.export / "step-1" / "fp16"
    assert json.loads((folder / "export.json").read_text())["step"] == 1
    assert {tensor.dtype for tensor in load_file(folder / "lora.safetensors").values()} == {torch.float16}
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (folder / "model" / part).glob("*.safetensors")
        assert {tensor.dtype for tensor in load_file(file).values() if tensor.is_floating_point()} == {torch.float16}
    assert (run.export / "lora.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--checkpoint", "7"], "--checkpoint: the weights of step 7 are not kept; allowed: 1, 2"),
        (["--checkpoint", "last"], "--checkpoint: 'last' is no step; allowed: a number of optimiser steps, or best"),
        (["--model", "pocket"], "--model pocket: not the base model that the run was trained on: its unet, vae"),
    ],
)
def test_mistakes_are_one_clear_line(run: Run, flags: list[str], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        export(run, *flags)
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_that_is_no_run_is_refused_by_the_command(tmp_path: Path) -> None:
    argv = [sys.executable, str(ROOT / "train" / "export.py"), str(tmp_path)]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/config.yaml: not a run's folder (No such file or directory).")


def test_a_run_with_dropout_that_was_stopped_ends_in_the_same_weights(
    tmp_path: Path, tiny_model: Path, tiny_data: Path
) -> None:
    """Extended from 1 step to 2, or in halves of the batch: the masks follow from positions alone."""
    shape = ["--adapter.targets", "attention", "--adapter.dropout", "0.3", "--lr", "0.01"]
    shape += ["--optim.epsilon", "0.01"]  # no sign of a tiny gradient counts
    whole = load_file(finetune(tmp_path / "whole", tiny_model, tiny_data, *shape).export / "lora.safetensors")
    finetune(tmp_path / "parts", tiny_model, tiny_data, *shape, steps=1)
    parts = load_file(finetune(tmp_path / "parts", tiny_model, tiny_data, *shape).export / "lora.safetensors")
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    summed = finetune(tmp_path / "summed", tiny_model, tiny_data, *shape, "--accumulate", "2", batch=2)
    for name, tensor in load_file(summed.export / "lora.safetensors").items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-4, atol=1e-6)


def test_the_last_layers_alone_are_trained_and_exported(tmp_path: Path, tiny_model: Path, tiny_data: Path) -> None:
    """By threads side by side, whose way of asking for gradients once ended in a segmentation fault here."""
    shape = ["--adapter.kind", "full", "--adapter.blocks", "last-layers", "--threads", "2"]
    shape += ["--export.precision", "bf16"]
    run = finetune(tmp_path, tiny_model, tiny_data, *shape)
    assert run.path.name == "0001-full-last-layers"
    export(run)
    mine = load_file(run.export / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    before = load_file(tiny_model / "unet" / "diffusion_pytorch_model.safetensors")
    changed = {name for name in before if not torch.equal(mine[name], before[name])}
    wanted = {name for name in before if name.startswith(("up_blocks.1.", "conv_norm_out.", "conv_out."))}
    assert changed == wanted
    assert not (run.export / "bf16").exists()
    half = load_file(run.export / "model" / "vae" / "diffusion_pytorch_model.safetensors")
    assert next(iter(half.values())).dtype == torch.float32, "exported again in fp32"
