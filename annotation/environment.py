"""Label Studio's own Python environment, installed on first use so that its 155 libraries stay apart from ours.

$ATELIER_LABEL_STUDIO, or cache_root()/label-studio
    1.23.2-py3.11/
        env/             a virtual environment (1 GB); versions pinned by annotation/label_studio.txt
        empty.sqlite3    a migrated database without users: copying it turns a first start of 30 s into 3 s
        ready            written last: without it the folder is rebuilt
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.atomic_io import cache_root, write_atomic
from data.errors import InputError
from data.progress import ProgressBar

VERSION = "1.23.2"  # before changing it, run tests/servers with the new version
READY, PROGRAM, PYTHON, DATABASE = "ready", "env/bin/label-studio", "env/bin/python", "empty.sqlite3"
PINS = Path(__file__).with_name("label_studio.txt")
DISK_SPACE = 2 << 30  # bytes for the libraries and for pip while it installs them
OFFLINE = {  # no usage data, no error reports, no check for a newer version
    "COLLECT_ANALYTICS": "false",
    "LATEST_VERSION_CHECK": "false",
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
    "FEATURE_FLAGS_OFFLINE": "true",
}
NOWHERE = "http://127.0.0.1:9"  # a proxy that does not exist: no setting stops pages from asking GitHub for tips
NO_NETWORK = {"HTTP_PROXY": NOWHERE, "HTTPS_PROXY": NOWHERE, "NO_PROXY": "127.0.0.1,localhost"}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; other processes wait. The system releases it when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def environment_folder() -> Path:
    """The environment of this version and Python, installed or not."""
    root = Path(os.environ.get("ATELIER_LABEL_STUDIO") or cache_root() / "label-studio")
    return root / f"{VERSION}-py{sys.version_info.major}.{sys.version_info.minor}"


def is_installed(folder: Path) -> bool:
    """Whether installation finished, and the Python it was made with still exists."""
    return all((folder / part).exists() for part in (READY, PROGRAM, PYTHON, DATABASE))


def ensure_environment() -> None:
    """Install the environment if it is missing (1 to 3 minutes, 1 GB). Raises InputError if that fails."""
    folder = environment_folder()
    if not is_installed(folder):
        with locked(folder / "lock"):
            if not is_installed(folder):  # another process may have installed it in the meantime
                install(folder)


def install(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < DISK_SPACE:
        fix = "Free some space, or choose another disk: ATELIER_LABEL_STUDIO=FOLDER."
        raise InputError(f"{free >> 20} MiB free, Label Studio needs {DISK_SPACE >> 20}", where=folder, fix=fix)
    print(f"installing Label Studio {VERSION} in {folder} (only once)", file=sys.stderr)
    (folder / READY).unlink(missing_ok=True)
    create_venv(folder / "env")
    pip_install(folder)
    migrate(folder)
    write_atomic(folder / READY, f"{VERSION}\n")


def create_venv(folder: Path) -> None:
    """Create an empty virtual environment in place of whatever a failed attempt left."""
    result = subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], capture_output=True, text=True)
    if result.returncode:
        fix = "Install Python's venv module (on Debian: apt-get install python3-venv)."
        reason = last_line(result.stdout + result.stderr)
        raise InputError(f"cannot create a virtual environment: {reason}", where=folder, fix=fix)


def pip_install(folder: Path) -> None:
    """Run pip with a bar that counts libraries; its output is kept in install.log."""
    command = [str(folder / PYTHON), "-m", "pip", "install", "--progress-bar=off", "--disable-pip-version-check"]
    command += ["--constraint", str(PINS), f"label-studio=={VERSION}"]
    total = len(PINS.read_text(encoding="utf-8").splitlines())
    log = folder / "install.log"
    last = ""
    with (
        log.open("w", encoding="utf-8") as written,
        ProgressBar(desc="downloading", total=total, unit="library") as bar,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            written.write(line)
            last = line.strip()
            bar.update(line.startswith(("Collecting ", "Processing ")) and bar.n < total)
            if line.startswith("Installing "):
                bar.set_description_str("installing")
                bar.update(total - bar.n)
    if process.returncode:
        fix = f"Check the network and the disk, then run the command again; pip's full output is in {log}."
        raise InputError(f"pip could not install Label Studio: {last}", fix=fix)


def migrate(folder: Path) -> None:
    """`label-studio version` migrates its data folder without creating a user: that database is the one to copy."""
    scratch = folder / "migration"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    with ProgressBar(desc="preparing its database", total=1, bar_format="{desc} {elapsed}"):
        result = subprocess.run(
            [str(folder / PROGRAM), "version"],
            env=clean_variables(scratch), cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
    database = scratch / "label_studio.sqlite3"
    if result.returncode or not database.exists():
        fix = f"See {folder / 'install.log'}."
        reason = last_line(result.stdout + result.stderr)
        raise InputError(f"Label Studio does not run: {reason}", where=folder / PROGRAM, fix=fix)
    write_atomic(folder / DATABASE, database.read_bytes())
    shutil.rmtree(scratch, ignore_errors=True)


def clean_variables(folder: Path) -> dict[str, str]:
    """Environment variables from scratch: Label Studio also reads bare names (DEBUG, HOST, PASSWORD ...)."""
    inherited = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TMPDIR", "TZ") if name in os.environ}
    settings = {f"LABEL_STUDIO_{name}": value for name, value in OFFLINE.items()}
    settings |= {"LABEL_STUDIO_BASE_DATA_DIR": str(folder), "HOME": str(folder), "PYTHONUNBUFFERED": "1"}
    return inherited | NO_NETWORK | settings


def last_line(output: str) -> str:
    """The last line that a program printed, for an error of one line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
