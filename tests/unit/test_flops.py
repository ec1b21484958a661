"""Exact counts of operations: Stable Diffusion v1.4's published size, and closed forms."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.full_size import skeleton as full_size
from tests.tiny import tiny_unet
from train import adapters, flops
from train.config import FullOptions, LoraOptions
from train.flops import Flops, UnetInput, interpolate, meta_copy, peak_of, step_flops
from train.metrics import Speed
from train.model import load_model


def unet(adapter: FullOptions | LoraOptions) -> Any:
    network: Any = full_size("unet")
    adapters.inject(network, adapter, 0)
    return network


def test_full_fine_tuning_of_sd_v1() -> None:
    network = unet(FullOptions())
    assert sum(weight.numel() for weight in network.parameters()) == 859_520_964
    question = UnetInput(1, 64, 64)
    forward, step = flops.forward_and_step_flops(network, question)
    assert forward / 1e12 == pytest.approx(0.803, abs=5e-4)
    assert step / 1e12 == pytest.approx(2.407, abs=5e-4)
    assert step_flops(network, question, checkpointing=True) / 1e12 == pytest.approx(3.002, abs=5e-4)


def test_lora_does_not_pay_for_gradients_of_frozen_weights() -> None:
    assert step_flops(unet(LoraOptions(rank=16)), UnetInput(1, 64, 64)) / 1e12 == pytest.approx(1.725, abs=5e-4)


def test_a_count_is_exact_and_in_proportion_to_the_batch() -> None:
    one, three = (step_flops(tiny(), UnetInput(batch, 16, 16)) for batch in (1, 3))
    assert three == 3 * one


def tiny() -> Any:
    network = tiny_unet(16)
    adapters.inject(network, FullOptions(), 0)
    return network


def test_three_areas_tell_all_others_exactly() -> None:
    network = tiny()
    sizes = [(8, 8), (16, 8), (16, 16), (32, 8), (24, 16), (32, 32)]
    costs = flops.flops_by_size(network, sizes, 77)
    for size in sizes:
        assert [costs[size].forward, costs[size].step] == flops.forward_and_step_flops(network, UnetInput(1, *size)), (
            size
        )


def test_the_mean_over_an_epoch_weighs_buckets_by_their_pictures() -> None:
    costs = {(8, 8): Flops(1.0, 3.0), (8, 16): Flops(2.0, 7.0)}
    assert flops.mean_flops(costs, {(8, 8): 3, (8, 16): 1}) == Flops(1.25, 4.0)
    assert interpolate({1: 2, 2: 5, 3: 10}, 10) == 101  # x^2 + 1


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
        ("Tesla T4", "fp16", False, 65),
        ("NVIDIA A10", "fp16", False, 125),
        ("NVIDIA A10G", "fp16", False, None),
        ("NVIDIA GeForce RTX 3090", "bf16", False, 71),
        ("NVIDIA GeForce RTX 4090", "fp16", False, 165.2),
        ("NVIDIA A100-SXM4-80GB", "bf16", False, 312),
        ("NVIDIA A100-SXM4-80GB", "no", True, 156),
        ("NVIDIA A100-SXM4-80GB", "no", False, 19.5),
        ("NVIDIA L4", "bf16", False, 121),
        ("NVIDIA L40S", "bf16", False, 362),
        ("NVIDIA H100 80GB HBM3", "bf16", False, 989),
        ("NVIDIA H100 PCIe", "bf16", False, 756),
        ("NVIDIA H200", "bf16", False, 989),
        ("Tesla T4", "no", True, 8.1),
        ("Some Card 5000", "bf16", False, None),
    ],
)
def test_peaks_by_the_data_sheets(name: str, precision: str, tf32: bool, tera: float | None) -> None:
    assert peak_of(name, precision, tf32) == (None if tera is None else pytest.approx(tera * 1e12))
    assert flops.peak_flops(torch.device("cpu")) is None


def test_speed_counts_operations_of_each_device() -> None:
    speed = Speed(flops=2e12, peak=100e12, devices=2)
    assert speed.of(80, seconds=2.0) == {"images_per_second": 40.0, "tflops": 40.0, "mfu": 0.4}
    assert Speed(2e12).of(8, seconds=1.0) == {"images_per_second": 8.0, "tflops": 16.0, "mfu": None}
    assert Speed().of(8, seconds=1.0) == {"images_per_second": 8.0, "tflops": None, "mfu": None}


def test_modules_that_are_no_unet_can_be_hollow_too() -> None:
    assert meta_copy(nn.Linear(3, 4)).weight.is_meta


def test_decoding_a_picture_is_counted_as_the_real_autoencoder_does_it(tiny_model: Any) -> None:
    model = load_model(str(tiny_model))
    latents = torch.zeros(1, model.latent_channels, 4, 8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.vae.decode(latents)  # pyright: ignore[reportArgumentType]
    found = flops.decode_flops(model.config("vae"), 4, 8)
    assert found == pytest.approx(counter.get_total_flops(), rel=0.02)  # attention on a CPU is an operation of its own
