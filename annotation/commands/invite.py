"""Print the link with which another annotator makes an account. Nobody can make one without it."""

from __future__ import annotations

from pathlib import Path

from annotation.commands.push import FOLDER
from data.options import Options as Flags


class Options(Flags):
    """What `annotate.py invite` can be told."""

    server: Path = FOLDER
    """folder of the server"""
    renew: bool = False
    """make a new link; the old one stops working"""


def run(options: Options) -> int:
    """Print the link, and how to reach it from another machine."""
    from annotation.client import connect

    with connect(folder=options.server) as client:
        own = client.own
        assert own is not None, "connect without an address gives the local server"
        if options.renew:
            client.insist(lambda sdk: sdk.organizations.reset_token())
        invite = client.read(lambda sdk: sdk.organizations.invites.get_invite_link())
    print(f"{own.url}{invite.invite_url}")
    print(f"from another machine: ssh -N -L {own.port}:127.0.0.1:{own.port} THIS_MACHINE, then open the link there")
    return 0
