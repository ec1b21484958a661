"""What a training step costs, counted on shapes alone, and what a run reached of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from train.ddpm.networks.kinds import Frame, NetworkOptions


def step_flops(options: NetworkOptions, frame: Frame) -> int:
    """Operations of one picture's training step, forward and backward; a multiplication and an addition are two."""
    with torch.device("meta"):
        bones = options.build(frame).train()
        xt, t = torch.empty(1, frame.channels, frame.size, frame.size), torch.zeros(1, dtype=torch.int64)
        labels = t if frame.classes else None
        with FlopCounterMode(display=False) as counter:
            bones(xt, t, labels).square().mean().backward()
    return int(counter.get_total_flops())


def speed_line(lines: Sequence[Mapping[str, Any]]) -> str:
    """The median speed of a run's metrics, in words; empty if none was measured."""
    windows = [line for line in lines if line.get("images_per_second")]
    if not windows:
        return ""
    middle = {name: median(windows, name) for name in ("images_per_second", "tflops", "mfu")}
    words = f"speed:     {middle['images_per_second']:,.4g} pictures/s"
    words += f", {middle['tflops']:.3g} TFLOP/s" if middle["tflops"] else ""
    return words + (f", {100 * middle['mfu']:.1f} % of the device's peak" if middle["mfu"] else "")


def median(windows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    found = [line[name] for line in windows if line.get(name)]
    return statistics.median(found) if found else None
