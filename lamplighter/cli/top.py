"""`lamplighter top`: the hosts and the unfinished jobs, redrawn until Ctrl-C, or printed once for a program."""

import time
from contextlib import suppress
from typing import Any

import click
from msgspec import Struct

from lamplighter import api
from lamplighter.cli import display
from lamplighter.cli.context import CliContext, client_command
from lamplighter.cli.hosts import print_hosts
from schemas.job_view import JobView
from schemas.status import ACTIVE_STATUSES, WAITING_STATUSES, Status

UNFINISHED_STATUSES = tuple(
    status for status in reversed(Status) if status in ACTIVE_STATUSES | WAITING_STATUSES
)  # running jobs first
JOBS_PER_STATUS_LIMIT = 20


class TopScreen(Struct, frozen=True):
    """The content of the screen: all hosts, and of each unfinished status the newest jobs."""

    hosts: list[Any]
    jobs: list[JobView]


@click.command()
@click.option("--every", "every_s", metavar="SECONDS", type=click.FloatRange(0.2), default=2.0, show_default=True)
@client_command
def top(session: CliContext, every_s: float) -> None:
    """Show hosts and unfinished jobs until Ctrl-C; with --json, or into a pipe, only once."""
    if session.as_json or not session.out.is_terminal:
        _show(session, _fetch_screen(session))
        return
    with suppress(KeyboardInterrupt), session.out.screen():
        while True:
            seen = _fetch_screen(session)
            session.out.clear()
            _show(session, seen)
            time.sleep(every_s)


def _fetch_screen(session: CliContext) -> TopScreen:
    call = session.client.call
    pages = [call(api.list_jobs(JOBS_PER_STATUS_LIMIT, None, {"status": status})) for status in UNFINISHED_STATUSES]
    return TopScreen(call(api.get_json("/v1/hosts"))["hosts"], [job for page in pages for job in page.jobs])


def _show(session: CliContext, seen: TopScreen) -> None:
    session.show(seen, lambda: _draw(session, seen))


def _draw(session: CliContext, seen: TopScreen) -> None:
    print_hosts(session, seen.hosts)
    session.out.print()
    display.print_table(session.out, display.JOB_COLUMNS, display.job_rows(seen.jobs), "no job waits or runs")
