"""The sampling loop: the latents are diffusers' pipelines', for text, images, masks, ControlNets, guidance."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image, ImageDraw

from infer import conditioning_images, config, pipeline, sampling_loop
from infer.conditioning_images import NO_IMAGES, ConditioningImages, read_conditioning
from infer.prompts import ImageRequest
from infer.sampling_loop import SamplingSettings
from tests.errors import error_of
from tests.tiny import TEXT_WIDTH
from train.model import load_model

CPU = torch.device("cpu")
SETTINGS = SamplingSettings(steps=4, guidance_scale=7.5, width=64, height=64, negative_prompt="grey")
REQUEST = ImageRequest(0, "a water type fridge", 45)


def scene() -> Image.Image:
    picture = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    ImageDraw.Draw(picture).ellipse((8, 20, 50, 60), fill="#c04030", outline="#0030f0")
    return picture


def half_mask() -> Image.Image:
    mask = Image.new("RGB", (64, 64), "black")
    ImageDraw.Draw(mask).rectangle((20, 16, 63, 47), fill="white")
    return mask


def build(model: Path, scheduler: str | None = None) -> Any:
    return pipeline.build_pipeline(load_model(str(model)), scheduler, CPU)


def ours(pipe: Any, settings: SamplingSettings, given: ConditioningImages = NO_IMAGES) -> torch.Tensor:
    embeds = pipeline.PromptEncoder(pipe).pair([REQUEST.prompt], settings.negative_prompt)
    return pipeline.sample_micro_batch(pipe, [REQUEST], settings, embeds, conditioning=given)


def theirs(kind: Any, pipe: Any, settings: SamplingSettings, **given: Any) -> torch.Tensor:
    """diffusers' latents with the same parts; its generator is in a list, as in ours."""
    parts = {name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    plain = kind(**parts, **absent, **({"controlnet": given.pop("controlnet")} if "controlnet" in given else {}))
    plain.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": settings.steps, "guidance_scale": settings.guidance_scale, "output_type": "latent"}
    return plain(
        REQUEST.prompt, negative_prompt="grey", generator=[torch.Generator().manual_seed(45)], **how, **given
    ).images


def near(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Equal but for the last bits of the pixels that go in: ours are x / 127.5 - 1, diffusers' 2 (x / 255) - 1."""
    return torch.allclose(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheduler", [None, "euler_a", "dpmpp_2m_karras", "heun"])
def test_img2img(tiny_model: Path, scheduler: str | None) -> None:
    pipe, settings = build(tiny_model, scheduler), replace(SETTINGS, strength=0.6)
    mine = ours(pipe, settings, ConditioningImages(init=scene()))
    assert near(mine, theirs(StableDiffusionImg2ImgPipeline, pipe, settings, image=scene(), strength=0.6))
    assert not near(mine, ours(pipe, replace(settings, strength=0.3), ConditioningImages(init=scene())))


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("channels", [4, 9])
def test_inpainting(tiny_model: Path, strength: float, channels: int) -> None:
    """With any model, and with a U-Net made for it."""
    pipe, settings = build(tiny_model, "ddim"), replace(SETTINGS, strength=strength)
    if channels == 9:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            pipe.register_modules(unet=UNet2DConditionModel.from_config(pipe.unet.config, in_channels=9).eval())  # pyright: ignore
    given = {"image": scene(), "mask_image": half_mask(), "strength": strength, "height": 64, "width": 64}
    mine = ConditioningImages(init=scene(), mask=half_mask())
    conditioning_images.check_unet(mine, pipe.unet)
    assert near(ours(pipe, settings, mine), theirs(StableDiffusionInpaintPipeline, pipe, settings, **given))
    if channels == 9:
        assert error_of(conditioning_images.check_unet, ConditioningImages(init=scene()), pipe.unet).where == "--model"


def tiny_controlnet(unet: UNet2DConditionModel, factor: int = 4) -> ControlNetModel:
    """Random where a new one is zero, so that it has an effect; conditioned at the VAE's scale."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        made = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 16)[: factor // 2 + 1])
        for weight in made.parameters():
            torch.nn.init.normal_(weight, std=0.05)
    return made.eval().requires_grad_(False)


def test_controlnet(tiny_model: Path) -> None:
    pipe = build(tiny_model)
    network, lines = tiny_controlnet(pipe.unet), half_mask()
    mine = ours(pipe, SETTINGS, ConditioningImages(control=lines, controlnet=network, control_scale=0.8))
    given = {"image": lines, "controlnet": network, "controlnet_conditioning_scale": 0.8}
    assert torch.equal(mine, theirs(StableDiffusionControlNetPipeline, pipe, SETTINGS, **given))
    assert not torch.equal(mine, ours(pipe, SETTINGS))
    network.register_to_config(cross_attention_dim=2 * TEXT_WIDTH)
    error = error_of(conditioning_images.check_unet, ConditioningImages(control=lines, controlnet=network), pipe.unet)
    assert error.where == "--controlnet"


def test_guidance_rescale(tiny_model: Path) -> None:
    pipe = build(tiny_model)
    mine = ours(pipe, replace(SETTINGS, guidance_rescale=0.7))
    assert torch.equal(mine, theirs(StableDiffusionPipeline, pipe, SETTINGS, guidance_rescale=0.7))


def test_unguided_steps_need_half_of_a_call(tiny_model: Path) -> None:
    pipe, rows = build(tiny_model, "ddim"), []
    pipe.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    ours(pipe, replace(SETTINGS, guidance_stop=0.5))
    assert rows == [2, 2, 1, 1]
    rows.clear()
    ours(pipe, replace(SETTINGS, guidance_scale=1.0))
    assert rows == [1, 1, 1, 1]


def test_an_inpainted_image_is_the_original_outside_the_mask_and_the_same_among_many(tiny_model: Path) -> None:
    pipe, settings = build(tiny_model, "euler_a"), replace(SETTINGS, steps=2, strength=0.6)
    many = [ImageRequest(index, "a fire", 40 + index) for index in range(5)]
    given = ConditioningImages(init=scene(), mask=half_mask())
    together = list(pipeline.generate_images(pipe, many, settings, conditioning=given))
    assert [each.request for each in together] == many
    (alone,) = pipeline.generate_images(pipe, [many[3]], settings, conditioning=given)
    assert alone.image.tobytes() == together[3].image.tobytes()
    black = Image.new("RGB", (64, 64))
    outside = [Image.composite(black, image, half_mask().convert("L")) for image in (alone.image, scene())]
    assert outside[0].tobytes() == outside[1].tobytes()
    assert alone.image.tobytes() != scene().tobytes()


def test_initial_noise_is_the_same_numbers_in_every_precision(tiny_model: Path) -> None:
    noise = []
    for dtype in (torch.float32, torch.bfloat16):
        pipe = pipeline.build_pipeline(load_model(str(tiny_model), dtype=dtype), None, CPU)
        noise.append(sampling_loop.initial_noise(pipe, SETTINGS, [torch.Generator().manual_seed(7)]))
    assert torch.equal(noise[0].bfloat16(), noise[1])
    assert torch.equal(noise[0], torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(7)))


@pytest.mark.parametrize(("steps", "strength", "flag"), [(1001, 1.0, "--steps"), (4, 0.2, "--strength")])
def test_steps_that_cannot_be_made(tiny_model: Path, steps: int, strength: float, flag: str) -> None:
    error = error_of(sampling_loop.count_unet_calls, build(tiny_model, "ddim"), steps, strength)
    assert error.where == flag and error.allowed


# ---- reading input images


@pytest.mark.parametrize(
    ("ink", "paper", "polarity"),
    [("black", "white", conditioning_images.DARK), ("white", "black", conditioning_images.LIGHT)],
)
def test_a_scribbles_polarity_is_detected(
    tmp_path: Path, tiny_model: Path, ink: str, paper: str, polarity: str
) -> None:
    """Complaint: a scribble in the wrong polarity has no effect. The network expects white lines on black."""
    scribble = Image.new("RGB", (64, 64), paper)
    ImageDraw.Draw(scribble).line((4, 4, 60, 50), fill=ink, width=4)
    scribble.save(tmp_path / "d.png")
    tiny_controlnet(build(tiny_model).unet).save_pretrained(tmp_path / "net")

    def read(*argv: str) -> ConditioningImages:
        options = config.read_options(["--scribble", str(tmp_path / "d.png"), *argv])
        return read_conditioning(options, CPU, torch.float32)

    alone = read()
    assert alone.polarity == polarity and alone.init is not None
    assert alone.init.getpixel((0, 0)) == (255, 255, 255), "a white background"
    lines = read("--controlnet", str(tmp_path / "net")).at(64, 64).lines
    assert lines is not None
    assert (lines[0, 0, 0, 0], lines[0, 0, 30, 32]) == (0, 1)
    assert 0.01 < lines.mean() < 0.3
    assert read("--polarity", "light-on-dark").polarity == conditioning_images.LIGHT


@pytest.mark.parametrize("mask", ["small.png", "black.png", "text.png"])
def test_invalid_masks_and_a_folder_without_a_controlnet(tmp_path: Path, mask: str) -> None:
    scene().save(tmp_path / "a.png")
    half_mask().resize((32, 32)).save(tmp_path / "small.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "black.png")
    (tmp_path / "text.png").write_text("no")
    options = config.read_options(["--init-image", str(tmp_path / "a.png"), "--mask", str(tmp_path / mask)])
    without = config.read_options(["--scribble", str(tmp_path / "a.png"), "--controlnet", str(tmp_path)])
    for given, where in ((options, f"--mask {tmp_path / mask}"), (without, f"--controlnet {tmp_path}")):
        assert str(error_of(read_conditioning, given, CPU, torch.float32).where) in (where, str(tmp_path / mask))


@pytest.mark.parametrize(
    ("ratio", "side", "step", "expected"),
    [(1.0, 64, 8, (64, 64)), (1.5, 512, 64, (576, 384)), (16 / 9, 512, 8, (680, 384)), (0.5, 64, 16, (48, 96))],
)
def test_sizes_of_an_aspect_ratio_have_the_models_area(
    ratio: float, side: int, step: int, expected: tuple[int, int]
) -> None:
    width, height = conditioning_images.size_for_aspect(ratio, side**2, step)
    assert (width, height) == expected
    assert 0.75 < width * height / side**2 < 1.35


@pytest.mark.parametrize(
    ("argv", "given", "size"),
    [
        (["--width", "32"], (100, 50), (32, 64)),
        (["--aspect", "2:1"], (100, 300), (96, 48)),
        ([], (300, 150), (96, 48)),
        ([], None, (64, 64)),
    ],
)
def test_flags_decide_the_size_then_the_input_image(
    argv: list[str], given: tuple[int, int] | None, size: tuple[int, int]
) -> None:
    assert conditioning_images.choose_size(config.read_options(argv), 64, 8, given) == size
