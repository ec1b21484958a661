"""Switches of memory, time and precision, compilation, and memory that runs out: the same mathematics, or refused."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor
from torch.utils import checkpoint as checkpointing

from data.dataset import Batch, BatchLayout
from data.errors import InputError
from tests.small_runs import advance, config_of, equal, gradients, trained, unet_run
from tests.unit.test_loop import prepare, weights
from train import checkpoint, device
from train.config import Config, MemoryOptions
from train.losses import DenoisingLoss
from train.metrics import MetricsLogger
from train.trainer import fit

ROOT = Path(__file__).parents[2]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


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
    assert all(isinstance(found, AttnProcessor2_0) for found in state.plain_unet().attn_processors.values())
    assert device.describe_memory_options(config_of(), CPU) == "sdpa attention, channels-last"


def test_xformers_is_refused_where_it_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = MemoryOptions.model_validate({"attention": "xformers"})
    monkeypatch.setattr(device, "find_spec", lambda library: None)
    with pytest.raises(InputError, match=r"^--memory.attention: xformers is not installed. Get it with: pip install"):
        device.check_memory_options(asked, GPU)
    device.check_memory_options(MemoryOptions(), CPU)
    monkeypatch.setattr(device, "find_spec", lambda library: library)
    with pytest.raises(InputError, match=r"^--memory.attention: xformers is for GPUs, this is a CPU; allowed: sdpa"):
        device.check_memory_options(asked, CPU)
    device.check_memory_options(asked, GPU)


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
        device.set_tf32(on)
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (on, on)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    config = config_of(memory={"tf32": on})
    assert ("TF32" in device.describe_memory_options(config, GPU)) is on
    assert "TF32" not in device.describe_memory_options(config, CPU)


# ---- precision


@pytest.mark.parametrize(("adapter", "base"), [("lora", torch.bfloat16), ("full", torch.float32)])
def test_bf16_keeps_float32_masters_that_move(
    adapter: str, base: torch.dtype, tmp_path: Path, bf16_on_cpu: Accelerator
) -> None:
    """Weights held in bf16 would not: an update of 3e-6 on a weight of 0.1 is a hundredth of its last bit."""
    rate, steps = 3e-6, 3
    state, task = unet_run(tmp_path, adapter, accelerator=bf16_on_cpu, learning_rate=rate)
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


@pytest.mark.parametrize(
    ("variable", "name"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")]
)
def test_a_network_spread_over_gpus_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, name: str) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(InputError, match=rf"{name} spreads one network.*gpus\.yaml"):
        device.start_accelerator(Config())


@pytest.fixture
def asked_for_fp16(fresh_accelerate: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As accelerate_config.yaml does."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.usefixtures("asked_for_fp16")
def test_a_cpu_trains_in_fp32_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert device.start_accelerator(Config()).mixed_precision == "no"
    assert "no GPU here: fp16 is for GPUs, training in fp32 on the CPU" in capsys.readouterr().out


@pytest.mark.parametrize(("given", "found"), [("BF16", "bf16"), ("no", "no")])
def test_a_precision_in_capitals_is_that_precision(
    given: str, found: str, fresh_accelerate: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate takes the name and computes in fp32."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", given)
    assert device.create_accelerator(None).mixed_precision == found


@pytest.mark.parametrize("given", ["fp8", "fp-16"])
def test_an_unknown_precision_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", given)
    with pytest.raises(InputError, match=rf"^--mixed_precision of the launcher.*'{given}'.*allowed: no, fp16, bf16"):
        device.create_accelerator(None)


def test_a_compiler_past_ours_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(InputError, match=r"config file: dynamo_backend INDUCTOR would compile .*'no'\. Use --compile"):
        device.start_accelerator(Config())


def test_only_accumulate_divides_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert device.start_accelerator(Config()).gradient_accumulation_steps == 1


def test_the_example_for_several_gpus_is_one_that_accelerate_reads() -> None:
    example = load_config_from_file(str(ROOT / "train/configs/accelerate/gpus.yaml"))
    assert isinstance(example, ClusterConfig)
    assert (example.distributed_type, example.num_processes, example.mixed_precision) == ("MULTI_GPU", 2, "bf16")


def batch_of(size: int) -> Batch:
    rows = torch.arange(float(size))
    column = rows[:, None]
    return Batch(column, column, column, column, rows.double(), [str(i) for i in range(size)], [False] * size)


@pytest.mark.parametrize(("size", "count", "sizes"), [(4, 1, [4]), (4, 2, [2, 2]), (5, 2, [3, 2]), (3, 4, [1, 1, 1])])
def test_pieces_are_the_batch_in_order(size: int, count: int, sizes: list[int]) -> None:
    parts = device.split_batch(batch_of(size), count)
    assert [len(part.sample_ids) for part in parts] == sizes
    assert torch.cat([part.latents for part in parts]).flatten().tolist() == list(range(size))
    assert torch.cat([part.timestep_uniforms for part in parts]).tolist() == list(range(size))
    assert [name for part in parts for name in part.sample_ids] == [str(i) for i in range(size)]


def injected(monkeypatch: pytest.MonkeyPatch, *, fits: int, from_step: int) -> list[int]:
    """Batches of more than `fits` samples run out of memory after their backward pass has begun."""
    tried: list[int] = []
    original = DenoisingLoss.__call__

    def limited(self: DenoisingLoss, denoiser: Any, batch: Batch, teacher: Any = None) -> Tensor:
        tried.append(len(batch.sample_ids))
        losses = original(self, denoiser, batch, teacher)
        if len(tried) > from_step and len(batch.sample_ids) > fits:
            losses.mean().backward()  # half of the work is done when it happens
            raise torch.OutOfMemoryError("injected")
        return losses

    monkeypatch.setattr(DenoisingLoss, "__call__", limited)
    return tried


@pytest.mark.parametrize(("batch", "accumulate", "fits"), [(4, 1, 1), (4, 2, 1), (3, 2, 2)])
def test_out_of_memory_ends_in_the_same_weights(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    batch: int,
    accumulate: int,
    fits: int,
) -> None:
    """Pieces of unequal sizes among them, which must not count alike."""
    whole, whole_task = prepare(tmp_path / "whole", batch_size=batch, accumulate=accumulate)
    assert fit(whole, whole_task, MetricsLogger())
    tried = injected(monkeypatch, fits=fits, from_step=3)
    cut, task = prepare(tmp_path / "cut", batch_size=batch, accumulate=accumulate)
    assert fit(cut, task, MetricsLogger())
    assert tried[-1] == 1 and cut.pieces == 4 // fits
    for ours, theirs in zip(weights(cut), weights(whole), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert capsys.readouterr().out.count("out of memory: ") == 3 - fits, "said once for each halving"


def test_a_resumed_run_keeps_its_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    injected(monkeypatch, fits=2, from_step=0)
    state, task = prepare(tmp_path, max_steps=2)
    assert fit(state, task, MetricsLogger())
    resumed, task = prepare(tmp_path)
    kept, _ = checkpoint.newest_checkpoint(task.checkpoints, "this run")
    assert kept is not None
    resumed.load(kept, task.checkpoints)
    assert resumed.pieces == 2


def test_what_does_not_fit_at_all_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    injected(monkeypatch, fits=0, from_step=0)
    state, task = prepare(tmp_path)
    with pytest.raises(InputError, match="a single image does not fit"):
        fit(state, task, MetricsLogger())


def test_several_processes_are_told_which_batch_is_the_same() -> None:
    with pytest.raises(InputError, match="--batch-size 4 --accumulate 6: the same batch"):
        device.split_further(1, BatchLayout(8, 3, processes=2))


def test_no_room_for_the_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, task = prepare(tmp_path)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(state.optimizer, "step", full)
    with pytest.raises(InputError, match="the optimiser's state does not fit"):
        fit(state, task, MetricsLogger())
