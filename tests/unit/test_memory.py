"""Memory before the start: counted allocations against closed forms, and against what a real step takes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from infer import pipeline
from tests.tiny import tiny_unet
from train import adapters, estimate, memory
from train.config import FullOptions, LoraOptions
from train.flops import UnetInput
from train.memory import LiveBytes, Setting, count_allocations, step_bytes
from train.model import Denoiser, load_model


def tiny(adapter: FullOptions | LoraOptions | None = None) -> Any:
    network: Any = tiny_unet(16)
    adapters.inject(network, (adapter or FullOptions()), 0)
    return network.to(memory_format=torch.channels_last).train()


def test_live_counts_what_is_alive() -> None:
    kept = torch.empty(100, device="meta")
    with LiveBytes(iter([kept])) as live:
        view = kept[:50]
        assert live.now == 0, "a view of what was there before takes nothing"
        first = view * 2
        assert live.now == 200
        second = first + 1
        del first
        assert (live.now, live.peak) == (200, 400)
        second.add_(1)
        assert live.now == 200, "in place takes nothing"
        del second, view
    assert (live.now, live.peak) == (0, 400)


def test_two_layers_by_hand() -> None:
    """x -> 8 wide -> 4 wide -> mean: after the forward pass the input, both outputs and the loss are there."""
    network = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 4, bias=False)).to("meta")
    with count_allocations(network, Setting()) as (live, _):
        x = torch.empty(10, 4, device="meta")
        loss = network(x).sum()
        assert live.now == 4 * (40 + 80 + 1), "the second output is not needed for a sum's gradient"
        loss.backward()
        assert live.now == 4 * (40 + 1) + 4 * (32 + 32), "the first output went, the gradients came"


def test_autocast_halves_activations_and_copies_weights_once() -> None:
    network = nn.Linear(64, 64, bias=False).to("meta")
    with count_allocations(network, Setting(half=torch.bfloat16)) as (live, precision):
        x = torch.empty(8, 64, device="meta")
        y = network(network(x))
        assert y.dtype == torch.bfloat16
        assert len(precision.casts) == 1, "a weight is cast once a forward pass"
        assert live.now == 8 * 64 * 4 + 8 * 64 * 2 * 3 + 64 * 64 * 2  # x; x cast, both outputs; the cast weight


@pytest.mark.parametrize(
    ("setting", "dtype"),
    [
        (Setting("cuda", torch.bfloat16), torch.float32),
        (Setting("cpu", torch.bfloat16), torch.bfloat16),
    ],
)
def test_norms_as_the_device_computes_them(setting: Setting, dtype: torch.dtype) -> None:
    with count_allocations(nn.Identity(), setting):
        halves = torch.empty(2, 8, device="meta", dtype=torch.bfloat16)
        assert torch.nn.functional.layer_norm(halves, (8,)).dtype == dtype


def allocated(network: Any, batch: int, side: int) -> int:
    """The peak of what torch's CPU allocator gave out during one real forward and backward pass."""
    x, t = torch.randn(batch, 4, side, side), torch.full((batch,), 500)
    states = torch.randn(batch, 77, network.config["cross_attention_dim"])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        (Denoiser(network)(x, t, states) - x).square().mean().backward()
    profiler: Any = seen.profiler
    events = sorted((e for e in profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    now = peak = 0
    for event in events:
        now += event.nbytes()
        peak = max(peak, now)
    return peak + x.nbytes + states.nbytes


@pytest.mark.parametrize("adapter", [FullOptions(), LoraOptions(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_is_what_a_real_step_allocates(adapter: FullOptions | LoraOptions, checkpointing: bool) -> None:
    """Within 10 %; kernels' own workspaces are the rest."""
    network = tiny(adapter)
    if checkpointing:
        network.enable_gradient_checkpointing()
    real = allocated(network, batch=8, side=32)
    assert step_bytes(network, UnetInput(8, 32, 32), Setting()) == pytest.approx(real, rel=0.1)


def test_what_saves_memory_saves_memory() -> None:
    network, question = tiny(), UnetInput(8, 32, 32)
    plain = step_bytes(network, question, Setting())
    assert step_bytes(network, question, Setting(), checkpointing=True) < 0.7 * plain
    assert step_bytes(network, UnetInput(4, 32, 32), Setting()) < 0.6 * plain
    assert step_bytes(network, question, Setting("cuda", torch.bfloat16)) < 0.8 * plain
    gradients = sum(weight.nbytes for weight in network.parameters())
    assert plain < step_bytes(network, question, Setting(accumulate=True)) <= plain + gradients
    assert memory.forward_bytes(network, question, Setting()) < 0.5 * plain


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_encoding_and_decoding_an_image(tiny_model: Any, method: str) -> None:
    model = load_model(str(tiny_model))
    small, large = (memory.autoencoder_bytes(model.config("vae"), method, side, side) for side in (32, 64))
    weights = sum(weight.nbytes for weight in model.vae.parameters())
    assert weights < small < large
    assert large - weights == pytest.approx(4 * (small - weights), rel=0.1)


def test_previews_are_counted_in_the_batches_that_generation_uses() -> None:
    assert estimate.PREVIEW_BATCH == pipeline.GPU_MICRO_BATCH


def test_the_text_encoder(tiny_model: Any) -> None:
    model = load_model(str(tiny_model))
    weights = sum(weight.nbytes for weight in model.text_encoder.parameters())
    assert memory.text_encoder_bytes(model.config("text_encoder")) == weights


def test_free_memory() -> None:
    free = memory.free_bytes(torch.device("cpu"))
    assert free is not None and memory.resident_bytes() < free


def test_attention_keeps_no_attention_matrix() -> None:
    question = torch.empty(1, 8, 4096, 40, device="meta", requires_grad=True)
    with count_allocations(nn.Identity(), Setting()) as (live, _):
        answer: Tensor = torch.nn.functional.scaled_dot_product_attention(question, question, question)
        assert answer.shape == question.shape
        assert live.peak < 2 * question.nbytes
