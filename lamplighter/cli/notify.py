"""`lamplighter notify`: the conditions for which operators get messages, and a test of the targets."""

import sys
from typing import Any

import click

from lamplighter import api
from lamplighter.cli import display
from lamplighter.cli.context import CliContext, client_command
from lamplighter.cli.language import say

NOT_SENT = 1  # the exit code
NO_TARGETS = "no targets: add [notify.targets.NAME] to the edge's settings"


@click.group()
def notify() -> None:
    """Show the conditions that hold, and test the targets of messages (needs a key with the scope admin)."""


@notify.command("list")
@client_command
def list_notices(session: CliContext) -> None:
    """List the conditions that hold now."""
    found = session.client.call(api.get_json("/v1/notifications"))
    empty = "nothing is wrong" if found["targets"] else NO_TARGETS
    columns = ("CONDITION", "SUBJECT", "SINCE", "NOT YET TOLD", "DETAILS")
    session.show(found, lambda: display.print_table(session.out, columns, map(_row, found["notices"]), empty))


def _row(notice: dict[str, Any]) -> tuple[str, ...]:
    since = display.format_time_text(notice["began_at"])
    waiting = " ".join(notice["pending"]) or "-"
    return notice["condition"], notice["subject"] or "-", since, waiting, "; ".join(notice["values"].values())


@notify.command("test")
@client_command
def send_test(session: CliContext) -> None:
    """Send one message to each target and show which failed and why. Exit code 1 if one failed."""
    results = session.client.call(api.test_notifications())["results"]
    rows = [(one["target"], say("sent" if one["sent"] else "not sent"), one["error"] or "") for one in results]
    session.show(results, lambda: display.print_table(session.out, ("TARGET", "RESULT", "WHY"), rows, NO_TARGETS))
    if not results or not all(one["sent"] for one in results):
        sys.exit(NOT_SENT)
