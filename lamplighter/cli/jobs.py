"""Client commands for jobs and their files: `submit`, `jobs`, `watch`, `cancel`, `upload`, `assets`…

The first part parses the arguments `--FIELD VALUE` of `submit` by the endpoint's input schema. The second shows a job
on its way: a progress bar for a person, one line for each event for a program.
"""

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from lamplighter import api
from lamplighter.api import JobFailed
from lamplighter.cli import display
from lamplighter.cli.context import INTERRUPTED, CliContext, client_command, run_default_command
from lamplighter.cli.display import escape_controls, json_line
from lamplighter.cli.language import say
from lamplighter.files import ByteProgress, is_local_file
from lamplighter.follow import require_success
from schemas.asset import DIGEST_SCHEME
from schemas.job import FINAL_STATUSES, Priority, Status
from schemas.job_view import JobView


def parse_pairs(arguments: Sequence[str]) -> dict[str, str]:
    """Parse `--name value` and `--name=value` in order. Raises UsageError that names the argument it cannot parse."""
    given: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise click.UsageError(f"{word!r} has no field: give inputs as --FIELD VALUE")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not rest:
                raise click.UsageError(f"--{name} has no value: give inputs as --FIELD VALUE")
            value = rest.pop(0)
        given[name.replace("-", "_")] = value
    return given


def _parse_bool(text: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}
    return words[text.lower()]


def _parse_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("JSON cannot represent this number")
    return value


def _check_utf8(text: str) -> str:
    text.encode()  # bytes that are not UTF-8 come from the shell as lone surrogates, which JSON cannot represent
    return text


PARSERS: Mapping[str, Any] = {
    "integer": int,
    "number": _parse_number,
    "boolean": _parse_bool,
    "array": msgspec.json.Decoder(list[Any]).decode,
    "object": msgspec.json.Decoder(dict[str, Any]).decode,
    "string": _check_utf8,
}


def parse_value(name: str, text: str, schema: Mapping[str, Any]) -> Any:
    """Return `text` as a value of `schema`. An asset is a `sha256:…`, a URL, or a local file, which becomes a Path."""
    if schema.get("format") == "asset":
        return text if text.startswith((DIGEST_SCHEME, "http://", "https://")) else _parse_path(name, text)
    kind = schema.get("type", "string")
    try:
        return PARSERS[kind if isinstance(kind, str) else "string"](text)
    except (ValueError, KeyError, msgspec.DecodeError) as error:
        raise click.UsageError(f"--{name} {text!r} is not a value of the type {kind}") from error


def _parse_path(name: str, text: str) -> Path:
    if not is_local_file(text):
        raise click.UsageError(f"--{name} {text!r}: the file does not exist")
    return Path(text)


def parse_inputs(endpoint: str, arguments: Sequence[str], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the input of a job from the command line."""
    properties = schema.get("properties", {})
    given = parse_pairs(arguments)
    unknown = sorted(given.keys() - properties.keys())
    if unknown and schema.get("additionalProperties") is False:
        takes = ", ".join(f"--{name}" for name in properties)
        raise click.UsageError(f"{endpoint} has no --{unknown[0]}: it takes {takes}")
    return {name: parse_value(name, text, properties.get(name, {})) for name, text in given.items()}


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


def _require_id(_: click.Context, __: click.Parameter, job_id: str) -> str:
    if not job_id:  # an empty shell variable would turn the path of one job into that of all jobs
        raise click.BadParameter("it is empty")
    return job_id


job_argument = click.argument("job_id", metavar="ID", callback=_require_id)
PASS_THROUGH_OPTIONS = {"ignore_unknown_options": True, "allow_extra_args": True}


@click.command(context_settings=PASS_THROUGH_OPTIONS)
@click.argument("endpoint")
@click.option("--wait", is_flag=True, help="Follow the job and return when it has ended.")
@click.option("-o", "--output", type=click.Path(), help="Save the outputs there (implies --wait).")
@click.option("--priority", type=click.Choice([priority.value for priority in Priority]), help="Queue priority.")
@click.option("--id", "job_id", help="Your own id for the job (unique per owner).")
@click.option("--idempotency-key", help="The same key with the same inputs returns the same job.")
@click.option("--tag", "tags", multiple=True, metavar="NAME:VALUE", help="A label to find the job by. May be repeated.")
@click.option("--body", metavar="JSON", default="{}", help="Further fields of the request: policy, deadline, …")
@click.argument("inputs", nargs=-1, type=click.UNPROCESSED, metavar="--FIELD VALUE…")
@client_command
def submit(session: CliContext, endpoint: str, inputs: tuple[str, ...], **options: Any) -> None:
    """Submit a job. Inputs are --FIELD VALUE; a field that takes a file takes its path."""
    schema = session.client.call(api.get_endpoint(endpoint))["input"]
    given = parse_inputs(endpoint, inputs, schema)
    ready = {name: upload_file(session, value) if isinstance(value, Path) else value for name, value in given.items()}
    job = session.client.call(_submit_request(endpoint, ready, options))
    if not (options["wait"] or options["output"]):
        session.show(job, lambda: _print_accepted(session, job.id))
        return
    session.err.print(say(f"job {job.id}"), highlight=False)
    with print_resume_hint(session, job.id, options["output"]):
        ended = _watch_until_success(session, job.id)
        saved = save_outputs(session, ended, options["output"]) if options["output"] else []
    session.show(ended, lambda: display.print_job(session.out, ended))
    for path in saved:
        session.err.print(say(f"saved {path}"), highlight=False)


def _watch_until_success(session: CliContext, job_id: str) -> JobView:
    """Return the job once it has succeeded. With --json, print also a job that did not succeed."""
    try:
        return watch_to_end(session, job_id, quietly=session.as_json)
    except JobFailed as failed:
        if session.as_json:
            session.show(failed.job, lambda: None)
        raise


def _print_accepted(session: CliContext, job_id: str) -> None:
    text = f"accepted: job {job_id}\nfollow it with: {session.format_next_command('watch', job_id)}"
    session.out.print(say(text), highlight=False)


def _submit_request(endpoint: str, given: dict[str, Any], options: dict[str, Any]) -> api.ApiRequest[Any]:
    more = parse_value("body", options["body"], {"type": "object"})
    if options["tags"]:
        more["tags"] = dict(map(_parse_tag, options["tags"]))
    return api.submit_job(
        endpoint,
        given,
        job_id=options["job_id"],
        idempotency_key=options["idempotency_key"],
        priority=options["priority"],
        options=more,
    )


def _parse_tag(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not (name and colon):
        raise click.UsageError(f"--tag {text!r} is not NAME:VALUE: put a colon between name and value")
    return name, value


@click.command()
@click.option("--status", type=click.Choice([status.value for status in Status]), help="Only jobs with this status.")
@click.option("--endpoint", help="Only jobs of this endpoint.")
@click.option("--tag", metavar="NAME:VALUE", help="Only jobs with this tag.")
@click.option("--limit", type=click.IntRange(1, 500), default=20, show_default=True, help="How many.")
@click.option("--cursor", help="Show the next page: `next_cursor` of the last one, which --json prints.")
@client_command
def jobs(session: CliContext, limit: int, cursor: str | None, **filters: str | None) -> None:
    """List jobs, newest first."""
    page = session.client.call(api.list_jobs(limit, cursor, filters))
    session.show_table(page, display.JOB_COLUMNS, display.job_rows(page.jobs), "no jobs yet")


@click.command()
@job_argument
@client_command
def job(session: CliContext, job_id: str) -> None:
    """Show one job."""
    found = session.client.job(job_id)
    session.show(found, lambda: _print_job_and_log_tail(session, found))


def _print_job_and_log_tail(session: CliContext, found: JobView) -> None:
    display.print_job(session.out, found)
    display.print_log_tail(session.out, found, session.format_next_command("logs", found.id))


@click.command(name="watch")
@job_argument
@click.option("-o", "--output", type=click.Path(), help="Save the outputs there.")
@client_command
def watch_job(session: CliContext, job_id: str, output: str | None) -> None:
    """Follow a job to its end."""
    with print_resume_hint(session, job_id, output):
        ended = watch_to_end(session, job_id)
        saved = save_outputs(session, ended, output) if output else []
    for path in saved:
        session.err.print(say(f"saved {path}"), highlight=False)
    if not session.as_json:
        display.print_job(session.out, ended)


@click.command()
@job_argument
@client_command
def logs(session: CliContext, job_id: str) -> None:
    """Print the output of the job's container."""
    text = session.client.logs(job_id)
    session.show({"job": job_id, "text": text}, lambda: _write_log(text))


def _write_log(text: str) -> None:
    sys.stdout.write(escape_controls(text))
    sys.stdout.flush()


@click.command()
@job_argument
@client_command
def cancel(session: CliContext, job_id: str) -> None:
    """Stop a job, waiting or running."""
    found = session.client.cancel(job_id)
    session.show(found, lambda: session.out.print(say(f"job {job_id} {found.status}"), highlight=False))


@click.command()
@job_argument
@client_command
def retry(session: CliContext, job_id: str) -> None:
    """Run a failed, cancelled or expired job again, with the same inputs."""
    found = session.client.retry(job_id)
    line = f"job {job_id} {found.status}, round {found.round}"
    session.show(found, lambda: session.out.print(say(line), highlight=False))


@click.command()
@job_argument
@client_command
def delete(session: CliContext, job_id: str) -> None:
    """Remove a job that has ended: its record, outputs and logs."""
    session.client.delete(job_id)
    session.show({"deleted": job_id}, lambda: session.out.print(say(f"job {job_id} deleted"), highlight=False))


@click.command()
@job_argument
@client_command
def history(session: CliContext, job_id: str) -> None:
    """List the events of a job, oldest first."""
    rows = session.client.call(api.get_json(api.job_path(job_id, "history")))
    shown = ((str(row["revision"]), row["at"], row["event"]["type"], row["status"]) for row in rows)
    session.show_table(rows, ("REVISION", "AT", "EVENT", "STATUS"), shown, "nothing")


@click.group(invoke_without_command=True)
@click.pass_context
def assets(context: click.Context, /, **given: Any) -> None:
    """List or delete your files."""
    run_default_command(context, list_assets, given)


@assets.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many.")
@click.option("--cursor", help="Show the next page: `next_cursor` of the last one, which --json prints.")
@client_command
def list_assets(session: CliContext, limit: int, cursor: str | None) -> None:
    """List your uploaded files and outputs."""
    page = session.client.call(api.list_assets(limit, cursor))
    rows = ((a.sha256, display.format_size(a.bytes), a.media_type, a.name) for a in page.assets)
    session.show_table(page, ("SHA256", "SIZE", "TYPE", "NAME"), rows, "no assets yet")


assets.params.extend(list_assets.params)  # `assets --json` is `assets list --json`


@assets.command("delete")
@click.argument("digests", metavar="SHA256…", nargs=-1, required=True)
@client_command
def delete_assets(session: CliContext, digests: tuple[str, ...]) -> None:
    """Delete your files. A file that an unfinished job needs is not deleted."""
    for digest in digests:
        _print_deleted(session, session.client.call(api.delete_asset(digest)))


def _print_deleted(session: CliContext, deletion: dict[str, Any]) -> None:
    pending = ", ".join(deletion["hosts_pending"])
    more = f"; {pending} will delete its copy before the next job" if pending else ""
    line = f"{deletion['sha256']}  {deletion['message']}{say(more)}"
    session.show(deletion, lambda: session.out.print(line, markup=False, highlight=False))


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@client_command
def upload(session: CliContext, files: tuple[Path, ...]) -> None:
    """Upload files and print the digests that the inputs of jobs take."""
    for path in files:
        _print_digest(session, path, upload_file(session, path))


def _print_digest(session: CliContext, path: Path, digest: str) -> None:
    line = f"{digest}  {path}"
    session.show({"file": str(path), "digest": digest}, lambda: session.out.print(line, markup=False, highlight=False))
