"""Annotation -> prompt: caption templates, caption dropout, and a token count.

A template is text with `{field}` in it: a field of Annotation, or any other key of the metadata. A field that an image
lacks leaves no trace: `a {type} fridge` becomes `a fridge`.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, TypeVar

from data import rng
from data.errors import InputError, check_choice
from data.schema import Annotation, Sample

Tokenizer = Any  # a PreTrainedTokenizerBase of transformers
TEMPLATE = "{text}"
COMMA_BACKTRACK = 20  # a chunk is shortened by at most so many tokens to end at a comma
UNLIMITED = 10**6  # transformers writes 1e30 for "this tokenizer knows no limit"
NO_ARTICLE = re.compile(
    r"(?<![su])s$|^(fire|ice|bread|bacon|butter|salt|popcorn|spaghetti|sushi|chocolate|garlic|broccoli|coral|fog|rain"
    r"|footprints|soap|money|lightning|dna|paella|cooked rice|curry rice|green salad|french fries|corn|toilet paper"
    r"|film|honey|luggage|grass|water|snow|wind|poison|electricity|sheaf of rice|wood|nail polish"
    r"|santa claus|statue of liberty|coffee)$"
)
KEEPS_ARTICLE = ("compass", "dress", "bus", "cactus", "octopus", "hibiscus", "rhinoceros")
EMPTY = "\0"  # marks an empty field until the words around it are tidied


def known_fields(annotations: Iterable[Annotation]) -> set[str]:
    """Every field that a template over these annotations may use: the schema's, and all keys of theirs."""
    extras = (annotation.model_extra or {} for annotation in annotations)
    return set(Annotation.model_fields).union(*extras)


def render_prompts(annotation: Annotation, template: str = TEMPLATE, *, fields: Collection[str] = ()) -> list[str]:
    """The prompts of one image: one for each of its captions, without repetition or blanks; [] if it has none.

    fields: what the template may use, `known_fields` of the whole set, so that a key which only other images have is
    empty here; by default this annotation's own. Raises InputError for an unknown field, one that is not text, and
    anything but plain `{field}`.
    """
    parts = parse_template(template, fields or known_fields([annotation]))
    values = dict(annotation)  # the schema's fields and the extra keys
    named = {name for _, name in parts if name is not None and name != "text"}
    words = {name: field_to_text(name, values.get(name), annotation.file_name) for name in named}
    prompts: list[str] = []
    for text in annotation.captions or [""]:
        filled = {name: value.replace(EMPTY, " ").strip() or EMPTY for name, value in (words | {"text": text}).items()}
        prompts.append(tidy_text("".join(lead + (filled[name] if name else "") for lead, name in parts)))
    return list(dict.fromkeys(filter(None, prompts)))


def parse_template(template: str, fields: Collection[str]) -> list[tuple[str, str | None]]:
    """The template as (literal text, field after it or None). Attribute access, indices and formats are errors."""
    where = f"template {template!r}"
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        fix = "Write {{ and }} for literal braces."
        raise InputError(str(error).lower(), where=where, fix=fix) from None
    for _, name, spec, conversion in parts:
        if spec or conversion:
            raise InputError(f"{{{name}}} has a format or conversion", where=where, allowed="a plain {field}")
        if name is not None:
            check_choice(name, sorted(fields), what="field", where=where)
    return [(literal, name) for literal, name, _, _ in parts]


def field_to_text(name: str, value: Any, file_name: str) -> str:
    """A field's value as words: lists are joined by commas, None is empty."""
    if isinstance(value, list | tuple):
        return ", ".join(filter(None, (field_to_text(name, item, file_name) for item in value)))
    if value is None or isinstance(value, str | int | float):
        return "" if value is None else str(value)
    raise InputError(f"field {name!r} holds a {type(value).__name__}, not text", where=file_name)


def tidy_text(text: str) -> str:
    """Remove the EMPTY marks with the comma that belonged to them, and collapse white space."""
    headless = text.lstrip().startswith(EMPTY)
    text = re.sub(rf"\s*,?\s*{EMPTY}\s*(?=[,.;:!?]|$)", "", text).replace(EMPTY, " ")
    return " ".join((text.lstrip(" ,") if headless else text).split())


def tag_variants(prompt: str, *, shuffle: bool, keep: int, dropout: float, count: int, seed: int) -> list[str]:
    """The prompt and up to `count` variants of it: what commas divide is shuffled and left out, all but the first
    `keep`. A function of the seed and the prompt; a prompt with nothing to vary comes back alone.
    """
    tags = [tag.strip() for tag in prompt.split(",") if tag.strip()]
    rest = tags[keep:]
    variants = [prompt]
    for number in range(count if shuffle or dropout else 0):
        order = rng.permutation(len(rest), "tags", seed, prompt, number) if shuffle else range(len(rest))
        chosen = [rest[i] for i in order if rng.uniform("tag dropout", seed, prompt, number, i) >= dropout]
        variants.append(", ".join([*tags[:keep], *chosen]))
    return list(dict.fromkeys(filter(None, variants)))


def is_dropped(probability: float, *position: int | str) -> bool:
    """Whether the caption at this position is dropped for the empty prompt (for classifier-free guidance)."""
    return rng.uniform("caption-dropout", *position) < probability


# ---- tokens

Token = TypeVar("Token")  # an id, or an id with what belongs to it


def token_limit(tokenizer: Tokenizer) -> int:
    """Tokens that the text encoder reads at once, without start and end: 75 for Stable Diffusion v1."""
    return tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()


def split_chunks(tokens: Iterable[Token], tokenizer: Tokenizer, id_of: Callable[[Token], int]) -> Iterator[list[Token]]:
    """Tokens in chunks that the text encoder can read; a chunk ends at a comma if one is among its last 20 tokens.

    At least one chunk, which may be empty. Source: AUTOMATIC1111, modules/sd_hijack_clip.py (tokenize_line).
    """
    limit, comma = token_limit(tokenizer), tokenizer(",", add_special_tokens=False).input_ids[-1]
    chunk: list[Token] = []
    for token in tokens:
        if len(chunk) == limit:
            last = max((number for number, own in enumerate(chunk) if id_of(own) == comma), default=-1)
            end = last + 1 if id_of(token) != comma and last >= 0 and limit - last <= COMMA_BACKTRACK else limit
            yield chunk[:end]
            chunk = chunk[end:]
        chunk.append(token)
    yield chunk


def caption_chunks(caption: str, tokenizer: Tokenizer) -> list[list[int]]:
    """The token ids of a caption in chunks, without start, end and padding; no character has a special meaning."""
    ids = tokenizer(caption, add_special_tokens=False, verbose=False).input_ids
    return list(split_chunks(ids, tokenizer, lambda token: token))


def chunk_ids(chunk: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """A chunk as the text encoder reads it: with start, end and padding."""
    padding = [tokenizer.pad_token_id] * (token_limit(tokenizer) - len(chunk))
    return [tokenizer.bos_token_id, *chunk, tokenizer.eos_token_id, *padding]


@dataclass(frozen=True)
class TruncatedCaption:
    """A caption that is longer than the text encoder's limit."""

    file_name: str
    where: str
    count: int  # tokens, without the start and end token
    lost_text: str  # whole words, from the first one that is truncated


@dataclass(frozen=True)
class TokenReport:
    """The lengths of the captions in tokens; neither counts nor limit include start and end token."""

    tokenizer: str
    limit: int  # of all chunks together
    counts: list[int]
    cut: list[TruncatedCaption]
    chunks: int = 1  # that the longest caption takes, of those allowed

    def __str__(self) -> str:
        if not self.counts:
            return f"no captions to count (tokenizer {self.tokenizer})"
        middle = sorted(self.counts)[len(self.counts) // 2]
        lengths = f"{len(self.counts)} captions: median {middle}, longest {max(self.counts)} of {self.limit} tokens"
        return f"{lengths}, {len(self.cut)} truncated (tokenizer {self.tokenizer})"


def count_tokens(
    captions: Sequence[Sample] | Sequence[str], tokenizer: Tokenizer, template: str = TEMPLATE, *, chunks: int = 1
) -> TokenReport:
    """Count the tokens of every prompt, and find the words past the tokenizer's limit: 75 for Stable Diffusion v1.

    chunks: how many times the limit is read (see split_chunks).
    """
    rows = list(prompts_of(captions, template))
    name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
    if tokenizer.model_max_length > UNLIMITED:
        fix = "Set it in its tokenizer_config.json."
        raise InputError("the tokenizer has no model_max_length", where=name, fix=fix)
    limit = token_limit(tokenizer)
    texts = [prompt for _, _, prompt in rows]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False) if texts else {}
    spans: list[list[tuple[int, int]]] = encoded.get("offset_mapping", [])
    cut: list[TruncatedCaption] = []
    longest = 1
    for (file_name, where, prompt), span in zip(rows, spans, strict=True):
        parts = [limit]
        if chunks > 1 and len(span) > limit:
            parts = [len(chunk) for chunk in caption_chunks(prompt, tokenizer)]
        longest, kept = max(longest, len(parts[:chunks])), sum(parts[:chunks])
        if len(span) > kept:
            cut.append(TruncatedCaption(file_name, where, len(span), lost_words(prompt, span[kept][0])))
    return TokenReport(name, limit * chunks, [len(span) for span in spans], cut, longest)


def prompts_of(captions: Sequence[Sample] | Sequence[str], template: str) -> Iterable[tuple[str, str, str]]:
    """(file name, where, prompt) of every prompt."""
    samples = [item for item in captions if isinstance(item, Sample)]
    fields = known_fields(sample.annotation for sample in samples)
    for number, item in enumerate(captions, 1):
        if isinstance(item, Sample):
            prompts = render_prompts(item.annotation, template, fields=fields)
            yield from ((item.annotation.file_name, item.where, prompt) for prompt in prompts)
        else:
            yield "", f"caption {number}", item


def lost_words(prompt: str, at: int) -> str:
    """The prompt from the word that holds character `at` on."""
    start = at - len(re.split(r"\s", prompt[:at])[-1])
    return prompt[start:].strip()


def with_article(noun: str) -> str:
    """`guitar` -> `a guitar`, `apple` -> `an apple`, `jeans` -> `jeans`."""
    if NO_ARTICLE.search(noun) and not noun.endswith(KEEPS_ARTICLE):
        return noun
    vowel = noun[0] in "aeio8x" or noun.startswith(("hour", "um"))
    return f"{'an' if vowel else 'a'} {noun}"
