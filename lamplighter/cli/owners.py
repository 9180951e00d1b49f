"""`lamplighter owners`: deleting everything of an owner, and how far that is (needs a key with the scope admin)."""

import sys
import time
from typing import Any

import click

from lamplighter import api
from lamplighter.cli import display
from lamplighter.cli.context import INTERRUPTED, CliContext, client_command

POLL_INTERVAL_S = 1.0
COUNT_LABELS = {
    "jobs": ("job", "jobs"),
    "cancelled": ("of them stopped first", "of them stopped first"),
    "assets": ("file", "files"),
    "uploads": ("unfinished upload", "unfinished uploads"),
    "keys": ("key", "keys"),
    "deliveries": ("webhook delivery", "webhook deliveries"),
    "feed": ("message to followers", "messages to followers"),
    "usage_rows": ("row of usage", "rows of usage"),
}


@click.group()
def owners() -> None:
    """Delete everything of an owner, or show how far that is (needs a key with the scope admin)."""


@owners.command("delete")
@click.argument("owner")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--no-wait", is_flag=True, help="Leave as soon as it has begun; it goes on by itself.")
@client_command
def delete_owner(session: CliContext, owner: str, yes: bool, no_wait: bool) -> None:
    """Delete all jobs, files, uploads, keys, deliveries and usage of OWNER; what runs is stopped first."""
    if not yes and not (sys.stdin.isatty() and click.confirm(f"Delete everything of {owner}, for ever?")):
        raise click.UsageError("nothing was deleted: add --yes to delete without being asked")
    told = session.client.call(api.delete_owner(owner))
    if not no_wait:
        told = _wait_until_deleted(session, owner, told)
    _show_report(session, told)


def _wait_until_deleted(session: CliContext, owner: str, told: dict[str, Any]) -> dict[str, Any]:
    """The report once it is done. Ctrl-C leaves the deletion as it is."""
    try:
        with session.err.status("") as line:
            while told["state"] != "done":
                line.update(_progress_line(told))
                time.sleep(POLL_INTERVAL_S)
                told = session.client.call(api.get_owner_deletion(owner))
    except KeyboardInterrupt:
        session.err.print(f"\nIt goes on. See how far with: lamplighter owners show {owner}", highlight=False)
        sys.exit(INTERRUPTED)
    return told


@owners.command("show")
@click.argument("owner")
@client_command
def show_deletion(session: CliContext, owner: str) -> None:
    """Show how far the deletion of OWNER is, and what went."""
    _show_report(session, session.client.call(api.get_owner_deletion(owner)))


def _progress_line(told: dict[str, Any]) -> str:
    jobs = display.format_count(told["erased"]["jobs"], "job")
    if told["waiting_for"]:
        return f"{jobs} gone, {told['waiting_for']} to be stopped first"
    if told["state"] == "settling":
        return "nothing is left; looking for what was on its way meanwhile"
    return f"{jobs} and {display.format_count(told['erased']['assets'], 'file')} gone"


def _show_report(session: CliContext, told: dict[str, Any]) -> None:
    session.show(told, lambda: _print_report(session, told))


def _print_report(session: CliContext, told: dict[str, Any]) -> None:
    erased = told["erased"]
    session.out.print(f"{told['owner']}: {told['state']}", markup=False, highlight=False)
    for name, words in COUNT_LABELS.items():
        size = f" ({display.format_size(erased['bytes'])})" if name == "assets" else ""
        count, what = display.format_count(erased[name], *words).split(" ", 1)
        session.out.print(f"{count:>8} {what}{size}", markup=False, highlight=False)
    if told["hosts_pending"]:
        hosts = ", ".join(told["hosts_pending"])
        session.out.print(f"{hosts}: copies go within a minute, or before the next job once it is on", highlight=False)
