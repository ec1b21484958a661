"""torch.compile changes nothing but the time; where it would, the run does not begin."""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import InputError
from tests.small_runs import Toy, advance, equal, gradients, seeded_unet, small_run, trained, unet_run
from train import checkpoint, torch_compile, trainer
from train.trainer import check_compiled

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # inductor's imports


@pytest.fixture
def dynamo() -> Iterator[Any]:
    """A fresh compiler, left as it was found. Compiling happens in this process: no workers stay behind."""
    import torch._dynamo
    import torch._inductor.config
    from torch._dynamo.utils import counters

    limits = torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit
    torch._dynamo.reset()
    counters.clear()
    with torch._inductor.config.patch(compile_threads=1), torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield counters["stats"]
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit = limits


def test_compiled_once_for_each_bucket_and_use(tmp_path: Path, dynamo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shapes, trained and looked at: four graphs, and no more however often they take turns.

    All of torch.compile but the C++, which takes a minute and is in the slow test below.
    """
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    changes: dict[str, Any] = {"shapes": [(4, 4, 4), (4, 4, 6)], "max_steps": 8, "ema": {"decay": 0.9}}
    eager, task = small_run(tmp_path / "eager", Toy(), **changes)
    expected = advance(eager, task, 8).losses
    state, task = small_run(tmp_path, Toy(), compile=True, **changes)
    check_compiled(state, task)
    found = advance(state, task, 4).losses
    with state.evaluation_weights():
        (looked,) = task.validator.measure(state.denoiser, state.accelerator.device).values()
    assert math.isfinite(looked.mean) and state.unet.training
    found += advance(state, task, 4).losses
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-4, atol=0)
    assert dynamo["unique_graphs"] == 4
    state.save(task.checkpoints, task.identity)
    kept, _ = checkpoint.newest_checkpoint(task.checkpoints, task.identity)
    assert kept is not None and kept.average is not None
    assert kept.weights.keys() == trained(eager).keys() == kept.average.keys() - {"updates"}
    eager.load(kept, tmp_path)
    assert equal(trained(eager), trained(state))


def test_upsampling_in_the_compilers_way_is_upsampling() -> None:
    small = torch.randn(2, 8, 3, 5, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(2, 8, 6, 10, generator=torch.Generator().manual_seed(1))
    given = small.contiguous(memory_format=torch.channels_last).requires_grad_(True)
    other = given.detach().clone().requires_grad_(True)
    ours, theirs = (
        torch_compile.double_size(given),
        torch.nn.functional.interpolate(other, scale_factor=2.0, mode="nearest"),
    )
    assert torch.equal(ours, theirs) and ours.is_contiguous(memory_format=torch.channels_last)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    assert given.grad is not None and other.grad is not None
    torch.testing.assert_close(given.grad, other.grad, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("dynamo")
def test_the_network_to_compile_answers_as_before(tmp_path: Path) -> None:
    """Also for sides that cannot be halved, whose layers are told the size to come to."""
    state, _ = unet_run(tmp_path, "full", compile=True)
    for sides in ((4, 4), (5, 7)):
        noisy = torch.randn(1, 4, *sides, generator=torch.Generator().manual_seed(2))
        asked = noisy, torch.tensor([500]), torch.zeros(1, 5, 32)
        with torch.no_grad():
            found, expected = (trainer.Denoiser(unet)(*asked) for unet in (state.plain_unet(), seeded_unet()))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


class Miscompiled(torch.nn.Module):
    """As torch 2.13 compiles a U-Net: the answers are right, some of the gradients are not."""

    def __init__(self, inner: Toy, factor: float) -> None:
        super().__init__()
        self._orig_mod, self.factor = inner, factor

    def forward(self, x: torch.Tensor, t: torch.Tensor, **words: Any) -> tuple[torch.Tensor]:
        (answer,) = self._orig_mod(x, t, **words)
        (constant,) = self._orig_mod(x, t, encoder_hidden_states=words["encoder_hidden_states"].detach() * 0, **PLAIN)
        heard = answer - constant
        return (constant + heard.detach() + self.factor * (heard - heard.detach()),)


PLAIN = {"return_dict": False}


@pytest.mark.parametrize(("factor", "refused"), [(1.0, False), (0.0, True), (0.9, True), (math.nan, True)])
def test_wrong_gradients_are_refused_before_the_first_step(factor: float, refused: bool, tmp_path: Path) -> None:
    state, task = small_run(tmp_path, Toy())
    before = trained(state)
    state.unet = Miscompiled(state.plain_unet(), factor)
    if refused:
        with pytest.raises(InputError, match=r"^--compile: torch 2.* compiler computes other gradients for \d of 4"):
            check_compiled(state, task)
    else:
        check_compiled(state, task)
    assert equal(before, dict(state.unet._orig_mod.state_dict()))
    assert all(weight.grad is None for weight in state.unet.parameters())


def test_there_is_room_for_every_bucket(dynamo: Any) -> None:
    from torch._dynamo import config

    torch_compile.compile_network(Toy(), 40)
    assert config.recompile_limit >= 2 * 40 and config.accumulated_recompile_limit >= config.recompile_limit
    torch_compile.compile_network(Toy(), 1)
    assert config.recompile_limit >= 2 * 40, "a limit that was larger is left"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_compiled_unet_loses_nothing(adapter: str, tmp_path: Path, dynamo: Any) -> None:
    """Minutes: inductor compiles a U-Net's forward and backward to C++. Every gradient is compared, not only losses: a
    layer that learns nothing hardly shows in a few of those.
    """
    eager, task = unet_run(tmp_path, adapter)
    expected = advance(eager, task, 4).losses
    state, task = unet_run(tmp_path, adapter, compile=True)
    same, _ = unet_run(tmp_path, adapter)
    found, wanted = (list(gradients(run, task).values()) for run in (state, same))
    assert max(torch_compile.relative_errors(found, wanted)) < 1e-3
    state.optimizer.zero_grad()
    torch.testing.assert_close(torch.stack(advance(state, task, 4).losses), torch.stack(expected), rtol=1e-4, atol=0)
    assert dynamo["unique_graphs"] == 1
    assert trained(state).keys() == trained(eager).keys()
