"""Start Label Studio on this machine and, with --images, push a folder of pictures to it; else say where people work.

The first start makes an environment for it (1 to 3 minutes, 1 GB); after that it takes a few seconds.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from annotation.commands.push import FOLDER, Pictures
from data.errors import InputError

if TYPE_CHECKING:
    from annotation.client import Client


class Options(Pictures):
    """What `annotate.py start` can be told."""

    port: int | None = Field(default=None, ge=1, le=65535)
    """port on 127.0.0.1; default: the last one, else the next free one from 8080 on"""
    server: Path = FOLDER
    """folder for the server's database, login and log"""


def run(options: Options) -> int:
    """Start or find the server, say how to get in, and push."""
    from annotation import server as servers

    running = servers.find(options.server)
    begun = time.monotonic()
    server = servers.start(options.server, port=options.port)
    how = "runs already" if running else f"started in {time.monotonic() - begun:.1f} s"
    print(f"{'server':<11}{server.url}  ({how}, process {server.pid})")
    print(f"{'log in':<11}{server.login.user}, password in {options.server / servers.LOGIN}", flush=True)
    from annotation.client import Client
    from annotation.commands.push import push_pictures, settle

    with Client(server.url, server.token, own=server) as client:
        if options.images is not None:
            push_pictures(client, settle(options), options)
        else:
            print("\n".join(links(client)))
    return 0


def links(client: Client) -> list[str]:
    """A line for each screen of the projects that live on this server, with the address to give to annotators."""
    from annotation import project
    from annotation.commands.push import stream

    lines: list[str] = []
    known = [found for found in map(project.load, project.names()) if found.server == project.OWN]
    for found in known:
        try:
            project.open_project(client, found)
        except InputError as error:
            lines.append(f"{'warning':<11}{error}")
        else:
            lines += [f"{found.title(screen):<30} {stream(client.url, number)}" for screen, number in found.in_order()]
    return lines or ["next: python annotation/annotate.py push --images FOLDER"]
