"""The screen of `lamplighter top`, as lines that fit a terminal: hosts, then jobs with the running ones first."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lamplighter.cli import display
from lamplighter.cli.language import say, say_each
from schemas.job_view import JobView
from schemas.status import ACTIVE_STATUSES

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
