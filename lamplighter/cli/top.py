"""`lamplighter top`: the hosts and the unfinished jobs, redrawn until `q`, or printed once for a program."""

import sys
import time
from contextlib import suppress
from datetime import UTC, datetime

import click
from rich.console import RenderableType
from rich.live import Live

from lamplighter import api
from lamplighter.cli.context import CliContext, client_command, error_line
from lamplighter.cli.display import escape_controls
from lamplighter.cli.keyboard import keys_from_terminal, read_keys
from lamplighter.cli.language import say
from lamplighter.cli.top_screen import LogPage, Selection, TopScreen, draw_once, draw_screen, order_jobs
from lamplighter.errors import LamplighterError
from schemas.status import ACTIVE_STATUSES, WAITING_STATUSES, Status

UNFINISHED_STATUSES = tuple(status for status in Status if status in ACTIVE_STATUSES | WAITING_STATUSES)
JOBS_PER_STATUS_LIMIT = 500  # of one page
REDRAW_INTERVAL_S = 0.25  # how soon a resized window is filled


@click.command()
@click.option("--every", "every_s", metavar="SECONDS", type=click.FloatRange(0.2), default=2.0, show_default=True)
@click.option("--once", is_flag=True, help="Print the screen once and end.")
@client_command
def top(session: CliContext, every_s: float, *, once: bool) -> None:
    """Show hosts and unfinished jobs until q; with --json or --once, or into a pipe, only once.

    Keys: up and down choose a job, c cancels it, l shows its log.
    """
    seen = _fetch_screen(session)
    if once or session.as_json or not (session.out.is_terminal and sys.stdin.isatty()):
        session.show(seen, lambda: draw_once(session.out, seen, datetime.now(UTC)))
        return
    with suppress(KeyboardInterrupt, EOFError), keys_from_terminal() as has_keys:
        _TopLoop(session, seen, every_s).run(has_keys=has_keys)


def _fetch_screen(session: CliContext) -> TopScreen:
    call = session.client.call
    pages = [call(api.list_jobs(JOBS_PER_STATUS_LIMIT, None, {"status": status})) for status in UNFINISHED_STATUSES]
    jobs = order_jobs(job for page in pages for job in page.jobs)
    has_more = any(page.next_cursor is not None for page in pages)
    return TopScreen(call(api.get_json("/v1/hosts"))["hosts"], jobs, has_more)


class _TopLoop:
    """The screen that is redrawn, and the keys that change it."""

    def __init__(self, session: CliContext, seen: TopScreen, every_s: float) -> None:
        self._session, self._seen, self._every_s = session, seen, every_s
        self._chosen = Selection(seen.jobs[0].id if seen.jobs else None)
        self._fetched_at = time.monotonic()

    def run(self, *, has_keys: bool) -> None:
        """Draw and follow the keyboard until `q` or Ctrl-C."""
        console = self._session.out
        console.soft_wrap = False  # rich crops lines only then
        with Live(self._draw(), console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(self._draw(), refresh=True)
                if has_keys:
                    if not all(self._press(key) for key in read_keys(REDRAW_INTERVAL_S)):
                        return
                else:
                    time.sleep(REDRAW_INTERVAL_S)
                if time.monotonic() - self._fetched_at >= self._every_s:
                    self._fetch()

    def _draw(self) -> RenderableType:
        size = self._session.out.size
        return draw_screen(self._seen, self._chosen, (size.width, size.height), datetime.now(UTC))

    def _fetch(self) -> None:
        """Fetch again. If the edge does not answer, the screen stays as it was and says so."""
        try:
            self._seen = _fetch_screen(self._session)
            self._chosen.notice = ""
        except LamplighterError as error:
            self._chosen.notice = say(error_line(error))
        self._fetched_at = time.monotonic()
        ids = [job.id for job in self._seen.jobs]
        if self._chosen.job_id not in ids:
            self._chosen.job_id = ids[0] if ids else None

    def _press(self, key: str) -> bool:
        """Do what the key means. Return whether to go on."""
        chosen = self._chosen
        if chosen.log is not None:
            self._scroll_log(chosen.log, key)
        elif chosen.question_for is not None:
            self._answer(chosen.question_for, key)
        elif key in {"q", "escape"}:
            return False
        elif key in _STEPS:
            self._move(_STEPS[key])
        elif key == "c" and chosen.job_id is not None:
            chosen.question_for = chosen.job_id
        elif key in {"l", "enter"} and chosen.job_id is not None:
            self._open_log(chosen.job_id)
        return True

    def _move(self, by: int) -> None:
        ids = [job.id for job in self._seen.jobs]
        if self._chosen.job_id in ids:
            self._chosen.job_id = ids[min(max(ids.index(self._chosen.job_id) + by, 0), len(ids) - 1)]

    def _answer(self, job_id: str, key: str) -> None:
        self._chosen.question_for = None
        if key != "y":
            return
        try:
            status = self._session.client.cancel(job_id).status
        except LamplighterError as error:  # it has just ended
            self._chosen.notice = say(error_line(error))
            return
        self._fetch()
        self._chosen.notice = say(f"job {job_id} {status}")

    def _open_log(self, job_id: str) -> None:
        try:
            lines = escape_controls(self._session.client.logs(job_id)).splitlines()
        except LamplighterError as error:
            self._chosen.notice = say(error_line(error))
            return
        self._chosen.log = LogPage(job_id, lines)
        self._scroll_log(self._chosen.log, "end")

    def _scroll_log(self, log: LogPage, key: str) -> None:
        page = max(1, self._session.out.size.height - 2)
        if key in {"q", "escape", "l"}:
            self._chosen.log = None
        steps = {"page_up": -page, "page_down": page, "home": -len(log.lines), "end": len(log.lines)} | _STEPS
        log.top = min(max(log.top + steps.get(key, 0), 0), max(0, len(log.lines) - page))


_STEPS = {"up": -1, "k": -1, "down": 1, "j": 1}
