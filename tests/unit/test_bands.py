"""Losses by band of timesteps add up to the loss of all."""

import pytest
import torch

from train import metrics


def test_every_sample_falls_into_its_band() -> None:
    t = torch.tensor([0, 249, 250, 499, 500, 999])
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    found = metrics.bin_losses(losses, t, 1000)
    assert found.tolist() == [[3.0, 12.0, 16.0, 32.0], [2.0, 2.0, 1.0, 1.0]]


@pytest.mark.parametrize("steps", [4, 10, 1000])
def test_bands_part_the_timesteps_as_their_names_say(steps: int) -> None:
    t = torch.arange(steps)
    sums, counts = metrics.bin_losses(torch.ones(steps), t, steps).tolist()
    assert sum(counts) == steps and sums == counts
    names = metrics.mean_by_bin(sums, counts, steps)
    for index, (name, mean) in enumerate(names.items()):
        first, last = map(int, name.split("-"))
        assert mean == 1.0
        assert metrics.bin_losses(torch.ones(steps), t, steps)[1, index] == last - first + 1
        inside = t[first : last + 1]
        assert metrics.bin_losses(torch.ones(len(inside)), inside, steps)[1, index] == len(inside)


def test_an_empty_band_is_null() -> None:
    assert metrics.mean_by_bin([2.0, 0.0, 0.0, 1.0], [4.0, 0.0, 0.0, 1.0], 1000) == {
        "0-249": 0.5,
        "250-499": None,
        "500-749": None,
        "750-999": 1.0,
    }


def test_half_precision_losses_are_added_in_float32() -> None:
    losses = torch.full((4096,), 1.0, dtype=torch.float16)
    found = metrics.bin_losses(losses, torch.zeros(4096, dtype=torch.long), 1000)
    assert found[0, 0] == 4096.0
