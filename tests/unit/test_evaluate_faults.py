"""Planted faults must be flagged in 19 of 20 runs, a clean run in no more than one of 20."""

from collections import Counter

import pytest

from infer.evaluation import adherence, command, diversity, memorization, style
from infer.evaluation.evidence import Evidence
from infer.evaluation.section import Section
from tests.planted import ALARMS, FAULTS, Pool, evidence, pool

RUNS = 20
LOOKED_AT = {
    "memorised": memorization,
    "collapsed": diversity,
    "zero": style,
    "ignored": adherence,
    "leak": memorization,
}


@pytest.fixture(scope="module")
def pictures() -> Pool:
    return pool()


def kinds(found: list[Section]) -> set[str]:
    return {alarm.kind for section in found for alarm in section.alarms}


def test_a_clean_run_raises_no_alarm(pictures: Pool) -> None:
    raised = [kinds(command.compute_sections(evidence(pictures, seed), seed)) for seed in range(RUNS)]
    assert sum(map(bool, raised)) <= 1, Counter(kind for each in raised for kind in each)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_flagged(pictures: Pool, fault: str) -> None:
    def look(found: Evidence, seed: int) -> set[str]:
        return kinds([LOOKED_AT[fault].section(found, seed)])

    flagged = [ALARMS[fault] in look(evidence(pictures, seed, fault), seed) for seed in range(RUNS)]
    assert sum(flagged) >= 19
