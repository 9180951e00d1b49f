"""`lamplighter top`: the hosts and the unfinished jobs, redrawn until `q`, or printed once for a program.

The first part reads keys from a terminal, one by one and without Enter. The second draws the screen, as lines that fit
the terminal: hosts, then jobs with the running ones first.
"""

import os
import select
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import click
from msgspec import Struct
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lamplighter import api
from lamplighter.api import LamplighterError
from lamplighter.cli import display
from lamplighter.cli.context import CliContext, client_command, error_line
from lamplighter.cli.display import escape_controls
from lamplighter.cli.language import say, say_each
from schemas.job import ACTIVE_STATUSES, WAITING_STATUSES, Status
from schemas.job_view import JobView

try:
    import termios
    import tty
except ImportError:  # Windows
    HAS_KEYS = False
else:
    HAS_KEYS = True

# What terminals send (xterm's control sequences), also in application mode.
_SEQUENCES = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"\x1b[5~": "page_up",
    b"\x1b[6~": "page_down",
    b"\x1b[H": "home",
    b"\x1b[F": "end",
    b"\x1b": "escape",
    b"\r": "enter",
    b"\n": "enter",
}
_READ_BYTES = 1024


@contextmanager
def keys_from_terminal() -> Iterator[bool]:
    """Let `read_keys` get each key at once, and hide it. Yield whether stdin is a terminal that can do that.

    Ctrl-C still interrupts. The terminal is as before at the end.
    """
    if not HAS_KEYS or not sys.stdin.isatty():
        yield False
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield True
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def read_keys(timeout_s: float) -> list[str]:
    """Return the keys that were pressed, at the latest after `timeout_s`: a character, or a name such as `up`.

    Raises EOFError when the terminal is gone.
    """
    fd = sys.stdin.fileno()
    ready, _, _ = select.select([fd], [], [], timeout_s)
    if not ready:
        return []
    pressed = os.read(fd, _READ_BYTES)
    if not pressed:
        raise EOFError
    return split_keys(pressed)


def split_keys(pressed: bytes) -> list[str]:
    """Return the keys in what a terminal sent. Keys that have no name here are left out."""
    keys = []
    while pressed:
        sequence = max((known for known in _SEQUENCES if pressed.startswith(known)), key=len, default=pressed[:1])
        if sequence in _SEQUENCES:
            keys.append(_SEQUENCES[sequence])
        elif 0x20 < sequence[0] < 0x7F:
            keys.append(sequence.decode())
        pressed = pressed[len(sequence) :]
    return keys


MIN_JOB_LINES = 3  # the hosts leave at least so many lines to the jobs
HOST_COLUMNS = ("HOST", "STATE", "JOBS", "GPUS")
_DROPPED_FIRST = ("DETAIL", "ENDPOINT", "GPU", "POSITION", "ETA", "ELAPSED")  # where a terminal is too narrow for all
TOP_COLUMNS = ("JOB", "ENDPOINT", "STATUS", "POSITION", "GPU", "ELAPSED", "ETA", "DETAIL")
KEYS_TEXT = "up/down: choose  c: cancel  l: log  q: quit"
LOG_KEYS_TEXT = "up/down, page up/page down: scroll  q: back"


class TopScreen(Struct, frozen=True):
    """The content of the screen: all hosts, and the unfinished jobs in the order in which they are shown.

    `has_more`: there are more jobs than the edge lists in one page.
    """

    hosts: list[Any]
    jobs: list[JobView]
    has_more: bool = False


class LogPage(Struct):
    """The log of a job, which covers the screen. `top`: the first line that is shown."""

    job_id: str
    lines: list[str]
    top: int = 0


class Selection(Struct):
    """The choices of the person: the chosen job, a question or a notice at the bottom, the log that is open."""

    job_id: str | None = None
    question_for: str | None = None
    notice: str = ""
    log: LogPage | None = None


def order_jobs(jobs: Iterable[JobView]) -> list[JobView]:
    """Return the jobs as they are shown: running ones first, then those that wait, the next in line first."""
    return sorted(
        jobs,
        key=lambda job: (
            job.status not in ACTIVE_STATUSES,
            job.queue_position is None,
            job.queue_position or 0,
            job.created_at,
        ),
    )


def format_duration(seconds: float) -> str:
    """Return `5:07`, `1:02:03` or `3d 4h`; a negative duration is zero."""
    minutes, second = divmod(max(0, int(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d {hours % 24}h"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def draw_screen(seen: TopScreen, chosen: Selection, size: tuple[int, int], now: datetime) -> RenderableType:
    """Return the screen for a terminal of `size`, columns and lines."""
    width, height = size
    if chosen.log is not None:
        return _draw_log(chosen.log, height)
    host_lines = min(len(seen.hosts) or 1, max(1, height - MIN_JOB_LINES - 4))
    job_lines = max(1, height - host_lines - 4)  # two headers, an empty line, the line at the bottom
    hosts, jobs = _draw_hosts(seen.hosts, width, host_lines), _draw_jobs(seen, chosen, (width, job_lines), now)
    return Group(hosts, Text(), jobs, _draw_bottom(chosen))


def draw_once(console: Console, seen: TopScreen, now: datetime) -> None:
    """Print all hosts and jobs; on a terminal as many as fit."""
    lines = console.height - 1 if console.is_terminal else len(seen.hosts) + len(seen.jobs) + 6
    host_lines = max(1, min(len(seen.hosts), lines - MIN_JOB_LINES - 3))
    console.print(_draw_hosts(seen.hosts, console.width, host_lines))
    console.print()
    console.print(_draw_jobs(seen, Selection(), (console.width, max(1, lines - host_lines - 3)), now))


def _fit_table(columns: Sequence[str], rows: Sequence[Sequence[Text]], width: int, chosen: int | None = None) -> Table:
    """Return a table that fits `width`: the last column gets what the others leave, and some are left out if need be.

    `chosen`: the row that is highlighted.
    """
    headers = say_each(columns)
    widths = [max(map(cell_len, (headers[n], *(row[n].plain for row in rows)))) + 2 for n in range(len(columns))]
    kept = list(range(len(columns)))
    for name in _DROPPED_FIRST:
        if sum(widths[n] for n in kept[:-1]) > width and name in columns:
            kept.remove(columns.index(name))
    table = Table(box=None, pad_edge=False, header_style="bold")
    left = width
    for n in kept:
        shown = max(1, min(widths[n], left) - (0 if n == kept[-1] else 2))
        table.add_column(headers[n], no_wrap=True, overflow="ellipsis", width=shown)
        left -= widths[n]
    for number, row in enumerate(rows):
        table.add_row(*(row[n] for n in kept), style="reverse" if number == chosen else "")
    return table


def _draw_hosts(hosts: Sequence[dict[str, Any]], width: int, lines: int) -> RenderableType:
    if not hosts:
        return Group(Text(), Text(say("no host has connected yet: start a runner")))
    shown = hosts if len(hosts) <= lines else hosts[: lines - 1]
    rows = []
    for host in shown:
        gpus = "; ".join(map(_format_gpu, host["gpus"])) or say("none")
        rows.append([*map(Text, (host["id"], host["state"], str(len(host["jobs"])), gpus))])
    table = _fit_table(HOST_COLUMNS, rows, width)
    hidden = len(hosts) - len(shown)
    return Group(table, Text(say(f"+{hidden} hosts"), "dim")) if hidden else table


def _format_gpu(gpu: dict[str, Any]) -> str:
    total, free = gpu.get("memory_total_mb"), gpu.get("memory_free_mb")
    readings = (
        None if gpu.get("utilization") is None else f"{gpu['utilization']}%",
        None if gpu.get("temperature_c") is None else f"{gpu['temperature_c']}°C",
        None if gpu.get("power_w") is None else f"{gpu['power_w']:.0f}W",
        None if total is None or free is None else f"{(total - free) / 1024:.1f}/{total / 1024:.1f}GB",
        display.format_free_share(gpu),
    )
    health = "" if gpu["fitness"] == "fit" else f"({gpu['fitness']})"
    return " ".join(filter(None, (gpu["name"], *readings, health)))


def _draw_jobs(seen: TopScreen, chosen: Selection, size: tuple[int, int], now: datetime) -> RenderableType:
    if not seen.jobs:
        return Group(Text(), Text(say("no job waits or runs")))
    width, lines = size
    first, last = _window(seen, chosen, lines)
    shown, gpus = seen.jobs[first:last], _number_gpus(seen.hosts)
    place = next((number for number, job in enumerate(shown) if job.id == chosen.job_id), None)
    table = _fit_table(TOP_COLUMNS, [_job_row(job, gpus, now) for job in shown], width, place)
    hidden = len(seen.jobs) - last
    if not hidden and not seen.has_more:
        return table
    waiting = sum(job.status not in ACTIVE_STATUSES for job in seen.jobs[last:])
    if seen.has_more:
        text = f"+{hidden} waiting, or more"
    else:
        text = f"+{hidden} waiting" if waiting == hidden else f"+{hidden} jobs, {waiting} of them waiting"
    return Group(table, Text(say(text), "dim"))


def _window(seen: TopScreen, chosen: Selection, lines: int) -> tuple[int, int]:
    """Return the first and the end of the jobs that are shown, so that the chosen one is among them."""
    if len(seen.jobs) <= lines and not seen.has_more:
        return 0, len(seen.jobs)
    room = max(1, lines - 1)  # the last line tells how many are not shown
    ids = [job.id for job in seen.jobs]
    place = ids.index(chosen.job_id) if chosen.job_id in ids else 0
    first = max(0, place - room + 1)
    return first, min(len(ids), first + room)


def _number_gpus(hosts: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Return the number of each GPU on its host, by UUID: two GPUs of a host often have the same name."""
    return {gpu.get("uuid", ""): number for host in hosts for number, gpu in enumerate(host["gpus"])}


def _job_row(job: JobView, gpus: dict[str, int], now: datetime) -> tuple[Text, ...]:
    since = job.started_at if job.status in ACTIVE_STATUSES else job.queued_at or job.created_at
    ends = job.eta.finish_at if job.eta is not None else None
    return (
        Text(job.id),
        Text(job.endpoint),
        Text(job.status, display.STATUS_STYLES.get(job.status, "white")),
        Text("" if job.queue_position is None else str(job.queue_position)),
        Text("" if job.host is None else f"{job.host}:{gpus[job.gpu]}" if job.gpu in gpus else job.host),
        Text("" if since is None else format_duration((now - since).total_seconds())),
        Text("" if ends is None else format_duration((ends - now).total_seconds())),
        Text(display.describe_job(job)),
    )


def _draw_bottom(chosen: Selection) -> Text:
    if chosen.question_for is not None:
        return Text(say(f"cancel {chosen.question_for}? y: yes  n: no"), "yellow")
    return Text(chosen.notice or say(KEYS_TEXT), "dim", no_wrap=True, overflow="ellipsis")


def _draw_log(log: LogPage, height: int) -> RenderableType:
    shown = log.lines[log.top : log.top + max(1, height - 2)]
    lines = [Text(line, no_wrap=True, overflow="ellipsis") for line in shown]
    end = min(log.top + len(shown), len(log.lines))
    title = Text(say(f"log of {log.job_id}: line {end} of {len(log.lines)}"), "bold", no_wrap=True, overflow="ellipsis")
    bottom = Text(say(LOG_KEYS_TEXT), "dim", no_wrap=True, overflow="ellipsis")
    return Group(title, *lines, *[Text()] * (height - 2 - len(lines)), bottom)


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
