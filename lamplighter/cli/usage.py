"""`lamplighter usage`: usage and cost in a range of time."""

from typing import Any

import click

from lamplighter import api
from lamplighter.cli import display
from lamplighter.cli.context import CliContext, client_command
from lamplighter.cli.language import say


@click.command()
@click.option("--from", "since", metavar="TIME", help="Start, such as 2026-11-01T00:00:00Z [30 days ago].")
@click.option("--to", "until", metavar="TIME", help="End, not included [now].")
@click.option("--owner", help="Only this owner. Needs a key with the scope admin, which shows all owners by default.")
@client_command
def usage(session: CliContext, since: str | None, until: str | None, owner: str | None) -> None:
    """Show jobs, GPU time, energy, cost, and how long the hosts were on and off."""
    given = {"from": since, "to": until, "owner": owner}
    found = session.client.call(api.get_json("/v1/usage", **{name: value for name, value in given.items() if value}))
    session.show(found, lambda: _print_usage(session, found))


def _print_usage(session: CliContext, found: dict[str, Any]) -> None:
    owner = found["owner"] or say("all owners")
    session.out.print(say(f"{owner}, {found['from'][:19]} to {found['to'][:19]}"), markup=False, highlight=False)
    rows = [_usage_row(share["endpoint"], share) for share in found["by"]]
    columns = ("ENDPOINT", "JOBS", "GPU TIME", "ENERGY", "COST", "HOURS ON")
    display.print_table(
        session.out, columns, [*rows, _usage_row(say("total"), found)] if rows else [], "no job has ended in this time"
    )
    hours = f"hosts on {found['hours_on']:.1f} h, off {found['hours_saved']:.1f} h"
    session.out.print(say(hours), markup=False, highlight=False)


def _usage_row(name: str, used: dict[str, Any]) -> tuple[str, ...]:
    money = f"{used['cost']['amount']:.2f} {used['cost']['currency']}"
    energy = f"{used['energy_j'] / 3_600_000:.3f} kWh"
    return name, str(used["jobs"]), f"{used['gpu_s']:.0f} s", energy, money, f"{used['hours_on']:.2f}"
