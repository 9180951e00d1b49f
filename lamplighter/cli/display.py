"""What may reach a terminal: text of jobs, clients and other machines is shown, and never obeyed.

A control character in a job's log could clear the screen, set the title, fill the clipboard (OSC 52) or turn the line
around (bidirectional overrides). Such characters are printed as escapes, `\\x1b`. `--json` keeps the exact text.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from schemas.job_view import JobView
from schemas.status import FINAL_STATUSES, Status

_BIDI = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_LINE_BREAKS = (0x0085, 0x2028, 0x2029)  # what some terminals and editors break a line at
_ABOVE_ASCII = {*range(0x80, 0xA0), *_BIDI, *_LINE_BREAKS}
_CONTROLS = {*range(0x20), 0x7F} - {ord("\n"), ord("\t")}


def _escape_code(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


_VISIBLE = {code: _escape_code(code) for code in _CONTROLS | _ABOVE_ASCII}
_JSON = {code: f"\\u{code:04x}" for code in {0x7F, *_ABOVE_ASCII}}  # msgspec escapes what is below


def escape_controls(text: str) -> str:
    """`text` with its control characters as escapes; line breaks and tabs stay, also those of Windows."""
    return text.replace("\r\n", "\n").translate(_VISIBLE)


def json_line(value: Any) -> str:
    """`value` as one line of JSON that no terminal obeys."""
    return msgspec.json.encode(value).decode().translate(_JSON) + "\n"


class SafeConsole(Console):
    """A console that prints the text it is given `visible`; the styles are its own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        return _escape_segments(super().render(renderable, options))


def _escape_segments(segments: Iterable[Segment]) -> Iterator[Segment]:
    for segment in segments:
        yield segment if segment.control else segment._replace(text=escape_controls(segment.text))


# MERGED lamplighter/cli/show.py: How answers look to a person: tables and one-line facts.


STATUS_STYLES = {
    Status.SUCCEEDED: "green",
    Status.FAILED: "red",
    Status.EXPIRED: "red",
    Status.CANCELLED: "yellow",
    Status.RUNNING: "cyan",
    Status.CANCELLING: "yellow",
}


def print_table(console: Console, columns: Sequence[str], rows: Iterable[Sequence[str | Text]], empty: str) -> None:
    """Print `rows` under `columns`, or `empty` when there are none. A string in a row is no markup."""
    shown = Table(box=None, pad_edge=False)
    for number, name in enumerate(columns):
        shown.add_column(name, no_wrap=number == 0)  # an id that is cut cannot be copied
    for row in rows:
        shown.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    if shown.row_count:
        console.print(shown)
    else:
        console.print(empty)


def format_time(value: datetime | None) -> str:
    """A time in the machine's own zone, to the second."""
    return value.astimezone().strftime("%Y-%m-%d %H:%M:%S") if value else "-"


def format_size(value: int) -> str:
    """Bytes in the unit that reads best."""
    amount = float(value)
    for unit in ("B", "KB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def format_count(count: int, one: str, many: str = "") -> str:
    """`1 job`, `2 jobs`; `many` where it is not `one` with an s."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def format_warm_slots(slots: Mapping[str, Any]) -> str:
    """An endpoint's warm slots: how many wait, how many load, what became of the last one that died."""
    counts = ((slots["ready"], "waiting"), (slots["loading"], "warming"))
    parts = [f"{count} {word}" for count, word in counts if count] or ["none"]
    if slots.get("why"):
        rest = slots.get("retry_in_s")
        parts.append(f"{f'next try in {rest:.0f} s' if rest else 'trying again'} ({slots['why']})")
    return f"{slots['endpoint']}: {', '.join(parts)}"


def format_engine(host: Mapping[str, Any]) -> str:
    """What runs jobs on a host, and whether it answers."""
    if not host.get("engine"):
        return "-"
    user = f" as {host['run_as']}" if host.get("run_as") else ""
    return f"{host['engine']}{user}{', away' if host.get('engine_away') else ''}"


def describe_engine(host: Mapping[str, Any]) -> str:
    """What runs jobs on a host that is up, and what that means for them, in a sentence."""
    if why := host.get("engine_away"):
        choice = "start it, or choose --engine process, which runs jobs without containers"
        return f"{host['id']} starts no jobs until {host['engine']} answers there ({why}): {choice}"
    if host.get("engine") == "process":
        who = f"the user {host['run_as']}" if host.get("run_as") else "the runner's user"
        seen = "they see that machine and its network as that user does"
        return f"{host['id']} runs jobs as plain processes of {who}, not in containers: {seen}"
    return f"{host['id']} runs jobs in containers, by {host['engine']}"


def describe_job(job: JobView) -> str:
    """Where the job stands, in a few words."""
    if job.error is not None:
        return f"{job.error.code}: {job.error.message}"
    if job.progress is not None and job.status not in FINAL_STATUSES:
        return f"{job.progress.fraction:.0%} {job.progress.stage or ''}".strip()
    return job.message or job.reason or ""


JOB_COLUMNS = ("JOB", "ENDPOINT", "STATUS", "CREATED", "WHAT")


def job_rows(jobs: Iterable[JobView]) -> Iterable[Sequence[str | Text]]:
    """One row a job, under JOB_COLUMNS."""
    for job in jobs:
        style = STATUS_STYLES.get(job.status, "white")
        yield (
            job.id,
            job.endpoint,
            Text(job.status, style),
            format_time(job.created_at),
            describe_job(job),
        )


def print_log_tail(console: Console, shown: JobView, logs: str) -> None:
    """The end of a failed job's log, and the command `logs` for all of it."""
    if shown.error is None or not shown.error.log_tail:
        return
    for line in shown.error.log_tail:
        console.print(f"  {line}", markup=False, highlight=False)
    console.print(f"the whole log: {logs}", markup=False, highlight=False)


def print_job(console: Console, shown: JobView) -> None:
    """Everything of one job that a person asks for."""
    facts = {
        "job": shown.id,
        "endpoint": shown.endpoint,
        "status": shown.status.value,
        "what": describe_job(shown),
        "position": "" if shown.queue_position is None else str(shown.queue_position),
        "attempt": f"{shown.attempt} of {shown.max_attempts}, round {shown.round}",
        "host": " ".join(filter(None, (shown.host, shown.gpu))),
        "engine": shown.engine or "",
        "created": format_time(shown.created_at),
        "started": format_time(shown.started_at),
        "finished": format_time(shown.finished_at),
        "ran": f"{shown.usage.run_s:.1f} s" if shown.usage.run_s is not None else "",
    }
    for name, value in facts.items():
        if value and value != "-":
            console.print(f"{name:<9} {value}", markup=False, highlight=False)
    for file in shown.output.files if shown.output else ():
        console.print(
            f"{'output':<9} {file.name}  {format_size(file.bytes)}  sha256:{file.sha256[:12]}…",
            markup=False,
            highlight=False,
        )
    if shown.output and shown.output.data:
        console.print_json(data=shown.output.data)
