"""Old faults put back must turn a test red: each in a copy of the project, by its own tests."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml


@dataclass(frozen=True)
class Fault:
    """A row of faults.yaml."""

    name: str
    seen: str
    file: str
    before: str
    after: str
    tests: list[str]


ROOT = Path(__file__).parents[2]
FAULTS = [Fault(**row) for row in yaml.safe_load((Path(__file__).parent / "faults.yaml").read_text(encoding="utf-8"))]
CODE = ("data", "train", "infer", "annotation", "tests", "pyproject.toml", "accelerate_config.yaml", "README.md")
HANGS = "240"  # seconds: a fault that leaves processes waiting for one another is seen by that
FAILED = 1  # pytest's exit code when a test failed; 2 to 5 mean that none could be run


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's code in a folder of its own."""
    target = tmp_path_factory.mktemp("mutated")
    for name in CODE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / name)
    return target


def run(tests: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """The tests, on the code of `folder`."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    typed = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout", HANGS, *tests]
    return subprocess.run(typed, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name.replace(" ", "-") for fault in FAULTS])
def test_an_old_fault_is_seen(fault: Fault, copied: Path) -> None:
    file = copied / fault.file
    healthy = file.read_text(encoding="utf-8")
    file.write_text(healthy.replace(fault.before, fault.after), encoding="utf-8")
    try:
        done = run(fault.tests, copied)
    finally:
        file.write_text(healthy, encoding="utf-8")
    assert done.returncode == FAILED, f"nobody saw that {fault.name}:\n{done.stdout[-2000:]}{done.stderr[-1000:]}"
    assert "SyntaxError" not in done.stdout and "ImportError" not in done.stdout, done.stdout[-2000:]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name.replace(" ", "-") for fault in FAULTS])
def test_a_fault_still_fits_the_code(fault: Fault) -> None:
    """In the quick tier, so that whoever changes a line hears that a fault was written against it."""
    assert (ROOT / fault.file).read_text(encoding="utf-8").count(fault.before) == 1
    for test in fault.tests:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8") if name else (ROOT / file).is_file()
