"""`lamplighter secrets`: secrets for the programs of jobs, and the key that seals them.

A value comes from stdin or a file, not from an argument.
"""

import sys
from pathlib import Path
from typing import Any

import click

from lamplighter import api
from lamplighter.cli import display
from lamplighter.cli.context import CliContext, client_command
from lamplighter.cli.language import say

COLUMNS = ("SECRET", "OWNER", "SET", "BY KEY")

owner_option = click.option("--owner", help="Of this owner [that of the key]. Needs the scope admin.")
installation_option = click.option(
    "--installation", is_flag=True, help="Of the installation, for jobs of every owner. Needs the scope admin."
)


@click.group()
def secrets() -> None:
    """Set, list and delete secrets, which programs of jobs read as files; replace the key that seals them."""


@secrets.command("set")
@click.argument("name")
@owner_option
@installation_option
@click.option("--file", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="Read the value from FILE.")
@client_command
def set_secret(session: CliContext, name: str, owner: str | None, installation: bool, file: Path | None) -> None:
    """Set the secret NAME to the text on stdin, without its last newline, in place of an earlier value."""
    holder = _check_holder(owner, installation)
    facts = session.client.set_secret(name, _read_value(file), **holder)
    session.show(facts, lambda: session.out.print(say(f"secret {name} is set"), markup=False, highlight=False))


def _check_holder(owner: str | None, installation: bool) -> dict[str, Any]:
    if owner is not None and installation:
        raise click.UsageError("--owner and --installation exclude each other: give one of them")
    return {"owner": owner, "installation": installation}


def _read_value(file: Path | None) -> str:
    """Return the value. At a terminal it is asked for and not shown. Raises UsageError."""
    if file is None and sys.stdin.isatty():
        return str(click.prompt(say("Value"), hide_input=True))
    data = sys.stdin.buffer.read() if file is None else file.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise click.UsageError("the value is not UTF-8 text: encode it, for example with base64") from error
    return text.removesuffix("\n").removesuffix("\r")


@secrets.command("list")
@owner_option
@installation_option
@client_command
def list_secrets(session: CliContext, owner: str | None, installation: bool) -> None:
    """List the names. Values are never shown."""
    found = session.client.secrets(**_check_holder(owner, installation))
    session.show(found, lambda: display.print_table(session.out, COLUMNS, map(_row, found), "no secrets"))


def _row(secret: dict[str, Any]) -> tuple[str, ...]:
    holder = secret["owner"] or say("the installation")
    return secret["name"], holder, display.format_time_text(secret["set_at"]), secret["set_by"]


@secrets.command("delete")
@click.argument("name")
@owner_option
@installation_option
@client_command
def delete_secret(session: CliContext, name: str, owner: str | None, installation: bool) -> None:
    """Delete the secret NAME. Waiting jobs that need it fail when they start."""
    session.client.delete_secret(name, **_check_holder(owner, installation))
    text = say(f"secret {name} is deleted")
    session.show({"deleted": name}, lambda: session.out.print(text, markup=False, highlight=False))


@secrets.command("rotate-key")
@click.option("--finish", is_flag=True, help="Remove the old key from the key file.")
@client_command
def rotate_key(session: CliContext, finish: bool) -> None:
    """Seal all secrets with a new key (needs the scope admin). The old key stays valid until --finish."""
    facts = session.client.call(api.rotate_secret_key(finish=finish))

    def show() -> None:
        key, file, count = facts["key_id"], facts["file"], facts["sealed"]
        done = say(f"the key {key} of {file} seals all secrets ({count})")
        session.out.print(done, markup=False, highlight=False, soft_wrap=True)
        step = _NEXT_STEP if facts["old_key_ids"] else _LAST_STEP
        session.err.print(say(step), markup=False, highlight=False, soft_wrap=True)

    session.show(facts, show)


_NEXT_STEP = (
    "the old key is still in that file. Copy the file to every edge that has its own, and keep a copy outside the "
    "backups; then, after a minute: lamplighter secrets rotate-key --finish"
)
_LAST_STEP = "no old key is in that file any more: keep a copy of it outside the backups"
