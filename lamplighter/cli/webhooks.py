"""`lamplighter webhooks`: the webhooks for all jobs of the key's owner."""

import sys
from typing import Any

import click

from lamplighter.cli import display
from lamplighter.cli.context import CliContext, client_command
from lamplighter.cli.language import say
from schemas.status import FINAL_STATUSES, Status

NOT_DELIVERED = 1  # the exit code
FINAL_STATES = [status.value for status in Status if status in FINAL_STATUSES]
COLUMNS = ("WEBHOOK", "URL", "ENDPOINTS", "STATES", "CREATED", "STATE")


@click.group()
def webhooks() -> None:
    """Call a URL when any of your jobs ends: list, add, delete and test webhooks."""


@webhooks.command("list")
@client_command
def list_webhooks(session: CliContext) -> None:
    """List the webhooks for all jobs."""
    found = session.client.webhooks()
    empty = "no webhooks for all jobs"
    session.show(found, lambda: display.print_table(session.out, COLUMNS, map(_row, found), empty))


def _row(webhook: dict[str, Any]) -> tuple[str, ...]:
    endpoints = " ".join(webhook["endpoints"]) or say("all")
    state = say("disabled" if webhook["disabled"] else "active")
    created = display.format_time_text(webhook["created_at"])
    return webhook["id"], webhook["url"], endpoints, " ".join(webhook["states"]), created, state


@webhooks.command("add")
@click.argument("receiver", metavar="URL")
@click.option("--endpoint", "endpoints", multiple=True, help="Only jobs of this endpoint. May be repeated.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(FINAL_STATES),
    help="Only jobs that end like this. May be repeated.",
)
@client_command
def add_webhook(session: CliContext, receiver: str, endpoints: tuple[str, ...], states: tuple[str, ...]) -> None:
    """Add a webhook: URL is called with the final states of all your jobs. Prints its id."""
    added = session.client.add_webhook(receiver, endpoints, states)
    session.show(added, lambda: session.out.print(added["id"], markup=False, highlight=False))


@webhooks.command("delete")
@click.argument("webhook_id", metavar="ID")
@client_command
def delete_webhook(session: CliContext, webhook_id: str) -> None:
    """Delete a webhook. Its waiting deliveries are not sent."""
    session.client.delete_webhook(webhook_id)
    text = say(f"webhook {webhook_id} deleted")
    session.show({"deleted": webhook_id}, lambda: session.out.print(text, markup=False, highlight=False))


@webhooks.command("test")
@click.argument("webhook_id", metavar="ID")
@client_command
def test_webhook(session: CliContext, webhook_id: str) -> None:
    """Send one test message to a webhook and show the answer. Exit code 1 unless it is 2xx."""
    answer = session.client.test_webhook(webhook_id)
    status, why = answer["status"], answer["error"]
    text = say(f"no answer: {why}") if status is None else say(f"the receiver answered {status}")
    session.show(answer, lambda: session.out.print(text, markup=False, highlight=False))
    if not answer["delivered"]:
        sys.exit(NOT_DELIVERED)
