"""Look what is wrong with the server, its login, its database and its pictures, and say what to do.

Exit code 0: nothing is wrong. 1: something is.
"""

from __future__ import annotations

from pathlib import Path

from annotation.commands.push import FOLDER
from data.options import Options as Flags

WRONG = 1


class Options(Flags):
    """What `annotate.py doctor` can be told."""

    url: str | None = None
    """look at an existing Label Studio instead of the one that `start` started"""
    token_file: Path | None = None
    """file with the access token for --url; default: the variable LABEL_STUDIO_API_KEY"""
    server: Path = FOLDER
    """folder of the server"""


def run(options: Options) -> int:
    """Print every finding."""
    from annotation.doctor import examine

    findings = examine(options.server, options.url, options.token_file)
    print("\n".join(map(str, findings)))
    return WRONG if any(finding.fix for finding in findings) else 0
