"""The recipe of the embedded base model: its pure functions, and a loop that goes on where it stood."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tools.pocket import autoencoder, figures, training
from tools.pocket.muon import Muon, orthogonal
from tools.pocket.training import Losses, Plan

needs_fonts = pytest.mark.skipif(not figures.COLOUR_FONT.exists(), reason="needs fonts-noto-color-emoji")


@needs_fonts
def test_a_recoloured_noun_has_its_colour():
    blue = np.asarray(figures.figure("apple", 0, "blue"), dtype=float)
    mean = blue[blue[..., 3] > 128][:, :3].mean(0)
    assert mean[2] > mean[0] + 60


def plan_of(steps: int) -> Plan:
    return Plan("tiny", steps=steps, peak=0.05, warmup=2, muon=True, save_every=0.0, log_every=5)


def tiny_task() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16)), torch.randn(16, 16)


def train_tiny(folder: Path, steps: int) -> dict[str, torch.Tensor]:
    model, target = tiny_task()

    def losses_at(step: int) -> Losses:
        inputs = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))
        return {"loss": (model(inputs) - inputs @ target).square().mean()}

    return training.fit(plan_of(steps), model, losses_at, folder).state_dict()


def test_a_stage_goes_on_where_it_stood_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = train_tiny(tmp_path / "whole", 20)

    def interrupted(trainee: training.Trainee, path: Path) -> None:
        kept(trainee, path)
        if trainee.step == 11:
            raise InterruptedError

    kept = training.save
    monkeypatch.setattr(training, "save", interrupted)
    with pytest.raises(InterruptedError):
        train_tiny(tmp_path / "parts", 20)
    monkeypatch.setattr(training, "save", kept)
    parts = train_tiny(tmp_path / "parts", 20)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_process_ends_with_the_one_that_started_it():
    inner = "import os, sys; from tools.pocket.parallel import follow; follow(int(sys.argv[1]))"
    outer = f"import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', {inner!r}, str(os.getpid())])"
    # the pipe closes when the last process that holds it ends, which is the inner one
    subprocess.run([sys.executable, "-c", outer], stdout=subprocess.PIPE, timeout=120, check=True)


def test_the_learning_rate_warms_up_and_falls_in_a_line():
    plan = Plan("any", steps=1100, peak=1.0, warmup=100)
    assert plan.rate(0) == pytest.approx(0.01)
    assert plan.rate(99) == pytest.approx(1.0)
    assert plan.rate(600) == pytest.approx(0.5)
    assert plan.rate(1099) == pytest.approx(0.02)


def test_muon_makes_singular_values_equal_and_learns():
    values = torch.linalg.svdvals(orthogonal(torch.randn(20, 50, generator=torch.Generator().manual_seed(1))))
    assert values.min() > 0.5
    assert values.max() < 1.4
    weight = nn.Parameter(torch.zeros(16, 16))
    optimizer = Muon([weight], lr=0.05, weight_decay=0.0)
    for _ in range(60):
        optimizer.zero_grad()
        (weight - torch.eye(16)).square().sum().backward()
        optimizer.step()
    assert (weight - torch.eye(16)).square().sum().item() < 1.0


def test_opponent_axes_see_green_against_magenta():
    magenta = torch.tensor([1.0, -1.0, 1.0])[None, :, None, None]
    assert autoencoder.opponent(magenta).flatten().tolist() == pytest.approx([1 / 3, -2.0, 1.0])
    assert autoencoder.opponent(torch.ones(1, 3, 1, 1)).flatten().tolist() == pytest.approx([1.0, 0.0, 0.0])


@needs_fonts
def test_crops_for_the_autoencoder_show_faces_under_their_masks():
    crops = [autoencoder.crop_of(number) for number in range(24)]
    assert (
        {picture.size for picture, _ in crops} == {(autoencoder.CROP, autoencoder.CROP)} == {m.size for _, m in crops}
    )
    assert 6 < sum(mask.getbbox() is not None for _, mask in crops) < 22
    pixels = torch.zeros(1, 3, 8, 8)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    error = torch.zeros(1, 3, 8, 8)
    error[..., :2] = 0.1
    on_face = autoencoder.reconstruction_losses(pixels + error, pixels, mask)
    beside = autoencoder.reconstruction_losses(pixels + error.flip(3), pixels, mask)
    assert on_face["loss"] > 2 * beside["loss"] > 0
