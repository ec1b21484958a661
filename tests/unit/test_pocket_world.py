"""The world of the base model, and how its training reads it."""

import numpy as np
import pytest

from tools.pocket import base_training, figures, shards
from tools.pocket.attributes import SIZE
from tools.pocket.reference import reference
from tools.pocket.tokenizer import BASE, token_ids
from tools.pocket.world import HELD_OUT, sample

needs_fonts = pytest.mark.skipif(not figures.COLOUR_FONT.exists(), reason="needs fonts-noto-color-emoji")


@needs_fonts
def test_a_sample_is_a_function_of_its_number():
    first, again, other = sample(70_000), sample(70_000), sample(70_001)
    assert first.picture.size == (SIZE, SIZE)
    assert (first.caption, first.picture.tobytes()) == (again.caption, again.picture.tobytes())
    assert first.picture.tobytes() != other.picture.tobytes()


@needs_fonts
def test_captions_are_free_of_what_fine_tuning_teaches():
    words = {word for number in range(400) for word in sample(number).caption.split()}
    assert not words & {"type", "creature", "pokemon"}
    assert {"red", "and", "with"} <= words


@needs_fonts
def test_held_out_objects_never_get_an_element(monkeypatch: pytest.MonkeyPatch):
    shown = []
    monkeypatch.setattr("tools.pocket.world.ELEMENTS", (lambda subject, rng: shown.append("element"),))
    monkeypatch.setattr("tools.pocket.world.KEEP_COLOUR", (lambda subject, rng: shown.append("element"),))
    for number in range(200_000, 200_150):
        sample(number, HELD_OUT)
    assert not shown
    for number in range(200_000, 200_030):
        sample(number, ("dog",))
    assert shown


def test_a_batch_takes_half_its_slots_from_each_of_two_shards(monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(shards, "SHARD", 64)
    monkeypatch.setattr(shards, "SHARDS", 4)
    monkeypatch.setattr(shards, "EMPTY_PROMPT", 0.0)

    def numbered(index: int) -> dict[str, torch.Tensor]:
        numbers = index * 64 + torch.arange(64)
        return {"latents": numbers[:, None].half(), "ids": numbers[:, None]}

    monkeypatch.setattr(shards, "shard", numbered)
    stream, slots = shards.Stream(), list(range(shards.BATCH))
    epoch = torch.cat([stream.batch(step, slots)[1][:, 0] for step in range(4)])
    assert sorted(epoch.tolist()) == list(range(256))  # each once
    odd = stream.batch(5, slots[1::2])
    assert torch.equal(odd[1], stream.batch(5, slots)[1][1::2])  # a share is a part of the whole


def test_more_layers_change_nothing_until_they_are_trained():
    import torch
    from transformers import CLIPTextModel

    from tools.pocket.binding import LAYERS, deeper

    shipped = CLIPTextModel.from_pretrained(BASE / "text_encoder")
    encoder = deeper(shipped)
    ids = token_ids(["a red apple and a blue car"])
    with torch.no_grad():
        assert torch.equal(encoder(ids).last_hidden_state, shipped(ids).last_hidden_state)
    assert encoder.config.num_hidden_layers == LAYERS


def test_the_rate_is_steady_and_then_falls_to_the_total():
    peak, total = base_training.PEAK, 1_000_000
    assert base_training.rate(0, total) < 0.01 * peak
    assert base_training.rate(100_000, total) == base_training.rate(590_000, total) == peak
    assert base_training.rate(800_000, total) == pytest.approx(peak / 2)
    assert base_training.rate(total, total) == pytest.approx(0.01 * peak)


@needs_fonts
def test_references_show_an_object_in_the_colours_of_a_type():
    water, again, fire = (reference("fridge", kind) for kind in ("water", "water", "fire"))
    assert water.size == (SIZE, SIZE)
    assert water.tobytes() == again.tobytes() != fire.tobytes()
    red, _, blue = np.asarray(water, float)[20:44, 24:40].mean((0, 1))
    assert blue > red + 40
    red, _, blue = np.asarray(fire, float)[20:44, 24:40].mean((0, 1))
    assert red > blue + 40
    assert reference("fridge", "water", seed=1).tobytes() != water.tobytes()
