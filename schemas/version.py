"""The version of this project. Every other place reads it from here: the wheels, the command line, the API.

Edge and runner of neighbouring releases work together: fields are only added, and renamed ones are read under both
names for one release. Parts of the server need packages that only an extra of `lamplighter-server` installs.
"""

import importlib
from types import ModuleType

VERSION = "0.2.0"


def are_neighbours(one: str, other: str) -> bool:
    """Return whether two versions are of the same minor release or of adjacent ones.

    Versions of two major releases are not neighbours. A text that is no version is taken for a neighbour.
    """
    try:
        (major, minor), (other_major, other_minor) = (map(int, text.split(".")[:2]) for text in (one, other))
    except ValueError:
        return True
    return major == other_major and abs(minor - other_minor) <= 1


def import_extra(module: str, extra: str, what: str, failure: type[Exception]) -> ModuleType:
    """Import a module that needs an extra of the server. Raises `failure`, which says what to install.

    `what`: the setting that needs the module, as the first words of the message.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise failure(
            f"{what} needs {error.name}, which is not installed: pip install 'lamplighter-server[{extra}]'"
        ) from error
