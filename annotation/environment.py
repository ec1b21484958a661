"""Label Studio's own Python environment, made on first use: its 155 libraries never meet those of the toolkit.

$ATELIER_LABEL_STUDIO, or cache_root()/label-studio
    1.23.2-py3.11/
        env/             a virtual environment (1 GB), every version pinned by annotation/label_studio.txt
        empty.sqlite3    a database with all migrations done and nobody in it: a copy starts in 3 s instead of 30
        ready            written last: without it the folder is made anew
"""

from __future__ import annotations

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

from annotation.locks import locked
from data.errors import InputError
from data.files import cache_root, replaced_folder, write_atomic

VERSION = "1.23.2"  # everything here was tried with it; another one goes through tests/servers first
PINS = Path(__file__).with_name("label_studio.txt")
ROOM = 2 << 30  # bytes that the libraries take, and what pip needs beside them
QUIET = {  # nothing looks up a name outside: no usage data, no error reports, no search for a newer version
    "COLLECT_ANALYTICS": "false",
    "LATEST_VERSION_CHECK": "false",
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
    "FEATURE_FLAGS_OFFLINE": "true",
}
SHUT = {  # and no setting stops its login page and home page from asking GitHub for tips: a proxy that nobody runs does
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost",
}


@dataclass(frozen=True)
class Environment:
    """An installed Label Studio of VERSION."""

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
        """Made to its end, and the Python that it was made with is still there."""
        parts = (self.folder / "ready", self.program, self.python, self.database)
        return all(part.exists() for part in parts)


def place() -> Environment:
    """Where the environment of this version and Python is, or would be."""
    root = Path(os.environ.get("ATELIER_LABEL_STUDIO") or cache_root() / "label-studio")
    return Environment(root / f"{VERSION}-py{sys.version_info.major}.{sys.version_info.minor}")


def ready() -> Environment:
    """The environment, made first if it is missing (1 to 3 minutes, 1 GB). Raises InputError if that fails."""
    environment = place()
    if environment.complete:
        return environment
    environment.folder.mkdir(parents=True, exist_ok=True)
    with locked(environment.folder / "lock"):
        if not environment.complete:  # another process may have made it while this one waited
            make(environment)
    return environment


def make(environment: Environment) -> None:
    """Install Label Studio and migrate an empty database."""
    free = shutil.disk_usage(environment.folder).free
    if free < ROOM:
        fix = "Make room, or name another disk: ATELIER_LABEL_STUDIO=FOLDER."
        raise InputError(f"{free >> 20} MiB free, Label Studio needs {ROOM >> 20}", where=environment.folder, fix=fix)
    print(f"making an environment for Label Studio {VERSION} in {environment.folder}, once", file=sys.stderr)
    (environment.folder / "ready").unlink(missing_ok=True)
    make_venv(environment)
    install(environment)
    migrate(environment)
    write_atomic(environment.folder / "ready", f"{VERSION}\n")


def make_venv(environment: Environment) -> None:
    """An empty virtual environment in place of whatever a broken attempt left."""
    made = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(environment.folder / "env")], capture_output=True, text=True
    )
    if made.returncode:
        said = last_line(made.stdout + made.stderr)
        fix = "Install Python's venv module (on Debian: apt-get install python3-venv)."
        raise InputError(f"no environment could be made: {said}", where=environment.folder, fix=fix)


def install(environment: Environment) -> None:
    """pip with a bar that counts libraries; its whole output is kept in install.log."""
    command = [str(environment.python), "-m", "pip", "install", "--progress-bar=off", "--disable-pip-version-check"]
    command += ["--constraint", str(PINS), f"label-studio=={VERSION}"]
    total = len(PINS.read_text(encoding="utf-8").splitlines())
    log = environment.folder / "install.log"
    seen: deque[str] = deque(maxlen=1)
    with (
        log.open("w", encoding="utf-8") as written,
        tqdm(total=total, unit="library", desc="fetching") as bar,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            written.write(line)
            seen.append(line.strip())
            bar.update(line.startswith(("Collecting ", "Processing ")) and bar.n < total)
            if line.startswith("Installing "):
                bar.set_description("installing")
                bar.update(total - bar.n)
    if process.returncode:
        fix = f"Check the network and the disk, then run the command again; all that pip said is in {log}."
        raise InputError(f"pip could not install Label Studio: {' '.join(seen)}", fix=fix)


def migrate(environment: Environment) -> None:
    """`label-studio version` migrates its data folder and leaves no user in it: that database is the one to copy."""
    with tqdm(total=1, desc="preparing its database", bar_format="{desc} {elapsed}"), scratch(environment) as folder:
        variables = clean_variables(folder)
        command = [str(environment.program), "version"]
        tried = subprocess.run(
            command, env=variables, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        database = folder / "label_studio.sqlite3"
        if tried.returncode or not database.exists():
            said = last_line(tried.stdout + tried.stderr)
            raise InputError(f"Label Studio does not run: {said}", where=environment.program, fix="See install.log.")
        write_atomic(environment.database, database.read_bytes())


@contextmanager
def scratch(environment: Environment) -> Iterator[Path]:
    """A folder for one migration; it is gone afterwards."""
    folder = environment.folder / "migration"
    with replaced_folder(folder) as beside:
        yield beside
    shutil.rmtree(folder, ignore_errors=True)


def clean_variables(folder: Path) -> dict[str, str]:
    """Environment variables from scratch, for a Label Studio that keeps everything in `folder`.

    It reads bare names too (DEBUG, HOST, PORT, CI, USERNAME, PASSWORD, DATABASE_NAME ...), and any of them that the
    caller happens to have would change its settings.
    """
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TMPDIR", "TZ") if name in os.environ}
    ours = QUIET | {"BASE_DATA_DIR": str(folder)}
    settings = {f"LABEL_STUDIO_{name}": value for name, value in ours.items()}
    return kept | SHUT | settings | {"HOME": str(folder), "PYTHONUNBUFFERED": "1"}


def last_line(text: str) -> str:
    """What a program said last, for an error of one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
