"""`lamplighter hosts`: which hosts there are, letting one in, putting one out."""

from typing import Any

import click

from lamplighter import wire
from lamplighter.cli import show
from lamplighter.cli.session import Session, client_command, list_or_verb

# What the edge takes from a host before it answers its removal (edge.services.joining).
REVOKED = ("its key for files", "its broker account and connections", "its presence and offer", "a held power state")


@click.group(invoke_without_command=True)
@click.pass_context
def hosts(context: click.Context, /, **given: Any) -> None:
    """List the GPU hosts, let one join, or put one out."""
    list_or_verb(context, list_hosts, given)


@hosts.command("list")
@client_command
def list_hosts(session: Session) -> None:
    """List the GPU hosts."""
    found = session.client.call(wire.fetch("/v1/hosts"))["hosts"]
    session.show(found, lambda: print_hosts(session, found))


hosts.params.extend(list_hosts.params)  # `hosts --json` is `hosts list --json`


def print_hosts(session: Session, found: list[dict[str, Any]]) -> None:
    """As a table."""
    columns = ("HOST", "STATE", "SINCE", "ENGINE", "ENDPOINTS", "GPUS", "GIVEN BY", "WARM", "JOBS")
    show.table(session.out, columns, map(_host, found), "no host has come yet: start a runner")


def _host(host: dict[str, Any]) -> tuple[str, ...]:
    cards = ", ".join(f"{gpu['name']} ({gpu['fitness']})" for gpu in host["gpus"]) or "none"
    return (
        host["id"],
        host["state"],
        host["since"] or "-",
        show.engine(host),
        ", ".join(host["endpoints"]),
        cards,
        host.get("injection") or "-",
        "; ".join(map(show.warm, host.get("warm", ()))) or "-",
        str(len(host["jobs"])),
    )


@hosts.command("add")
@click.argument("host", metavar="ID")
@client_command
def add_host(session: Session, host: str) -> None:
    """Let machine ID join: prints the line to type there. Whoever has that line is this host."""
    made = session.client.call(wire.add_host(host))
    session.show(made, lambda: session.out.print(made["command"], markup=False, highlight=False))


@hosts.command("remove")
@click.argument("host", metavar="ID")
@client_command
def remove_host(session: Session, host: str) -> None:
    """Put a host that joined out: its key and its connection to the broker end at once."""
    session.client.call(wire.delete(f"/v1/hosts/{wire.quoted(host)}"))
    told = f"host {host} removed; revoked: {', '.join(REVOKED)}"
    session.show({"removed": host, "revoked": REVOKED}, lambda: session.out.print(told, highlight=False))
