"""docs/ddpm.md and docs/ddpm-runs.md say what is so: their code lines and equations are in the code, their links lead
somewhere, their commands parse, their tests and figures are there.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

from data.cli import parse
from data.errors import InputError
from docs.scripts import ddpm_figures as figures
from docs.scripts import plots
from train.ddpm import analytic, prediction, samplers
from train.ddpm import schedule as schedules
from train.ddpm.runs.config import ALIASES, CONFIGS, CompareOptions, FitConfig, SampleOptions, ScoreOptions

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("ddpm.md", "ddpm-runs.md")}
PAGE = PAGES["ddpm.md"]


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


# how the first cell of a row names its source, and how the code does; most say their paper once, at the top of the file
OWN_WORDS = {"LDM code", "a first lesson"}
NUMBERED = re.compile(r"^(Ho|DDIM|ND|SH|EDM|Lu|Lin|RePaint|CFG)\b,?(.*)$")


def papers() -> dict[str, str]:
    """arXiv numbers by the names that the page has for them."""
    rows = [row for row in table(PAGE[: PAGE.index("**One convention")]) if row[0] != "paper"]
    found = {row[1]: re.findall(r"abs/([0-9.]+)", row[0])[0] for row in rows}
    assert len(found) == 9
    return found


def wanted(place: str) -> list[str]:
    """Patterns that the code must hold for `6, 7`, `section 4`, `algorithm 2` or `above 4`."""
    found = [rf"{word} {number}\b" for word, number in re.findall(r"(section|algorithm) ([0-9.]*[0-9])", place)]
    numbers = re.findall(r"\d+", re.sub(r"(section|algorithm) [0-9.]+", "", place))
    return [pattern.replace("algorithm", "alg(?:orithm|\\.)") for pattern in found] + [
        rf"eq\. (?:\d+(?:, | and eq\. ))*{number}\b" for number in numbers
    ]


@pytest.mark.parametrize("section", sections(), ids=lambda section: section[0][:20])
def test_every_equation_of_the_page_is_named_in_its_file(section: tuple[str, str]) -> None:
    heading, text = section
    paths = [ROOT / "docs" / path for path in links(heading) + links(text)]
    code = "\n".join(path.read_text(encoding="utf-8") for path in paths if path.suffix == ".py")
    for row in table(text):
        if row[0] in OWN_WORDS:
            continue
        named = NUMBERED.match(row[0])
        assert named, row[0]
        assert papers()[named[1]] in code, f"{row[0]}: its paper is not cited in {heading}"
        patterns = wanted(named[2])
        assert patterns, row[0]
        for pattern in patterns:
            assert re.search(pattern, code), f"{row[0]}: {pattern} is not in {heading}"


def test_equations_1_to_15_of_the_paper_are_in_the_code() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "train" / "ddpm").glob("*.py"))
    for number in range(1, 16):
        assert re.search(rf"eq\. (?:\d+, )*{number}\b", code), number


# ---- both pages


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for path, anchor in re.findall(r"\]\(([^)#: ]*)(?:#([^) ]+))?\)", PAGES[page]):
        target = ROOT / "docs" / (path or page)
        assert target.exists(), path
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{path}#{anchor}"


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    heads = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def commands(text: str) -> list[list[str]]:
    """Every command of train/ddpm on a page, as words; in code blocks and in backticks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:python|accelerate)[^`\n]*)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return [shlex.split(line) for line in lines if line.startswith(("python ", "accelerate "))]


PARSED = {"fit.py": (FitConfig, ALIASES), "sample.py": (SampleOptions, {}), "score.py": (ScoreOptions, {})}
PARSED |= {"compare.py": (CompareOptions, {})}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_pages_parses(page: str) -> None:
    found = commands(PAGES[page])
    assert len(found) >= 5
    for words in found:
        if "-m" in words:
            module = words[words.index("-m") + 1]
            assert module == "pytest" or importlib.util.find_spec(module), words
            continue
        script = next(Path(word) for word in words if word.endswith(".py"))
        assert (ROOT / script).is_file(), script
        flags = words[words.index(str(script)) + 1 :]
        if script.name == "ddpm_figures.py":
            names = flags if "--of" not in flags else []
            assert set(names) <= set(figures.NAMES)
            continue
        model, aliases = PARSED[script.name]
        preset = CONFIGS / "digits.yaml" if model is FitConfig else None
        if "--config" in flags:
            preset = ROOT / flags[flags.index("--config") + 1]
            assert preset.is_file(), preset
        parse(model, flags, prog=script.name, preset=preset, aliases=aliases)


def test_nothing_on_the_pages_is_left_open() -> None:
    assert "- [ ]" not in PAGE
    for text in PAGES.values():
        assert not re.search(r"\b[A-Z]+_SECTION\b|TODO|TBD", text)


def test_tests_that_the_pages_name_exist() -> None:
    folders = (ROOT / "tests" / "unit", ROOT / "tests" / "recipes")
    sources = "".join(path.read_text(encoding="utf-8") for folder in folders for path in folder.glob("test_*.py"))
    for text in PAGES.values():
        for name in re.findall(r"\b(test_\w*[a-z]{3}\w*)`", text):
            assert f"def {name}(" in sources, name
    for number in range(1, 25):
        assert f"def test_{number:02}_" in sources, number


def test_pictures_of_the_runs_are_there_and_light() -> None:
    shown = re.findall(r"!\[[^\]]*\]\((figures/[^)]+)\)", PAGES["ddpm-runs.md"])
    assert len(shown) >= 3
    for path in shown:
        file = ROOT / "docs" / path
        assert 0 < file.stat().st_size <= plots.LIMIT
        with Image.open(file) as picture:
            picture.verify()


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
    chain = samplers.respace(linear, 10)
    assert analytic.ancestral_std(chain, 0.1, prediction.get_variance("fixed-small")) == pytest.approx(0.027, abs=5e-4)
