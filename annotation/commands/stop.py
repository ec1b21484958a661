"""Stop the server, and leave a copy of its database and a JSON export of every project in captions/.server/backups.

Nothing is lost by stopping: the next start shows everything as it was.
"""

from __future__ import annotations

from pathlib import Path

from annotation.commands.push import FOLDER
from data.options import Options as Flags


class Options(Flags):
    """What `annotate.py stop` can be told."""

    server: Path = FOLDER
    """folder of the server"""
    backup: bool = True
    """leave copies"""


def run(options: Options) -> int:
    """Copy, then stop."""
    from annotation import backup, server

    running = server.find(options.server)
    if running is None and not (options.server / server.DATABASE).exists():
        print(f"no server was ever started in {options.server}")
        return 0
    if options.backup:
        print(f"copies in {backup.copy(options.server, running)}")
    stopped = server.stop(options.server)
    print("stopped; next: python annotation/annotate.py start" if stopped else "the server was not running")
    return 0
