"""The settings of `up`: lamplighter.toml, variables and options together, and what `up` decides itself.

`up` reads the file that every other command reads, so declared hosts, limits and quotas count. An option of the command
line replaces a setting. What `up` needs to decide itself must not be set to something else: neither value could win
without a surprise.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from edge.settings import EdgeSettings
from lamplighter.cli.settings_file import SettingsFile
from runner.settings import RunnerSettings
from schemas.environment import is_loopback
from schemas.settings_faults import show
from schemas.settings_loader import SettingsInvalid, find_variable, merge_given

OPTION_SETTINGS: Mapping[str, str] = {
    "--port": "port",
    "--data": "data",
    "--engine": "engine",
    "--endpoints": "endpoints",
    "--slots": "slots",
    "--grace": "grace_s",
    "--easy-port": "heygem.keyless_port",
}
_OWN_PROCESSES = "remove it; `lamplighter edge` and `lamplighter runner` work with a broker of your own"
_PUBLIC = "remove it; `up` opens itself to other machines with --public NAME"
# Settings that `up` decides itself, and what to do instead.
REFUSED_SETTINGS: Mapping[str, str] = {
    "bind": _PUBLIC,
    "fd": _OWN_PROCESSES,
    "broker": _OWN_PROCESSES,
    "edge": _OWN_PROCESSES,
    "installation": _OWN_PROCESSES,
    "enrollment": _OWN_PROCESSES,
    "public.listen": _PUBLIC,
    "public.url": _PUBLIC,
    "public.broker": _PUBLIC,
    "public.cert": _PUBLIC,
    "public.key": _PUBLIC,
    "public.broker_cert": _PUBLIC,
}


class UpSettings(NamedTuple):
    """The settings of the two processes, and the names of those that the file or a variable sets."""

    edge: EdgeSettings
    runner: RunnerSettings
    given: Mapping[str, Any]

    def is_given(self, name: str) -> bool:
        """Return whether the file or a variable sets `name`."""
        return _find(self.given, name) is not None


def load_up_settings(file: SettingsFile, environ: Mapping[str, str]) -> UpSettings:
    """Return the settings for `up`. Raises SettingsInvalid, also for what `up` decides itself."""
    kinds = (EdgeSettings, RunnerSettings)
    given: dict[str, Any] = {}
    for kind in kinds:
        given |= merge_given(kind, file.text, environ, str(file.path))
    for line in _contradictions(given, file, environ):
        raise SettingsInvalid(line)
    return UpSettings(file.load(EdgeSettings, environ), file.load(RunnerSettings, environ), given)


def _contradictions(given: Mapping[str, Any], file: SettingsFile, environ: Mapping[str, str]) -> Iterator[str]:
    for name, instead in REFUSED_SETTINGS.items():
        value = _find(given, name)
        if value is None or (name == "bind" and is_loopback(str(value))):
            continue
        first = f"{name}.{next(iter(value))}" if isinstance(value, dict) and value else name
        where = find_variable(first, environ) or file.path
        yield f"{first} is {show(value, isinstance(value, dict))} in {where}, but `up` decides it: {instead}"


def _find(given: Mapping[str, Any], name: str) -> Any:
    branch: Any = given
    for part in name.split("."):
        if not isinstance(branch, dict) or part not in branch:
            return None
        branch = branch[part]
    return branch


def config_variable(file: SettingsFile) -> str:
    """Return the file that edge and runner read: an absolute path, or the null device without one."""
    return str(file.path.resolve()) if file.path.exists() else os.devnull
