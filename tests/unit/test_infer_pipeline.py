"""A picture is a function of its prompt, seed and settings alone, and the one that diffusers itself would draw."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from data.errors import InputError
from infer import pipeline, prompts, sampling_loop, schedulers
from infer.pipeline import SamplingSettings
from infer.prompts import ImageRequest
from train import model

CPU = torch.device("cpu")
SETTINGS = SamplingSettings(steps=3, guidance_scale=7.5, width=64, height=64, negative_prompt="grey")
# diffusers 0.42.1 hands torch tensors to NumPy functions in ways that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


def build(
    tiny_model: Path, scheduler: str | None = None, dtype: torch.dtype = torch.float32
) -> StableDiffusionPipeline:
    return pipeline.build_pipeline(model.load_model(str(tiny_model), dtype=dtype), scheduler, CPU)


def drawn(
    pipe: StableDiffusionPipeline, pictures: list[ImageRequest], settings: SamplingSettings = SETTINGS
) -> list[bytes]:
    return [each.image.tobytes() for each in pipeline.generate_images(pipe, pictures, settings)]


@pytest.mark.parametrize("scheduler", [None, "ddim", "euler_a"])
def test_it_is_the_picture_that_diffusers_draws(tiny_model: Path, scheduler: str | None) -> None:
    pipe = build(tiny_model, scheduler)
    (ours,) = pipeline.generate_images(pipe, [ImageRequest(0, "a water type fridge", 45)], SETTINGS)
    plain = StableDiffusionPipeline.from_pretrained(tiny_model, use_safetensors=True)
    plain.scheduler = type(pipe.scheduler).from_config(
        plain.scheduler.config, **({"clip_sample": False} if scheduler == "ddim" else {})
    )
    plain.set_progress_bar_config(disable=True)
    result = plain(
        "a water type fridge",
        negative_prompt="grey",
        num_inference_steps=3,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(45),
    )
    assert np.array_equal(np.asarray(ours.image), np.asarray(result.images[0]))  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("micro_batch", [1, 4])
@pytest.mark.parametrize("scheduler", [None, "euler_a"])
def test_a_picture_is_the_same_alone_or_among_many(tiny_model: Path, scheduler: str | None, micro_batch: int) -> None:
    """euler_a draws noise at every step: with a generator shared by the batch, picture 3 would change."""
    pipe, settings = build(tiny_model, scheduler), replace(SETTINGS, steps=2, micro_batch=micro_batch)
    many = prompts.expand_prompts(["a water type fridge", "a fire"], 42, 3)[:5]
    together = drawn(pipe, many, settings)
    assert drawn(pipe, [ImageRequest(0, "a fire", 43)], settings) == [together[4]]
    assert drawn(pipe, many[::-1], settings) == together[::-1]
    assert len(set(together)) == 5


@pytest.mark.parametrize("scheduler", [name for name in schedulers.SCHEDULERS if "karras" not in name])
def test_every_scheduler_draws_and_draws_each_picture_by_its_own_seed(tiny_model: Path, scheduler: str) -> None:
    """Among two in one call, and alone beside its own padding: also where noise is drawn at each step."""
    pipe, settings = build(tiny_model, scheduler), replace(SETTINGS, steps=4, micro_batch=2, width=32, height=32)
    pictures = [ImageRequest(index, "a fire", seed) for index, seed in enumerate((1, 2))]
    together = list(pipeline.generate_images(pipe, pictures, settings))
    assert [each.verdict for each in together] == ["ok", "ok"]
    assert drawn(pipe, pictures[1:], settings) == [together[1].image.tobytes()]
    assert together[0].image.tobytes() != together[1].image.tobytes()


def test_the_prompt_the_seed_and_the_negative_prompt_each_change_it(tiny_model: Path) -> None:
    pipe = build(tiny_model)
    plain = ImageRequest(0, "a water", 1)
    pictures = [plain, replace(plain, seed=2), replace(plain, prompt="a fire")]
    others = drawn(pipe, [plain], replace(SETTINGS, negative_prompt="")) + drawn(
        pipe, [plain], replace(SETTINGS, guidance_scale=1.0)
    )
    assert len({*drawn(pipe, pictures), *others}) == 5


def test_sizes_need_not_be_square(tiny_model: Path) -> None:
    (picture,) = pipeline.generate_images(
        build(tiny_model), [ImageRequest(0, "a", 1)], replace(SETTINGS, width=96, height=40)
    )
    assert picture.image.size == (96, 40)


def test_start_noise_is_the_same_numbers_in_every_precision(tiny_model: Path) -> None:
    noise = []
    for dtype in (torch.float32, torch.bfloat16):
        pipe = build(tiny_model, dtype=dtype)
        parts = sampling_loop.Networks(pipe.unet, pipe.vae, pipe.scheduler, pipe.device)
        noise.append(sampling_loop.initial_noise(parts, SETTINGS, [torch.Generator().manual_seed(7)]))
    assert torch.equal(noise[0].bfloat16(), noise[1])
    assert torch.equal(noise[0], torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(7)))


def test_bf16_is_near_fp32(tiny_model: Path) -> None:
    pictures = [
        np.frombuffer(drawn(build(tiny_model, dtype=dtype), [ImageRequest(0, "a", 1)])[0], np.uint8).astype(float)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    psnr = 10 * np.log10(255**2 / np.mean((pictures[0] - pictures[1]) ** 2))
    assert 20 < psnr < 80


def test_broken_numbers_are_a_verdict_and_not_a_black_picture(tiny_model: Path) -> None:
    pipe = build(tiny_model)
    (good,) = pipeline.generate_images(pipe, [ImageRequest(0, "a", 1)], SETTINGS)
    assert good.verdict == "ok"
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias.fill_(torch.nan)  # pyright: ignore[reportOptionalMemberAccess]
    (broken,) = pipeline.generate_images(pipe, [ImageRequest(0, "a", 1)], SETTINGS)
    assert broken.verdict == "nan"
    assert broken.image.size == (64, 64)
    assert broken.image.getextrema() != ((0, 0),) * 3


@pytest.mark.parametrize(
    ("scheduler", "calls"), [(None, 11), ("ddim", 10), ("heun", 19), ("dpmpp_2m", 10), ("unipc", 10)]
)
def test_progress_counts_every_call_of_the_network(tiny_model: Path, scheduler: str | None, calls: int) -> None:
    pipe, seen = build(tiny_model, scheduler), []
    assert pipeline.count_unet_calls(pipe, 10) == calls
    list(
        pipeline.generate_images(
            pipe, prompts.expand_prompts(["a"], 1, 3), replace(SETTINGS, steps=10, micro_batch=2), seen.append
        )
    )
    assert sum(seen) == 3 * calls


def test_steps_that_a_scheduler_cannot_make_are_refused(tiny_model: Path) -> None:
    with pytest.raises(
        InputError, match="--steps: 1001 steps are more than the model was trained with; allowed: 1 to 1000"
    ):
        pipeline.count_unet_calls(build(tiny_model, "ddim"), 1001)


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "cuda:x", "meta"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(InputError, match="--device"):
        pipeline.choose_device(device)


def test_precision_follows_the_device() -> None:
    assert pipeline.choose_dtype(None, CPU) is torch.float32
    assert pipeline.choose_dtype("bf16", CPU) is torch.bfloat16
    assert pipeline.choose_dtype(None, torch.device("cuda")) is torch.float16
    with pytest.raises(InputError, match="--dtype: fp16 needs a GPU; allowed: fp32, bf16"):
        pipeline.choose_dtype("fp16", CPU)
