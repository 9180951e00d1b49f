"""The command line, `lamplighter`. A command's module is imported when it is called: `--help` needs no server code."""

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
    "submit": ("lamplighter.cli.jobs", "submit", "Submit a job."),
    "jobs": ("lamplighter.cli.jobs", "jobs", "List jobs."),
    "job": ("lamplighter.cli.jobs", "job", "Show one job."),
    "watch": ("lamplighter.cli.jobs", "watch_job", "Follow a job to its end."),
    "history": ("lamplighter.cli.jobs", "history", "What happened to a job."),
    "logs": ("lamplighter.cli.jobs", "logs", "Print a job's log."),
    "cancel": ("lamplighter.cli.jobs", "cancel", "Stop a job."),
    "retry": ("lamplighter.cli.jobs", "retry", "Run a job that ended badly again."),
    "delete": ("lamplighter.cli.jobs", "delete", "Remove a job that has ended."),
    "upload": ("lamplighter.cli.assets", "upload", "Upload files."),
    "assets": ("lamplighter.cli.assets", "assets", "List files, delete some."),
    "hosts": ("lamplighter.cli.hosts", "hosts", "List the GPU hosts, let one join, put one out."),
    "power": ("lamplighter.cli.hosts", "power", "Hold a host on or off, or leave it to its work."),
    "usage": ("lamplighter.cli.usage", "usage", "What was used, and what it cost."),
    "endpoints": ("lamplighter.cli.endpoints", "endpoints", "List what can run, or the fields of one endpoint."),
    "keys": ("lamplighter.cli.keys", "keys", "Make, list, rotate and revoke API keys."),
    "owners": ("lamplighter.cli.owners", "owners", "Delete everything of an owner."),
    "backup": ("lamplighter.cli.backup", "backup", "Keep everything in one file."),
    "restore": ("lamplighter.cli.restore", "restore", "Put an installation back out of a backup."),
    "top": ("lamplighter.cli.top", "top", "Watch hosts and jobs."),
    "doctor": ("lamplighter.cli.doctor", "doctor", "Check this installation and say how to mend it."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, _: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        if name == "runner":
            hide_token(sys.argv)  # before the imports, which take half a second
        module, attribute, _help = COMMANDS[name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_module, _attribute, text) in COMMANDS.items()])


@click.command(cls=LazyGroup)
@click.version_option(VERSION, prog_name="lamplighter")
def main() -> None:
    """A self-hosted GPU job runner: the edge is always on, the card only when there is work.

    Exit codes: 0 done, 1 the job failed, 2 usage or a file that cannot be used, 3 the server cannot be reached,
    4 refused, 130 stopped by Ctrl-C.
    """
