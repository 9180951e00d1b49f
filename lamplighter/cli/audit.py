"""`lamplighter audit`: who did what to which key, host, owner, job, file or setting. Needs the scope admin."""

import time
from collections.abc import Iterator
from typing import Any

import click

from lamplighter import api
from lamplighter.cli import display
from lamplighter.cli.context import CliContext, client_command

PAGE_LIMIT = 200
POLL_INTERVAL_S = 2.0
COLUMNS = ("TIME", "ACTION", "SUBJECT", "OWNER", "BY", "FROM", "DETAILS")


@click.command()
@click.option("--by", metavar="KEY", help="Only what the key with this id did.")
@click.option("--action", help="Only this action, such as key_created.")
@click.option("--subject", metavar="ID", help="Only what was done to this key, host, owner, job or file.")
@click.option("--owner", help="Only actions on what this owner has.")
@click.option("--from", "since", metavar="TIME", help="Start, such as 2026-11-01T00:00:00Z [all that is kept].")
@click.option("--to", "until", metavar="TIME", help="End, not included [now].")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Events to print.")
@click.option("--follow", is_flag=True, help="Print the newest events, then new ones until Ctrl-C.")
@client_command
def audit(session: CliContext, limit: int, since: str | None, until: str | None, follow: bool, **given: Any) -> None:
    """Show who did what to keys, hosts, owners, jobs, files and settings, newest first. 400 days are kept."""
    filters = {name: value for name, value in {"from": since, "to": until, **given}.items() if value}
    if follow:
        _follow(session, filters, limit)
        return
    found = []
    for event in _read(session, filters):
        found.append(event)
        if len(found) == limit:
            break
    session.show(found, lambda: display.print_table(session.out, COLUMNS, map(_row, found), "no events"))


def _read(session: CliContext, filters: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yield the events, newest first, page after page."""
    cursor: str | None = None
    while True:
        place = {"cursor": cursor} if cursor else {}
        page = session.client.call(api.get_json("/v1/audit", limit=str(PAGE_LIMIT), **filters, **place))
        yield from page["events"]
        cursor = page["next_cursor"]
        if cursor is None:
            return


def _follow(session: CliContext, filters: dict[str, str], limit: int) -> None:
    """Print events, oldest first, and go on with each new one."""
    last, is_first = 0, True
    while True:
        fresh: list[dict[str, Any]] = []
        for event in _read(session, filters):
            if event["id"] <= last or (is_first and len(fresh) == limit):
                break
            fresh.append(event)
        for event in reversed(fresh):
            last = event["id"]
            session.show(event, lambda event=event: session.out.print("  ".join(filter(None, _row(event)))))  # type: ignore[misc]
        is_first = False
        time.sleep(POLL_INTERVAL_S)


def _row(event: dict[str, Any]) -> tuple[str, ...]:
    details = "; ".join(f"{name}: {text}" if name else text for name, text in event.get("details", {}).items())
    client = event["client"] or "-"
    owner = event.get("owner") or "-"
    return display.format_time_text(event["at"]), event["action"], event["subject"], owner, event["by"], client, details
