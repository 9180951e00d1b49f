"""`lamplighter endpoints`: list the endpoints, or show the fields of one."""

from typing import Any

import click

from lamplighter import api
from lamplighter.cli import display
from lamplighter.cli.context import CliContext, client_command
from lamplighter.cli.language import say


class DefaultListGroup(click.Group):
    """A group whose command `list` runs where no command is named: `endpoints NAME` is `endpoints list NAME`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `list` before arguments without a command."""
        if not {*self.commands, *ctx.help_option_names}.intersection(args):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=DefaultListGroup)
def endpoints() -> None:
    """List the endpoints, show the input fields of one, pause or resume one."""


@endpoints.command("pause")
@click.argument("name")
@client_command
def pause_endpoint(session: CliContext, name: str) -> None:
    """Pause the endpoint NAME: new jobs are accepted and wait, running jobs continue."""
    found = session.client.call(api.set_endpoint_pause(name, "pause"))
    line = f"endpoint {name} is paused: `lamplighter endpoints resume` ends that"
    session.show(found, lambda: session.out.print(say(line), highlight=False))


@endpoints.command("resume")
@click.argument("name")
@client_command
def resume_endpoint(session: CliContext, name: str) -> None:
    """End the pause of the endpoint NAME."""
    found = session.client.call(api.set_endpoint_pause(name, "resume"))
    session.show(found, lambda: session.out.print(say(f"endpoint {name} is not paused any more"), highlight=False))


@endpoints.command("list")
@click.argument("name", required=False)
@client_command
def list_endpoints(session: CliContext, name: str | None) -> None:
    """List the endpoints, or the input fields of the endpoint NAME."""
    if name:
        one = session.client.call(api.get_endpoint(name))
        session.show(one, lambda: _print_fields(session, one))
        return
    found = session.client.call(api.get_json("/v1/endpoints"))["endpoints"]
    rows = ((e["name"], _describe_hosts(e), e["description"]) for e in found)
    session.show(
        found,
        lambda: display.print_table(
            session.out, ("ENDPOINT", "HOSTS", "DESCRIPTION"), rows, "no host offers an endpoint yet"
        ),
    )


def _describe_hosts(endpoint: dict[str, Any]) -> str:
    """Return the hosts of an endpoint, what they lack, whether their programs differ, and whether it is paused."""
    hosts = ", ".join(_describe_host(endpoint, host) for host in endpoint["hosts"]) or say("no host yet")
    hosts = say(f"{hosts} (they differ)") if endpoint.get("differs") else hosts
    return say(f"{hosts} (paused)") if endpoint.get("paused") else hosts


def _describe_host(endpoint: dict[str, Any], host: str) -> str:
    """Return the host with what it lacks, or with its volumes that are not ready."""
    if lacks := endpoint.get("unmet", {}).get(host):
        return say(f"{host} (lacks {lacks})")
    volumes = [volume for volume in endpoint.get("volumes", {}).get(host, ()) if volume["state"] != "ready"]
    states = ", ".join(f"{', '.join(volume['names'])}: {display.format_fill(volume)}" for volume in volumes)
    return f"{host} ({states})" if states else host


def _print_fields(session: CliContext, endpoint: dict[str, Any]) -> None:
    schema = endpoint["input"]
    required = set(schema.get("required", ()))
    rows = (
        (
            f"--{name}",
            say("file") if p.get("format") == "asset" else str(p.get("type") or say("any")),
            say("yes") if name in required else "",
            _describe_field(p),
        )
        for name, p in schema.get("properties", {}).items()
    )
    session.out.print(f"{endpoint['name']}: {endpoint['description']}", markup=False, highlight=False)
    display.print_table(session.out, ("FIELD", "TYPE", "REQUIRED", "DESCRIPTION"), rows, "takes no input")


def _describe_field(field: dict[str, Any]) -> str:
    choices = f"one of {', '.join(map(str, field['enum']))}" if "enum" in field else ""
    default = f"default {field['default']}" if "default" in field else ""
    return "; ".join(filter(None, (field.get("description"), say(choices), say(default))))
