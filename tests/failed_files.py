"""Print the files of the servers tier in which something failed last; all of it if that is not known."""

import json
from pathlib import Path

TIER = Path("tests/servers")
FAILED = Path(".pytest_cache/servers/v/cache/lastfailed")


def files(failed: Path = FAILED) -> list[str]:
    """Without a file a run broke off before any test."""
    known = json.loads(failed.read_text(encoding="utf-8")) if failed.exists() else {}
    return sorted({name.split("::")[0] for name in known}) or [str(TIER)]


if __name__ == "__main__":
    print(*files())
