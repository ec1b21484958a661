"""The text tower out of a single-file checkpoint, which diffusers reads for U-Net and autoencoder alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import CLIPTextModel


def text_encoder_of(weights: Path, layout: Path) -> CLIPTextModel:
    """The text tower inside a single-file checkpoint (keys under cond_stage_model.transformer). Raises InputError."""
    from safetensors import SafetensorError, safe_open
    from transformers import CLIPTextConfig, CLIPTextModel

    prefix = "cond_stage_model.transformer."
    try:
        with safe_open(weights, framework="pt") as file:
            keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
            state = {key.removeprefix(prefix): file.get_tensor(key) for key in keys}
        model = CLIPTextModel(CLIPTextConfig.from_pretrained(layout / "text_encoder"))
        missing, unexpected = model.load_state_dict(as_named_here(state, model), strict=False)
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()[:200]
        raise InputError(f"the text_encoder could not be loaded ({reason})", where=weights) from error
    if missing or unexpected:
        counts = f"{len(missing)} of its weights are missing, {len(unexpected)} are unknown"
        raise InputError(f"the text_encoder could not be loaded ({counts})", where=weights)
    return model


def as_named_here(state: Mapping[str, Tensor], model: CLIPTextModel) -> dict[str, Tensor]:
    """A single file's text tower with this library's names, without what Stable Diffusion v1 makes no use of.

    Checkpoints name the tower `text_model.`; transformers 5 dropped that level.
    """
    deep = any(name.startswith("text_model.") for name, _ in model.named_parameters())
    unused = ("position_ids", "text_projection.weight")
    kept = {key.removeprefix("text_model."): tensor for key, tensor in state.items() if not key.endswith(unused)}
    return {f"text_model.{key}": tensor for key, tensor in kept.items()} if deep else kept
