"""`lamplighter hosts`, `power` and `endpoints`: list, add and remove hosts, switch them, and show what they offer."""

from typing import Any

import click

from lamplighter import api
from lamplighter.api import Unauthorized
from lamplighter.cli import display
from lamplighter.cli.context import CliContext, client_command, run_default_command
from lamplighter.cli.language import say
from schemas.host import ENDPOINTS_TASK
from schemas.version import are_neighbours

# What the edge revokes before it answers the removal of a host (edge.hosts.enrollment).
REVOKED = (
    "its key for files",
    "its broker account and connections",
    "its heartbeat and capabilities",
    "its power override",
    "its maintenance",
)


@click.group(invoke_without_command=True)
@click.pass_context
def hosts(context: click.Context, /, **given: Any) -> None:
    """List, add or remove GPU hosts, or put one into maintenance."""
    run_default_command(context, list_hosts, given)


@hosts.command("list")
@client_command
def list_hosts(session: CliContext) -> None:
    """List the GPU hosts."""
    answer = session.client.call(api.get_json("/v1/hosts"))
    session.show(answer["hosts"], lambda: print_hosts(session, answer["hosts"], answer.get("version")))


hosts.params.extend(list_hosts.params)  # `hosts --json` is `hosts list --json`


def print_hosts(session: CliContext, found: list[dict[str, Any]], edge_version: str | None = None) -> None:
    """Print the hosts as a table, or a hint if no host has connected yet.

    Warn of each runner whose version is too far from the edge's; an edge before 0.2 does not tell its own.
    """
    columns: tuple[str, ...] = (
        "HOST",
        "STATE",
        "VERSION",
        "SINCE",
        "ENGINE",
        "ENDPOINTS",
        "GPUS",
        "GPU ACCESS",
        "IMAGES",
        "WARM",
        "JOBS",
    )
    rows = list(map(_host_row, found))
    if any(host.get("labels") for host in found):
        columns = (*columns, "LABELS")
        rows = [(*row, display.format_labels(host)) for row, host in zip(rows, found, strict=True)]
    display.print_table(session.out, columns, rows, "no host has connected yet: start a runner")
    for host in found:
        kept_on = display.describe_kept_on(host)
        for line in filter(None, (kept_on, *display.describe_waits(host))):
            session.out.print(say(line), markup=False, highlight=False)
    for host in found:
        if warning := version_warning(edge_version, host):
            text = say(f"host {host['id']}: {warning}")
            session.err.print(f"lamplighter: {text}", style="yellow", markup=False)


def version_warning(edge_version: str | None, host: dict[str, Any]) -> str | None:
    """Return what to do about a runner that is more than one minor release from its edge, None where it is not."""
    version = host.get("version")
    if edge_version is None or version is None or are_neighbours(edge_version, version):
        return None
    return f"its runner is {version} and the edge {edge_version}, more than one release apart: upgrade the older one"


def _describe_state(host: dict[str, Any]) -> str:
    return say(f"{host['state']}, in maintenance") if host.get("maintenance") else str(host["state"])


def _format_gpu(gpu: dict[str, Any]) -> str:
    return f"{gpu['name']} ({', '.join(filter(None, (gpu['fitness'], display.format_free_share(gpu))))})"


def _host_row(host: dict[str, Any]) -> tuple[str, ...]:
    gpus = ", ".join(map(_format_gpu, host["gpus"])) or say("none")
    return (
        host["id"],
        _describe_state(host),
        host.get("version") or "-",
        display.format_time_text(host["since"]),
        display.format_engine(host),
        display.format_offered(host),
        gpus,
        host.get("injection") or "-",
        display.format_images(host),
        "; ".join(display.format_warm_slots(slots, say) for slots in host.get("warm", ())) or "-",
        str(len(host["jobs"])),
    )


@hosts.command("add")
@click.argument("host", metavar="ID")
@click.option(
    "--relay", is_flag=True, help="ID is a relay, which powers hosts of its network on and off (docs/gateway.md)."
)
@client_command
def add_host(session: CliContext, host: str, *, relay: bool) -> None:
    """Create a join token for host ID and print the command to run there. The token is a secret of that host."""
    made = session.client.call(api.add_relay(host) if relay else api.add_host(host))
    session.show(made, lambda: session.out.print(made["command"], markup=False, highlight=False))


@hosts.command("remove")
@click.argument("host", metavar="ID")
@client_command
def remove_host(session: CliContext, host: str) -> None:
    """Remove an enrolled host. Its key and its connection to the broker end immediately."""
    session.client.call(api.delete_path(f"/v1/hosts/{api.quote_segment(host)}"))
    line = f"host {host} removed; revoked: {', '.join(map(say, REVOKED))}"
    session.show({"removed": host, "revoked": REVOKED}, lambda: session.out.print(say(line), highlight=False))


@hosts.command("maintenance")
@click.argument("host", metavar="ID")
@click.option("--end", is_flag=True, help="End the maintenance.")
@client_command
def maintenance(session: CliContext, host: str, *, end: bool) -> None:
    """Put host ID into maintenance: it starts no job, running jobs continue, and no power rule switches it."""
    found = session.client.call(api.end_maintenance(host) if end else api.start_maintenance(host))
    line = f"host {host} is no longer in maintenance" if end else f"host {host} is in maintenance"
    session.show(found, lambda: session.out.print(say(line), highlight=False))


_SECONDS_BY_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Duration(click.ParamType[float]):
    """A duration such as `90s`, `30m`, `12h` or `7d`, as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds of a time such as 90m, 12h or 7d; fail with a usage error for another text."""
        number, unit = str(value)[:-1], str(value)[-1:]
        if unit in _SECONDS_BY_UNIT and number.isascii() and number.isdecimal() and int(number) > 0:
            return float(int(number) * _SECONDS_BY_UNIT[unit])
        return self.fail(f"{value} is not a duration: write it as 90s, 30m, 12h or 7d", param, ctx)


@hosts.group("token", invoke_without_command=True)
@click.pass_context
def host_token(context: click.Context, /, **given: Any) -> None:
    """Create, list and revoke join tokens that many hosts share. Each host gets credentials of its own."""
    run_default_command(context, create_token, given)


@host_token.command("create")
@click.option(
    "--uses",
    type=click.IntRange(1, 1_000_000),
    default=1,
    show_default=True,
    help="How many hosts may join with the token.",
)
@click.option(
    "--ttl",
    type=Duration(),
    default="7d",
    show_default=True,
    metavar="TIME",
    help="How long it is valid, such as 90s, 30m, 12h or 7d.",
)
@click.option("--prefix", metavar="NAME", help="The ids of its hosts begin with NAME and a hyphen [host].")
@click.option("--pool", metavar="POOL", help="Its hosts offer only endpoints of this pool.")
@click.option("--keep", is_flag=True, help="Its hosts stay enrolled when they end.")
@click.option("--token-only", is_flag=True, help="Print only the token, for a file that `--join @FILE` reads.")
@client_command
def create_token(session: CliContext, uses: int, ttl: float, *, token_only: bool, **terms: Any) -> None:
    """Create a join token for many hosts and print the command to run on each. The token is a secret."""
    made = session.client.call(api.create_host_token(uses, ttl, **terms))
    line = made["token" if token_only else "command"]
    session.show(made, lambda: session.out.print(line, markup=False, highlight=False, soft_wrap=True))


host_token.params.extend(create_token.params)  # `hosts token --uses 2` is `hosts token create --uses 2`


@host_token.command("list")
@client_command
def list_tokens(session: CliContext) -> None:
    """List the join tokens that hosts share, without their secrets."""
    found = session.client.call(api.get_json("/v1/host-tokens"))["tokens"]
    columns = ("TOKEN", "STATE", "USED", "HOSTS", "PREFIX", "POOL", "EXPIRES")
    session.show_table(found, columns, map(_token_row, found), "no join tokens")


def _token_row(token: dict[str, Any]) -> tuple[str, ...]:
    used = f"{token['used']}/{token['uses']}"
    expires = display.format_time_text(token["expires_at"])
    return token["id"], token["state"], used, str(token["hosts"]), token["prefix"], token["pool"] or "-", expires


@host_token.command("revoke")
@click.argument("token_id", metavar="ID")
@click.option("--hosts", is_flag=True, help="Also remove the hosts that have joined with it.")
@client_command
def revoke_token(session: CliContext, token_id: str, *, hosts: bool) -> None:
    """Stop further hosts from joining with token ID. Without --hosts, those that have joined stay."""
    path = f"/v1/host-tokens/{api.quote_segment(token_id)}"
    session.client.call(api.delete_path(path, hosts="true") if hosts else api.delete_path(path))
    tokens = session.client.call(api.get_json("/v1/host-tokens"))["tokens"]
    stay = next((token["hosts"] for token in tokens if token["id"] == token_id), 0)

    def print_rest() -> None:
        session.out.print(say(f"join token {token_id} revoked"), highlight=False)
        if stay:
            remedy = f"lamplighter hosts token revoke {token_id} --hosts"
            session.out.print(say(f"{stay} of its hosts stay: {remedy} removes them"), highlight=False)

    session.show({"revoked": token_id, "hosts": stay}, print_rest)


OVERRIDE_TEXTS = {"on": "override: on", "off": "override: off", "auto": "automatic"}


@click.command()
@click.argument("host")
@click.argument("want", type=click.Choice([*OVERRIDE_TEXTS]))
@click.option("--until", metavar="TIME", help="End of the override, such as 2026-11-22T23:00:00Z [until `auto`].")
@client_command
def power(session: CliContext, host: str, want: str, until: str | None) -> None:
    """Keep a declared host on or off, or switch it automatically again. Off drains the host first."""
    found = session.client.call(api.set_power(host, want, until))
    session.show(
        found, lambda: session.out.print(say(f"host {host} {found.state}, {OVERRIDE_TEXTS[want]}"), highlight=False)
    )


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

    def print_all() -> None:
        rows = ((e["name"], _describe_hosts(e), e["description"]) for e in found)
        display.print_table(session.out, ("ENDPOINT", "HOSTS", "DESCRIPTION"), rows, "no host offers an endpoint yet")
        for line in _list_invalid_files(session):
            session.err.print(say(line), highlight=False)

    session.show(found, print_all)


def _list_invalid_files(session: CliContext) -> list[str]:
    """Return a line for each host that cannot use its changed endpoints; none if the key may not read hosts."""
    try:
        hosts = session.client.call(api.get_json("/v1/hosts"))["hosts"]
    except Unauthorized:
        return []
    return [
        f"host {host['id']} keeps its endpoints as they were, because a file is not valid: {task.partition(': ')[2]}"
        for host in hosts
        for task in host.get("waits", ())
        if task.startswith(f"{ENDPOINTS_TASK}: ")
    ]


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
