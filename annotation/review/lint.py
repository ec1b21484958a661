"""The checks of captions that a set of options asks for, run in turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from annotation.review.findings import Caption, Finding, Rule
from data.errors import choose
from data.options import Options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RULES = (
    "tokens", "blank", "characters", "banned", "trigger", "type", "vocabulary", "spelling", "alike", "neighbours"
)  # fmt: skip


class Checks(Options):
    """What `lint` is told; a YAML file given with --config may hold any of it."""

    config: Path | None = None
    """YAML file with any of these settings; flags win"""
    tokenizer: Path | None = None
    """folder of the tokenizer to count with, or of a model that has one; default: the embedded base model's"""
    near: int = Field(default=5, ge=0)
    """how many tokens below the limit is near it"""
    trigger: str = ""
    """word that every caption must have"""
    types: tuple[str, ...] = ()
    """types of which each caption names its picture's own; default: the project's; may be repeated"""
    banned: tuple[str, ...] = ()
    """word or phrase that no caption may have; may be repeated"""
    same: tuple[str, ...] = ()
    """words that are one, in quotes and parted by spaces ("belly tummy"); may be repeated"""
    accept: tuple[str, ...] = ()
    """word that is right as it is; may be repeated"""
    alike: float = Field(default=0.95, gt=0, le=1)
    """share of common words from which two pictures' captions are nearly the same"""
    far: float = Field(default=3.0, gt=0)
    """robust standard deviations below the median from which a caption is far from those of its picture's neighbours"""
    extractor: str = "descriptors"
    """features that make pictures neighbours: descriptors or pixels"""
    leave_out: tuple[str, ...] = ()
    """check that is not made; may be repeated"""


def rules(
    checks: Checks,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    types: Sequence[str],
    features: Mapping[str, NDArray[np.float32]],
) -> list[Rule]:
    """The checks in the order of RULES. tokenizer, features: None or empty leave their check out.

    Raises InputError for an unknown name in `leave_out`.
    """
    from annotation.review import neighbours, vocabulary, wording

    for name in checks.leave_out:
        choose(name, RULES, what="check", where="--leave-out")
    made: list[Rule | None] = [
        wording.Tokens(tokenizer, checks.near) if tokenizer is not None else None,
        wording.Blank(),
        wording.Characters(),
        wording.Banned(tuple(checks.banned)) if checks.banned else None,
        wording.Trigger(checks.trigger) if checks.trigger else None,
        wording.TypeNamed(tuple(types)) if types else None,
        vocabulary.Drift(tuple(checks.same)),
        vocabulary.Misspelt(tuple(checks.accept)),
        neighbours.Alike(checks.alike),
        neighbours.FarFromNeighbours(features, deviations=checks.far) if features else None,
    ]
    return [rule for rule in made if rule is not None and rule.name not in checks.leave_out]


def lint(captions: Sequence[Caption], rules: Sequence[Rule]) -> list[Finding]:
    """Every finding, by file name, then in the order of the checks."""
    found = [finding for rule in rules for finding in rule.find(captions)]
    return sorted(found, key=lambda finding: finding.caption.file_name)


def told(findings: Sequence[Finding], captions: Sequence[Caption], rules: Sequence[Rule]) -> Iterator[str]:
    """The findings as lines, then a summary."""
    yield from (str(finding) for finding in findings)
    counts = Counter(finding.rule for finding in findings)
    by_rule = ", ".join(f"{rule.name} {counts[rule.name]}" for rule in rules)
    flawed = len({(finding.caption.sha256, finding.caption.annotation) for finding in findings})
    yield f"{len(captions)} captions, {flawed} with findings ({by_rule})"
