"""Watching a job from the terminal: a progress bar for a person, one line for each event for a program."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from lamplighter.cli.context import INTERRUPTED, CliContext
from lamplighter.cli.display import json_line
from lamplighter.cli.language import say
from lamplighter.digest_cache import ByteProgress
from lamplighter.follow import require_success
from schemas.job_view import JobView
from schemas.status import FINAL_STATUSES


@contextmanager
def print_resume_hint(session: CliContext, job_id: str, output: str | None) -> Iterator[None]:
    """On Ctrl-C, print the command that resumes watching, with its output option, and exit. The job continues."""
    try:
        yield
    except KeyboardInterrupt:
        command = session.format_next_command("watch", job_id, *(("-o", output) if output else ()))
        session.err.print(say(f"\nThe job continues. Watch it again with: {command}"), markup=False, highlight=False)
        sys.exit(INTERRUPTED)


def watch_to_end(session: CliContext, job_id: str, *, quietly: bool = False) -> JobView:
    """Follow the job to its end. Raises JobFailed unless it succeeded. With `quietly`, show nothing on the way."""
    if quietly:
        return session.client.wait(job_id)
    return _print_events(session, job_id) if session.as_json else _draw_progress(session, job_id)


def _print_events(session: CliContext, job_id: str) -> JobView:
    for event in session.client.follow(job_id):
        sys.stdout.write(json_line({"id": event.id, "event": event.kind, "data": event.data}))
        sys.stdout.flush()
    return require_success(session.client.job(job_id))


def _draw_progress(session: CliContext, job_id: str) -> JobView:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=session.err, transient=True, disable=not session.err.is_terminal) as progress:
        task = progress.add_task(say("waiting"), total=1.0)
        for event in session.client.follow(job_id):
            if event.kind == "progress":
                progress.update(
                    task, completed=event.data["fraction"], description=event.data.get("stage") or say("running")
                )
            elif event.kind == "state":
                state = event.job
                progress.update(
                    task, description=state.message if state.status not in FINAL_STATUSES else state.status.value
                )
    return require_success(session.client.job(job_id))


@contextmanager
def transfer_bar(session: CliContext, verb: str, name: str, size: int) -> Iterator[ByteProgress]:
    """Show a progress bar for a file transfer; show nothing with --json or without a terminal."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    silent = session.as_json or not session.err.is_terminal
    with Progress(*columns, console=session.err, transient=True, disable=silent) as progress:
        task = progress.add_task(say(f"{verb} {name}"), total=size)
        yield lambda amount: progress.update(task, advance=amount)


def upload_file(session: CliContext, path: Path) -> str:
    """Upload `path` unless the edge has it, and return its `sha256:…`."""
    with transfer_bar(session, "uploading", path.name, path.stat().st_size) as advance:
        return session.client.upload(path, advance).digest


def save_outputs(session: CliContext, job: JobView, output: str) -> list[Path]:
    """Download the outputs into the folder `output`, or to that file if there is one output and it is not a folder.

    Missing folders are created. A name that ends with a slash is a folder.
    """
    files, to = job.output.files if job.output else (), Path(output)
    into_folder = output.endswith(os.sep) or to.is_dir() or len(files) != 1
    (to if into_folder else to.parent).mkdir(parents=True, exist_ok=True)
    saved = []
    for file in files:
        with transfer_bar(session, "fetching", file.name, file.bytes) as advance:
            saved.append(session.client.download(job, file.name, to / file.name if into_folder else to, advance))
    return saved
