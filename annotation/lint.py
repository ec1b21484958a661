"""Checks of captions. A check yields findings; to add one: a function, and a line in `lint`."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotation.agreement import whole_word, words
from annotation.config import LintOptions
from annotation.history import Answers
from annotation.images import standardize
from annotation.labeling_config import TRIAGE
from annotation.vocabulary import inconsistent_words, likely_typos
from data.captions import Tokenizer, count_tokens
from data.errors import InputError, check_choice, printable, quoted
from data.metadata_table import is_strange
from data.metrics.distances import squared_distances

LONGEST_SHOWN = 200  # characters of a caption in the terminal; the JSON has all of it
LONGEST_CUT = 60  # characters shown of what a truncated caption loses
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # marks that change the order in which text is shown
MARKUP = re.compile(r"</?[a-zA-Z][^<>]{0,80}>|&(?:[a-z]{2,8}|#\d{1,6});")
NEIGHBOURS = 10
BLOCK = 256  # rows compared with all others at a time
Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Caption:
    """One caption of one image by one person, and the image's type if the triage gave it one."""

    sha256: str
    file_name: str
    text: str
    annotator: str
    annotation: int
    type: str | None = None


Found = Iterator[tuple[Caption, str, str]]  # a caption, what is wrong with it, and what to do


@dataclass(frozen=True)
class Finding:
    rule: str  # name of the check
    caption: Caption
    what: str
    fix: str

    def as_json(self) -> dict[str, Any]:
        return {"rule": self.rule, **asdict(self.caption), "what": self.what, "fix": self.fix}

    def __str__(self) -> str:
        text = self.caption.text
        shown = text.strip() if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
        line = str(InputError(f"{self.rule}: {self.what}", where=self.caption.file_name, fix=self.fix))
        return printable(line) + f"\n    {printable(shown) or '(blank)'}"


def captions_of(answers: Answers) -> list[Caption]:
    """Every caption that was written or left blank (one empty text), with the type of the newest triage."""
    types: dict[str, str] = {}
    triage = [answer for answer in answers.all if answer.record.screen == TRIAGE and answer.values.get("type")]
    for answer in sorted(triage, key=lambda answer: answer.record.updated):
        types[answer.record.sha256] = answer.values["type"][0]
    return [
        Caption(record.sha256, record.file_name, text, record.annotator, record.annotation, types.get(record.sha256))
        for answer in answers.all
        if (record := answer.record).screen == "text" and record.status in ("written", "blank")
        for text in answer.values.get("text") or [""]
    ]


def lint(
    captions: Sequence[Caption],
    options: LintOptions,
    *,
    tokenizer: Tokenizer | None,
    types: Sequence[str],
    features: Mapping[str, Matrix],
) -> tuple[list[Finding], list[str]]:
    """The findings by file name, then check; and the names of the checks. features: by SHA-256. Raises InputError."""
    texts = [caption.text for caption in captions]
    checks: dict[str, Found | None] = {
        "tokens": check_tokens(captions, tokenizer, options.near) if tokenizer is not None else None,
        "blank": check_blank(captions),
        "characters": check_characters(captions),
        "banned": check_banned(captions, options.banned) if options.banned else None,
        "trigger": check_trigger(captions, options.trigger) if options.trigger else None,
        "type": check_type(captions, types) if types else None,
        "vocabulary": check_words(captions, inconsistent_words(texts, options.same)),
        "spelling": check_words(captions, likely_typos(texts, options.accept), accept=True),
        "alike": check_alike(captions, options.alike),
        "neighbours": check_neighbours(captions, features, options.far) if features else None,
    }
    for name in options.leave_out:
        check_choice(name, checks, what="check", where="--leave-out")
    made = {name: found for name, found in checks.items() if found is not None and name not in options.leave_out}
    findings = [Finding(name, *each) for name, found in made.items() for each in found]
    return sorted(findings, key=lambda finding: finding.caption.file_name), list(made)


def rules_by_image(findings: Sequence[Finding], captions: Sequence[Caption]) -> dict[str, str]:
    """SHA-256 -> names of its findings, "" if there are none: the task data `lint` that the server filters by."""
    rules: dict[str, set[str]] = {caption.sha256: set() for caption in captions}
    for finding in findings:
        rules[finding.caption.sha256].add(finding.rule)
    return {sha256: " ".join(sorted(names)) for sha256, names in rules.items()}


def format_findings(findings: Sequence[Finding], captions: Sequence[Caption], checks: Sequence[str]) -> list[str]:
    counts = Counter(finding.rule for finding in findings)
    by_check = ", ".join(f"{name} {counts[name]}" for name in checks)
    flawed = len({(finding.caption.sha256, finding.caption.annotation) for finding in findings})
    return [*map(str, findings), f"{len(captions)} captions, {flawed} with findings ({by_check})"]


# ---- each caption by itself


def check_tokens(captions: Sequence[Caption], tokenizer: Tokenizer, near: int) -> Found:
    """More tokens than the text encoder reads, or within `near` of the limit."""
    report = count_tokens([caption.text for caption in captions], tokenizer)
    lost = {cut.where: cut.lost_text for cut in report.cut}
    for number, (caption, count) in enumerate(zip(captions, report.counts, strict=True), 1):
        limit = f"{count} tokens of {report.limit} (tokenizer {report.tokenizer})"
        if count > report.limit:
            text = lost[f"caption {number}"]
            shown = quoted(text if len(text) <= LONGEST_CUT else f"{text[:LONGEST_CUT]}...")
            yield caption, f"has {limit}; not read: {shown}", "Shorten it."
        elif count > report.limit - near:
            yield caption, f"is near the limit: {limit}", "Shorten it if you can."


def check_blank(captions: Sequence[Caption]) -> Found:
    """Nothing but white space: the server accepts it, training cannot use it."""
    for caption in captions:
        if not caption.text.strip():
            yield caption, "is blank and counts as open", "Write it, or skip the image."


def check_characters(captions: Sequence[Caption]) -> Found:
    """Control characters, direction marks, decoding errors, and what looks like HTML."""
    for caption in captions:
        strange = sorted({char for char in caption.text if is_strange(char) or char in BIDI})
        if strange:
            names = ", ".join(f"U+{ord(char):04X} {unicodedata.name(char, 'control')}" for char in strange[:5])
            yield caption, f"contains unusual characters ({names})", "Type it again."
        if markup := MARKUP.search(caption.text):
            yield caption, f"contains what looks like HTML ({quoted(markup[0])})", "Write plain text."


def check_banned(captions: Sequence[Caption], banned: Sequence[str]) -> Found:
    """Words and phrases that this dataset avoids, as whole words, whatever their case."""
    patterns = {word: whole_word(word) for word in banned}
    for caption in captions:
        found = [word for word, pattern in patterns.items() if pattern.search(caption.text)]
        if found:
            yield caption, f"contains {', '.join(map(quoted, found))}, which this dataset avoids", "Rephrase it."


def check_trigger(captions: Sequence[Caption], trigger: str) -> Found:
    """The word that every caption must have, so that it comes to stand for the style."""
    pattern = whole_word(trigger)
    fix = f'Add it, or: annotate.py fix --prefix "{trigger}, " --without "{trigger}"'
    for caption in captions:
        if caption.text.strip() and not pattern.search(caption.text):
            yield caption, f"lacks the trigger word {quoted(trigger)}", fix


def check_type(captions: Sequence[Caption], types: Sequence[str]) -> Found:
    """The image's type must be named, and no other one called its type."""
    patterns = {name: (whole_word(name), whole_word(f"{name} type")) for name in types}
    for caption in captions:
        if not caption.text.strip():
            continue
        named = [name for name, (word, _) in patterns.items() if word.search(caption.text)]
        others = [name for name, (_, word) in patterns.items() if name != caption.type and word.search(caption.text)]
        if caption.type is None:
            wrong = "" if named else f"names no type ({', '.join(types)})"
        elif others:
            wrong = f"calls it {quoted(others[0])} type, the triage says {quoted(caption.type)}"
        else:
            wrong = "" if caption.type in named else f"does not name its type {quoted(caption.type)}"
        if wrong:
            yield caption, wrong, "Correct the caption, or the type in the triage."


def check_words(captions: Sequence[Caption], better: Mapping[str, tuple[str, str]], *, accept: bool = False) -> Found:
    """better: word -> (the word to use instead, what is wrong), see vocabulary.py."""
    for caption in captions:
        for word in dict.fromkeys(words(caption.text)):
            if word in better:
                new, what = better[word]
                note = f" (if it is correct: --accept {word})" if accept else ""
                yield caption, what, f"annotate.py fix --rename {word} --to {new}{note}"


# ---- captions compared with each other


def check_alike(captions: Sequence[Caption], threshold: float) -> Found:
    """Two images with the same caption, or nearly: Dice coefficient of their words."""
    from sklearn.feature_extraction.text import CountVectorizer

    captions = [caption for caption in captions if words(caption.text)]
    if not captions:
        return
    bags = CountVectorizer(analyzer=words, binary=True, dtype=np.float64).fit_transform([c.text for c in captions])
    sizes = np.asarray(bags.sum(axis=1)).ravel()
    for index, shared in enumerate(dense_products(bags)):
        dice = 2 * shared[:index] / np.maximum(sizes[:index] + sizes[index], 1)
        others = np.flatnonzero(dice >= threshold)
        for other in others[np.argsort(-dice[others], kind="stable")]:
            first, second = captions[index], captions[other]
            if first.sha256 != second.sha256:
                how = "the same as" if words(first.text) == words(second.text) else "nearly the same as"
                yield first, f"is {how} that of {quoted(second.file_name)}", "Say what distinguishes the two images."
                break


def check_neighbours(captions: Sequence[Caption], features: Mapping[str, Matrix], deviations: float) -> Found:
    """A caption that shares next to nothing with those of the images most similar to its own.

    Similarity is the cosine of TF-IDF captions, averaged over the NEIGHBOURS nearest images; an outlier is
    `deviations` robust standard deviations (1.4826 MAD) below the median. Of 20 captions swapped among the 650
    sample images it finds 13 with 0.2 false alarms; `descriptors` are far better features than `pixels`, which find
    1.
    """
    shown = [caption for caption in captions if caption.sha256 in features and words(caption.text)]
    if len(shown) <= 2 * NEIGHBOURS:
        return  # too few to have neighbours
    from sklearn.feature_extraction.text import TfidfVectorizer

    near = nearest_images(np.stack([features[caption.sha256] for caption in shown]), shown)
    # log((1 + n) / (1 + captions with the word)) + 1
    products = dense_products(TfidfVectorizer(analyzer=words).fit_transform([caption.text for caption in shown]))
    similarity = np.array([row[others].mean() for row, others in zip(products, near, strict=True)])
    median = float(np.median(similarity))
    spread = 1.4826 * float(np.median(np.abs(similarity - median)))
    # where all captions are much alike, the spread is tiny and says nothing: then half the median is the limit
    for row in np.flatnonzero(similarity < min(median - deviations * spread, median / 2)):
        names = list(dict.fromkeys(shown[other].file_name for other in near[row]))[:3]
        what = f"is unlike the captions of similar images ({', '.join(map(quoted, names))}): {similarity[row]:.2f}"
        yield shown[row], f"{what}, the median is {median:.2f}", "Does it belong to this image?"


def nearest_images(rows: Matrix, captions: Sequence[Caption]) -> list[list[int]]:
    """For each caption the indices of the captions of the nearest other images, nearest first."""
    scaled = standardize(rows)
    distances = squared_distances(scaled, scaled)
    keys = np.array([caption.sha256 for caption in captions])
    distances[keys[:, None] == keys[None, :]] = np.inf
    return [[int(other) for other in np.argsort(row, kind="stable")[:NEIGHBOURS]] for row in distances]


def dense_products(matrix: Any) -> Iterator[NDArray[np.float64]]:
    """Each row's products with all rows, a dense block at a time."""
    for start in range(0, matrix.shape[0], BLOCK):
        yield from (matrix[start : start + BLOCK] @ matrix.T).toarray()
