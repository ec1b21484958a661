"""docs/ddpm.md says what is so: its code lines are in the code, its tests and its figures are there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from data.errors import InputError
from train.ddpm import exact, figures, plots, respacing, variance  # an entry, by its main()
from train.ddpm import schedule as schedules

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ddpm.md").read_text(encoding="utf-8")


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def sections() -> list[tuple[str, str]]:
    """(heading, text) of every section that names its files."""
    found = re.findall(r"^### ([^\n]*\.py\)[^\n]*)$(.*?)(?=^##)", PAGE, re.M | re.S)
    assert len(found) == 6
    return found


@pytest.mark.parametrize("section", sections(), ids=lambda section: section[0][:20])
def test_every_code_line_of_the_page_is_in_its_file(section: tuple[str, str]) -> None:
    heading, text = section
    code = "".join(squeezed((ROOT / "docs" / path).read_text(encoding="utf-8")) for path in links(heading))
    lines = [line for row in table(text) for line in re.findall(r"`([^`]+)`", row[-1])]
    assert len(lines) >= 4
    for line in lines:
        assert squeezed(line) in code, f"{line!r} is not in {heading}"


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)#:]+)\)", text)


def table(text: str) -> list[list[str]]:
    """The cells of every row of the tables in a section, without their heads."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if row[0] not in ("---", "equation")]


def test_links_lead_somewhere() -> None:
    for path in links(PAGE):
        assert path == "ddpm-runs.md" or (ROOT / "docs" / path).exists(), path


def test_tests_that_the_page_names_exist() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "unit").glob("test_*.py"))
    for name in re.findall(r"\b(test_\w*[a-z]{3}\w*)`", PAGE):
        assert f"def {name}(" in sources, name
    elsewhere = {18, 20, 23, 24}  # of ddpm-runs.md
    for number in set(range(1, 25)) - elsewhere:
        assert f"def test_{number:02}_" in sources, number


def test_figures_are_there_and_light() -> None:
    assert set(plots.FIGURES) == set(figures.NAMES)
    for name in figures.NAMES:
        path = figures.FOLDER / f"ddpm-{name}.png"
        assert f"figures/{path.name}" in PAGE
        assert f"figures.py {name}" in PAGE
        assert path.stat().st_size <= plots.LIMIT


def test_figures_are_drawn_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["schedules", "forward"]  # the quick ones; the numbers of the others are tested below
    monkeypatch.setattr(sys, "argv", ["figures.py", *names, "--out", str(tmp_path / "new")])
    assert figures.main() == 0
    for name in names:
        new, kept = tmp_path / "new" / f"ddpm-{name}.png", figures.FOLDER / f"ddpm-{name}.png"
        with Image.open(new) as drawn, Image.open(kept) as before:
            assert drawn.size == before.size
    monkeypatch.setattr(sys, "argv", ["figures.py", "elba"])
    with pytest.raises(InputError, match="unknown figure 'elba', did you mean 'elbo'\\?; allowed: elbo, collapse"):
        figures.main()


def test_a_figure_too_large_for_the_docs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "LIMIT", 1000)
    with pytest.raises(InputError, match="bytes; allowed: 1000 bytes"):
        plots.save(plots.schedule_curves(), tmp_path / "large.png")
    assert not list(tmp_path.iterdir())


def test_the_numbers_of_the_figures() -> None:
    linear = schedules.linear(1000)
    for name in plots.KINDS:
        assert plots.measured_std(linear, name, 20) == pytest.approx(plots.closed_std(linear, name, 20), rel=0.02)
    assert plots.closed_std(linear, "fixed-large", 10) == pytest.approx(0.354, abs=5e-4)
    rate, total = plots.identity(schedules.cosine(10))
    assert total == pytest.approx(plots.ENTROPY, abs=1e-12)
    information = (1 + schedules.cosine(10).snr).log2().flip(0) / 2
    assert rate.tolist() == pytest.approx(information.tolist(), abs=1e-12)  # I(x_0; x_t)
    for name, (_, order, _) in plots.SOLVERS.items():
        assert plots.flow_error(name, 64) / plots.flow_error(name, 128) == pytest.approx(2**order, rel=0.15)
    chain = respacing.chain(linear, 10)
    assert exact.ancestral_std(chain, 0.1, variance.named("fixed-small")) == pytest.approx(0.027, abs=5e-4)
