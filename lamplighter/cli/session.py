"""What every client command shares: where the edge is, who asks, how answers look, and what exit codes mean.

0 done, 1 the job failed, 2 usage, 3 the server cannot be reached, 4 refused.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import msgspec
from msgspec import Struct
from rich.console import Console

from lamplighter.errors import JobFailed, LamplighterError, Rejected, Unreachable
from lamplighter.sdk import Client

JOB_FAILED, USAGE, UNREACHABLE, REFUSED, INTERRUPTED = 1, 2, 3, 4, 130
EXIT_CODES: dict[type[Exception], int] = {
    JobFailed: JOB_FAILED,
    Unreachable: UNREACHABLE,
    Rejected: REFUSED,
    OSError: USAGE,  # a file of this machine that was named and cannot be read or written
}
DEFAULT_URL = "http://127.0.0.1:8000"
PIPE_WIDTH = 200  # columns of a table that goes to a file or another program
ADDRESS_FILE = "client.json"  # what `up` leaves in its data folder

F = TypeVar("F", bound=Callable[..., Any])


class Address(Struct, frozen=True):
    """Where an edge is and the key to it."""

    url: str
    key: str | None = None


def left_by_up(data: Path) -> Address | None:
    """What `up` left in its data folder, or None."""
    try:
        return msgspec.json.decode((data / ADDRESS_FILE).read_bytes(), type=Address)
    except (OSError, msgspec.DecodeError):
        return None


def find_address(url: str | None, key: str | None, data: Path) -> Address:
    """From the flags, else LAMPLIGHTER_URL and LAMPLIGHTER_KEY, else what `up` left in the data folder."""
    left = left_by_up(data)
    chosen = url or os.environ.get("LAMPLIGHTER_URL")
    secret = key or os.environ.get("LAMPLIGHTER_KEY")
    if chosen is None and left is not None:
        return Address(left.url, secret or left.key)
    if secret is None and left is not None and left.url == chosen:
        secret = left.key
    return Address(chosen or DEFAULT_URL, secret)


class Session:
    """One command's view of the edge and of the terminal. Answers go to stdout, everything else to stderr."""

    def __init__(self, address: Address, data: Path, *, as_json: bool) -> None:
        self.address = address
        self.data = data
        self.as_json = as_json
        self.out = Console(soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH)
        self.err = Console(stderr=True, soft_wrap=True)  # one line stays one line

    @functools.cached_property
    def client(self) -> Client:
        """The connection."""
        return Client(self.address.url, self.address.key)

    def show(self, value: Any, human: Callable[[], None]) -> None:
        """Print `value` as one line of JSON, or let `human` print it."""
        if self.as_json:
            sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
            sys.stdout.flush()
        else:
            human()

    def fail(self, error: LamplighterError | OSError) -> NoReturn:
        """Say what went wrong and leave with its exit code."""
        if self.as_json:
            sys.stderr.write(msgspec.json.encode({"error": str(error), "kind": type(error).__name__}).decode() + "\n")
        else:
            self.err.print(f"lamplighter: {error}", style="red", markup=False, highlight=False)
        sys.exit(next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind)))


def client_command(function: F) -> F:
    """A command that talks to an edge: gets a Session and the options --url --key --data --json."""

    @click.option("--url", help="Address of the edge [LAMPLIGHTER_URL, or what `up` left in --data].")
    @click.option("--key", help="API key [LAMPLIGHTER_KEY, or what `up` left in --data].")
    @click.option("--data", type=click.Path(path_type=Path), default=Path(".lamplighter"), help="Data folder of `up`.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON, one line a value.")
    @functools.wraps(function)
    def command(url: str | None, key: str | None, data: Path, as_json: bool, **given: Any) -> None:
        session = Session(find_address(url, key, data), data, as_json=as_json)
        try:
            function(session, **given)
        except BrokenPipeError:
            sys.stderr.close()  # the reader of our output went away: nothing is left to say
            sys.exit(0)
        except (LamplighterError, OSError) as error:
            session.fail(error)

    return command  # type: ignore[return-value]
