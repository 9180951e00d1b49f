"""`lamplighter hosts`: which hosts there are, letting one in, putting one out."""

from typing import Any

import click

from lamplighter import api
from lamplighter.cli import display
from lamplighter.cli.context import CliContext, client_command, run_default_command

# What the edge takes from a host before it answers its removal (edge.hosts.enrollment).
REVOKED = ("its key for files", "its broker account and connections", "its presence and offer", "a held power state")


@click.group(invoke_without_command=True)
@click.pass_context
def hosts(context: click.Context, /, **given: Any) -> None:
    """List the GPU hosts, let one join, or put one out."""
    run_default_command(context, list_hosts, given)


@hosts.command("list")
@client_command
def list_hosts(session: CliContext) -> None:
    """List the GPU hosts."""
    found = session.client.call(api.get_json("/v1/hosts"))["hosts"]
    session.show(found, lambda: print_hosts(session, found))


hosts.params.extend(list_hosts.params)  # `hosts --json` is `hosts list --json`


def print_hosts(session: CliContext, found: list[dict[str, Any]]) -> None:
    """As a table."""
    columns = ("HOST", "STATE", "SINCE", "ENGINE", "ENDPOINTS", "GPUS", "GIVEN BY", "WARM", "JOBS")
    display.print_table(session.out, columns, map(_host_row, found), "no host has come yet: start a runner")


def _host_row(host: dict[str, Any]) -> tuple[str, ...]:
    cards = ", ".join(f"{gpu['name']} ({gpu['fitness']})" for gpu in host["gpus"]) or "none"
    return (
        host["id"],
        host["state"],
        host["since"] or "-",
        display.format_engine(host),
        ", ".join(host["endpoints"]),
        cards,
        host.get("injection") or "-",
        "; ".join(map(display.format_warm_slots, host.get("warm", ()))) or "-",
        str(len(host["jobs"])),
    )


@hosts.command("add")
@click.argument("host", metavar="ID")
@client_command
def add_host(session: CliContext, host: str) -> None:
    """Let machine ID join: prints the line to type there. Whoever has that line is this host."""
    made = session.client.call(api.add_host(host))
    session.show(made, lambda: session.out.print(made["command"], markup=False, highlight=False))


@hosts.command("remove")
@click.argument("host", metavar="ID")
@client_command
def remove_host(session: CliContext, host: str) -> None:
    """Put a host that joined out: its key and its connection to the broker end at once."""
    session.client.call(api.delete_path(f"/v1/hosts/{api.quote_segment(host)}"))
    told = f"host {host} removed; revoked: {', '.join(REVOKED)}"
    session.show({"removed": host, "revoked": REVOKED}, lambda: session.out.print(told, highlight=False))


OVERRIDE_TEXTS = {"on": "held on", "off": "held off", "auto": "left to its work"}


@click.command()
@click.argument("host")
@click.argument("want", type=click.Choice([*OVERRIDE_TEXTS]))
@click.option("--until", metavar="TIME", help="Until when, as 2026-11-22T23:00:00Z; without it until `auto`.")
@client_command
def power(session: CliContext, host: str, want: str, until: str | None) -> None:
    """Hold a declared host on or off, or leave it to its work again (off drains first)."""
    found = session.client.call(api.set_power(host, want, until))
    session.show(
        found, lambda: session.out.print(f"host {host} {found.state}, {OVERRIDE_TEXTS[want]}", highlight=False)
    )
