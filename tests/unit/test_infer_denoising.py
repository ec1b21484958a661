"""One loop for all of it: its pictures are those of diffusers' own pipelines for each kind, number for number."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
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

from data.errors import InputError
from infer import conditioning_images, config, pipeline, sampling_loop
from infer.conditioning_images import ConditioningImages
from infer.pipeline import SamplingSettings
from infer.prompts import ImageRequest
from tests.tiny import TEXT_WIDTH
from train.model import load_model

CPU = torch.device("cpu")
SETTINGS = SamplingSettings(steps=4, guidance_scale=7.5, width=64, height=64, negative_prompt="grey")
PICTURE = ImageRequest(0, "a water type fridge", 45)
# diffusers 0.42.1 hands torch tensors to NumPy functions in ways that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


def scene() -> Image.Image:
    picture = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    ImageDraw.Draw(picture).ellipse((8, 20, 50, 60), fill="#c04030", outline="#0030f0")
    return picture


def half_mask() -> Image.Image:
    mask = Image.new("RGB", (64, 64), "black")
    ImageDraw.Draw(mask).rectangle((20, 16, 63, 47), fill="white")
    return mask


def build(model: Path, scheduler: str | None = None) -> StableDiffusionPipeline:
    return pipeline.build_pipeline(load_model(str(model)), scheduler, CPU)


def ours(
    pipe: Any,
    settings: SamplingSettings,
    given: ConditioningImages = conditioning_images.NO_IMAGES,
    picture: ImageRequest = PICTURE,
) -> torch.Tensor:
    encode = pipeline.PromptEncoder(pipe)
    states = encode.pair([picture.prompt], settings.negative_prompt)
    return pipeline.sample_micro_batch(pipe, [picture], settings, states, lambda *_: None, given)


def theirs(kind: Any, pipe: Any, settings: SamplingSettings, **given: Any) -> torch.Tensor:
    """diffusers' latents with the same parts; its generator is in a list, as in ours."""
    parts = {name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    plain = kind(**parts, **absent, **({"controlnet": given.pop("controlnet")} if "controlnet" in given else {}))
    plain.set_progress_bar_config(disable=True)
    return plain(
        PICTURE.prompt,
        negative_prompt="grey",
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        generator=[torch.Generator().manual_seed(45)],
        output_type="latent",
        **given,
    ).images


def near(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Equal but for the last bits of the pixels that go in: ours are x / 127.5 - 1, diffusers' 2 (x / 255) - 1."""
    return torch.allclose(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheduler", [None, "euler_a", "dpmpp_2m_karras", "heun"])
def test_from_a_picture(tiny_model: Path, scheduler: str | None) -> None:
    pipe, settings = build(tiny_model, scheduler), replace(SETTINGS, strength=0.6)
    mine = ours(pipe, settings, ConditioningImages(init=scene()))
    assert near(mine, theirs(StableDiffusionImg2ImgPipeline, pipe, settings, image=scene(), strength=0.6))
    assert not near(mine, ours(pipe, replace(settings, strength=0.3), ConditioningImages(init=scene())))


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_inside_a_mask(tiny_model: Path, strength: float) -> None:
    pipe, settings = build(tiny_model, "ddim"), replace(SETTINGS, strength=strength)
    given = {"image": scene(), "mask_image": half_mask(), "strength": strength, "height": 64, "width": 64}
    mine = ours(pipe, settings, ConditioningImages(init=scene(), mask=half_mask()))
    assert near(mine, theirs(StableDiffusionInpaintPipeline, pipe, settings, **given))


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_inside_a_mask_with_a_network_made_for_it(tiny_model: Path, strength: float) -> None:
    pipe, settings = build(tiny_model, "ddim"), replace(SETTINGS, strength=strength)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        nine: Any = UNet2DConditionModel.from_config(pipe.unet.config, in_channels=9)
        pipe.register_modules(unet=nine.eval())
    given = {"image": scene(), "mask_image": half_mask(), "strength": strength, "height": 64, "width": 64}
    filled = ConditioningImages(init=scene(), mask=half_mask())
    conditioning_images.check_unet(filled, pipe.unet)
    assert near(ours(pipe, settings, filled), theirs(StableDiffusionInpaintPipeline, pipe, settings, **given))
    with pytest.raises(InputError, match="only fills masks"):
        conditioning_images.check_unet(ConditioningImages(init=scene()), pipe.unet)


def tiny_controlnet(unet: UNet2DConditionModel, factor: int = 4) -> ControlNetModel:
    """Random where a new one is zero, so that it has an effect; conditioned at the autoencoder's scale."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        made = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 16)[: factor // 2 + 1])
        for weight in made.parameters():
            torch.nn.init.normal_(weight, std=0.05)
    return made.eval().requires_grad_(False)


def test_along_lines(tiny_model: Path) -> None:
    pipe = build(tiny_model)
    network, lines = tiny_controlnet(pipe.unet), half_mask()
    mine = ours(pipe, SETTINGS, ConditioningImages(control=lines, controlnet=network, control_scale=0.8))
    given = {"image": lines, "controlnet": network, "controlnet_conditioning_scale": 0.8}
    assert torch.equal(mine, theirs(StableDiffusionControlNetPipeline, pipe, SETTINGS, **given))
    assert not torch.equal(mine, ours(pipe, SETTINGS))
    narrow = ConditioningImages(control=lines, controlnet=network)
    conditioning_images.check_unet(narrow, pipe.unet)
    network.register_to_config(cross_attention_dim=2 * TEXT_WIDTH)
    with pytest.raises(InputError, match="--controlnet: made for text states of 64 numbers, the model has 32"):
        conditioning_images.check_unet(narrow, pipe.unet)


def test_guidance_rescaled(tiny_model: Path) -> None:
    pipe = build(tiny_model)
    mine = ours(pipe, replace(SETTINGS, guidance_rescale=0.7))
    assert torch.equal(mine, theirs(StableDiffusionPipeline, pipe, SETTINGS, guidance_rescale=0.7))


def test_guidance_stops_and_saves_half_of_a_call(tiny_model: Path) -> None:
    pipe = build(tiny_model, "ddim")
    rows: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    ours(pipe, replace(SETTINGS, guidance_stop=0.5))
    assert rows == [2, 2, 1, 1]
    rows.clear()
    ours(pipe, replace(SETTINGS, guidance_scale=1.0))
    assert rows == [1, 1, 1, 1]


def test_what_is_outside_the_mask_is_pasted_back_exactly(tiny_model: Path) -> None:
    pipe = build(tiny_model, "ddim")
    (drawn,) = pipeline.generate_images(
        pipe, [PICTURE], SETTINGS, given=ConditioningImages(init=scene(), mask=half_mask())
    )
    inside = np.asarray(half_mask())[..., 0] > 127
    image, before = np.asarray(drawn.image), np.asarray(scene())
    assert np.array_equal(image[~inside], before[~inside])
    assert not np.array_equal(image[inside], before[inside])


def test_an_inpainted_image_is_the_same_alone_or_among_many(tiny_model: Path) -> None:
    pipe, settings = build(tiny_model, "euler_a"), replace(SETTINGS, steps=2, strength=0.6)
    many = [ImageRequest(index, "a fire", 40 + index) for index in range(5)]
    given = ConditioningImages(init=scene(), mask=half_mask())
    together = list(pipeline.generate_images(pipe, many, settings, given=given))
    assert [each.picture for each in together] == many
    (alone,) = pipeline.generate_images(pipe, [many[3]], settings, given=given)
    assert alone.image.tobytes() == together[3].image.tobytes()


@pytest.mark.parametrize(
    ("ink", "paper", "polarity"),
    [("black", "white", conditioning_images.DARK), ("white", "black", conditioning_images.LIGHT)],
)
def test_the_polarity_of_lines_is_seen(tmp_path: Path, tiny_model: Path, ink: str, paper: str, polarity: str) -> None:
    """Complaint: a drawing in the wrong polarity led to nothing. The network wants white lines on black."""
    drawing = Image.new("RGB", (64, 64), paper)
    ImageDraw.Draw(drawing).line((4, 4, 60, 50), fill=ink, width=4)
    drawing.save(tmp_path / "d.png")
    tiny_controlnet(build(tiny_model).unet).save_pretrained(tmp_path / "net")
    given = conditioning_images.read_conditioning(
        config.read_options(["--scribble", str(tmp_path / "d.png")]), CPU, torch.float32
    )
    assert given.polarity == polarity
    assert given.init is not None
    assert given.init.getpixel((0, 0)) == (255, 255, 255), "paper to draw on"
    argv = ["--scribble", str(tmp_path / "d.png"), "--controlnet", str(tmp_path / "net")]
    led = conditioning_images.read_conditioning(config.read_options(argv), CPU, torch.float32)
    lines = led.at(64, 64).lines
    assert lines is not None
    assert lines[0, 0, 0, 0] == 0
    assert lines[0, 0, 30, 32] == 1
    assert 0.01 < lines.mean() < 0.3
    told = conditioning_images.read_conditioning(
        config.read_options([*argv, "--polarity", "light-on-dark"]), CPU, torch.float32
    )
    assert told.polarity == conditioning_images.LIGHT


def test_pictures_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    scene().save(tmp_path / "a.png")
    half_mask().resize((32, 32)).save(tmp_path / "small.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "black.png")
    (tmp_path / "text.png").write_text("no")
    for argv, said in (
        (["--mask", "small.png"], "is 32 x 32, --init-image 64 x 64 pixels"),
        (["--mask", "black.png"], "is black everywhere: nothing would be drawn"),
        (["--mask", "text.png"], "is not a picture that can be read"),
    ):
        paths = ["--init-image", str(tmp_path / "a.png"), argv[0], str(tmp_path / argv[1])]
        with pytest.raises(InputError, match=said):
            conditioning_images.read_conditioning(config.read_options(paths), CPU, torch.float32)
    paths = ["--scribble", str(tmp_path / "a.png"), "--controlnet", str(tmp_path)]
    with pytest.raises(InputError, match="holds no ControlNet"):
        conditioning_images.read_conditioning(config.read_options(paths), CPU, torch.float32)
    with pytest.raises(InputError, match=r"0\.2 of 4 steps is none; allowed: 0\.25 to 1"):
        sampling_loop.check_strength(4, 0.2)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_full_device_is_one_line_and_the_next_picture_is_drawn(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    pipe = build(tiny_model)
    small = replace(SETTINGS, steps=1, width=32, height=32)

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(getattr(pipe, part), {"unet": "forward", "vae": "decode"}[part], full)
        with pytest.raises(InputError, match="--device: the device has too little memory for this size") as caught:
            list(pipeline.generate_images(pipe, [PICTURE], small))
        assert "\n" not in str(caught.value)
    assert len(list(pipeline.generate_images(pipe, [PICTURE], small))) == 1
