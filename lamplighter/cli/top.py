"""`lamplighter top`: hosts and living jobs at a glance, drawn anew until Ctrl-C; for a program once."""

import time
from contextlib import suppress
from typing import Any

import click
from msgspec import Struct

from lamplighter import wire
from lamplighter.cli import show
from lamplighter.cli.hosts import print_hosts
from lamplighter.cli.session import Session, client_command
from schemas.view import JobView
from schemas.words import ACTIVE, WAITING, Status

LIVING = tuple(status for status in reversed(Status) if status in ACTIVE | WAITING)  # what runs first
SHOWN = 20  # jobs of each status


class Glance(Struct, frozen=True):
    """What is drawn: every host, and of each living status the newest SHOWN jobs."""

    hosts: list[Any]
    jobs: list[JobView]


@click.command()
@click.option("--every", "every_s", metavar="SECONDS", type=click.FloatRange(0.2), default=2.0, show_default=True)
@client_command
def top(session: Session, every_s: float) -> None:
    """Show hosts and living jobs, drawn anew until Ctrl-C; with --json, or into a pipe, once."""
    if session.as_json or not session.out.is_terminal:
        _show(session, _look(session))
        return
    with suppress(KeyboardInterrupt), session.out.screen():
        while True:
            seen = _look(session)
            session.out.clear()
            _show(session, seen)
            time.sleep(every_s)


def _look(session: Session) -> Glance:
    call = session.client.call
    pages = [call(wire.jobs(SHOWN, None, {"status": status})) for status in LIVING]
    return Glance(call(wire.fetch("/v1/hosts"))["hosts"], [job for page in pages for job in page.jobs])


def _show(session: Session, seen: Glance) -> None:
    session.show(seen, lambda: _draw(session, seen))


def _draw(session: Session, seen: Glance) -> None:
    print_hosts(session, seen.hosts)
    session.out.print()
    show.table(session.out, show.JOB_COLUMNS, show.job_rows(seen.jobs), "no job waits or runs")
