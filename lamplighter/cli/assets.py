"""`lamplighter assets`: which files there are, and deleting some."""

from typing import Any

import click

from lamplighter import wire
from lamplighter.cli import show
from lamplighter.cli.session import Session, client_command, list_or_verb


@click.group(invoke_without_command=True)
@click.pass_context
def assets(context: click.Context, /, **given: Any) -> None:
    """List your files, or delete some."""
    list_or_verb(context, list_assets, given)


@assets.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many.")
@click.option("--cursor", help="Further ones: `next_cursor` of the page before, as --json shows it.")
@client_command
def list_assets(session: Session, limit: int, cursor: str | None) -> None:
    """List your uploaded files and outputs."""
    page = session.client.call(wire.assets(limit, cursor))
    rows = ((a.sha256, show.size(a.bytes), a.media_type, a.name) for a in page.assets)
    session.show(page, lambda: show.table(session.out, ("SHA256", "SIZE", "TYPE", "NAME"), rows, "no assets yet"))


assets.params.extend(list_assets.params)  # `assets --json` is `assets list --json`


@assets.command("delete")
@click.argument("digests", metavar="SHA256…", nargs=-1, required=True)
@client_command
def delete_assets(session: Session, digests: tuple[str, ...]) -> None:
    """Delete files of yours; one that a job which has not ended needs is refused."""
    for digest in digests:
        _deleted(session, session.client.call(wire.delete_asset(digest)))


def _deleted(session: Session, gone: dict[str, Any]) -> None:
    pending = ", ".join(gone["hosts_pending"])
    more = f"; {pending} will drop it before the next job there" if pending else ""
    line = f"{gone['sha256']}  {gone['message']}{more}"
    session.show(gone, lambda: session.out.print(line, markup=False, highlight=False))
