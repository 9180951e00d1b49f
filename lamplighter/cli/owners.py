"""`lamplighter owners`: deleting everything of an owner, and how far that is (needs a key with the scope admin)."""

import sys
import time
from typing import Any

import click

from lamplighter import operating
from lamplighter.cli import show
from lamplighter.cli.session import INTERRUPTED, Session, client_command

LOOK_EVERY_S = 1.0
WORDS = {
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
def delete_owner(session: Session, owner: str, yes: bool, no_wait: bool) -> None:
    """Delete all jobs, files, uploads, keys, deliveries and usage of OWNER; what runs is stopped first."""
    if not yes and not (sys.stdin.isatty() and click.confirm(f"Delete everything of {owner}, for ever?")):
        raise click.UsageError("nothing was deleted: add --yes to delete without being asked")
    told = session.client.call(operating.delete_owner(owner))
    if not no_wait:
        told = _followed(session, owner, told)
    _report(session, told)


def _followed(session: Session, owner: str, told: dict[str, Any]) -> dict[str, Any]:
    """The report once it is done. Ctrl-C leaves the deletion as it is."""
    try:
        with session.err.status("") as line:
            while told["state"] != "done":
                line.update(_standing(told))
                time.sleep(LOOK_EVERY_S)
                told = session.client.call(operating.owner_deletion(owner))
    except KeyboardInterrupt:
        session.err.print(f"\nIt goes on. See how far with: lamplighter owners show {owner}", highlight=False)
        sys.exit(INTERRUPTED)
    return told


@owners.command("show")
@click.argument("owner")
@client_command
def show_deletion(session: Session, owner: str) -> None:
    """Show how far the deletion of OWNER is, and what went."""
    _report(session, session.client.call(operating.owner_deletion(owner)))


def _standing(told: dict[str, Any]) -> str:
    jobs = show.counted(told["erased"]["jobs"], "job")
    if told["waiting_for"]:
        return f"{jobs} gone, {told['waiting_for']} to be stopped first"
    if told["state"] == "settling":
        return "nothing is left; looking for what was on its way meanwhile"
    return f"{jobs} and {show.counted(told['erased']['assets'], 'file')} gone"


def _report(session: Session, told: dict[str, Any]) -> None:
    session.show(told, lambda: _lines(session, told))


def _lines(session: Session, told: dict[str, Any]) -> None:
    erased = told["erased"]
    session.out.print(f"{told['owner']}: {told['state']}", markup=False, highlight=False)
    for name, words in WORDS.items():
        size = f" ({show.size(erased['bytes'])})" if name == "assets" else ""
        count, what = show.counted(erased[name], *words).split(" ", 1)
        session.out.print(f"{count:>8} {what}{size}", markup=False, highlight=False)
    if told["hosts_pending"]:
        hosts = ", ".join(told["hosts_pending"])
        session.out.print(f"{hosts}: copies go within a minute, or before the next job once it is on", highlight=False)
