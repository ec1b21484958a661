"""What a step costs: the paper's network against a count by hand and the published one; how a run's speed is said."""

import pytest

from train.ddpm.runs.report import format_speed, step_flops
from train.ddpm.unets.config import BasicUNetOptions, ConvNextOptions, NetworkShape, PaperOptions


def test_a_basic_network_by_hand() -> None:
    """Two operations for each weight and place, forward; twice that backward, but for the picture's own gradient."""
    convolutions = [
        (1, 32, 8),
        (32, 64, 4),
        (64, 64, 2),
        (64, 64, 2),
        (64, 32, 4),
        (32, 1, 8),
    ]  # channels, pixels a side
    forward = [2 * 25 * inside * outside * side**2 for inside, outside, side in convolutions]
    assert step_flops(BasicUNetOptions(), NetworkShape(1, 8)) == 3 * sum(forward) - forward[0]


def test_the_papers_network_costs_37_gflop() -> None:
    assert step_flops(PaperOptions(), NetworkShape(3, 32)) == pytest.approx(37.3e9, rel=0.005)


def test_classes_and_second_answers_are_counted_too() -> None:
    network = ConvNextOptions(width=8, multiples=(1, 2))
    assert step_flops(network, NetworkShape(1, 8)) < step_flops(network, NetworkShape(1, 8, 10, 2))


def test_the_speed_in_words() -> None:
    lines = [{"images_per_second": 3000.0, "tflops": 112.0, "mfu": 0.113}, {"step": 3, "loss": 0.1}]
    lines += [{"images_per_second": 2000.0, "tflops": 74.6, "mfu": 0.075}, {"images_per_second": 3100.0}]
    assert format_speed(lines) == "speed:     3,000 pictures/s, 93.3 TFLOP/s, 9.4 % of the device's peak"
    assert format_speed([{"images_per_second": 12.5, "tflops": None, "mfu": None}]) == "speed:     12.5 pictures/s"
    assert format_speed([]) == ""
