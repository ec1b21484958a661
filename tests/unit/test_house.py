"""The house rules: imports point one way, nothing hides a package, nothing grows too large."""

import ast
import importlib
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("data", "annotation", "train", "infer")
NOT_INSTALLED = ("tools", "docs", "tests")  # may import anything; nothing of the packages imports them
MAY_IMPORT = {
    "data": {"data"},
    "annotation": {"annotation", "data"},
    "train": {"train", "data"},
    "infer": {"infer", "train", "data"},
}
ENTRIES = [
    "annotation/annotate.py",
    "data/prepare.py",
    "train/finetune.py",
    "train/export.py",
    "train/ddpm/fit.py",
    "train/ddpm/sample.py",
    "train/ddpm/compare.py",
    "train/ddpm/score.py",
    "train/study/run.py",
    "train/study/classify.py",
    "infer/generate.py",
    "infer/compare.py",
    "infer/evaluate.py",
    "infer/gallery.py",
    "infer/studio.py",
    "infer/synthesize.py",
]
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_ENTRY = 450, 60, 60  # lines that are not blank; of an entry all
FORBIDDEN_WORDS = ("utils", "helpers", "manager", "handler")

SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    if name(path) in ENTRIES:
        return  # an entry may hand a lower layer something of an upper one
    ours = {module.partition(".")[0] for module in imports(path)} & {*PACKAGES, *NOT_INSTALLED}
    assert ours <= MAY_IMPORT[package], f"{name(path)} imports {ours - MAY_IMPORT[package]}"


@pytest.mark.parametrize("path", sorted((ROOT / "train" / "ddpm").glob("*.py")), ids=name)
def test_the_ddpm_stands_on_data_alone(path: Path) -> None:
    if name(path) in ENTRIES:
        return
    ours = {module for module in imports(path) if module.partition(".")[0] in PACKAGES}
    assert all(module.startswith(("data.", "train.ddpm.")) for module in ours), ours


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_imports_an_entry(path: Path) -> None:
    entries = {entry.removesuffix(".py").replace("/", ".") for entry in ENTRIES}
    found = {module for module in imports(path) if module in entries or module.rpartition(".")[0] in entries}
    assert not found, f"{name(path)} imports {found}"


@pytest.mark.parametrize("entry", ENTRIES)
def test_entries_are_thin(entry: str) -> None:
    lines = (ROOT / entry).read_text(encoding="utf-8").count("\n")
    assert lines < LONGEST_ENTRY, f"{entry} has {lines} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_grows_too_large(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = sum(bool(line.strip()) for line in text.splitlines())
    assert lines <= LONGEST_FILE, f"{name(path)} has {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{name(path)}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_names_say_something(path: Path) -> None:
    assert not any(word in path.stem.lower() for word in FORBIDDEN_WORDS), name(path)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_come_from_here(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__file__ == str(ROOT / package / "__init__.py"), "another package of this name is installed"


def test_no_file_shadows_a_module() -> None:
    """A script's own folder comes first on the path: a file of a library's name would be imported in its place."""
    installed = {top for dist in metadata.distributions() for top in tops(dist)}
    taken = set(sys.stdlib_module_names) | installed | set(PACKAGES)
    folders = {(ROOT / entry).parent for entry in ENTRIES}
    shadows = [name(path) for folder in folders for path in folder.iterdir() if shadow(path) in taken]
    assert not shadows, f"{shadows} hide modules of the same name"


def shadow(path: Path) -> str:
    """The module name under which a file or folder beside a script could be imported."""
    if path.suffix == ".py":
        return path.stem
    return path.name if (path / "__init__.py").is_file() else ""


def tops(dist: metadata.Distribution) -> set[str]:
    """The top-level modules of an installed distribution."""
    if dist.metadata["Name"] == "atelier":
        return set()
    files = dist.files or []
    return {file.parts[0].removesuffix(".py") for file in files if file.suffix == ".py"}


def test_test_folders_hide_no_package() -> None:
    folders = [path for path in (ROOT / "tests").rglob("*") if path.is_dir()]
    assert not [folder for folder in folders if folder.name in PACKAGES]


def test_the_repository_stays_light() -> None:
    large = [
        name(path) for package in PACKAGES for path in (ROOT / package).rglob("*") if path.stat().st_size > 16 << 20
    ]
    assert not large
