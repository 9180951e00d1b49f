"""The server's end of `server_parts`: how its commands are imported, under whatever name their package has."""

import importlib
from types import ModuleType


def load(name: str) -> ModuleType:
    """Return the module `name` beside this one."""
    return importlib.import_module(f"{__package__}.{name}")
