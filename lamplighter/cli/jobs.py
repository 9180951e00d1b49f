"""Client commands for jobs: submit, jobs, job, watch, history, logs, cancel, retry, delete."""

import sys
from pathlib import Path
from typing import Any

import click

from lamplighter import api
from lamplighter.cli import display, input_args
from lamplighter.cli.context import CliContext, client_command
from lamplighter.cli.display import escape_controls
from lamplighter.cli.language import say
from lamplighter.cli.watch import print_resume_hint, save_outputs, upload_file, watch_to_end
from lamplighter.errors import JobFailed
from schemas.job_view import JobView
from schemas.status import Priority, Status


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
    given = input_args.parse_inputs(endpoint, inputs, schema)
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
    more = input_args.parse_value("body", options["body"], {"type": "object"})
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
    session.show(
        page, lambda: display.print_table(session.out, display.JOB_COLUMNS, display.job_rows(page.jobs), "no jobs yet")
    )


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
    session.show(
        rows, lambda: display.print_table(session.out, ("REVISION", "AT", "EVENT", "STATUS"), shown, "nothing")
    )
