"""Randomness from position: known values, no repetition, no drift between processes, and sane statistics."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise, permutations

import pytest
import torch

from data import rng

N = 20_000


def test_known_values() -> None:
    # a changed value silently changes every split, picture and training run: it needs an entry in the changelog
    assert rng.seed_for() == 8238016292129134938
    assert rng.seed_for(42, "noise", 7, 3) == 2929579264272456770
    assert rng.seed_for("água") == 8834733732262743110
    assert rng.seed_for(-1) == 4378363081926956612
    assert rng.uniform(42, "flip", 0) == 0.4509218011707915
    assert rng.integer(1000, 42, "x") == 783
    assert rng.permutation(8, 42, "epoch", 0) == [3, 5, 0, 4, 1, 2, 7, 6]
    expected = torch.tensor([1.449162244796753, 0.648682713508606, -0.9186654090881348, 0.4907524883747101])
    torch.testing.assert_close(rng.normal((4,), 42, "noise", 0), expected, rtol=1e-6, atol=0)


def test_every_process_agrees() -> None:
    # the hash of a str differs from process to process; nothing here may depend on it
    numbers = "[rng.seed_for(1, 'a'), rng.uniform('b', 2), rng.permutation(50, 'c'), rng.normal((5,), 'd').tolist()]"
    command = [sys.executable, "-c", f"import json; from data import rng; print(json.dumps({numbers}))"]
    answer = subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "7"}, stdout=subprocess.PIPE, check=True)
    here = [rng.seed_for(1, "a"), rng.uniform("b", 2), rng.permutation(50, "c"), rng.normal((5,), "d").tolist()]
    assert json.loads(answer.stdout) == here


def test_no_two_positions_share_a_seed() -> None:
    steps = [rng.seed_for(run, "noise", step, slot) for run in range(3) for step in range(1000) for slot in range(16)]
    assert len(set(steps)) == len(steps)
    assert all(0 <= seed < 2**63 for seed in steps)
    # what looks alike when glued together, or in another type, is another position
    alike = [(1, 2), (12,), ("12",), ("1", "2"), ("1", 2), (1, "2"), (2, 1)]
    alike += [(), ("",), ("", ""), (0,), (-0, 0), ("None",)]
    assert len({rng.seed_for(*position) for position in alike}) == len(alike)


def test_a_seed_is_one_that_torch_takes() -> None:
    assert max(rng.seed_for(i) for i in range(1000)) > 2**62  # the upper half is used
    torch.Generator().manual_seed(2**63 - 1)


def test_uniform_numbers_are_uniform_and_neighbours_unrelated() -> None:
    numbers = torch.tensor([rng.uniform(1, "u", i) for i in range(N)], dtype=torch.float64)
    assert 0 <= numbers.min().item() < 1e-3
    assert 1 - 1e-3 < numbers.max().item() < 1
    # five standard errors: 1/12 and 1/180 are the variances of U and of (U - 1/2)^2
    assert numbers.mean().item() == pytest.approx(0.5, abs=5 * math.sqrt(1 / 12 / N))
    assert numbers.var().item() == pytest.approx(1 / 12, abs=5 * math.sqrt(1 / 180 / N))
    centred = numbers - 0.5
    correlation = (centred[1:] * centred[:-1]).mean().item() * 12
    assert abs(correlation) < 5 / math.sqrt(N)
    assert chi_square(Counter((numbers * 20).long().tolist()), 20) < 43.8  # 19 degrees of freedom, 0.1 %


@pytest.mark.parametrize("below", [1, 2, 7, 20])
def test_whole_numbers_are_even(below: int) -> None:
    drawn = Counter(rng.integer(below, "i", i) for i in range(N))
    assert set(drawn) == set(range(below))
    assert chi_square(drawn, below) < 43.8


@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_a_permutation_is_one(count: int) -> None:
    assert sorted(rng.permutation(count, "p")) == list(range(count))


def test_permutations_differ_by_position_and_all_orders_come_up() -> None:
    assert all(a != b for a, b in pairwise(rng.permutation(100, "epoch", epoch) for epoch in range(20)))
    drawn = Counter(tuple(rng.permutation(3, "p", i)) for i in range(6000))
    assert set(drawn) == set(permutations(range(3)))
    assert chi_square(drawn, 6) < 20.6  # 5 degrees of freedom, 0.1 %


def test_normal_noise_is_standard_and_its_own() -> None:
    noise = rng.normal((100, 200), 3, "noise")
    assert (noise.shape, noise.dtype, noise.device.type) == ((100, 200), torch.float32, "cpu")
    assert noise.mean().item() == pytest.approx(0, abs=5 / math.sqrt(N))
    assert noise.var().item() == pytest.approx(1, abs=5 * math.sqrt(2 / N))
    other = rng.normal((100, 200), 4, "noise")
    assert abs((noise * other).mean().item()) < 5 / math.sqrt(N)
    assert torch.equal(noise, rng.normal((100, 200), 3, "noise"))


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    rng.normal((10,), "n")
    rng.generator("g").seed()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_continues_and_is_not_shared() -> None:
    first, again = rng.generator(5), rng.generator(5)
    drawn = torch.randn(3, generator=first)
    assert not torch.equal(torch.randn(3, generator=first), drawn)
    assert torch.equal(torch.randn(3, generator=again), drawn)


def chi_square(counts: Counter, cells: int) -> float:
    """Pearson's statistic against an even spread over `cells`."""
    even = counts.total() / cells
    return sum((count - even) ** 2 for count in counts.values()) / even + (cells - len(counts)) * even
