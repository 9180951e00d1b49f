"""The parts that commands which start a process share: settings, logging, limits, one-line errors, reports to systemd.

Settings come from lamplighter.toml and the environment. The processes of a machine share one file, so a name in it must
be a setting of at least one of them. Logs go to stderr, one line for each event.

A process reports to the service manager that started it (sd_notify(3)): ready, alive, stopping. systemd names a socket
in NOTIFY_SOCKET. Without that variable, as in a terminal, nothing is sent.
"""

import os
import resource
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import anyio
import click
import structlog
from msgspec import Struct

from lamplighter.cli.context import USAGE, error_line
from lamplighter.cli.display import escape_controls
from lamplighter.cli.language import say
from lamplighter.cli.log_output import Redactor, configure_logging, secrets_in
from lamplighter.cli.server_commands import read_settings_text
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

_log = structlog.get_logger()


@cache
def settings_types() -> tuple[type[Struct], ...]:
    """Return the settings of all processes that share the file.

    A process imports the others' settings only where its own do not explain a file: a runner would need a tenth of its
    memory for modules of the edge.
    """
    from edge.settings import EdgeSettings  # noqa: PLC0415 - see above
    from lamplighter.cli.relay import RelaySettings  # noqa: PLC0415 - see above
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
    return SettingsFile(path, read_settings_text(path))


SOCKET_VARIABLE = "NOTIFY_SOCKET"
WATCHDOG_VARIABLES = ("WATCHDOG_USEC", "WATCHDOG_PID")
PINGS_PER_TIMEOUT = 3  # sd_watchdog_enabled(3) asks for two; one may come late


async def _always_alive() -> bool:
    return True


class ServiceNotifier:
    """The connection to the service manager. `watchdog_s`: it ends a process that did not ping for so long."""

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        self._address = address
        self._watchdog_s = watchdog_s

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Self:
        """Return the notifier that `environ` describes. Removes its variables: a child must not report for us."""
        address = environ.pop(SOCKET_VARIABLE, None)
        usec, pid = (environ.pop(name, "") for name in WATCHDOG_VARIABLES)
        is_for_us = usec.isdecimal() and pid in {"", str(os.getpid())}
        return cls(address, int(usec) / 1e6 if is_for_us else None)

    def ready(self) -> None:
        """Report that the start is complete."""
        self._send("READY=1")

    def stopping(self, timeout_s: float) -> None:
        """Report that the process ends, within `timeout_s` from now, whatever TimeoutStopSec says."""
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(timeout_s * 1e6)}")

    @asynccontextmanager
    async def pinging(self, is_alive: Callable[[], Awaitable[bool]] = _always_alive) -> AsyncIterator[None]:
        """Ping the watchdog from this event loop during the block, each time that `is_alive` returns True."""
        async with anyio.create_task_group() as tasks:
            if self._watchdog_s is not None:
                tasks.start_soon(self._ping, self._watchdog_s / PINGS_PER_TIMEOUT, is_alive)
            yield
            tasks.cancel_scope.cancel()

    async def _ping(self, interval_s: float, is_alive: Callable[[], Awaitable[bool]]) -> None:
        while True:
            if await is_alive():
                self._send("WATCHDOG=1")
            await anyio.sleep(interval_s)

    def _send(self, state: str) -> None:
        if not self._address:
            return
        # A name that starts with @ is in the abstract namespace (unix(7)).
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)  # a manager that does not read must not stop the event loop
            sender.sendto(state.encode(), address)


@contextmanager
def exit_on_error(exits: Mapping[type[Exception], int]) -> Iterator[None]:
    """Exit with the code in `exits` and a one-line error, also if the error came through task groups."""
    error: BaseException | None = None
    try:
        yield
    except* tuple(exits) as group:
        error = _first_error(group)
    if error is not None:  # after the handler: Python 3.11.2 puts what a handler of a group raises into a group
        line = Redactor().redact(escape_controls(say(error_line(error))))
        click.echo(f"lamplighter: {line}", err=True)
        sys.exit(next(code for kind, code in exits.items() if isinstance(error, kind)))


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    inner = group.exceptions[0]
    return _first_error(inner) if isinstance(inner, BaseExceptionGroup) else inner


level_option = click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Lowest level to log [info]."
)
format_option = click.option("--log-format", type=click.Choice(["json", "text"]), help="Format of the log [text].")


def raise_open_file_limit() -> None:
    """Raise the soft limit of open files to the hard one. The usual 1,024 would also limit the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # the hard limit is above the limit of the kernel
        _log.warning("file_limit_raise_failed", soft=soft, hard=hard, error=str(error))


def disable_core_dumps() -> None:
    """Keep a crash from writing the memory of this process, which holds keys and secrets of jobs, to the disk."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def read_settings(
    kind: type[T], config: Path, log_level: str | None, log_format: str | None, options: Mapping[str, str | None] = {}
) -> T:
    """Return the settings of this process, and configure logging by them. Exit with code 2 if they are invalid.

    `options`: the values of more options, by the variable that each replaces.
    """
    chosen = {"LAMPLIGHTER_LOG_LEVEL": log_level, "LAMPLIGHTER_LOG_FORMAT": log_format, **options}
    environ = os.environ | {name: value for name, value in chosen.items() if value is not None}
    with exit_on_error({SettingsInvalid: USAGE}):
        file = read_settings_file(config)
        settings = file.load(kind, environ)
    logged: Any = settings
    configure_logging(logged.log_level, logged.log_format, secrets_in(logged))
    warn_of_old_names(file, (kind,), environ)
    return settings


def warn_of_old_names(file: SettingsFile, kinds: Iterable[type], environ: Mapping[str, str]) -> None:
    """Log the settings whose names will stop working, or have stopped."""
    for old, new in file.renamed(kinds, environ):
        _log.warning("setting_renamed", name=old, new_name=new, fix="use the new name: the next release drops the old")
    for name in file.retired_names():
        _log.warning("setting_retired", name=name, file=str(file.path), reason=RETIRED_SETTINGS[name], fix="remove it")
