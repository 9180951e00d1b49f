"""The installation that a backup is of: the data folder of an `up`, or the broker that a settings file names."""

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from msgspec import Struct

from bus.interface import BrokerUnreachable
from bus.server.process import NatsServer, run_server
from bus.settings import BrokerSettings
from edge.settings import EdgeSettings
from edge.store.directory import StoreSettings
from lamplighter.cli.backup_archive import BackupUnusable, KeyFileUnusable
from lamplighter.cli.context import DEFAULT_DATA_DIR, FAILED, REFUSED, UNREACHABLE, USAGE, error_line
from lamplighter.cli.language import say
from lamplighter.cli.log_output import silence_tls_warning
from lamplighter.cli.process_setup import read_settings
from lamplighter.cli.supervisor import BROKER_FILE, KEYS_FILE, try_lock

F = TypeVar("F", bound=Callable[..., Any])
CERTIFICATE_PATTERN = "tls/*"


class BackupRefused(Exception):
    """The backup or restore cannot be done in this state. The message says why, and what to do."""


class BackupExists(Exception):
    """The file for a new backup exists already."""


class BackupTarget(Struct, frozen=True):
    """An installation: its broker, store and data folder. `patterns` are the files that a backup takes from it.

    `assets` is the edge's data folder, for a store that is a folder in it.
    """

    broker: BrokerSettings
    store: StoreSettings
    assets: Path
    data: Path
    patterns: tuple[str, ...]


class TargetSelection(Struct, frozen=True):
    """The options `--data` and `--config`: an `up` by its data folder, anything else by its settings file."""

    data: Path
    config: Path | None

    @asynccontextmanager
    async def open_target(self, *, stopped: bool) -> AsyncIterator[BackupTarget]:
        """Yield the installation with its broker running. With `stopped`, no `up` may serve it.

        A running `up` continues. If none runs, its broker runs for the block. Raises BackupRefused and BusError.
        """
        if self.config is not None:
            settings = read_settings(EdgeSettings, self.config, "warning", "text")
            yield BackupTarget(settings.broker, settings.store, settings.data, settings.data, (CERTIFICATE_PATTERN,))
            return
        if not stopped and not (self.data / "broker").exists():
            raise BackupRefused(
                f"there is nothing to back up in {self.data}: name the folder of an `up`, or give --config"
            )
        with try_lock(self.data) as is_locked:
            if not is_locked:
                if stopped:
                    raise BackupRefused(f"an `up` serves {self.data}: stop it first, or choose another --data")
                yield self._local_target(_read_broker_file(self.data))
                return
            async with run_server(NatsServer(self.data / "broker")) as server:
                password = server.passwords["edge"]
                yield self._local_target(BrokerSettings(url=server.url, user="edge", password=password))

    def _local_target(self, broker: BrokerSettings) -> BackupTarget:
        patterns = (KEYS_FILE, "installation", CERTIFICATE_PATTERN)
        return BackupTarget(broker, StoreSettings(), self.data / "edge", self.data, patterns)


def _read_broker_file(data: Path) -> BrokerSettings:
    try:
        return msgspec.json.decode((data / BROKER_FILE).read_bytes(), type=BrokerSettings)
    except (OSError, msgspec.DecodeError) as error:
        raise BrokerUnreachable(f"an `up` serves {data}, but {BROKER_FILE} is not written yet: try again") from error


def target_options(command: F) -> F:
    """Add the options `--data` and `--config` to a command."""
    command = click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False, exists=True),
        help="The edge's lamplighter.toml, if broker and edge were not started by `up`.",
    )(command)
    return click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        default=DEFAULT_DATA_DIR,
        show_default=True,
        help="Data folder of an `up`.",
    )(command)


key_file_option = click.option(
    "--key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file with the key that encrypts the backup, at least 16 characters. Keep a copy elsewhere.",
)


def select_target(data: Path, config: Path | None) -> TargetSelection:
    """Return the selection of the two options."""
    silence_tls_warning()
    return TargetSelection(data.resolve(), config)


ERROR_EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (BrokerUnreachable, UNREACHABLE),
    (BackupRefused, REFUSED),
    (BackupUnusable, REFUSED),
    (KeyFileUnusable, USAGE),
    (BackupExists, USAGE),
    (Exception, FAILED),
)


def exit_with_error(error: Exception, *, as_json: bool) -> None:
    """Print the error in one line and exit with its code."""
    text = error_line(error)
    if as_json:
        sys.stderr.write(msgspec.json.encode({"error": text, "kind": type(error).__name__}).decode() + os.linesep)
    else:
        click.echo(f"lamplighter: {say(text)}", err=True)
    sys.exit(next(code for kind, code in ERROR_EXIT_CODES if isinstance(error, kind)))
