"""The command line, `lamplighter`.

`COMMANDS` names the module of each command: a new command gets a row there. The module is imported when its command is
called, so that `--help` and the client commands need no server code. Texts are written in English and pass through
`language.say`. Their Chinese is in `texts_zh`, `help_texts_zh` and `server_texts_zh`;
tests/lamplighter/test_language.py names every text without an entry.

- Client commands (`jobs`, `hosts`, `administration`, `top`, `doctor`…) share `context`: the address of the edge,
  output, exit codes. `display` formats their output.
- `edge`, `runner` and `relay` start one process each, and share `process_setup`: settings, log, limits, reports to
  systemd. `config` checks and shows their settings.
- `install` and `uninstall` set up services of systemd: `service_units`, `service_places`.
- `up` starts broker, edge and runner: `supervisor`, `up_options`.
- Processes log through `log_output`, which removes secrets from each line.
- `try_image` is for authors of images (`new`, `try`): `runner.trial` runs the job.
- `backup` has `restore` too, and uses `backup_target` and `backup_archive`.

The commands of the server are in another distribution, `lamplighter-server` (`deploy/wheels.py` lists their modules);
only these modules may import `bus`, `edge` and `runner`, and only `server_parts` imports them. Start reading at
`context` and `jobs`.
"""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from lamplighter.cli import server_parts
from lamplighter.cli.join_token import JOIN_COMMANDS, hide_token
from lamplighter.cli.language import (
    LocalizedFormatter,
    find_language,
    lang_option,
    localize_help,
    say,
    set_language,
    show_error,
)
from schemas.version import VERSION

# Command -> its module, the name there, and what `--help` says.
SERVER_COMMANDS = {
    "up": ("up", "up", "Serve broker, edge and runner on this machine until stopped."),
    "edge": ("edge", "edge", "Serve the edge."),
    "runner": ("runner", "runner", "Run jobs on this host."),
    "relay": ("relay", "relay", "Power hosts of this network on and off when an edge asks."),
    "new": ("try_image", "new", "Make a folder with a new image."),
    "try": ("try_image", "try_", "Run one job of an image folder here, and check it."),
    "install": ("install", "install", "Set up edge, runner, relay or backups as systemd services."),
    "uninstall": ("uninstall", "uninstall", "Remove what `install` set up."),
    "health": ("health", "health", "Check whether an edge, runner or relay of this machine works."),
    "power-driver": ("power_driver", "power_driver", "Power a rented GPU box, as a program of [hosts.NAME]."),
    "config": ("config", "config", "Check the settings, and show where each came from."),
    "backup": ("backup", "backup", "Back up the installation to one file, or verify a backup."),
    "restore": ("backup", "restore", "Restore an installation from a backup."),
}
CLIENT_COMMANDS = {
    "submit": ("jobs", "submit", "Submit a job."),
    "jobs": ("jobs", "jobs", "List jobs."),
    "job": ("jobs", "job", "Show one job."),
    "watch": ("jobs", "watch_job", "Follow a job to its end."),
    "history": ("jobs", "history", "List the events of a job."),
    "logs": ("jobs", "logs", "Print a job's log."),
    "cancel": ("jobs", "cancel", "Stop a job."),
    "retry": ("jobs", "retry", "Run a job again that did not succeed."),
    "delete": ("jobs", "delete", "Remove a job that has ended."),
    "upload": ("jobs", "upload", "Upload files."),
    "assets": ("jobs", "assets", "List files, delete some."),
    "hosts": ("hosts", "hosts", "List, add and remove GPU hosts, or put one into maintenance."),
    "power": ("hosts", "power", "Keep a host on or off, or switch it automatically."),
    "usage": ("administration", "usage", "Show usage and cost."),
    "endpoints": ("hosts", "endpoints", "List the endpoints, show the fields of one, pause or resume one."),
    "console": ("administration", "console", "Print a link that opens the console in a browser, signed in."),
    "webhooks": ("administration", "webhooks", "Call a URL when jobs end: list, add, delete and test webhooks."),
    "keys": ("administration", "keys", "Create, list, rotate and revoke API keys."),
    "secrets": ("administration", "secrets", "Set, list and delete secrets for the programs of jobs."),
    "owners": ("administration", "owners", "Delete all data of an owner."),
    "audit": ("administration", "audit", "Show who did what to keys, hosts, owners, jobs and settings."),
    "notify": ("administration", "notify", "Show the conditions that hold, and test the targets of messages."),
    "top": ("top", "top", "Watch hosts and jobs."),
    "doctor": ("doctor", "doctor", "Check this installation and show how to fix it."),
}
COMMANDS = SERVER_COMMANDS | CLIENT_COMMANDS


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports a command's module when it is called."""

    def list_commands(self, _: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        if name in JOIN_COMMANDS:
            hide_token(sys.argv)  # before the imports, during which `ps` would show the token for half a second
        module, attribute, _help = COMMANDS[name]
        command: click.Command
        if name in SERVER_COMMANDS:
            command = server_parts.load_command(name, module, attribute)
        else:
            command = getattr(importlib.import_module(f"{__package__}.{module}"), attribute)
        localize_help(command)
        return command

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        is_installed = server_parts.is_installed()
        server = f"Commands of the server{'' if is_installed else f' ({server_parts.INSTALL_HINT})'}"
        for title, commands in ((server, SERVER_COMMANDS), ("Commands", CLIENT_COMMANDS)):
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_module, _attribute, text) in commands.items()])

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run the program. With `standalone_mode`, errors of click are printed in the user's language."""
        run: Callable[..., Any] = super().main  # its overloads accept no argument list
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        set_language(find_language(os.environ))
        localize_help(self)
        try:
            status = run(*args, standalone_mode=False, **extra)
        except click.ClickException as error:
            show_error(error)
            status = error.exit_code
        except click.Abort:
            click.echo(say("Aborted!"), err=True)
            status = 1
        sys.exit(status if isinstance(status, int) else 0)


click.Context.formatter_class = LocalizedFormatter


@click.command(cls=LazyGroup)
@lang_option
@click.version_option(VERSION, prog_name="lamplighter")
def main() -> None:
    """A self-hosted GPU job runner: the edge is always on, the GPU only when there is work.

    Exit codes: 0 success, 1 the job failed, 2 wrong usage or an unusable file, 3 the server cannot be reached,
    4 refused, 130 stopped by Ctrl-C.
    """
