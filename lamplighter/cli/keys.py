"""`lamplighter keys`: create, list, rotate and revoke API keys, which needs the scope admin; `lamplighter console`."""

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from lamplighter import api
from lamplighter.cli import display
from lamplighter.cli.context import CliContext, client_command
from lamplighter.cli.language import say
from schemas.auth import CLIENT_SCOPES, Scope

SCOPES = f"May be repeated [{' '.join(CLIENT_SCOPES)}]."


@click.command()
@client_command
def console(session: CliContext) -> None:
    """Print a link that opens the console in a browser, signed in with this key. It works once, for 15 minutes."""
    made = session.client.call(api.create_sign_in_ticket())
    link = f"{session.client.url}{made['path']}"
    session.show({"url": link, "expires_at": made["expires_at"]}, lambda: session.out.print(link, soft_wrap=True))


@click.group()
def keys() -> None:
    """Create, list, rotate and revoke API keys (needs a key with the scope admin)."""


@keys.command("create")
@click.argument("owner")
@click.option("--scope", "scopes", multiple=True, type=click.Choice([scope.value for scope in Scope]), help=SCOPES)
@click.option("--name", default="", help="What the key is for.")
@click.option(
    "--language", type=click.Choice(["zh", "en"]), help="Language of messages, unless a client asks for another."
)
@click.option("--days", type=click.FloatRange(0, 36500, min_open=True), help="Days until the key expires.")
@client_command
def create_key(
    session: CliContext, owner: str, scopes: tuple[str, ...], days: float | None, **fields: str | None
) -> None:
    """Create a key for OWNER. It is shown only once."""
    ends = None if days is None else (datetime.now(UTC) + timedelta(days=days)).isoformat()
    made = session.client.call(api.create_key(owner, list(scopes), expires_at=ends, **fields))
    _print_secret(session, made)


@keys.command("list")
@client_command
def list_keys(session: CliContext) -> None:
    """List the keys."""
    found = session.client.call(api.get_json("/v1/keys"))["keys"]
    columns = ("KEY", "OWNER", "SCOPES", "CREATED", "EXPIRES", "LAST USED", "NAME")
    session.show(found, lambda: display.print_table(session.out, columns, map(_key_row, found), "no keys"))


def _key_row(key: dict[str, Any]) -> tuple[str, ...]:
    times = (display.format_time_text(key[name]) for name in ("created_at", "expires_at", "used_at"))
    return key["id"], key["owner"], " ".join(key["scopes"]), *times, key["name"]


@keys.command("rotate")
@click.argument("key_id", metavar="ID")
@click.option(
    "--grace",
    metavar="HOURS",
    type=click.FloatRange(0, 720),
    default=24.0,
    show_default=True,
    help="How long the old secret stays valid.",
)
@client_command
def rotate_key(session: CliContext, key_id: str, grace: float) -> None:
    """Give a key a new secret, shown only once. The old secret stays valid for --grace hours."""
    _print_secret(session, session.client.call(api.rotate_key(key_id, grace * 3600)))


def _print_secret(session: CliContext, made: dict[str, Any]) -> None:
    session.show(made, lambda: _print_key(session, made))


def _print_key(session: CliContext, made: dict[str, Any]) -> None:
    """Print the key alone on stdout, so that a script can take it, and what it is on stderr."""
    session.out.print(made["key"], markup=False, highlight=False)
    scopes = ", ".join(made.get("scopes", ())) or "no scopes"
    session.err.print(f"key {made['id']} of {made['owner']} with {scopes}; it is not shown again", highlight=False)


@keys.command("revoke")
@click.argument("key_id", metavar="ID")
@client_command
def revoke_key(session: CliContext, key_id: str) -> None:
    """Revoke a key immediately."""
    session.client.call(api.delete_path(f"/v1/keys/{api.quote_segment(key_id)}"))
    session.show({"revoked": key_id}, lambda: session.out.print(say(f"key {key_id} revoked"), highlight=False))
