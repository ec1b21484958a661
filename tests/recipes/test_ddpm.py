"""fit.py, sample.py, score.py and compare.py as they are typed, in this process, on a few digits."""

import json
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
from train.ddpm.runs import comparison, grids, model, sampling, scoring, trainer
from train.ddpm.runs.config import ALIASES, CONFIGS, CompareOptions, FitConfig, SampleOptions, ScoreOptions
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
    return trainer.fit(config)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.export / "network.safetensors")


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
    with Image.open(run.path / "drawings" / "000006.png") as drawn:
        assert drawn.size == (6 * (3 * 10 - 2), 6 * 8)
    assert "0.02" not in (run.path / "README.md").read_text()
    assert newest_finished(home / "runs") is None  # generate.py must not take it for Stable Diffusion
    assert model.newest_finished_run(home / "runs") == run.path


def test_20_stopped_and_continued_gives_the_same_bits(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = ("--runs", str(tmp_path / "runs"), "--checkpoints.every", "2")
    assert fit("--max-steps", "4", *runs) == 0
    assert fit("--max-steps", "6", *runs, "--looks.pictures", "3") == 0  # what is only looked at may change
    (run,) = all_runs(tmp_path / "runs")
    assert f"continuing {run.path} after step 4" in capsys.readouterr().out
    whole = all_runs(home / "runs")[0]
    assert all(torch.equal(weight, weights(whole)[name]) for name, weight in weights(run).items())
    kept = [checkpoint.load_checkpoint(each.checkpoints / "000006", str(each.identity)) for each in (whole, run)]
    assert kept[0].average is not None and kept[1].average is not None
    assert all(torch.equal(kept[0].average[name], value) for name, value in kept[1].average.items())
    losses = [[line["loss"] for line in read_metrics(each.metrics) if "loss" in line] for each in (whole, run)]
    assert losses[0] == losses[1]
    assert fit("--max-steps", "6", *runs) == 0
    assert "is finished; --new starts over" in capsys.readouterr().out


def test_other_processes_and_precisions_do_not_go_on_unnoticed(tmp_path: Path) -> None:
    runs = ("--runs", str(tmp_path), "--drawings.every", "0", "--data.most", "20")
    assert fit("--max-steps", "1", *runs) == 0
    (run,) = all_runs(tmp_path)
    facts = run.facts("data.json")
    assert (facts["processes"], facts["precision"]) == (1, "fp32")
    run.write_json("data.json", facts | {"processes": 2})
    with pytest.raises(InputError, match=r"began with 2 processes in fp32, this would go on with 1"):
        fit("--max-steps", "2", *runs)


def test_20_a_paper_network_with_dropout_and_learned_variance_resumes_too(tmp_path: Path) -> None:
    flags = (
        *("--network.kind", "paper", "--network.widths", "8", "--network.widths", "8", "--network.blocks", "1"),
        *("--network.groups", "4", "--objective.bound", "hybrid", "--objective.variance", "learned-range"),
        *("--no-conditional", "--drawings.every", "0", "--checkpoints.every", "1", "--data.most", "20"),
    )

    def train(folder: str, steps: int) -> Run:
        assert fit(*flags, "--runs", str(tmp_path / folder), "--max-steps", str(steps)) == 0
        return all_runs(tmp_path / folder)[0]

    whole = train("whole", 3)
    train("parts", 2)
    parts = train("parts", 3)
    assert all(torch.equal(weight, weights(whole)[name]) for name, weight in weights(parts).items())
    assert model.load_model(parts.path).frame.answers == 2


def test_20_timesteps_by_importance_resume_too(tmp_path: Path) -> None:
    flags = ("--objective.bound", "importance", "--no-conditional", "--drawings.every", "0", "--data.most", "20")
    flags = (*flags, "--checkpoints.every", "5", "--schedule.steps", "2", "--batch-size", "16", "--looks.every", "9")

    def train(folder: str, *steps: int) -> Run:
        for last in steps:
            assert fit(*flags, "--runs", str(tmp_path / folder), "--max-steps", str(last)) == 0
        return all_runs(tmp_path / folder)[0]

    whole, parts = train("whole", 5), train("parts", 3, 5)
    assert all(torch.equal(weight, weights(whole)[name]) for name, weight in weights(parts).items())
    kept = [checkpoint.load_checkpoint(each.checkpoints / "000005", str(each.identity)) for each in (whole, parts)]
    assert kept[0].extra["timesteps"] == kept[1].extra["timesteps"]
    assert min(kept[0].extra["timesteps"]["counts"]) == 10  # full, so draws were no longer even


def test_drawing_with_it(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--runs", str(home / "runs"), "--count", "3", "--steps", "4", "--threads", "1", "--frames", "3"]
    flags += ["--out", str(tmp_path), "--only", "7", "--guidance", "2", "--interpolate", "--inpaint", "left"]
    assert sampling.sample(parse(SampleOptions, flags, prog="sample.py")) == 0
    said = capsys.readouterr().out
    names = ["grid", "trajectory", "progressive", "walk", "walk", "interpolation", "inpainting"]
    assert [Path(line.split()[-1]).stem for line in said.splitlines() if line.startswith("drawn")] == names


def test_a_picture_is_a_function_of_its_own_seed(home: Path) -> None:
    found = model.load_model(all_runs(home / "runs")[0].path)
    sampler = samplers.make_sampler("fixed-large", count=4)
    many = grids.generate_images(found, sampler, 3, seed=5)
    assert torch.allclose(grids.generate_images(found, sampler, 1, seed=6), many[1:2], atol=1e-5)
    assert torch.allclose(grids.generate_images(found, sampler, 3, seed=5, batch=2), many, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sampler", "ddmi"], r"--sampler: unknown sampler 'ddmi', did you mean 'ddim'"),
        (["--only", "eleven"], r"--only: unknown class 'eleven'"),
        (
            ["--sampler", "naive"],
            r"--sampler naive: the naive sampler is for networks that learnt from the course's mix",
        ),
        (["--sampler", "learned-range"], r"--sampler: the network learned no variance; allowed: fixed-large, fixed"),
        (["--spacing", "even"], r"--spacing: unknown spacing 'even'"),
        (["--eta", "0.5", "--sampler", "heun"], r"--sampler: unknown option 'eta' of sampler 'heun'"),
        (["--run", "nowhere"], r"nowhere: is no trained network"),
    ],
)
def test_drawing_refused(home: Path, flags: list[str], said: str) -> None:
    options = parse(SampleOptions, ["--runs", str(home / "runs"), "--threads", "1", *flags], prog="sample.py")
    with pytest.raises(InputError, match=said):
        sampling.sample(options)


def test_scoring_it(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--runs", str(home / "runs"), "--threads", "1", "--steps", "2", "--bits", "2", "--out", str(tmp_path)]
    with pytest.raises(InputError, match=r"--count: a Frechet distance of 20 pictures in 44 features"):
        scoring.score(parse(ScoreOptions, [*flags, "--count", "20", "--features", "descriptors"], prog="score.py"))
    with pytest.raises(InputError, match="a Frechet distance of 20 pictures in 128 features"):
        scoring.score(parse(ScoreOptions, [*flags, "--count", "20"], prog="score.py"))
    for name, said in (("fixed-larg", "did you mean 'fixed-large'"), ("learned-range", "learned no variance")):
        with pytest.raises(InputError, match=rf"--variance: .*{said}"):
            scoring.score(parse(ScoreOptions, [*flags, "--variance", name], prog="score.py"))
    enough = [*flags, "--count", "50", "--features", "descriptors"]
    assert scoring.score(parse(ScoreOptions, enough, prog="score.py")) == 0
    said = capsys.readouterr().out
    assert "features:  descriptors 1" in said
    assert "classifier that learnt from 50 drawn pictures:" in said
    assert "no floor: real, others: a Frechet distance of" in said
    facts = json.loads((tmp_path / "score.json").read_text())
    terms = {name: each["mean"] for name, each in facts["bits"].items()}
    assert terms["whole bound"] == pytest.approx(terms["rate, L_1 + ... + L_T"] + terms["distortion, L_0"])
    assert len(facts["curve"]["rate"]) == 20
    page = (tmp_path / "score.html").read_text()
    assert "ADM-G, 25 steps" in page and "Rate and distortion" in page


def test_comparing_three_networks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        *("--steps", "2", "--seeds", "1", "--bits", "2", "--pictures", "4", "--timesteps", "3", "--data.most", "40"),
        *("--schedule.steps", "10", "--drawn", "2"),
        *("--widths", "32", "--widths", "32", "--batch-size", "4", "--threads", "1", "--resamples", "100"),
        *("--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")),
    ]
    assert comparison.compare(parse(CompareOptions, flags, prog="compare.py")) == 0
    facts: dict[str, Any] = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["network"] for row in facts["table"]] == list(comparison.NAMES.values())
    assert {verdict["word"] for verdict in facts["verdicts"]} <= {"yes", "no", "cannot tell"}
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "Predictions at rising noise" in page and "UNet2DModel&#x27;s errors" in page
    assert len(all_runs(tmp_path / "runs")) == 3
    assert comparison.compare(parse(CompareOptions, flags, prog="compare.py")) == 0
    assert "is finished" in capsys.readouterr().out  # nothing is trained twice, nor measured
    again: dict[str, Any] = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert again == facts
    claims = [verdict["claim"] for verdict in facts["verdicts"]]
    assert len(claims) == 8 and "UNet2DModel needs fewer bits per dimension than BasicUNet:" in claims
    assert len(all_runs(tmp_path / "runs")) == 3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--schedule.zero-terminal-snr"], r"--schedule.zero-terminal-snr: noise .* prediction on"),
        (["--schedule.name", "foo"], r"--schedule.name: unknown noise schedule 'foo'"),
        (["--data.only", "eleven"], r"--data.only: unknown class 'eleven'"),
        (["--data.held-out", "0"], r"--data.held-out: 0 held-out pictures"),
    ],
)
def test_comparing_refused(tmp_path: Path, flags: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        comparison.compare(parse(CompareOptions, ["--runs", str(tmp_path), *flags], prog="compare.py"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--schedule.name", "linaer"], r"--schedule.name: unknown noise schedule 'linaer', did you mean 'linear'"),
        (
            ["--schedule.zero-terminal-snr"],
            r"--objective.predicts: noise .* prediction on a noise schedule with zero terminal SNR",
        ),
        (["--network.kind", "unet"], r"--network.kind: unknown kind 'unet', did you mean 'unet2d'"),
        (["--data.set", "digit"], r"--data.set: unknown set 'digit', did you mean 'digits'"),
        (["--config", "paper.yaml"], r"--config paper.yaml: no such preset .*ddpm/configs/paper-cifar10.yaml"),
        (["--data.only", "ten"], r"--data.only: unknown class 'ten'"),
        (["--data.set", "./missing"], "missing: no such folder"),
        (["--drawings.sampler", "naive"], r"--drawings.sampler: the naive sampler is for --objective.corruption mix"),
        (["--drawings.sampler", "plms"], "--drawings.sampler: unknown sampler 'plms'"),
        (["--conditional", "--data.set", "DATA"], r"--conditional: pictures of .* without a class"),
        (["--data.size", "9"], r"--data.size: network 'convnext' halves the size 1 times, which 9 pixels do not allow"),
    ],
)
def test_training_refused(tmp_path: Path, flags: list[str], said: str) -> None:
    for shade in range(4):
        Image.new("RGB", (16, 16), (60 * shade, 0, 0)).save(tmp_path / f"{shade}.png")
    given = [str(tmp_path) if flag == "DATA" else flag for flag in flags]
    with pytest.raises(InputError, match=said):
        fit("--runs", str(tmp_path / "runs"), "--max-steps", "1", *given)
    assert not all_runs(tmp_path / "runs")
