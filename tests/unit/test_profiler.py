"""FLOPs and memory before the start: published sizes, closed forms, and what a real step takes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from infer import pipeline
from tests.full_size import skeleton as full_size
from tests.tiny import tiny_unet
from train import adapters, estimate, profiler
from train.config import FullOptions, LoraOptions
from train.metrics import Speed
from train.model import Denoiser, load_model
from train.profiler import (
    Flops,
    LiveBytes,
    Setting,
    UnetInput,
    count_allocations,
    forward_and_step_flops,
    meta_copy,
    peak_of,
    step_bytes,
)


def tiny(adapter: FullOptions | LoraOptions | None = None) -> Any:
    network: Any = tiny_unet(16)
    adapters.inject(network, (adapter or FullOptions()), 0)
    return network.to(memory_format=torch.channels_last).train()


def step_flops(network: Any, shape: UnetInput, checkpointing: bool = False) -> int:
    return forward_and_step_flops(network, shape, checkpointing)[1]


def unet(adapter: FullOptions | LoraOptions) -> Any:
    network: Any = full_size("unet")
    adapters.inject(network, adapter, 0)
    return network


def test_full_fine_tuning_of_sd_v1() -> None:
    network = unet(FullOptions())
    assert sum(weight.numel() for weight in network.parameters()) == 859_520_964
    question = UnetInput(1, 64, 64)
    forward, step = forward_and_step_flops(network, question)
    assert forward / 1e12 == pytest.approx(0.803, abs=5e-4)
    assert step / 1e12 == pytest.approx(2.407, abs=5e-4)
    assert step_flops(network, question, checkpointing=True) / 1e12 == pytest.approx(3.002, abs=5e-4)


def test_lora_does_not_pay_for_gradients_of_frozen_weights() -> None:
    assert step_flops(unet(LoraOptions(rank=16)), UnetInput(1, 64, 64)) / 1e12 == pytest.approx(1.725, abs=5e-4)


def test_a_count_is_exact_and_in_proportion_to_the_batch() -> None:
    one, three = (step_flops(tiny(), UnetInput(batch, 16, 16)) for batch in (1, 3))
    assert three == 3 * one


def test_three_areas_tell_all_others_exactly() -> None:
    network = tiny()
    sizes = [(8, 8), (16, 8), (16, 16), (32, 8), (24, 16), (32, 32)]
    costs = profiler.flops_by_size(network, sizes, 77)
    for size in sizes:
        assert [costs[size].forward, costs[size].step] == forward_and_step_flops(network, UnetInput(1, *size)), size


def test_the_mean_over_an_epoch_weighs_buckets_by_their_images() -> None:
    costs = {(8, 8): Flops(1.0, 3.0), (8, 16): Flops(2.0, 7.0)}
    assert profiler.mean_flops(costs, {(8, 8): 3, (8, 16): 1}) == Flops(1.25, 4.0)


def test_a_count_is_of_this_network_not_of_one_like_it() -> None:
    """Remembered by everything it depends on: another adapter or shape is another count."""
    whole, low_rank = tiny(), tiny_unet(16)
    adapters.inject(low_rank, LoraOptions(rank=2), 0)
    assert step_flops(low_rank, UnetInput(1, 16, 16)) < step_flops(whole, UnetInput(1, 16, 16))
    assert step_flops(whole, UnetInput(1, 16, 16)) == step_flops(whole, UnetInput(1, 16, 16))
    assert step_flops(whole, UnetInput(1, 16, 8)) < step_flops(whole, UnetInput(1, 16, 16))


def test_counting_leaves_the_network_as_it_is() -> None:
    network = tiny().eval()
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    forward = network.forward
    network.forward = forward  # as accelerate does
    bones = meta_copy(network)
    assert all(weight.is_meta for weight in bones.parameters())
    assert "forward" not in vars(bones) and "forward" in vars(network)
    step_flops(network, UnetInput(1, 8, 8))
    assert not network.training
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())


@pytest.mark.parametrize(
    ("name", "precision", "tf32", "tera"),
    [
        ("NVIDIA A10G", "fp16", False, None),
        ("NVIDIA GeForce RTX 3090", "bf16", False, 71),
        ("NVIDIA A100-SXM4-80GB", "bf16", False, 312),
        ("NVIDIA A100-SXM4-80GB", "no", True, 156),
        ("NVIDIA A100-SXM4-80GB", "no", False, 19.5),
        ("NVIDIA L40S", "bf16", False, 362),
        ("NVIDIA H100 80GB HBM3", "bf16", False, 989),
        ("NVIDIA H100 PCIe", "bf16", False, 756),
        ("Tesla T4", "no", True, 8.1),
        ("Some Card 5000", "bf16", False, None),
    ],
)
def test_peaks_by_the_data_sheets(name: str, precision: str, tf32: bool, tera: float | None) -> None:
    assert peak_of(name, precision, tf32) == (None if tera is None else pytest.approx(tera * 1e12))
    assert profiler.peak_flops(torch.device("cpu")) is None


def test_speed_counts_operations_of_each_device() -> None:
    speed = Speed(flops=2e12, peak=100e12, devices=2)
    assert speed.of(80, seconds=2.0) == {"images_per_second": 40.0, "tflops": 40.0, "mfu": 0.4}
    assert Speed(2e12).of(8, seconds=1.0) == {"images_per_second": 8.0, "tflops": 16.0, "mfu": None}
    assert Speed().of(8, seconds=1.0) == {"images_per_second": 8.0, "tflops": None, "mfu": None}


def test_modules_that_are_no_unet_can_be_hollow_too() -> None:
    assert meta_copy(nn.Linear(3, 4)).weight.is_meta


def test_decoding_an_image_is_counted_as_the_real_autoencoder_does_it(tiny_model: Any) -> None:
    model = load_model(str(tiny_model))
    latents = torch.zeros(1, model.latent_channels, 4, 8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.vae.decode(latents)  # pyright: ignore[reportArgumentType]
    found = profiler.decode_flops(model.config("vae"), 4, 8)
    assert found == pytest.approx(counter.get_total_flops(), rel=0.02)  # attention on a CPU is an operation of its own


# ---- memory


def test_live_counts_what_is_alive() -> None:
    kept = torch.empty(100, device="meta")
    with LiveBytes([kept]) as live:
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
    [(Setting("cuda", torch.bfloat16), torch.float32), (Setting("cpu", torch.bfloat16), torch.bfloat16)],
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
    assert profiler.forward_bytes(network, question, Setting()) < 0.5 * plain


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_encoding_and_decoding_an_image(tiny_model: Any, method: str) -> None:
    model = load_model(str(tiny_model))
    small, large = (profiler.autoencoder_bytes(model.config("vae"), method, side, side) for side in (32, 64))
    weights = sum(weight.nbytes for weight in model.vae.parameters())
    assert weights < small < large
    assert large - weights == pytest.approx(4 * (small - weights), rel=0.1)


def test_previews_are_counted_in_the_batches_that_generation_uses() -> None:
    assert estimate.PREVIEW_BATCH == pipeline.GPU_MICRO_BATCH


def test_the_text_encoder(tiny_model: Any) -> None:
    model = load_model(str(tiny_model))
    weights = sum(weight.nbytes for weight in model.text_encoder.parameters())
    assert profiler.text_encoder_bytes(model.config("text_encoder")) == weights


def test_free_memory() -> None:
    free = profiler.free_bytes(torch.device("cpu"))
    assert profiler.resident_bytes() < free


def test_attention_keeps_no_attention_matrix() -> None:
    question = torch.empty(1, 8, 4096, 40, device="meta", requires_grad=True)
    with count_allocations(nn.Identity(), Setting()) as (live, _):
        answer: Tensor = torch.nn.functional.scaled_dot_product_attention(question, question, question)
        assert answer.shape == question.shape
        assert live.peak < 2 * question.nbytes
