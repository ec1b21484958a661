"""Annotation, Sample and Batch: the one definition of every field, on disk and in memory.

A new annotation field is one line in Annotation: the labeling screen (annotation/labeling_config.py), the column of
metadata.jsonl, the checks of prepare.py and `{field}` in caption templates follow from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

if TYPE_CHECKING:
    from data.shapes import Latents, PerSample, TextStates

Text = Annotated[str, StringConstraints(strip_whitespace=True)]


def annotator_field(control: Literal["caption", "choice", "text"], help: str) -> dict[str, Any]:
    """Mark a field as one that an annotator fills in, with the control it gets and a line of help."""
    return {"ask": control, "help": help}


class Annotation(BaseModel):
    """What people say about one image: one line of metadata.jsonl. Unknown keys are kept as they came."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    file_name: str
    text: Text = Field(
        default="", json_schema_extra=annotator_field("caption", "what is in the image, as you would ask for it")
    )
    texts: list[Text] = Field(default_factory=list, description="further captions of the same image")
    type: Text | None = Field(default=None, json_schema_extra=annotator_field("choice", "which of these is it?"))
    name: Text | None = Field(default=None, json_schema_extra=annotator_field("text", "the name of what is shown"))
    quality: Literal["good", "fair", "poor"] | None = Field(
        default=None, json_schema_extra=annotator_field("choice", "would you train on it?")
    )
    skip_reason: Literal["blurred", "cropped", "watermark", "duplicate", "off-topic"] | None = Field(
        default=None, json_schema_extra=annotator_field("choice", "to leave it out, say why; else nothing")
    )
    annotator: str | None = Field(default=None, description="provenance: who wrote the caption")
    source: str | None = Field(default=None, description="provenance: where the image or caption came from")

    @property
    def captions(self) -> list[str]:
        """Every caption there is, the main one first, without repetition or blanks."""
        return list(dict.fromkeys(text for text in (self.text, *self.texts) if text))

    @classmethod
    def asked(cls) -> dict[str, dict[str, Any]]:
        """The fields an annotator fills in: name -> {"ask": control, "help": line}, in the order of the screen."""
        fields = cls.model_fields.items()
        return {name: field.json_schema_extra for name, field in fields if isinstance(field.json_schema_extra, dict)}


@dataclass(frozen=True)
class Sample:
    """An image on disk with its annotation. `where` is the file and line that said so, for error messages."""

    path: Path
    annotation: Annotation
    where: str
    sha256: str
    width: int  # pixels, after EXIF orientation
    height: int

    @property
    def captions(self) -> list[str]:
        return self.annotation.captions


@dataclass(frozen=True)
class Batch:
    """What one micro-step trains on. Every entry is a function of (seed, optimiser step, slot in the global batch)."""

    latents: Latents
    text_states: TextStates
    noise: Latents  # eps, which the target is made of
    input_noise: Latents  # what x_t is made with: eps itself, or eps and an input perturbation
    timestep_uniforms: PerSample  # (B,) in [0, 1); the objective turns them into timesteps
    sample_ids: list[str]  # file names, for logs and for errors that name the image
    preserved: list[bool]  # whether the text states are of a prompt whose meaning is kept, not of a caption
