"""On the PYTHONPATH of the servers of the tests.

EGRESS_LOG: every look-up or connection that would leave this machine is noted in this file, and refused.
NO_FSYNC: the database is not waited for until it is on the disk; only a power cut could tell the difference.
"""

import os
import sqlite3.dbapi2 as sqlite
import sys
from typing import Any

LOG = os.environ.get("EGRESS_LOG")
HERE = ("127.", "::1", "localhost", "0.0.0.0", "::")


def refuse(event: str, args: tuple[object, ...]) -> None:
    if event == "socket.getaddrinfo":
        host = args[0]
    elif event == "socket.connect" and isinstance(args[1], tuple):
        host = args[1][0]
    else:
        return
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host or "localhost")
    if not name.startswith(HERE):
        with open(str(LOG), "a") as file:
            file.write(f"{event} {name}\n")
        raise OSError(f"{name} is outside")


def connect(*args: Any, **options: Any) -> sqlite.Connection:
    connection = waiting(*args, **options)
    connection.execute("PRAGMA synchronous = OFF")
    return connection


if LOG:
    sys.addaudithook(refuse)
if os.environ.get("NO_FSYNC"):
    waiting, sqlite.connect = sqlite.connect, connect
