"""The registry of samplers: diffusers' schedulers by the names that people use. diffusers itself is imported late."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data.errors import InputError, check_choice


@dataclass(frozen=True)
class NamedScheduler:
    """A scheduler's class in diffusers, its name in A1111, and what differs from the model's own settings."""

    kind: str
    shown: str
    settings: Mapping[str, Any] = field(default_factory=dict)


KARRAS = {"use_karras_sigmas": True}
SDE = {"algorithm_type": "sde-dpmsolver++"}
SCHEDULERS: Mapping[str, NamedScheduler] = {
    "pndm": NamedScheduler("PNDMScheduler", "PLMS"),
    "ddim": NamedScheduler("DDIMScheduler", "DDIM"),
    "ddpm": NamedScheduler("DDPMScheduler", "DDPM"),
    "euler": NamedScheduler("EulerDiscreteScheduler", "Euler"),
    "euler_karras": NamedScheduler("EulerDiscreteScheduler", "Euler Karras", KARRAS),
    "euler_a": NamedScheduler("EulerAncestralDiscreteScheduler", "Euler a"),
    "heun": NamedScheduler("HeunDiscreteScheduler", "Heun"),
    "lms": NamedScheduler("LMSDiscreteScheduler", "LMS"),
    "lms_karras": NamedScheduler("LMSDiscreteScheduler", "LMS Karras", KARRAS),
    "dpm2": NamedScheduler("KDPM2DiscreteScheduler", "DPM2"),
    "dpm2_karras": NamedScheduler("KDPM2DiscreteScheduler", "DPM2 Karras", KARRAS),
    "dpm2_a": NamedScheduler("KDPM2AncestralDiscreteScheduler", "DPM2 a"),
    "dpmpp_2s": NamedScheduler("DPMSolverSinglestepScheduler", "DPM++ 2S"),
    "dpmpp_2s_karras": NamedScheduler("DPMSolverSinglestepScheduler", "DPM++ 2S Karras", KARRAS),
    "dpmpp_2m": NamedScheduler("DPMSolverMultistepScheduler", "DPM++ 2M"),
    "dpmpp_2m_karras": NamedScheduler("DPMSolverMultistepScheduler", "DPM++ 2M Karras", KARRAS),
    "dpmpp_2m_sde": NamedScheduler("DPMSolverMultistepScheduler", "DPM++ 2M SDE", SDE),
    "dpmpp_2m_sde_karras": NamedScheduler("DPMSolverMultistepScheduler", "DPM++ 2M SDE Karras", {**SDE, **KARRAS}),
    "deis": NamedScheduler("DEISMultistepScheduler", "DEIS"),
    "deis_karras": NamedScheduler("DEISMultistepScheduler", "DEIS Karras", KARRAS),
    "unipc": NamedScheduler("UniPCMultistepScheduler", "UniPC"),
    "unipc_karras": NamedScheduler("UniPCMultistepScheduler", "UniPC Karras", KARRAS),
    "heun_karras": NamedScheduler("HeunDiscreteScheduler", "Heun Karras", KARRAS),
    "dpm2_a_karras": NamedScheduler("KDPM2AncestralDiscreteScheduler", "DPM2 a Karras", KARRAS),
    "sa_solver": NamedScheduler("SASolverScheduler", "SA Solver"),
    "lcm": NamedScheduler("LCMScheduler", "LCM"),
    "tcd": NamedScheduler("TCDScheduler", "TCD"),
}
SCHEDULER_ALIASES = {
    **{"plms": "pndm", "euler_ancestral": "euler_a", "k_euler": "euler", "k_euler_a": "euler_a", "k_lms": "lms"},
    **{"dpm_solver": "dpmpp_2m", "dpmsolver": "dpmpp_2m", "dpmpp": "dpmpp_2m", "uni_pc": "unipc"},
    "sasolver": "sa_solver",
}


def canonical_name(name: str) -> str:
    """`DPM++ 2M Karras`, `DPMSolverMultistepScheduler`, `plms` ... -> a key of SCHEDULERS. Raises InputError."""
    by_class = {named.kind.lower(): key for key, named in SCHEDULERS.items() if not named.settings}
    word = re.sub(r"[\s-]+", "_", name.strip().lower()).replace("dpm++", "dpmpp")
    word = SCHEDULER_ALIASES.get(word, word)
    return check_choice(by_class.get(word, word), SCHEDULERS, what="scheduler")


def build_scheduler(name: str | None, config: Mapping[str, Any]) -> Any:
    """A diffusers scheduler with the noise schedule of `config`, a model's scheduler_config; None: of its own class.

    As `Class.from_config(pipe.scheduler.config)`. Latents are not bounded by [-1, 1], so nothing is clipped unless the
    model says so. Raises InputError for a class that diffusers lacks, and for one that does not support zero terminal
    SNR if the model has that.
    """
    import diffusers

    kind = SCHEDULERS[name].kind if name else str(config.get("_class_name", "PNDMScheduler"))
    scheduler = getattr(diffusers, kind, None)
    if scheduler is None:
        raise InputError(f"the model names an unknown scheduler {kind!r}", fix="Choose one with --scheduler.")
    known = scheduler._get_init_keys(scheduler)
    if name and config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in known:
        kinds = {key: getattr(diffusers, named.kind) for key, named in SCHEDULERS.items()}
        able = ", ".join(key for key, kind in kinds.items() if "rescale_betas_zero_snr" in kind._get_init_keys(kind))
        what = f"{SCHEDULERS[name].shown} does not support a model trained at zero terminal SNR"
        raise InputError(what, where="--scheduler", allowed=able)
    settings = {"clip_sample": False, **config, **(SCHEDULERS[name].settings if name else {})}
    return scheduler.from_config({key: value for key, value in settings.items() if key in known})


def a1111_name(scheduler: Any, name: str | None) -> str:
    """A scheduler's name as A1111 writes it."""
    if name:
        return SCHEDULERS[name].shown
    kind = type(scheduler).__name__
    return next((named.shown for named in SCHEDULERS.values() if named.kind == kind), kind)
