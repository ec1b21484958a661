"""An image is a function of its prompt, seed and settings alone, and the one that diffusers itself would generate."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor

from infer import config, pipeline, prompts, sampling_loop, schedulers
from infer.pipeline import ImageDecoder, SafetyChecker
from infer.prompts import ImageRequest
from infer.sampling_loop import SamplingSettings
from tests.errors import error_of
from train.model import load_model

CPU = torch.device("cpu")
SETTINGS = SamplingSettings(steps=3, guidance_scale=7.5, width=64, height=64, negative_prompt="grey")


def build(model: Path, scheduler: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    return pipeline.build_pipeline(load_model(str(model), dtype=dtype), scheduler, CPU)


def pixels(pipe: Any, requests: list[ImageRequest], settings: SamplingSettings = SETTINGS) -> list[bytes]:
    return [each.image.tobytes() for each in pipeline.generate_images(pipe, requests, settings)]


@pytest.mark.parametrize("scheduler", [None, "ddim", "euler_a"])
def test_it_is_the_image_that_diffusers_generates(tiny_model: Path, scheduler: str | None) -> None:
    pipe = build(tiny_model, scheduler)
    (ours,) = pixels(pipe, [ImageRequest(0, "a water type fridge", 45)])
    plain = StableDiffusionPipeline.from_pretrained(tiny_model, use_safetensors=True)
    changes = {"clip_sample": False} if scheduler == "ddim" else {}
    plain.scheduler = type(pipe.scheduler).from_config(plain.scheduler.config, **changes)
    plain.set_progress_bar_config(disable=True)
    how: dict[str, Any] = {"negative_prompt": "grey", "num_inference_steps": 3, "guidance_scale": 7.5}
    result = plain("a water type fridge", **how, generator=torch.Generator().manual_seed(45))
    assert ours == result.images[0].tobytes()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("micro_batch", [1, 4])
@pytest.mark.parametrize("scheduler", [None, "euler_a"])
def test_an_image_is_the_same_alone_or_among_many(tiny_model: Path, scheduler: str | None, micro_batch: int) -> None:
    """euler_a adds noise at every step: with a generator shared by the batch, image 3 would change."""
    pipe, settings = build(tiny_model, scheduler), replace(SETTINGS, steps=2, micro_batch=micro_batch)
    many = prompts.expand_prompts(["a water type fridge", "a fire"], 42, 3)[:5]
    together = pixels(pipe, many, settings)
    assert pixels(pipe, [ImageRequest(0, "a fire", 43)], settings) == [together[4]]
    assert pixels(pipe, many[::-1], settings) == together[::-1]
    assert len(set(together)) == 5


@pytest.mark.parametrize("scheduler", [name for name in schedulers.SCHEDULERS if "karras" not in name])
def test_with_every_scheduler_an_image_depends_on_its_own_seed(tiny_model: Path, scheduler: str) -> None:
    """Among two in one call, and alone beside its own padding: also where noise is added at each step."""
    pipe, settings = build(tiny_model, scheduler), replace(SETTINGS, steps=4, micro_batch=2, width=32, height=32)
    requests = [ImageRequest(index, "a fire", seed) for index, seed in enumerate((1, 2))]
    together = list(pipeline.generate_images(pipe, requests, settings))
    assert [each.verdict for each in together] == ["ok", "ok"]
    assert pixels(pipe, requests[1:], settings) == [together[1].image.tobytes()]
    assert together[0].image.tobytes() != together[1].image.tobytes()


def test_prompt_seed_negative_prompt_and_guidance_each_change_it(tiny_model: Path) -> None:
    pipe, plain = build(tiny_model), ImageRequest(0, "a water", 1)
    images = pixels(pipe, [plain, replace(plain, seed=2), replace(plain, prompt="a fire")])
    images += pixels(pipe, [plain], replace(SETTINGS, negative_prompt=""))
    images += pixels(pipe, [plain], replace(SETTINGS, guidance_scale=1.0))
    assert len(set(images)) == 5
    (wide,) = pipeline.generate_images(pipe, [plain], replace(SETTINGS, width=96, height=40))
    assert wide.image.size == (96, 40)


def test_bf16_is_near_fp32(tiny_model: Path) -> None:
    images = [
        np.frombuffer(pixels(build(tiny_model, dtype=dtype), [ImageRequest(0, "a", 1)])[0], np.uint8).astype(float)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert 20 < 10 * np.log10(255**2 / np.mean((images[0] - images[1]) ** 2)) < 80


@pytest.mark.parametrize(
    ("scheduler", "calls"), [(None, 11), ("ddim", 10), ("heun", 19), ("dpmpp_2m", 10), ("unipc", 10)]
)
def test_progress_counts_every_call_of_the_network(tiny_model: Path, scheduler: str | None, calls: int) -> None:
    pipe, counts = build(tiny_model, scheduler), []
    assert sampling_loop.count_unet_calls(pipe, 10) == calls
    requests = prompts.expand_prompts(["a"], 1, 3)
    list(pipeline.generate_images(pipe, requests, replace(SETTINGS, steps=10, micro_batch=2), counts.append))
    assert sum(counts) == 3 * calls


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "cuda:x", "meta"])
def test_a_device_that_is_not_there(device: str) -> None:
    assert error_of(pipeline.choose_device, device).where == "--device"


def test_precision_follows_the_device() -> None:
    assert pipeline.choose_dtype(None, CPU) is torch.float32
    assert pipeline.choose_dtype("bf16", CPU) is torch.bfloat16
    assert pipeline.choose_dtype(None, torch.device("cuda")) is torch.float16
    error = error_of(pipeline.choose_dtype, "fp16", CPU)
    assert (error.where, error.allowed) == ("--dtype", "fp32, bf16")


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_out_of_memory_is_an_input_error_and_the_next_image_works(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    pipe, small = build(tiny_model), replace(SETTINGS, steps=1, width=32, height=32)

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(getattr(pipe, part), {"unet": "forward", "vae": "decode"}[part], full)
        error = error_of(pixels, pipe, [ImageRequest(0, "a", 1)], small)
        assert error.where == "--device" and error.fix
    assert len(pixels(pipe, [ImageRequest(0, "a", 1)], small)) == 1


# ---- decoding


def latents(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0)).to(dtype)


def test_numbers_that_break_down_in_half_precision_are_decoded_again(tiny_model: Path) -> None:
    """Black images of SD v1's decoder in fp16: activations past 65504."""
    vae = build(tiny_model, dtype=torch.float16).vae
    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(30_000)
        vae.decoder.conv_out.weight.mul_(0.1)
    plain = vae.decode(latents(torch.float16) / vae.config.scaling_factor, return_dict=False)[0]
    assert not torch.isfinite(plain).all(), "the case at hand"
    decoded = ImageDecoder(vae)(latents(torch.float16))
    assert (decoded.verdict, decoded.decoded_again) == ("ok", True)
    exact = ImageDecoder(vae.float())(latents(torch.float32).half().float())
    assert decoded.image.tobytes() == exact.image.tobytes()
    assert not exact.decoded_again


def test_broken_numbers_are_a_verdict_and_not_a_black_image(tiny_model: Path) -> None:
    pipe = build(tiny_model)
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias.fill_(torch.nan)
    (broken,) = pipeline.generate_images(pipe, [ImageRequest(0, "a", 1)], SETTINGS)
    assert (broken.verdict, broken.image.size, broken.decoded_again) == ("nan", (64, 64), False)
    assert broken.image.getextrema() != ((0, 0),) * 3


@pytest.fixture
def checker(tmp_path: Path) -> Path:
    """A random safety checker in a folder as Stable Diffusion has it; every concept is far away."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 16}
    made = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    made.concept_embeds_weights.data.fill_(2.0)
    made.special_care_embeds_weights.data.fill_(2.0)
    made.save_pretrained(tmp_path / "safety_checker")
    size = {"shortest_edge": 32}
    CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path / "feature_extractor")
    return tmp_path


def load_checker(folder: Path, *argv: str) -> SafetyChecker:
    found = pipeline.load_safety_checker(config.read_options(["--safety-checker", str(folder), *argv]), CPU)
    assert found is not None
    return found


def test_the_safety_checkers_verdict_is_that_of_diffusers(checker: Path, tiny_model: Path) -> None:
    found, vae, given = load_checker(checker), build(tiny_model).vae, latents(torch.float32)
    plain = ImageDecoder(vae)(given)
    assert ImageDecoder(vae, found)(given).verdict == "ok"
    pixels = found.prepare(images=plain.image, return_tensors="pt").pixel_values
    embeds = found.network.visual_projection(found.network.vision_model(pixels)[1])
    normal = torch.nn.functional.normalize(embeds)
    similar = pipeline.excess_similarity(normal, found.network.concept_embeds, torch.zeros(17))
    found.network.concept_embeds_weights[3] = similar[3] - 0.5
    flagged = ImageDecoder(vae, found)(given)
    assert (flagged.verdict, flagged.concepts) == ("flagged", ("concept 3 by 0.5",))
    assert flagged.image.tobytes() == plain.image.tobytes(), "kept, not painted black"
    assert found.network(images=[torch.ones(1)], clip_input=pixels)[1] == [True]
    found.network.special_care_embeds_weights.fill_(-2.0)
    assert ImageDecoder(vae, found)(given).concepts == ("concept 3 by 0.51",)


def test_a_flagged_image_is_hidden_only_on_request(checker: Path) -> None:
    found = load_checker(checker, "--hide-flagged")
    found.network.concept_embeds_weights.fill_(-2.0)
    hidden = found.judged(Image.new("RGB", (64, 48), "#336699"), again=False)
    assert (hidden.verdict, hidden.hidden, hidden.image.size) == ("flagged", True, (64, 48))
    assert hidden.image.getextrema() != ((0, 0),) * 3, "not black: it says that it is hidden"
    assert len(hidden.concepts) == 17


def test_a_folder_without_a_safety_checker(tmp_path: Path, checker: Path) -> None:
    (checker / "safety_checker" / "model.safetensors").write_bytes(b"cut")
    for folder in (tmp_path / "missing", checker):
        assert error_of(load_checker, folder).where == f"--safety-checker {folder}"
