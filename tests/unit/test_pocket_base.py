"""The shipped base model and scorer: their layout, sizes and configuration, and that they run for anyone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPTokenizer

ROOT = Path(__file__).resolve().parents[2]
BASE, SCORER = ROOT / "data" / "pocket" / "base", ROOT / "data" / "pocket" / "scorer"
MIB = 2**20


def config(name: str) -> dict[str, Any]:
    return json.loads((BASE / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pipeline() -> Any:
    loaded: Any = StableDiffusionPipeline.from_pretrained(BASE)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_sizes():
    sizes = {file: file.stat().st_size for file in BASE.rglob("*") if file.is_file()}
    assert max(sizes.values()) <= 16 * MIB
    assert sum(sizes.values()) <= 24 * MIB
    assert sum(file.stat().st_size for file in SCORER.rglob("*") if file.is_file()) <= 8 * MIB


def test_only_half_precision_safetensors():
    weights = [*BASE.rglob("*.safetensors"), SCORER / "model.safetensors"]
    assert len(weights) == 4
    for file in weights:
        assert {value.dtype for value in load_file(file).values()} <= {torch.float16, torch.int64}, file
    assert not [file for file in BASE.rglob("*") if file.suffix in (".bin", ".pt", ".ckpt", ".pkl")]


def test_the_schedule_is_stable_diffusion_1_4s():
    schedule = config("scheduler/scheduler_config.json")
    expected = {
        "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000, "skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False,
        "prediction_type": "epsilon", "clip_sample": False,
    }  # fmt: skip
    assert {key: schedule.get(key) for key in expected} == expected


def test_the_parts_fit_each_other(pipeline: Any):
    assert pipeline.vae_scale_factor == 4
    assert pipeline.unet.config.sample_size * pipeline.vae_scale_factor == 64 == pipeline.vae.config.sample_size
    assert pipeline.unet.config.cross_attention_dim == pipeline.text_encoder.config.hidden_size
    assert pipeline.text_encoder.config.vocab_size == len(pipeline.tokenizer)
    assert pipeline.text_encoder.config.eos_token_id == pipeline.tokenizer.eos_token_id
    assert pipeline.tokenizer.model_max_length == pipeline.text_encoder.config.max_position_embeddings == 77
    assert pipeline.safety_checker is None


@pytest.mark.parametrize("text", ["a water type fridge", "A TOUCAN", "naïve — 電 ☃ prompt", "x" * 500, ""])
def test_the_tokenizer_encodes_anything(text: str):
    tokenizer = CLIPTokenizer.from_pretrained(BASE / "tokenizer")
    ids = tokenizer(text, padding="max_length", truncation=True, max_length=77).input_ids
    assert len(ids) == 77
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id in ids


def test_plain_words_are_one_token_each():
    tokenizer = CLIPTokenizer.from_pretrained(BASE / "tokenizer")
    assert len(tokenizer("a water type fridge").input_ids) == 6
    assert tokenizer("A Toucan").input_ids == tokenizer("a toucan").input_ids


def draw(pipeline: Any, prompt: str, seed: int, steps: int) -> np.ndarray:
    rng = torch.Generator().manual_seed(seed)
    result = pipeline(prompt, num_inference_steps=steps, guidance_scale=4.0, generator=rng, output_type="np")
    return result.images[0]


def test_the_same_seed_draws_the_same_image(pipeline: Any):
    first, again, other = (draw(pipeline, "a guitar", seed, 4) for seed in (1, 1, 2))
    assert first.shape == (64, 64, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_colour_words_colour_the_image(pipeline: Any):
    red, blue = (draw(pipeline, f"a {colour} guitar", 3, 8) for colour in ("red", "blue"))
    assert np.isfinite(red).all()
    assert (blue[..., 2] - blue[..., 0]).mean() > (red[..., 2] - red[..., 0]).mean() + 0.02
