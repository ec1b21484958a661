"""Switches of memory, time and precision: the same mathematics, and what is not there is named."""

import itertools
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils import checkpoint as checkpointing

from data.errors import InputError
from tests.small_runs import Toy, advance, config_of, equal, seeded_unet, small_run, trained
from train import checkpoint, loop, machine
from train.adapters import base as adapters
from train.config import Memory
from train.saving import restore

SMALL = (4, 4, 4)
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def unet_run(folder: Path, adapter: str, **changes: Any) -> tuple[loop.State, loop.Task]:
    plain: dict[str, Any] = {"shapes": [SMALL], "learning_rate": 1e-3, "adapter": {"kind": adapter}}
    return small_run(folder, seeded_unet(), **{**plain, **changes})


def gradients(state: loop.State, task: loop.Task) -> dict[str, torch.Tensor]:
    batch = next(task.batches(0, 1))
    state.accelerator.backward(loop.sample_losses(state.denoiser, task, batch).sum())
    found = {name: weight.grad for name, weight in adapters.trainable(state.plain_unet()).items()}
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient for name, gradient in found.items() if gradient is not None}


# ---- gradient checkpointing


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_gradient_checkpointing_gives_the_same_bits(
    adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, original = itertools.count(), checkpointing.checkpoint

    def counted(*args: Any, **kwargs: Any) -> Any:
        next(calls)
        return original(*args, **kwargs)

    plain = gradients(*unet_run(tmp_path, adapter))
    monkeypatch.setattr(checkpointing, "checkpoint", counted)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = gradients(*unet_run(tmp_path, adapter, memory={"gradient_checkpointing": True}))
    assert next(calls) > 3, "nothing was checkpointed"
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(again, plain)


# ---- attention


def test_torchs_fused_attention_is_the_default(tmp_path: Path) -> None:
    state, _ = unet_run(tmp_path, "lora")
    assert {type(p).__name__ for p in state.plain_unet().attn_processors.values()} == {"AttnProcessor2_0"}
    assert machine.switches(config_of(), CPU) == "sdpa attention, channels-last"


def test_xformers_is_refused_where_it_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Memory.model_validate({"attention": "xformers"})
    monkeypatch.setattr(machine, "installed", lambda library: False)
    with pytest.raises(InputError, match=r"^--memory.attention: xformers is not installed. Get it with: pip install"):
        machine.check(asked, GPU)
    machine.check(Memory(), CPU)
    monkeypatch.setattr(machine, "installed", lambda library: library == "xformers")
    with pytest.raises(InputError, match=r"^--memory.attention: xformers is for GPUs, this is a CPU; allowed: sdpa"):
        machine.check(asked, CPU)
    machine.check(asked, GPU)


@pytest.mark.gpu
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_xformers_gives_the_same_gradients(adapter: str, tmp_path: Path) -> None:
    pytest.importorskip("xformers")
    accelerator = Accelerator()
    assert accelerator.device.type == "cuda"
    plain = gradients(*unet_run(tmp_path, adapter, accelerator=accelerator, batch_size=4))
    memory = {"attention": "xformers"}
    state, task = unet_run(tmp_path, adapter, accelerator=accelerator, batch_size=4, memory=memory)
    assert "XFormersAttnProcessor" in {type(p).__name__ for p in state.plain_unet().attn_processors.values()}
    again = gradients(state, task)
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


# ---- TF32


@pytest.mark.parametrize("on", [True, False])
def test_tf32_is_a_switch(on: bool) -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        machine.set_tf32(on)
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (on, on)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    config = config_of(memory={"tf32": on})
    assert ("TF32" in machine.switches(config, GPU)) is on
    assert "TF32" not in machine.switches(config, CPU)


# ---- torch.compile


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
    found = advance(state, task, 4).losses
    with loop.evaluated(state):
        (looked,) = task.validator.measure(state.denoiser, state.accelerator.device).values()
    assert math.isfinite(looked.mean) and state.unet.training
    found += advance(state, task, 4).losses
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-4, atol=0)
    assert dynamo["unique_graphs"] == 4
    loop.save(state, task)
    kept, _ = checkpoint.newest(task.checkpoints, task.identity)
    assert kept is not None and kept.average is not None
    assert kept.weights.keys() == trained(eager).keys() == kept.average.keys() - {"updates"}
    restore(eager, kept, tmp_path)
    assert equal(trained(eager), trained(state))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # inductor's imports
def test_there_is_room_for_every_bucket(dynamo: Any) -> None:
    from torch._dynamo import config

    machine.compiled(Toy(), 40)
    assert config.recompile_limit >= 2 * 40 and config.accumulated_recompile_limit >= config.recompile_limit
    machine.compiled(Toy(), 1)
    assert config.recompile_limit >= 2 * 40, "a limit that was larger is left"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_compiled_unet_loses_nothing(adapter: str, tmp_path: Path, dynamo: Any) -> None:
    """Minutes: inductor compiles a U-Net's forward and backward to C++."""
    eager, task = unet_run(tmp_path, adapter)
    expected = advance(eager, task, 4).losses
    state, task = unet_run(tmp_path, adapter, compile=True)
    torch.testing.assert_close(torch.stack(advance(state, task, 4).losses), torch.stack(expected), rtol=1e-4, atol=0)
    assert dynamo["unique_graphs"] == 1
    assert trained(state).keys() == trained(eager).keys()


# ---- precision


@pytest.fixture
def bf16() -> Iterator[Accelerator]:
    """bf16 autocast as accelerate sets it up; it keeps the precision in a state shared by all Accelerators."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(("adapter", "base"), [("lora", torch.bfloat16), ("full", torch.float32)])
def test_bf16_keeps_float32_masters_that_move(
    adapter: str, base: torch.dtype, tmp_path: Path, bf16: Accelerator
) -> None:
    """Weights held in bf16 would not: an update of 3e-6 on a weight of 0.1 is a hundredth of its last bit."""
    rate, steps = 3e-6, 3
    state, task = unet_run(tmp_path, adapter, accelerator=bf16, learning_rate=rate)
    unet = state.plain_unet()
    assert unet.conv_in.weight.dtype == base
    before = trained(state)
    assert {weight.dtype for weight in before.values()} == {torch.float32}
    seen: set[torch.dtype] = set()
    layer = unet.down_blocks[0].resnets[0].conv1
    hook = layer.register_forward_hook(lambda module, given, answer: seen.add(answer.dtype))
    window = advance(state, task, steps)
    hook.remove()
    assert seen == {torch.bfloat16}, "the work itself is in bf16"
    assert all(math.isfinite(float(loss)) for loss in window.losses)
    after = trained(state)
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    moved = {name: float((after[name] != before[name]).float().mean()) for name in before}
    assert min(moved.values()) > 0.9, min(moved.items(), key=lambda item: item[1])
    rounded = torch.cat([(after[n].bfloat16() != before[n].bfloat16()).flatten() for n in before if "lora_B" not in n])
    assert rounded.float().mean() < 0.2, "this test could not tell float32 masters from bf16 ones"
