"""All sections that numbers are worked out for, in the order of the page."""

from __future__ import annotations

from infer.evaluation import adherence, composition, diversity, forgetting, memorization, style
from infer.evaluation.samples import Evidence
from infer.evaluation.section import Alarm, Section, settled


def work_out(evidence: Evidence, seed: int = 0) -> list[Section]:
    """Sections 1 to 6."""
    found = [
        style.section(evidence, seed),
        adherence.section(evidence, seed),
        composition.section(evidence.grid, evidence.mixes, seed),
        diversity.section(evidence, seed),
        memorization.section(evidence, seed),
        forgetting.section(evidence, seed),
    ]
    return [settled(section) for section in found]


def alarms(sections: list[Section]) -> list[Alarm]:
    """All alarms of a report."""
    return [alarm for section in sections for alarm in section.alarms]
