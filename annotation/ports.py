"""Ports of this machine: which are free, and who has the others."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import psutil

from data.errors import InputError

HOST = "127.0.0.1"
USUAL = 8080  # where Label Studio's own documentation has it
TRIED = 20  # ports from USUAL on, before the system is asked for any


def candidates(asked: int | None, last: int | None) -> Iterator[int]:
    """Free ports, the best first. Raises InputError if the one that was asked for is taken.

    asked: 0 for any. last: the one used before, which is tried first, so that people's links go on working.
    """
    if asked:
        check_free(asked)
        yield asked
        return
    wishes = [last] if last else []
    wishes += range(USUAL, USUAL + TRIED) if asked is None else []
    yield from (port for port in dict.fromkeys(wishes) if is_free(port))
    while True:
        yield any_free()


def check_free(port: int) -> None:
    """Raise InputError if somebody listens on `port`."""
    if not is_free(port):
        fix = "Leave out --port to have the next free one, or stop that program."
        raise InputError(f"port {port} is taken by {owner(port)}", where="--port", fix=fix)


def is_free(port: int) -> bool:
    """Nobody answers on `port`, and this user may listen on it."""
    with closing(socket.socket()) as asked, closing(socket.socket()) as bound:
        if asked.connect_ex((HOST, port)) == 0:
            return False
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the pauses after closed connections do not count
        try:
            bound.bind((HOST, port))
        except OSError:
            return False
    return True


def any_free() -> int:
    with closing(socket.socket()) as bound:
        bound.bind((HOST, 0))
        return int(bound.getsockname()[1])


def owner(port: int) -> str:
    """Who listens on `port`, as far as this user may see."""
    try:
        listening = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
        pids = [each.pid for each in listening if each.laddr and each.laddr[1] == port and each.pid]
        return f"{psutil.Process(pids[0]).name()} (process {pids[0]})" if pids else "another program"
    except psutil.Error:
        return "another program"


def listened_to(pid: int) -> int | None:
    """The port on which a process listens; None if there is none yet."""
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return None
    return next((each.laddr[1] for each in connections if each.laddr and each.status == psutil.CONN_LISTEN), None)
