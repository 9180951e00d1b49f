"""The settings file, lamplighter.toml: which file a command reads, and what is wrong with it.

The processes of a machine share one file, so a name in it must be a setting of at least one of them.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import click
from msgspec import Struct

from schemas.settings_loader import (
    RenamedSetting,
    SettingsInvalid,
    describe_fault,
    load_settings,
    renamed_settings,
    unknown_settings,
)

T = TypeVar("T")
# Names of settings that earlier releases had and this one does not read, with the reason. A file that still has them is
# read, with a warning: an upgrade must not stop an installation.
RETIRED_SETTINGS: Mapping[str, str] = {}

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


@cache
def settings_types() -> tuple[type[Struct], ...]:
    """Return the settings of all processes that share the file.

    A process imports the others' settings only where its own do not explain a file: a runner would need a tenth of its
    memory for modules of the edge.
    """
    from edge.settings import EdgeSettings  # noqa: PLC0415 - see above
    from lamplighter.cli.relay_client import RelaySettings  # noqa: PLC0415 - see above
    from runner.settings import RunnerSettings  # noqa: PLC0415 - see above

    return EdgeSettings, RunnerSettings, RelaySettings


class SettingsFile(NamedTuple):
    """A settings file and its text, which is empty if the default file does not exist."""

    path: Path
    text: str

    def load(self, kind: type[T], environ: Mapping[str, str]) -> T:
        """Return the settings of one process. Raises SettingsInvalid, also for a name that is no setting."""
        settings = load_settings(kind, self.text, environ, str(self.path))
        unknown = self.unknown_names() if unknown_settings((kind,), self.text, str(self.path)) else []
        if unknown:
            more = f" ({len(unknown) - 1} more: `lamplighter config check`)" if len(unknown) > 1 else ""
            raise SettingsInvalid(f"{unknown[0]}{more}")
        return settings

    def unknown_names(self) -> list[str]:
        """Return a line for each name in the file that no process reads, and that no earlier release read."""
        faults = unknown_settings(settings_types(), self.text, str(self.path))
        return [describe_fault(fault, {}, str(self.path)) for fault in faults if fault.name not in RETIRED_SETTINGS]

    def retired_names(self) -> list[str]:
        """Return the names in the file that only earlier releases read."""
        if not RETIRED_SETTINGS:
            return []
        names = [fault.name for fault in unknown_settings(settings_types(), self.text, str(self.path))]
        return [name for name in names if name in RETIRED_SETTINGS]

    def renamed(self, kinds: Iterable[type], environ: Mapping[str, str]) -> list[RenamedSetting]:
        """Return the settings that are given under their name of the last release."""
        return renamed_settings(kinds, self.text, environ, str(self.path))


def read_settings_file(path: Path) -> SettingsFile:
    """Return the file. Only the default file may be missing. Raises SettingsInvalid."""
    if path == DEFAULT_CONFIG and not path.exists():
        return SettingsFile(path, "")
    try:
        return SettingsFile(path, path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsInvalid(
            f"the settings file {path} cannot be read ({error.strerror}): correct --config or LAMPLIGHTER_CONFIG"
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsInvalid(f"{path} is not valid TOML: it is not UTF-8 text ({error.reason}): correct it") from error
