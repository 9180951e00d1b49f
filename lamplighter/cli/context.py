"""The parts that all client commands share: the address of the edge, output, error lines and exit codes.

Exit codes: 0 success, 1 the job failed, 2 wrong usage or an unusable file, 3 the server cannot be reached, 4 refused,
130 stopped by Ctrl-C.
"""

import functools
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import click
import msgspec
from click.core import ParameterSource
from msgspec import Struct
from rich.text import Text

from lamplighter.api import JobFailed, LamplighterError, Rejected, TrustInvalid, Unauthorized, Unreachable
from lamplighter.cli import display
from lamplighter.cli.display import SafeConsole, json_line
from lamplighter.cli.language import current_language, say
from lamplighter.client import Client
from schemas.settings_loader import load_settings, select_variables
from schemas.settings_schema import SECRET
from schemas.texts import Language

FAILED, USAGE, UNREACHABLE, REFUSED, INTERRUPTED = 1, 2, 3, 4, 130
EXIT_CODES: dict[type[BaseException], int] = {
    JobFailed: FAILED,
    Unreachable: UNREACHABLE,
    Rejected: REFUSED,
    TrustInvalid: USAGE,
    OSError: USAGE,  # a local file that cannot be read or written
    KeyboardInterrupt: INTERRUPTED,
}
DEFAULT_URL = "http://127.0.0.1:8000"
ADDRESS_FILE = "client.json"  # written by `up` to its data folder
DEFAULT_DATA_DIR = Path(".lamplighter")
PROGRAM = "lamplighter"

F = TypeVar("F", bound=Callable[..., Any])


class ClientSettings(Struct, frozen=True):
    """The variables of the client commands."""

    url: str | None = None
    """Address of the edge, as in `https://gpu.example.com:8443`. Unset: what `up` left in its data folder."""
    key: Annotated[str, SECRET] | None = None
    """An API key. Unset: what `up` left in its data folder."""
    ca: str | None = None
    """PEM file with the authorities to trust. Unset: the system's."""
    pin: str | None = None
    """The public key or certificate to trust, under any name: `sha256:…`, or a PEM file with the certificate."""


class EdgeAddress(Struct, frozen=True):
    """The URL of an edge, a key for it, and what its certificate is checked against (`lamplighter.transport`)."""

    url: str
    key: str | None = None
    ca: str | None = None
    pin: str | None = None


def read_address_file(data: Path) -> EdgeAddress | None:
    """Return the address that `up` wrote to its data folder, or None."""
    try:
        return msgspec.json.decode((data / ADDRESS_FILE).read_bytes(), type=EdgeAddress)
    except (OSError, msgspec.DecodeError):
        return None


def find_address(
    url: str | None, key: str | None, data: Path, ca: str | None = None, pin: str | None = None
) -> EdgeAddress:
    """Return the address from the options, else from `LAMPLIGHTER_URL` and so on, else from the data folder.

    LAMPLIGHTER_CA and LAMPLIGHTER_PIN are used only if neither `ca` nor `pin` is given.
    """
    local = read_address_file(data)
    given = load_settings(ClientSettings, "", select_variables(ClientSettings, os.environ))
    chosen, secret = url or given.url, key or given.key
    if not (ca or pin):
        ca, pin = given.ca, given.pin
    if chosen is None and local is not None:
        return EdgeAddress(local.url, secret or local.key, ca, pin)
    if secret is None and local is not None and local.url == chosen:
        secret = local.key
    return EdgeAddress(chosen or DEFAULT_URL, secret, ca, pin)


def format_command(*words: str) -> str:
    """Return a command line that works here: with the program's name if PATH has it, else as this one was called."""
    called = sys.argv[0]
    known = Path(called).name != PROGRAM or shutil.which(PROGRAM) is not None
    return shlex.join([PROGRAM if known else called, *words])


def error_line(error: BaseException) -> str:
    """Return an error in one line. An OSError with a file names the file and says what to do."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} cannot be used ({error.strerror}): choose another, or check its rights and free space"
    return str(error) or type(error).__name__


class CliContext:
    """The edge and the terminal of one command. Answers go to stdout, everything else to stderr.

    `address_options` are the options that selected the edge, for commands that are shown to the user. The key is not
    among them.
    """

    def __init__(self, address: EdgeAddress, data: Path, *, as_json: bool, address_options: Sequence[str] = ()) -> None:
        self.address = address
        self.data = data
        self.address_options = address_options
        self.as_json = as_json
        self.out = display.make_console()
        self.err = SafeConsole(markup=False, stderr=True, soft_wrap=True)  # one line stays one line

    @functools.cached_property
    def client(self) -> Client:
        """The client of the edge, created when a command first uses it."""
        address = self.address
        return Client(address.url, address.key, ca=address.ca, pin=address.pin, language=self.language)

    @property
    def language(self) -> str | None:
        """The language to ask the edge for; None: the key's. What a program reads does not depend on the terminal."""
        return None if self.as_json or current_language() is Language.EN else current_language().value

    def show(self, value: Any, human: Callable[[], None]) -> None:
        """Print `value` as one line of JSON, or let `human` print it."""
        if self.as_json:
            sys.stdout.write(json_line(value))
            sys.stdout.flush()
        else:
            human()

    def show_table(self, value: Any, columns: Sequence[str], rows: Iterable[Sequence[str | Text]], empty: str) -> None:
        """Print `value` as one line of JSON, or `rows` as `display.print_table` does."""
        self.show(value, lambda: display.print_table(self.out, columns, rows, empty))

    def format_next_command(self, *words: str) -> str:
        """Return a command line for the same edge."""
        return format_command(*words, *self.address_options)

    def fail(self, error: LamplighterError | OSError | KeyboardInterrupt) -> NoReturn:
        """Print the error and exit with its code."""
        why = error_line(error)
        if isinstance(error, Unauthorized) and self.address.key is None:
            why = (
                f"unauthorized: there is no key for {self.address.url}: give --data, the folder of `lamplighter up`, "
                "or set LAMPLIGHTER_KEY"
            )
        if self.as_json:
            sys.stderr.write(json_line({"error": why, "kind": type(error).__name__}))
        else:
            if isinstance(error, JobFailed):
                display.print_log_tail(self.err, error.job, self.format_next_command("logs", error.job.id))
            self.err.print(f"lamplighter: {say(why)}", style="red", markup=False, highlight=False)
        sys.exit(next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind)))


def run_default_command(context: click.Context, command: click.Command, given: Mapping[str, Any]) -> None:
    """Run `command` for a group without a verb. Options before a verb would not reach it, so they are a usage error."""
    verb = context.invoked_subcommand
    if verb is None:
        context.invoke(command, **given)
    elif any(context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in given):
        raise click.UsageError(f"give the options after {verb}, not before it")


def client_command(function: F) -> F:
    """Make a command of the edge's client: it gets a CliContext and the options of the edge, --data and --json."""

    @click.option("--url", help="Address of the edge [LAMPLIGHTER_URL, or what `up` left in --data].")
    @click.option("--key", help="API key [LAMPLIGHTER_KEY, or what `up` left in --data].")
    @click.option("--ca", metavar="FILE", help="PEM file with the certificates to trust [LAMPLIGHTER_CA].")
    @click.option("--pin", help="sha256:… of the edge's public key or certificate to trust [LAMPLIGHTER_PIN].")
    @click.option("--data", type=click.Path(path_type=Path), default=DEFAULT_DATA_DIR, help="Data folder of `up`.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON, one value on each line.")
    @functools.wraps(function)
    def command(  # noqa: PLR0913, PLR0917 - click calls it with every option
        url: str | None, key: str | None, ca: str | None, pin: str | None, data: Path, as_json: bool, **given: Any
    ) -> None:
        named = {"--url": url, "--ca": ca, "--pin": pin, "--data": str(data) if data != DEFAULT_DATA_DIR else None}
        options = [word for name, value in named.items() if value for word in (name, value)]
        session = CliContext(find_address(url, key, data, ca, pin), data, as_json=as_json, address_options=options)
        try:
            function(session, **given)
        except BrokenPipeError:
            sys.stderr.close()  # the reader of our output has closed it, so an error message would be noise
            sys.exit(0)
        except (LamplighterError, OSError, KeyboardInterrupt) as error:
            session.fail(error)

    return command  # type: ignore[return-value]
