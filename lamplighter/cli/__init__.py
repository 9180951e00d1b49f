"""The command line, `lamplighter`.

`COMMANDS` names the module of each command. The module is imported when its command is called, so that `--help` and
the client commands need no server code.

- Client commands (`jobs`, `assets`, `hosts`, `keys`, `owners`, `usage`, `top`, `doctor`…) share `context`: the address
  of the edge, output, exit codes. `display` formats their output.
- `edge`, `runner` and `relay` start one process each, and share `process_setup`.
- `install` and `uninstall` set up services of systemd: `service_units`, `service_settings`, `service_places`,
  `install_manifest`. `service_notify` is how the processes report to systemd.
- `up` starts broker, edge and runner: `data_dir`, `supervisor`, `public_access`.
- `backup` and `restore` share `backup_target` and `backup_archive`.

Only this package may import `bus`, `edge` and `runner`. Start reading at `context` and `jobs`.
"""

import importlib
import sys

import click

from lamplighter.cli.join_token import hide_token
from schemas.version import VERSION

COMMANDS = {
    "up": ("lamplighter.cli.up", "up", "Serve broker, edge and runner on this machine until stopped."),
    "edge": ("lamplighter.cli.edge", "edge", "Serve the edge."),
    "runner": ("lamplighter.cli.runner", "runner", "Run jobs on this host."),
    "relay": ("lamplighter.cli.relay", "relay", "Switch hosts of this network when an edge asks."),
    "install": ("lamplighter.cli.install", "install", "Set up edge, runner, relay or backups as systemd services."),
    "uninstall": ("lamplighter.cli.install", "uninstall", "Remove what `install` set up."),
    "submit": ("lamplighter.cli.jobs", "submit", "Submit a job."),
    "jobs": ("lamplighter.cli.jobs", "jobs", "List jobs."),
    "job": ("lamplighter.cli.jobs", "job", "Show one job."),
    "watch": ("lamplighter.cli.jobs", "watch_job", "Follow a job to its end."),
    "history": ("lamplighter.cli.jobs", "history", "List the events of a job."),
    "logs": ("lamplighter.cli.jobs", "logs", "Print a job's log."),
    "cancel": ("lamplighter.cli.jobs", "cancel", "Stop a job."),
    "retry": ("lamplighter.cli.jobs", "retry", "Run a job again that did not succeed."),
    "delete": ("lamplighter.cli.jobs", "delete", "Remove a job that has ended."),
    "upload": ("lamplighter.cli.assets", "upload", "Upload files."),
    "assets": ("lamplighter.cli.assets", "assets", "List files, delete some."),
    "hosts": ("lamplighter.cli.hosts", "hosts", "List, add and remove GPU hosts."),
    "power": ("lamplighter.cli.hosts", "power", "Keep a host on or off, or switch it automatically."),
    "usage": ("lamplighter.cli.usage", "usage", "Show usage and cost."),
    "endpoints": ("lamplighter.cli.endpoints", "endpoints", "List the endpoints, or the fields of one endpoint."),
    "keys": ("lamplighter.cli.keys", "keys", "Create, list, rotate and revoke API keys."),
    "owners": ("lamplighter.cli.owners", "owners", "Delete all data of an owner."),
    "backup": ("lamplighter.cli.backup", "backup", "Back up the installation to one file."),
    "restore": ("lamplighter.cli.restore", "restore", "Restore an installation from a backup."),
    "top": ("lamplighter.cli.top", "top", "Watch hosts and jobs."),
    "doctor": ("lamplighter.cli.doctor", "doctor", "Check this installation and show how to fix it."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports a command's module when it is called."""

    def list_commands(self, _: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        if name in {"runner", "install"}:
            hide_token(sys.argv)  # before the imports, during which `ps` would show the token for half a second
        module, attribute, _help = COMMANDS[name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_module, _attribute, text) in COMMANDS.items()])


@click.command(cls=LazyGroup)
@click.version_option(VERSION, prog_name="lamplighter")
def main() -> None:
    """A self-hosted GPU job runner: the edge is always on, the GPU only when there is work.

    Exit codes: 0 success, 1 the job failed, 2 wrong usage or an unusable file, 3 the server cannot be reached,
    4 refused, 130 stopped by Ctrl-C.
    """
