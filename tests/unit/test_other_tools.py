"""Flags of diffusers' scripts and the common ones of kohya's are aliases, or answered with what to use instead."""

import re

import pytest
import yaml

from data.cli import find_flags, flag_of, parse
from data.errors import InputError
from train.config import ALIASES, OTHER_TOOLS, Config

DIFFUSERS = [
    "pretrained_model_name_or_path",
    "revision",
    "variant",
    "dataset_name",
    "dataset_config_name",
    "train_data_dir",
    "image_column",
    "caption_column",
    "validation_prompt",
    "validation_prompts",
    "num_validation_images",
    "validation_epochs",
    "max_train_samples",
    "output_dir",
    "cache_dir",
    "seed",
    "resolution",
    "center_crop",
    "random_flip",
    "train_batch_size",
    "num_train_epochs",
    "max_train_steps",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "learning_rate",
    "scale_lr",
    "lr_scheduler",
    "lr_warmup_steps",
    "snr_gamma",
    "dream_training",
    "dream_detail_preservation",
    "use_8bit_adam",
    "allow_tf32",
    "use_ema",
    "offload_ema",
    "foreach_ema",
    "non_ema_revision",
    "dataloader_num_workers",
    "adam_beta1",
    "adam_beta2",
    "adam_weight_decay",
    "adam_epsilon",
    "max_grad_norm",
    "push_to_hub",
    "hub_token",
    "prediction_type",
    "hub_model_id",
    "logging_dir",
    "mixed_precision",
    "report_to",
    "local_rank",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "resume_from_checkpoint",
    "enable_xformers_memory_efficient_attention",
    "noise_offset",
    "input_perturbation",
    "validation_epochs",
    "tracker_project_name",
    "rank",
    "image_interpolation_mode",
]  # of train_text_to_image.py and train_text_to_image_lora.py
HINTS = yaml.safe_load(OTHER_TOOLS.read_text(encoding="utf-8"))
OWN = {flag_of(path) for path in find_flags(Config)}


@pytest.mark.parametrize("name", DIFFUSERS)
def test_flags_of_diffusers_scripts_are_known(name: str) -> None:
    flag = flag_of(name)
    assert flag in OWN | ALIASES.keys() | HINTS.keys()


def test_no_flag_is_both_ours_and_answered() -> None:
    assert not (OWN | ALIASES.keys()) & HINTS.keys()
    assert set(ALIASES.values()) <= OWN


def test_answers_name_flags_that_exist() -> None:
    named = {flag for hint in HINTS.values() for flag in re.findall(r"(?<!\S)--[a-z][a-z0-9.-]*", hint)}
    foreign = {"--repo-type", "--local-dir", "--mixed_precision", "--no-pictures.buckets"}
    assert named - foreign - {"--mixed"} <= OWN


def test_a_flag_of_another_program_is_answered_with_what_to_use_instead() -> None:
    with pytest.raises(InputError) as error:
        parse(Config, ["--snr_gamma", "5"], prog="finetune.py", hints=OTHER_TOOLS)
    assert error.value.where == "--snr-gamma"
    assert "--objective.weighting min-snr" in str(error.value.fix)


def test_aliases_set_our_options() -> None:
    flags = ["--resolution", "256", "--random_flip", "--lr_warmup_steps", "7", "--checkpointing_steps", "9"]
    config = parse(Config, flags, prog="finetune.py", aliases=ALIASES)
    assert (config.pictures.size, config.pictures.flip) == (256, True)
    assert (config.optim.warmup, config.checkpoints.every) == (7, 9)
