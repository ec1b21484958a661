"""The schedulers of diffusers by the names that people use. The class names are text: diffusers is imported late."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data.errors import InputError, choose
from train.rescaled import HONOURED_BY


@dataclass(frozen=True)
class Named:
    """A scheduler as a person asks for it: its class in diffusers, its name in A1111, and what differs from the model's
    own settings."""

    kind: str
    shown: str
    settings: Mapping[str, Any] = field(default_factory=dict)


KARRAS = {"use_karras_sigmas": True}
SDE = {"algorithm_type": "sde-dpmsolver++"}
NAMES: Mapping[str, Named] = {
    "pndm": Named("PNDMScheduler", "PLMS"),
    "ddim": Named("DDIMScheduler", "DDIM"),
    "ddpm": Named("DDPMScheduler", "DDPM"),
    "euler": Named("EulerDiscreteScheduler", "Euler"),
    "euler_karras": Named("EulerDiscreteScheduler", "Euler Karras", KARRAS),
    "euler_a": Named("EulerAncestralDiscreteScheduler", "Euler a"),
    "heun": Named("HeunDiscreteScheduler", "Heun"),
    "lms": Named("LMSDiscreteScheduler", "LMS"),
    "lms_karras": Named("LMSDiscreteScheduler", "LMS Karras", KARRAS),
    "dpm2": Named("KDPM2DiscreteScheduler", "DPM2"),
    "dpm2_karras": Named("KDPM2DiscreteScheduler", "DPM2 Karras", KARRAS),
    "dpm2_a": Named("KDPM2AncestralDiscreteScheduler", "DPM2 a"),
    "dpmpp_2s": Named("DPMSolverSinglestepScheduler", "DPM++ 2S"),
    "dpmpp_2s_karras": Named("DPMSolverSinglestepScheduler", "DPM++ 2S Karras", KARRAS),
    "dpmpp_2m": Named("DPMSolverMultistepScheduler", "DPM++ 2M"),
    "dpmpp_2m_karras": Named("DPMSolverMultistepScheduler", "DPM++ 2M Karras", KARRAS),
    "dpmpp_2m_sde": Named("DPMSolverMultistepScheduler", "DPM++ 2M SDE", SDE),
    "dpmpp_2m_sde_karras": Named("DPMSolverMultistepScheduler", "DPM++ 2M SDE Karras", {**SDE, **KARRAS}),
    "deis": Named("DEISMultistepScheduler", "DEIS"),
    "deis_karras": Named("DEISMultistepScheduler", "DEIS Karras", KARRAS),
    "unipc": Named("UniPCMultistepScheduler", "UniPC"),
    "unipc_karras": Named("UniPCMultistepScheduler", "UniPC Karras", KARRAS),
    "heun_karras": Named("HeunDiscreteScheduler", "Heun Karras", KARRAS),
    "dpm2_a_karras": Named("KDPM2AncestralDiscreteScheduler", "DPM2 a Karras", KARRAS),
    "sa_solver": Named("SASolverScheduler", "SA Solver"),
    "lcm": Named("LCMScheduler", "LCM"),
    "tcd": Named("TCDScheduler", "TCD"),
}
ALSO = {"plms": "pndm", "euler_ancestral": "euler_a", "k_euler": "euler", "k_euler_a": "euler_a", "k_lms": "lms"}
ALSO |= {
    "dpm_solver": "dpmpp_2m",
    "dpmsolver": "dpmpp_2m",
    "dpmpp": "dpmpp_2m",
    "uni_pc": "unipc",
    "sasolver": "sa_solver",
}


def canonical(name: str) -> str:
    """`DPM++ 2M Karras`, `DPMSolverMultistepScheduler`, `plms` ... -> a key of NAMES. Raises InputError."""
    by_class = {named.kind.lower(): key for key, named in NAMES.items() if not named.settings}
    word = re.sub(r"[\s-]+", "_", name.strip().lower()).replace("dpm++", "dpmpp")
    word = ALSO.get(word, word)
    return choose(by_class.get(word, word), NAMES, what="scheduler")


def build(name: str | None, config: Mapping[str, Any]) -> Any:
    """A diffusers scheduler with the noise schedule of `config`, a model's scheduler_config; None: of its own kind.

    As `Class.from_config(pipe.scheduler.config)`, the field's way to change the scheduler of a model. Latents are not
    bounded by [-1, 1], so nothing is clipped unless the model says so. Raises InputError for a kind diffusers lacks,
    and for one that cannot follow a rescaled noise schedule if the model has that.
    """
    import diffusers

    kind = NAMES[name].kind if name else str(config.get("_class_name", "PNDMScheduler"))
    scheduler = getattr(diffusers, kind, None)
    if scheduler is None:
        raise InputError(f"the model names an unknown scheduler {kind!r}", fix="Choose one with --scheduler.")
    known = scheduler._get_init_keys(scheduler)
    if name and config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in known:
        able = ", ".join(key for key, named in NAMES.items() if named.kind in HONOURED_BY)
        what = f"{NAMES[name].shown} cannot draw with a model trained at zero terminal SNR"
        raise InputError(what, where="--scheduler", allowed=able)
    settings = {"clip_sample": False, **config, **(NAMES[name].settings if name else {})}
    return scheduler.from_config({key: value for key, value in settings.items() if key in known})


def shown(scheduler: Any, name: str | None) -> str:
    """A scheduler's name as A1111 writes it."""
    if name:
        return NAMES[name].shown
    kind = type(scheduler).__name__
    return next((named.shown for named in NAMES.values() if named.kind == kind), kind)
