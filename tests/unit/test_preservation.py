"""Preserved prompts: whose targets move and by how much, what they cost, and what is wrong with a file of them."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from data.captions import count_tokens, with_article
from data.dataset import Batch, BatchLayout, EncodedDataset, Position, StepSampler, collate
from data.errors import InputError
from tests.small_runs import Toy, advance, entries, equal, seeded_unet, small_run, trained
from tests.tiny import TEXT_WIDTH
from tools.pocket.tuned import unseen_nouns
from train import device, trainer
from train.config import Config, PreservationOptions
from train.losses import PriorTeacher, freeze_teacher, read_preserved_prompts
from train.model import Denoiser, load_model
from train.run_folder import run_identity
from train.trainer import Setup
from train.training_set import load_training_set

EMPTY = torch.full((5, TEXT_WIDTH), -1.0)
WORDS = tuple(torch.full((5, TEXT_WIDTH), float(value)) for value in (1, 2, 3))


SPOT = torch.zeros(8, 8)
SPOT[1:4, 2:6] = 1.0  # less than half of the picture


class Spotted(Toy):
    """What its words say stands in a spot, and as `tone` all over the picture."""

    def __init__(self, tone: float = 0.0) -> None:
        super().__init__()
        self.tone = tone

    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, return_dict: bool) -> tuple[Tensor]:
        said = self.words(encoder_hidden_states.mean(1))[:, :, None, None]
        return (self.conv(x) * (1 + t / 1000)[:, None, None, None] + said * (SPOT + self.tone),)


def pictures(share: float, kept: Sequence[torch.Tensor] = WORDS) -> EncodedDataset:
    return EncodedDataset([entries(7)], EMPTY, seed=0, scaling_factor=0.5, dropout=0.1, kept=kept, share=share)


def batch_of(share: float, size: int = 8) -> Batch:
    source = pictures(share)
    return collate([source[Position(0, slot, 0, slot % 7)] for slot in range(size)])


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_the_target_moves_by_what_the_base_says_of_the_prompt(strength: float) -> None:
    """Its answer is conv(x) (1 + t/1000) + words(mean state) in the spot: the difference to the empty prompt is known,
    and the tone, which is all over the picture, is left out of it."""
    network, batch = Spotted(tone=0.5), batch_of(0.5)
    assert 0 < sum(batch.preserved) < 8
    target, t = torch.randn(8, 4, 8, 8), torch.arange(8) * 100
    moved = freeze_teacher(network, EMPTY, Accelerator(cpu=True), strength).shift_target(
        target, batch.latents, t, batch
    )
    said = strength * (network.words(batch.text_states.mean(1)) - network.words(EMPTY.mean(0)))
    for row, preserved in enumerate(batch.preserved):
        if preserved:
            torch.testing.assert_close(moved[row], target[row] + said[row, :, None, None] * SPOT)
        else:
            assert torch.equal(moved[row], target[row])
    assert not moved.requires_grad


def test_nothing_preserved_nothing_moves() -> None:
    batch, target = batch_of(0.0), torch.randn(8, 4, 8, 8)
    held = freeze_teacher(Toy(), EMPTY, Accelerator(cpu=True))
    assert held.shift_target(target, batch.latents, torch.zeros(8, dtype=torch.long), batch) is target


def test_which_samples_are_preserved_follows_from_their_position() -> None:
    """The share is kept, prompts come equally often, and the rest of a batch is what it is without."""
    source, plain = pictures(0.4), pictures(0.0)
    places = [Position(step, slot, 0, slot) for step in range(600) for slot in range(5)]
    items, others = [source[place] for place in places], [plain[place] for place in places]
    preserved = [item for item in items if item.preserved]
    assert len(preserved) / len(items) == pytest.approx(0.4, abs=0.03)
    counts = [sum(bool(torch.equal(item.text_states, word)) for item in preserved) for word in WORDS]
    assert sum(counts) == len(preserved) and min(counts) > 0.28 * len(preserved)
    for item, other in zip(items, others, strict=True):
        assert torch.equal(item.latents, other.latents) and torch.equal(item.noise, other.noise)
        assert item.preserved or torch.equal(item.text_states, other.text_states)
        assert not other.preserved


def test_several_processes_and_accumulation_preserve_the_same_samples() -> None:
    def found(layouts: list[BatchLayout]) -> dict[str, bool]:
        source = pictures(0.5)
        parts = [iter(StepSampler([7], layout, seed=0, start=3, stop=4)) for layout in layouts]
        items = [source[place] for part in parts for places in part for place in places]
        return {f"{item.sample_id} {item.timestep_uniform}": item.preserved for item in items}

    whole = found([BatchLayout(8)])
    assert whole == found([BatchLayout(2, 2, 2, 0), BatchLayout(2, 2, 2, 1)]) and 0 < sum(whole.values()) < 8


def anchored_run(folder: Path, **changes: Any) -> tuple[trainer.TrainState, trainer.TrainContext]:
    """A run of a toy whose batches hold preserved prompts."""
    state, task = small_run(folder, Toy(), **changes)
    source = pictures(0.5)

    def batches(start: int, stop: int) -> Any:
        sampler = StepSampler([7], task.layout, seed=0, start=start, stop=stop)
        return iter([collate([source[place] for place in places]) for places in sampler])

    teacher = freeze_teacher(Spotted(), EMPTY, Accelerator(cpu=True))
    return state, replace(task, batches=batches, teacher=teacher)


def test_training_leaves_the_base_as_it_was_and_accumulation_is_one_batch(tmp_path: Path) -> None:
    state, task = anchored_run(tmp_path, batch_size=8)
    advance(state, task, 3)
    assert task.teacher is not None
    assert equal(task.teacher.base.unet.state_dict(), Toy().state_dict())
    parts, other = anchored_run(tmp_path, batch_size=2, accumulate=4)
    advance(parts, other, 3)
    for name, weight in trained(parts).items():
        torch.testing.assert_close(weight, trained(state)[name], atol=1e-6, rtol=1e-5)
    unheld, last = anchored_run(tmp_path, batch_size=8)
    advance(unheld, replace(last, teacher=None), 3)
    assert not equal(trained(unheld), trained(state))


def test_a_base_that_is_the_network_keeps_the_direction_and_learns_the_rest() -> None:
    """With the target at its optimum, e(c) - e("") is the base's for preserved prompts: the loss there is 0."""
    network, batch = Spotted(), batch_of(0.5)
    t = torch.arange(8) * 100
    empty = Denoiser(network)(batch.latents, t, EMPTY.expand(8, -1, -1)).detach()  # the look: whatever it says
    wanted = freeze_teacher(network, EMPTY, Accelerator(cpu=True)).shift_target(empty, batch.latents, t, batch)
    said = Denoiser(network)(batch.latents, t, batch.text_states)
    rows = torch.tensor(batch.preserved)
    torch.testing.assert_close(said[rows], wanted[rows], atol=1e-5, rtol=1e-5)


def test_the_shipped_list_holds_no_word_that_the_base_is_judged_by() -> None:
    prompts = read_preserved_prompts(PreservationOptions(share=0.5))
    assert len(prompts) > 100 and len(set(prompts)) == len(prompts)
    shown = ["fridge", "car", "guitar", "house"]
    assert not set(prompts) & {with_article(noun) for noun in [*unseen_nouns(), *shown]}
    report = count_tokens(prompts, load_model("pocket").tokenizer)
    assert not report.cut


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"# only a comment\n\n", "contains no prompt"), (b"\xff\xfe\x00", "is not UTF-8")],
)
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        read_preserved_prompts(PreservationOptions(share=0.5, prompts=path))
    assert "--preserve.prompts" in str(raised.value) and str(path) in str(raised.value)
    assert read_preserved_prompts(PreservationOptions(prompts=path)) == []  # nobody asks for it


def write_set(folder: Path) -> str:
    """Four captioned pictures of noise."""
    folder.mkdir()
    for number in range(4):
        picture = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(picture).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}\n")
    return str(folder)


def test_the_base_is_asked_as_the_trained_network_is(bf16_on_cpu: Accelerator) -> None:
    """In half precision, and never in weights of one precision and numbers of another."""
    unet = seeded_unet()
    draw = torch.Generator().manual_seed(1)
    x, said = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 5, TEXT_WIDTH, generator=draw)
    t, preserved = torch.tensor([100, 900]), torch.ones(2, dtype=torch.bool)
    batch = cast(Batch, SimpleNamespace(text_states=said, preserved=preserved))
    zero = torch.zeros_like(x)
    exact = PriorTeacher(Denoiser(copy.deepcopy(unet)), EMPTY).shift_target(zero, x, t, batch)
    unet.to(torch.bfloat16)
    seen: set[tuple[torch.dtype, torch.dtype]] = set()

    def note(layer: Any, given: Any, answer: Tensor) -> None:
        seen.add((layer.weight.dtype, answer.dtype))

    held = freeze_teacher(unet, EMPTY, bf16_on_cpu)
    for name in ("norm1", "conv1"):
        held.base.unet.get_submodule(f"down_blocks.0.resnets.0.{name}").register_forward_hook(note)
    found = held.shift_target(zero, x, t, batch)
    assert seen == {(torch.bfloat16, torch.bfloat16)}
    assert 0 < (found - exact).norm() < 0.05 * exact.norm()


def test_a_run_is_held_as_strongly_as_its_settings_say(tmp_path: Path) -> None:
    settings = {"data": [write_set(tmp_path / "set")], "preserve": {"share": 0.5, "strength": 0.6}}
    config, model = Config.model_validate(settings), load_model("pocket")
    dataset = load_training_set(config, model)
    _, teacher = trainer.build_state(Setup(config, device.start_accelerator(config), model, dataset, "run"))
    assert teacher is not None and teacher.strength == 0.6


def test_prompts_count_by_their_words_not_by_their_file(tmp_path: Path) -> None:
    """The run's identity and the collection's fingerprint; a prompt that is too long is named."""
    model, found = load_model("pocket"), {}
    captioned = write_set(tmp_path / "set")
    for name, text in (("one", "a cat\n"), ("two", "a cat\n"), ("three", "a dog\n"), ("long", "a cat " * 60)):
        (tmp_path / name).write_text(text)
        config = Config.model_validate({"data": [captioned], "preserve": {"share": 0.5, "prompts": tmp_path / name}})
        collection = load_training_set(config, model)
        found[name] = run_identity(config, collection.fingerprint, "model")
        assert any("preserved prompt" in cut for cut in collection.captions_cut) == (name == "long")
    plain = Config.model_validate({"data": [captioned]})
    found["none"] = run_identity(plain, load_training_set(plain, model).fingerprint, "model")
    assert found["one"] == found["two"] and len(set(found.values())) == 4
