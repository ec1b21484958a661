"""The loop that the trainings share: Muon and AdamW, linear decay, EMA, and a state that survives kill -9.

A batch is a function of the step alone, so the same command goes on where the last state stands.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from data.atomic_io import atomic_file, cache_root, write_atomic
from tools.pocket.muon import Muon, suits_muon
from tools.pocket.parallel import average_gradients

Network = TypeVar("Network", bound="nn.Module")
MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum")  # AdamW's and Muon's names
Losses = dict[str, "torch.Tensor"]  # "loss" is minimised; the rest is logged


@dataclass(frozen=True)
class Plan:
    """How one stage is trained."""

    name: str  # of the state's folder
    steps: int
    peak: float  # learning rate after the warm-up; falls linearly to `floor` times it
    warmup: int = 100  # steps
    floor: float = 0.02
    decay: float = 0.01  # AdamW's weight decay
    ema: float = 0.999
    clip: float = 1.0  # largest norm of the gradient
    muon: bool = False  # Muon for the hidden matrices, AdamW for the rest
    save_every: float = 90.0  # seconds
    log_every: int = 50  # steps

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * max(self.floor, 1.0 - done)


def state_folder() -> Path:
    """Where unfinished stages and their products are kept between commands."""
    return cache_root() / "pocket-base"


class Trainee:
    """All that a stage must keep: the network, its running average, the optimiser's moments, the step."""

    def __init__(self, plan: Plan, model: nn.Module) -> None:

        self.plan, self.model, self.step = plan, model, 0
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.average = {name: value.detach().clone() for name, value in self.parameters.items()}
        matrices = {name for name, value in self.parameters.items() if plan.muon and suits_muon(name, value)}
        rest = [value for name, value in self.parameters.items() if name not in matrices]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=plan.peak, betas=(0.9, 0.99), weight_decay=plan.decay, fused=True)
        ]
        if matrices:
            self.optimizers.append(Muon([self.parameters[name] for name in sorted(matrices)], plan.peak, plan.decay))

    def update(self, loss: torch.Tensor, rate: float | None = None) -> None:
        """One optimiser step on a loss, at the plan's rate or another, then the running average."""

        loss.backward()
        average_gradients(list(self.parameters.values()))
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.plan.clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = (self.plan.rate(self.step) if rate is None else rate) * group.get("scale", 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        weight = 1.0 - min(self.plan.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), weight)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The whole state as named tensors."""
        state = {"step": torch.tensor(self.step)}
        for name, parameter in self.parameters.items():
            state[f"model.{name}"] = parameter.detach().contiguous()
            state[f"average.{name}"] = self.average[name].contiguous()
            for key, value in self.moments(parameter).items():
                state[f"optimizer.{key}.{name}"] = value.contiguous()
        return state

    def moments(self, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
        """What the optimisers remember of one weight."""
        found: dict[str, torch.Tensor] = {}
        for optimizer in self.optimizers:
            found |= optimizer.state.get(parameter, {})
        return found

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """The opposite of tensors()."""
        self.step = int(state["step"])
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[f"model.{name}"])
                self.average[name].copy_(state[f"average.{name}"])
        for optimizer in self.optimizers:
            for name, parameter in self.parameters.items():
                if any(parameter is owned for group in optimizer.param_groups for owned in group["params"]):
                    keys = (key for key in MOMENTS if f"optimizer.{key}.{name}" in state)
                    optimizer.state[parameter] = {key: state[f"optimizer.{key}.{name}"] for key in keys}


def save(trainee: Trainee, path: Path, about: dict[str, Any] | None = None) -> None:
    """Write the state whole."""
    with atomic_file(path) as beside:
        save_file(trainee.tensors(), beside, metadata={"about": json.dumps(about or {})})


def resume(trainee: Trainee, path: Path) -> None:
    """Take up the state in `path`, if there is one."""
    if path.exists():
        trainee.restore(load_file(path))


def fit(plan: Plan, model: Network, losses_at: Callable[[int], Losses], folder: Path | None = None) -> Network:
    """Train `model` to the plan's last step, from wherever the state stands; returns the averaged network."""
    folder = folder or state_folder() / plan.name
    trainee, path = Trainee(plan, model.train()), folder / "state.safetensors"
    resume(trainee, path)
    log = Log(plan, folder, trainee.step)
    saved = time.monotonic()
    while trainee.step < plan.steps:
        if time.monotonic() - saved > plan.save_every:
            save(trainee, path)
            saved = time.monotonic()
        losses = losses_at(trainee.step)
        trainee.update(losses["loss"])
        log.add(trainee.step, losses)
    save(trainee, path)
    with torch.no_grad():
        for name, parameter in trainee.parameters.items():
            parameter.copy_(trainee.average[name])
    return model.eval()


class Log:
    """Means of the losses since the last line, to the screen and to log.jsonl."""

    def __init__(self, plan: Plan, folder: Path, step: int) -> None:
        self.plan, self.path = plan, folder / "log.jsonl"
        self.sums: dict[str, float] = {}
        self.since, self.last = time.monotonic(), step
        if not self.path.exists():
            write_atomic(self.path, "")

    def add(self, step: int, losses: Losses) -> None:
        """Count one step's losses; every `log_every` steps a line."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())
        if step % self.plan.log_every and step != self.plan.steps:
            return
        count, seconds = step - self.last, time.monotonic() - self.since
        row = {"step": step, "of": self.plan.steps, "seconds_per_step": round(seconds / max(1, count), 4)}
        row |= {name: round(total / max(1, count), 5) for name, total in self.sums.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(self.plan.name, json.dumps(row), flush=True)
        self.sums, self.since, self.last = {}, time.monotonic(), step
