"""What is to be drawn: one Picture for each prompt and seed, and how much of each prompt the text encoder reads."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from data.captions import count_tokens
from data.errors import InputError
from infer import templates, weighting
from infer.prompt_files import Line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from infer.config import LoraFile

BUILT_IN = ("a water type fridge", "a fire type fridge", "a grass type fridge", "an electric type fridge")
DRAWN_SEEDS = 2**32  # below this, a random seed fits every tool that reads it back


@dataclass(frozen=True)
class Picture:
    """One picture to draw. Its pixels depend on its own seed and prompt, never on its index."""

    index: int
    prompt: str
    seed: int
    template: str = ""  # that the prompt was made from, if it was
    own: Mapping[str, Any] = field(default_factory=dict, hash=False)  # settings of pipeline.Settings for it alone
    loras: tuple[LoraFile, ...] = ()  # that it is drawn with
    unstyled: str = ""  # the prompt before a style was laid around it, if one was

    @property
    def file_name(self) -> str:
        return f"{self.index:05d}-{self.seed}.png"


@dataclass(frozen=True)
class Tokens:
    """How much of a prompt is read: tokens without start and end, how many of them the text encoder reads at once, the
    words that are not read, and how many times it reads.
    """

    count: int
    limit: int
    lost: str = ""
    chunks: int = 1


def plan(
    prompts: Sequence[str],
    seed: int,
    num_images: int,
    axes: Mapping[str, Sequence[str]] = MappingProxyType({}),
    wildcards: Path = Path("wildcards"),
    seeds: Sequence[int] = (),
) -> list[Picture]:
    """`num_images` pictures of each prompt; its seeds are seed, seed + 1 ..., alike for all, so that rows compare.

    seeds: others in their place, if any are named.
    Prompts are templates, see infer/templates.py, that axes and wildcards fill in. Raises InputError.
    """
    asked: list[tuple[str, int, str]] = []
    for template in prompts:
        own = seeds or range(seed, seed + num_images)
        found = [templates.expand(template, axes, wildcards, number) for number in own]
        # prompt by prompt, its seeds in a row; a prompt that only some seeds choose has fewer
        for texts in itertools.zip_longest(*found):
            asked += [(text, number, template) for number, text in zip(own, texts, strict=True) if text is not None]
    return [
        Picture(index, text, number, template if template not in (text, templates.literal(text)) else "")
        for index, (text, number, template) in enumerate(asked)
    ]


def planned(
    lines: Sequence[Line],
    seed: int,
    num_images: int,
    axes: Mapping[str, Sequence[str]],
    wildcards: Path,
    seeds: Sequence[int] = (),
) -> list[Picture]:
    """The pictures of the lines of a prompt file; a line without seed or number of its own takes the job's."""
    found: list[Picture] = []
    for line in lines:
        first = seed if line.seed is None else line.seed
        named = () if line.seed is not None or line.num_images is not None else seeds
        own = plan([line.prompt], first, line.num_images or num_images, axes, wildcards, named)
        found += [replace(picture, own=line.settings) for picture in own]
    return [replace(picture, index=index) for index, picture in enumerate(found)]


def random_seed() -> int:
    """A seed from the operating system, for --seed -1; printed, so that the picture can be made again."""
    return secrets.randbelow(DRAWN_SEEDS)


def measure(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, grammar: str = "none") -> dict[str, Tokens]:
    """The Tokens of every prompt, as its grammar reads it (see infer/encoder.py): only `none` leaves words out."""
    texts = list(dict.fromkeys(prompts))
    if grammar != "none":
        limit = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
        return {text: Tokens(*counted(text, tokenizer, grammar, limit)) for text in texts}
    report = count_tokens(texts, tokenizer)
    lost = {texts[int(cut.where.rpartition(" ")[2]) - 1]: cut.lost_text for cut in report.cut}
    counts = zip(texts, report.counts, strict=True)
    return {text: Tokens(count, report.limit, lost.get(text, "")) for text, count in counts}


def counted(text: str, tokenizer: PreTrainedTokenizerBase, grammar: str, limit: int) -> tuple[int, int, str, int]:
    """The fields of Tokens for a grammar that reads all of a prompt, weights taken out."""
    if grammar == "compel":
        count = len(tokenizer(compel_text(text), add_special_tokens=False, verbose=False).input_ids)
        return count, limit, "", max(1, -(-count // limit))
    found = weighting.fragments(text)
    rows = list(weighting.rows(found, tokenizer, limit))
    return sum(map(len, rows)), limit, "", len(rows)


def compel_text(prompt: str) -> str:
    """The words of a prompt in compel's grammar, of all its parts."""
    from compel import Compel

    def words(node: Any) -> str:
        below = getattr(node, "prompts", None) or getattr(node, "children", None) or ()
        return getattr(node, "text", "") or " ".join(words(each) for each in below)

    return words(Compel.parse_prompt_string(prompt))


def cut_prompts(tokens: dict[str, Tokens]) -> list[InputError]:
    """One InputError, naming the words lost, for each prompt that is longer than the text encoder reads."""
    return [
        InputError(
            f"{shorten(prompt)!r} has {found.count} tokens, {found.limit} are read; lost: {found.lost!r}",
            where="--prompt",
            fix="Shorten it, or take --weighting a1111, which reads all of it.",
        )
        for prompt, found in tokens.items()
        if found.count > found.limit and found.chunks == 1
    ]


def shorten(text: str, length: int = 40) -> str:
    """A text that fits a line."""
    return text if len(text) <= length else f"{text[: length - 3]}..."
