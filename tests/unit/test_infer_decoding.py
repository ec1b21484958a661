"""From latents to pictures: NaN is decoded again, else said; a checker's verdict is written, not painted over."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor

from data.errors import InputError
from infer import config, pipeline
from infer.pipeline import ImageDecoder, SafetyChecker
from train.model import load_model

CPU = torch.device("cpu")


def vae_of(model: Path, dtype: torch.dtype) -> Any:
    return pipeline.build_pipeline(load_model(str(model), dtype=dtype), None, CPU).vae


def latents(dtype: torch.dtype, size: float = 1.0) -> torch.Tensor:
    return (torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0)) * size).to(dtype)


def test_numbers_that_break_down_in_half_precision_are_decoded_again(tiny_model: Path) -> None:
    """Black pictures of SD v1's decoder in fp16: activations past 65504."""
    vae = vae_of(tiny_model, torch.float16)
    loud = vae.decoder.conv_in
    with torch.no_grad():
        loud.weight.mul_(30_000)
        vae.decoder.conv_out.weight.mul_(0.1)
    plain = vae.decode(latents(torch.float16) / vae.config.scaling_factor, return_dict=False)[0]
    assert not torch.isfinite(plain).all(), "the case at hand"
    decoded = ImageDecoder(vae)(latents(torch.float16))
    assert (decoded.verdict, decoded.again) == ("ok", True)
    exact = ImageDecoder(vae.float())(latents(torch.float32).half().float())
    assert decoded.image.tobytes() == exact.image.tobytes()
    assert not exact.again


def test_latents_that_are_broken_already_are_no_picture(tiny_model: Path) -> None:
    decoded = ImageDecoder(vae_of(tiny_model, torch.bfloat16))(
        torch.full((1, 4, 16, 16), torch.nan, dtype=torch.bfloat16)
    )
    assert (decoded.verdict, decoded.again) == ("nan", False)


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


def loaded(folder: Path, *argv: str) -> SafetyChecker:
    return pipeline.load_safety_checker(config.read_options(["--safety-checker", str(folder), *argv]), CPU)


def test_a_checkers_verdict_is_that_of_diffusers(checker: Path, tiny_model: Path) -> None:
    found = loaded(checker)
    vae, given = vae_of(tiny_model, torch.float32), latents(torch.float32)
    plain = ImageDecoder(vae)(given)
    assert ImageDecoder(vae, found)(given).verdict == "ok"
    pixels = found.prepare(images=plain.image, return_tensors="pt").pixel_values
    similar = pipeline.excess_similarity(
        torch.nn.functional.normalize(found.network.visual_projection(found.network.vision_model(pixels)[1])),
        found.network.concept_embeds,
        torch.zeros(17),
    )
    found.network.concept_embeds_weights[3] = similar[3] - 0.5
    flagged = ImageDecoder(vae, found)(given)
    assert (flagged.verdict, flagged.concepts) == ("flagged", ("concept 3 by 0.5",))
    assert flagged.image.tobytes() == plain.image.tobytes(), "kept, not painted black"
    theirs = found.network(images=[torch.ones(1)], clip_input=pixels)[1]
    assert theirs == [True]
    found.network.special_care_embeds_weights.fill_(-2.0)
    assert ImageDecoder(vae, found)(given).concepts == ("concept 3 by 0.51",)


def test_a_flagged_picture_is_hidden_only_on_request(checker: Path) -> None:
    found = loaded(checker, "--hide-flagged")
    found.network.concept_embeds_weights.fill_(-2.0)
    picture = Image.new("RGB", (64, 48), "#336699")
    hidden = found.judged(picture, again=False)
    assert (hidden.verdict, hidden.hidden, hidden.image.size) == ("flagged", True, (64, 48))
    assert hidden.image.getextrema() != ((0, 0),) * 3, "not black: it says that it is hidden"
    assert len(hidden.concepts) == 17


def test_a_folder_without_a_checker_is_refused(tmp_path: Path, checker: Path) -> None:
    with pytest.raises(InputError, match="holds no safety checker"):
        loaded(tmp_path / "missing")
    (checker / "safety_checker" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="could not be loaded"):
        loaded(checker)
