"""Heavy libraries in less time: without the garbage collector, and without what they load for other people's uses."""

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def loading() -> Iterator[None]:
    """Import inside: modules are no garbage, and looking for it among them takes a sixth of the time.

    What is there at the end is not looked at again by later collections.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
            gc.freeze()


@contextmanager
def unseen(*packages: str) -> Iterator[None]:
    """Inside, these packages seem not to be installed, to libraries that ask; afterwards all is as it was.

    A library asks once and remembers: what it could do with the package is switched off in this process.
    """
    before = {name: sys.modules[name] for name in packages if name in sys.modules}
    sys.modules.update(dict.fromkeys(packages))  # pyright: ignore[reportArgumentType, reportCallIssue]
    try:
        yield
    finally:
        for name in packages:
            del sys.modules[name]
        sys.modules.update(before)


class Deferred(ModuleType):
    """Stands in for a module in sys.modules, and loads it when it is first asked for something.

    importlib.util.LazyLoader would load at the second `import` already, which asks for `__spec__`.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # `inspect` asks every module for its file
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def defer(module: str) -> None:
    """Load a module only when it is used, whoever imports it."""
    if module not in sys.modules:
        sys.modules[module] = Deferred(module)
