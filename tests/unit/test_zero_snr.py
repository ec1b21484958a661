"""What a model trained at zero terminal SNR says of itself, read by diffusers."""

import inspect
import json
from typing import Any

import diffusers
import pytest
import torch

from data.errors import InputError
from infer import schedulers
from tests.tiny import sd_scheduler
from train import model
from train.ddpm import schedule as schedules

CONFIG: dict[str, Any] = {**json.loads(sd_scheduler().to_json_string()), "prediction_type": "v_prediction"}
KINDS = sorted({named.kind for named in schedulers.SCHEDULERS.values()})


@pytest.mark.parametrize("kind", KINDS)
def test_the_list_of_those_that_honour_it_is_diffusers_own(kind: str) -> None:
    taken = inspect.signature(getattr(diffusers, kind).__init__).parameters
    assert (kind in model.ZERO_SNR_SCHEDULERS) == (model.ZERO_SNR_SETTINGS.keys() <= taken.keys())


def test_pndm_becomes_ddim_with_the_training_schedule_from_the_last_timestep() -> None:
    config = model.zero_snr_scheduler_config(CONFIG)
    assert CONFIG["_class_name"] == "PNDMScheduler", "the original is left as it was"
    scheduler = schedulers.build_scheduler(None, config)
    assert isinstance(scheduler, diffusers.DDIMScheduler)
    found: Any = scheduler.config
    assert (found.prediction_type, found.timestep_spacing, found.clip_sample) == ("v_prediction", "trailing", False)
    assert found.rescale_betas_zero_snr
    ours = schedules.from_diffusers(config)
    assert torch.equal(ours.betas, schedules.zero_terminal_snr(schedules.from_diffusers(CONFIG)).betas)
    assert ours.alphas_cumprod[-1] == scheduler.alphas_cumprod[-1] == 0.0
    assert ours.alphas_cumprod[0].item() == pytest.approx(1 - 0.00085, abs=1e-15)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), ours.alphas_cumprod, rtol=0, atol=1e-6)
    scheduler.set_timesteps(25)
    assert scheduler.timesteps[0] == 999, "drawing starts where training did: from noise alone"


def test_rescaling_is_that_of_diffusers() -> None:
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    before = schedules.from_diffusers(CONFIG)
    theirs = rescale_zero_terminal_snr(before.betas)
    torch.testing.assert_close(schedules.zero_terminal_snr(before).betas, theirs, rtol=0, atol=1e-12)


def test_no_signal_can_be_lost_twice() -> None:
    once = model.zero_snr_scheduler_config(CONFIG)
    assert model.zero_snr_scheduler_config(once) == once
    again = schedules.zero_terminal_snr(schedules.from_diffusers(once))
    torch.testing.assert_close(again.betas, schedules.from_diffusers(once).betas, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", sorted(model.ZERO_SNR_SCHEDULERS))
def test_a_scheduler_that_honours_it_stays(kind: str) -> None:
    given = {"_class_name": kind, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    found = model.zero_snr_scheduler_config({**given, "prediction_type": "v_prediction", "own": 1})
    assert (found["_class_name"], found["own"]) == (kind, 1)
    scheduler = schedulers.build_scheduler(None, found)
    scheduler.set_timesteps(10)
    assert float(scheduler.timesteps[0]) == 999
    assert scheduler.alphas_cumprod[-1] < 1e-7  # Euler and others keep 2^-24, so as not to divide by nothing


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_drawing_with_another_schedule_than_the_models_is_refused(name: str) -> None:
    config = model.zero_snr_scheduler_config(CONFIG)
    if schedulers.SCHEDULERS[name].kind in model.ZERO_SNR_SCHEDULERS:
        assert schedulers.build_scheduler(name, config).alphas_cumprod[-1] < 1e-7
        return
    with pytest.raises(InputError) as caught:
        schedulers.build_scheduler(name, config)
    shown = schedulers.SCHEDULERS[name].shown
    line = f"--scheduler: {shown} does not support a model trained at zero terminal SNR; allowed: "
    assert str(caught.value).startswith(f"{line}ddim, ddpm, euler")
