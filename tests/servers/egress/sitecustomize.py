"""On the server's PYTHONPATH: every look-up or connection that would leave this machine is noted and refused."""

import os
import sys

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


if LOG:
    sys.addaudithook(refuse)
