"""Options of a captioned folder: how it is read, by prepare.py and finetune.py, and what training makes of it."""

from typing import Literal, Self

from pydantic import Field, model_validator

from data.captions import TEMPLATE
from data.cli import Options
from data.errors import InputError


class FolderOptions(Options):
    """How the captions of a folder are found."""

    caption_column: str | None = Field(default=None, min_length=1)
    """(also --caption-column) key or column of the metadata that holds the caption, or a list of captions; default:
    text, else caption, captions or prompt"""
    captions_per_line: bool = False
    """(also --captions-per-line) each line of a .txt file is a caption of its own; default: only if every line is a
    whole sentence (ends with . ! or ?), else the file is one caption"""
    prompt: str | None = Field(default=None, min_length=1)
    """prompt of the images that have no caption, as DreamBooth's --instance-prompt; filename: the name of each file"""
    folder_repeats: bool = True
    """if all images lie in sub-folders named as 10_name, use those of each so often (10 times), as kohya's scripts do,
    and `name` as the caption of images without one"""


class ImageOptions(FolderOptions):
    """How a captioned folder becomes training samples."""

    size: int | None = Field(default=None, gt=0)
    """side in pixels of the square bucket; default: the size the base model was trained at"""
    buckets: bool = True
    """sort images of other shapes into wide and tall buckets of the same area instead of cropping them to squares"""
    flip: bool = False
    """also train on mirrored images (not if left and right matter, or if there is writing)"""
    caption: str = TEMPLATE
    """the prompt of an image: a template with {text}, {type}, {name} or any other key of its metadata"""
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    """probability of replacing a caption by the empty prompt, which classifier-free guidance needs"""
    caption_chunks: int = Field(default=1, ge=1, le=16)
    """how many times the text encoder's 75 tokens are read of a long caption, as generate.py --weighting a1111 reads
    it; all captions take the memory of the longest; 1: a caption is cut after 75 tokens"""
    shuffle_tags: bool = False
    """for captions that are lists of tags: shuffle what the commas divide, into --pictures.tag-variants orders"""
    keep_tags: int = Field(default=0, ge=0)
    """how many tags at the start of a caption are neither shuffled nor dropped (a trigger word)"""
    tag_dropout: float = Field(default=0.0, ge=0, lt=1)
    """probability of leaving each tag out"""
    tag_variants: int = Field(default=8, gt=0, le=64)
    """with shuffled or dropped tags: how many variants of each caption are encoded before training, beside itself; each
    use of an image takes one of them at random"""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    """share of images held out for validation: exactly, rounded to images, but near-copies stay together"""
    keep: Literal["auto", "device", "memory", "disk"] = "auto"
    """where cached latents are kept during training: on the GPU, in main memory, or on disk for sets larger than both;
    auto: the first that has room. The batches are the same"""

    @model_validator(mode="after")
    def check_tags(self) -> Self:
        if self.keep_tags and not (self.shuffle_tags or self.tag_dropout):
            fix = "Add --pictures.shuffle-tags or --pictures.tag-dropout, or leave it out."
            raise InputError("has no effect while no tag is moved or dropped", where="--pictures.keep-tags", fix=fix)
        return self
