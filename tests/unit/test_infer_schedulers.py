"""Every scheduler by the names people use, with the noise schedule of the model."""

import diffusers
import pytest
import torch

from data.errors import InputError
from infer import schedulers
from tests.errors import error_of
from tests.tiny import sd_scheduler

CONFIG = {key: value for key, value in sd_scheduler().config.items() if not key.startswith("_")}


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_each_has_the_models_noise_schedule_and_takes_steps(name: str) -> None:
    scheduler = schedulers.build_scheduler(name, CONFIG)
    assert type(scheduler).__name__ == schedulers.SCHEDULERS[name].kind
    assert torch.equal(scheduler.alphas_cumprod, sd_scheduler().alphas_cumprod)
    assert not scheduler.config.get("clip_sample", False)
    scheduler.set_timesteps(20)
    assert len(scheduler.timesteps) >= 20


def test_the_models_own_is_the_default() -> None:
    own = schedulers.build_scheduler(None, CONFIG)
    assert isinstance(own, diffusers.PNDMScheduler)
    assert {k: v for k, v in own.config.items() if k in CONFIG} == CONFIG
    assert schedulers.a1111_name(own, None) == "PLMS"


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m_karras"), ("dpm++ 2m", "dpmpp_2m"), ("Euler a", "euler_a"), ("k-euler", "euler"),
        ("PLMS", "pndm"), ("UniPC", "unipc"), ("SASolverScheduler", "sa_solver"), ("LCM", "lcm"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"), ("EulerAncestralDiscreteScheduler", "euler_a"),
    ],
)  # fmt: skip
def test_the_names_of_other_tools_are_understood(typed: str, name: str) -> None:
    assert schedulers.canonical_name(typed) == name


def test_unknown_ones() -> None:
    error = error_of(schedulers.canonical_name, "dpmpp_2n")
    assert "'dpmpp_2" in str(error) and error.allowed
    with pytest.raises(InputError, match="NoScheduler"):
        schedulers.build_scheduler(None, {"_class_name": "NoScheduler"})
