"""Client commands for files: `lamplighter assets` and `lamplighter upload`."""

from pathlib import Path
from typing import Any

import click

from lamplighter import api
from lamplighter.cli import display
from lamplighter.cli.context import CliContext, client_command, run_default_command
from lamplighter.cli.language import say
from lamplighter.cli.watch import upload_file


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
    session.show(
        page, lambda: display.print_table(session.out, ("SHA256", "SIZE", "TYPE", "NAME"), rows, "no assets yet")
    )


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
