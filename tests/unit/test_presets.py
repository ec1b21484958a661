"""The preset follows the model; a run's identity does not depend on options that keep their default."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.cli import parse
from train.config import ALIASES, CONFIGS, Config, FullOptions, LoraOptions, choose_preset, name_preset
from train.run_folder import identity_v1, run_identity

SD_V1 = str(Path(__file__).parents[2] / "train" / "architectures" / "sd-v1")


def config(*flags: str) -> Config:
    return name_preset(parse(Config, list(flags), prog="finetune.py", preset=choose_preset, aliases=ALIASES))


@pytest.fixture
def small_model(tmp_path: Path) -> str:
    (tmp_path / "small" / "unet").mkdir(parents=True)
    (tmp_path / "small" / "unet" / "config.json").write_text(json.dumps({"block_out_channels": [32, 64]}))
    return str(tmp_path / "small")


@pytest.mark.parametrize(
    ("flags", "preset"),
    [
        ([], "pocket.yaml"),
        (["--model", "pocket", "--adapter.kind", "full"], "pocket.yaml"),
        (["--model", SD_V1], "sd14-lora.yaml"),
        (["--model", SD_V1, "--adapter.kind", "lora"], "sd14-lora.yaml"),
        (["--model", SD_V1, "--adapter.kind", "full"], "sd14-full.yaml"),
        (["--model", "CompVis/stable-diffusion-v1-4"], "sd14-lora.yaml"),
        (["--model", "model.safetensors", "--adapter.kind=full"], "sd14-full.yaml"),
        (["--pretrained_model_name_or_path", "CompVis/stable-diffusion-v1-4"], "sd14-lora.yaml"),
        (["--model", SD_V1, "--config", str(CONFIGS / "pocket.yaml")], "pocket.yaml"),
        (["--config", str(CONFIGS / "sd14-lora-8gb.yaml")], "sd14-lora-8gb.yaml"),
    ],
)
def test_the_preset_follows_the_model_unless_one_is_named(flags: list[str], preset: str) -> None:
    found = config(*flags)
    assert found.config == CONFIGS / preset
    plain = parse(Config, flags, prog="finetune.py", preset=CONFIGS / preset, aliases=ALIASES)
    assert found.model_copy(update={"config": None}) == plain.model_copy(update={"config": None})


def test_a_small_model_has_the_preset_of_the_embedded_one(small_model: str) -> None:
    assert config("--model", small_model).config == CONFIGS / "pocket.yaml"


def test_sd_v1_does_not_train_with_the_settings_of_the_embedded_model() -> None:
    found = config("--model", "CompVis/stable-diffusion-v1-4")
    assert (found.learning_rate, found.preserve.share) == (1e-4, 0.0)


@pytest.mark.parametrize(("model", "rate"), [("pocket", "0.0015"), ("CompVis/stable-diffusion-v1-4", "0.0001")])
def test_help_names_the_defaults_in_force(model: str, rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        config("--model", model, "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert f"peak learning rate (default: {rate})" in text


# ---- identity


class WithNewOptions(Config):
    """A later version: an option of the run and one of a section, with defaults that change nothing."""

    later: int = 0


OPTIONS: list[dict[str, Any]] = [
    {},
    {"adapter": {"kind": "full"}},
    {"adapter": {"kind": "full", "blocks": ["last-layers"]}},
    {"adapter": {"kind": "lora", "rank": 8}},
    {"objective": {"kind": "velocity"}},
    {"objective": {"kind": "sample"}},
    {"optim": {"kind": "prodigy"}, "learning_rate": 1.0},
    {"optim": {"schedule": "cosine"}, "max_steps": 7},
    {"optim": {"schedule": "cosine"}, "max_steps": 8},
    {"ema": {"decay": 0.9}},
    {"ema": {"decay": 0.9, "warmup": False}},
    {"seed": 1},
    {"compile": True},
]


def test_settings_that_change_the_weights_are_another_run() -> None:
    for identity in (run_identity, identity_v1):
        assert len({identity(Config.model_validate(each), "data", "model") for each in OPTIONS}) == len(OPTIONS)
    assert len({run_identity(Config(), data, model) for data in "ab" for model in "cd"}) == 4


@pytest.mark.parametrize("options", OPTIONS)
def test_a_new_option_that_keeps_its_default_is_the_same_run(options: dict[str, Any]) -> None:
    now, later = Config.model_validate(options), WithNewOptions.model_validate(options)
    assert run_identity(later, "data", "model") == run_identity(now, "data", "model")
    assert identity_v1(later, "data", "model") == identity_v1(now, "data", "model")


def test_a_new_option_in_use_is_another_run_and_none_of_before() -> None:
    later = WithNewOptions(later=1)
    assert run_identity(later, "data", "model") != run_identity(Config(), "data", "model")
    assert identity_v1(later, "data", "model") is None


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 7, "threads": 2, "run_name": "x", "model": "elsewhere", "logging": {"every": 3}},
        {"pictures": {"keep": "disk"}, "memory": {"gradient_checkpointing": True}, "export": {"merge": True}},
        {"previews": {"every": 0}, "validation": {"every": 7}, "checkpoints": {"keep": 5}, "strict": True},
    ],
)
def test_what_does_not_change_the_weights_is_the_same_run(options: dict[str, Any]) -> None:
    assert run_identity(Config.model_validate(options), "data", "model") == run_identity(Config(), "data", "model")


def test_options_name_their_run() -> None:
    assert [LoraOptions(use_dora=True, rank=4).label, FullOptions().label] == ["dora-r4", "full"]
    assert FullOptions(blocks=["mid_block", "conv_out"]).label == "full-mid_block-conv_out"
