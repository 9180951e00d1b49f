"""Shared by the server's commands, and quick to import: how they are imported, and the settings file that they read.

`load` is the server's end of `server_parts`; it works under whatever name the package has. `health` runs every few
seconds, so nothing here imports the log or a library for HTTP, as `process_setup` does.
"""

import gc
import importlib
from pathlib import Path
from types import ModuleType

import click

from schemas.settings_loader import SettingsInvalid

DEFAULT_CONFIG = Path("lamplighter.toml")
CONFIG_VARIABLE = "LAMPLIGHTER_CONFIG"
config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_CONFIG,
    show_default=True,
    envvar=CONFIG_VARIABLE,
    help="The settings file. LAMPLIGHTER_* variables override it.",
)


def load(name: str) -> ModuleType:
    """Return the module `name` beside this one.

    Imports make many objects and no garbage: searching for some would take a tenth of the time of the edge's.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(f"{__package__}.{name}")
    finally:
        if was_enabled:
            gc.enable()


def read_settings_text(path: Path) -> str:
    """Return the text of the settings file. Only the default file may be missing. Raises SettingsInvalid."""
    if path == DEFAULT_CONFIG and not path.exists():
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsInvalid(
            f"the settings file {path} cannot be read ({error.strerror}): correct --config or LAMPLIGHTER_CONFIG"
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsInvalid(f"{path} is not valid TOML: it is not UTF-8 text ({error.reason}): correct it") from error
