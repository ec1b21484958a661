"""docs/ddpm.md and docs/ddpm-runs.md are true: their code and equations are in the code, their links, commands, flags,
tests, names and figures exist, and the numbers of the figures are right.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image
from pydantic import BaseModel

from data.cli import parse
from data.errors import InputError
from docs.scripts import figures, plots
from tests import analytic
from train.ddpm import prediction, samplers
from train.ddpm import schedule as schedules
from train.ddpm.runs.config import ALIASES, CONFIGS, CompareOptions, FitConfig, SampleOptions, ScoreOptions

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("ddpm.md", "ddpm-runs.md")}
PAGE = PAGES["ddpm.md"]
OPTIONS: dict[str, type[BaseModel]] = {
    "fit.py": FitConfig,
    "sample.py": SampleOptions,
    "score.py": ScoreOptions,
    "compare.py": CompareOptions,
}


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)#:]+)\)", text)


def table(text: str) -> list[list[str]]:
    """The cells of every row of the tables in a section, without their heads."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if row[0] not in ("---", "equation", "paper")]


# ---- formula and code

SECTIONS = re.findall(r"^### ([^\n]*\.py\)[^\n]*)$(.*?)(?=^##)", PAGE, re.M | re.S)  # that name their files
PAPERS = {row[1]: re.findall(r"abs/([0-9.]+)", row[0])[0] for row in table(PAGE[: PAGE.index("**Convention")])}
UNNUMBERED = {"LDM code", "a first lesson"}


def patterns(place: str) -> list[str]:
    """What the code must contain for `6, 7`, `section 4`, `algorithm 2` or `above 4`."""
    words = [rf"{word} {number}\b" for word, number in re.findall(r"(section|algorithm) ([0-9.]*[0-9])", place)]
    numbers = re.findall(r"\d+", re.sub(r"(section|algorithm) [0-9.]+", "", place))
    return [pattern.replace("algorithm", "alg(?:orithm|\\.)") for pattern in words] + [
        rf"eq\. (?:\d+(?:, | and eq\. ))*{number}\b" for number in numbers
    ]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section[0][:20])
def test_code_and_equations_of_the_page_are_in_its_files(section: tuple[str, str]) -> None:
    heading, text = section
    code = "\n".join((ROOT / "docs" / path).read_text(encoding="utf-8") for path in links(heading))
    lines = [line for row in table(text) for line in re.findall(r"`([^`]+)`", row[-1])]
    assert len(lines) >= 4
    for line in lines:
        assert squeezed(line) in squeezed(code), f"{line!r} is not in {heading}"
    paths = [ROOT / "docs" / path for path in links(heading) + links(text) if path.endswith(".py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    for name, *_ in table(text):
        if name in UNNUMBERED:
            continue
        paper = re.match(rf"^({'|'.join(PAPERS)})\b,?(.*)$", name)
        assert paper and PAPERS[paper[1]] in code, f"{name}: its paper is not cited in {heading}"
        assert patterns(paper[2])
        for pattern in patterns(paper[2]):
            assert re.search(pattern, code), f"{name}: {pattern} is not in {heading}"


def test_equations_1_to_15_of_the_paper_are_in_the_code() -> None:
    assert len(SECTIONS) == 6 and len(PAPERS) == 9
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
            heads = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}, anchor


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_pages_parses(page: str) -> None:
    blocks = re.findall(r"^```\w*\n(.*?)^```", PAGES[page], re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.M | re.S)
    lines += re.findall(r"`((?:python|accelerate)[^`\n]*)`", text)
    commands = [shlex.split(line) for line in lines if line.startswith(("python ", "accelerate "))]
    assert len(commands) >= 5
    for words in commands:
        if "-m" in words:
            assert importlib.util.find_spec(words[words.index("-m") + 1]), words
            continue
        script = next(Path(word) for word in words if word.endswith(".py"))
        assert (ROOT / script).is_file(), script
        flags = words[words.index(str(script)) + 1 :]
        if script.name == "figures.py":
            assert flags[0] == "keep" or set(flags[1:]) <= set(figures.DDPM)
            continue
        model = OPTIONS[script.name]
        preset, aliases = (CONFIGS / "digits.yaml", ALIASES) if model is FitConfig else (None, {})
        if "--config" in flags:
            preset = ROOT / flags[flags.index("--config") + 1]
        parse(model, flags, prog=script.name, preset=preset, aliases=aliases)  # type: ignore[type-var]


def has_flag(model: type[BaseModel], flag: str) -> bool:
    *groups, last = flag.removeprefix("--").removeprefix("no-").replace("-", "_").split(".")
    models = [model]
    for group in groups:
        kinds = [each.model_fields[group].annotation for each in models if group in each.model_fields]
        models = [kind for each in kinds for kind in (get_args(each) or (each,)) if isinstance(kind, type)]
    return any(last in each.model_fields for each in models)


@pytest.mark.parametrize("page", PAGES)
def test_flags_names_and_tests_of_the_pages_exist(page: str) -> None:
    text = PAGES[page]
    for flag in re.findall(r"`(--[a-z0-9.-]+)", text):
        assert flag in ("--new", "--config") or any(has_flag(model, flag) for model in OPTIONS.values()), flag
    prose = re.sub(r"^\|.*$", "", text, flags=re.M)
    for module, name in re.findall(r"`([a-z]+)\.([A-Za-z_]+)\b", prose):
        if name not in ("py", "html") and importlib.util.find_spec(f"train.ddpm.{module}"):
            assert hasattr(importlib.import_module(f"train.ddpm.{module}"), name), f"{module}.{name}"
    folders = (ROOT / "tests" / "unit", ROOT / "tests" / "recipes")
    sources = "".join(path.read_text(encoding="utf-8") for folder in folders for path in folder.glob("test_*.py"))
    for name in re.findall(r"\b(test_\w*[a-z]{3}\w*)`", text):
        assert f"def {name}(" in sources, name
    for number in range(1, 25):
        assert f"def test_{number:02}_" in sources, number


def test_figures_are_there_and_small() -> None:
    assert set(plots.FIGURES) == set(figures.DDPM)
    assert all(f"figures/ddpm-{name}.png" in PAGE and f"figures.py ddpm {name}" in PAGE for name in figures.DDPM)
    for path in re.findall(r"!\[[^\]]*\]\((figures/[^)]+)\)", "".join(PAGES.values())):
        file = ROOT / "docs" / path
        assert 0 < file.stat().st_size <= plots.LIMIT
        with Image.open(file) as image:
            image.verify()


def test_figures_are_drawn_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["schedules", "forward"]  # the quick ones; the numbers of the others are tested below
    monkeypatch.setattr(sys, "argv", ["figures.py", "ddpm", *names, "--out", str(tmp_path / "new")])
    assert figures.main() == 0
    for name in names:
        new, kept = (folder / "figures" / f"ddpm-{name}.png" for folder in (tmp_path / "new", figures.DOCS))
        with Image.open(new) as drawn, Image.open(kept) as before:
            assert drawn.size == before.size
    monkeypatch.setattr(sys, "argv", ["figures.py", "ddpm", "elba"])
    with pytest.raises(InputError, match="did you mean 'elbo'"):
        figures.main()
    monkeypatch.setattr(plots, "LIMIT", 1000)
    with pytest.raises(InputError) as caught:
        plots.save(plots.schedule_curves(), tmp_path / "large.png")
    assert caught.value.allowed == "1000 bytes" and not (tmp_path / "large.png").exists()


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
    small = prediction.get_variance("fixed-small")
    assert analytic.ancestral_std(samplers.respace(linear, 10), 0.1, small) == pytest.approx(0.027, abs=5e-4)
