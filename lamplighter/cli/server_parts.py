"""The command line's only imports from `lamplighter-server`, which need not be installed.

In a checkout the server is always there. deploy/wheels.py moves its modules, and rewrites the imports below.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from lamplighter.cli.language import say

INSTALL_HINT = "pip install lamplighter-server"
SERVER_PACKAGE = "lamplighter_server"


def load_command(name: str, module: str, attribute: str) -> click.Command:
    """Return a command of the server, or one that says how to install it."""
    server = _import_server_commands()
    if server is None:
        return _missing_command(name)
    command: click.Command = getattr(server.load(module), attribute)
    return command


def check_machine(data: Path) -> Iterable[Any]:
    """Return what `doctor` finds out about this machine as a host of jobs, which it is not without the server.

    `data`: the data folder of `up`.
    """
    server = _import_server_commands()
    return () if server is None else server.load("machine_checks").check_machine(data)


def is_installed() -> bool:
    """Return whether the server's commands are there."""
    return _import_server_commands() is not None


def _import_server_commands() -> ModuleType | None:
    """Return `server_commands`, or None if the distribution is not installed."""
    try:
        from lamplighter.cli import server_commands  # noqa: PLC0415 - the client works without it
    except ModuleNotFoundError as error:
        if error.name != SERVER_PACKAGE:
            raise
        return None
    return server_commands


def _missing_command(name: str) -> click.Command:
    def explain() -> None:
        click.echo(f"lamplighter: {say(f'the command {name} is in lamplighter-server: {INSTALL_HINT}')}", err=True)
        sys.exit(2)

    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(name, callback=explain, context_settings=anything, add_help_option=False)
