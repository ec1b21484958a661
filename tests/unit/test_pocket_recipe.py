"""The recipe of the embedded base model: its pure functions, and a loop that goes on where it stood."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data.atomic_io import write_atomic
from data.captions import with_article
from data.errors import InputError
from tools.pocket import autoencoder, latents, nouns, pictures, training
from tools.pocket.glyphs import have_fonts
from tools.pocket.muon import Muon, orthogonal
from tools.pocket.training import Losses, Plan

needs_fonts = pytest.mark.skipif(
    not (have_fonts() and nouns.EMOJI_LIST.exists()), reason="fonts-noto-color-emoji, fonts-symbola missing"
)


@pytest.mark.parametrize(
    ("noun", "said"),
    [("guitar", "a guitar"), ("apple", "an apple"), ("jeans", "jeans"), ("bus", "a bus"), ("fire", "fire"),
     ("hourglass", "an hourglass"), ("unicorn", "a unicorn"), ("dress", "a dress")],
)  # fmt: skip
def test_articles(noun: str, said: str):
    assert with_article(noun) == said


@needs_fonts
def test_nouns_are_things_and_include_those_that_unicode_lacks():
    names = nouns.all_nouns()
    assert names == sorted(set(names))
    assert 500 <= len(names) <= 700
    assert {"fridge", "calculator", "toucan", "capybara", "fire", "ghost", "guitar"} <= set(names)
    assert not any("type" in name.split() for name in names)


@needs_fonts
def test_a_picture_is_a_function_of_noun_and_variant():
    first, again = pictures.picture("guitar", 3), pictures.picture("guitar", 3)
    assert first.caption == again.caption
    assert first.pixels.tobytes() == again.pixels.tobytes()
    assert pictures.picture("guitar", 27).pixels.tobytes() != first.pixels.tobytes()


@needs_fonts
def test_every_look_names_itself_and_its_noun():
    shown = [pictures.picture("camel", variant) for variant in range(len(pictures.CYCLE))]
    assert all("camel" in picture.caption and picture.pixels.size == (64, 64) for picture in shown)
    words = {
        "line": ("drawing",), "background": ("background",), "size": ("small", "close-up"), "pair": (" and ",),
        "place": pictures.PLACES, "colour": tuple(pictures.COLOURS),
        "graphic": ("silhouette", "sticker", "pixel", "outline"),
    }  # fmt: skip
    for picture in shown:
        said = words.get(picture.look, ("camel",))
        assert any(word in picture.caption for word in said), picture.caption


@needs_fonts
def test_a_recoloured_noun_has_its_colour():
    blue = np.asarray(pictures.recoloured(pictures.glyph("apple", 0), pictures.COLOURS["blue"]), dtype=float)
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
    monkeypatch.setattr(training, "free_cores", lambda: 1)
    whole = train_tiny(tmp_path / "whole", 20)

    def interrupted(trainee: training.Trainee, folder: Path, inputs: str) -> None:
        kept(trainee, folder, inputs)
        if trainee.step == 11:
            raise InterruptedError

    kept = training.save
    monkeypatch.setattr(training, "save", interrupted)
    with pytest.raises(InterruptedError):
        train_tiny(tmp_path / "parts", 20)
    monkeypatch.setattr(training, "save", kept)
    parts = train_tiny(tmp_path / "parts", 20)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_stage_refuses_a_state_that_learned_from_something_else(tmp_path: Path):
    model = nn.Linear(2, 2)
    training.save(training.Trainee(plan_of(1), model), tmp_path, "one autoencoder")
    training.resume(training.Trainee(plan_of(1), model), tmp_path, "one autoencoder")
    with pytest.raises(InputError, match=r"trained anew since.*Remove that folder"):
        training.resume(training.Trainee(plan_of(1), model), tmp_path, "another")


def test_latents_of_another_autoencoder_are_encoded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("pool/words.json", "pool/pixels.npy", "text/model/model.safetensors"):
        write_atomic(tmp_path / name, "same")
    numbers = [torch.full((1,), float(number)) for number in range(2)]
    monkeypatch.setattr(latents, "state_folder", lambda: tmp_path)
    monkeypatch.setattr(latents, "load_pool", lambda: None)
    encoded = [dict.fromkeys(("means", "deviations", "states", "caption"), number) for number in numbers]
    monkeypatch.setattr(latents, "encode_pool", lambda _: {n: v.clone() for n, v in encoded.pop(0).items()})
    for weights, expected in (("first", 0.0), ("first", 0.0), ("second", 1.0)):
        write_atomic(tmp_path / "vae" / "model" / latents.WEIGHTS, weights)
        assert float(latents.load_latents().means) == expected


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
def test_normalised_latents_have_unit_deviation_and_the_same_pictures():
    model = autoencoder.new_autoencoder().eval()
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        before = model.decode(model.encode(pixels).latent_dist.mode()).sample  # pyright: ignore
        autoencoder.normalise(model)
        after = model.decode(model.encode(pixels).latent_dist.mode()).sample  # pyright: ignore
    assert torch.allclose(before, after, atol=1e-4)
    deviation = autoencoder.sample_latents(model).std((0, 2, 3))
    assert torch.allclose(deviation, torch.ones(4), atol=1e-3)
