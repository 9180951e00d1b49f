"""`lamplighter keys`: made, listed, rotated, revoked (needs a key with the scope admin)."""

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from lamplighter import operating, wire
from lamplighter.cli import show
from lamplighter.cli.session import Session, client_command
from schemas.access import CLIENT_SCOPES, Scope

SCOPES = f"May be repeated [{' '.join(CLIENT_SCOPES)}]."


@click.group()
def keys() -> None:
    """Make, list, rotate and revoke API keys (needs a key with the scope admin)."""


@keys.command("create")
@click.argument("owner")
@click.option("--scope", "scopes", multiple=True, type=click.Choice([scope.value for scope in Scope]), help=SCOPES)
@click.option("--name", default="", help="What the key is for.")
@click.option("--language", type=click.Choice(["zh", "en"]), help="Of the messages, where a client asks for none.")
@click.option("--days", type=click.FloatRange(0, 36500, min_open=True), help="How long it is good for.")
@client_command
def create_key(session: Session, owner: str, scopes: tuple[str, ...], days: float | None, **fields: str | None) -> None:
    """Make a key for OWNER; it is shown once."""
    ends = None if days is None else (datetime.now(UTC) + timedelta(days=days)).isoformat()
    made = session.client.call(operating.create_key(owner, list(scopes), expires_at=ends, **fields))
    _shown(session, made)


@keys.command("list")
@client_command
def list_keys(session: Session) -> None:
    """List the keys."""
    found = session.client.call(wire.fetch("/v1/keys"))["keys"]
    columns = ("KEY", "OWNER", "SCOPES", "CREATED", "EXPIRES", "LAST USED", "NAME")
    session.show(found, lambda: show.table(session.out, columns, map(_row, found), "no keys"))


def _row(key: dict[str, Any]) -> tuple[str, ...]:
    times = (key[name] or "-" for name in ("created_at", "expires_at", "used_at"))
    return key["id"], key["owner"], " ".join(key["scopes"]), *(at[:19] for at in times), key["name"]


@keys.command("rotate")
@click.argument("key_id", metavar="ID")
@click.option(
    "--grace",
    metavar="HOURS",
    type=click.FloatRange(0, 720),
    default=24.0,
    show_default=True,
    help="How long the one before still opens.",
)
@client_command
def rotate_key(session: Session, key_id: str, grace: float) -> None:
    """Give a key a new secret, shown once. The one before opens for --grace hours too; 0 ends it at once."""
    _shown(session, session.client.call(operating.rotate_key(key_id, grace * 3600)))


def _shown(session: Session, made: dict[str, Any]) -> None:
    session.show(made, lambda: session.out.print(made["key"], markup=False, highlight=False))


@keys.command("revoke")
@click.argument("key_id", metavar="ID")
@client_command
def revoke_key(session: Session, key_id: str) -> None:
    """Revoke a key at once."""
    session.client.call(wire.delete(f"/v1/keys/{wire.quoted(key_id)}"))
    session.show({"revoked": key_id}, lambda: session.out.print(f"key {key_id} revoked", highlight=False))
