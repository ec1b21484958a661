"""What a model trained at zero terminal SNR must say, so that others draw with the schedule it was trained at.

Source: Lin et al. 2023, arXiv 2305.08891: the rescaled schedule (section 3.1), v prediction (3.2), and sampling that
starts at the last timestep (3.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SETTINGS = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
HONOURED_BY = {  # diffusers' schedulers that follow both settings; the others would draw with another schedule
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
}
INSTEAD = "DDIMScheduler"  # the paper's, and nearest to Stable Diffusion's own PNDM
OF_PNDM_ALONE = ("skip_prk_steps",)
ADVICE = (
    "trained at zero terminal SNR: draw with a scheduler that has rescale_betas_zero_snr and timestep_spacing"
    ' "trailing", such as diffusers\' DDIMScheduler'
)


def scheduler_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A base model's scheduler_config.json, changed to what its rescaled version must be drawn with."""
    if config.get("_class_name") in HONOURED_BY:
        return {**config, **SETTINGS}
    kept = {key: value for key, value in config.items() if key not in OF_PNDM_ALONE}
    # DDIM clips to [-1, 1] unless it is told not to; latents are not bounded by that
    return {"clip_sample": False, **kept, **SETTINGS, "_class_name": INSTEAD}


def model_index(index: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """model_index.json with the scheduler that scheduler_config.json now names."""
    return {**index, "scheduler": ["diffusers", config["_class_name"]]}
