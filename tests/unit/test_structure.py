"""The structure of the code: imports point one way, entries are thin, files and functions stay short."""

import ast
import importlib
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("data", "annotation", "train", "infer")
MAY_IMPORT = {
    "data": ("data",),
    "annotation": ("annotation", "data"),
    "train": ("train", "data"),
    "infer": ("infer", "train", "data"),
}
ENTRIES = (
    "annotation/annotate.py",
    "data/prepare.py",
    *(f"train/{name}.py" for name in ("finetune", "export")),
    *(f"train/ddpm/{name}.py" for name in ("fit", "sample", "compare", "score")),
    *(f"train/study/{name}.py" for name in ("run", "classify")),
    *(f"infer/{name}.py" for name in ("generate", "compare", "evaluate", "gallery", "studio", "synthesize")),
)
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_ENTRY = 450, 60, 60  # non-blank lines of a file
SOURCES = sorted(path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TOOLS = sorted(
    path.relative_to(ROOT).as_posix() for folder in ("tools", "docs") for path in (ROOT / folder).rglob("*.py")
)


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def imported_files(node: ast.AST) -> Iterator[str]:
    """Files of ours that the import statements inside a node name, at any depth, also under TYPE_CHECKING."""
    for statement in ast.walk(node):
        if isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, "relative import"
            names = [(f"{statement.module}.{alias.name}", statement.module or "") for alias in statement.names]
        elif isinstance(statement, ast.Import):
            names = [(alias.name,) for alias in statement.names]
        else:
            continue
        for candidates in names:
            paths = (form for name in candidates for form in forms(name))
            file = next((path for path in paths if path in SOURCES or path in TOOLS), None)
            if file is not None:
                yield file


def forms(module: str) -> tuple[str, str]:
    path = module.replace(".", "/")
    return f"{path}.py", f"{path}/__init__.py"


@pytest.mark.parametrize("file", SOURCES)
def test_imports_point_one_way(file: str) -> None:
    allowed = MAY_IMPORT[file.partition("/")[0]]
    wrong = {other for other in imported_files(tree(file)) if not other.startswith(tuple(f"{p}/" for p in allowed))}
    if file not in ENTRIES:  # an entry may pass something of an upper layer down
        assert not wrong, f"{file} imports {wrong}"


@pytest.mark.parametrize("file", [path for path in SOURCES if path.startswith("train/ddpm/")])
def test_the_mathematics_of_the_ddpm_imports_data_alone(file: str) -> None:
    if file.startswith("train/ddpm/runs/") or file in ENTRIES:
        return
    wrong = {other for other in imported_files(tree(file)) if not other.startswith(("data/", "train/ddpm/"))}
    assert not wrong and not any(other.startswith("train/ddpm/runs/") for other in imported_files(tree(file))), wrong


def test_no_import_circles() -> None:
    graph = {file: set(imported_files(tree(file))) - {file} for file in SOURCES}
    while True:  # files whose imports are all gone cannot be in a circle; what stays when nothing goes is one
        free = {file for file, others in graph.items() if not others & graph.keys()}
        if not free:
            break
        graph = {file: others for file, others in graph.items() if file not in free}
    assert not graph, {file: sorted(others & graph.keys()) for file, others in graph.items()}


def test_own_imports_inside_functions_are_in_entries() -> None:
    """Entries read their flags before torch is loaded; everything else imports at the top."""
    inside = {
        (file, statement.lineno)
        for file in SOURCES
        for node in ast.walk(tree(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for statement in ast.walk(node)
        if isinstance(statement, ast.Import | ast.ImportFrom) and any(imported_files(statement))
    }
    assert not {file for file, _ in inside} - set(ENTRIES)
    assert len(inside) <= 20, sorted(inside)


def test_nothing_imports_an_entry_or_a_tool() -> None:
    for file in SOURCES:
        wrong = {other for other in imported_files(tree(file)) if other in ENTRIES or other in TOOLS}
        assert not wrong, f"{file} imports {wrong}"


@pytest.mark.parametrize("entry", ENTRIES)
def test_entries_are_thin(entry: str) -> None:
    assert (ROOT / entry).read_text(encoding="utf-8").count("\n") < LONGEST_ENTRY


@pytest.mark.parametrize("file", SOURCES + TOOLS)
def test_files_and_functions_stay_short(file: str) -> None:
    lines = [line for line in (ROOT / file).read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= LONGEST_FILE, f"{file} has {len(lines)} lines"
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{file}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_come_from_this_folder(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__file__ == str(ROOT / package / "__init__.py"), "another package of this name is installed"


def test_no_file_shadows_a_module() -> None:
    """The folder of a script comes first on the path: a file with a library's name would be imported in its place."""
    installed = {top for dist in metadata.distributions() for top in top_modules(dist)}
    taken = set(sys.stdlib_module_names) | installed | set(PACKAGES)
    folders = {(ROOT / entry).parent for entry in ENTRIES}
    shadows = [str(path) for folder in folders for path in folder.iterdir() if module_name(path) in taken]
    assert not shadows


def module_name(path: Path) -> str:
    """The name under which a file or folder beside a script could be imported."""
    if path.suffix == ".py":
        return path.stem
    return path.name if (path / "__init__.py").is_file() else ""


def top_modules(dist: metadata.Distribution) -> set[str]:
    if dist.metadata["Name"] == "atelier":
        return set()
    return {file.parts[0].removesuffix(".py") for file in dist.files or [] if file.suffix == ".py"}


def test_no_test_folder_has_the_name_of_a_package() -> None:
    assert not [path for path in (ROOT / "tests").rglob("*") if path.is_dir() and path.name in PACKAGES]


def test_the_repository_stays_light() -> None:
    assert not [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.stat().st_size > 16 << 20]
