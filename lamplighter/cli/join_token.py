"""The token of `--join`: the option, where it is read from, and how it is hidden from the process list."""

import ctypes
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import click

JOIN_VARIABLE = "LAMPLIGHTER_JOIN"
JOIN_OPTION = "--join"
JOIN_COMMANDS = frozenset({"runner", "relay", "install"})  # they take the option
_ARG_START_FIELD = 48 - 3  # field 48 of stat in proc(5), counted from the field after the command, which is field 2

join_option = click.option(
    JOIN_OPTION,
    "token",
    metavar="TOKEN",
    envvar=JOIN_VARIABLE,
    help="The token that `lamplighter hosts add` printed. Later starts reuse it. -: standard input; @FILE: a file.",
)


def hide_token(argv: Sequence[str]) -> None:
    """Overwrite the token in the memory of this process's arguments, which `/proc/PID/cmdline` and `ps` show.

    Every user of the machine can read the arguments while the process lives. A token from a file, standard input or
    the environment is never among them.
    """
    for before, argument in pairwise(argv):
        if before == JOIN_OPTION and argument != "-" and not argument.startswith("@"):
            _overwrite(argument.encode())
    for argument in argv:
        if argument.startswith(f"{JOIN_OPTION}="):
            _overwrite(argument.removeprefix(f"{JOIN_OPTION}=").encode())


def _overwrite(secret: bytes) -> None:
    try:
        stat = Path("/proc/self/stat").read_text()
        offset = Path("/proc/self/cmdline").read_bytes().find(secret)
    except OSError:  # not on Linux
        return
    start = int(stat.rpartition(")")[2].split()[_ARG_START_FIELD])
    address = start + offset
    if start and secret and offset >= 0 and ctypes.string_at(address, len(secret)) == secret:
        ctypes.memset(address, ord("*"), len(secret))


def read_token(given: str) -> str:
    """Return the token for `given`: `-` means standard input, `@FILE` a file, anything else is the token itself."""
    # Jobs of the process engine must not inherit it.
    os.environ.pop(JOIN_VARIABLE, None)
    if given == "-":
        return sys.stdin.readline().strip()
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(
            f"the file {given[1:]} cannot be read ({error}): correct its name", param_hint=JOIN_OPTION
        ) from error
