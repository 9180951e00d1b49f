"""Print answers on a terminal: tables, one-line facts, and text with its control characters escaped.

Text of jobs, clients and other machines may contain control characters. In a job's log they could clear the screen,
set the title, fill the clipboard (OSC 52) or reverse the line (bidirectional overrides). They are printed as escapes,
`\\x1b`. `--json` keeps the exact text.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from rich.cells import set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from lamplighter.cli.language import say, say_each
from schemas.host import DISK_FULL_FAILURE
from schemas.job import FINAL_STATUSES, Status
from schemas.job_view import JobView

_BIDI = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_LINE_BREAKS = (0x0085, 0x2028, 0x2029)  # some terminals and editors break a line at these
_ABOVE_ASCII = {*range(0x80, 0xA0), *_BIDI, *_LINE_BREAKS}
_CONTROLS = {*range(0x20), 0x7F} - {ord("\n"), ord("\t")}


def _escape_code(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


_VISIBLE = {code: _escape_code(code) for code in _CONTROLS | _ABOVE_ASCII}
_JSON = {code: f"\\u{code:04x}" for code in {0x7F, *_ABOVE_ASCII}}  # msgspec escapes those below 0x20


def escape_controls(text: str) -> str:
    """Return `text` with its control characters as escapes. Line breaks and tabs stay, also those of Windows."""
    return text.replace("\r\n", "\n").translate(_VISIBLE)


def json_line(value: Any, enc_hook: Callable[[Any], Any] | None = None) -> str:
    """Return `value` as one line of JSON without control characters. `enc_hook`: as for `msgspec.json.encode`."""
    text = msgspec.json.encode(value, enc_hook=enc_hook).decode()
    return (text if text.isascii() and "\x7f" not in text else text.translate(_JSON)) + "\n"


class SafeConsole(Console):
    """A console that escapes control characters in the text that it prints. Its own styles work."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        return _escape_segments(super().render(renderable, options))


def _escape_segments(segments: Iterable[Segment]) -> Iterator[Segment]:
    for segment in segments:
        yield segment if segment.control else segment._replace(text=escape_controls(segment.text))


PIPE_WIDTH_COLUMNS = 200  # columns of a table that goes to a file or another program


def make_console() -> SafeConsole:
    """Return the console of a command's answer, on stdout."""
    return SafeConsole(markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH_COLUMNS)


STATUS_STYLES = {
    Status.SUCCEEDED: "green",
    Status.FAILED: "red",
    Status.EXPIRED: "red",
    Status.CANCELLED: "yellow",
    Status.RUNNING: "cyan",
    Status.CANCELLING: "yellow",
}


def print_table(console: Console, columns: Sequence[str], rows: Iterable[Sequence[str | Text]], empty: str) -> None:
    """Print `rows` under `columns`, or `empty` if there are no rows. Strings are printed without markup."""
    shown = Table(box=None, pad_edge=False)
    for number, name in enumerate(say_each(columns)):
        shown.add_column(name, no_wrap=number == 0)  # a wrapped id cannot be copied
    for row in rows:
        shown.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    if shown.row_count:
        console.print(shown)
    else:
        console.print(say(empty))


def format_time(value: datetime | None) -> str:
    """Return a time in the machine's time zone, to the second."""
    return value.astimezone().strftime("%Y-%m-%d %H:%M:%S") if value else "-"


def format_time_text(text: str | None) -> str:
    """Return a time of the API (RFC 3339) as `format_time` does."""
    return format_time(datetime.fromisoformat(text) if text else None)


def format_size(value: int) -> str:
    """Return a number of bytes with the unit that fits."""
    amount = float(value)
    for unit in ("B", "KB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def format_count(count: int, one: str, many: str = "") -> str:
    """Return `1 job` or `2 jobs`; `many` is the plural where it is not `one` with an s."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def format_warm_slots(slots: Mapping[str, Any], translate: Callable[[str], str] = str) -> str:
    """Return an endpoint's warm slots: how many are ready, how many load, and why the last one failed."""
    counts = ((slots["ready"], "ready"), (slots["loading"], "loading"))
    parts = [translate(f"{count} {word}") for count, word in counts if count] or [translate("none")]
    if slots.get("why"):
        delay_s = slots.get("retry_in_s")
        parts.append(f"{f'next try in {delay_s:.0f} s' if delay_s else 'trying again'} ({slots['why']})")
    return f"{slots['endpoint']}: {', '.join(parts)}"


def format_pull(image: Mapping[str, Any]) -> str:
    """Return how much of an image or a volume has arrived. Its size grows as more of it becomes known."""
    size = f", {format_size(image['done_bytes'])} / {format_size(image['total_bytes'])}" if image["total_bytes"] else ""
    return f"{image['percent']} %{size}"


def format_images(host: Mapping[str, Any]) -> str:
    """Return how many images of a host are ready, and each image or volume that is not, with its state."""
    images = host.get("images", ())
    others = [image for image in images if image["state"] != "ready"]
    parts = [say(f"{len(images) - len(others)} ready")] if len(images) > len(others) else []
    for image in others:
        state = format_pull(image) if image["state"] == "pulling" else say(image["state"])
        parts.append(f"{image['image']}: {state}")
    unfilled = (volume for volume in host.get("volumes", ()) if volume["state"] != "ready")
    parts += (f"{', '.join(volume['names'])}: {format_fill(volume)}" for volume in unfilled)
    return "; ".join(parts) or "-"


def format_labels(host: Mapping[str, Any]) -> str:
    """Return the labels of a host as `disk=nvme, room=b`."""
    return ", ".join(f"{name}={value}" for name, value in sorted(host.get("labels", {}).items())) or "-"


def format_fill(volume: Mapping[str, Any]) -> str:
    """Return the state of a volume that is not ready: how much of it has arrived, or why it is missing."""
    if volume["state"] == "filling":
        return format_pull(volume)
    return say("disk full") if volume.get("failure") == DISK_FULL_FAILURE else say(volume["state"])


def format_free_share(gpu: Mapping[str, Any]) -> str:
    """Return the free part of a GPU that jobs share; "" if none or all of it is free."""
    free = gpu.get("share_free")
    return say(f"{free:.0%} of it free") if free is not None and 0 < free < 1 else ""


def format_engine(host: Mapping[str, Any]) -> str:
    """Return the engine of a host, its user, and whether it does not answer."""
    if not host.get("engine"):
        return "-"
    user = f" as {host['run_as']}" if host.get("run_as") else ""
    return say(f"{host['engine']}{user}{', away' if host.get('engine_away') else ''}")


def format_offered(host: Mapping[str, Any]) -> str:
    """Return the endpoints of a host; `(unmet)` stands after those whose requirements it does not meet."""
    unmet = host.get("unmet", {})
    return ", ".join(say(f"{name} (unmet)") if name in unmet else name for name in host["endpoints"])


def describe_kept_on(host: Mapping[str, Any]) -> str:
    """Return why a host with a power driver is on, as the edge says it; empty where it is off."""
    why = "; ".join(reason["message"] for reason in host.get("kept_on", ()))
    return f"{host['id']} is on: {why}" if why else ""


def describe_waits(host: Mapping[str, Any]) -> list[str]:
    """Return what a host cannot do now, with the reasons; one sentence for each task."""
    return [f"host {host['id']}: cannot {what}" for what in host.get("waits", ())]


def describe_engine(host: Mapping[str, Any]) -> str:
    """Return a sentence about the engine of an online host, and what it means for the jobs there."""
    if why := host.get("engine_away"):
        fix = "start it, or choose --engine process, which runs jobs without containers"
        return f"{host['id']} starts no jobs until {host['engine']} answers there ({why}): {fix}"
    if host.get("isolation") == "bubblewrap":
        return f"{host['id']} runs jobs in sandboxes of bubblewrap"
    if host.get("engine") == "process":
        user = f"the user {host['run_as']}" if host.get("run_as") else "the runner's user"
        access = "they have that user's access to the machine and its network"
        return f"{host['id']} runs jobs as plain processes of {user}, not in containers: {access}"
    return f"{host['id']} runs jobs in containers, by {host['engine']}"


def describe_job(job: JobView) -> str:
    """Return the error, the progress or the message of a job, in a few words."""
    if job.error is not None:
        return f"{job.error.code}: {job.error.message}"
    if job.progress is not None and job.status not in FINAL_STATUSES:
        return f"{job.progress.fraction:.0%} {job.progress.stage or ''}".strip()
    return job.message or job.reason or ""


JOB_COLUMNS = ("JOB", "ENDPOINT", "STATUS", "CREATED", "DETAIL")


def job_rows(jobs: Iterable[JobView]) -> Iterable[Sequence[str | Text]]:
    """Yield a row of JOB_COLUMNS for each job."""
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
    """Print the end of a failed job's log, and the command for all of it."""
    if shown.error is None or not shown.error.log_tail:
        return
    for line in shown.error.log_tail:
        console.print(f"  {line}", markup=False, highlight=False)
    console.print(say(f"the whole log: {logs}"), markup=False, highlight=False)


def print_job(console: Console, shown: JobView) -> None:
    """Print the fields of one job, one a line."""
    facts = {
        "job": shown.id,
        "endpoint": shown.endpoint,
        "status": shown.status.value,
        "detail": describe_job(shown),
        "position": "" if shown.queue_position is None else str(shown.queue_position),
        "attempt": say(f"{shown.attempt} of {shown.max_attempts}, round {shown.round}"),
        "host": " ".join(filter(None, (shown.host, shown.gpu))),
        "engine": ", ".join(dict.fromkeys(filter(None, (shown.engine, shown.isolation)))),
        "image": " ".join(filter(None, (shown.program.image, shown.program.image_digest))) if shown.program else "",
        "created": format_time(shown.created_at),
        "started": format_time(shown.started_at),
        "finished": format_time(shown.finished_at),
        "ran": f"{shown.usage.run_s:.1f} s" if shown.usage.run_s is not None else "",
    }
    for name, value in facts.items():
        if value and value != "-":
            console.print(f"{set_cell_size(say(name), 9)} {value}", markup=False, highlight=False)
    for file in shown.output.files if shown.output else ():
        console.print(
            f"{set_cell_size(say('output'), 9)} {file.name}  {format_size(file.bytes)}  sha256:{file.sha256[:12]}…",
            markup=False,
            highlight=False,
        )
    if shown.output and shown.output.data:
        console.print_json(data=shown.output.data)
