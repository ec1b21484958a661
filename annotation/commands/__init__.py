"""The sub-commands of annotate.py: a module each, with `Options`, `run(options)` and the help as its docstring.

To add one: the module, and its line here. A module is loaded only when its command is given.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from data.errors import choose
from data.options import parse

COMMANDS = {
    "start": "start the server, and push a folder of pictures to it",
    "stop": "stop the server, and leave a copy of everything",
    "doctor": "look what is wrong, and say what to do",
    "invite": "print the link with which another annotator makes an account",
    "push": "put pictures and drafts on the server; what is there already is left alone",
    "pull": "fetch what people wrote",
    "draft": "make draft captions, for people to correct instead of writing",
    "import": "bring in captions that were written elsewhere, as drafts",
    "status": "how far people are, how fast, and how long the rest will take",
    "lint": "look over the captions: length, words, likeness",
    "fix": "find and replace over all captions, with a preview and an undo",
    "export": "make the data set that finetune.py trains on",
}


def dispatch(argv: Sequence[str]) -> int:
    """Run a sub-command; without one, say which there are. Raises InputError for an unknown one."""
    if not argv or argv[0] in {"-h", "--help", "help"}:
        print(overview())
        return 0
    name = choose(argv[0], COMMANDS, what="command", where="annotate.py")
    module = importlib.import_module(f"{__name__}.{module_of(name)}")
    aliases = getattr(module, "ALIASES", {})
    options = parse(
        module.Options, argv[1:], prog=f"annotate.py {name}", description=module.__doc__ or "", aliases=aliases
    )
    return int(module.run(options))


def module_of(name: str) -> str:
    """`import` is a word of Python: its module is import_.py."""
    return "import_" if name == "import" else name


def overview() -> str:
    """What --help prints."""
    lines = [f"  {name:<8} {what}" for name, what in COMMANDS.items()]
    head = "usage: annotate.py COMMAND [--help | options]\n\nPictures to captions with Label Studio.\n"
    return "\n".join([head, *lines, "", "first: python annotation/annotate.py start --images FOLDER"])
