"""`lamplighter owners`: delete all data of an owner, and show the progress. Needs a key with the scope admin."""

import sys
import time
from typing import Any

import click

from lamplighter import api
from lamplighter.cli import display
from lamplighter.cli.context import INTERRUPTED, CliContext, client_command
from lamplighter.cli.language import say

POLL_INTERVAL_S = 1.0
COUNT_LABELS = {
    "jobs": ("job", "jobs"),
    "cancelled": ("of them cancelled first", "of them cancelled first"),
    "assets": ("file", "files"),
    "uploads": ("unfinished upload", "unfinished uploads"),
    "keys": ("key", "keys"),
    "deliveries": ("webhook delivery", "webhook deliveries"),
    "feed": ("message to followers", "messages to followers"),
    "usage_rows": ("row of usage", "rows of usage"),
    "secrets": ("secret", "secrets"),
}


@click.group()
def owners() -> None:
    """Delete all data of an owner, or show the progress (needs a key with the scope admin)."""


@owners.command("delete")
@click.argument("owner")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--no-wait", is_flag=True, help="Return when the deletion has started. It continues in the background.")
@client_command
def delete_owner(session: CliContext, owner: str, yes: bool, no_wait: bool) -> None:
    """Delete all jobs, files, uploads, keys, secrets, deliveries and usage of OWNER. First cancel running jobs."""
    if not yes and not (
        sys.stdin.isatty() and click.confirm(say(f"Delete all data of {owner}? This cannot be undone."))
    ):
        raise click.UsageError("nothing was deleted: add --yes to delete without a question")
    report = session.client.call(api.delete_owner(owner))
    if not no_wait:
        report = _wait_until_deleted(session, owner, report)
    _show_report(session, report)


def _wait_until_deleted(session: CliContext, owner: str, report: dict[str, Any]) -> dict[str, Any]:
    """Return the final report. Ctrl-C ends the waiting, not the deletion."""
    try:
        with session.err.status("") as line:
            while report["state"] != "done":
                line.update(say(_progress_line(report)))
                time.sleep(POLL_INTERVAL_S)
                report = session.client.call(api.get_owner_deletion(owner))
    except KeyboardInterrupt:
        session.err.print(
            say(f"\nThe deletion continues. Show it with: lamplighter owners show {owner}"), highlight=False
        )
        sys.exit(INTERRUPTED)
    return report


@owners.command("show")
@click.argument("owner")
@client_command
def show_deletion(session: CliContext, owner: str) -> None:
    """Show the progress of the deletion of OWNER, and what was deleted."""
    _show_report(session, session.client.call(api.get_owner_deletion(owner)))


def _progress_line(report: dict[str, Any]) -> str:
    jobs = display.format_count(report["erased"]["jobs"], "job")
    if report["waiting_for"]:
        return f"{jobs} deleted, {report['waiting_for']} to be cancelled first"
    if report["state"] == "settling":
        return "all deleted; checking for data that arrived in the meantime"
    return f"{jobs} and {display.format_count(report['erased']['assets'], 'file')} deleted"


def _show_report(session: CliContext, report: dict[str, Any]) -> None:
    session.show(report, lambda: _print_report(session, report))


def _print_report(session: CliContext, report: dict[str, Any]) -> None:
    erased = report["erased"]
    session.out.print(f"{report['owner']}: {report['state']}", markup=False, highlight=False)
    for name, words in COUNT_LABELS.items():
        size = f" ({display.format_size(erased['bytes'])})" if name == "assets" else ""
        count, what = display.format_count(erased.get(name, 0), *words).split(" ", 1)
        session.out.print(f"{count:>8} {say(what)}{size}", markup=False, highlight=False)
    if report["hosts_pending"]:
        hosts = ", ".join(report["hosts_pending"])
        session.out.print(
            say(f"{hosts}: copies are deleted within a minute, or before the next job once the host is on"),
            highlight=False,
        )
