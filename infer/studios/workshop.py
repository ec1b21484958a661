"""The studio without its page: what can be drawn with, the queue, the thread that draws, and the gallery."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import InputError, choose
from infer import source, styles
from infer.config import GenerateOptions
from infer.galleries.index import SUFFIXES, Index
from infer.outputs import OUTPUTS
from infer.studios import asking
from infer.studios.desk import Desk, Order
from infer.studios.options import StudioOptions
from infer.studios.weights import Shelf

if TYPE_CHECKING:
    from data.encoders import Clip
    from infer.galleries.search import Hit
    from infer.studios.easel import Easel

MOST_HITS = 120  # pictures of the gallery on the page at once


class Workshop:
    """Everything that the page and the API share. Raises InputError where a person asked for what there is not."""

    def __init__(self, options: StudioOptions) -> None:
        self.options = options
        self.shelf = Shelf(options.model)
        self.styles = styles.read(styles.SHIPPED)
        self.desk = Desk(self.draw)
        self.chosen = ""  # the model that an API client switched to
        self.loading, self.indexing = threading.Lock(), threading.Lock()

    # ---- drawing

    @cached_property
    def easel(self) -> Easel:
        """torch and diffusers are loaded when the first picture is wanted, or once the page stands."""
        from infer.studios.easel import Easel

        return Easel(self.options.device, self.options.dtype, self.shelf.runs)

    def draw(self, order: Order) -> None:
        with self.loading:
            easel = self.easel
        easel.draw(order)

    def warm(self) -> None:
        """Load the libraries and the first model. Mistakes in them are said when somebody wants to draw."""
        with self.loading:
            if "easel" in vars(self):
                return
            try:
                self.easel.warm(GenerateOptions(model=self.shelf.model(""), tokenizer=self.options.tokenizer))
            except InputError as error:
                print(f"warning: {error}")

    def begin(self) -> None:
        """Somebody has the page before them: load the model while they read it."""
        threading.Thread(target=self.warm, name="warm", daemon=True).start()

    def guidance(self, name: str) -> float:
        """What a model is steered with unless somebody says otherwise. Raises InputError."""
        chosen = source.choose(GenerateOptions(model=self.shelf.model(name)), self.shelf.runs)
        return asking.guidance_for(chosen.base or chosen.model)

    def take(self, values: Mapping[str, Any]) -> Order:
        """An order out of fields of GenerateOptions, where `model` and `loras` are names. Raises InputError."""
        given = dict(values)
        name = given.pop("model", None) or self.chosen
        loras = tuple(self.shelf.lora(lora, weight) for lora, weight in given.pop("loras", {}).items())
        if given.get("style"):
            choose(given["style"], self.styles, what="style", where="--style")
        given |= {"model": self.shelf.model(name), "lora": loras, "tokenizer": self.options.tokenizer}
        given |= {"dtype": self.options.dtype, "device": self.options.device}
        return self.desk.take(asking.options_of(given))

    # ---- pictures

    def picture(self, name: str) -> Path:
        """A picture of outputs/ by its way from there. Raises InputError for anything else, links included."""
        path = OUTPUTS / name
        hidden = any(part.startswith(".") for part in path.parts[1:])
        try:
            inside = path.resolve().is_relative_to(OUTPUTS.resolve()) and not path.is_symlink()
            there = inside and not hidden and path.suffix.lower() in SUFFIXES and path.is_file()
        except (OSError, ValueError):  # a name that no file can have
            there = False
        if not there:
            raise InputError("there is no such picture", where=name)
        return path

    @cached_property
    def judge(self) -> Clip:
        from data.encoders import Clip
        from infer.comparing.measures import POCKET_SCORER

        return Clip(self.options.judge or POCKET_SCORER)

    @contextmanager
    def index(self) -> Iterator[Index]:
        """The gallery's index; one at a time."""
        with self.indexing:
            OUTPUTS.mkdir(exist_ok=True)
            index = Index(OUTPUTS)
            try:
                yield index
            finally:
                index.close()

    def search(self, text: str) -> list[Hit]:
        """The newest pictures, or those that the text means. Raises InputError."""
        from infer.galleries import query
        from infer.galleries.search import search

        query.parse(text)  # a slip is said before anything is loaded
        with self.index() as index:
            index.update(self.judge)
            return search(index, text, self.judge, MOST_HITS)

    def settings(self, name: str) -> dict[str, Any]:
        """How a picture was made, in the words of the page's fields. Raises InputError."""
        with self.loading:
            from infer.studios import reuse
        return reuse.settings(self.picture(name), self.shelf)

    def star(self, name: str, on: bool) -> None:
        """Mark a picture as a favourite, or no more."""
        with self.index() as index:
            index.update(self.judge)
            index.star(self.picture(name), on)
