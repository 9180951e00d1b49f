"""Which installation is meant: the data folder of an `up`, running or not, or the broker that a settings file names."""

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from msgspec import Struct

from bus.port import Unreachable
from bus.server import Server, serving
from bus.settings import BrokerSettings
from edge.settings import EdgeSettings
from edge.store.opening import StoreSettings
from lamplighter.cli.backup_file import Unusable
from lamplighter.cli.installation import BROKER_FILE, KEYS_FILE, alone
from lamplighter.cli.logs import hush
from lamplighter.cli.processes import read_settings
from lamplighter.cli.session import DATA, FAILED, REFUSED, UNREACHABLE, told

F = TypeVar("F", bound=Callable[..., Any])
CERTIFICATES = "tls/*"


class Refusal(Exception):
    """It will not be done as things are; the message says why, and what to do."""


class Place(Struct, frozen=True):
    """An installation: its broker, its store, and the folder of what is a file (`patterns` of those in a backup).

    `assets`: the edge's data folder, for a store that is a folder in it.
    """

    broker: BrokerSettings
    store: StoreSettings
    assets: Path
    data: Path
    patterns: tuple[str, ...]


class Chosen(Struct, frozen=True):
    """What the command line names: an `up` by its data folder, anything else by its settings."""

    data: Path
    config: Path | None

    @asynccontextmanager
    async def opened(self, *, stopped: bool) -> AsyncIterator[Place]:
        """The installation with its broker up. `stopped`: nobody else may be at work on it. Raises Refusal, BusError.

        What runs with an `up` goes on; where that does not run, its broker runs as long as the block.
        """
        if self.config is not None:
            settings = read_settings(EdgeSettings, self.config, "warning", "text")
            yield Place(settings.broker, settings.store, settings.data, settings.data, (CERTIFICATES,))
            return
        if not stopped and not (self.data / "broker").exists():
            raise Refusal(f"there is nothing to back up in {self.data}: name the folder of an `up`, or give --config")
        with alone(self.data) as free:
            if not free:
                if stopped:
                    raise Refusal(f"an `up` serves {self.data}: stop it first, or choose another --data")
                yield self._of_up(_left_by_up(self.data))
                return
            async with serving(Server(self.data / "broker")) as server:
                password = server.passwords["edge"]
                yield self._of_up(BrokerSettings(url=server.url, user="edge", password=password))

    def _of_up(self, broker: BrokerSettings) -> Place:
        patterns = (KEYS_FILE, "installation", CERTIFICATES)
        return Place(broker, StoreSettings(), self.data / "edge", self.data, patterns)


def _left_by_up(data: Path) -> BrokerSettings:
    try:
        return msgspec.json.decode((data / BROKER_FILE).read_bytes(), type=BrokerSettings)
    except (OSError, msgspec.DecodeError) as error:
        raise Unreachable(f"an `up` serves {data} and has not said yet where its broker is: try again") from error


def place_options(command: F) -> F:
    """`--data` and `--config`, as `chosen` of the command."""
    command = click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False, exists=True),
        help="The edge's lamplighter.toml, where broker and edge were not started by `up`.",
    )(command)
    return click.option(
        "--data", type=click.Path(path_type=Path, file_okay=False), default=DATA, show_default=True, help="Of an `up`."
    )(command)


def chosen(data: Path, config: Path | None) -> Chosen:
    """What was named."""
    hush()
    return Chosen(data.resolve(), config)


CODES: tuple[tuple[type[Exception], int], ...] = (
    (Unreachable, UNREACHABLE),
    (Refusal, REFUSED),
    (Unusable, REFUSED),
    (Exception, FAILED),
)


def leave(error: Exception, *, as_json: bool) -> None:
    """Say what went wrong in one line, and end with its exit code."""
    said = told(error)
    if as_json:
        sys.stderr.write(msgspec.json.encode({"error": said, "kind": type(error).__name__}).decode() + os.linesep)
    else:
        click.echo(f"lamplighter: {said}", err=True)
    sys.exit(next(code for kind, code in CODES if isinstance(error, kind)))
