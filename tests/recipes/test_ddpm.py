"""fit.py, sample.py, score.py and compare.py as they are typed, in this process, on a few digits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from data.cli import parse
from data.errors import InputError
from train import checkpoint
from train.ddpm import samplers
from train.ddpm.runs import comparison, sampling, scoring, trainer
from train.ddpm.runs.config import ALIASES, CONFIGS, CompareOptions, FitConfig, SampleOptions, ScoreOptions
from train.ddpm.runs.model import load_model, newest_finished_run
from train.metrics import read_metrics
from train.run_folder import Run, all_runs, newest_finished

SMALL = ["--network.width", "8", "--network.multiples", "1", "--network.multiples", "2"]
TINY = [
    *("--data.most", "60", "--batch-size", "8", "--schedule.steps", "20", "--threads", "1"),
    *("--looks.every", "3", "--looks.pictures", "4", "--looks.timesteps", "2", "--drawings.count", "3"),
    *("--drawings.steps", "2", "--optim.schedule", "constant", "--log-every", "2"),
]
# diffusers 0.42.1 hands torch tensors to NumPy functions in ways that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


def fit(*flags: str) -> int:
    network = [] if "--network.kind" in flags else SMALL
    config = parse(FitConfig, [*TINY, *network, *flags], prog="fit.py", preset=CONFIGS / "digits.yaml", aliases=ALIASES)
    return trainer.fit(config)[0]


def sample(*flags: str) -> int:
    return sampling.sample(parse(SampleOptions, ["--threads", "1", *flags], prog="sample.py"))


def score(*flags: str) -> int:
    return scoring.score(parse(ScoreOptions, ["--threads", "1", *flags], prog="score.py"))


def compare(*flags: str) -> int:
    return comparison.compare(parse(CompareOptions, ["--threads", "1", *flags], prog="compare.py"))


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.export / "network.safetensors")


def check_same_weights(one: Run, other: Run) -> None:
    assert all(torch.equal(weight, weights(other)[name]) for name, weight in weights(one).items())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run in it."""
    folder = tmp_path_factory.mktemp("ddpm")
    assert fit("--max-steps", "6", "--runs", str(folder / "runs")) == 0
    return folder


def test_a_run_explains_itself(home: Path) -> None:
    (run,) = all_runs(home / "runs")
    assert run.path.name == "0001-ddpm-digits-convnext"
    for name in ("config.yaml", "data.json", "versions.json", "report.html", "README.md", "export/model.json"):
        assert (run.path / name).is_file(), name
    lines = read_metrics(run.metrics)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "validation" in line] == [0, 3, 6]
    assert (run.done, run.kind) == (6, "ddpm")
    with Image.open(run.path / "drawings" / "000006.png") as grid:
        assert grid.size == (6 * (3 * 10 - 2), 6 * 8)
    assert newest_finished(home / "runs") is None  # generate.py must not take it for Stable Diffusion
    assert newest_finished_run(home / "runs") == run.path


def test_20_stopped_and_resumed_gives_the_same_bits(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ("--runs", str(tmp_path / "runs"), "--checkpoints.every", "2")
    assert fit("--max-steps", "4", *runs) == 0
    assert fit("--max-steps", "6", *runs, "--looks.pictures", "3") == 0  # validation may change
    (run,), (whole,) = all_runs(tmp_path / "runs"), all_runs(home / "runs")
    assert f"{run.path} after step 4" in capsys.readouterr().out
    check_same_weights(run, whole)
    saved = [checkpoint.load_checkpoint(each.checkpoints / "000006", str(each.identity)) for each in (whole, run)]
    averages = [each.average or {} for each in saved]
    assert averages[0] and all(torch.equal(averages[0][name], value) for name, value in averages[1].items())
    losses = [[line["loss"] for line in read_metrics(each.metrics) if "loss" in line] for each in (whole, run)]
    assert losses[0] == losses[1]
    assert fit("--max-steps", "6", *runs) == 0
    assert "--new starts over" in capsys.readouterr().out


def test_other_processes_and_precisions_do_not_resume_unnoticed(tmp_path: Path) -> None:
    runs = ("--runs", str(tmp_path), "--drawings.every", "0", "--data.most", "20")
    assert fit("--max-steps", "1", *runs) == 0
    (run,) = all_runs(tmp_path)
    facts = run.facts("data.json")
    assert (facts["processes"], facts["precision"]) == (1, "fp32")
    run.write_json("data.json", facts | {"processes": 2})
    with pytest.raises(InputError, match="2 processes"):
        fit("--max-steps", "2", *runs)


DROPOUT = (
    *("--network.kind", "paper", "--network.widths", "8", "--network.widths", "8", "--network.blocks", "1"),
    *("--network.groups", "4", "--objective.bound", "hybrid", "--objective.variance", "learned-range"),
    *("--checkpoints.every", "1"),
)
IMPORTANCE = (
    *("--objective.bound", "importance", "--checkpoints.every", "5", "--schedule.steps", "2"),
    *("--batch-size", "16", "--looks.every", "9"),
)


@pytest.mark.parametrize(("flags", "steps"), [(DROPOUT, (2, 3)), (IMPORTANCE, (3, 5))], ids=["dropout", "importance"])
def test_20_dropout_and_importance_resume_too(tmp_path: Path, flags: tuple[str, ...], steps: tuple[int, int]) -> None:
    common = (*flags, "--no-conditional", "--drawings.every", "0", "--data.most", "20")
    for folder, ends in {"whole": steps[1:], "parts": steps}.items():
        for end in ends:
            assert fit(*common, "--runs", str(tmp_path / folder), "--max-steps", str(end)) == 0
    (whole,), (parts,) = all_runs(tmp_path / "whole"), all_runs(tmp_path / "parts")
    check_same_weights(whole, parts)
    last = f"{steps[1]:06d}"
    extra = [checkpoint.load_checkpoint(run.checkpoints / last, str(run.identity)).extra for run in (whole, parts)]
    assert extra[0]["timesteps"] == extra[1]["timesteps"]
    if flags is DROPOUT:
        assert load_model(parts.path).info.frame.answers == 2
    else:
        assert min(extra[0]["timesteps"]["counts"]) == 10  # full, so draws were no longer uniform


def test_sampling(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--runs", str(home / "runs"), "--count", "3", "--steps", "4", "--frames", "3", "--out", str(tmp_path)]
    assert sample(*flags, "--only", "7", "--guidance", "2", "--interpolate", "--inpaint", "left") == 0
    names = ["grid", "trajectory", "progressive", "walk", "walk", "interpolation", "inpainting"]
    written = [line.split()[-1] for line in capsys.readouterr().out.splitlines() if line.startswith("written")]
    assert [Path(file).stem for file in written] == names
    assert all(Path(file).is_file() for file in written)


def test_22_an_image_is_a_function_of_its_own_seed(home: Path) -> None:
    model = load_model(all_runs(home / "runs")[0].path)
    sampler = samplers.make_sampler("fixed-large", count=4)
    many = model.generate(sampler, 3, seed=5)
    assert torch.allclose(model.generate(sampler, 1, seed=6), many[1:2], atol=1e-5)
    assert torch.allclose(model.generate(sampler, 3, seed=5, batch=2), many, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_network_generates_the_same(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.compile  # without the code generator, which takes minutes
    monkeypatch.setattr(torch, "compile", lambda network, **options: real(network, backend="aot_eager", **options))
    for name, flags in {"plain": [], "compiled": ["--compile"]}.items():
        out = ["--out", str(tmp_path / name)]
        assert sample("--runs", str(home / "runs"), "--count", "2", "--steps", "2", "--no-walk", *out, *flags) == 0
    grids = [torch.frombuffer(bytearray(Image.open(tmp_path / name / "grid.png").tobytes()), dtype=torch.uint8).int()
             for name in ("plain", "compiled")]  # fmt: skip
    assert (grids[0] - grids[1]).abs().max() <= 1


def test_scoring(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--runs", str(home / "runs"), "--steps", "2", "--bits", "2", "--out", str(tmp_path)]
    assert score(*flags, "--count", "50", "--features", "descriptors") == 0
    assert "no floor: real, others" in capsys.readouterr().out
    facts = json.loads((tmp_path / "score.json").read_text())
    terms = {name: each["mean"] for name, each in facts["bits"].items()}
    assert terms["whole bound"] == pytest.approx(terms["rate, L_1 + ... + L_T"] + terms["distortion, L_0"])
    assert facts["features"] == "descriptors 1"
    assert len(facts["curve"]["rate"]) == 20
    assert len(facts["learnt"]) == 3 and [row["name"] for row in facts["rows"]] == ["drawn"]
    assert "ADM-G, 25 steps" in (tmp_path / "score.html").read_text()


def test_comparing_three_networks(tmp_path: Path) -> None:
    flags = [
        *("--steps", "2", "--seeds", "1", "--bits", "2", "--pictures", "4", "--timesteps", "3", "--data.most", "40"),
        *("--schedule.steps", "10", "--drawn", "2", "--widths", "32", "--widths", "32", "--batch-size", "4"),
        *("--resamples", "100", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")),
    ]
    assert compare(*flags) == 0
    facts: dict[str, Any] = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["network"] for row in facts["table"]] == list(comparison.NAMES.values())
    assert {verdict["word"] for verdict in facts["verdicts"]} <= {"yes", "no", "cannot tell"}
    assert len(facts["verdicts"]) == 8
    assert (tmp_path / "out" / "compare.html").is_file()
    before = [run.path.stat().st_mtime_ns for run in all_runs(tmp_path / "runs")]
    assert compare(*flags) == 0  # nothing is trained or measured twice
    assert [run.path.stat().st_mtime_ns for run in all_runs(tmp_path / "runs")] == before and len(before) == 3
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == facts


@pytest.mark.parametrize(
    ("command", "flags", "where", "what"),
    [
        (sample, ["--sampler", "ddmi"], "--sampler", "did you mean 'ddim'"),
        (sample, ["--only", "eleven"], "--only", "'eleven'"),
        (sample, ["--sampler", "naive"], "--sampler naive", "mix"),
        (sample, ["--sampler", "learned-range"], "--sampler", "no learned variance"),
        (sample, ["--spacing", "even"], "--spacing", "'even'"),
        (sample, ["--eta", "0.5", "--sampler", "heun"], "--sampler", "option of sampler 'heun': 'eta'"),
        (sample, ["--run", "nowhere"], "nowhere", "not a trained network"),
        (score, ["--count", "20", "--features", "descriptors"], "--count", "in 44 features"),
        (score, ["--count", "20"], "--count", "in 128 features"),
        (score, ["--variance", "fixed-larg"], "--variance", "did you mean 'fixed-large'"),
        (score, ["--variance", "learned-range"], "--variance", "no learned variance"),
        (compare, ["--schedule.zero-terminal-snr"], "--schedule.zero-terminal-snr", "noise"),
        (compare, ["--schedule.name", "foo"], "--schedule.name", "'foo'"),
        (compare, ["--data.only", "eleven"], "--data.only", "'eleven'"),
        (compare, ["--data.held-out", "0"], "--data.held-out", "0 held-out"),
        (fit, ["--schedule.name", "linaer"], "--schedule.name", "did you mean 'linear'"),
        (fit, ["--schedule.zero-terminal-snr"], "--objective.predicts", "zero terminal SNR"),
        (fit, ["--network.kind", "unet"], "--network.kind", "did you mean 'unet2d'"),
        (fit, ["--data.set", "digit"], "--data.set", "did you mean 'digits'"),
        (fit, ["--config", "paper.yaml"], "--config paper.yaml", "no such preset"),
        (fit, ["--data.only", "ten"], "--data.only", "'ten'"),
        (fit, ["--data.set", "./missing"], "missing", "no such folder"),
        (fit, ["--drawings.sampler", "naive"], "--drawings.sampler", "mix"),
        (fit, ["--drawings.sampler", "plms"], "--drawings.sampler", "'plms'"),
        (fit, ["--conditional", "--data.set", "DATA"], "--conditional", "without a class"),
        (fit, ["--data.size", "9"], "--data.size", "9 pixels"),
    ],
)
def test_mistakes_name_their_flag(
    home: Path, tmp_path: Path, command: Callable[..., int], flags: list[str], where: str, what: str
) -> None:
    for shade in range(4):
        Image.new("RGB", (16, 16), (60 * shade, 0, 0)).save(tmp_path / f"{shade}.png")
    runs = home / "runs" if command in (sample, score) else tmp_path / "runs"
    with pytest.raises(InputError) as caught:
        command("--runs", str(runs), *(str(tmp_path) if flag == "DATA" else flag for flag in flags))
    assert str(caught.value.where).startswith(where) and what in caught.value.what
    assert len(all_runs(runs)) == (1 if command in (sample, score) else 0)
