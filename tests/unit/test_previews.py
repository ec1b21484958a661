"""Previews are pictures of their prompt and seed alone, appear whole or not at all, and the training feels nothing."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data.errors import InputError
from infer import metadata
from infer import previews as drawing
from train import adapters, model
from train.config import Config, LoraOptions
from train.metrics import MetricsLogger
from train.model import load_model
from train.samples import PreviewImage, PreviewRequest, PreviewSampler, choose_previews

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_previews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test is given the base's pictures that another one drew."""
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))


class Said(MetricsLogger):
    def __init__(self) -> None:
        self.words: list[str] = []
        self.pictures: list[tuple[str, int, Path]] = []

    def say(self, text: str) -> None:
        self.words.append(text)

    def log_image(self, name: str, step: int, file: Path) -> None:
        assert file.is_file()
        self.pictures.append((name, step, file))


def blank(asked: PreviewRequest) -> list[str]:
    """Draws nothing much, quickly."""
    for index, question in enumerate(asked.questions):
        Image.new("RGB", (4, 4)).save(asked.folder / f"{index:05d}-{question.seed}.png")
    Image.new("RGB", (4, 4)).save(asked.folder / "strip.png")
    return []


def images_of(**options: Any) -> list[PreviewImage]:
    settings = {"steps": 2, "prompts": ["a water type fridge", "a fire"], **options}
    return choose_previews(Config.model_validate({"previews": settings}), EMPTY_SET)


NOTHING: Any = None
EMPTY_SET: Any = SimpleNamespace(held_out=[], train=[], prompts={})


def easel(folder: Path, draw: Callable[[PreviewRequest], list[str]] | None = blank, **options: Any) -> PreviewSampler:
    settings = {"previews": {"steps": 2, **options}, "validation": {"every": 4}}
    config, nothing = Config.model_validate(settings), NOTHING
    place = folder / "previews"
    return PreviewSampler(config, images_of(**options), place, nothing, 64, "this run", "fp32", CPU, draw)


def real_easel(folder: Path, tiny_model: Path, **options: Any) -> PreviewSampler:
    return replace(easel(folder, drawing.generate_previews, **options), model=model.load_model(str(tiny_model)))


def trained_unet(model: model.BaseModel, seed: int = 0) -> Any:
    """A U-Net with a LoRA that changes something, as in the middle of a training."""
    unet: Any = model.unet
    adapters.inject(unet, LoraOptions(), seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapters.trainable_parameters(unet).items():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=draw) * 0.1)
    return unet.train()


def pixels(folder: Path) -> dict[str, bytes]:
    return {path.name: opened(path).tobytes() for path in folder.glob("0*.png")}


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


@pytest.mark.parametrize(("every", "due"), [(None, [0, 4, 8, 9]), (3, [0, 3, 6, 9]), (100, [0, 9])])
def test_when_they_are_due(tmp_path: Path, every: int | None, due: list[int]) -> None:
    found = easel(tmp_path, every=every)
    assert [step for step in range(10) if found.due(step, last=step == 9)] == due


def test_without_prompts_or_an_interval_there_are_none() -> None:
    assert images_of(prompts=[])[2:] == [] and images_of(every=0) == []


def test_each_prompt_has_the_same_seeds() -> None:
    images = images_of(count=2, seed=7, prompts=["a", "b", "a"])
    assert [(image.prompt, image.seed) for image in images] == [("a", 7), ("a", 8), ("b", 7), ("b", 8)]


def test_a_picture_depends_on_its_prompt_and_seed_alone(tmp_path: Path, tiny_model: Path) -> None:
    """More prompts, another order: no other picture changes. And it is the picture that generate.py would draw."""
    few = real_easel(tmp_path / "few", tiny_model, prompts=["a fire"])
    many = real_easel(tmp_path / "many", tiny_model, prompts=["a water type fridge", "a fire", "grass"], count=2)
    unet = trained_unet(model.load_model(str(tiny_model)))
    for each in (few, many):
        each.save(unet, 0, Said())
        each.save(unet, 4, Said())
    one, several = pixels(few.place(4)), pixels(many.place(4))
    assert one["00000-42.png"] == several["00002-42.png"]
    assert len(set(several.values())) == 6


def test_a_picture_says_how_it_was_made(tmp_path: Path, tiny_model: Path) -> None:
    board = real_easel(tmp_path, tiny_model, prompts=["a fire"])
    unet = trained_unet(model.load_model(str(tiny_model)))
    report = Said()
    board.save(unet, 0, report)
    board.save(unet, 4, report)
    base, tuned = (metadata.read_metadata(board.place(step) / "00000-42.png") for step in (0, 4))
    assert (tuned.prompt, tuned.seed, tuned.steps, tuned.guidance_scale) == ("a fire", 42, 2, 4.0)
    assert tuned.model.name == f"{base.model.name}, step 4"
    assert tuned.model.fingerprint != base.model.fingerprint == board.model.fingerprint
    assert "Seed: 42," in metadata.read_image_texts(board.place(4) / "00000-42.png")["parameters"]
    assert {path.name for path in board.place(4).iterdir()} == {"00000-42.png", "strip.png", "preview.json"}
    width = [opened(board.place(step) / "strip.png").width for step in (0, 4)]
    assert width[1] > 1.8 * width[0], "base beside tuned"
    assert report.pictures == [("previews", step, board.place(step) / "strip.png") for step in (0, 4)]
    assert report.words == []


def test_the_training_feels_nothing(tmp_path: Path, tiny_model: Path) -> None:
    """Weights, gradients, dtypes, modes, memory formats and every generator are as they were; so is the base model."""
    board = real_easel(tmp_path, tiny_model)
    unet = trained_unet(model.load_model(str(tiny_model)))
    unet.to(memory_format=torch.channels_last)
    unet.down_blocks[0].eval()  # a part that is frozen in its own way
    for parameter in adapters.trainable_parameters(unet).values():
        parameter.grad = torch.ones_like(parameter)

    def state() -> list[Any]:
        named = [(n, p.dtype, p.stride(), p.requires_grad, p.data_ptr()) for n, p in unet.named_parameters()]
        modes = [(name, module.training) for name, module in unet.named_modules()]
        generators: list[Any] = [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]
        return [named, modes, generators, torch.is_grad_enabled(), torch.is_autocast_enabled()]

    torch.manual_seed(3)
    before, weights = state(), [parameter.detach().clone() for parameter in unet.parameters()]
    board.save(unet, 0, Said())
    board.save(unet, 4, Said())
    assert board.exists(4)
    assert state() == before
    assert all(torch.equal(a, b) for a, b in zip(weights, unet.parameters(), strict=True))
    assert all(bool((p.grad == 1).all()) for p in adapters.trainable_parameters(unet).values() if p.grad is not None)
    assert not {"vae", "text_encoder", "unet"} & vars(board.model).keys(), "loaded parts stayed in memory"
    unet.zero_grad()
    noisy, states = torch.zeros(1, 4, 16, 16), torch.zeros(1, 77, 32)
    unet(noisy, torch.tensor([1]), states, return_dict=False)[0].sum().backward()
    assert all(p.grad is not None for p in adapters.trainable_parameters(unet).values()), "it can go on training"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            InputError("the device has too little memory", where="--device"),
            "--device: the device has too little memory",
        ),
        (RuntimeError("shapes do not\nfit"), "RuntimeError: shapes do not"),
        (ZeroDivisionError(), "ZeroDivisionError: ZeroDivisionError"),
    ],
)
def test_a_failure_is_said_and_leaves_nothing(tmp_path: Path, error: Exception, words: str) -> None:
    def fail(asked: PreviewRequest) -> list[str]:
        (asked.folder / "00000-42.png").write_bytes(b"half a picture")
        raise error

    unet = nn.Dropout().train()
    board, report = easel(tmp_path, fail), Said()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    board.save(unet, 0, report)
    assert report.words == [f"step 0: no previews ({words}); the training continues"]
    assert list((tmp_path / "previews").iterdir()) == []
    assert unet.training and torch.equal(torch.get_rng_state(), before) and torch.is_grad_enabled()
    assert report.pictures == []


def test_a_stop_asked_for_twice_is_obeyed(tmp_path: Path) -> None:
    def interrupted(asked: PreviewRequest) -> list[str]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        easel(tmp_path, interrupted).save(None, 0, Said())
    assert list((tmp_path / "previews").iterdir()) == []


def test_a_nan_picture_is_said(tmp_path: Path, tiny_model: Path) -> None:
    board = real_easel(tmp_path, tiny_model)
    unet = trained_unet(model.load_model(str(tiny_model)))
    with torch.no_grad():
        next(iter(adapters.trainable_parameters(unet).values())).fill_(float("nan"))
    report = Said()
    board.save(unet, 4, report)
    (note,) = report.words
    assert "2 of 2" in note and "NaN" in note
    verdicts = [metadata.read_metadata(board.place(step) / "00000-42.png").verdict for step in (0, 4)]
    assert verdicts == ["ok", "nan"], "the base draws as ever"


def test_a_prompt_that_is_too_long_is_said(tmp_path: Path, tiny_model: Path) -> None:
    board, report = real_easel(tmp_path, tiny_model, prompts=["fire " * 80]), Said()
    unet = trained_unet(model.load_model(str(tiny_model)))
    board.save(unet, 0, report)
    board.save(unet, 4, report)
    assert len(report.words) == 1, "once is enough"
    assert report.words[0].startswith("step 0: previews: the prompt 'fire fire")
    assert "80 tokens" in report.words[0] and "lost: 'fire fire" in report.words[0]


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    half = tmp_path / "previews" / ".000004.x.part"
    half.mkdir(parents=True)
    board = easel(tmp_path)
    board.save(None, 0, Said())
    assert [path.name for path in (tmp_path / "previews").iterdir()] == ["000000"]


def test_the_base_is_drawn_once_and_again_for_other_prompts(tmp_path: Path) -> None:
    drawn: list[tuple[bool, int, bool]] = []

    def noting(asked: PreviewRequest) -> list[str]:
        drawn.append((asked.unet is None, len(asked.questions), asked.beside is not None))
        return blank(asked)

    unet = nn.Dropout()
    board = easel(tmp_path, noting)
    for step in (0, 4, 4, 8):
        board.save(unet, step, Said())
    assert drawn == [(False, 2, False), (False, 2, True), (False, 2, True)]
    drawn.clear()
    other = easel(tmp_path, noting, prompts=["one"])
    other.save(unet, 8, Said())
    assert drawn == [(True, 1, False), (False, 1, True)], "the base's own network, from its file"
    assert len(json.loads((other.place(0) / "preview.json").read_text())["pictures"]) == 1


def test_the_bases_own_network_draws_what_step_0_drew(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LoRA starts as nothing: whether the base was drawn at step 0 or afterwards is the same."""
    first = real_easel(tmp_path / "a", tiny_model)
    model = load_model(str(tiny_model))
    adapters.inject(model.unet, LoraOptions(), 0)
    first.save(model.unet, 0, Said())
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "nothing drawn yet"))
    later = real_easel(tmp_path / "b", tiny_model)
    later.save(trained_unet(load_model(str(tiny_model))), 4, Said())
    assert pixels(first.place(0)) == pixels(later.place(0)) != pixels(later.place(4))


def test_other_processes_draw_nothing(tmp_path: Path) -> None:
    board = easel(tmp_path, None)
    assert board.due(0, last=False), "all processes agree on when"
    board.save(None, 0, Said())
    assert list(tmp_path.iterdir()) == []
