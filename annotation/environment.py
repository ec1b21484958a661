"""Label Studio's own Python environment, installed on first use so that its 155 libraries stay apart from ours.

$ATELIER_LABEL_STUDIO, or cache_root()/label-studio
    1.23.2-py3.11/
        env/             a virtual environment (1 GB); versions pinned by annotation/label_studio.txt
        empty.sqlite3    a migrated database without users: copying it turns a first start of 30 s into 3 s
        ready            written last: without it the folder is rebuilt
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data.atomic_io import cache_root, write_atomic
from data.errors import InputError

VERSION = "1.23.2"  # before changing it, run tests/servers with the new version
PINS = Path(__file__).with_name("label_studio.txt")
DISK_SPACE = 2 << 30  # bytes for the libraries and for pip while it installs them
OFFLINE = {  # no usage data, no error reports, no check for a newer version
    "COLLECT_ANALYTICS": "false",
    "LATEST_VERSION_CHECK": "false",
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
    "FEATURE_FLAGS_OFFLINE": "true",
}
NO_NETWORK = {  # no setting stops the login and home pages from asking GitHub for tips; this proxy does not exist
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost",
}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; other processes wait. The system releases it when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Environment:
    """An installation of Label Studio."""

    folder: Path

    @property
    def program(self) -> Path:
        return self.folder / "env" / "bin" / "label-studio"

    @property
    def python(self) -> Path:
        return self.folder / "env" / "bin" / "python"

    @property
    def database(self) -> Path:
        return self.folder / "empty.sqlite3"

    @property
    def complete(self) -> bool:
        """Whether installation finished, and the Python it was made with still exists."""
        return all(path.exists() for path in (self.folder / "ready", self.program, self.python, self.database))


def find_environment() -> Environment:
    """The environment of this version and Python, installed or not."""
    root = Path(os.environ.get("ATELIER_LABEL_STUDIO") or cache_root() / "label-studio")
    return Environment(root / f"{VERSION}-py{sys.version_info.major}.{sys.version_info.minor}")


def ensure_environment() -> Environment:
    """The environment, installed first if it is missing (1 to 3 minutes, 1 GB). Raises InputError if that fails."""
    environment = find_environment()
    if not environment.complete:
        with locked(environment.folder / "lock"):
            if not environment.complete:  # another process may have installed it in the meantime
                install_environment(environment)
    return environment


def install_environment(environment: Environment) -> None:
    """Install Label Studio and migrate an empty database."""
    folder = environment.folder
    free = shutil.disk_usage(folder).free
    if free < DISK_SPACE:
        fix = "Free some space, or choose another disk: ATELIER_LABEL_STUDIO=FOLDER."
        raise InputError(f"{free >> 20} MiB free, Label Studio needs {DISK_SPACE >> 20}", where=folder, fix=fix)
    print(f"installing Label Studio {VERSION} in {folder} (only once)", file=sys.stderr)
    (folder / "ready").unlink(missing_ok=True)
    create_venv(folder / "env")
    pip_install(environment)
    migrate(environment)
    write_atomic(folder / "ready", f"{VERSION}\n")


def create_venv(folder: Path) -> None:
    """Create an empty virtual environment in place of whatever a failed attempt left."""
    result = subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], capture_output=True, text=True)
    if result.returncode:
        fix = "Install Python's venv module (on Debian: apt-get install python3-venv)."
        raise InputError(
            f"cannot create a virtual environment: {last_line(result.stdout + result.stderr)}", where=folder, fix=fix
        )


def pip_install(environment: Environment) -> None:
    """Run pip with a bar that counts libraries; its output is kept in install.log."""
    command = [str(environment.python), "-m", "pip", "install", "--progress-bar=off", "--disable-pip-version-check"]
    command += ["--constraint", str(PINS), f"label-studio=={VERSION}"]
    total = len(PINS.read_text(encoding="utf-8").splitlines())
    log = environment.folder / "install.log"
    last: deque[str] = deque(maxlen=1)
    with (
        log.open("w", encoding="utf-8") as written,
        tqdm(total=total, unit="library", desc="downloading") as bar,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            written.write(line)
            last.append(line.strip())
            bar.update(line.startswith(("Collecting ", "Processing ")) and bar.n < total)
            if line.startswith("Installing "):
                bar.set_description("installing")
                bar.update(total - bar.n)
    if process.returncode:
        fix = f"Check the network and the disk, then run the command again; pip's full output is in {log}."
        raise InputError(f"pip could not install Label Studio: {' '.join(last)}", fix=fix)


def migrate(environment: Environment) -> None:
    """`label-studio version` migrates its data folder without creating a user: that database is the one to copy."""
    folder = environment.folder / "migration"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with tqdm(total=1, desc="preparing its database", bar_format="{desc} {elapsed}"):
        result = subprocess.run(
            [str(environment.program), "version"],
            env=clean_variables(folder), cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
    database = folder / "label_studio.sqlite3"
    if result.returncode or not database.exists():
        fix = f"See {environment.folder / 'install.log'}."
        raise InputError(
            f"Label Studio does not run: {last_line(result.stdout + result.stderr)}", where=environment.program, fix=fix
        )
    write_atomic(environment.database, database.read_bytes())
    shutil.rmtree(folder, ignore_errors=True)


def clean_variables(folder: Path) -> dict[str, str]:
    """Environment variables from scratch, for a Label Studio that keeps everything in `folder`.

    Label Studio also reads bare names (DEBUG, HOST, PORT, CI, USERNAME, PASSWORD, DATABASE_NAME ...), so any that the
    caller happens to have set would change its settings.
    """
    inherited = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TMPDIR", "TZ") if name in os.environ}
    settings = {f"LABEL_STUDIO_{name}": value for name, value in OFFLINE.items()}
    settings |= {"LABEL_STUDIO_BASE_DATA_DIR": str(folder), "HOME": str(folder), "PYTHONUNBUFFERED": "1"}
    return inherited | NO_NETWORK | settings


def last_line(output: str) -> str:
    """The last line that a program printed, for an error of one line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
