"""Client verbs around everything else: upload, power, endpoints."""

from pathlib import Path
from typing import Any

import click

from lamplighter import things, wire
from lamplighter.cli import show
from lamplighter.cli.following import upload as upload_file
from lamplighter.cli.session import Session, client_command

HELD = {"on": "held on", "off": "held off", "auto": "left to its work"}


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@client_command
def upload(session: Session, files: tuple[Path, ...]) -> None:
    """Upload files; prints the digest that a job's input takes."""
    for path in files:
        _uploaded(session, path, upload_file(session, path))


def _uploaded(session: Session, path: Path, digest: str) -> None:
    line = f"{digest}  {path}"
    session.show({"file": str(path), "digest": digest}, lambda: session.out.print(line, markup=False, highlight=False))


@click.command()
@click.argument("host")
@click.argument("want", type=click.Choice([*HELD]))
@click.option("--until", metavar="TIME", help="Until when, as 2026-11-22T23:00:00Z; without it until `auto`.")
@client_command
def power(session: Session, host: str, want: str, until: str | None) -> None:
    """Hold a declared host on or off, or leave it to its work again (off drains first)."""
    found = session.client.call(things.power(host, want, until))
    session.show(found, lambda: session.out.print(f"host {host} {found.state}, {HELD[want]}", highlight=False))


@click.command()
@click.argument("name", required=False)
@client_command
def endpoints(session: Session, name: str | None) -> None:
    """List what can run; with a name, the fields it takes."""
    if name:
        one = session.client.call(things.endpoint(name))
        session.show(one, lambda: _fields(session, one))
        return
    found = session.client.call(wire.fetch("/v1/endpoints"))["endpoints"]
    rows = ((e["name"], ", ".join(e["hosts"]) or "no host yet", e["description"]) for e in found)
    session.show(
        found, lambda: show.table(session.out, ("ENDPOINT", "HOSTS", "WHAT"), rows, "no host offers anything yet")
    )


def _fields(session: Session, endpoint: dict[str, Any]) -> None:
    schema = endpoint["input"]
    needed = set(schema.get("required", ()))
    rows = (
        (
            f"--{name}",
            "file" if p.get("format") == "asset" else str(p.get("type", "any")),
            "yes" if name in needed else "",
            _about(p),
        )
        for name, p in schema.get("properties", {}).items()
    )
    session.out.print(f"{endpoint['name']}: {endpoint['description']}", markup=False, highlight=False)
    show.table(session.out, ("FIELD", "TYPE", "NEEDED", "WHAT"), rows, "takes no input")


def _about(field: dict[str, Any]) -> str:
    choices = f"one of {', '.join(map(str, field['enum']))}" if "enum" in field else ""
    default = f"default {field['default']}" if "default" in field else ""
    return "; ".join(filter(None, (field.get("description"), choices, default)))
