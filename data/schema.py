"""Annotation and Sample: the one definition of every field of an image.

A new annotation field is one line in Annotation: the labeling screen (annotation/labeling_config.py), the column of
metadata.jsonl, the checks of prepare.py and `{field}` in caption templates follow from it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Text = Annotated[str, StringConstraints(strip_whitespace=True)]


def annotator_field(control: Literal["caption", "choice", "text"], help: str) -> dict[str, Any]:
    """Mark a field as one that an annotator fills in, with its control and a line of help."""
    return {"control": control, "help": help}


class Annotation(BaseModel):
    """One line of metadata.jsonl: what people say about an image. Unknown keys are kept."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    file_name: str
    text: Text = Field(
        default="", json_schema_extra=annotator_field("caption", "what is in the image, as you would prompt for it")
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
        """All captions, the main one first, without repetition or blanks."""
        return list(dict.fromkeys(text for text in (self.text, *self.texts) if text))

    @classmethod
    def annotator_fields(cls) -> dict[str, dict[str, Any]]:
        """The fields an annotator fills in: name -> {"control": control, "help": line}, in the order of the screen."""
        fields = cls.model_fields.items()
        return {name: field.json_schema_extra for name, field in fields if isinstance(field.json_schema_extra, dict)}


@dataclass(frozen=True)
class Sample:
    """An image on disk with its annotation. `where`: file and line of the annotation, for error messages."""

    path: Path
    annotation: Annotation
    where: str
    sha256: str
    width: int  # pixels, after EXIF orientation
    height: int
    repeats: int = 1  # how often it is used for each time that others are

    @property
    def captions(self) -> list[str]:
        return self.annotation.captions
